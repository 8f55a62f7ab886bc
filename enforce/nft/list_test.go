package nft

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// listState is a replicated state with lists.
type listState struct {
	t     interface{ Fatal(args ...any) }
	store *fsm.Store
	index uint64
}

func newListState(t interface{ Fatal(args ...any) }) *listState {
	return &listState{t: t, store: fsm.NewStore()}
}

func (s *listState) do(op fsm.Op) fsm.Result {
	s.index++
	data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(1_700_000_000, 0), Actor: "test", Op: op})
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := s.store.ApplyBatch([]fsm.Entry{{Index: s.index, Data: data}})
	if err != nil {
		s.t.Fatal(err)
	}
	return r[0]
}

func (s *listState) put(name string, list []netip.Prefix) {
	var b fsm.PrefixSetBuilder
	for _, p := range list {
		b.Add(p)
	}
	set, _ := b.Set()
	id := fmt.Sprint("u", s.index)
	s.do(fsm.BeginList{Upload: id, Name: name})
	seq := uint32(0)
	for part := range set.Packed(1 << 20) {
		s.do(fsm.AddListChunk{Upload: id, Sequence: seq, Prefixes: part})
		seq++
	}
	if r := s.do(fsm.CommitList{Upload: id, Force: true}); r.Err != nil {
		s.t.Fatal(r.Err)
	}
}

func (s *listState) hold(name string, d fsm.Direction) string {
	r := s.do(fsm.AddBlock{Target: fsm.Target{List: name}, Direction: d, Force: true})
	if r.Err != nil {
		s.t.Fatal(r.Err)
	}
	return r.Block.ID
}

func (s *listState) compiled(guards ...netip.Prefix) *enforce.Lists {
	return enforce.CompileLists(s.store.View(), enforce.Local{Guards: guards})
}

func (s *listState) change(guards ...netip.Prefix) ListChange {
	return ListChange{Lists: s.compiled(guards...), Index: s.index, Remove: true}
}

