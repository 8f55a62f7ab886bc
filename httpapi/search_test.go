package httpapi

import (
	"crypto/sha256"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

func foundBy(t *testing.T, s *Server, q, token string) wire.Found {
	t.Helper()
	return decode[wire.Found](t, s.do(t, request{method: "GET", path: "/v1/search?q=" + url.QueryEscape(q), token: token}), 200)
}

// summary is what was found, in short.
func summary(f wire.Found) string {
	var out []string
	for _, v := range f.VMs {
		out = append(out, v.ID)
	}
	for _, a := range f.Addresses {
		out = append(out, fmt.Sprintf("%s%v%v", a.Prefix, a.VMs, a.Blocks))
	}
	for _, n := range f.Nodes {
		out = append(out, "node:"+n.ID)
	}
	for _, l := range f.Lists {
		out = append(out, "list:"+l.Name)
	}
	for _, a := range f.Accounts {
		out = append(out, fmt.Sprintf("account:%s:%d%v", a.ID, a.VMs, a.Blocks))
	}
	for _, b := range f.Blocks {
		out = append(out, "block:"+b.ID)
	}
	return strings.Join(out, " ")
}

func TestSearchFindsWhatAPersonMayMean(t *testing.T) {
	f := newFleet(t)
	f.Form()
	f.RunVM("vm-1", "web-12", "n1", "192.0.2.7")
	f.RunVM("vm-2", "web-1", "n1", "192.0.2.70")
	f.RunVM("vm-3", "old-web-1", "n1", "198.51.100.1")
	f.Apply(fsm.DeclareVM{ID: "vm-2", Owner: "alice"})
	f.Apply(fsm.DeclareVM{ID: "vm-3", Owner: "alice"})
	f.Apply(fsm.DescribeList{Name: "web-scanners", Note: new("from the feed")})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "192.0.2.0/24")}})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Account: "alice"}, Reason: fsm.ReasonAbuse})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "192.0.2.99")}, StartsAt: time.Now().Add(time.Hour)})
	s := newServer(t, f)
	for q, want := range map[string]string{
		"web-1":        "vm-2 vm-1 vm-3",
		"ONE":          "node:n1",
		"ali":          "vm-3 vm-2 account:alice:2[b2]",
		"192.0.2.7":    "vm-1 192.0.2.7[vm-1][b1]",
		"192.0.2":      "vm-2 vm-1 192.0.2.0/24[vm-1 vm-2][b1] 192.0.2.99[][b3 b1]",
		"192.0.2.0/24": "vm-2 vm-1 192.0.2.0/24[vm-1 vm-2][b1]",
		"203.0.113.1":  "203.0.113.1[][]",
		"feed":         "list:web-scanners",
		"b2":           "block:b2",
		"vm-3":         "vm-3",
		"<script>":     "",
	} {
		got := foundBy(t, s, q, "")
		for i := range got.Addresses {
			slices.Sort(got.Addresses[i].VMs)
		}
		if summary(got) != want {
			t.Errorf("%q: %q, want %q", q, summary(got), want)
		}
	}
	if got := foundBy(t, s, "web&limit=2", ""); len(got.VMs) != 0 {
		t.Errorf("the text was not taken as it is: %v", got.VMs)
	}
	if got := decode[wire.Found](t, s.do(t, request{method: "GET", path: "/v1/search?q=web&limit=2"}), 200); len(got.VMs) != 2 {
		t.Errorf("%d VMs, with a limit of 2", len(got.VMs))
	}
	for _, bad := range []string{"", "?q=", "?q=" + strings.Repeat("x", 256)} {
		decode[wire.Problem](t, s.do(t, request{method: "GET", path: "/v1/search" + bad}), 422)
	}
}

func TestBillingFindsVMsAndAccountsOnly(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "feed", "n1", "192.0.2.7")
	f.Apply(fsm.DeclareVM{ID: "vm-1", Owner: "feed-owner"})
	f.Apply(fsm.DescribeList{Name: "feed"})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Account: "feed-owner"}, Reason: fsm.ReasonAbuse})
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}, Reason: fsm.ReasonUnpaid})
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}, Reason: fsm.ReasonAbuse, StartsAt: time.Now().Add(time.Hour)})
	const token = "billing-secret-0123456789"
	f.Apply(fsm.CreateToken{Name: "whmcs", Scope: ScopeBilling, Hash: sha256.Sum256([]byte(token))})
	s := newServer(t, f)
	for q, want := range map[string]string{"feed": "vm-1 account:feed-owner:1[]", "192.0.2.7": "vm-1", "b1": "", "b2": "block:b2"} {
		if got := summary(foundBy(t, s, q, token)); got != want {
			t.Errorf("%q: %q, want %q", q, got, want)
		}
	}
	vm := decode[wire.VMDetail](t, s.do(t, request{method: "GET", path: "/v1/vms/vm-1", token: token}), 200)
	if len(vm.Holds) != 1 || vm.Holds[0].ID != "b2" || len(vm.Pending) != 0 {
		t.Errorf("billing reads %+v, %+v", vm.Holds, vm.Pending)
	}
}

