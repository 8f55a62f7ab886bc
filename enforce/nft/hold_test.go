package nft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// holds is the testbed with a state: the guest of each endpoint is a VM with an account.
type holds struct {
	*testbed
	t        *testing.T
	store    *fsm.Store
	compiler *enforce.Compiler
	kernel   *Kernel
	local    enforce.Local
	index    uint64
}

const pagePort = 8081

func newHolds(t *testing.T) *holds {
	t.Helper()
	b := newTestbed(t)
	h := &holds{testbed: b, t: t, store: fsm.NewStore(), compiler: enforce.NewCompiler(), kernel: adopted(t, b.host.ns)}
	br0 := mac("52:54:00:00:07:01").MAC
	h.local = enforce.Local{
		Node: "n1", PagePort: pagePort,
		Bridges: enforce.MapOf(map[string]fsm.MAC{"vnet1": br0, "vnet2": br0}),
	}
	ops := []fsm.Op{fsm.PutNode{Node: fsm.Node{ID: "n1", Addresses: []netip.Addr{b.host.v4, b.host.v6}, MACs: []fsm.MAC{br0}}}}
	for i, e := range []*endpoint{b.blocked, b.innocent, b.routed} {
		nics := []fsm.NIC{{MAC: mac(fmt.Sprintf("52:54:00:00:00:%02x", i+2)).MAC, Tap: []string{"vnet1", "vnet2", "rt0"}[i], Addresses: []netip.Addr{e.v4, e.v6}}}
		h.local.NICs = h.local.NICs.With(e.name, nics)
		ops = append(ops, fsm.DeclareVM{ID: e.name, Owner: "acct-" + e.name},
			fsm.ObserveVM{ID: e.name, Name: e.name, Kind: "netns", Node: "n1", Phase: fsm.PhaseRunning, Epoch: 1, NICs: nics})
	}
	h.commit(ops...)
	for _, e := range b.all() {
		serve(t, e, 7001, "tcp")
	}
	return h
}

// serve accepts and closes connections.
func serve(t *testing.T, e *endpoint, port int, network string) {
	t.Helper()
	var l net.Listener
	e.ns.do(func() (err error) {
		l, err = net.Listen(network, fmt.Sprintf(":%d", port))
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
}

// commit applies ops as one log entry, brings them to the kernel, and returns the blocks among the results.
func (h *holds) commit(ops ...fsm.Op) []*fsm.Block {
	h.t.Helper()
	h.index++
	data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(int64(h.index), 0), Actor: "test", Op: fsm.Batch{Ops: ops}})
	if err != nil {
		h.t.Fatal(err)
	}
	results, err := h.store.ApplyBatch([]fsm.Entry{{Index: h.index, Data: data}})
	if err != nil {
		h.t.Fatal(err)
	}
	var blocks []*fsm.Block
	for _, r := range results[0].Items {
		if r.Err != nil {
			h.t.Fatal(r.Err)
		}
		if r.Block != nil {
			blocks = append(blocks, r.Block)
		}
	}
	if err := h.kernel.Apply(h.t.Context(), h.compiler.Reset(h.store.View(), h.local)); err != nil {
		h.t.Fatal(err)
	}
	return blocks
}

func (h *holds) lift(blocks []*fsm.Block) {
	h.t.Helper()
	var ops []fsm.Op
	for _, b := range blocks {
		ops = append(ops, fsm.LiftBlock{ID: b.ID})
	}
	h.commit(ops...)
}

// targets names an endpoint in every way that it can be held.
func targets(e *endpoint) map[string][]fsm.Target {
	around := func(bits4, bits6 int) []fsm.Target {
		p4, _ := e.v4.Prefix(bits4)
		p6, _ := e.v6.Prefix(bits6)
		return []fsm.Target{{Prefix: p4}, {Prefix: p6}}
	}
	return map[string][]fsm.Target{
		"VM":      {{VM: e.name}},
		"account": {{Account: "acct-" + e.name}},
		"address": around(32, 128),
		"prefix":  around(31, 127),
	}
}

func blocks(targets []fsm.Target, like fsm.AddBlock) []fsm.Op {
	var ops []fsm.Op
	for _, target := range targets {
		like.Target = target
		ops = append(ops, like)
	}
	return ops
}

