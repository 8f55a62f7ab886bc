// Package recovery finds what a state that takes the place of another would cease to hold, or would hold again,
// and what it takes to keep it. It is pure: no clock, no I/O.
package recovery

import (
	"fmt"
	"slices"
	"time"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// Loss is something that is held or agreed now and would not be.
type Loss struct {
	// Block is the hold, of a state; nil for what only a kernel holds, and for what What says.
	Block *fsm.Block
	// Element is what only a kernel holds.
	Element enforce.Element
	// What says it in words, of what is neither.
	What string
	// Agreed says that nothing is held by it now: a hold that has yet to start, a list without a hold, a guard, a time before
	// which nobody is to be blocked.
	Agreed bool
	// Unkept says why it can't be carried over, empty if it can.
	Unkept string
	ops    []fsm.Op
}

// String names the loss for people, on one line.
func (l Loss) String() string {
	if l.What != "" {
		return l.What
	}
	if l.Block == nil {
		return l.Element.String() + " (in this node's kernel; no state says why)"
	}
	return describe(l.Block)
}

func describe(b *fsm.Block) string {
	since := "since " + stamp(b.Since())
	if b.State == fsm.BlockPending {
		since = "to start at " + stamp(b.StartsAt)
	}
	return fmt.Sprintf("%s: %s on %s, reason %s, %s", b.ID, b.Kind, b.Target, b.Reason, since)
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// Losses returns what from holds or has agreed and to does not: what VMs and lists have that is held, lists, holds that are in
// force or have yet to start, times before which nobody is to be blocked, and guards; in this order, in which they can be
// carried over.
//
// A hold that to has in another block on the same target is no loss, if it has the same effect, for the same reason, from as
// early and for as long: a block of another reason, or one that ends sooner, would go without anybody having lifted this one.
// Nor is one that to knows to be over: then to is the newer state.
func Losses(from, to *fsm.View) []Loss {
	c := comparison{from: from, to: to, guarded: newlyGuarded(from, to)}
	c.vms()
	c.lists()
	c.blocks()
	c.promises()
	c.guards()
	return c.out
}

// comparison collects what is lost between two states.
type comparison struct {
	from, to *fsm.View
	guarded  []fsm.GuardedPrefix // what only to guards
	out      []Loss
}

func (c *comparison) blocks() {
	for b := range c.from.Blocks("") {
		if b.State.Over() || over(c.to, b) {
			continue
		}
		l := Loss{Block: b, Agreed: b.State == fsm.BlockPending}
		switch guard := c.guardOn(b.Target.Prefix); {
		case !held(c.to, b):
			l.ops = c.hold(b)
		case guard != "":
			l.What, l.Unkept = describe(b)+"; a part of it is "+guard, unguard
		default:
			continue
		}
		c.out = append(c.out, l)
	}
}

// over says whether the view knows that this very block was lifted or has ended.
func over(v *fsm.View, b *fsm.Block) bool {
	o, known := v.Block(b.ID)
	return known && o.State.Over() && o.Target == b.Target && o.CreatedAt.Equal(b.CreatedAt)
}

// held says whether the view has a block that does the same, for the same reason, from as early and for as long.
func held(v *fsm.View, b *fsm.Block) bool {
	for o := range v.OpenOn(b.Target) {
		if o.Reason == b.Reason && begins(o, b) && lasts(o, b) && (same(o, b) || o.Kind == fsm.Drop && o.Direction == fsm.Both) {
			return true
		}
	}
	return false
}

// begins says whether a block is in force as early as another one, or was to be.
func begins(o, b *fsm.Block) bool {
	return o.State == fsm.BlockActive || !o.StartsAt.After(start(b))
}

func start(b *fsm.Block) time.Time {
	if b.State == fsm.BlockPending {
		return b.StartsAt
	}
	return b.Since()
}

// lasts says whether a block goes on for at least as long as another one.
func lasts(o, b *fsm.Block) bool {
	ends, least := end(o), end(b)
	return ends.IsZero() || !least.IsZero() && !ends.Before(least)
}

// end is when a block ends by itself, zero if it does not.
func end(b *fsm.Block) time.Time {
	if b.EndsAt.IsZero() || !b.ConfirmBy.IsZero() && b.ConfirmBy.Before(b.EndsAt) {
		return b.ConfirmBy
	}
	return b.EndsAt
}

func same(a, b *fsm.Block) bool {
	return a.Kind == b.Kind && a.Direction == b.Direction && a.Rate == b.Rate && a.RedirectTo == b.RedirectTo && slices.Equal(a.Ports, b.Ports)
}

// hold returns the ops that make to hold what b holds in from.
func (c *comparison) hold(b *fsm.Block) (ops []fsm.Op) {
	if vm, known := c.from.VM(b.Target.VM); known {
		if _, has := c.to.VM(vm.ID); !has {
			ops = c.declare(vm)
		}
	}
	return append(ops, fsm.AddBlock{
		Target: b.Target, Kind: b.Kind, Direction: b.Direction, Rate: b.Rate, Ports: b.Ports, RedirectTo: b.RedirectTo,
		Reason: b.Reason, Note: carried(b.Note, b.ID), StartsAt: b.StartsAt, EndsAt: b.EndsAt, Force: true,
	})
}

// carried is the note of a block that was carried over.
func carried(note, id string) string {
	text := "carried over from " + id
	if note != "" {
		text = note + " (" + text + ")"
	}
	if len(text) > fsm.MaxNoteBytes {
		return note
	}
	return text
}

// Retired returns the ids of the members of to that from knows as retired, sorted.
func Retired(from, to *fsm.View) []string {
	var out []string
	for n := range to.Nodes() {
		if was, ok := from.Node(n.ID); ok && n.Member() && !was.Member() {
			out = append(out, n.ID)
		}
	}
	return out
}
