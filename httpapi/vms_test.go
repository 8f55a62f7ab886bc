package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

func vmIDs(p wire.Page[wire.VM]) string {
	var ids []string
	for _, v := range p.Items {
		ids = append(ids, v.ID)
	}
	return strings.Join(ids, " ")
}

func TestVMShape(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7", "2001:db8::7")
	f.Apply(fsm.DeclareVM{ID: "vm-1", Owner: "alice", Addresses: []netip.Prefix{mustPrefix(t, "192.0.2.7"), mustPrefix(t, "198.51.100.0/28")}})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "192.0.2.0/24")}})
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}, Reason: "unpaid"})
	f.Sightings["vm-1"] = fsm.Sighting{VM: "vm-1", Node: "n2", Phase: fsm.PhaseIncoming, Epoch: 2}
	s := newServer(t, f)
	for _, ref := range []string{"vm-1", "web"} {
		res := s.do(t, request{method: "GET", path: "/v1/vms/" + ref})
		v := decode[wire.VM](t, res, 200)
		if v.ID != "vm-1" || v.Name != "web" || v.Kind != "netns" || v.Node != "n1" || v.Owner != "alice" || v.State != "running" || v.Epoch != 1 {
			t.Errorf("got %+v", v)
		}
		if got := strings.Join(v.Addresses, " "); got != "192.0.2.7 198.51.100.0/28 2001:db8::7" {
			t.Errorf("addresses %q: want the union, sorted, without repeats", got)
		}
		if got := strings.Join(v.Declared, " "); got != "192.0.2.7 198.51.100.0/28" {
			t.Errorf("declared %q", got)
		}
		if !v.Blocked || strings.Join(v.Blocks, " ") != "b1 b2" {
			t.Errorf("blocked %v by %v, want the block on its address and the one on itself", v.Blocked, v.Blocks)
		}
		if v.Sighting == nil || v.Sighting.Node != "n2" {
			t.Errorf("sighting %+v", v.Sighting)
		}
		if len(v.NICs) != 1 || v.NICs[0].Tap != "tap0" || !strings.HasPrefix(v.NICs[0].MAC, "52:54:00") {
			t.Errorf("nics %+v", v.NICs)
		}
		if res.Header.Get("ETag") != `"`+strconv.FormatUint(v.Revision, 10)+`"` || res.Header.Get("Palisade-Index") != "5" {
			t.Errorf("headers %v", res.Header)
		}
	}
	f.Sightings["vm-1"] = fsm.Sighting{VM: "vm-1", Node: "n2", Epoch: 1}
	if v := decode[wire.VM](t, s.do(t, request{method: "GET", path: "/v1/vms/vm-1"}), 200); v.Sighting != nil {
		t.Error("an old sighting is shown")
	}
}

