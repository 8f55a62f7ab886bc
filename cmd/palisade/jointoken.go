package main

import (
	"context"
	"strings"
	"time"

	"github.com/palisade/palisade/httpapi/client"
)

// JoinTokenCmd groups what is done with join tokens.
type JoinTokenCmd struct {
	Ls     JoinTokenLsCmd     `cmd:"" aliases:"list" help:"List the join tokens."`
	Create JoinTokenCreateCmd `cmd:"" help:"Create a join token, which admits one node once."`
	Rm     JoinTokenRmCmd     `cmd:"" aliases:"remove" help:"Delete join tokens."`
}

// JoinTokenLsCmd lists join tokens.
type JoinTokenLsCmd struct{}

// Run implements the command.
func (c *JoinTokenLsCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	return printList(g, api.JoinTokens(ctx), []string{"ID", "STATE", "NODE", "ZONE", "EXPIRES", "USED BY", "BY"}, func(t client.JoinToken) []string {
		if t.Again {
			t.Node += " (again)"
		}
		return []string{t.ID, t.State, t.Node, t.Zone, local(t.ExpiresAt), t.UsedBy, t.Actor}
	})
}

// JoinTokenCreateCmd creates a join token. The token is alone on stdout, so that it can go into a file unseen.
type JoinTokenCreateCmd struct {
	Node  string        `help:"The only node id that it admits; without it, any."`
	Zone  string        `help:"Zone of the node that it admits; without it, the node chooses."`
	Again bool          `help:"Not for a new node, but for the member --node, whose certificate has ended: it gets a new one for the key that it has."`
	TTL   time.Duration `name:"ttl" default:"15m" help:"How long it can be used, at most 168h."`
}

// Run implements the command.
func (c *JoinTokenCreateCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	t, err := api.CreateJoinToken(ctx, client.JoinTokenRequest{Node: c.Node, Zone: c.Zone, Again: c.Again, TTL: c.TTL.String()})
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(t)
	}
	g.printf("%s\n", cell(t.Token))
	address := t.Address
	if address == "" {
		address = "ADDRESS"
	}
	where := "the new node"
	if c.Again {
		where = c.Node
	}
	g.notef("until %s; on %s: palisade join %s --token-file FILE\n", local(t.ExpiresAt), cell(where), cell(address))
	return nil
}

// JoinTokenRmCmd deletes join tokens.
type JoinTokenRmCmd struct {
	IDs []string `arg:"" name:"id" help:"Ids, as join-token ls shows them."`
}

// Run implements the command.
func (c *JoinTokenRmCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	for _, id := range c.IDs {
		if err := api.DeleteJoinToken(ctx, id, client.Write{}); err != nil {
			return err
		}
	}
	if !g.JSON() {
		g.printf("deleted %s\n", cell(strings.Join(c.IDs, ", ")))
	}
	return nil
}

// CACmd groups what is done with the fleet's certificate authority.
type CACmd struct {
	Show   CAShowCmd   `cmd:"" help:"Show the authorities that are trusted, and how far a rotation is."`
	Rotate CARotateCmd `cmd:"" help:"Replace the authority, without interruption."`
}

// CAShowCmd shows the authorities.
type CAShowCmd struct {
	PEM bool `name:"pem" help:"Print the certificates alone, for --ca on other machines."`
}

// Run implements the command.
func (c *CAShowCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	f, err := api.Fleet(ctx)
	if err != nil {
		return err
	}
	switch {
	case c.PEM:
		for _, a := range f.Authorities {
			g.printf("%s", a.Certificate)
		}
		return nil
	case g.JSON():
		return g.PrintJSON(f)
	}
	return g.printFleet(&f)
}

func (g *Globals) printFleet(f *client.Fleet) error {
	g.printf("fleet %s, epoch %d, formed %s\n", cell(f.ID), f.Epoch, local(f.FormedAt))
	t := newTable(g.Stdout, "CA SHA-256", "STATE", "UNTIL")
	for _, a := range f.Authorities {
		t.row(a.SHA256, a.State, local(a.NotAfter))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if len(f.Authorities) > 1 {
		waiting := "every node has a certificate of the current authority"
		if len(f.Awaiting) > 0 {
			waiting = "waiting for a new certificate of " + some(f.Awaiting, 10)
		}
		g.printf("rotation: %s\n", cell(waiting))
	}
	t = newTable(g.Stdout, "GOSSIP KEY", "STATE")
	for _, k := range f.GossipKeys {
		t.row(k.ID, k.State)
	}
	return t.flush()
}

// CARotateCmd begins a rotation of the authority.
type CARotateCmd struct{ rotation }

// Run implements the command.
func (c *CARotateCmd) Run(ctx context.Context, g *Globals) error {
	return c.run(ctx, g, (*client.Client).RotateCA, func(f *client.Fleet) bool { return len(f.Authorities) == 1 })
}

// GossipKeyCmd groups what is done with the gossip key.
type GossipKeyCmd struct {
	Rotate GossipKeyRotateCmd `cmd:"" help:"Replace the key that encrypts gossip, without interruption."`
}

// GossipKeyRotateCmd begins a rotation of the gossip key.
type GossipKeyRotateCmd struct{ rotation }

// Run implements the command.
func (c *GossipKeyRotateCmd) Run(ctx context.Context, g *Globals) error {
	return c.run(ctx, g, (*client.Client).RotateGossipKey, func(f *client.Fleet) bool { return len(f.GossipKeys) == 1 })
}

// rotation is what both rotations share.
type rotation struct {
	Wait time.Duration `default:"0s" help:"How long to wait until it has ended on every node; without it, it goes on by itself."`
}

func (c *rotation) run(ctx context.Context, g *Globals, begin func(*client.Client, context.Context) (client.Fleet, error), ended func(*client.Fleet) bool) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	f, err := begin(api, ctx)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(c.Wait)
	for !ended(&f) && time.Now().Before(deadline) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
		if f, err = api.Fleet(ctx); err != nil {
			return err
		}
	}
	if g.JSON() {
		return g.PrintJSON(f)
	}
	if err := g.printFleet(&f); err != nil {
		return err
	}
	if !ended(&f) {
		g.printf("the rotation goes on by itself; palisade ca show tells how far it is\n")
	}
	return nil
}
