package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// TestStatusShowsProblems: what every node says of itself, and who says nothing, the critical first.
func TestStatusShowsProblems(t *testing.T) {
	f := newFleet(t, "n2", "n3", "n4", "n5", "n6", "n7")
	s := newServer(t, f)
	since := time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC)
	f.Set(func() {
		f.Peers["n1"].Problems = []fsm.Problem{{Code: codePeersSilent, Severity: fsm.Warning, Since: since, Text: "n3"}, {Code: "clock_offset", Severity: fsm.Warning, Since: since, Text: "late. Do."}}
		f.Peers["n2"].Problems = []fsm.Problem{{Code: "kernel_drift", Severity: fsm.Critical, Since: since, Text: "flushed"}}
		f.Peers["n3"].Down, f.Peers["n3"].LastHeard = true, since
		f.Peers["n4"].Alive, f.Peers["n4"].Fails = false, errors.New("no way")
		f.Peers["n5"].Fails = errors.New("bad\nthing")
		f.Peers["n6"].Fails = fmt.Errorf("ask of n6: %w", &url.Error{Op: "Post", URL: "https://peer/v1/ask", Err: context.DeadlineExceeded})
		f.Peers["n7"].Fails = fmt.Errorf("ask of n7: %w", &url.Error{Op: "Post", URL: "https://peer/v1/ask", Err: errors.New("cut off")})
		f.Peers["n2"].Ahead = new(-1500 * time.Microsecond)
	})
	st := decode[wire.Status](t, s.do(t, request{method: "GET", path: "/v1/status"}), 200)
	var got []string
	for _, p := range st.Problems {
		text, advice, _ := strings.Cut(p.Text, ". ")
		if p.Code == wire.ProblemSilent && !strings.Contains(advice, "goes on enforcing") {
			t.Errorf("%+v has no advice", p)
		}
		got = append(got, fmt.Sprintf("%s %s %s %t: %s", p.Severity, p.Node, p.Code, p.Since.Equal(since), text))
	}
	want := []string{
		"critical n2 kernel_drift true: flushed",
		"warning n1 clock_offset true: late",
		"warning n3 node_silent true: its agent does not run",
		"warning n4 node_silent false: it is not heard of by gossip",
		"warning n5 node_silent false: it did not answer: bad",
		"warning n6 node_silent false: it did not answer in time",
		"warning n7 node_silent false: it did not answer: cut off",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for id, ms := range map[string]string{"n1": "unknown", "n2": "-1.5"} {
		n := decode[wire.Node](t, s.do(t, request{method: "GET", path: "/v1/nodes/" + id}), 200)
		is := "unknown"
		if n.ClockOffsetMS != nil {
			is = fmt.Sprint(*n.ClockOffsetMS)
		}
		if is != ms {
			t.Errorf("clock of %s: %s ms, want %s", id, is, ms)
		}
	}
}
