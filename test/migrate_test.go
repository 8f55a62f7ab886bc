package test

import (
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
	"github.com/palisade/palisade/test/rig"
)

// TestABlockedGuestMigrates moves a blocked guest around the fleet under a flood, both ways: nothing
// passes at any time, on any node.
func TestABlockedGuestMigrates(t *testing.T) {
	l := sharedLab(t)
	f := l.Flows(t)
	var victims []*probe.Flow
	for _, peer := range []string{"guest2", "guest3", "guest5", fleet.Outside} {
		victims = append(victims, f.UDP("guest1", peer)...)
	}
	v4, v6 := l.Ends(t, "guest1")
	for _, n := range l.Nodes() { // from and to every host, also the one it is just on
		n4, n6 := l.Ends(t, n.Name)
		victims = append(victims, f.One("guest1", n.Name, v4, n4), f.One(n.Name, "guest1", n6, v6))
	}
	innocents := f.UDP("guest2", "guest4")
	f.Passing(append(append([]*probe.Flow{}, victims...), innocents...))
	b, at := l.Block(t, "node-3", client.Target{VM: "guest1"})
	for range 2 {
		for _, to := range []string{"node-2", "node-3", "node-1"} {
			l.Move(t, "guest1", to)
			rest(200 * time.Millisecond)
		}
	}
	f.Silent(victims, at)
	l.Lift(t, "node-1", b.ID)
	f.Passing(victims)
	f.Lossless(innocents)
}

// TestAnInnocentGuestMigrates checks that what an innocent guest loses is lost while its wire is being
// moved, and that no kernel of ours dropped any of it.
func TestAnInnocentGuestMigrates(t *testing.T) {
	l := sharedLab(t)
	l.Block(t, "node-1", client.Target{VM: "guest1"}) // rules are in force, of somebody else
	f := l.Flows(t)
	moving := append(f.UDP("guest2", "guest3"), f.UDP("guest2", fleet.Outside)...)
	v4, _ := l.Ends(t, "guest2")
	p4, _ := l.Ends(t, "guest3")
	stream := f.TCP("guest2", "guest3", v4, p4)
	f.Passing(append(append([]*probe.Flow{}, moving...), stream))
	var moves []fleet.Migration
	for _, to := range []string{"node-3", "node-2", "node-1"} {
		moves = append(moves, l.Move(t, "guest2", to))
		f.Passing(moving)
	}
	for _, fl := range moving {
		r, err := fl.Stop(3 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		for _, gap := range rig.Gaps(r) {
			during := false
			for _, m := range moves {
				// It begins with the move. It may end later: the wire of a light guest loses its carrier
				// for a moment, and then neighbours have to be resolved again, with retries of 1 s.
				const slack, resolve = 20 * time.Millisecond, 1200 * time.Millisecond
				during = during || gap.From.After(m.Detached.Add(-slack)) && gap.From.Before(m.Attached.Add(slack)) && gap.To.Before(m.Attached.Add(resolve))
			}
			if !during {
				t.Errorf("%s lost packets %d to %d outside of a move: silence from %v to %v; moves %+v", fl.Name, gap.First, gap.Last, gap.From, gap.To, moves)
			}
		}
	}
	for name, rules := range l.Rulesets(t) {
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

// TestALiftAfterAMigrationRestoresTraffic moves a blocked guest, that never speaks first, to where the
// bridges do not expect it: what it announced there was dropped.
func TestALiftAfterAMigrationRestoresTraffic(t *testing.T) {
	l := sharedLab(t)
	// One peer at a time: an answer to one of them would show the way to all.
	for _, move := range []struct{ to, peer string }{
		{"node-2", fleet.Outside}, // every bridge in between must learn
		{"node-1", "guest2"},      // the bridge of the guest's new node itself must
	} {
		f := l.Flows(t)
		l.Pin(t, move.peer, "guest1")
		victims := f.Echo(move.peer, "guest1")
		f.Passing(victims)
		b, _ := l.Block(t, "node-3", client.Target{VM: "guest1"})
		l.Move(t, "guest1", move.to)
		rest(3 * time.Second) // a light guest's wire was down: let it say what hosts say then
		took := f.Restored(victims, l.Lift(t, "node-3", b.ID))
		t.Logf("guest1 was blocked, moved to %s, lifted: %s reaches it %v later", move.to, move.peer, took)
		if took > time.Second {
			t.Errorf("it took %v until packets of %s found guest1 on %s", took, move.peer, move.to)
		}
		for _, fl := range victims {
			fl.Close()
		}
	}
}
