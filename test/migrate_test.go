package test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
)

// TestABlockedGuestMigrates moves a blocked guest around the fleet under a flood, both ways: nothing
// passes at any time, on any node.
func TestABlockedGuestMigrates(t *testing.T) {
	l := sharedLab(t)
	f := l.flows(t)
	var victims []*probe.Flow
	for _, peer := range []string{"guest2", "guest3", "guest5", fleet.Outside} {
		victims = append(victims, f.udp("guest1", peer)...)
	}
	v4, v6 := l.ends(t, "guest1")
	for _, n := range l.Nodes() { // from and to every host, also the one it is just on
		n4, n6 := l.ends(t, n.Name)
		victims = append(victims, f.one("guest1", n.Name, v4, n4), f.one(n.Name, "guest1", n6, v6))
	}
	innocents := f.udp("guest2", "guest4")
	f.passing(append(append([]*probe.Flow{}, victims...), innocents...))
	b, at := l.block(t, "node-3", client.Target{VM: "guest1"})
	for range 2 {
		for _, to := range []string{"node-2", "node-3", "node-1"} {
			l.migrate(t, "guest1", to)
			rest(200 * time.Millisecond)
		}
	}
	f.silent(victims, at)
	l.lift(t, "node-1", b.ID)
	f.passing(victims)
	f.lossless(innocents)
}

// migrate moves a guest and waits until every node has it there.
func (l *lab) migrate(t *testing.T, guest, to string) fleet.Migration {
	t.Helper()
	m, err := l.Migrate(t.Context(), guest, to)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes() {
		l.eventually(t, fmt.Sprintf("%s knows that %s is on %s", n.Name, guest, to), func() error {
			vm, err := l.clients[n.Name].VM(t.Context(), guest)
			if err == nil && (vm.Node != to || vm.State != "running" || vm.Destination != "") {
				err = fmt.Errorf("it has it %s on %s (destination %q)", vm.State, vm.Node, vm.Destination)
			}
			return err
		})
	}
	return m
}

// TestAnInnocentGuestMigrates checks that what an innocent guest loses is lost while its wire is being
// moved, and that no kernel of ours dropped any of it.
func TestAnInnocentGuestMigrates(t *testing.T) {
	l := sharedLab(t)
	l.block(t, "node-1", client.Target{VM: "guest1"}) // rules are in force, of somebody else
	f := l.flows(t)
	moving := append(f.udp("guest2", "guest3"), f.udp("guest2", fleet.Outside)...)
	v4, _ := l.ends(t, "guest2")
	p4, _ := l.ends(t, "guest3")
	stream := f.tcp("guest2", "guest3", v4, p4)
	f.passing(append(append([]*probe.Flow{}, moving...), stream))
	var moves []fleet.Migration
	for _, to := range []string{"node-3", "node-2", "node-1"} {
		moves = append(moves, l.migrate(t, "guest2", to))
		f.passing(moving)
	}
	for _, fl := range moving {
		r, err := fl.Stop(3 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		for _, gap := range gaps(r) {
			during := false
			for _, m := range moves {
				// It begins with the move. It may end later: the wire of a light guest loses its carrier
				// for a moment, and then neighbours have to be resolved again, with retries of 1 s.
				const slack, resolve = 20 * time.Millisecond, 1200 * time.Millisecond
				during = during || gap.from.After(m.Detached.Add(-slack)) && gap.from.Before(m.Attached.Add(slack)) && gap.to.Before(m.Attached.Add(resolve))
			}
			if !during {
				t.Errorf("%s lost packets %d to %d outside of a move: silence from %v to %v; moves %+v", fl.Name, gap.first, gap.last, gap.from, gap.to, moves)
			}
		}
	}
	for name, rules := range l.rulesets(t) {
		g, err := l.Guest("guest2")
		if err != nil {
			t.Fatal(err)
		}
		for _, mark := range append([]string{g.MAC, g.Tap}, g.Addresses...) {
			if strings.Contains(rules, mark+" ") || strings.Contains(rules, mark+",") {
				t.Errorf("%s holds %s of the innocent guest", name, mark)
			}
		}
	}
	if r, err := stream.Stop(20 * time.Second); err != nil || r.Err != "" || r.Records != r.Sent {
		t.Errorf("the guest's TCP connection did not survive the moves: %d of %d records, %q, %v", r.Records, r.Sent, r.Err, err)
	}
}

// gap is a run of lost packets, and the silence around it.
type gap struct {
	first, last uint64
	from, to    time.Time // arrival of the packets before and after
}

func gaps(r probe.Report) []gap {
	at := make(map[uint64]int64, len(r.Received))
	for _, p := range r.Received {
		at[p.Seq] = p.At
	}
	var out []gap
	for _, seq := range r.Lost() {
		if n := len(out); n > 0 && out[n-1].last+1 == seq {
			out[n-1].last = seq
			continue
		}
		out = append(out, gap{first: seq, last: seq})
	}
	for i := range out {
		if out[i].first > 0 {
			out[i].from = time.Unix(0, at[out[i].first-1])
		}
		if t, ok := at[out[i].last+1]; ok {
			out[i].to = time.Unix(0, t)
		} else {
			out[i].to = time.Now()
		}
	}
	return out
}