func openLists(t testing.TB, n netNS, change ...func(*Options)) *Lists {
	t.Helper()
	o := Options{NetNS: n.fd, Logger: testLogger(t.Output())}
	for _, c := range change {
		c(&o)
	}
	k, err := OpenLists(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func bring(t testing.TB, k *Lists, c ListChange) {
	t.Helper()
	if err := k.Bring(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

// inKernel is what the rules of each table look into.
func inKernel(t interface{ Fatal(args ...any) }, n netNS) map[family]map[enforce.ListElement]bool {
	w, err := dial(n.fd, 4<<20, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.close() }()
	in, err := w.readLists(context.Background(), listTables(), "palisade_lists")
	if err != nil || !in.ruled || in.exists && !in.sound {
		t.Fatal(fmt.Sprintf("the tables are not sound: %+v, %v", in, err))
	}
	return dumpLists(t, w, in)
}

func dumpLists(t interface{ Fatal(args ...any) }, w *wire, in listFindings) map[family]map[enforce.ListElement]bool {
	all := map[family]map[enforce.ListElement]bool{}
	for _, f := range []family{bridge, inet} {
		all[f] = map[enforce.ListElement]bool{}
		for _, s := range in.used {
			request := appendElementList(nil, "palisade_lists", s.name)
			err := w.dump(context.Background(), unix.NFT_MSG_GETSETELEM, f, request, func(b []byte) {
				eachElement(b, func(e element) {
					a, _ := netip.AddrFromSlice(e.key[:s.base.base.keyLen()])
					p := netip.PrefixFrom(a, int(s.base.base.bits))
					if p != p.Masked() {
						t.Fatal("no packet matches " + p.String())
					}
					all[f][enforce.ListElement{Direction: s.base.direction, Prefix: p}] = true
				})
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return all
}

func elementsOf(l *enforce.Lists) map[enforce.ListElement]bool {
	all := map[enforce.ListElement]bool{}
	for e := range l.All() {
		all[e] = true
	}
	return all
}

func TestListPackets(t *testing.T) {
	b := newTestbed(t)
	k := openLists(t, b.host.ns)
	s := newListState(t)
	// What the packets of each flow must do.
	type rule func(f *flow) (dropped bool)
	check := func(what string, dropped rule) {
		t.Helper()
		flows := b.everyPath()
		for _, f := range flows {
			f.send(20)
		}
		for _, f := range flows {
			if !dropped(f) {
				waitFor(t, what+": all of "+f.String()+" arrived", func() bool { return f.lost() == 0 })
			}
		}
		for _, f := range flows {
			if n := f.to.received(f.id); dropped(f) && n > 0 {
				t.Errorf("%s: %v: %d packets leaked", what, f, n)
			}
		}
	}
	from := func(e *endpoint, f *flow) bool { return f.from == e }
	to := func(e *endpoint, f *flow) bool { return f.to == e }
	p := netip.MustParsePrefix

	// Prefixes of all lengths around the guest outside, the guest on the bridge, and the routed one.
	s.put("feed", []netip.Prefix{p("10.9.0.128/25"), p("fd09::8000/113"), p("10.7.0.2/32"), p("fd07::2/128"), p("198.51.100.0/24")})
	id := s.hold("feed", fsm.Out)
	bring(t, k, s.change())
	check("out", func(f *flow) bool { return from(b.outside, f) || from(b.blocked, f) })
	s.do(fsm.LiftBlock{ID: id})
	id = s.hold("feed", fsm.In)
	bring(t, k, s.change())
	check("in", func(f *flow) bool { return to(b.outside, f) || to(b.blocked, f) })
	second := s.hold("feed", fsm.Out)
	bring(t, k, s.change())
	either := func(f *flow) bool {
		return from(b.outside, f) || from(b.blocked, f) || to(b.outside, f) || to(b.blocked, f)
	}
	check("in and out by two holds", either)
	s.do(fsm.LiftBlock{ID: second})
	s.do(fsm.LiftBlock{ID: id})
	bring(t, k, s.change())
	check("lifted", func(*flow) bool { return false })

	// A guard inside of a listed prefix passes, and nothing else of the prefix does.
	s.put("wide", []netip.Prefix{p("10.7.0.0/16"), p("fd07::/32")})
	s.hold("wide", fsm.Both)
	guards := []netip.Prefix{p("10.7.0.5/32"), p("fd07::5/128"), p("10.7.0.1/32"), p("fd07::1/128")}
	bring(t, k, s.change(guards...))
	check("guards in a listed prefix", func(f *flow) bool { return from(b.blocked, f) || to(b.blocked, f) })

	// With a set for every length, more than one rule can look into: one finds the guest by the longest,
	// one by another.
	s.do(fsm.LiftBlock{ID: "b4"})
	var every []netip.Prefix
	for bits := 9; bits <= 32; bits++ {
		every = append(every, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(20 + bits)}), bits))
	}
	for bits := 17; bits <= 128; bits++ {
		every = append(every, netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, byte(bits)}), bits))
	}
	for name, guest := range map[string][]netip.Prefix{
		"longest": {p("10.7.0.2/32"), p("fd07::2/128")}, "wider": {p("10.7.0.2/31"), p("fd07::2/127")},
	} {
		s.put("every", append(slices.Clone(every), guest...))
		ids := []string{s.hold("every", fsm.Both), s.hold("every", fsm.Out)}
		bring(t, k, s.change(guards...))
		check("every length, the guest by the "+name, func(f *flow) bool { return from(b.blocked, f) || to(b.blocked, f) })
		for _, id := range ids {
			s.do(fsm.LiftBlock{ID: id})
		}
	}
}

// TestListHits: what was dropped is counted by address, once on its way through the node, in the direction in which
// it was dropped, and nothing else is; and what another program makes of the sets is put right.
func TestListHits(t *testing.T) {
	b := newTestbed(t)
	k := openLists(t, b.host.ns)
	s := newListState(t)
	s.put("feed", []netip.Prefix{netip.MustParsePrefix("10.7.0.0/29"), netip.MustParsePrefix("fd07::/125")})
	s.hold("feed", fsm.Out)
	guards := []netip.Prefix{netip.PrefixFrom(b.innocent.v4, 32), netip.PrefixFrom(b.innocent.v6, 128), netip.MustParsePrefix("10.7.0.1/32"), netip.MustParsePrefix("fd07::1/128")}
	bring(t, k, s.change(guards...))
	sum := map[netip.Addr]uint64{}
	read := func() {
		t.Helper()
		hits, err := k.Hits(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range hits {
			if !h.Source || h.Bytes < 28*h.Packets {
				t.Errorf("%+v", h)
			}
			sum[h.Address] += h.Packets
		}
	}
	blocked := func(f *flow) bool { return f.from == b.blocked }
	for round := 1; round <= 3; round++ {
		want := map[netip.Addr]uint64{}
		for _, f := range b.everyPath() {
			f.send(20)
			if blocked(f) && f.v6 {
				want[b.blocked.v6] += 20
			} else if blocked(f) {
				want[b.blocked.v4] += 20
			}
		}
		clear(sum)
		for addr, n := range want {
			waitFor(t, fmt.Sprintf("round %d: %d packets from %s are counted", round, n, addr), func() bool { read(); return sum[addr] >= n })
		}
		if read(); sum[b.blocked.v4] != want[b.blocked.v4] || len(want) != 2 {
			t.Errorf("counted %v, want %v", sum, want)
		}
		for addr := range sum {
			if addr != b.blocked.v4 && addr != b.blocked.v6 {
				t.Errorf("%d packets of %s, which is not dropped", sum[addr], addr)
			}
		}
		// Another program empties the sets, or makes others of them.
		b.host.ns.run("nft", "flush", "set", "bridge", "palisade_lists", "hits_source_4")
		read()
		if round == 2 {
			b.host.ns.runInput("flush chain inet palisade_lists hit_source_6\ndelete set inet palisade_lists hits_source_6\nadd set inet palisade_lists hits_source_6 { type ipv4_addr; }\n", "nft", "-f", "-")
			if err := k.Check(t.Context()); err == nil {
				t.Fatal("nobody noticed")
			}
			bring(t, k, s.change(guards...))
		}
	}
}

// TestMoreHitsThanAreCounted: beyond the size of the sets, packets are dropped all the same.
func TestMoreHitsThanAreCounted(t *testing.T) {
	b := newTestbed(t)
	k := openLists(t, b.host.ns)
	s := newListState(t)
	s.put("feed", []netip.Prefix{netip.MustParsePrefix("50.0.0.0/8"), netip.PrefixFrom(b.blocked.v4, 32)})
	s.hold("feed", fsm.Out)
	bring(t, k, s.change())
	var socket int
	b.blocked.ns.do(func() (err error) { socket, err = packetSocket("eth0"); return err })
	defer func() { _ = unix.Close(socket) }()
	for i := range hitsSize + 1000 {
		packet := ip4(0, make([]byte, 26))
		copy(packet[12:], []byte{50, 0, byte(i >> 8), byte(i)})
		if _, err := unix.Write(socket, frame(0, packet, 0x0800)); err != nil {
			t.Fatal(err)
		}
	}
	flows := b.everyPath()
	for _, f := range flows {
		f.send(20)
	}
	for _, f := range flows {
		if f.from == b.blocked && !f.v6 {
			continue
		}
		waitFor(t, "all of "+f.String()+" arrived", func() bool { return f.lost() == 0 })
	}
	for _, f := range flows {
		if f.from == b.blocked && !f.v6 && f.to.received(f.id) > 0 {
			t.Errorf("%v leaked", f)
		}
	}
	hits, err := k.Hits(t.Context())
	if err != nil || len(hits) < hitsSize/2 || len(hits) > hitsSize+16 {
		t.Errorf("%d addresses are counted, %v", len(hits), err)
	}
}

// TestListReplacedUnderLoad replaces contents, in part and whole, while packets of a guest that every
// content names, and of one that none does, flow on all paths.
func TestListReplacedUnderLoad(t *testing.T) {
	b := newTestbed(t)
	k := openLists(t, b.host.ns)
	s := newListState(t)
	own := []netip.Prefix{netip.MustParsePrefix("10.7.0.2/32"), netip.MustParsePrefix("fd07::/125")}
	guard := []netip.Prefix{netip.MustParsePrefix("fd07::1/128"), netip.MustParsePrefix("fd07::5/128")}
	many := func(net byte, n int) []netip.Prefix {
		list := slices.Clone(own)
		for i := range n {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{net, byte(i >> 15), byte(i >> 7), byte(i << 1)}), 32))
			if i%10 == 0 {
				list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{net + 1, byte(i >> 8), byte(i), 0}), 24))
			}
		}
		return list
	}
	s.put("feed", own)
	s.hold("feed", fsm.Both)
	bring(t, k, s.change(guard...))
	var blocked, innocent []*flow
	for _, f := range b.everyPath() {
		if f.from == b.blocked || f.to == b.blocked {
			blocked = append(blocked, f)
		} else {
			innocent = append(innocent, f)
		}
	}
	stop := flood(append(slices.Clone(blocked), innocent...)...)
	for i := range 6 {
		s.put("feed", many(byte(20+10*i), 12_000)) // anew
		bring(t, k, s.change(guard...))
		s.put("feed", many(byte(20+10*i), 11_900)) // in place
		bring(t, k, s.change(guard...))
		again := openLists(t, b.host.ns) // another life, with another content
		s.put("feed", many(byte(22+10*i), 6000))
		bring(t, again, s.change(guard...))
		_ = k.Close()
		k = again
		s.put("feed", own)
		bring(t, k, s.change(guard...))
	}
	stop()
	for _, f := range blocked {
		if n := f.to.received(f.id); n > 0 {
			t.Errorf("%v: %d of %d packets leaked", f, n, f.sent)
		}
	}
	for _, f := range innocent {
		waitFor(t, "all of "+f.String()+" arrived", func() bool { return f.lost() == 0 })
	}
}

