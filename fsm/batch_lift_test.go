package fsm

import (
	"reflect"
	"strings"
	"testing"
)

// TestABatchKeepsWhatItsLiftsLifted: a retry has the answer of the first time, also from a node that was restored.
func TestABatchKeepsWhatItsLiftsLifted(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	for range 3 {
		log.ok(t, AddBlock{Target: Target{Account: "a"}, Reason: "unpaid"})
	}
	log.key = "k"
	op := Batch{Ops: []Op{LiftReason{Target: Target{Account: "a"}, Reason: "unpaid"}, LiftBlock{ID: "b9"}}}
	first := log.ok(t, op)
	if len(first.Items) != 2 || len(first.Items[0].Items) != 3 {
		t.Fatalf("lifted %+v", first.Items)
	}
	fresh := NewStore()
	if err := fresh.Restore(strings.NewReader(string(snapshot(t, s.View())))); err != nil {
		t.Fatal(err)
	}
	log.stores, log.key = []*Store{fresh}, "k"
	again := log.ok(t, op)
	if !again.Replayed || !reflect.DeepEqual(first.Items, again.Items) {
		t.Errorf("after a restore the retry gave %+v, the first time it was %+v", again.Items, first.Items)
	}
}
