package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

// TestFoundOnASurvivor: two of three nodes are gone for good. What the third holds becomes a fleet of one.
func TestFoundOnASurvivor(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3, func(_ string, o *Options) {
		o.seams.raft = func(c *raft.Config) { c.TrailingLogs = 5 }
	}).start().ready()
	n := f.follower()
	for i := range 30 {
		n.propose(declare(fmt.Sprintf("vm%d", i), "one"))
	}
	if err := n.c.running.Load().raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	last := n.propose(declare("last", "two")).Index
	f.agree(last)
	hash, term := n.store.View().Hash(), n.c.Status().Term
	if _, err := ReadOffline(n.dir(), logger(t)); !errors.Is(err, ErrInUse) {
		t.Errorf("ReadOffline of a running node: %v", err)
	}
	if _, err := foundStore(t.Context(), n.dir(), founding{Node: n.id, View: n.store.View()}, logger(t)); !errors.Is(err, ErrInUse) {
		t.Errorf("Found on a running node: %v", err)
	}
	for _, n := range f.nodes {
		n.crash()
	}
	off, err := ReadOffline(n.dir(), logger(t))
	if err != nil {
		t.Fatal(err)
	}
	if v := off.State.View(); v.Index() != last || v.Hash() != hash || off.Index < last || off.Term < term || off.Snapshot < 30 ||
		!slices.Equal(off.Voters, []string{"n1", "n2", "n3"}) || off.Gated || off.Owner != n.id {
		t.Errorf("read %+v at index %d", off, v.Index())
	}
	found := founding{Node: n.id, Term: off.Term + 1, View: off.State.View(), Why: "two nodes burned down"}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if _, err := foundStore(stopped, n.dir(), found, logger(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("Found that was cut short: %v", err)
	}
	if again, err := ReadOffline(n.dir(), logger(t)); err != nil || again.Index != off.Index {
		t.Errorf("after it was cut short: %+v, %v", again, err)
	}
	kept, err := foundStore(t.Context(), n.dir(), found, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(kept, logFile)); err != nil {
		t.Errorf("the old store is not kept: %v", err)
	}
	f.nodes, f.voters = []*node{n}, 1
	f.start().ready()
	if v := n.store.View(); v.Hash() != hash && owner(n.store, "last") != "two" {
		t.Errorf("the survivor came back at index %d", v.Index())
	}
	if got := n.propose(declare("after", "three")); got.Index <= off.Index || n.c.Status().Term <= off.Term {
		t.Errorf("index %d after %d, term %d after %d", got.Index, off.Index, n.c.Status().Term, off.Term)
	}
	if aside := n.c.Status().Aside; len(aside) != 1 || aside[0].Why != found.Why {
		t.Errorf("set aside: %+v", aside)
	}
	n.crash()
	n.start()
	f.ready()
	if owner(n.store, "after") != "three" {
		t.Error("a write after the founding is lost")
	}
}
