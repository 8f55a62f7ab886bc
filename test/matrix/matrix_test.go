package matrix_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
)

// TestEveryCell walks the matrix: for every kind of packet on every path of every topology, the packet of a
// guest that is held must not arrive, and the same one of its twin must. Before, both arrive.
func TestEveryCell(t *testing.T) {
	b := newBed(t)
	f := newFleet(t, b)
	table := newTable()
	for _, e := range []environment{{}, {bridged: true}, {tracked: true}, {bridged: true, tracked: true}} {
		b.set(e)
		list, absent := cells(b.topologies, e)
		tell(t, e.String(), hold{}, b.walk(hold{}, list))
		for why, n := range absent {
			t.Logf("%s: %d cells do not exist: %s", e, n, why)
		}
		for _, by := range []by{byVM, byAddress, byPrefix, byList, byListPrefix} {
			h := hold{by: by, kind: fsm.Drop, direction: fsm.Both}
			held := f.hold(h, b.topologies, f.nodes)
			results := b.walk(h, list)
			tell(t, fmt.Sprint(e, ", ", h), h, results)
			table.add(h, results)
			f.lift(held)
		}
		tell(t, e.String()+", all lifted", hold{}, b.walk(hold{}, list))
	}
	table.check(t, "../../docs/paths.md")
}

// TestEveryKindOfHold walks the matrix with holds of one direction, with those that answer, and with those that are in
// force on the other node alone.
func TestEveryKindOfHold(t *testing.T) {
	b := newBed(t)
	f := newFleet(t, b)
	for _, e := range []environment{{}, {bridged: true}} {
		b.set(e)
		list, _ := cells(b.topologies, e)
		// A redirect is address translation, so the nodes track connections.
		followed, _ := cells(b.topologies, environment{bridged: e.bridged, tracked: true})
		var elsewhere []cell
		for _, c := range list {
			if c.role == far {
				elsewhere = append(elsewhere, c)
			}
		}
		for _, by := range []by{byVM, byAddress, byPrefix, byList} {
			for _, h := range []hold{
				{kind: fsm.Drop, direction: fsm.In},
				{kind: fsm.Drop, direction: fsm.Out},
				{kind: fsm.Reject, direction: fsm.Both},
				{kind: fsm.Redirect, direction: fsm.Both},
				{kind: fsm.Drop, direction: fsm.Both, notHere: true},
			} {
				h.by = by
				on, walked := f.nodes, list
				switch {
				case h.notHere:
					on, walked = f.nodes[1:], elsewhere
				case h.kind == fsm.Redirect:
					walked = followed
				}
				if by == byList && h.kind != fsm.Drop {
					continue // lists only drop
				}
				held := f.hold(h, b.topologies, on)
				tell(t, fmt.Sprint(e, ", ", h), h, b.walk(h, walked))
				f.lift(held)
				if h.kind == fsm.Redirect {
					b.untracked(list)
				}
			}
		}
	}
}

// untracked waits until no part of a packet is kept back any more: the kernel lets go of connection tracking some time after the
// last rule that needs it has gone.
func (b *bed) untracked(list []cell) {
	b.t.Helper()
	var parts []cell
	for _, c := range list {
		if c.kind.pieces {
			parts = append(parts, c)
		}
	}
	kept := func(r result) bool { return r.free < r.want || r.held < r.want }
	for end := time.Now().Add(30 * time.Second); slices.ContainsFunc(b.walk(hold{}, parts), kept); {
		if time.Now().After(end) {
			b.t.Fatal("parts of packets are kept back for 30 s after the last rule that tracks connections")
		}
	}
}
