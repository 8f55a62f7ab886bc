package main

import (
	"context"

	"github.com/palisade/palisade/httpapi/client"
)

// GuardCmd groups what is done with guards.
type GuardCmd struct {
	Ls  GuardLsCmd  `cmd:"" aliases:"list" help:"List what can never be blocked."`
	Add GuardAddCmd `cmd:"" help:"Make a prefix unblockable. A wider block keeps standing around it."`
	Rm  GuardRmCmd  `cmd:"" aliases:"remove" help:"Remove a guard that was added."`
}

// GuardLsCmd lists guards.
type GuardLsCmd struct {
	All bool `help:"Also those that are built in or come from nodes, with who says so."`
}

// Run implements the command.
func (c *GuardLsCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	if c.All {
		return printList(g, api.Guards(ctx, true), []string{"PREFIX", "WHY"}, func(w client.Guard) []string { return []string{w.Prefix, w.Why} })
	}
	return printList(g, api.Guards(ctx, false), []string{"PREFIX", "BY", "NOTE"}, func(w client.Guard) []string { return []string{w.Prefix, w.Actor, w.Note} })
}

// GuardAddCmd adds a guard.
type GuardAddCmd struct {
	Prefix string `arg:"" help:"Address or CIDR."`
	Note   string `help:"Why, for people."`
	Key    string `placeholder:"KEY" help:"Idempotency key."`
}

// Run implements the command.
func (c *GuardAddCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	w, err := api.AddGuard(ctx, client.GuardRequest{Prefix: c.Prefix, Note: c.Note}, client.Write{Key: c.Key})
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(w)
	}
	g.printf("%s guarded\n", cell(w.Prefix))
	return nil
}

// GuardRmCmd removes a guard.
type GuardRmCmd struct {
	Prefix string `arg:"" help:"Address or CIDR, as guard ls shows it."`
	Key    string `placeholder:"KEY" help:"Idempotency key."`
}

// Run implements the command.
func (c *GuardRmCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	if err := api.RemoveGuard(ctx, c.Prefix, client.Write{Key: c.Key}); err != nil {
		return err
	}
	if !g.JSON() {
		g.printf("%s is no longer guarded\n", cell(c.Prefix))
	}
	return nil
}
