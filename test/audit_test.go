package test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
)

// proven waits until every node has the same whole audit on its disk, and returns its last record.
func (l *lab) proven(t *testing.T) (last uint64, head string) {
	t.Helper()
	l.Eventually(t, "every node has the same audit on its disk", func() error {
		last, head = 0, ""
		for _, n := range l.Nodes() {
			c, err := l.Clients[n.Name].VerifyAudit(t.Context())
			switch {
			case err != nil:
				return err
			case !c.OK:
				return errors.New(n.Name + ": " + c.Problem)
			case c.First != 1 || c.Records != c.Last || c.Written != c.Last:
				return fmt.Errorf("%s: %+v", n.Name, c)
			case head != "" && c.Head != head:
				return fmt.Errorf("%s ends with record %d, %s, another node with %d, %s", n.Name, c.Last, c.Head, last, head)
			}
			last, head = c.Last, c.Head
		}
		return nil
	})
	return last, head
}

// TestTheAuditIsTheSameOnEveryNode writes through every node, kills one and starts it again, and compares
// what the nodes have on their disks.
func TestTheAuditIsTheSameOnEveryNode(t *testing.T) {
	l := sharedLab(t)
	before, _ := l.proven(t)
	away, _ := l.follower(t)
	var ids []string
	for i, n := range l.Nodes() {
		b, _ := l.Block(t, n.Name, client.Target{Prefix: fmt.Sprintf("198.18.7.%d", i)})
		ids = append(ids, b.ID)
	}
	l.kill(t, away)
	writer := l.alive(t)
	for _, id := range ids {
		if _, err := l.Clients[writer].LiftBlock(t.Context(), id, client.Write{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Clients[writer].AddBlock(t.Context(), client.BlockRequest{Target: client.Target{Prefix: "127.0.0.1"}}, client.Write{}); err == nil {
		t.Fatal("loopback was blocked")
	}
	l.start(t, away)
	last, _ := l.proven(t)

	var exports [][]byte
	for _, n := range l.Nodes() {
		var b bytes.Buffer
		if err := l.Clients[n.Name].ExportAudit(t.Context(), 1, last, &b); err != nil {
			t.Fatal(err)
		}
		exports = append(exports, b.Bytes())
	}
	if !bytes.Equal(exports[0], exports[1]) || !bytes.Equal(exports[0], exports[2]) {
		t.Error("the nodes export different audits")
	}
	var got []string
	for r, err := range l.Clients[away].Audit(t.Context(), client.AuditFilter{After: before, Action: "block", Oldest: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Actor == "" || r.From == "" {
			t.Errorf("record %d does not say who: %+v", r.Seq, r)
		}
		got = append(got, strings.Join([]string{r.Action, r.Object, r.Outcome}, " "))
	}
	want := []string{}
	for _, id := range ids {
		want = append(want, "block.add "+id+" done")
	}
	for _, id := range ids {
		want = append(want, "block.lift "+id+" done")
	}
	if want = append(want, "block.add  guard_conflict"); strings.Join(got, "; ") != strings.Join(want, "; ") {
		t.Errorf("recorded were\n%q, want\n%q", got, want)
	}
}

// TestExplainTellsWhatTheNodesDo asks what becomes of packets that are sent, before and while they are cut.
func TestExplainTellsWhatTheNodesDo(t *testing.T) {
	l := sharedLab(t)
	f := l.Flows(t)
	cut := f.UDP("guest1", fleet.Outside)
	f.Passing(cut)
	g, err := l.Guest("guest1")
	if err != nil {
		t.Fatal(err)
	}
	node, _ := l.follower(t)
	src, _ := l.Ends(t, "guest1")
	dst, _ := l.Ends(t, fleet.Outside)
	packet := client.Packet{Src: src.Addr.String(), Dst: dst.Addr.String(), Protocol: "udp", Port: 9}
	verdicts := func(want string) (blocks []string) {
		t.Helper()
		e, err := l.Clients[node].Explain(t.Context(), packet)
		if err != nil || len(e.Nodes) != len(l.Nodes()) {
			t.Fatalf("%+v, %v", e, err)
		}
		for _, n := range e.Nodes {
			if n.Verdict != want {
				t.Errorf("on %s: %+v, want %s", n.Node, n, want)
			}
			for _, h := range n.Holds {
				blocks = append(blocks, h.Block)
			}
		}
		return blocks
	}
	if held := verdicts("pass"); len(held) > 0 {
		t.Errorf("held by %v before anything is", held)
	}
	b, at := l.Block(t, node, client.Target{VM: g.VM})
	for _, id := range verdicts("drop") {
		if id != b.ID {
			t.Errorf("held by %s, want %s", id, b.ID)
		}
	}
	rest(500 * time.Millisecond)
	f.Silent(cut, at)
	l.Eventually(t, "what was dropped is counted", func() error {
		e, err := l.Clients[node].ExplainVM(t.Context(), g.VM)
		if err != nil || len(e.Holds) != 1 || e.Holds[0].Block != b.ID || e.Holds[0].Counters.Packets == 0 {
			return fmt.Errorf("%+v, %w", e, err)
		}
		return nil
	})
	l.Lift(t, node, b.ID)
	verdicts("pass")
	f.Passing(cut)
}
