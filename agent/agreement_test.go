package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
)

// entry applies an op to a store at the next index.
func entry(t *testing.T, s *fsm.Store, index uint64, op fsm.Op) {
	t.Helper()
	data, err := fsm.MarshalCommand(fsm.Command{Actor: "test", Time: time.Unix(1_700_000_000, 0), Op: op})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ApplyBatch([]fsm.Entry{{Index: index, Data: data}}); err != nil {
		t.Fatal(err)
	}
}

// TestAStateThatDiffersIsTold: at the same log index only, and until a comparison shows that it is over.
func TestAStateThatDiffersIsTold(t *testing.T) {
	mine, leaders := fsm.NewStore(), fsm.NewStore()
	same := fsm.DeclareVM{ID: "vm", Owner: "acct-1"}
	entry(t, mine, 1, same)
	entry(t, leaders, 1, same)
	var fails error
	a := &agreement{node: "n2", store: mine, status: func() fsm.Status { return fsm.Status{Leader: "n1"} }, ask: func(_ context.Context, node string, _ fsm.Query) (fsm.Report, error) {
		v := leaders.View()
		return fsm.Report{Node: node, Applied: v.Index(), Hash: v.Hash()}, fails
	}}
	check := func(when string, want bool) {
		t.Helper()
		a.compare(t.Context())
		if got := a.Warning(); (got != "") != want {
			t.Errorf("%s: %q", when, got)
		}
	}
	check("the same", false)

	// This node is still on its way to the leader's index.
	entry(t, leaders, 2, same)
	reached := make(chan struct{})
	go func() {
		defer close(reached)
		entry(t, mine, 2, same)
	}()
	check("the same, a moment later", false)
	<-reached

	entry(t, leaders, 3, fsm.DeclareVM{ID: "vm", Owner: "acct-2"})
	entry(t, mine, 3, fsm.DeclareVM{ID: "vm", Owner: "acct-3"})
	check("another owner", true)
	if w := a.Warning(); !strings.Contains(w, "at log index 3") || !strings.Contains(w, "leader n1") {
		t.Errorf("it says %q", w)
	}
	fails = errors.New("cut off")
	check("the leader does not answer", true)
	fails = nil
	entry(t, mine, 4, same)
	check("at another index", true)
	leaders = fsm.NewStore() // another one leads
	for i, op := range []fsm.Op{same, same, fsm.DeclareVM{ID: "vm", Owner: "acct-3"}, same} {
		entry(t, leaders, uint64(i)+1, op)
	}
	check("the same again", false)
	a.node = "n1"
	entry(t, leaders, 5, fsm.DeclareVM{ID: "vm", Owner: "acct-2"})
	check("the leader itself", false)
}
