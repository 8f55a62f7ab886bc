package main

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/palisade/palisade/httpapi/client"
)

// BlockCmd groups what is done with blocks.
type BlockCmd struct {
	Add  BlockAddCmd  `cmd:"" help:"Block a VM, an address or a prefix at once, on every node."`
	Ls   BlockLsCmd   `cmd:"" aliases:"list" help:"List blocks."`
	Show BlockShowCmd `cmd:"" help:"Show a block, where it is in force and what it dropped."`
	Lift BlockLiftCmd `cmd:"" help:"Lift a block. Other blocks on the same target stay."`
}

// Waiting are the flags of writes that can wait until they are in force.
type Waiting struct {
	Wait    bool          `help:"Wait until every live node has it in its kernel."`
	Timeout time.Duration `default:"5s" help:"How long to wait, 100ms to 60s."`
	Key     string        `placeholder:"KEY" help:"Idempotency key: the same command with the same key has one effect."`
}

func (w *Waiting) write() client.Write {
	return client.Write{Key: w.Key, Wait: w.Wait, Timeout: w.Timeout}
}

// BlockAddCmd blocks a target.
type BlockAddCmd struct {
	Target string `arg:"" help:"Address, CIDR, VM id, or a name that only one VM has."`
	VM     bool   `name:"vm" xor:"kind" help:"TARGET is a VM, whatever it looks like."`
	Prefix bool   `xor:"kind" help:"TARGET is an address or CIDR."`
	Reason string `default:"manual" help:"Why, for machines: unpaid, abuse, ... Each reason lifts only itself."`
	Note   string `help:"Why, for people."`
	Waiting
}

// Run implements the command.
func (c *BlockAddCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	t := target(c.Target, c.VM, c.Prefix)
	w, err := api.AddBlock(ctx, client.BlockRequest{Target: t, Reason: c.Reason, Note: c.Note}, c.write())
	if err != nil {
		return err
	}
	return g.printWritten(w, c.Wait, "blocked")
}

// target finds out what is meant: everything that is or tries to be an address or CIDR is a prefix.
func target(s string, vm, prefix bool) client.Target {
	_, err := netip.ParseAddr(s)
	if !vm && (prefix || err == nil || strings.Contains(s, "/")) {
		return client.Target{Prefix: s}
	}
	return client.Target{VM: s}
}

// printWritten prints a block that was just added or lifted.
func (g *Globals) printWritten(w client.Written, waited bool, done string) error {
	b := &w.Block
	switch {
	case g.JSON():
		if err := g.PrintJSON(b); err != nil {
			return err
		}
	case waited:
		g.printBlock(b)
	default:
		again := ""
		if w.Replayed {
			again = " (done before, with this key)"
		}
		g.printf("%s  %s %s%s\n", b.ID, cell(b.Target.String()), done, again)
	}
	if w.Confirmed {
		return nil
	}
	var missing []string
	for _, u := range b.Unconfirmed {
		missing = append(missing, u.Node)
	}
	return &unconfirmedError{missing}
}

// BlockLsCmd lists blocks.
type BlockLsCmd struct {
	Target string `arg:"" optional:"" help:"Only blocks on exactly this VM, address or CIDR."`
	VM     bool   `name:"vm" xor:"kind" help:"TARGET is a VM, whatever it looks like."`
	Prefix bool   `xor:"kind" help:"TARGET is an address or CIDR."`
	Reason string `help:"Only blocks with this reason."`
	State  string `enum:"active,lifted,all" default:"active" help:"active, lifted or all."`
}

// Run implements the command.
func (c *BlockLsCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	f := client.BlockFilter{Reason: c.Reason, State: c.State}
	if c.Target != "" {
		t := target(c.Target, c.VM, c.Prefix)
		f.VM, f.Prefix = t.VM, t.Prefix
	}
	head := []string{"ID", "TARGET", "REASON", "STATE", "SINCE", "BY", "NODES", "DROPPED"}
	return printList(g, api.Blocks(ctx, f), head, func(b client.Block) []string {
		since := b.CreatedAt
		if b.State == "lifted" {
			since = b.LiftedAt
		}
		var dropped uint64
		if b.Counters != nil {
			dropped = b.Counters.Packets
		}
		return []string{b.ID, b.Target.String(), b.Reason, b.State, local(since), b.Actor,
			fmt.Sprintf("%d/%d", len(b.Receipts), len(b.Receipts)+len(b.Unconfirmed)), strconv.FormatUint(dropped, 10)}
	})
}

// BlockShowCmd shows one block.
type BlockShowCmd struct {
	ID string `arg:"" help:"Id of the block, for example b17."`
}

// Run implements the command.
func (c *BlockShowCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	b, err := api.Block(ctx, c.ID)
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(b)
	}
	g.printBlock(&b)
	return nil
}

// BlockLiftCmd lifts one block.
type BlockLiftCmd struct {
	ID       string `arg:"" help:"Id of the block, for example b17."`
	Revision uint64 `placeholder:"N" help:"Only if the block is still at this revision."`
	Waiting
}

// Run implements the command.
func (c *BlockLiftCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	write := c.write()
	write.IfMatch = c.Revision
	w, err := api.LiftBlock(ctx, c.ID, write)
	if err != nil {
		return err
	}
	return g.printWritten(w, c.Wait, "lifted")
}