func TestAVMsOwnPage(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	f.Apply(fsm.DeclareVM{ID: "vm-1", Owner: "alice"})
	f.Apply(fsm.ObserveVM{ID: "vm-1", Name: "web", Kind: "netns", Node: "n2", Phase: fsm.PhaseIncoming, Epoch: 2})
	f.Apply(fsm.ObserveVM{ID: "vm-1", Name: "web", Kind: "netns", Node: "n2", Phase: fsm.PhaseRunning, Epoch: 2})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Account: "alice"}, Reason: fsm.ReasonAbuse, Note: "spam"})
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}, StartsAt: time.Now().Add(time.Hour)})
	vm := decode[wire.VMDetail](t, newServer(t, f).do(t, request{method: "GET", path: "/v1/vms/vm-1"}), 200)
	if len(vm.Holds) != 1 || vm.Holds[0].Note != "spam" || vm.Holds[0].Target.Account != "alice" || len(vm.Pending) != 1 || vm.Pending[0].ID != "b2" {
		t.Errorf("held by %+v, pending %+v", vm.Holds, vm.Pending)
	}
	var moves []string
	for _, m := range vm.History {
		moves = append(moves, strings.Join([]string{m.Type, m.From, m.Node, m.Destination, m.State}, ","))
	}
	if got := strings.Join(moves, " "); got != "vm.moved,n1,n2,,running vm.migrating,,n1,n2,migrating vm.observed,,n1,,running" || vm.HistorySince != 1 {
		t.Errorf("since %d: %s", vm.HistorySince, got)
	}
}

func TestTheOverviewCountsVMsByNode(t *testing.T) {
	f := newFleet(t, "n2")
	f.RunVM("vm-1", "a", "n1", "192.0.2.1")
	f.RunVM("vm-2", "b", "n1", "192.0.2.2")
	f.RunVM("vm-3", "c", "n2", "192.0.2.3")
	f.Apply(fsm.DeclareVM{ID: "vm-4"})
	f.Apply(fsm.ObserveVM{ID: "vm-2", Name: "b", Kind: "netns", Node: "n2", Phase: fsm.PhaseIncoming, Epoch: 2})
	f.Apply(fsm.ObserveVM{ID: "vm-3", Name: "c", Kind: "netns", Node: "n2", Phase: fsm.PhaseStopped, Epoch: 1})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "192.0.2.0/31")}})
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-3"}})
	got := decode[wire.Overview](t, newServer(t, f).do(t, request{method: "GET", path: "/v1/overview"}), 200)
	want := []wire.NodeOverview{
		{ID: "", VMs: 1}, {ID: "n1", VMs: 2, Running: 1, Migrating: 1, Held: 1}, {ID: "n2", VMs: 1, Arriving: 1, Stopped: 1, Held: 1},
	}
	if !slices.Equal(got.Nodes, want) || got.Index != f.View().Index() {
		t.Errorf("%+v, want %+v", got.Nodes, want)
	}
}

func TestBlocksNewestFirstAndByText(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "Web", "n1", "192.0.2.7")
	for i := range 11 {
		f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, fmt.Sprintf("203.0.113.%d", i))}, Note: fmt.Sprintf("Ticket %d", i%2)})
	}
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}, Reason: "abuse"})
	s := newServer(t, f)
	get := func(query string) (ids []string, p wire.CountedPage[wire.Block]) {
		p = decode[wire.CountedPage[wire.Block]](t, s.do(t, request{method: "GET", path: "/v1/blocks?" + query}), 200)
		for _, b := range p.Items {
			ids = append(ids, b.ID)
		}
		return ids, p
	}
	var all []string
	for cursor := ""; ; {
		ids, p := get("order=desc&limit=5&cursor=" + cursor)
		if all = append(all, ids...); p.Total != 12 {
			t.Errorf("total %d", p.Total)
		}
		if p.Next == nil {
			break
		}
		cursor = *p.Next
	}
	if got := strings.Join(all, " "); got != "b12 b11 b10 b9 b8 b7 b6 b5 b4 b3 b2 b1" {
		t.Errorf("newest first: %s", got)
	}
	for search, want := range map[string]string{"web": "b12", "ABUSE": "b12", "ticket+1": "b2 b4 b6 b8 b10", "203.0.113.10": "b11", "b7": "b7", "vm-1": "b12", "none": ""} {
		ids, p := get("search=" + search)
		if got := strings.Join(ids, " "); got != want || p.Total != len(ids) {
			t.Errorf("%q: %q of %d, want %q", search, got, p.Total, want)
		}
	}
	first, p := get("limit=1&order=desc")
	if decode[wire.Problem](t, s.do(t, request{method: "GET", path: "/v1/blocks?cursor=" + *p.Next}), 422).Code != wire.CodeInvalid || first[0] != "b12" {
		t.Error("a cursor of one order is taken in another")
	}
}
