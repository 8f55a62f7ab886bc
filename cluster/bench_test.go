package cluster

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
)

// BenchmarkReach is the time from a proposal on a follower until all three nodes have applied it, on
// real disks over loopback TLS.
func BenchmarkReach(b *testing.B) {
	f := realFleet(b, 3).start().ready()
	n := f.follower()
	samples := make([]time.Duration, 0, b.N)
	for i := 0; b.Loop(); i++ {
		samples = append(samples, reach(f, n, strconv.Itoa(i)))
	}
	report(b, samples)
}

// reach proposes on one node and waits until every node has applied it.
func reach(f *fleet, on *node, owner string) time.Duration {
	before := make([]*fsm.Watcher, len(f.nodes))
	from := on.store.View().Index()
	for i, n := range f.nodes {
		before[i] = n.store.Watch(from)
	}
	var wg sync.WaitGroup
	begin := time.Now()
	index := make(chan uint64, len(f.nodes))
	for _, w := range before {
		wg.Go(func() {
			want := uint64(1 << 62)
			got := uint64(0)
			for got < want {
				v, _, err := w.Next(context.Background())
				if err != nil {
					return
				}
				got = v.Index()
				select {
				case want = <-index:
				default:
					// The only write is ours: the first change is it.
					want = got
				}
			}
		})
	}
	on.propose(declare("vm", owner))
	wg.Wait()
	return time.Since(begin)
}

func report(b *testing.B, samples []time.Duration) {
	slices.Sort(samples)
	b.ReportMetric(float64(samples[len(samples)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(samples[len(samples)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkWriters is 64 writers spread over three nodes.
func BenchmarkWriters(b *testing.B) {
	f := realFleet(b, 3).start().ready()
	var next atomic.Int64
	var mu sync.Mutex
	var samples []time.Duration
	b.ResetTimer()
	begin := time.Now()
	var wg sync.WaitGroup
	for w := range 64 {
		n := f.nodes[w%len(f.nodes)]
		wg.Go(func() {
			var own []time.Duration
			for {
				i := next.Add(1)
				if i > int64(b.N) {
					break
				}
				at := time.Now()
				if _, err := n.c.Propose(context.Background(), declare(fmt.Sprintf("vm%d", i%1000), strconv.FormatInt(i, 10))); err != nil {
					b.Error(err)
					return
				}
				own = append(own, time.Since(at))
			}
			mu.Lock()
			samples = append(samples, own...)
			mu.Unlock()
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "writes/s")
	report(b, samples)
}

// BenchmarkIdle is the share of a core that three nodes in one process use when nothing happens.
func BenchmarkIdle(b *testing.B) {
	f := realFleet(b, 3).start().ready()
	f.leader()
	time.Sleep(2 * time.Second)
	begin, cpu := time.Now(), cpuTime()
	for b.Loop() {
		time.Sleep(5 * time.Second)
	}
	b.ReportMetric(100*(cpuTime()-cpu).Seconds()/time.Since(begin).Seconds(), "%core")
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func p50(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
