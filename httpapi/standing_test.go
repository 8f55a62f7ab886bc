package httpapi

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// nextStanding reads on to the next event of that type; others are counted.
func (e *sse) nextStanding(t *testing.T) (st wire.Standing, others int) {
	t.Helper()
	event, id := "", false
	for e.lines.Scan() {
		k, v, _ := strings.Cut(e.lines.Text(), ": ")
		switch k {
		case "event":
			event = v
		case "id":
			id = true
		case "data":
			if event != wire.EventStanding {
				others++
				continue
			}
			if id {
				t.Error("a standing has an id: a resume would go to the wrong place")
			}
			if err := json.Unmarshal([]byte(v), &st); err != nil {
				t.Fatal(err)
			}
			return st, others
		case "":
			event, id = "", false
		}
	}
	t.Fatalf("the stream ended: %v", e.lines.Err())
	return st, 0
}

func TestALiveStreamTellsHowTheFleetStands(t *testing.T) {
	f := newFleet(t, "n2", "n3")
	f.Form()
	s := serve(t, f)
	e := openEvents(t, s, "/v1/events?live=true", "")
	first, _ := e.nextStanding(t)
	if first.Type != "standing" || first.Node != "n1" || first.Leader != "n1" || !first.Quorum || !first.CaughtUp || first.Epoch == 0 || first.Fleet == "" || first.Version != "test" ||
		first.Index != f.View().Index() || len(first.Nodes) != 3 {
		t.Fatalf("the first is %+v", first)
	}
	if n := first.Nodes[1]; n.ID != "n2" || !n.Alive || !n.Voter || !n.Healthy || n.EnforcedIndex != first.Index {
		t.Errorf("n2 stands as %+v", n)
	}
	began := time.Now()
	still, _ := e.nextStanding(t)
	if took := time.Since(began); len(still.Nodes) != 0 || took > 5*time.Second {
		t.Errorf("nothing has changed, and after %s %+v was told", took, still)
	}
	f.Set(func() {
		f.Peers["n2"].Down, f.Peers["n2"].Alive = true, false
		f.Standing.Leader, f.Standing.Quorum = "", false
	})
	var lost wire.Standing
	for lost = still; lost.Quorum; {
		lost, _ = e.nextStanding(t)
	}
	if lost.Leader != "" || len(lost.Nodes) != 1 || lost.Nodes[0].ID != "n2" || lost.Nodes[0].Healthy || lost.Nodes[0].Alive || lost.Nodes[0].Problem == "" {
		t.Errorf("after n2 and the quorum are lost: %+v", lost)
	}
	f.Set(func() { delete(f.Peers, "n3") })
	f.Apply(fsm.DeclareVM{ID: "vm-1"})
	events, gone := 0, []string(nil)
	for len(gone) == 0 {
		st, others := e.nextStanding(t)
		events, gone = events+others, st.Gone
	}
	if gone[0] != "n3" || events != 1 {
		t.Errorf("%v is gone, %d events of the log", gone, events)
	}
}

func TestAStreamThatIsNotLiveAsksNobody(t *testing.T) {
	f := newFleet(t, "n2")
	s := serve(t, f, func(o *Options) { o.Heartbeat = 20 * time.Millisecond })
	e := openEvents(t, s, "/v1/events", "")
	f.Apply(fsm.DeclareVM{ID: "vm-1"})
	if m, _ := e.next(t); m.event != "vm.declared" {
		t.Errorf("got %+v", m)
	}
	f.Set(func() {
		if f.Peers["n2"].Asked != 0 {
			t.Error("a member was asked")
		}
	})
}
