package test

import (
	"fmt"
	"testing"
	"time"

	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
)

// onTime is how late a due time may come in a test: these machines stall. The benchmark measures it.
const onTime = 2 * time.Second

// state returns a block as a node has it.
func (l *lab) state(t *testing.T, node, id string) client.Block {
	t.Helper()
	b, err := l.Clients[node].Block(t.Context(), id)
	if err != nil {
		t.Fatalf("block %s on %s: %v", id, node, err)
	}
	return b
}

func (l *lab) await(t *testing.T, node, id, state string) client.Block {
	t.Helper()
	var b client.Block
	l.Eventually(t, fmt.Sprintf("block %s is %s on %s", id, state, node), func() (err error) {
		if b, err = l.Clients[node].Block(t.Context(), id); err == nil && b.State != state {
			err = fmt.Errorf("it is %s", b.State)
		}
		return err
	})
	return b
}

// arrived counts what arrived between two times.
func arrived(t *testing.T, list []*probe.Flow, from, to time.Time) (n int) {
	t.Helper()
	for _, fl := range list {
		r, err := fl.Report()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range r.Received {
			if at := time.Unix(0, p.At); at.After(from) && at.Before(to) {
				n++
			}
		}
	}
	return n
}

// TestADelayedBlockStartsAndEnds writes a block on a follower that starts and ends later: until its start
// everything passes, between its times nothing does, after its end everything does again.
func TestADelayedBlockStartsAndEnds(t *testing.T) {
	l := sharedLab(t)
	f := l.Flows(t)
	var victims []*probe.Flow
	for _, peer := range []string{"guest2", "guest3", "node-2"} {
		victims = append(victims, f.UDP("guest1", peer)...)
	}
	innocents := f.UDP("guest2", "guest3")
	f.Passing(append(append([]*probe.Flow{}, victims...), innocents...))
	node, _ := l.follower(t)
	starts := time.Now().Add(3 * time.Second)
	w, err := l.Clients[node].AddBlock(t.Context(), client.BlockRequest{
		Target: client.Target{VM: "guest1"}, Reason: "unpaid", StartsAt: starts, Duration: "5s",
	}, client.Write{})
	if err != nil || w.Block.State != "pending" {
		t.Fatalf("got %+v, %v", w.Block, err)
	}
	active := l.await(t, node, w.Block.ID, "active")
	if late := active.StartedAt.Sub(starts); late < 0 || late > onTime {
		t.Errorf("it started %v after its time", late)
	}
	ended := l.await(t, node, w.Block.ID, "ended")
	if late := ended.LiftedAt.Sub(active.EndsAt); late < 0 || late > onTime {
		t.Errorf("it ended %v after its time", late)
	}
	f.Restored(victims, ended.LiftedAt)
	if n := arrived(t, victims, starts.Add(-time.Second), starts); n == 0 {
		t.Error("nothing arrived in the second before the start")
	}
	if n := arrived(t, victims, active.StartedAt.Add(onTime), active.EndsAt); n != 0 {
		t.Errorf("%d packets arrived while it was in force", n)
	}
	f.Lossless(innocents)
}

// TestTheLeaderDiesWhenABlockIsDue: the next one starts it, once.
func TestTheLeaderDiesWhenABlockIsDue(t *testing.T) {
	l := sharedLab(t)
	f := l.Flows(t)
	victims := f.UDP("guest1", "guest3")
	f.Passing(victims)
	node, leader := l.follower(t)
	starts := time.Now().Add(2 * time.Second)
	w, err := l.Clients[node].AddBlock(t.Context(), client.BlockRequest{Target: client.Target{VM: "guest1"}, StartsAt: starts}, client.Write{})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(starts))
	l.kill(t, leader)
	active := l.await(t, node, w.Block.ID, "active")
	if active.StartedAt.Before(starts) {
		t.Errorf("it started %v early", starts.Sub(active.StartedAt))
	}
	l.start(t, leader)
	for _, n := range l.Nodes() {
		if b := l.state(t, n.Name, w.Block.ID); b.State != "active" || b.Revision != active.Revision {
			t.Errorf("%s has it as %+v, %s as %+v", n.Name, b, node, active)
		}
	}
	since := time.Now()
	rest(time.Second)
	f.Silent(victims, since)
}

// TestWithoutQuorumABlockStartsAndNoneEnds: a node that is cut off starts what was agreed, on time and in
// its own kernel, and ends nothing. Healed, the fleet goes on as if nothing had been.
func TestWithoutQuorumABlockStartsAndNoneEnds(t *testing.T) {
	l := sharedLab(t)
	f := l.Flows(t)
	starting := f.UDP("guest1", "guest2") // on one node
	ending := f.UDP("guest3", "guest4")   // on another
	f.Passing(append(append([]*probe.Flow{}, starting...), ending...))
	due := time.Now().Add(8 * time.Second)
	add := func(req client.BlockRequest) client.Block {
		t.Helper()
		w, err := l.Clients["node-1"].AddBlock(t.Context(), req, client.Write{Wait: true, Timeout: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return w.Block
	}
	starts := add(client.BlockRequest{Target: client.Target{VM: "guest1"}, StartsAt: due})
	ends := add(client.BlockRequest{Target: client.Target{VM: "guest3"}, EndsAt: due})
	blocked := time.Now()
	for _, n := range []string{"node-1", "node-2"} {
		if err := l.CutNode(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Until(due.Add(onTime)))
	since := time.Now()
	rest(2 * time.Second)
	f.Silent(starting, since)
	f.Silent(ending, blocked)
	if n := arrived(t, starting, due.Add(-2*time.Second), due); n == 0 {
		t.Error("nothing arrived in the two seconds before the start")
	}
	if b := l.state(t, "node-1", starts.ID); b.State != "pending" {
		t.Errorf("without quorum the state says %s", b.State)
	}
	for _, n := range []string{"node-1", "node-2"} {
		if err := l.HealNode(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	l.await(t, "node-3", starts.ID, "active")
	l.await(t, "node-3", ends.ID, "ended")
	f.Silent(starting, since)
	f.Passing(ending)
}