func TestListsRestart(t *testing.T) {
	n := newNetNS(t)
	s := newListState(t)
	var list []netip.Prefix
	for i := range 30_000 {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 15), byte(i >> 7), byte(i << 1)}), 32-i%2))
	}
	s.put("feed", list)
	s.hold("feed", fsm.Both)
	k := openLists(t, n)
	bring(t, k, s.change())
	before := n.run("nft", "list", "sets", "bridge")
	_ = k.Close()

	k = openLists(t, n)
	if index, err := k.Index(t.Context()); err != nil || index != s.index {
		t.Fatalf("the kernel stands for index %d (%v), want %d", index, err, s.index)
	}
	bring(t, k, s.change())
	if after := n.run("nft", "list", "sets", "bridge"); after != before {
		t.Error("a restart with an unchanged content loaded it again")
	}
	if err := k.Check(t.Context()); err != nil {
		t.Errorf("an intact kernel was found to be changed: %v", err)
	}
	for _, c := range []struct {
		what string
		nft  string
	}{
		{"a set is flushed", "flush set inet palisade_lists both_a4_32"},
		{"rules are flushed", "flush chain bridge palisade_lists prerouting"},
		{"a table is gone", "delete table bridge palisade_lists"},
		{"the other table is gone", "delete table inet palisade_lists"},
		{"a table sleeps", "add table inet palisade_lists { flags dormant; }"},
		{"everything is flushed", "flush ruleset"},
		{"the marker is flushed", "flush set inet palisade_lists enforced"},
		{"the set has another type", "delete table inet palisade_lists; add table inet palisade_lists; add set inet palisade_lists both_a4_32 { type ipv6_addr; }; add set inet palisade_lists enforced { type ipv4_addr; }; add chain inet palisade_lists prerouting { type filter hook prerouting priority 7; policy accept; }"},
	} {
		n.runInput(strings.ReplaceAll(c.nft, "; add ", "\nadd "), "nft", "-f", "-")
		if err := k.Check(t.Context()); err == nil {
			t.Errorf("%s: not noticed", c.what)
		}
		bring(t, k, s.change())
		want := elementsOf(s.compiled())
		for f, got := range inKernel(t, n) {
			if !maps.Equal(got, want) {
				t.Fatalf("%s: %s holds %d elements afterwards, want %d", c.what, f, len(got), len(want))
			}
		}
	}
	s.do(fsm.LiftBlock{ID: "b1"})
	bring(t, k, s.change())
	for f, got := range inKernel(t, n) {
		if len(got) > 0 {
			t.Errorf("%s holds %d elements of no list", f, len(got))
		}
	}
	if err := k.Bring(t.Context(), ListChange{Lists: s.compiled(), Index: 1}); err == nil {
		t.Error("the kernel went back to an older index")
	}
}

