package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/httpapi/wire"
)

// BlockEditCmd changes a block that is not over.
type BlockEditCmd struct {
	ID       string  `arg:"" help:"Id of the block, for example b17."`
	At       moment  `placeholder:"TIME" help:"Start then, if it is pending: +2h from now, or a time like 2026-01-31T08:00:00+01:00; now to start at once."`
	For      span    `xor:"end" placeholder:"DURATION" help:"End by itself so long after the start."`
	Until    moment  `xor:"end" placeholder:"TIME" help:"End by itself then."`
	NoEnd    bool    `xor:"end" help:"Never end by itself; lift it by hand."`
	Note     *string `help:"Another note."`
	Revision uint64  `placeholder:"N" help:"Only if the block is still at this revision; else at the one that is read first."`
	Waiting
}

// Run implements the command. It reads the block and changes it on the condition that nobody else did in
// between.
func (c *BlockEditCmd) Run(ctx context.Context, g *Globals) error {
	if c.At.IsZero() && c.For == "" && c.Until.IsZero() && !c.NoEnd && c.Note == nil {
		return usagef("nothing to change: give --at, --for, --until, --no-end or --note")
	}
	api, err := g.Client()
	if err != nil {
		return err
	}
	b, err := api.Block(ctx, c.ID)
	if err != nil {
		return err
	}
	write, preview := c.write()
	write.IfMatch = b.Revision
	if c.Revision != 0 {
		write.IfMatch = c.Revision
	}
	w, err := api.PatchBlock(ctx, c.ID, c.patch(&b), write)
	if err != nil {
		return err
	}
	if preview != nil {
		return g.printPreview(preview)
	}
	return g.printWritten(w, c.Wait, "changed")
}

func (c *BlockEditCmd) patch(b *client.Block) client.BlockPatch {
	var p client.BlockPatch
	if !c.At.IsZero() {
		p.StartsAt = wire.Given(c.At.Time)
	}
	switch {
	case c.NoEnd:
		p.EndsAt = wire.Given(time.Time{})
	case !c.Until.IsZero():
		p.EndsAt = wire.Given(c.Until.Time)
	case c.For != "":
		start := b.Since
		if b.State == "pending" {
			start = b.StartsAt
		}
		if !c.At.IsZero() {
			start = c.At.Time
		}
		p.EndsAt = wire.Given(start.Add(c.For.duration()))
	}
	if c.Note != nil {
		p.Note = wire.Given(*c.Note)
	}
	return p
}

// BlockConfirmCmd confirms a block.
type BlockConfirmCmd struct {
	ID string `arg:"" help:"Id of the block, for example b17."`
	Waiting
}

// Run implements the command.
func (c *BlockConfirmCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	write, preview := c.write()
	w, err := api.ConfirmBlock(ctx, c.ID, write)
	if err != nil {
		return err
	}
	if preview != nil {
		return g.printPreview(preview)
	}
	return g.printWritten(w, c.Wait, "confirmed")
}

var blockID = regexp.MustCompile(`^b[0-9]+$`)

// BlockLiftCmd lifts blocks by their ids, or by a reason and a target.
type BlockLiftCmd struct {
	IDs []string `arg:"" name:"id" help:"Ids of blocks, for example b17; with --reason the target instead."`
	Sort
	Reason   string `complete:"unpaid abuse attack maintenance legal manual" help:"Lift what this reason holds on exactly the target given."`
	Revision uint64 `placeholder:"N" help:"Only if the block is still at this revision."`
	Waiting
}

