package nft

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
)

// arpWatch counts ARP that a namespace is about to take.
const arpWatch = `table arp watch {
	counter heard { }
	chain input { type filter hook input priority 300; counter name heard; }
}`

// TestARPWithoutABridge: ARP between a node and a guest that it routes to is cut with all else, each way by itself. What
// answers lets it pass, as on bridges.
func TestARPWithoutABridge(t *testing.T) {
	b := newTestbed(t)
	host, guest := b.host.ns, b.routed.ns
	for _, n := range []netNS{host, guest} {
		n.runInput(arpWatch, "nft", "-f", "-")
	}
	k := adopted(t, host)
	heard := func(n netNS) bool {
		return !strings.Contains(n.run("nft", "reset", "counter", "arp", "watch", "heard"), "packets 0 ")
	}
	// ask asks for the hardware address of somebody who does not exist, so that nobody answers.
	ask := func(n netNS, dev string) {
		n.run("ip", "neigh", "replace", "10.8.0.77", "dev", dev, "nud", "none", "use")
		n.run("ip", "neigh", "del", "10.8.0.77", "dev", dev)
	}
	fromGuest := func() { ask(guest, "eth0") }
	toGuest := func() { ask(host, "rt0") }
	for i, c := range []struct {
		treatment enforce.Treatment
		from, to  bool // what is cut
	}{
		{"reject_in", false, false},
		{"redirect_out", false, false},
		{"in", false, true},
		{"out", true, false},
		{"", true, true},
	} {
		held := as(c.treatment, tap("rt0"))
		apply(t, k, uint64(2*i+1), held, nil)
		for _, way := range []struct {
			name string
			cut  bool
			ask  func()
			at   netNS
		}{{"from the guest", c.from, fromGuest, host}, {"to the guest", c.to, toGuest, guest}} {
			before := dropped(t, k, held)
			heard(way.at)
			if !way.cut {
				waitFor(t, string(c.treatment)+": ARP passes "+way.name, func() bool { way.ask(); return heard(way.at) })
				continue
			}
			waitFor(t, string(c.treatment)+": ARP is dropped "+way.name, func() bool { way.ask(); return dropped(t, k, held) >= before+3 })
			if heard(way.at) {
				t.Errorf("%q: ARP passes %s", c.treatment, way.name)
			}
		}
		apply(t, k, uint64(2*i+2), nil, held)
	}
	for _, way := range []struct {
		ask func()
		at  netNS
	}{{fromGuest, host}, {toGuest, guest}} {
		waitFor(t, "ARP passes after the holds", func() bool { way.ask(); return heard(way.at) })
	}
}

func dropped(t *testing.T, k *Kernel, held []enforce.Element) uint64 {
	t.Helper()
	counters, err := k.Counters(t.Context(), held)
	if err != nil {
		t.Fatal(err)
	}
	return counters[held[0]].Packets
}

// TestWithoutARP: a kernel that has no tables for ARP enforces all else, and that is said. One that has gets them beside
// what an earlier life without them left.
func TestWithoutARP(t *testing.T) {
	n := newNetNS(t)
	var log bytes.Buffer
	k := open(t, n, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	const gone = family(unix.NFPROTO_DECNET) // no kernel has tables for it
	if err := k.choose(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "CONFIG_NF_TABLES_ARP") {
		t.Errorf("not said: %q", log.String())
	}
	if _, err := k.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.adopted = true
	all := slices.Concat(story(), kindStory())
	apply(t, k, 1, all, nil)
	verify(t, k)
	if d, err := k.Check(t.Context()); err != nil || !d.None() {
		t.Errorf("check: %+v, %v", d, err)
	}
	if out := n.run("nft", "list", "tables"); strings.Contains(out, "arp") {
		t.Errorf("there is a table:\n%s", out)
	}
	k = open(t, n)
	if h := adopt(t, k); h.Intact || len(h.Elements) != len(all) || h.Index != 1 {
		t.Errorf("intact %t, %d of %d elements, index %d", h.Intact, len(h.Elements), len(all), h.Index)
	}
	verify(t, k)
	if out := n.run("nft", "list", "set", "arp", "palisade", "taps"); !strings.Contains(out, `"vnet1"`) {
		t.Errorf("ARP lacks what is held:\n%s", out)
	}
	if h := adopt(t, open(t, n)); !h.Intact {
		t.Error("not intact after that")
	}
}