// A node that has not caught up may need what an earlier life dropped.
func TestListsReleaseGuards(t *testing.T) {
	n := newNetNS(t)
	s := newListState(t)
	p := netip.MustParsePrefix
	s.put("feed", []netip.Prefix{p("192.0.2.0/29"), p("198.51.100.7/32"), p("203.0.113.0/24")})
	s.hold("feed", fsm.Out)
	bring(t, openLists(t, n), s.change())
	k := openLists(t, n)
	if err := k.Release(t.Context(), []netip.Prefix{p("192.0.2.1/32"), p("198.51.100.7/32"), p("10.0.0.0/8")}); err != nil {
		t.Fatal(err)
	}
	want := map[enforce.ListElement]bool{}
	for _, s := range []string{"192.0.2.0/32", "192.0.2.2/31", "192.0.2.4/30", "203.0.113.0/24"} {
		want[enforce.ListElement{Direction: fsm.Out, Prefix: p(s)}] = true
	}
	for f, got := range inKernel(t, n) {
		if !maps.Equal(got, want) {
			t.Errorf("%s holds %v, want %v", f, got, want)
		}
	}
	// In the end it is what the state says.
	bring(t, k, s.change(p("192.0.2.1/32")))
	for f, got := range inKernel(t, n) {
		if want := elementsOf(s.compiled(p("192.0.2.1/32"))); !maps.Equal(got, want) {
			t.Errorf("%s holds %v, want %v", f, got, want)
		}
	}
}