// Run implements the command.
func (c *BlockLiftCmd) Run(ctx context.Context, g *Globals) error {
	switch {
	case c.Reason != "" && len(c.IDs) != 1:
		return usagef("--reason lifts on one target; give one")
	case c.Reason != "" && c.Revision != 0:
		return usagef("--revision is of one block; it does not go with --reason")
	case c.Reason == "" && c.Sort != (Sort{}):
		return usagef("--vm, --prefix, --account and --list go with --reason")
	case c.Reason == "" && slices.ContainsFunc(c.IDs, func(id string) bool { return !blockID.MatchString(id) }):
		return usagef("a block is lifted by its id, for example b17; what a reason holds on a target, by the target and --reason")
	case len(c.IDs) > 1 && (c.Revision != 0 || c.DryRun):
		return usagef("--revision and --dry-run go with one block")
	}
	api, err := g.Client()
	if err != nil {
		return err
	}
	if c.Reason != "" {
		return c.liftReason(ctx, g, api)
	}
	var done []client.Block
	for i, id := range c.IDs {
		write, preview := c.write()
		write.IfMatch = c.Revision
		if i > 0 && c.Key != "" {
			write.Key = fmt.Sprintf("%s#%d", c.Key, i) // one key is for one request
		}
		w, err := api.LiftBlock(ctx, id, write)
		switch {
		case err != nil && g.JSON() && len(done) > 0: // what was done before is told all the same
			return errors.Join(g.PrintJSON(wire.Page[client.Block]{Items: done}), err)
		case err != nil:
			return err
		case preview != nil:
			return g.printPreview(preview)
		case len(c.IDs) == 1:
			return g.printWritten(w, c.Wait, "lifted")
		}
		done = append(done, w.Block)
		if !g.JSON() {
			if err := g.printWritten(w, c.Wait, "lifted"); err != nil {
				return err
			}
		}
	}
	if g.JSON() {
		return g.PrintJSON(wire.Page[client.Block]{Items: done})
	}
	return nil
}

func (c *BlockLiftCmd) liftReason(ctx context.Context, g *Globals, api *client.Client) error {
	write, preview := c.write()
	blocks, confirmed, err := api.LiftReason(ctx, c.target(c.IDs[0]), c.Reason, write)
	if err != nil {
		return err
	}
	if preview != nil {
		return g.printPreview(preview)
	}
	if g.JSON() {
		if err := g.PrintJSON(wire.Page[client.Block]{Items: blocks}); err != nil {
			return err
		}
	}
	for i := range blocks {
		w := client.Written{Block: blocks[i], Confirmed: true}
		if !g.JSON() {
			if err := g.printWritten(w, c.Wait, "lifted"); err != nil {
				return err
			}
		}
	}
	if confirmed {
		return nil
	}
	return unconfirmed(&blocks[0])
}

// unconfirmed is the error of a write that is committed but not confirmed.
func unconfirmed(b *client.Block) error {
	var missing []string
	for _, u := range b.Unconfirmed {
		missing = append(missing, u.Node)
	}
	return &unconfirmedError{missing}
}

// BlockReceiptsCmd shows which nodes have the last change of a block.
type BlockReceiptsCmd struct {
	ID   string        `arg:"" help:"Id of the block, for example b17."`
	Wait time.Duration `placeholder:"DURATION" help:"Wait so long, 100ms to 60s, until every live node has it in its kernel."`
}

// Run implements the command. After a wait, a live node that is missing is exit code 6.
func (c *BlockReceiptsCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	r, err := api.BlockReceipts(ctx, c.ID, c.Wait)
	if err != nil {
		return err
	}
	if g.JSON() {
		if err := g.PrintJSON(r); err != nil {
			return err
		}
	} else {
		t := newTable(g.Stdout, "NODE", "CONFIRMED", "INDEX", "SINCE")
		for _, n := range r.Receipts {
			t.row(n.Node, "yes", strconv.FormatUint(n.Index, 10), local(n.At))
		}
		for _, n := range r.Unconfirmed {
			t.row(n.Node, "NO", "", local(n.Since))
		}
		if err := t.flush(); err != nil {
			return err
		}
		g.printf("needs index %d; the slowest node has %d in its kernel\n", r.Index, r.EnforcedIndex)
	}
	if c.Wait == 0 || r.Complete {
		return nil
	}
	return unconfirmed(&client.Block{Unconfirmed: r.Unconfirmed})
}
