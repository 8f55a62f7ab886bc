package enforce

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
)

// fleet is a state machine with a feed, as a node has it.
type fleet struct {
	t     testing.TB
	store *fsm.Store
	feed  *fsm.Watcher
	index uint64
}

func newFleet(t testing.TB) *fleet {
	s := fsm.NewStore()
	return &fleet{t: t, store: s, feed: s.Watch(0)}
}

// apply appends one entry with the ops and returns the result of each.
func (f *fleet) apply(ops ...fsm.Op) []fsm.Result {
	f.t.Helper()
	f.index++
	data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(int64(f.index), 0), Actor: "token:test", Op: fsm.Batch{Ops: ops}})
	if err != nil {
		f.t.Fatal(err)
	}
	results, err := f.store.ApplyBatch([]fsm.Entry{{Index: f.index, Data: data}})
	if err != nil {
		f.t.Fatal(err)
	}
	return results[0].Items
}

// must is apply of ops that none may be refused.
func (f *fleet) must(ops ...fsm.Op) []fsm.Result {
	f.t.Helper()
	results := f.apply(ops...)
	for i, r := range results {
		if r.Err != nil {
			f.t.Fatalf("%#v: %v", ops[i], r.Err)
		}
	}
	return results
}

// next returns the view and what happened since the last call.
func (f *fleet) next() (*fsm.View, []fsm.Event) {
	f.t.Helper()
	v, events, err := f.feed.Next(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return v, events
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func hw(n byte) fsm.MAC            { return fsm.MAC{0x52, 0x54, 0, 0, 0, n} }

func nic(n byte, tap string, addresses ...string) fsm.NIC {
	out := fsm.NIC{MAC: hw(n), Tap: tap}
	for _, a := range addresses {
		out.Addresses = append(out.Addresses, addr(a))
	}
	return out
}

func blockVM(id string) fsm.Op    { return fsm.AddBlock{Target: fsm.Target{VM: id}, Reason: "test"} }
func blockPrefix(p string) fsm.Op { return fsm.AddBlock{Target: fsm.Target{Prefix: prefix(p)}} }

func seen(id, node string, epoch uint64, nics ...fsm.NIC) fsm.Op {
	return fsm.ObserveVM{ID: id, Name: id, Kind: "netns", Node: node, Phase: fsm.PhaseRunning, NICs: nics, Epoch: epoch}
}

func node(id string, addresses ...string) fsm.Op {
	n := fsm.Node{ID: id, Name: id, MACs: []fsm.MAC{hw(0xf0)}}
	for _, a := range addresses {
		n.Addresses = append(n.Addresses, addr(a))
	}
	return fsm.PutNode{Node: n}
}

// TestGolden walks one story and compares every delta with testdata/deltas.golden.
func TestGolden(t *testing.T) {
	f := newFleet(t)
	c := NewCompiler()
	var l Local
	var out strings.Builder
	step := func(what string, ops ...fsm.Op) []fsm.Result {
		t.Helper()
		var results []fsm.Result
		v, events := f.store.View(), []fsm.Event(nil)
		if len(ops) > 0 {
			results = f.must(ops...)
			v, events = f.next()
		}
		d := c.Update(v, events, l)
		fmt.Fprintf(&out, "# %s\n", what)
		for _, e := range d.Remove {
			fmt.Fprintf(&out, "- %v\n", e)
		}
		for _, e := range d.Add {
			fmt.Fprintf(&out, "+ %v\n", e)
		}
		if d.Index != v.Index() {
			t.Errorf("%s: index %d, want %d", what, d.Index, v.Index())
		}
		sameAsReference(t, c, v, l)
		return results
	}

	step("a node registers and two VMs are seen", node("n1", "10.7.0.1", "fd07::1"),
		seen("web", "n1", 1, nic(1, "vnet0", "10.7.0.2", "fd07::2")), seen("db", "n1", 1, nic(2, "vnet1", "10.7.0.3")))
	web := step("web is blocked while it runs elsewhere: no tap", blockVM("web"))[0].Block.ID
	l = Local{Node: "n1", NICs: MapOf(map[string][]fsm.NIC{"web": {nic(1, "vnet0")}, "db": {nic(2, "vnet1")}})}
	step("web arrives here")
	step("a prefix is declared for web", fsm.DeclareVM{ID: "web", Addresses: []netip.Prefix{prefix("192.0.2.0/28")}})
	ip := step("the address of web is blocked too: nothing new", blockPrefix("10.7.0.2/32"))[0].Block.ID
	again := step("web is blocked again: nothing new", blockVM("web"))[0].Block.ID
	step("the first block of web is lifted: the second holds", fsm.LiftBlock{ID: web})
	step("the last block of web is lifted: its address stays", fsm.LiftBlock{ID: again})
	step("the address is lifted", fsm.LiftBlock{ID: ip})
	step("a prefix", blockPrefix("10.8.0.0/29"))
	step("a node registers in it and is cut out", node("n2", "10.8.0.1"))
	step("the same node says the same again: nothing", node("n2", "10.8.0.1"))
	wide := step("another prefix", blockPrefix("203.0.113.0/24"))[0].Block.ID
	step("half of it is guarded", fsm.PutGuard{Prefix: prefix("203.0.113.0/25"), Note: "office"})
	step("the guard goes", fsm.DeleteGuard{Prefix: prefix("203.0.113.0/25")})
	l = Local{Node: "n1", NICs: l.NICs, Guards: []netip.Prefix{prefix("203.0.113.7/32")}}
	step("this node guards an address that the fleet does not know of yet")
	step("lifted with the hole in it", fsm.LiftBlock{ID: wide})
	step("a VM with the hardware address of a node, a broadcast address, a link-local one and an interface name too long",
		seen("odd", "n2", 1,
			fsm.NIC{MAC: hw(0xf0), Tap: "vnet9", Addresses: []netip.Addr{addr("fe80::1%eth0"), addr("::ffff:10.7.0.9")}},
			fsm.NIC{MAC: fsm.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}),
		blockVM("odd"))
	l = Local{Node: "n1", Guards: l.Guards, NICs: MapOf(map[string][]fsm.NIC{"odd": {nic(9, "interface-name-too-long")}})}
	step("and it is here")

	l = Local{Node: "n1", NICs: MapOf(map[string][]fsm.NIC{"web": {nic(1, "vnet0")}}), PagePort: 8081, Bridges: MapOf(map[string]fsm.MAC{"vnet0": hw(0xf1), "eth0": hw(0xf1)})}
	step("odd is forgotten here, web is back", fsm.LiftBlock{ID: "b6"})
	step("an account without VMs is blocked", fsm.AddBlock{Target: fsm.Target{Account: "acct-42"}})
	step("db joins it", fsm.DeclareVM{ID: "db", Owner: "acct-42"})
	step("and leaves it", fsm.DeclareVM{ID: "db", Owner: "acct-43"})
	step("another is agreed for later", fsm.AddBlock{Target: fsm.Target{Account: "acct-43"}, Direction: fsm.Out, StartsAt: time.Unix(1000, 0)})
	l.Started = map[string]struct{}{"b8": {}}
	step("this node starts it without a quorum")
	step("db is guarded: an account's hold passes it by", fsm.PutGuard{VM: "db"})
	step("web may not send mail", fsm.AddBlock{Target: fsm.Target{VM: "web"}, Kind: fsm.Ports, Direction: fsm.Out,
		Ports: []fsm.PortRange{{Protocol: 6, First: 25, Last: 25}, {Protocol: 17, First: 6000, Last: 6010}, {Protocol: 132}}})
	step("web is limited: by its tap alone", fsm.AddBlock{Target: fsm.Target{VM: "web"}, Kind: fsm.Limit, Rate: fsm.Rate{Bits: 1_000_000}})
	step("an address is refused: bridges must be known", fsm.AddBlock{Target: fsm.Target{Prefix: prefix("198.51.100.1/32")}, Kind: fsm.Reject, Direction: fsm.In})
	step("a visitor of another sees a page", fsm.DeclareVM{ID: "other", Addresses: []netip.Prefix{prefix("198.51.100.2/32")}}, fsm.AddBlock{Target: fsm.Target{Prefix: prefix("198.51.100.2/32")}, Kind: fsm.Redirect})
	step("the one is lifted, and the other: bridges need not be known", fsm.LiftBlock{ID: "b11"}, fsm.LiftBlock{ID: "b12"})

	golden := filepath.Join("testdata", "deltas.golden")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("the deltas changed (UPDATE_GOLDEN=1 accepts them):\n%s", out.String())
	}
}

func sameAsReference(t testing.TB, c *Compiler, v *fsm.View, l Local) {
	t.Helper()
	got := make(map[Element]struct{}, c.Len())
	for e := range c.Elements() {
		got[e] = struct{}{}
	}
	if want := Compile(v, l); !maps.Equal(got, want) {
		t.Fatalf("the compiler holds\n%v\nwant\n%v", keys(got), keys(want))
	}
}

func keys(m map[Element]struct{}) []Element { return slices.SortedFunc(maps.Keys(m), Element.Compare) }

func TestElementsOf(t *testing.T) {
	f := newFleet(t)
	results := f.must(seen("web", "n2", 1, nic(1, "vnet0", "10.7.0.2")), blockVM("web"), blockPrefix("10.7.0.0/30"), node("n1", "10.7.0.1"))
	c := NewCompiler()
	if got := c.ElementsOf("b1"); got != nil {
		t.Errorf("before the first view: %v", got)
	}
	v, _ := f.next()
	c.Reset(v, Local{})
	vm, around := results[1].Block.ID, results[2].Block.ID
	want := []Element{{MAC: hw(1)}, {Prefix: prefix("10.7.0.2/32")}}
	if got := c.ElementsOf(vm); !slices.Equal(got, want) {
		t.Errorf("of the VM: %v, want %v", got, want)
	}
	want = []Element{{Prefix: prefix("10.7.0.0/32")}, {Prefix: prefix("10.7.0.2/31")}}
	if got := c.ElementsOf(around); !slices.Equal(got, want) {
		t.Errorf("of the prefix: %v, want %v", got, want)
	}
	f.must(fsm.LiftBlock{ID: vm})
	v, events := f.next()
	c.Update(v, events, Local{})
	if got := c.ElementsOf(vm); got != nil {
		t.Errorf("of a lifted block: %v", got)
	}
	if got := c.ElementsOf("b999"); got != nil {
		t.Errorf("of an unknown block: %v", got)
	}
}

// TestMissing: what this kernel can't do partly, it does wholly.
func TestMissing(t *testing.T) {
	f := newFleet(t)
	target := fsm.Target{Prefix: prefix("192.0.2.1/32")}
	f.must(fsm.DeclareVM{ID: "web", Addresses: []netip.Prefix{target.Prefix}},
		fsm.AddBlock{Target: target, Kind: fsm.Reject, Direction: fsm.In}, fsm.AddBlock{Target: target, Kind: fsm.Redirect})
	c := NewCompiler()
	texts := func(l Local) string {
		c.Update(f.store.View(), nil, l)
		return fmt.Sprint(slices.SortedFunc(c.Elements(), Element.Compare))
	}
	for _, step := range []struct {
		l    Local
		want string
	}{
		{Local{PagePort: 80}, "[192.0.2.1 page_80 192.0.2.1 redirect_in 192.0.2.1 redirect_out 192.0.2.1 reject_in]"},
		{Local{}, "[192.0.2.1 192.0.2.1 reject_in]"},
		{Local{Missing: []fsm.Kind{fsm.Reject}}, "[192.0.2.1 192.0.2.1 in]"},
		{Local{Missing: []fsm.Kind{fsm.Redirect}, PagePort: 80}, "[192.0.2.1 192.0.2.1 reject_in]"},
	} {
		if got := texts(step.l); got != step.want {
			t.Errorf("%+v: %s, want %s", step.l, got, step.want)
		}
	}
}

// TestARedirectedPrefixAnswersForItsVMs, which come, move within it and go; for the rest of it nobody
// answers, so it is dropped.
func TestARedirectedPrefixAnswersForItsVMs(t *testing.T) {
	f := newFleet(t)
	l := Local{PagePort: 80}
	c := NewCompiler()
	pages := func(ops ...fsm.Op) string {
		t.Helper()
		f.must(ops...)
		v, events := f.next()
		c.Update(v, events, l)
		var list []string
		for e := range c.Elements() {
			if e.Treatment == "page_80" {
				list = append(list, e.Prefix.String())
			}
		}
		slices.Sort(list)
		return strings.Join(list, " ")
	}
	declare := func(id string, addresses ...string) fsm.Op {
		op := fsm.DeclareVM{ID: id}
		for _, a := range addresses {
			op.Addresses = append(op.Addresses, prefix(a))
		}
		return op
	}
	for _, step := range []struct {
		op   fsm.Op
		want string
	}{
		{declare("a", "192.0.2.1/32", "198.51.100.1/32"), ""},
		{fsm.AddBlock{Target: fsm.Target{Prefix: prefix("192.0.2.0/24")}, Kind: fsm.Redirect}, "192.0.2.1/32"},
		{declare("b", "192.0.2.64/30"), "192.0.2.1/32 192.0.2.64/30"},
		{declare("a", "192.0.2.9/32"), "192.0.2.64/30 192.0.2.9/32"},
		{declare("a", "198.51.100.1/32"), "192.0.2.64/30"},
		{fsm.LiftBlock{ID: "b1"}, ""},
	} {
		if got := pages(step.op); got != step.want {
			t.Errorf("after %+v visitors of %q get the page, want %q", step.op, got, step.want)
		}
	}
}

func TestTreatments(t *testing.T) {
	for _, text := range []Treatment{"", "in", "out", "reject_in", "redirect_out", "page_8081", "here", "bridge_525400000701",
		"limit_in_b17_8000bits", "limit_out_b17_100packets", "ports_out_b1_6.25", "ports_in_b1_6.25-26_17_132.1"} {
		if terms, ok := text.Terms(); !ok {
			t.Errorf("%q is %+v", text, terms)
		}
	}
	for _, text := range []Treatment{"both", "reject", "reject_both", "drop", "drop_in", "page_0", "page_99999", "page", "here_1", "bridge_52",
		"limit_in", "limit_in_b1", "limit_in_b1_bits", "limit_in_b1_0bits", "limit_in_b1_1", "limit_in_b1_08bits", "ports_out_b1", "ports_out_b1_300.1",
		"ports_out_b1_6.25-25", "ports_out_b1_6.x", "ports_out_b1_1_2_3_4_5_6_7_8_9", "prerouting", "in_x"} {
		if terms, ok := text.Terms(); ok {
			t.Errorf("%q was taken for %+v", text, terms)
		}
	}
}

// TestResetDiffers checks that a Reset after a gap in the feed gives the difference to what was held.
func TestResetDiffers(t *testing.T) {
	f := newFleet(t)
	c := NewCompiler()
	id := f.must(blockPrefix("192.0.2.1/32"), blockPrefix("192.0.2.2/32"))[0].Block.ID
	if d := c.Reset(f.store.View(), Local{}); len(d.Add) != 2 || len(d.Remove) != 0 {
		t.Fatalf("first reset: %+v", d)
	}
	f.must(fsm.LiftBlock{ID: id}, blockPrefix("192.0.2.3/32"))
	d := c.Reset(f.store.View(), Local{})
	if len(d.Add) != 1 || d.Add[0].String() != "192.0.2.3" || len(d.Remove) != 1 || d.Remove[0].String() != "192.0.2.1" {
		t.Fatalf("second reset: %+v", d)
	}
}

// BenchmarkUpdate is one more block, and its lifting, on top of many.
func BenchmarkUpdate(b *testing.B) {
	for _, held := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			f := newFleet(b)
			for i := 0; i < held; i += 10_000 {
				ops := make([]fsm.Op, 0, 10_000)
				for j := range min(10_000, held-i) {
					n := i + j
					ops = append(ops, blockPrefix(fmt.Sprintf("11.%d.%d.%d/32", n>>16, n>>8&0xff, n&0xff)))
				}
				f.must(ops...)
			}
			c := NewCompiler()
			f.must(seen("web", "n1", 1, nic(1, "vnet0", "10.7.0.2", "fd07::2")))
			v, _, err := f.feed.Next(b.Context())
			if v == nil {
				b.Fatal(err)
			}
			start := time.Now()
			c.Reset(v, Local{})
			b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "reset-ms")
			for b.Loop() {
				b.StopTimer()
				id := f.must(blockVM("web"))[0].Block.ID
				v, events := f.next()
				b.StartTimer()
				if d := c.Update(v, events, Local{}); len(d.Add) != 3 {
					b.Fatal(d)
				}
				b.StopTimer()
				f.must(fsm.LiftBlock{ID: id})
				v, events = f.next()
				b.StartTimer()
				if d := c.Update(v, events, Local{}); len(d.Remove) != 3 {
					b.Fatal(d)
				}
			}
		})
	}
}