// An urgent block must not wait for a list.
func TestUrgentBlockDuringALoad(t *testing.T) {
	n := newNetNS(t)
	s := newListState(t)
	var list []netip.Prefix
	for i := range 200_000 {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 15), byte(i >> 7), byte(i << 1)}), 32))
	}
	s.put("feed", list)
	s.hold("feed", fsm.Both)
	k, urgent := openLists(t, n), adopted(t, n)
	loaded := make(chan error, 1)
	go func() { loaded <- k.Bring(t.Context(), s.change()) }()
	var waits []time.Duration
	for i := uint64(1); ; i++ {
		select {
		case err := <-loaded:
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(waits)
			median, worst := waits[len(waits)/2], waits[len(waits)-1]
			t.Logf("%d blocks during the load: median %s, worst %s", len(waits), median, worst)
			if median > 10*time.Millisecond {
				t.Errorf("an urgent block took %s (median) while a list was loaded, want at most 10 ms", median)
			}
			return
		default:
		}
		begin := time.Now()
		apply(t, urgent, i, elements(prefix(fmt.Sprintf("192.0.2.%d", i%250))), nil)
		waits = append(waits, time.Since(begin))
	}
}

// TestLargeSetsAreCreatedOneByOne: the kernel clears the buckets of a new set while everybody waits, so a transaction has at
// most one that is large.
func TestLargeSetsAreCreatedOneByOne(t *testing.T) {
	n := newNetNS(t)
	s := newListState(t)
	var list []netip.Prefix
	for i := range 40_000 {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 13), byte(i >> 5), byte(i << 3)}), 29+i%4))
	}
	s.put("feed", list)
	s.hold("feed", fsm.Both)
	k := openLists(t, n)
	monitor := exec.Command("nsenter", "--net="+n.path(), "nft", "monitor")
	out, err := monitor.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := monitor.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = monitor.Process.Kill(), monitor.Wait() })
	news := bufio.NewScanner(out)
	for seen := false; !seen; { // the monitor listens
		n.run("nft", "add", "table", "ip", "x")
		n.run("nft", "delete", "table", "ip", "x")
		seen = news.Scan()
	}
	loaded := make(chan error, 1)
	go func() {
		loaded <- k.Bring(t.Context(), s.change())
		n.run("nft", "add", "table", "ip", "over")
	}()
	sets, most := 0, 0
	for here := 0; news.Scan() && !strings.Contains(news.Text(), "over"); {
		switch line := news.Text(); {
		case strings.HasPrefix(line, "# new generation"):
			here = 0
		case strings.HasPrefix(line, "add set") && strings.Contains(line, " both_a4_"):
			sets++
			here++
			most = max(most, here)
		}
	}
	if err := <-loaded; err != nil || sets != 8 || most != 1 {
		t.Errorf("%d large sets came, up to %d of them at once: %v", sets, most, err)
	}
}

// State and enforcement of a list together take at most 64 bytes of the process for an entry, of either family.
func TestListsAreSmall(t *testing.T) {
	for _, family := range []int{4, 6} {
		const entries = 200_000
		n := newNetNS(t)
		heap := func() uint64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before := heap()
		s := newListState(t)
		list := make([]netip.Prefix, 0, entries)
		for i := range entries {
			a := [16]byte{0x20, 1, byte(i >> 16), byte(i >> 8), byte(i)}
			p := netip.PrefixFrom(netip.AddrFrom16(a), 64-i%8)
			if family == 4 {
				p = netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 13), byte(i >> 5), byte(i << 3)}), 32-i%3)
			}
			list = append(list, p.Masked())
		}
		s.put("feed", list)
		s.hold("feed", fsm.Both)
		k := openLists(t, n)
		bring(t, k, s.change())
		l, _, _ := s.store.View().List("feed")
		perEntry := float64(int64(heap()-before)) / float64(l.Size)
		t.Logf("IPv%d: %.1f bytes an entry", family, perEntry)
		if l.Size != entries || perEntry > 64 {
			t.Errorf("IPv%d: %.1f bytes for each of %d entries, want at most 64", family, perEntry, l.Size)
		}
		runtime.KeepAlive(k)
		runtime.KeepAlive(s)
	}
}
