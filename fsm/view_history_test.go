package fsm

import (
	"fmt"
	"slices"
	"testing"
)

func TestHistoryIsOfMovesAlone(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	at := func(node string, phase Phase, epoch uint64) ObserveVM {
		op := running("v1", node, epoch, "203.0.113.5")
		op.Phase = phase
		return op
	}
	log.ok(t, DeclareVM{ID: "v1", Name: "web"})
	log.ok(t, running("v2", "n9", 1, "203.0.113.9"))
	log.ok(t, at("n1", PhaseRunning, 1))
	log.ok(t, DeclareVM{ID: "v1", Name: "web2"}) // no move
	log.ok(t, at("n2", PhaseIncoming, 2))
	log.ok(t, at("n2", PhaseRunning, 2))
	history := func(most int) (out []string, since uint64) {
		moves, since := s.View().History("v1", most)
		for _, e := range moves {
			out = append(out, fmt.Sprintf("%s %s>%s %s", e.Type, e.VM.Node, e.VM.Destination, e.VM.State))
		}
		return out, since
	}
	got, since := history(10)
	want := []string{"vm.declared > declared", "vm.observed n1> running", "vm.migrating n1>n2 migrating", "vm.moved n2> running"}
	if !slices.Equal(got, want) || since != 1 {
		t.Errorf("since %d: %q, want %q", since, got, want)
	}
	if got, _ := history(2); !slices.Equal(got, want[2:]) {
		t.Errorf("the newest two: %q", got)
	}
	if moves, _ := s.View().History("none", 10); len(moves) != 0 {
		t.Errorf("of no VM: %v", moves)
	}
}
