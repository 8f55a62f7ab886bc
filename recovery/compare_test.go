package recovery

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// log builds states.
type log struct {
	t     *testing.T
	store *fsm.Store
	index uint64
}

func newLog(t *testing.T, ops ...fsm.Op) *log {
	l := &log{t: t, store: fsm.NewStore()}
	for _, op := range ops {
		l.do(op)
	}
	return l
}

// do carries an op out. A list that is filled is made first.
func (l *log) do(op fsm.Op) fsm.Result {
	l.t.Helper()
	if p, ok := op.(fsm.PatchList); ok {
		if _, _, known := l.view().List(p.Name); !known {
			l.do(fsm.DescribeList{Name: p.Name})
		}
	}
	res := l.may(op)
	if res.Err != nil {
		l.t.Fatalf("%+v: %v", op, res.Err)
	}
	return res
}

// may is do for what may be refused.
func (l *log) may(op fsm.Op) fsm.Result {
	l.t.Helper()
	l.index++
	data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(int64(l.index), 0), Actor: "token:test", Op: op})
	if err != nil {
		l.t.Fatal(err)
	}
	res, err := l.store.ApplyBatch([]fsm.Entry{{Index: l.index, Data: data}})
	if err != nil {
		l.t.Fatal(err)
	}
	return res[0]
}

func (l *log) view() *fsm.View { return l.store.View() }

func prefix(s string) fsm.Target { return fsm.Target{Prefix: netip.MustParsePrefix(s)} }

func drop(t fsm.Target) fsm.AddBlock { return fsm.AddBlock{Target: t, Reason: "abuse", Force: true} }

func guest(id string, mac byte, address string) fsm.ObserveVM {
	return fsm.ObserveVM{ID: id, Name: id, Kind: "kvm", Node: "n1", Phase: fsm.PhaseRunning, Epoch: 1, NICs: []fsm.NIC{
		{MAC: fsm.MAC{2, 0, 0, 0, 0, mac}, Addresses: []netip.Addr{netip.MustParseAddr(address)}},
	}}
}

func base() []fsm.Op {
	return []fsm.Op{
		guest("vm1", 1, "203.0.113.1"), drop(fsm.Target{VM: "vm1"}), // b1
		drop(prefix("198.51.100.0/24")), // b2
	}
}

func names(losses []Loss) (out []string) {
	for _, l := range losses {
		switch {
		case l.Block != nil:
			out = append(out, l.Block.ID)
		case l.What != "":
			out = append(out, l.What)
		default:
			out = append(out, l.Element.String())
		}
	}
	return out
}

func TestLossesAreCarriedOver(t *testing.T) {
	now := newLog(t, base()...)
	backup := newLog(t, base()...)
	if got := Losses(now.view(), backup.view()); len(got) != 0 {
		t.Fatalf("of equal states: %v", got)
	}
	now.do(guest("vm2", 2, "203.0.113.2"))
	now.do(drop(fsm.Target{VM: "vm2"}))                                                                                                                // b3: nobody knows the VM there
	now.do(drop(prefix("192.0.2.9/32")))                                                                                                               // b4
	now.do(fsm.LiftBlock{ID: "b2"})                                                                                                                    // held again by the backup
	now.do(fsm.AddBlock{Target: prefix("192.0.2.8/32"), Kind: fsm.Limit, Direction: fsm.In, Rate: fsm.Rate{Packets: 10}, Force: true})                 // b5
	now.do(fsm.AddBlock{Target: prefix("192.0.2.7/32"), StartsAt: time.Unix(1_000_000, 0), Force: true})                                               // b6, pending
	now.do(fsm.AddBlock{Target: fsm.Target{VM: "vm1"}, Kind: fsm.Limit, Direction: fsm.Out, Rate: fsm.Rate{Bits: 9000}, Reason: "abuse", Force: true}) // b7: b1 holds more
	backup.do(fsm.LiftBlock{ID: "b1"})
	backup.do(drop(fsm.Target{VM: "vm1"})) // the same under another id
	losses := Losses(now.view(), backup.view())
	if got := names(losses); !slices.Equal(got, []string{"b3", "b4", "b5", "b6"}) {
		t.Fatalf("losses %v", got)
	}
	if s := losses[0].String(); !strings.Contains(s, "b3") || !strings.Contains(s, "vm2") || !strings.Contains(s, "abuse") {
		t.Errorf("%q", s)
	}
	if !losses[3].Agreed || losses[2].Agreed || !strings.Contains(losses[3].String(), "to start at 1970-01-12 13:46:40Z") {
		t.Errorf("%+v", losses[3])
	}
	returns := Returns(now.view(), backup.view())
	if len(returns) != 1 || returns[0].Block == nil || returns[0].Block.ID != "b2" {
		t.Errorf("returns %+v", returns)
	}
	for _, op := range Keep(losses) {
		backup.do(op)
	}
	if left := Losses(now.view(), backup.view()); len(left) != 0 {
		t.Errorf("after all was kept: %v", names(left))
	}
	if b := slices.Collect(backup.view().OpenOn(prefix("192.0.2.7/32"))); len(b) != 1 || b[0].State != fsm.BlockPending || !b[0].StartsAt.Equal(time.Unix(1_000_000, 0)) {
		t.Errorf("b6: %+v", b)
	}
	if vm, ok := backup.view().VM("vm2"); !ok || len(vm.AllAddresses()) == 0 {
		t.Errorf("vm2: %+v", vm)
	}
}

