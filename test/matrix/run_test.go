package matrix_test

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// result is what became of a cell's packets: those of the held guest, and the same ones of its twin.
type result struct {
	cell
	want, held, free int
}

// onOneCPU runs f on one CPU: what is sent there, arrives in the order in which it was sent, over however
// many namespaces. So one packet at the end says that all before it have arrived or never will.
func onOneCPU(t testing.TB, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, alone unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(os.NewSyscallError("sched_getaffinity", err))
	}
	for cpu := range 1024 {
		if before.IsSet(cpu) {
			alone.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &alone); err != nil {
		t.Fatal(os.NewSyscallError("sched_setaffinity", err))
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	f()
}

// walk sends the packets of all cells, of the held guest and of its twin, and returns what arrived while a hold is in force.
func (b *bed) walk(h hold, list []cell) []result {
	b.t.Helper()
	const atOnce = 100 // well below what a CPU's queue holds
	results := make([]result, len(list))
	onOneCPU(b.t, func() {
		first := b.shots
		for i, c := range list {
			b.shots++
			results[i] = result{cell: c, want: b.send(c, c.topology.held, b.shots)}
			b.shots++
			b.send(c, c.topology.free, b.shots)
			if i%atOnce == atOnce-1 {
				b.settle()
				// The numbers of these must stay those of the cells.
				first = b.collect(h, results[i+1-atOnce:i+1], first)
			}
		}
		b.settle()
		rest := len(list) % atOnce
		b.collect(h, results[len(list)-rest:], first)
	})
	return results
}

// collect reads the counts of cells whose shots begin after first, and returns where those of the next do.
func (b *bed) collect(h hold, results []result, first uint32) uint32 {
	for i := range results {
		r := &results[i]
		count := func() bool {
			r.held = b.received(r.cell, r.topology.held, first+1)
			r.free = b.received(r.cell, r.topology.free, first+2)
			return r.free >= r.want && (r.held >= r.want || h.open(r.cell) == "")
		}
		// Macvtaps hand on what is for many later, in the order in which it came.
		for end := time.Now().Add(5 * time.Second); !count() && r.topology.device && time.Now().Before(end); {
			b.settle()
		}
		first += 2
	}
	return b.shots
}

// send sends the packets of a cell, of one of its two guests, and says how many there are.
func (b *bed) send(c cell, subject *end, shot uint32) int {
	b.t.Helper()
	from, to := c.ends(subject)
	packets := c.kind.build(letter{from, to, token(shot)})
	for _, p := range packets {
		if from.stack != nil && !c.kind.socket {
			if err := from.stack.send(from.dev, p); err != nil {
				b.t.Fatalf("%v: %v", c, err)
			}
			continue
		}
		next := to.mac
		if c.role != node && !c.topology.switched[c.role] {
			next = from.next.mac
		}
		_, err := unix.Write(from.send, p.frame(from.mac, next))
		if err != nil && (!c.topology.program || from.tap == "") { // what XDP drops is an error of some kernels
			b.t.Fatalf("%v: %v", c, os.NewSyscallError("write", err))
		}
	}
	return len(packets)
}

// received says how many of a shot's packets have reached whom they were for.
func (b *bed) received(c cell, subject *end, shot uint32) int {
	_, to := c.ends(subject)
	switch {
	case to.stack == nil:
		return to.packets.got[shot]
	case c.kind.upward:
		return to.passed.got[shot]
	case c.kind.isARP() && !c.topology.switched[node]:
		return b.heard(to, shot)
	case c.kind.scope == frames || c.kind.isARP():
		return to.packets.got[shot]
	default:
		return to.stack.got[shot]
	}
}

// heard says whether ARP of a shot has come through all hooks of a node, to where it is learned from and answered.
func (b *bed) heard(at *end, shot uint32) int {
	set := b.n1.run("", "nft", "list", "set", "arp", "matrix", "heard")
	if slices.Contains(strings.FieldsFunc(set, func(r rune) bool { return strings.ContainsRune(" ,\n", r) }), at.claimed(token(shot)).String()) {
		return 1
	}
	return 0
}

// settle waits until all that was sent has arrived or never will, and reads it.
func (b *bed) settle() {
	b.t.Helper()
	last := b.last.topology
	far := last.others[far].packets
	var marker uint32
	for end := time.Now().Add(10 * time.Second); marker == 0 || far.got[marker] == 0; {
		if time.Now().After(end) {
			b.t.Fatal("after 10 s the innocent's last packet is not there")
		}
		marker = 1<<31 | (marker+1)&0xff | b.shots<<8
		b.send(b.last, last.free, marker)
		for again := time.Now().Add(100 * time.Millisecond); far.got[marker] == 0 && time.Now().Before(again); {
			if err := far.drain(b.buf); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	b.turn()
	for _, r := range b.receivers {
		if err := r.drain(b.buf); err != nil {
			b.t.Fatal(err)
		}
	}
}

// tell reports what arrived against what a hold says, and returns how many cells of it were cut.
func tell(t *testing.T, what string, h hold, results []result) (cut int) {
	t.Helper()
	const most = 40
	leaked, lost, passed := 0, 0, 0
	problem := func(format string, args ...any) {
		t.Helper()
		if leaked+lost <= most {
			t.Errorf("%s: "+format, append([]any{what}, args...)...)
		}
	}
	for _, r := range results {
		if r.free < r.want {
			lost++
			problem("LOST %v: %d of %d packets of the innocent arrived", r.cell, r.free, r.want)
		}
		why := h.open(r.cell)
		switch {
		case why == "" && r.held > 0:
			leaked++
			problem("LEAKED %v: %d of %d packets", r.cell, r.held, r.want)
		case why == "":
			cut++
		case r.held < r.want:
			lost++
			problem("LOST %v: %d of %d packets, although %s", r.cell, r.held, r.want, why)
		default:
			passed++
		}
	}
	t.Logf("%-60s %5d cells: %5d cut, %4d not the hold's, %d leaked, %d lost", what, len(results), cut, passed, leaked, lost)
	return cut
}