func TestVMPagesAndFilters(t *testing.T) {
	f := newFleet(t)
	for i := range 25 {
		f.RunVM(fmt.Sprintf("vm-%02d", i), "name"+strconv.Itoa(i%5), []string{"n1", "n2"}[i%2], fmt.Sprintf("192.0.2.%d", i+1))
	}
	f.Apply(fsm.DeclareVM{ID: "vm-03", Owner: "bob"})
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-04"}})
	s := newServer(t, f)
	for _, filter := range []string{"", "&node=n2"} {
		var all []string
		cursor, pages := "", 0
		for {
			p := decode[wire.Page[wire.VM]](t, s.do(t, request{method: "GET", path: "/v1/vms?limit=4" + filter + "&cursor=" + cursor}), 200)
			if len(p.Items) > 4 {
				t.Fatalf("%d items on a page of 4", len(p.Items))
			}
			all = append(all, strings.Fields(vmIDs(p))...)
			pages++
			if p.Next == nil {
				break
			}
			cursor = *p.Next
		}
		want, wantPages := 25, 7
		if filter != "" {
			want, wantPages = 12, 3
		}
		if len(all) != want || pages != wantPages {
			t.Errorf("filter %q: %d VMs on %d pages: %v", filter, len(all), pages, all)
		}
	}
	for query, want := range map[string]string{
		"owner=bob": "vm-03", "blocked=true": "vm-04", "name=name1&node=n1": "vm-06 vm-16", "node=nope": "", "owner=bob&blocked=true": "",
	} {
		if got := vmIDs(decode[wire.Page[wire.VM]](t, s.do(t, request{method: "GET", path: "/v1/vms?" + query}), 200)); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	if p := decode[wire.Page[wire.VM]](t, s.do(t, request{method: "GET", path: "/v1/vms?blocked=false"}), 200); len(p.Items) != 24 {
		t.Errorf("blocked=false: %d", len(p.Items))
	}
	if p := decode[wire.Page[wire.VM]](t, s.do(t, request{method: "GET", path: "/v1/vms"}), 200); len(p.Items) != 25 || p.Next != nil {
		t.Errorf("the default limit gave %d", len(p.Items))
	}
}

func TestBlockPagesAndFilters(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	for i := range 11 { // past b9, where the order of ids and that of creation part
		f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, fmt.Sprintf("203.0.113.%d", i))}, Reason: []string{"abuse", "unpaid"}[i%2]})
	}
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}})
	f.Apply(fsm.LiftBlock{ID: "b2"})
	s := newServer(t, f)
	ids := func(query string) string {
		var ids []string
		cursor := ""
		for {
			p := decode[wire.Page[wire.Block]](t, s.do(t, request{method: "GET", path: "/v1/blocks?limit=3&cursor=" + cursor + query}), 200)
			for _, b := range p.Items {
				ids = append(ids, b.ID)
			}
			if p.Next == nil {
				return strings.Join(ids, " ")
			}
			cursor = *p.Next
		}
	}
	for query, want := range map[string]string{
		"":                       "b1 b3 b4 b5 b6 b7 b8 b9 b10 b11 b12",
		"&state=all":             "b1 b2 b3 b4 b5 b6 b7 b8 b9 b10 b11 b12",
		"&state=lifted":          "b2",
		"&reason=unpaid":         "b4 b6 b8 b10",
		"&vm=web":                "b12",
		"&vm=vm-1":               "b12",
		"&prefix=203.0.113.4":    "b5",
		"&prefix=203.0.113.4/32": "b5",
		"&prefix=203.0.113.0/24": "",
	} {
		if got := ids(query); got != want {
			t.Errorf("%q: %s, want %s", query, got, want)
		}
	}
	if n := f.Peers["n1"].LastAsk.Blocks; len(n) > 3 {
		t.Errorf("a page of 3 asked for %d blocks", len(n))
	}
}

func TestPutVM(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	put := request{method: "PUT", path: "/v1/vms/vm-9", body: `{"name":"db","owner":"carol","addresses":["192.0.2.9","2001:db8:9::/64"]}`}
	res := s.do(t, put)
	v := decode[wire.VM](t, res, 200)
	if v.State != "declared" || v.Owner != "carol" || v.Name != "db" || strings.Join(v.Declared, " ") != "192.0.2.9 2001:db8:9::/64" {
		t.Errorf("got %+v", v)
	}
	put.body = `{"owner":"dave"}`
	put.header = map[string]string{"If-Match": res.Header.Get("ETag")}
	res = s.do(t, put)
	if v = decode[wire.VM](t, res, 200); v.Owner != "dave" || v.Name != "db" || len(v.Declared) != 0 {
		t.Errorf("got %+v: an empty name is kept, addresses are replaced", v)
	}
	p := decode[wire.Problem](t, s.do(t, put), 412) // the ETag of the first time
	if p.Code != wire.CodeRevision || p.Errors[0].Location != "header.If-Match" {
		t.Errorf("got %+v", p)
	}
}

