package nft

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

const (
	protocolTCP, protocolUDP = 6, 17
	explainRounds            = 25
	explainPackets           = 20
)

// TestExplainIsWhatThePacketsMeet draws holds of all kinds and targets, and compares what is explained of every
// path with what becomes of real datagrams, connections and requests there.
func TestExplainIsWhatThePacketsMeet(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	h := newHolds(t)
	stop := h.servePage()
	defer stop()
	seen := map[fsm.Verdict]int{}
	for range explainRounds {
		var ops []fsm.Op
		for range 1 + random.IntN(4) {
			ops = append(ops, randomHold(random, h))
		}
		held := h.commit(ops...)
		h.compare(held, seen)
		h.lift(held)
		if t.Failed() {
			break
		}
	}
	t.Logf("verdicts %v", seen)
	if seen[fsm.VerdictPass] == 0 || seen[fsm.VerdictDrop] == 0 {
		t.Errorf("this was no test: %v", seen)
	}
}

func randomHold(random *rand.Rand, h *holds) fsm.AddBlock {
	pick := func(n int) int { return random.IntN(n) }
	e := []*endpoint{h.blocked, h.routed, h.outside}[pick(3)]
	b := fsm.AddBlock{
		Kind:      []fsm.Kind{fsm.Drop, fsm.Reject, fsm.Redirect, fsm.Redirect, fsm.Limit, fsm.Ports}[pick(6)],
		Direction: anyDirection[pick(3)], Force: true,
	}
	switch b.Kind {
	case fsm.Redirect:
		b.Direction = fsm.Both
	case fsm.Limit:
		b.Rate.Packets = 1
	case fsm.Ports:
		b.Ports = [][]fsm.PortRange{
			{{Protocol: protocolUDP, First: 6990, Last: 7010}}, {{Protocol: protocolUDP, First: 53, Last: 53}},
			{{Protocol: protocolTCP, First: 7001, Last: 7001}}, {{Protocol: protocolUDP}},
		}[pick(4)]
	default:
	}
	list := []fsm.Target{{Prefix: netip.PrefixFrom(e.v4, 32)}, {Prefix: netip.PrefixFrom(e.v6, 128)}}
	wide := 31 // the guests' are beside guarded addresses
	if e == h.outside {
		wide = 25 + pick(7) // not around the address that the host has there
	}
	if p, err := e.v4.Prefix(wide); err == nil {
		list = append(list, fsm.Target{Prefix: p})
	}
	if e != h.outside {
		list = append(list, fsm.Target{VM: e.name}, fsm.Target{Account: "acct-" + e.name}, fsm.Target{VM: e.name})
	}
	b.Target = list[pick(len(list))]
	return b
}

func (h *holds) explain(from, to *endpoint, v6 bool, protocol uint8, port uint16) fsm.Explanation {
	p := fsm.Packet{Src: from.v4, Dst: to.v4, Protocol: protocol, DstPort: port}
	if v6 {
		p.Src, p.Dst = from.v6, to.v6
	}
	return enforce.Explain(h.store.View(), h.local, p)
}

// compare sends on every path.
func (h *holds) compare(held []*fsm.Block, seen map[fsm.Verdict]int) {
	h.t.Helper()
	var texts strings.Builder
	for _, b := range held {
		fmt.Fprintf(&texts, "%s %s %s of %s %v; ", b.ID, b.Kind, b.Direction, b.Target, b.Ports)
	}
	what := texts.String()
	flows := h.everyPath()
	verdicts := map[*flow]fsm.Explanation{}
	for _, f := range flows {
		verdicts[f] = h.explain(f.from, f.to, f.v6, protocolUDP, port)
		f.send(explainPackets)
	}
	for _, f := range flows {
		if verdicts[f].Verdict == fsm.VerdictPass {
			waitFor(h.t, fmt.Sprintf("%s%v arrived", what, f), func() bool { return f.lost() == 0 })
		}
	}
	for _, f := range flows {
		e := verdicts[f]
		seen[e.Verdict]++
		switch n := f.to.received(f.id); e.Verdict {
		case fsm.VerdictDrop, fsm.VerdictReject:
			if n > 0 {
				h.t.Errorf("%s%v is explained as %s (%s), %d packets passed", what, f, e.Verdict, e.Why, n)
			}
		case fsm.VerdictLimit:
			if n == explainPackets {
				h.t.Errorf("%s%v is explained as %s (%s), all packets passed", what, f, e.Verdict, e.Why)
			}
		case fsm.VerdictRedirect:
			h.t.Errorf("%s%v: datagrams are redirected", what, f)
		default:
		}
		h.compareTCP(what, f, seen)
	}
}

// compareTCP connects where it does not depend on what becomes of the answers. What is dropped is left
// to the datagrams: to wait for nothing takes long.
func (h *holds) compareTCP(what string, f *flow, seen map[fsm.Verdict]int) {
	h.t.Helper()
	back := h.explain(f.to, f.from, f.v6, protocolTCP, 40000)
	e := h.explain(f.from, f.to, f.v6, protocolTCP, 7001)
	switch {
	case e.Verdict == fsm.VerdictPass && back.Verdict == fsm.VerdictPass:
		if err := connect(f.from, f.to, f.v6, 7001); err != nil {
			h.t.Errorf("%sa connection, %v, is explained to pass: %v", what, f, err)
		}
	case e.Verdict == fsm.VerdictReject && (back.Verdict == fsm.VerdictPass || back.Verdict == fsm.VerdictReject):
		seen[e.Verdict]++
		err := connect(f.from, f.to, f.v6, 7001)
		if refused := errors.Is(err, unix.ECONNREFUSED) || f.from == h.host && errors.Is(err, unix.EPERM); !refused {
			h.t.Errorf("%sa connection, %v, is explained to be rejected (%s): %v", what, f, e.Why, err)
		}
	}
	web := h.explain(f.from, f.to, f.v6, protocolTCP, 80)
	// A node's own visits are not its guests' visitors'.
	if web.Verdict != fsm.VerdictRedirect || f.from == h.host {
		return
	}
	for _, h := range slices.Concat(web.Holds, back.Holds) {
		// One packet a second is too little for a visit, and what comes back may meet other holds.
		if h.Kind != fsm.Redirect {
			return
		}
	}
	if slices.ContainsFunc(back.Holds, func(h fsm.ExplainedHold) bool { return h.Direction == fsm.In }) {
		return
	}
	seen[web.Verdict]++
	if got, err := get(h.t.Context(), f.from, f.to, f.v6); err != nil || got != "suspended" {
		h.t.Errorf("%sa visit, %v, is explained to be redirected (%s): %q, %v", what, f, web.Why, got, err)
	}
}
