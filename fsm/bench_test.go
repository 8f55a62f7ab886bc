package fsm

import (
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"testing"
)

// fleet has 10,000 VMs on 100 nodes and 100,000 active blocks: one VM in ten is blocked, the rest are
// single addresses and a few prefixes.
func fleet(tb testing.TB, vms, blocks int) *Store {
	tb.Helper()
	s := NewStore()
	log := newLog(s)
	for i := range 100 {
		log.do(tb, PutNode{Node{ID: fmt.Sprintf("n%d", i), Addresses: []netip.Addr{addr4(0xc0000200 + i)}}})
	}
	var ops []Op
	for i := range vms {
		ops = append(ops, ObserveVM{
			ID: fmt.Sprintf("vm-%08d", i), Name: fmt.Sprintf("guest%d", i), Kind: "kvm",
			Node: fmt.Sprintf("n%d", i%100), Phase: PhaseRunning, Epoch: 1,
			NICs: []NIC{{MAC: MAC{2, 0, byte(i >> 16), byte(i >> 8), byte(i)}, Tap: fmt.Sprintf("vnet%d", i%1000),
				Addresses: []netip.Addr{addr4(0x0b000000 + i)}}},
		})
	}
	for i := range blocks {
		switch {
		case i%100 == 0 && i/100 < vms:
			ops = append(ops, AddBlock{Target: Target{VM: fmt.Sprintf("vm-%08d", i/100)}, Reason: "unpaid"})
		case i%100 == 1:
			ops = append(ops, AddBlock{Target: Target{Prefix: netip.PrefixFrom(addr4(0x0c000000+i<<8), 24).Masked()}})
		default:
			ops = append(ops, AddBlock{Target: Target{Prefix: netip.PrefixFrom(addr4(0x0a000000+i), 32)}, Reason: "abuse"})
		}
	}
	for len(ops) > 0 {
		n := min(1000, len(ops))
		for i, r := range log.do(tb, Batch{Ops: ops[:n]}).Items {
			if r.Err != nil {
				tb.Fatalf("%+v: %v", ops[i], r.Err)
			}
		}
		ops = ops[n:]
	}
	return s
}

func addr4(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func BenchmarkAddBlock(b *testing.B) {
	for _, batch := range []int{1, 64} {
		for _, key := range []string{"", "keyed"} {
			b.Run(fmt.Sprintf("entries=%d%s", batch, key), func(b *testing.B) {
				s := fleet(b, 10_000, 100_000)
				entries := make([]Entry, b.N)
				next := s.View().Index()
				for i := range entries {
					c := Command{Actor: "token:bench", Op: AddBlock{
						Target: Target{Prefix: netip.PrefixFrom(addr4(0x10000000+i), 32)}, Reason: "abuse",
					}}
					if key != "" {
						c.Key = fmt.Sprintf("key-%d", i)
					}
					next++
					entries[i] = Entry{next, encode(b, c)}
				}
				b.ReportAllocs()
				b.ResetTimer()
				for len(entries) > 0 {
					n := min(batch, len(entries))
					if _, err := s.ApplyBatch(entries[:n]); err != nil {
						b.Fatal(err)
					}
					entries = entries[n:]
				}
			})
		}
	}
}

func BenchmarkLiftBlock(b *testing.B) {
	s := fleet(b, 10_000, 100_000+b.N)
	entries := make([]Entry, b.N)
	next := s.View().Index()
	for i := range entries {
		next++
		entries[i] = Entry{next, encode(b, Command{Op: LiftBlock{ID: FormatBlockID(uint64(i + 1))}})}
	}
	b.ReportAllocs()
	b.ResetTimer()
	for len(entries) > 0 {
		n := min(64, len(entries))
		if _, err := s.ApplyBatch(entries[:n]); err != nil {
			b.Fatal(err)
		}
		entries = entries[n:]
	}
}

func BenchmarkHolding(b *testing.B) {
	v := fleet(b, 10_000, 100_000).View()
	vm, _ := v.VM("vm-00000500")
	b.ReportAllocs()
	for b.Loop() {
		if len(v.Holding(vm)) == 0 {
			b.Fatal("not held")
		}
	}
}

func BenchmarkSnapshot(b *testing.B) {
	v := fleet(b, 10_000, 100_000).View()
	b.ReportAllocs()
	for b.Loop() {
		n := new(countingWriter)
		if err := v.WriteSnapshot(n); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(*n), "bytes")
	}
}

func BenchmarkRestore(b *testing.B) {
	v := fleet(b, 10_000, 100_000).View()
	b.ReportAllocs()
	for b.Loop() {
		r, w := io.Pipe()
		go func() { w.CloseWithError(v.WriteSnapshot(w)) }()
		if err := NewStore().Restore(r); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMemory reports the heap of a state per block, feed and indexes included.
func BenchmarkMemory(b *testing.B) {
	heap := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	for b.Loop() {
		before := heap()
		s := fleet(b, 0, 100_000)
		b.ReportMetric((heap()-before)/100_000, "B/block")
		runtime.KeepAlive(s)
	}
}

type countingWriter int64

func (w *countingWriter) Write(b []byte) (int, error) {
	*w += countingWriter(len(b))
	return len(b), nil
}