// What is held for two reasons is free once both are gone: neither stands for the other, nor does what ends sooner.
func TestAHoldOfAnotherReasonOrOfLessTimeIsNone(t *testing.T) {
	hold := func(reason string, ends int64) fsm.AddBlock {
		b := fsm.AddBlock{Target: prefix("192.0.2.1/32"), Reason: reason, Force: true}
		if ends != 0 {
			b.EndsAt = time.Unix(ends, 0)
		}
		return b
	}
	for name, c := range map[string]struct {
		now, backup []fsm.Op
		lost        []string
	}{
		"another reason":  {[]fsm.Op{hold("unpaid", 0), hold("abuse", 0)}, []fsm.Op{hold("unpaid", 0)}, []string{"b2"}},
		"ends sooner":     {[]fsm.Op{hold("abuse", 9000)}, []fsm.Op{hold("abuse", 8000)}, []string{"b1"}},
		"ends by itself":  {[]fsm.Op{hold("abuse", 0)}, []fsm.Op{hold("abuse", 8000)}, []string{"b1"}},
		"ends later":      {[]fsm.Op{hold("abuse", 8000)}, []fsm.Op{hold("abuse", 9000)}, nil},
		"does not end":    {[]fsm.Op{hold("abuse", 8000)}, []fsm.Op{hold("abuse", 0)}, nil},
		"of two the best": {[]fsm.Op{hold("abuse", 9000)}, []fsm.Op{hold("abuse", 8000), hold("abuse", 9000)}, nil},
	} {
		now, backup := newLog(t, c.now...), newLog(t, c.backup...)
		losses := Losses(now.view(), backup.view())
		if got := names(losses); !slices.Equal(got, c.lost) {
			t.Errorf("%s: losses %v, want %v", name, got, c.lost)
		}
		for _, op := range Keep(losses) {
			backup.do(op)
		}
		if left := Losses(now.view(), backup.view()); len(left) != 0 {
			t.Errorf("%s: after all was kept: %v", name, names(left))
		}
	}
}

func TestKernelLosses(t *testing.T) {
	local := enforce.Local{Node: "n1"}
	now, backup := newLog(t, base()...), newLog(t, base()...)
	now.do(drop(prefix("192.0.2.9/32")))
	kernel := map[enforce.Element]bool{}
	for _, e := range enforce.NewCompiler().Reset(now.view(), local).Add {
		kernel[e] = true
	}
	// What the state here explains is told with its block.
	if got := KernelLosses(maps.Keys(kernel), now.view(), backup.view(), local); len(got) != 0 {
		t.Errorf("explained: %v", names(got))
	}
	// Without one, what the backup does not hold is told as it is.
	got := KernelLosses(maps.Keys(kernel), nil, backup.view(), local)
	if !slices.Equal(names(got), []string{"192.0.2.9"}) {
		t.Errorf("unexplained: %v", names(got))
	}
	for e := range map[enforce.Element]bool{
		{Tap: "tap7"}: true, {Treatment: "drop_in"}: true, {Prefix: netip.MustParsePrefix("198.51.100.7/32")}: true, // inside of b2
	} {
		if got := KernelLosses(maps.Keys(map[enforce.Element]bool{e: true}), nil, backup.view(), local); len(got) != 0 {
			t.Errorf("%s is a loss", e)
		}
	}
	kernel[enforce.Element{MAC: fsm.MAC{2, 0, 0, 0, 0, 77}}] = true
	limit := enforce.Terms{Kind: fsm.Limit, Direction: fsm.In, Hold: "b99", Rate: fsm.Rate{Packets: 5}}
	kernel[enforce.Element{Prefix: netip.MustParsePrefix("192.0.2.50/32"), Treatment: limit.Treatment()}] = true
	got = KernelLosses(maps.Keys(kernel), nil, backup.view(), local)
	if len(got) != 3 || !strings.Contains(got[0].Unkept, "no VM is known") {
		t.Fatalf("%v %q", names(got), got[0].Unkept)
	}
	for _, op := range Keep(got) {
		backup.do(op)
	}
	// A limit has another block's name then; it is the same limit.
	if left := KernelLosses(maps.Keys(kernel), nil, backup.view(), local); len(left) != 1 || left[0].Element.MAC == (fsm.MAC{}) {
		t.Errorf("after all was kept that can be: %v", names(left))
	}
}

// TestARefusalIsNoLossOfTheRest: what the backup's state refuses is said, and the rest is kept.
func TestARefusalIsNoLossOfTheRest(t *testing.T) {
	now := newLog(t, base()...)
	now.do(drop(prefix("192.0.2.9/32")))
	now.do(drop(prefix("192.0.2.10/32")))
	backup := newLog(t, append(base(), fsm.PutGuard{Prefix: netip.MustParsePrefix("192.0.2.9/32"), Note: "office"})...)
	losses := Losses(now.view(), backup.view())
	before := backup.view().Hash()
	if err := Try(backup.view(), losses); err != nil {
		t.Fatal(err)
	}
	if len(losses) != 2 || !strings.Contains(losses[0].Unkept, "office") || losses[1].Unkept != "" || len(Keep(losses)) != 1 || backup.view().Hash() != before {
		t.Errorf("%+v", losses)
	}
}
