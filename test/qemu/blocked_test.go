package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
	"github.com/palisade/palisade/test/rig"
)

// restored is how soon packets must reach a guest after a lift.
const restored = 3 * time.Second

// TestABlockedGuestMigrates moves a blocked guest there and back by live migration, under a flood
// towards it and from it: nothing passes at any time on any node.
func TestABlockedGuestMigrates(t *testing.T) {
	l := sharedLab(t)
	f := l.Flows(t)
	w, inno := l.wires(t, "guest1"), l.wires(t, "guest2")
	var victims []*probe.Flow
	// From outside, from the same bridge (or another), and from the hosts that it will be on.
	for _, where := range []string{fleet.Outside, fleet.Unmanaged, "node-1", "node-2", "node-3"} {
		victims = append(victims, f.Echo(where, "guest1")...)
	}
	innocents, hosts := f.Echo(fleet.Outside, "guest2"), f.UDP(fleet.Unmanaged, fleet.Outside)
	calm := l.flood(t, "guest1", w)
	f.Passing(slices.Concat(victims, innocents, hosts))

	from, others := l.place(t, "guest1")
	b, at := l.Block(t, others[1], client.Target{VM: "guest1"})
	l.forget(t)
	for _, to := range []string{others[0], from} {
		here, _ := l.place(t, "guest1")
		oldTap := l.tap(t, "guest1")
		if taps := l.held(t, here, "taps"); !slices.Equal(taps, []string{oldTap}) {
			t.Errorf("%s, where guest1 is, has the taps %v bound, want %s", here, taps, oldTap)
		}
		began := time.Now()
		flight := l.observe(t, "guest1")
		m := l.Move(t, "guest1", to)
		flight.end(t, l, "running "+here, "migrating "+here+" "+to, "running "+to)
		f.Silent(victims, at)
		w.silent(t, at)
		l.checkBound(t, "guest1", to)
		for _, node := range []string{here, to} {
			sent, wanted := w.tries(began, node)
			t.Logf("%s to %s in %v: on %s %d frames from guest1 and %d for it came, and were dropped", here, to, m.Gone.Sub(m.Incoming).Round(time.Millisecond), node, sent, wanted)
			if sent == 0 || wanted == 0 {
				t.Errorf("on %s nothing was tried that could have leaked (%d from guest1, %d for it)", node, sent, wanted)
			}
		}
		if vm, err := l.Clients[others[1]].VM(t.Context(), "guest1"); err != nil || !vm.Blocked || !slices.Contains(vm.Blocks, b.ID) {
			t.Errorf("after the move: %+v, %v", vm, err)
		}
	}
	f.Silent(victims, at)
	w.silent(t, at)
	l.checkLift(t, f, w, victims, b.ID)
	calm()
	inno.lossless(t, innocents, l.OutsideAddresses())
	f.Lossless(hosts)
}

// checkLift lifts the block of guest1 and checks that traffic is back soon.
func (l *lab) checkLift(t *testing.T, f *rig.Flows, w *wires, victims []*probe.Flow, block string) {
	t.Helper()
	here, others := l.place(t, "guest1")
	lifted := l.Lift(t, others[0], block)
	took, echoed := w.restored(t, l, here, lifted), f.Restored(victims, lifted)
	t.Logf("lifted: packets reach guest1 on %s after %v, all flows are back after %v", here, took, echoed)
	if took > restored {
		t.Errorf("it took %v after the lift until packets reached guest1 on %s", took, here)
	}
	f.Passing(victims)
}

// checkBound checks that a blocked guest is bound to its tap on its node, and to none on the others; and
// that its hardware address and addresses are held everywhere.
func (l *lab) checkBound(t *testing.T, guest, node string) {
	t.Helper()
	g, err := l.Guest(guest)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes() {
		l.Eventually(t, fmt.Sprintf("%s holds what it must of %s on %s", n.Name, guest, node), func() error {
			var want []string
			if n.Name == node {
				want = []string{l.tap(t, guest)}
			}
			if taps := l.held(t, n.Name, "taps"); !slices.Equal(taps, want) {
				return fmt.Errorf("it has the taps %v bound, want %v", taps, want)
			}
			return nil
		})
		for set, want := range map[string]string{"macs": g.MAC, "a4_32": g.Addresses[0], "a6_128": g.Addresses[1]} {
			if held := l.held(t, n.Name, set); !slices.Contains(held, want) {
				t.Errorf("%s holds %v in %s, want %s in it", n.Name, held, set, want)
			}
		}
	}
}

// observation is what the API of every node says of a guest over a time.
type observation struct {
	stop func()
	wg   sync.WaitGroup
	mu   sync.Mutex
	said map[string][]string // by node, each change of "state node destination"
	errs error
}

// observe asks every node again and again. It returns when each has said something.
func (l *lab) observe(t *testing.T, guest string) *observation {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	o := &observation{stop: stop, said: map[string][]string{}}
	for _, n := range l.Nodes() {
		o.wg.Go(func() {
			pause := time.NewTicker(10 * time.Millisecond)
			defer pause.Stop()
			for {
				vm, err := l.Clients[n.Name].VM(ctx, guest)
				if ctx.Err() != nil {
					return
				}
				is := strings.TrimSpace(vm.State + " " + vm.Node + " " + vm.Destination)
				o.mu.Lock()
				if err != nil {
					o.errs = errors.Join(o.errs, err)
				} else if s := o.said[n.Name]; len(s) == 0 || s[len(s)-1] != is {
					o.said[n.Name] = append(s, is)
				}
				o.mu.Unlock()
				select {
				case <-ctx.Done():
					return
				case <-pause.C:
				}
			}
		})
	}
	o.await(t, l, "running "+l.where(t, guest))
	return o
}

