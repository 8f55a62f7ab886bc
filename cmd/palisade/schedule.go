package main

import (
	"context"

	"github.com/palisade/palisade/httpapi/client"
)

// ScheduleCmd lists what is due.
type ScheduleCmd struct{}

// Run implements the command.
func (c *ScheduleCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	head := []string{"AT", "WHAT", "ID", "TARGET", "BLOCK", "REASON", "BY"}
	return printList(g, api.Schedule(ctx), head, func(d client.Due) []string {
		text := map[string]string{"start": "starts", "end": "ends", "unconfirmed": "ends unless confirmed"}[d.What]
		return []string{local(d.At), text, d.Block.ID, targetText(&d.Block), what(&d.Block), d.Block.Reason, d.Block.Actor}
	})
}
