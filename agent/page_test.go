package agent

import (
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

func newTestPager(t *testing.T, port uint16) (*pager, func(fsm.Op)) {
	t.Helper()
	store := fsm.NewStore()
	e := newEnforcer(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), store, &fakeKernel{held: map[enforce.Element]struct{}{}}, "n1", nil)
	apply := func(op fsm.Op) {
		t.Helper()
		data, err := fsm.MarshalCommand(fsm.Command{Actor: "token:a", Time: time.Unix(1000, 0), Op: op})
		if err != nil {
			t.Fatal(err)
		}
		r, err := store.ApplyBatch([]fsm.Entry{{Index: store.View().Index() + 1, Data: data}})
		if err != nil || r[0].Err != nil {
			t.Fatalf("%v, %v", err, r)
		}
	}
	return &pager{log: slog.New(slog.DiscardHandler), port: port, store: store, enforcer: e}, apply
}

func TestWhatAVisitorGets(t *testing.T) {
	p, apply := newTestPager(t, 8079)
	p.enforcer.SetLocal(func(l *enforce.Local) { l.PagePort = 8079 })
	to := netip.MustParseAddrPort("192.0.2.80:8000")
	apply(fsm.PutSettings{Settings: fsm.Settings{MaxVMs: 1, MaxAddresses: 1000, RedirectTitle: "T", RedirectText: "x", RedirectLink: "https://pay.example/"}})
	apply(fsm.DeclareVM{ID: "v1", Addresses: []netip.Prefix{netip.MustParsePrefix("203.0.113.7/32"), netip.MustParsePrefix("203.0.113.9/32")}})
	apply(fsm.DeclareVM{ID: "v2", Addresses: []netip.Prefix{netip.MustParsePrefix("203.0.113.130/32")}})
	apply(fsm.AddBlock{Target: fsm.Target{Prefix: netip.MustParsePrefix("203.0.113.0/25")}, Kind: fsm.Redirect})
	apply(fsm.AddBlock{Target: fsm.Target{Prefix: netip.MustParsePrefix("203.0.113.128/25")}, Kind: fsm.Redirect, RedirectTo: to})
	apply(fsm.AddBlock{Target: fsm.Target{Prefix: netip.MustParsePrefix("203.0.113.9/32")}})
	for addr, want := range map[string]struct {
		ok bool
		to netip.AddrPort
	}{
		"203.0.113.7": {true, netip.AddrPort{}}, "203.0.113.130": {true, to},
		"203.0.113.9": {}, "198.51.100.1": {}, "203.0.113.8": {}, // dropped, free, and of no VM
	} {
		hold, ok := p.lookup(netip.MustParseAddr(addr))
		if ok != want.ok || hold.To != want.to || ok && (hold.Title != "T" || hold.Text != "x" || hold.Link != "https://pay.example/") {
			t.Errorf("%s: %+v, %v", addr, hold, ok)
		}
	}
	// What is lifted is served for a moment only.
	apply(fsm.LiftBlock{ID: "b1"})
	addr := netip.MustParseAddr("203.0.113.7")
	p.known[addr] = lookedUp{ok: true, at: time.Now().Add(-lookupKeep)}
	if _, ok := p.lookup(addr); ok {
		t.Error("a lifted hold still has a page")
	}
}

func TestWithoutAPortThereIsNoPage(t *testing.T) {
	taken, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, text, _ := net.SplitHostPort(taken.Addr().String())
	port, _ := strconv.ParseUint(text, 10, 16)
	p, _ := newTestPager(t, uint16(port))
	p.open(t.Context())
	if p.enforcer.Local().PagePort != 0 || !strings.Contains(p.Warning(), "in use") {
		t.Errorf("the page has port %d, warning %q", p.enforcer.Local().PagePort, p.Warning())
	}
	_ = taken.Close()
	p.open(t.Context())
	defer func() { closeAll(p.listeners) }()
	if p.enforcer.Local().PagePort != uint16(port) || p.Warning() != "" {
		t.Errorf("the page has port %d, warning %q", p.enforcer.Local().PagePort, p.Warning())
	}
}
