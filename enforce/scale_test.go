package enforce

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
)

// crowd is a compiler on a node with a number of guests, of which one in ten is blocked, and one
// rejected, so that the node answers.
type crowd struct {
	*fleet
	c *Compiler
	l Local
}

func newCrowd(t testing.TB, guests int) *crowd {
	f := &crowd{fleet: newFleet(t), c: NewCompiler()}
	nics := map[string][]fsm.NIC{}
	bridged := map[string]fsm.MAC{}
	for from := 0; from < guests; from += 1_000 {
		var ops []fsm.Op
		for i := from; i < min(from+1_000, guests); i++ {
			id := fmt.Sprint("vm", i)
			n := fsm.NIC{MAC: fsm.MAC{0x52, 0x54, 0, 0, byte(i >> 8), byte(i)}, Tap: fmt.Sprint("tap", i)}
			nics[id], bridged[n.Tap] = []fsm.NIC{n}, hw(0xf1)
			ops = append(ops, seen(id, "n1", 1, n))
			if i%10 == 0 {
				ops = append(ops, blockVM(id))
			}
		}
		f.must(ops...)
	}
	f.must(fsm.AddBlock{Target: fsm.Target{VM: "vm1"}, Kind: fsm.Reject})
	f.l = Local{Node: "n1", PagePort: 8079, NICs: MapOf(nics), Bridges: MapOf(bridged)}
	v, _ := f.next()
	f.c.Reset(v, f.l)
	return f
}

// tapMoves is the time in which one blocked guest gets another tap.
func (f *crowd) tapMoves(n int) time.Duration {
	nic := f.l.NICs.Get("vm0")[0]
	nic.Tap = fmt.Sprint("new", n)
	begin := time.Now()
	f.l.NICs = f.l.NICs.With("vm0", []fsm.NIC{nic})
	d := f.c.Update(f.c.view, nil, f.l)
	took := time.Since(begin)
	if len(d.Add) != 2 || len(d.Remove) != 2 { // the block, and what the node must know to answer
		f.t.Fatalf("a tap moves: %v", d)
	}
	return took
}

// blocked is the time in which one more block is compiled.
func (f *crowd) blocked(n int) time.Duration {
	f.must(blockPrefix(fmt.Sprintf("10.8.%d.%d/32", n>>8&255, n&255)))
	v, events := f.next()
	begin := time.Now()
	d := f.c.Update(v, events, f.l)
	took := time.Since(begin)
	if len(d.Add) != 1 {
		f.t.Fatalf("one more block: %v", d)
	}
	return took
}

// TestAChangeCostsTheSameBesideTenThousandGuests compares medians, in one run.
func TestAChangeCostsTheSameBesideTenThousandGuests(t *testing.T) {
	few, many := newCrowd(t, 100), newCrowd(t, 10_000)
	for what, change := range map[string]func(*crowd, int) time.Duration{"a tap": (*crowd).tapMoves, "a block": (*crowd).blocked} {
		var small, large []time.Duration
		for i := range 401 {
			small, large = append(small, change(few, i)), append(large, change(many, i))
		}
		slices.Sort(small)
		slices.Sort(large)
		m, n := small[200], large[200]
		t.Logf("figure: %s is compiled beside 100 guests: %v", what, m)
		t.Logf("figure: %s is compiled beside 10,000 guests: %v", what, n)
		if n > 6*m { // walking the guests is 50 times and more
			t.Errorf("%s takes %v beside 10,000 guests, %v beside 100", what, n, m)
		}
	}
}