// await waits until what every node said last is this.
func (o *observation) await(t *testing.T, l *lab, last string) {
	t.Helper()
	for _, n := range l.Nodes() {
		l.Eventually(t, n.Name+" says "+last, func() error {
			o.mu.Lock()
			defer o.mu.Unlock()
			if s := o.said[n.Name]; len(s) == 0 || s[len(s)-1] != last {
				return fmt.Errorf("it said %q, %w", s, o.errs)
			}
			return nil
		})
	}
}

// end checks that every node told this story.
func (o *observation) end(t *testing.T, l *lab, story ...string) {
	t.Helper()
	o.await(t, l, story[len(story)-1])
	o.stop()
	o.wg.Wait()
	for node, said := range o.said {
		if !slices.Equal(said, story) {
			t.Errorf("the API of %s said %q, want %q", node, said, story)
		}
	}
	if o.errs != nil {
		t.Errorf("asking the API: %v", o.errs)
	}
}

// TestALiftAfterAMigrationRestoresTraffic moves a blocked guest that never speaks first. What QEMU
// announced of its new place was dropped, and nobody asks for it again.
func TestALiftAfterAMigrationRestoresTraffic(t *testing.T) {
	l := sharedLab(t)
	f := l.Flows(t)
	w := l.wires(t, "guest1")
	l.Pin(t, fleet.Outside, "guest1")
	victims := f.Echo(fleet.Outside, "guest1")
	f.Passing(victims)
	from, others := l.place(t, "guest1")
	b, _ := l.Block(t, from, client.Target{VM: "guest1"})
	l.Move(t, "guest1", others[0])
	l.checkLift(t, f, w, victims, b.ID)
}

// TestLibvirtFailsUnderABlock kills the libvirtd under a blocked guest, and that of the node where it is
// just being moved to.
func TestLibvirtFailsUnderABlock(t *testing.T) {
	l := sharedLab(t)
	f := l.Flows(t)
	w, inno := l.wires(t, "guest1"), l.wires(t, "guest3")
	victims := append(f.Echo(fleet.Outside, "guest1"), f.Echo(fleet.Unmanaged, "guest1")...)
	innocents := f.Echo(fleet.Outside, "guest3")
	calm := l.flood(t, "guest1", w)
	f.Passing(slices.Concat(victims, innocents))
	here, others := l.place(t, "guest1")
	there := others[0]
	b, at := l.Block(t, there, client.Target{VM: "guest1"})
	l.forget(t)

	rules := l.Rulesets(t)
	same := func(when string) {
		t.Helper()
		for name, was := range rules {
			if is := l.Ruleset(t, name); withoutMarker(is) != withoutMarker(was) {
				t.Errorf("%s the rules of %s changed:\n--- before\n%s\n--- after\n%s", when, name, was, is)
			}
		}
	}
	connected := l.connections(t, here)
	if err := l.KillLibvirtd(t.Context(), here); err != nil {
		t.Fatal(err)
	}
	same("without libvirt")
	w.tried(t, l, here)
	same("without libvirt")
	l.revive(t, here, connected)
	l.AwaitOn(t, "guest1", here)
	same("with libvirt again")
	w.silent(t, at)

	connected = l.connections(t, there)
	flight := l.observe(t, "guest1")
	moved := make(chan error, 1)
	go func() {
		_, err := l.Migrate(t.Context(), "guest1", there)
		moved <- err
	}()
	flight.await(t, l, "migrating "+here+" "+there)
	if err := l.KillLibvirtd(t.Context(), there); err != nil {
		t.Fatal(err)
	}
	if err := <-moved; err == nil {
		t.Errorf("the migration came to its end without libvirt at the destination")
	}
	l.revive(t, there, connected)
	w.tried(t, l, here)
	flight.end(t, l, "running "+here, "migrating "+here+" "+there, "running "+here)
	l.checkBound(t, "guest1", here)
	same("after a migration that failed")
	w.silent(t, at)

	// It goes on as before: the guest can be moved, and is bound where it arrives.
	l.Move(t, "guest1", there)
	l.checkBound(t, "guest1", there)
	w.tried(t, l, there)
	f.Silent(victims, at)
	w.silent(t, at)
	l.checkLift(t, f, w, victims, b.ID)
	calm()
	inno.lossless(t, innocents, l.OutsideAddresses())
}

// revive starts the libvirtd of a node and waits until the agent has connected to it once more.
func (l *lab) revive(t *testing.T, node string, connected int) {
	t.Helper()
	if err := l.StartLibvirtd(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	l.Eventually(t, "the agent of "+node+" is connected to libvirt again", func() error {
		if n := l.connections(t, node); n <= connected {
			return fmt.Errorf("connected %d times, as before", n)
		}
		return nil
	})
}

// connections counts how often the agent of a node has connected to libvirt.
func (l *lab) connections(t *testing.T, node string) int {
	t.Helper()
	b, err := os.ReadFile(l.AgentLog(node))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte(`msg="connected to libvirt"`))
}

// withoutMarker leaves out the log index, which goes on.
func withoutMarker(rules string) string {
	var kept []string
	for line := range strings.Lines(rules) {
		if !strings.Contains(line, `comment "log index`) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}
