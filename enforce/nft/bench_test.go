package nft

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/palisade/palisade/enforce"
)

// vmBlock is the elements of one more blocked VM.
func vmBlock() []enforce.Element {
	return elements(mac("52:54:00:ff:ff:fe"), prefix("192.168.200.1"), prefix("fd99::1"))
}

// BenchmarkApply is one VM block added and lifted, each read back; p50 and p99 of a single Apply.
func BenchmarkApply(b *testing.B) {
	for _, held := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			n := newNetNS(b)
			k := adopted(b, n, func(o *Options) { o.ExactSize = 65_536 })
			apply(b, k, 1, addresses(held), nil)
			took := make([]time.Duration, 0, 2*b.N)
			block := vmBlock()
			index := uint64(1)
			for b.Loop() {
				for _, d := range []enforce.Delta{{Add: block}, {Remove: block}} {
					index++
					d.Index = index
					start := time.Now()
					if err := k.Apply(b.Context(), d); err != nil {
						b.Fatal(err)
					}
					took = append(took, time.Since(start))
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
		})
	}
}

// BenchmarkLoad is 100,000 addresses into an empty kernel, read back, and their adoption.
func BenchmarkLoad(b *testing.B) {
	list := addresses(100_000)
	for b.Loop() {
		n := newNetNS(b)
		k := adopted(b, n, func(o *Options) { o.ExactSize = 65_536 })
		start := time.Now()
		apply(b, k, 1, list, nil)
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "load-ms")
		start = time.Now()
		if h := adopt(b, open(b, n)); len(h.Elements) != len(list) || !h.Intact {
			b.Fatalf("adopted %d of %d, intact %t", len(h.Elements), len(list), h.Intact)
		}
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "adopt-ms")
	}
}

// BenchmarkCheck is a look at a kernel that nobody changed, one after another program changed its own rules, and the
// asking for every element, which has to be done seldom.
func BenchmarkCheck(b *testing.B) {
	n := newNetNS(b)
	k := adopted(b, n, func(o *Options) { o.ExactSize = 262_144 })
	apply(b, k, 1, addresses(100_000), nil)
	look := func(b *testing.B, right uint32, rest time.Time) {
		for b.Loop() {
			k.watch = watch{right: right, rest: rest}
			if d, err := k.Check(b.Context()); err != nil || !d.None() {
				b.Fatal(d, err)
			}
		}
	}
	b.Run("quiet", func(b *testing.B) { look(b, generation(b, k), time.Time{}) })
	b.Run("rules", func(b *testing.B) { look(b, 0, time.Now().Add(time.Hour)) })
	b.Run("elements", func(b *testing.B) { look(b, 0, time.Time{}) })
}

// BenchmarkPacket is the delivery of a frame of an innocent guest to another over a bridge, without our tables and with
// them. Compare with each other.
func BenchmarkPacket(b *testing.B) {
	for _, name := range []string{"none", "tables"} {
		b.Run(name, func(b *testing.B) {
			host, from, _ := benchBridge(b)
			if name == "tables" {
				apply(b, adopted(b, host), 1, vmBlock(), nil)
			}
			sendFrames(b, from)
		})
	}
}