func TestGuards(t *testing.T) {
	f := newFleet(t)
	f.Apply(fsm.PutNode{Node: fsm.Node{ID: "n1", Name: "one", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}})
	s := newServer(t, f)
	for _, p := range []string{"198.51.100.0/24", "198.51.101.5", "2001:db8:1::/48"} {
		g := decode[wire.Guard](t, s.do(t, request{method: "POST", path: "/v1/guards", body: `{"prefix":"` + p + `","note":"uplink"}`}), 201)
		if g.Prefix != p || g.Note != "uplink" || g.Actor != "token:root" || g.Revision == 0 {
			t.Errorf("got %+v", g)
		}
	}
	list := func(query string) (out []string) {
		cursor := ""
		for {
			p := decode[wire.Page[wire.Guard]](t, s.do(t, request{method: "GET", path: "/v1/guards?limit=2&cursor=" + cursor + query}), 200)
			for _, g := range p.Items {
				out = append(out, g.Prefix)
			}
			if p.Next == nil {
				return out
			}
			cursor = *p.Next
		}
	}
	if got := strings.Join(list(""), " "); got != "198.51.100.0/24 198.51.101.5 2001:db8:1::/48" {
		t.Errorf("guards %s", got)
	}
	all := strings.Join(list("&all=true"), " ")
	for _, want := range []string{"127.0.0.0/8", "192.0.2.1", "198.51.101.5"} {
		if !strings.Contains(" "+all+" ", " "+want+" ") {
			t.Errorf("all guards lack %s: %s", want, all)
		}
	}
	p := decode[wire.Problem](t, s.do(t, request{method: "POST", path: "/v1/blocks", body: `{"target":{"prefix":"192.0.2.1"}}`}), 409)
	if p.Code != wire.CodeGuardConflict || !strings.Contains(p.Detail, "n1") {
		t.Errorf("blocking a node's own address: %+v", p)
	}
	// The prefix stands in the path as it is, or escaped.
	decode[struct{}](t, s.do(t, request{method: "DELETE", path: "/v1/guards/198.51.100.0/24"}), 204)
	decode[struct{}](t, s.do(t, request{method: "DELETE", path: "/v1/guards/2001:db8:1::%2F48"}), 204)
	decode[struct{}](t, s.do(t, request{method: "DELETE", path: "/v1/guards/198.51.101.5"}), 204)
	if left := list(""); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestNodesAndStatus(t *testing.T) {
	f := newFleet(t, "n2", "n3", "n4")
	f.Apply(fsm.PutNode{Node: fsm.Node{ID: "n1", Name: "one", Version: "v1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}})
	f.Apply(fsm.PutNode{Node: fsm.Node{ID: "gone", Name: "old"}})
	f.Apply(fsm.DeclareVM{ID: "x"})
	s := newServer(t, f)
	f.Set(func() {
		f.Peers["n2"].Stuck, f.Peers["n2"].Problem = 1, "kernel refuses"
		f.Peers["n3"].Alive, f.Peers["n3"].Hangs = false, true
		f.Peers["n4"].Hangs, f.Peers["n4"].Voter = true, false
	})
	p := decode[wire.Page[wire.Node]](t, s.do(t, request{method: "GET", path: "/v1/nodes"}), 200)
	got := map[string]wire.Node{}
	for _, n := range p.Items {
		got[n.ID] = n
	}
	if n := got["n1"]; !n.Healthy || n.Role != "leader" || !n.Leader || !n.Voter || n.Name != "one" || n.Addresses[0] != "192.0.2.1" || n.EnforcedIndex != 4 || n.AppliedIndex != 4 || n.Revision != 2 {
		t.Errorf("n1 %+v", n)
	}
	if n := got["n2"]; n.Healthy || n.Role != "voter" || n.EnforcedIndex != 1 || n.Problem != "kernel refuses" {
		t.Errorf("n2 %+v", n)
	}
	if n := got["n3"]; n.Healthy || n.Problem != "not heard of by gossip" || n.LastHeard.IsZero() {
		t.Errorf("n3 %+v", n)
	}
	if n := got["n4"]; n.Healthy || n.Role != "follower" || !strings.Contains(n.Problem, "did not answer") {
		t.Errorf("n4 %+v", n)
	}
	if n := got["gone"]; n.Healthy || !strings.Contains(n.Problem, "not a member") || n.Name != "old" {
		t.Errorf("gone %+v", n)
	}
	one := decode[wire.Node](t, s.do(t, request{method: "GET", path: "/v1/nodes/n2"}), 200)
	if one.ID != "n2" || one.EnforcedIndex != 1 {
		t.Errorf("one %+v", one)
	}
	// n2 falls silent: what it said last is still shown, and counts as the slowest.
	f.Set(func() { f.Peers["n2"].Down = true })
	st := decode[wire.Status](t, s.do(t, request{method: "GET", path: "/v1/status"}), 200)
	if st.Node != "n1" || st.Leader != "n1" || !st.Quorum || st.Term != 3 || st.Index != 4 || st.CommitIndex != 4 || st.EnforcedIndex != 1 ||
		st.NodeEnforcedIndex != 4 || st.StateHash != f.View().Hash() || !st.CaughtUp || st.Version != "test" {
		t.Errorf("status %+v", st)
	}
	if st.Counts != (wire.Counts{Nodes: 2, Alive: 3, VMs: 1}) {
		t.Errorf("counts %+v", st.Counts)
	}
}

// Reads say how old they can be, and answer without quorum.
func TestAge(t *testing.T) {
	f := newFleet(t)
	now := time.Now()
	s := newServer(t, f, func(o *Options) { o.Now = func() time.Time { return now } })
	for name, c := range map[string]struct {
		last time.Time
		want string
	}{
		"leader":       {now, "0"},
		"clock behind": {now.Add(time.Second), "0"},
		"cut off":      {now.Add(-90 * time.Second), "90000"},
		"never":        {time.Time{}, "-1"},
	} {
		f.Set(func() {
			f.Standing.LastContact = c.last
			f.Standing.Quorum, f.Standing.Leader = false, ""
		})
		for _, path := range []string{"/v1/blocks", "/v1/vms", "/v1/nodes", "/v1/guards", "/v1/status"} {
			res := s.do(t, request{method: "GET", path: path})
			if got := res.Header.Get("Palisade-Age-Ms"); res.StatusCode != http.StatusOK || got != c.want {
				t.Errorf("%s, %s: %d, age %q, want %s", name, path, res.StatusCode, got, c.want)
			}
		}
	}
}

func TestStrongRead(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f, func(o *Options) { o.ProposeTimeout = 5 * time.Second })
	// The index is ahead of this node's state until a write arrives.
	f.StrongRead = func(context.Context) (uint64, error) {
		index := f.View().Index() + 1
		go f.Apply(fsm.DeclareVM{ID: "late"}) //nolint:contextcheck // the write is somebody else's
		return index, nil
	}
	res := s.do(t, request{method: "GET", path: "/v1/vms/late?consistency=strong"})
	decode[wire.VM](t, res, 200)
	if res.Header.Get("Palisade-Index") != "2" || res.Header.Get("Palisade-Age-Ms") != "0" {
		t.Errorf("headers %v", res.Header)
	}
	f.StrongRead = func(context.Context) (uint64, error) { return 0, fsm.ErrUnavailable }
	p := decode[wire.Problem](t, s.do(t, request{method: "GET", path: "/v1/vms?consistency=strong"}), 503)
	if p.Code != wire.CodeNoQuorum {
		t.Errorf("got %+v", p)
	}
	s.opts.ProposeTimeout = 20 * time.Millisecond
	f.StrongRead = func(context.Context) (uint64, error) { return 1000, nil }
	decode[wire.Problem](t, s.do(t, request{method: "GET", path: "/v1/vms?consistency=strong"}), 503)
	decode[wire.Page[wire.VM]](t, s.do(t, request{method: "GET", path: "/v1/vms"}), 200)
}

func TestReadyz(t *testing.T) {
	ready := request{method: "GET", path: "/readyz", token: "-"}
	for name, c := range map[string]struct {
		script func(f *fleet)
		says   string // location of the reason; "" for ready
	}{
		"ready":         {func(*fleet) {}, ""},
		"no quorum":     {func(f *fleet) { f.Standing.Quorum = false }, "quorum"},
		"not caught up": {func(f *fleet) { f.Standing.CaughtUp = false }, "caught_up"},
		"kernel behind": {func(f *fleet) { f.Peers["n1"].Stuck = 1 }, "enforced"},
		"kernel sick":   {func(f *fleet) { f.Peers["n1"].Problem = "netlink: ENOBUFS" }, "enforced"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			f.Apply(fsm.DeclareVM{ID: "a"})
			f.Apply(fsm.DeclareVM{ID: "b"})
			f.Set(func() { c.script(f) })
			s := newServer(t, f, func(o *Options) { o.AskTimeout = 30 * time.Millisecond })
			decode[struct{}](t, s.do(t, request{method: "GET", path: "/healthz", token: "-"}), 200)
			if c.says == "" {
				decode[struct{}](t, s.do(t, ready), 200)
				return
			}
			res := s.do(t, ready)
			p := decode[wire.Problem](t, res, http.StatusServiceUnavailable)
			if p.Code != wire.CodeNotReady || len(p.Errors) != 1 || p.Errors[0].Location != c.says {
				t.Errorf("got %+v", p)
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	s := newServer(t, newFleet(t))
	s.do(t, request{method: "GET", path: "/v1/blocks/b7"})
	s.do(t, request{method: "GET", path: "/v1/blocks/b8"})
	s.do(t, request{method: "GET", path: "/random/scan/1"})
	res := s.do(t, request{method: "GET", path: "/metrics", token: metricsToken})
	text := new(strings.Builder)
	if err := res.Write(text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`palisade_http_requests_total{code="404",method="GET",route="/v1/blocks/{id}"} 2`,
		`palisade_http_requests_total{code="404",method="any",route="none"} 1`,
		`palisade_http_request_seconds_count{code="4xx",method="GET",route="/v1/blocks/{id}"} 2`,
		`palisade_http_streams 0`,
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if strings.Contains(text.String(), "scan") {
		t.Error("a path of a stranger became a label")
	}
}