// checkCut sends on every path and wants to arrive what is not cut, and nothing else.
func (h *holds) checkCut(what string, isCut func(*flow) bool) {
	h.t.Helper()
	flows := h.everyPath()
	for _, f := range flows {
		f.send(5)
	}
	for _, f := range flows {
		if !isCut(f) {
			waitFor(h.t, fmt.Sprintf("%s: %v arrived", what, f), func() bool { return f.lost() == 0 })
		}
	}
	for _, f := range flows {
		if n := f.to.received(f.id); isCut(f) && n > 0 {
			h.t.Errorf("%s: %v: %d packets leaked", what, f, n)
		}
	}
}

// towards says which flows a hold on an endpoint is about.
func towards(e *endpoint, d fsm.Direction) func(*flow) bool {
	return func(f *flow) bool { return f.to == e && d != fsm.Out || f.from == e && d != fsm.In }
}

// connect says how a TCP connection from one endpoint to another ended; nil: it was made.
func connect(from, to *endpoint, v6 bool, port int) (err error) {
	const most = 1500 * time.Millisecond
	a := to.v4
	if v6 {
		a = to.v6
	}
	from.ns.do(func() error {
		var c net.Conn
		if c, err = net.DialTimeout("tcp", netip.AddrPortFrom(a, uint16(port)).String(), most); err == nil {
			err = c.Close()
		}
		return nil
	})
	return err
}

// eachHold runs a check for bridged and routed guests, held in every way and direction. What a block
// has discarded is counted, and after it is lifted nothing is left.
func eachHold(t *testing.T, like fsm.AddBlock, directions []fsm.Direction, check func(h *holds, what string, e *endpoint, held []*fsm.Block)) {
	for _, on := range []int{0, 1} {
		t.Run(fmt.Sprintf("br_netfilter=%d", on), func(t *testing.T) {
			h := newHolds(t)
			h.brNetfilter(on)
			h.checkCut("before", func(*flow) bool { return false })
			for _, e := range []*endpoint{h.blocked, h.routed} {
				for name, target := range targets(e) {
					for _, d := range directions {
						like.Direction = d
						what := fmt.Sprintf("%s %s of the %s guest held by its %s", like.Kind, d, e.name, name)
						held := h.commit(blocks(target, like)...)
						check(h, what, e, held)
						h.checkCounted(what, held)
						h.lift(held)
						h.checkCut("after "+what, func(*flow) bool { return false })
					}
				}
			}
			if n := h.compiler.Len(); n != 0 {
				t.Errorf("%d elements are left", n)
			}
			verify(t, h.kernel)
		})
	}
}

func (h *holds) brNetfilter(on int) {
	h.host.ns.run("sysctl", "-qw", fmt.Sprintf("net.bridge.bridge-nf-call-iptables=%d", on), fmt.Sprintf("net.bridge.bridge-nf-call-ip6tables=%d", on))
}

// checkCounted wants each block to have counted what it discarded.
func (h *holds) checkCounted(what string, held []*fsm.Block) {
	h.t.Helper()
	for _, b := range held {
		counters, err := h.kernel.Counters(h.t.Context(), h.compiler.ElementsOf(b.ID))
		if err != nil {
			h.t.Fatal(err)
		}
		var sum enforce.Counter
		for _, c := range counters {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
		}
		if sum.Packets == 0 || sum.Bytes == 0 {
			h.t.Errorf("%s: %s has counted %+v", what, b.ID, sum)
		}
	}
}

var anyDirection = []fsm.Direction{fsm.Both, fsm.In, fsm.Out}

func TestDropHolds(t *testing.T) {
	eachHold(t, fsm.AddBlock{Kind: fsm.Drop}, anyDirection, func(h *holds, what string, e *endpoint, held []*fsm.Block) {
		h.checkCut(what, towards(e, held[0].Direction))
	})
}

// TestPortHolds cuts the datagrams of all flows by their port, and nothing else.
func TestPortHolds(t *testing.T) {
	like := fsm.AddBlock{Kind: fsm.Ports, Ports: []fsm.PortRange{{Protocol: 6, First: 25, Last: 25}, {Protocol: 17, First: 6990, Last: 7010}}}
	eachHold(t, like, anyDirection, func(h *holds, what string, e *endpoint, held []*fsm.Block) {
		h.checkCut(what, towards(e, held[0].Direction))
		for _, v6 := range []bool{false, true} {
			if err := errors.Join(connect(h.outside, e, v6, 7001), connect(e, h.innocent, v6, 7001)); err != nil {
				t.Errorf("%s: a port that is not held: %v", what, err)
			}
		}
	})
}

