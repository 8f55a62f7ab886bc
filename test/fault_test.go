package test

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
	"github.com/palisade/palisade/test/rig"
)

// watched is a blocked guest and its innocent neighbours, with flows that a fault must not change.
type watched struct {
	*rig.Flows
	t         *testing.T
	lab       *lab
	victims   []*probe.Flow
	innocents []*probe.Flow
	since     time.Time
	block     client.Block
}

// watch blocks guest1 and starts flows over all paths that a fault could open or cut.
func watch(t *testing.T, l *lab) *watched {
	t.Helper()
	w := &watched{Flows: l.Flows(t), t: t, lab: l}
	for _, peer := range []string{"guest2", "guest3", "node-1", fleet.Outside} {
		w.victims = append(w.victims, w.UDP("guest1", peer)...)
	}
	w.innocents = append(w.innocents, w.UDP("guest2", "guest3")...)
	w.innocents = append(w.innocents, w.UDP("guest4", "node-2")...)
	w.innocents = append(w.innocents, w.UDP("guest6", fleet.Outside)...)
	w.Passing(append(append([]*probe.Flow{}, w.victims...), w.innocents...))
	w.block, w.since = l.Block(t, "node-2", client.Target{VM: "guest1"})
	return w
}

// held checks that nothing leaked so far.
func (w *watched) held() {
	w.t.Helper()
	w.Silent(w.victims, w.since)
}

// end checks the whole run: no leak, no loss, and that a lift restores traffic.
func (w *watched) end() {
	w.t.Helper()
	w.held()
	w.lab.Lift(w.t, w.lab.alive(w.t), w.block.ID)
	w.Passing(w.victims)
	w.Lossless(w.innocents)
}

// unchanged compares the rules, leaving out the marker of the log index when it may have moved.
func (l *lab) unchanged(t *testing.T, before map[string]string, markerToo bool) {
	t.Helper()
	strip := func(s string) string {
		if markerToo {
			return s
		}
		var kept []string
		in := false
		for line := range strings.Lines(s) {
			in = in || strings.Contains(line, "set enforced")
			if !in {
				kept = append(kept, line)
			}
			in = in && strings.TrimSpace(line) != "}"
		}
		return strings.Join(kept, "")
	}
	for name, was := range before {
		if is := l.Ruleset(t, name); strip(is) != strip(was) {
			t.Errorf("the rules of %s changed:\n--- before\n%s\n--- after\n%s", name, was, is)
		}
	}
}

