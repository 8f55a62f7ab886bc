package httpapi

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

func searchFleet(t *testing.T) *Server {
	f := newFleet(t)
	f.RunVM("vm-1", "Web-Front", "n1", "192.0.2.7", "2001:db8::7")
	f.RunVM("vm-22", "db", "n2", "192.0.2.70")
	f.RunVM("vm-333", "mail <script>", "n1", "198.51.100.9")
	f.Apply(fsm.DeclareVM{ID: "vm-22", Owner: "Alice"})
	f.Apply(fsm.DeclareVM{ID: "vm-4", Name: "spare", Owner: "bob", Addresses: []netip.Prefix{mustPrefix(t, "203.0.113.0/28")}})
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-22"}})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "192.0.2.0/24")}})
	return newServer(t, f)
}

func listed(t *testing.T, s *Server, query string) wire.CountedPage[wire.VM] {
	t.Helper()
	return decode[wire.CountedPage[wire.VM]](t, s.do(t, request{method: "GET", path: "/v1/vms?" + query}), 200)
}

func TestVMSearchFindsByWhateverIsTyped(t *testing.T) {
	s := searchFleet(t)
	for text, want := range map[string]string{
		"web-f": "vm-1", "FRONT": "vm-1", "vm-": "vm-1 vm-22 vm-333 vm-4", "alice": "vm-22", "<script>": "vm-333",
		"192.0.2.7": "vm-1", "192.0.2.": "vm-1 vm-22", "192.0.2.70": "vm-22", "192.0.2.0/24": "vm-1 vm-22", "192.0.2.9/24": "vm-1 vm-22", "19": "vm-1 vm-22 vm-333",
		"203.0.113.5": "vm-4", "203.0.113.16": "", "2.70": "vm-22", "203 alice": "", "front n1": "", "2001:DB8::7": "vm-1", "2001:db8": "vm-1", "::ffff:192.0.2.7": "vm-1", "0.0.0.0/0": "vm-1 vm-22 vm-333 vm-4",
		"52:54:00:01:02:05": "vm-22", "01:02:0": "vm-1 vm-22 vm-333", "web mail": "", "vm 192.0.2.7": "vm-1", "nothing": "", "  ": "vm-1 vm-22 vm-333 vm-4",
	} {
		if got := vmIDs(listed(t, s, "search="+url.QueryEscape(text)).Page); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	if got := vmIDs(listed(t, s, "search=vm&state=declared").Page); got != "vm-4" {
		t.Errorf("with state: %q", got)
	}
	if got := vmIDs(listed(t, s, "search=vm&node=n1&blocked=true").Page); got != "vm-1" {
		t.Errorf("with node and blocked: %q", got)
	}
}

func TestVMsInEveryOrderAndOnPages(t *testing.T) {
	s := searchFleet(t)
	for query, want := range map[string]string{
		"sort=id&order=desc": "vm-4 vm-333 vm-22 vm-1", "sort=name": "vm-1 vm-22 vm-333 vm-4", "sort=name&order=desc": "vm-4 vm-333 vm-22 vm-1",
		"sort=node": "vm-4 vm-1 vm-333 vm-22", "sort=owner": "vm-1 vm-333 vm-22 vm-4", "sort=state": "vm-4 vm-1 vm-22 vm-333",
		"sort=holds": "vm-333 vm-4 vm-1 vm-22", "sort=holds&order=desc": "vm-22 vm-1 vm-4 vm-333", "sort=holds&search=vm&node=n1": "vm-333 vm-1",
	} {
		for limit := 1; limit <= 5; limit++ {
			var all []string
			for cursor := ""; ; {
				p := listed(t, s, fmt.Sprintf("%s&limit=%d&cursor=%s", query, limit, cursor))
				all = append(all, strings.Fields(vmIDs(p.Page))...)
				if p.Total != len(strings.Fields(want)) || len(p.Items) > limit {
					t.Fatalf("%s: total %d, %d items", query, p.Total, len(p.Items))
				}
				if p.Next == nil {
					break
				}
				cursor = *p.Next
			}
			if got := strings.Join(all, " "); got != want {
				t.Errorf("%s, %d a page: %q, want %q", query, limit, got, want)
			}
		}
	}
	first := listed(t, s, "sort=name&limit=1")
	for _, bad := range []string{"sort=owner&cursor=" + *first.Next, "cursor=" + *first.Next, "sort=name&cursor=" + encodeCursor("vm-name", "0:99:x"), "sort=name&cursor=" + encodeCursor("vm-name", "x")} {
		if p := decode[wire.Problem](t, s.do(t, request{method: "GET", path: "/v1/vms?" + bad}), 422); p.Errors[0].Location != "query.cursor" {
			t.Errorf("%s: %+v", bad, p)
		}
	}
}

func TestTheIndexFollowsTheState(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	f.RunVM("vm-2", "db", "n1", "192.0.2.8")
	s := newServer(t, f)
	expect := func(text, want string) {
		t.Helper()
		if got := vmIDs(listed(t, s, "search="+text).Page); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	expect("web", "vm-1")
	for i := range 20 { // so that old records are thrown away
		f.Apply(fsm.DeclareVM{ID: "vm-1", Name: fmt.Sprintf("name-%d", i), Owner: "alice"})
		expect(fmt.Sprintf("name-%d", i), "vm-1")
		expect("web", "")
	}
	expect("name-1", "vm-1")
	expect("name-3", "")
	f.Apply(fsm.DeclareVM{ID: "vm-3", Name: "web"})
	expect("web", "vm-3")
	expect("db", "vm-2")
	if size := len(s.index.text); size > 1000 {
		t.Errorf("the index of three VMs takes %d bytes", size)
	}
}

// bigFleet is 100,000 VMs of 2,000 owners on 100 nodes, and 3,000 active blocks.
func bigFleet(t testing.TB) *fleet {
	f := newFleet(t)
	var ops fsm.Batch
	apply := func() { f.Apply(ops); ops.Ops = nil }
	for i := range 100_000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		ops.Ops = append(ops.Ops, fsm.ObserveVM{ID: fmt.Sprintf("%08x-0000-4000-8000-%012x", i*2654435761%(1<<32), i), Name: fmt.Sprintf("web-%d.customer-%d.example", i, i%2000), Kind: "kvm", Node: fmt.Sprintf("node%03d", i%100),
			Phase: fsm.PhaseRunning, Epoch: 1, NICs: []fsm.NIC{{MAC: fsm.MAC{0x52, 0x54, 0, byte(i >> 16), byte(i >> 8), byte(i)}, Tap: "vnet0", Addresses: []netip.Addr{a}}}})
		if len(ops.Ops) == 5000 {
			apply()
		}
	}
	for i := range 3000 {
		ops.Ops = append(ops.Ops, fsm.AddBlock{Target: fsm.Target{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)}})
	}
	apply()
	return f
}

// BenchmarkListVMs is a page of 100 out of 100,000 VMs, as the web UI asks for it.
func BenchmarkListVMs(b *testing.B) {
	s := newServer(b, bigFleet(b))
	for _, query := range []string{"", "sort=name", "sort=name&order=desc&search=web-7", "search=10.0.7.9", "search=10.0.7", "search=52:54:00:01", "search=customer-17+10.0", "sort=holds&order=desc", "blocked=true&sort=node", "search=nothing"} {
		b.Run(query, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				start := time.Now()
				if got := s.do(b, request{method: "GET", path: "/v1/vms?" + query}); got.StatusCode != http.StatusOK {
					b.Fatal(got.StatusCode)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*95/100].Microseconds())/1e3, "p95-ms")
		})
	}
}
