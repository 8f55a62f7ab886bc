package httpapi

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

func explained(t *testing.T, s *Server, query string) wire.Explanation {
	t.Helper()
	var e wire.Explanation
	if err := json.Unmarshal(answered(t, s.do(t, request{path: "/v1/explain?" + query})), &e); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestExplainAsksEveryNode(t *testing.T) {
	f := newFleet(t, "n2", "n3", "n4")
	f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "192.0.2.0/24")}, Reason: "abuse"})
	since := time.Unix(1_700_000_000, 0).UTC()
	f.Peers["n1"].Explains = &fsm.Explanation{Verdict: fsm.VerdictDrop, Why: "because", Holds: []fsm.ExplainedHold{
		{Block: "b1", Kind: fsm.Drop, Direction: fsm.In, By: "192.0.2.0/24", Treats: true, Since: since, Packets: 3, Bytes: 300},
		{Block: "b99", Kind: fsm.Ports, Direction: fsm.Out, By: "x", Started: true},
	}}
	f.Peers["n2"].Explains = &fsm.Explanation{Verdict: fsm.VerdictPass, Guards: []string{"g"}}
	f.Peers["n3"].Down = true // and n4 is of another version
	s := newServer(t, f)
	e := explained(t, s, "src=198.51.100.1&dst=192.0.2.7&port=443&sport=1234")
	want := fsm.Packet{Src: netip.MustParseAddr("198.51.100.1"), Dst: netip.MustParseAddr("192.0.2.7"), Protocol: 6, SrcPort: 1234, DstPort: 443}
	if got := f.Peers["n2"].LastAsk.Explain; got == nil || *got != want {
		t.Errorf("asked for %+v, want %+v", got, want)
	}
	if len(e.Nodes) != 2 || e.Nodes[0].Node != "n1" || e.Nodes[0].Verdict != "drop" || e.Nodes[1].Verdict != "pass" || e.Nodes[1].Guards[0] != "g" {
		t.Fatalf("%+v", e.Nodes)
	}
	first, second := e.Nodes[0].Holds[0], e.Nodes[0].Holds[1]
	if !first.Decides || first.Reason != "abuse" || first.Target.Prefix != "192.0.2.0/24" || first.Counters != (wire.Counters{Packets: 3, Bytes: 300}) || !first.Since.Equal(since) {
		t.Errorf("%+v", first)
	}
	if second.Decides || !second.Started || second.Treats { // of a block that this node does not know yet
		t.Errorf("%+v", second)
	}
	if len(e.Silent) != 2 || e.Silent[0].Node != "n3" || e.Silent[1].Node != "n4" {
		t.Errorf("%+v", e.Silent)
	}
	if e := explained(t, s, "dst=192.0.2.7&node=n2"); len(e.Nodes) != 1 || e.Nodes[0].Node != "n2" || len(e.Silent) != 0 {
		t.Errorf("one node: %+v", e)
	}
}

func TestExplainRefuses(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	s := newServer(t, f)
	for query, want := range map[string]struct {
		status int
		says   string
	}{
		"":                                {http.StatusUnprocessableEntity, "src, dst or both"},
		"dst=192.0.2.0/24":                {http.StatusUnprocessableEntity, "query.dst"},
		"src=fe80::1%25eth0":              {http.StatusUnprocessableEntity, "query.src"},
		"src=192.0.2.1&dst=2001:db8::1":   {http.StatusUnprocessableEntity, "family"},
		"dst=192.0.2.1&proto=http":        {http.StatusUnprocessableEntity, "query.proto"},
		"dst=192.0.2.1&proto=256":         {http.StatusUnprocessableEntity, "query.proto"},
		"dst=192.0.2.1&port=65536":        {http.StatusUnprocessableEntity, "port"},
		"dst=192.0.2.1&node=n9":           {http.StatusNotFound, "n9"},
		"vm=nobody":                       {http.StatusNotFound, "nobody"},
		"vm=web&dst=192.0.2.1":            {http.StatusUnprocessableEntity, "goes alone"},
		"dst=192.0.2.1&source=192.0.2.22": {http.StatusUnprocessableEntity, "source"},
	} {
		res := s.do(t, request{path: "/v1/explain?" + query})
		b := new(strings.Builder)
		if err := res.Write(b); err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != want.status || !strings.Contains(b.String(), want.says) {
			t.Errorf("%s: %d, want %d and %q\n%s", query, res.StatusCode, want.status, want.says, b)
		}
	}
}

func TestExplainAVM(t *testing.T) {
	f := newFleet(t, "n2")
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	f.Apply(fsm.DeclareVM{ID: "vm-1", Owner: "alice"})
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}, Reason: "abuse"})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Account: "alice"}, Reason: "unpaid", Kind: fsm.Limit, Rate: fsm.Rate{Packets: 9}})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "192.0.2.0/28")}, Direction: fsm.Out})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "192.0.2.16/28")}})
	f.Apply(fsm.BeginList{Upload: "u", Name: "feed"})
	f.Apply(fsm.AddListChunk{Upload: "u", Prefixes: fsm.AppendPacked(nil, mustPrefix(t, "192.0.0.0/16"))})
	f.Apply(fsm.CommitList{Upload: "u"})
	f.Apply(fsm.AddBlock{Target: fsm.Target{List: "feed"}, Direction: fsm.In, Force: true})
	f.Peers["n1"].Held = map[string]uint64{"b1": 3}
	f.Peers["n2"].Held = map[string]uint64{"b1": 4}
	s := newServer(t, f)
	e := explained(t, s, "vm=web")
	var got []string
	for _, h := range e.Holds {
		got = append(got, strings.Join([]string{h.Block, h.Kind, h.Direction, h.By, h.Reason}, " "))
	}
	want := "b1 drop both the VM itself abuse; b2 limit both its account unpaid; b3 drop out an address in 192.0.2.0/28 manual; b5 drop in an address in list feed manual"
	if e.VM != "vm-1" || strings.Join(got, "; ") != want {
		t.Errorf("%s is held by\n%s\nwant\n%s", e.VM, strings.Join(got, "; "), want)
	}
	if e.Holds[0].Counters != (wire.Counters{Packets: 7, Bytes: 700}) {
		t.Errorf("counters %+v", e.Holds[0].Counters)
	}
}
