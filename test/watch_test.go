package test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/httpapi/client"
)

// problem returns a problem that a node's status shows of a node, or an error.
func (l *lab) problem(t *testing.T, asked, of, code string) (client.NodeProblem, error) {
	t.Helper()
	st, err := l.Clients[asked].Status(t.Context())
	if err != nil {
		return client.NodeProblem{}, err
	}
	for _, p := range st.Problems {
		if p.Node == of && p.Code == code {
			return p, nil
		}
	}
	return client.NodeProblem{}, fmt.Errorf("%s shows no %s of %s: %+v", asked, code, of, st.Problems)
}

// shows waits until a node's status shows a problem, and returns after how long.
func (l *lab) shows(t *testing.T, asked, of, code, says string) time.Duration {
	t.Helper()
	begin := time.Now()
	l.Eventually(t, code+" of "+of+" is shown", func() error {
		p, err := l.problem(t, asked, of, code)
		if err == nil && !strings.Contains(p.Text, says) {
			err = fmt.Errorf("it does not say %q: %s", says, p.Text)
		}
		return err
	})
	return time.Since(begin)
}

// ended waits until a problem is shown no more.
func (l *lab) ended(t *testing.T, asked, of, code string) {
	t.Helper()
	l.Eventually(t, code+" of "+of+" is over", func() error {
		if p, err := l.problem(t, asked, of, code); err == nil {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
}

// TestRulesThatOthersFlushComeBack: another program flushes all rules of a node. Within a second or two they
// are back by themselves, the node says so to all others, and who is innocent lost nothing.
func TestRulesThatOthersFlushComeBack(t *testing.T) {
	l := sharedLab(t)
	w := watch(t, l)
	w.held()
	const listed = "198.51.100.77"
	putList(t, l.Clients["node-2"], listed)
	hold, err := l.Clients["node-2"].AddBlock(t.Context(), client.BlockRequest{Target: client.Target{List: "feed"}}, client.Write{Wait: true})
	if err != nil || !hold.Confirmed {
		t.Fatalf("hold the list: confirmed %t, %v", hold.Confirmed, err)
	}
	t.Cleanup(func() {
		_, _ = l.Clients["node-2"].LiftBlock(t.Context(), hold.Block.ID, client.Write{Wait: true})
		_ = l.Clients["node-2"].DeleteList(t.Context(), "feed", client.Write{})
	})
	before := l.Ruleset(t, "node-1")
	healed := func(tables string) string {
		return l.metric(t, "node-1", fmt.Sprintf("palisade_kernel_drift_healed_total{tables=%q}", tables))
	}
	was := map[string]string{"blocks": healed("blocks"), "lists": healed("lists")}
	begin := time.Now()
	flush, err := l.Command(t.Context(), "node-1", "nft", "flush", "ruleset")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := flush.CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	l.Eventually(t, "the rules are back", func() error {
		for tables, before := range was {
			if healed(tables) == before {
				return fmt.Errorf("those of %s not yet", tables)
			}
		}
		return nil
	})
	back := time.Now()
	took := back.Sub(begin)
	after := l.Ruleset(t, "node-1")
	if was, is := strings.Count(before, listed), strings.Count(after, listed); is != was || was == 0 {
		t.Errorf("the kernel has the listed address %d times, it had it %d times:\n%s", is, was, after)
	}
	if was, is := withoutLists(before), withoutLists(after); is != was {
		t.Errorf("the rules changed:\n--- before\n%s\n--- after\n%s", was, is)
	}
	t.Logf("the rules were back after %s", took.Round(time.Millisecond))
	if took > 4*time.Second {
		t.Errorf("the rules were back after %s", took)
	}
	l.shows(t, "node-2", "node-1", "kernel_drift", "it was undone")
	if v := l.metric(t, "node-1", `palisade_problem{code="kernel_drift",severity="critical"}`); v != "1" {
		t.Errorf("the problem's metric is %q", v)
	}
	w.since = back
	rest(time.Second) // the rules are back so fast that the flows have shown nothing yet
	w.end()
}

// withoutLists leaves away the tables of lists, whose sets have another name when they are loaded anew, and the index. It sorts tables.
func withoutLists(rules string) string {
	var kept []string
	in := ""
	for line := range strings.Lines(rules) {
		if in == "" && (strings.HasPrefix(line, "table ") && strings.Contains(line, "_lists ") || strings.Contains(line, "set enforced ")) {
			in = line[:len(line)-len(strings.TrimLeft(line, "\t"))] + "}\n"
		}
		if in == "" {
			kept = append(kept, line)
		}
		if line == in {
			in = ""
		}
	}
	// Tables are listed in the order in which they were made.
	tables := strings.SplitAfter(strings.Join(kept, ""), "\n}\n")
	slices.Sort(tables)
	return strings.Join(tables, "")
}

// TestAStoppedNodeIsShown: an agent that is frozen, as by a hanging machine, is shown by the others within
// seconds; so is what it says itself when it goes on, and that it is over.
func TestAStoppedNodeIsShown(t *testing.T) {
	l := sharedLab(t)
	_, leader := l.follower(t)
	var stopped, other string
	for _, n := range l.Nodes() {
		switch {
		case n.Name == leader:
		case stopped == "":
			stopped = n.Name
		default:
			other = n.Name
		}
	}
	signal := func(s syscall.Signal) {
		n, err := l.Node(stopped)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(n.Agent.PID, s); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP)
	defer signal(syscall.SIGCONT)
	t.Logf("shown after %s", l.shows(t, other, stopped, "node_silent", "goes on enforcing").Round(time.Millisecond))
	l.Eventually(t, "the leader's metric tells it too", func() error {
		if v := l.metric(t, leader, `palisade_problem{code="peers_silent",severity="warning"}`); v != "1" {
			return fmt.Errorf("it is %q", v)
		}
		return nil
	})
	signal(syscall.SIGCONT)
	l.ended(t, other, stopped, "node_silent")
	l.Eventually(t, "the stopped node has no problem left", func() error {
		st, err := l.Clients[stopped].Status(t.Context())
		for _, p := range st.Problems {
			if p.Node == stopped && p.Code != "kernel_drift" { // of another test
				err = errors.Join(err, fmt.Errorf("%+v", p))
			}
		}
		return err
	})
}

// TestANodeThatIsCutOffSaysSo, and for how long, while the others miss it.
func TestANodeThatIsCutOffSaysSo(t *testing.T) {
	l := sharedLab(t)
	cut, leader := l.follower(t)
	if err := l.CutNode(t.Context(), cut); err != nil {
		t.Fatal(err)
	}
	l.shows(t, cut, cut, "no_quorum", "Nothing can be written")
	l.shows(t, leader, cut, "node_silent", "")
	if err := l.HealNode(t.Context(), cut); err != nil {
		t.Fatal(err)
	}
	l.ended(t, cut, cut, "no_quorum")
	l.ended(t, leader, cut, "node_silent")
}

// metric is the value of one line of a node's metrics, "" if there is none.
func (l *lab) metric(t *testing.T, node, series string) string {
	t.Helper()
	res := l.raw(t, node, "GET", "/metrics", "")
	for line := range strings.Lines(string(res.body)) {
		if v, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