func (l *lab) kill(t *testing.T, nodes ...string) {
	t.Helper()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			if err := l.KillAgent(t.Context(), n, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func (l *lab) start(t *testing.T, nodes ...string) {
	t.Helper()
	for _, n := range nodes {
		if err := l.StartAgent(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestKillingAgentsOpensNothing kills one agent, the leader, and all of them.
func TestKillingAgentsOpensNothing(t *testing.T) {
	tests := map[string]func(l *lab) []string{
		"the agent where the guest runs": func(*lab) []string { return []string{"node-1"} },
		"the leader":                     func(l *lab) []string { _, leader := l.follower(t); return []string{leader} },
		"all":                            func(*lab) []string { return []string{"node-1", "node-2", "node-3"} },
	}
	for name, pick := range tests {
		t.Run(name, func(t *testing.T) {
			l := sharedLab(t)
			w := watch(t, l)
			before := l.Rulesets(t)
			nodes := pick(l)
			l.kill(t, nodes...)
			rest(500 * time.Millisecond)
			l.unchanged(t, before, true)
			w.held()
			l.start(t, nodes...)
			l.unchanged(t, before, false)
			w.end()
		})
	}
}

// TestAFailoverKeepsWrites kills the leader while blocks are written: what was answered is kept, and
// what was not has at most one effect.
func TestAFailoverKeepsWrites(t *testing.T) {
	l := sharedLab(t)
	node, leader := l.follower(t)
	const writes = 60
	answered := make([]string, writes)
	var wg sync.WaitGroup
	begun := make(chan struct{})
	wg.Go(func() {
		for i := range writes {
			if i == 10 {
				close(begun)
			}
			w, err := l.Clients[node].AddBlock(t.Context(), client.BlockRequest{
				Target: client.Target{Prefix: fmt.Sprintf("198.51.100.%d", i+1)}, Reason: "attack",
			}, client.Write{})
			if err != nil {
				t.Errorf("write %d did not survive the failover: %v", i, err)
				continue
			}
			answered[i] = w.Block.ID
		}
	})
	<-begun
	l.kill(t, leader)
	wg.Wait()
	l.start(t, leader)
	for _, n := range l.Nodes() {
		seen := map[string]string{}
		for b, err := range l.Clients[n.Name].Blocks(t.Context(), client.BlockFilter{Reason: "attack"}) {
			if err != nil {
				t.Fatal(err)
			}
			if other, twice := seen[b.Target.Prefix]; twice {
				t.Errorf("%s has two blocks on %s: %s and %s", n.Name, b.Target.Prefix, other, b.ID)
			}
			seen[b.Target.Prefix] = b.ID
		}
		for i, id := range answered {
			if target := fmt.Sprintf("198.51.100.%d", i+1); seen[target] != id {
				t.Errorf("%s has block %q on %s, the answer said %q", n.Name, seen[target], target, id)
			}
		}
	}
}

// TestANodeThatWasAwayCatchesUpByLog lifts and blocks while one agent is dead.
func TestANodeThatWasAwayCatchesUpByLog(t *testing.T) {
	l := sharedLab(t)
	old, _ := l.Block(t, "node-1", client.Target{Prefix: "203.0.113.1"})
	l.kill(t, "node-3")
	var missed client.Block
	l.Eventually(t, "a write with two nodes", func() error {
		w, err := l.Clients["node-1"].AddBlock(t.Context(), client.BlockRequest{Target: client.Target{Prefix: "203.0.113.2"}}, client.Write{Wait: true})
		missed = w.Block
		return err
	})
	if len(missed.Unconfirmed) != 1 || missed.Unconfirmed[0].Node != "node-3" || missed.Unconfirmed[0].Since.IsZero() {
		t.Errorf("the answer hides that node-3 did not confirm: %+v", missed)
	}
	if _, err := l.Clients["node-1"].LiftBlock(t.Context(), old.ID, client.Write{Wait: true}); err != nil {
		t.Fatal(err)
	}
	if rules := l.Ruleset(t, "node-3"); !strings.Contains(rules, "203.0.113.1") || strings.Contains(rules, "203.0.113.2") {
		t.Errorf("a dead agent's kernel changed:\n%s", rules)
	}
	l.start(t, "node-3")
	l.Eventually(t, "node-3 enforces what it missed", func() error {
		if rules := l.Ruleset(t, "node-3"); strings.Contains(rules, "203.0.113.1,") || !strings.Contains(rules, "203.0.113.2") {
			return errors.New(rules)
		}
		b, err := l.Clients["node-1"].Block(t.Context(), missed.ID)
		if err != nil || len(b.Receipts) != 3 {
			return fmt.Errorf("receipts %+v: %w", b.Receipts, err)
		}
		return nil
	})
}

// TestWithoutQuorum cuts one node off from the others: it goes on enforcing and reading, says how old
// its picture is, and refuses writes with the reason. Healed, all goes on without a hand.
func TestWithoutQuorum(t *testing.T) {
	l := sharedLab(t)
	w := watch(t, l)
	before := l.Rulesets(t)
	for _, n := range []string{"node-1", "node-2"} {
		if err := l.CutNode(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	// Three nodes, two of them cut off: no majority anywhere.
	for _, n := range l.Nodes() {
		// Before it knows, a leader takes a write whose outcome is then unknown: it may come true later.
		l.Eventually(t, n.Name+" knows that it has no quorum", func() error {
			s, err := l.Clients[n.Name].Status(t.Context())
			if err == nil && s.Quorum {
				err = fmt.Errorf("it says that %s leads", s.Leader)
			}
			return err
		})
		res := l.raw(t, n.Name, http.MethodPost, "/v1/blocks", `{"target":{"prefix":"203.0.113.9"}}`)
		if res.status != http.StatusServiceUnavailable {
			t.Fatalf("%s answers a write with %d: %s", n.Name, res.status, res.body)
		}
		if p := res.problem(t); p.Code != "no_quorum" || !strings.Contains(p.Detail, "quorum") {
			t.Errorf("%s: problem %+v does not say why", n.Name, p)
		}
		age := func() int {
			res := l.raw(t, n.Name, http.MethodGet, "/v1/blocks/"+w.block.ID, "")
			if res.status != http.StatusOK {
				t.Fatalf("%s does not answer reads: %d %s", n.Name, res.status, res.body)
			}
			ms, err := strconv.Atoi(res.header.Get("Palisade-Age-Ms"))
			if err != nil {
				t.Fatal(err)
			}
			return ms
		}
		first := age()
		l.Eventually(t, n.Name+" says that its picture ages", func() error {
			if now := age(); now < first+300 {
				return fmt.Errorf("age %d ms, then %d ms", first, now)
			}
			return nil
		})
	}
	w.held()
	for name, was := range before {
		// CutNode's own table stands beside ours.
		if is := l.Ruleset(t, name); !strings.Contains(is, firstTable(was)) {
			t.Errorf("%s: our rules changed without quorum", name)
		}
	}
	for _, n := range []string{"node-1", "node-2"} {
		if err := l.HealNode(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.unchanged(t, before, false)
	for b, err := range l.Clients["node-1"].Blocks(t.Context(), client.BlockFilter{}) {
		if err != nil || b.Target.Prefix == "203.0.113.9" {
			t.Errorf("a refused write had an effect: %+v, %v", b, err)
		}
	}
	w.end()
}

func firstTable(ruleset string) string {
	if i := strings.Index(ruleset, "\ntable "); i > 0 {
		return ruleset[:i]
	}
	return ruleset
}

// TestANodeThatWasAwayCatchesUpBySnapshot writes more than the leader's log keeps while an agent is
// dead. Its fleet is its own: the blocks are many.
func TestANodeThatWasAwayCatchesUpBySnapshot(t *testing.T) {
	l := newLab(t, fleet.Options{GuestsPerNode: -1})
	l.kill(t, "node-3")
	l.Eventually(t, "two nodes have a leader", func() error {
		_, err := l.Clients["node-1"].AddBlock(t.Context(), client.BlockRequest{Target: client.Target{Prefix: "203.0.113.1"}}, client.Write{})
		return err
	})
	const writers, each = 64, 500 // 32,000: past the threshold of a snapshot and the log that is kept behind it
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			c := l.Clients[[]string{"node-1", "node-2"}[w%2]]
			for i := range each {
				target := fmt.Sprintf("100.%d.%d.%d", 64+w/32, (w%32)*8+i/250, i%250+1)
				if _, err := c.AddBlock(t.Context(), client.BlockRequest{Target: client.Target{Prefix: target}}, client.Write{}); err != nil {
					t.Errorf("%s: %v", target, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	l.Eventually(t, "the others have taken a snapshot", func() error {
		for _, n := range []string{"node-1", "node-2"} {
			out, err := l.Exec(t.Context(), n, "find", l.Dir()+"/"+n+"/data/raft", "-name", "state.bin")
			if err != nil || len(out) == 0 {
				return fmt.Errorf("%s has none: %w", n, err)
			}
		}
		return nil
	})
	l.start(t, "node-3")
	want, err := l.Clients["node-1"].Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.Clients["node-3"].Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Index != want.Index || got.StateHash != want.StateHash || got.NodeEnforcedIndex != want.Index {
		t.Errorf("node-3 stands at %+v, node-1 at %+v", got, want)
	}
	if rules := l.Ruleset(t, "node-3"); strings.Count(rules, "100.") < 2*writers*each {
		t.Errorf("node-3's kernel holds %d of %d addresses", strings.Count(rules, "100.")/2, writers*each)
	}
	log, err := l.Exec(t.Context(), "node-3", "cat", l.AgentLog("node-3"))
	if err != nil || !strings.Contains(string(log), "snapshot") {
		t.Errorf("node-3 did not catch up by snapshot: %v", err)
	}
}
