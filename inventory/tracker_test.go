package inventory

import (
	"slices"
	"strings"
	"testing"

	"github.com/palisade/palisade/fsm"
)

// seen reads "a running", "a stopped" or "a moving".
func seen(lines ...string) []Seen {
	var all []Seen
	for _, l := range lines {
		id, what, _ := strings.Cut(l, " ")
		s := Seen{VM: VM{ID: id, Phase: fsm.Phase(what)}}
		if what == "moving" {
			s.Phase, s.Moving = fsm.PhaseRunning, true
		}
		all = append(all, s)
	}
	return all
}

func said(r Report) []string {
	var out []string
	for _, v := range r.VMs {
		out = append(out, v.ID+" "+string(v.Phase))
	}
	for _, id := range r.Arrived {
		out = append(out, "+"+id)
	}
	return out
}

func TestTracker(t *testing.T) {
	type step struct {
		seen  []Seen
		fresh bool
		want  []string // nil: nothing new
	}
	for name, steps := range map[string][]step{
		"arrivals and departures": {
			{seen("b stopped", "a running"), false, []string{"a running", "b stopped", "+a"}},
			{seen("a running", "b stopped"), false, nil},
			{seen("a running", "b running"), false, []string{"a running", "b running", "+b"}},
			{seen("b running"), false, []string{"b running"}},
			{seen(), false, []string{}},
		},
		"an empty first listing is one": {{seen(), false, []string{}}},
		"found again: all that is here is news": {
			{seen("a running", "b stopped"), false, []string{"a running", "b stopped", "+a"}},
			{seen("a running", "b stopped"), true, []string{"a running", "b stopped", "+a"}},
		},
		"leaves": {
			{seen("a running"), false, []string{"a running", "+a"}},
			{seen("a moving"), false, nil},
			{seen("a moving"), true, nil}, // found again while it leaves: no claim
			{seen(), false, []string{}},
		},
		"fails to leave": {
			{seen("a running"), false, []string{"a running", "+a"}},
			{seen("a moving"), false, nil},
			{seen("a running"), false, []string{"a running", "+a"}},
		},
		"comes": {
			{seen(), false, []string{}},
			{seen("a moving"), false, []string{"a incoming", "+a"}},
			{seen("a moving"), false, nil},
			{seen("a running"), false, []string{"a running", "+a"}},
		},
		"comes where its copy is stopped": {
			{seen("a stopped"), false, []string{"a stopped"}},
			{seen("a moving"), false, []string{"a incoming", "+a"}},
		},
		"moves when we start": {
			{seen("a moving"), false, []string{"a running"}},
			{seen("a running"), false, []string{"a running", "+a"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var tr Tracker
			for i, s := range steps {
				r, news, err := tr.List(s.seen, s.fresh)
				if err != nil || news != (s.want != nil) || news && !slices.Equal(said(r), s.want) {
					t.Fatalf("step %d: %v (news %v, %v), want %v", i, said(r), news, err, s.want)
				}
			}
		})
	}
}

func TestTrackerRefusesWhatItCantTrust(t *testing.T) {
	var tr Tracker
	if _, _, err := tr.List(seen("a running"), false); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tr.List(seen("b running", "b stopped"), false); err == nil || !strings.Contains(err.Error(), "listed twice") {
		t.Errorf("error %v", err)
	}
	if _, _, err := tr.List(make([]Seen, MaxVMs+1), false); err == nil {
		t.Error("too many were accepted")
	}
	if r, news, err := tr.List(seen("a running", "b running"), false); err != nil || !news || !slices.Equal(r.Arrived, []string{"b"}) {
		t.Errorf("what was refused left traces: %v %v %v", said(r), news, err)
	}
}