// TestRejectHolds: connections are refused at once, from either end, and innocents' are made.
func TestRejectHolds(t *testing.T) {
	eachHold(t, fsm.AddBlock{Kind: fsm.Reject}, anyDirection, func(h *holds, what string, e *endpoint, held []*fsm.Block) {
		h.checkCut(what, towards(e, held[0].Direction))
		for _, v6 := range []bool{false, true} {
			for _, from := range []*endpoint{h.innocent, h.outside, h.host} {
				for _, f := range []*flow{h.flow(from, e, v6), h.flow(e, from, v6)} {
					if !towards(e, held[0].Direction)(f) {
						continue
					}
					start := time.Now()
					err := connect(f.from, f.to, v6, 7001)
					if refused := errors.Is(err, unix.ECONNREFUSED) || f.from == h.host && errors.Is(err, unix.EPERM); !refused || time.Since(start) > 2*time.Second {
						t.Errorf("%s: %v: %v after %v, want a refusal", what, f, err, time.Since(start))
					}
				}
			}
			if err := connect(h.outside, h.innocent, v6, 7001); err != nil {
				t.Errorf("%s: innocents: %v", what, err)
			}
		}
	})
}

// TestLimitHolds sends far more than the rate, at once, in both directions and families, and wants what
// arrives to be the rate: a packet that was counted twice would halve it.
func TestLimitHolds(t *testing.T) {
	const rate, burst = 100, 100
	eachHold(t, fsm.AddBlock{Kind: fsm.Limit, Rate: fsm.Rate{Packets: rate}}, anyDirection, func(h *holds, what string, e *endpoint, held []*fsm.Block) {
		isLimited := towards(e, held[0].Direction)
		start := time.Now()
		flows := h.everyPath()
		for range 10 {
			for _, f := range flows {
				if isLimited(f) {
					f.send(20)
				} else {
					f.send(2)
				}
			}
		}
		took := time.Since(start).Seconds()
		type bucket struct {
			direction fsm.Direction
			v6        bool
		}
		got := map[bucket]int{}
		count := func(d fsm.Direction, f *flow) {
			got[bucket{d, f.v6 && len(held) > 1}] += f.to.received(f.id) // else one block has both families
		}
		for _, f := range flows {
			switch {
			case !isLimited(f):
				waitFor(h.t, fmt.Sprintf("%s: %v arrived", what, f), func() bool { return f.lost() == 0 })
			case f.to == e:
				count(fsm.In, f)
			default:
				count(fsm.Out, f)
			}
		}
		for b, n := range got {
			most := burst + int(rate*took)
			if held[0].Target.Prefix.IsValid() {
				most *= 2 // bridges and routes count addresses each by themselves
			}
			if n < burst*9/10 || n > most+burst/10 {
				t.Errorf("%s: %d packets %+v in %.2f s, want %d to %d", what, n, b, took, burst, most)
			}
		}
	})
}

// TestRedirectHolds: visitors see the page, nothing else passes.
func TestRedirectHolds(t *testing.T) {
	eachHold(t, fsm.AddBlock{Kind: fsm.Redirect}, []fsm.Direction{fsm.Both}, func(h *holds, what string, e *endpoint, held []*fsm.Block) {
		stop := h.servePage()
		defer stop()
		for _, v6 := range []bool{false, true} {
			for _, from := range []*endpoint{h.outside, h.innocent} {
				got, err := get(h.t.Context(), from, e, v6)
				if err != nil || got != "suspended" {
					t.Errorf("%s: %s visits over IPv6 %t: %q, %v", what, from.name, v6, got, err)
				}
			}
		}
		h.checkCut(what, towards(e, held[0].Direction))
	})
}

// servePage is the node's page in its simplest form.
func (h *holds) servePage() (stop func()) {
	h.t.Helper()
	return serveText(h.host, pagePort, "suspended")
}

// serveText answers every request with a text.
func serveText(e *endpoint, port int, text string) (stop func()) {
	e.ns.t.Helper()
	var l net.Listener
	e.ns.do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, text)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	return func() { _ = server.Close(); <-done }
}

// get fetches the page at an endpoint's address.
func get(ctx context.Context, from, to *endpoint, v6 bool) (string, error) {
	a := to.v4
	if v6 {
		a = to.v6
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			var failed error
			from.ns.do(func() error {
				c, failed = (&net.Dialer{}).DialContext(ctx, network, address)
				return nil
			})
			return c, failed
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+netip.AddrPortFrom(a, 80).String()+"/", nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}
