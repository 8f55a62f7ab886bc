package main

import (
	"context"

	"github.com/palisade/palisade/httpapi/client"
)

// SessionCmd groups what is done with sessions.
type SessionCmd struct {
	Ls SessionLsCmd `cmd:"" aliases:"list" help:"List who is logged in."`
	Rm SessionRmCmd `cmd:"" aliases:"remove" help:"End sessions, on every node at once."`
}

// SessionLsCmd lists sessions.
type SessionLsCmd struct {
	User string `help:"Only those of this user."`
}

// Run implements the command.
func (c *SessionLsCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	head := []string{"ID", "USER", "SCOPE", "FROM", "SINCE", "LAST USED", "ENDS"}
	return printList(g, api.Sessions(ctx, c.User), head, func(s client.Session) []string {
		end := local(s.ExpiresAt)
		if s.Expired {
			end = "ended"
		}
		return []string{s.ID, s.User, s.Scope, s.From, local(s.CreatedAt), local(s.LastUsed), end}
	})
}

// SessionRmCmd ends sessions.
type SessionRmCmd struct {
	IDs  []string `arg:"" optional:"" name:"id" help:"Sessions, as session ls shows them."`
	User string   `help:"All sessions of this user instead."`
}

// Run implements the command.
func (c *SessionRmCmd) Run(ctx context.Context, g *Globals) error {
	if (len(c.IDs) == 0) == (c.User == "") {
		return usagef("give either ids or --user")
	}
	api, err := g.Client()
	if err != nil {
		return err
	}
	ids := c.IDs
	if c.User != "" {
		for s, err := range api.Sessions(ctx, c.User) {
			if err != nil {
				return err
			}
			ids = append(ids, s.ID)
		}
	}
	for _, id := range ids {
		if err := api.EndSession(ctx, id); err != nil {
			return err
		}
	}
	if !g.JSON() {
		g.printf("ended %s\n", count(len(ids), "session"))
	}
	return nil
}
