package cluster

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/palisade/palisade/fsm"
)

// What the simulation takes the network and the disks to be: those of one data centre.
const (
	simLatency = 500 * time.Microsecond // one way
	simSync    = time.Millisecond       // of a write to the log
)

// simulation is a fleet of real Clusters, without gossip, over a simulated network and simulated disks, in
// virtual time.
type simulation struct {
	*fleet
	net       *memNet
	all       map[string]*node
	voting    []*node
	following []*node
}

// figures are what a simulation measured.
type figures struct {
	Peers int `json:"peers"`
	// Depth is how many streams lie between a voter and the follower that is farthest away.
	Depth  int `json:"depth"`
	Writes int `json:"writes"`
	// Spread and SpreadMax are the virtual time from the proposal of a block on the leader until the last state
	// machine has it, in milliseconds, median and worst.
	Spread    float64 `json:"spread_ms"`
	SpreadMax float64 `json:"spread_max_ms"`
	// A write's share of all messages and bytes, of streams and of raft, without what an idle fleet sends.
	Messages       float64 `json:"messages_per_write"`
	Bytes          float64 `json:"bytes_per_write"`
	LeaderMessages float64 `json:"leader_messages_per_write"`
	LeaderBytes    float64 `json:"leader_bytes_per_write"`
	// LeaderIdle is what the leader sends in a second while nothing happens.
	LeaderIdle float64 `json:"leader_idle_messages_per_s"`
	// CPU of this process in work of the leader, and of one other node in the mean, a write.
	LeaderCPU float64 `json:"leader_cpu_us_per_write"`
	OtherCPU  float64 `json:"other_cpu_us_per_write"`
	// Resume is the longest that a follower of a killed node was without the next write, in milliseconds of virtual
	// time, and Killed how many inner nodes were.
	Resume float64 `json:"resume_max_ms"`
	Killed int     `json:"killed"`
}

// TestManyPeers: one block reaches all state machines in milliseconds, for a leader that does no more with a thousand
// peers than with ten; whoever follows a node that dies goes on elsewhere, and misses and repeats nothing.
//
// It is a hundred peers here: a thousand states in one process take 11 GB, and more goroutines than the race detector
// can follow. The benchmark simulates them: PALISADE_SIMULATE is the sizes to try instead, and PALISADE_FIGURES a file for
// what was measured, as JSON.
func TestManyPeers(t *testing.T) {
	sizes := []int{100}
	if s := os.Getenv("PALISADE_SIMULATE"); s != "" {
		sizes = nil
		for _, n := range strings.Split(s, ",") {
			size, err := strconv.Atoi(n)
			if err != nil {
				t.Fatal(err)
			}
			sizes = append(sizes, size)
		}
	}
	var all []figures
	for _, n := range sizes {
		var got figures
		var p *profiler // the CPU is measured for the figures only
		if os.Getenv("PALISADE_SIMULATE") != "" {
			p = newProfiler()
		}
		synctest.Test(t, func(t *testing.T) {
			began := cpuTime()
			s := simulate(t, n)
			got = s.measure(t, p)
			s.killInner(t, &got)
			s.stopVirtual()
			t.Logf("%+v; %.1f s of CPU", got, (cpuTime() - began).Seconds())
		})
		all = append(all, got)
		most := 12.0 // ms: an appended entry at two voters, and the levels below
		if got.Spread > most || got.SpreadMax > 3*most {
			t.Errorf("%d peers: a block took %.1f ms, at worst %.1f ms, to all", n, got.Spread, got.SpreadMax)
		}
		if got.LeaderMessages > 20 || got.Depth > 4 || got.Resume > 4000 {
			t.Errorf("%d peers: %+v", n, got)
		}
		p.end()
		runtime.GC()
	}
	if file := os.Getenv("PALISADE_FIGURES"); file != "" {
		data, err := json.Marshal(all)
		if err == nil {
			err = os.WriteFile(file, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// simulate brings up a fleet of three voters and followers.
func simulate(t *testing.T, peers int) *simulation {
	f, net := memFleet(t, peers, func(w *memWorld, o *Options) {
		o.Logger = slog.New(slog.DiscardHandler)
		o.seams.voters = 0
		o.seams.raft = func(c *raft.Config) { c.TrailingLogs = 10 }
		w.wrap = func(d *disk) { d.logs = laggingLogs{d.logs} }
	})
	net.latency = simLatency
	net.work = func(id string, do func() error) (err error) {
		pprof.Do(context.Background(), pprof.Labels("node", id), func(context.Context) { err = do() })
		return err
	}
	s := &simulation{fleet: f, net: net, all: map[string]*node{}}
	f.voters = min(3, peers)
	for i, n := range f.nodes {
		s.all[n.id] = n
		s.up(n)
		if i > 0 {
			continue
		}
		// The others begin with a snapshot: to apply the admission of every node on every node costs more than the rest.
		if err := s.leader().c.running.Load().raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	s.voting, s.following = f.split()
	time.Sleep(2 * time.Minute) // virtual: those that found a bad place have looked for a better one
	return s
}

// up starts a node; all that it does is counted as its own.
func (s *simulation) up(n *node) {
	_ = s.net.as(n.id, func() error { n.start(); return nil })
}

// laggingLogs takes its time for each write.
type laggingLogs struct{ raft.LogStore }

func (l laggingLogs) StoreLogs(logs []*raft.Log) error {
	time.Sleep(simSync)
	return l.LogStore.StoreLogs(logs)
}

func (l laggingLogs) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// block proposes a block on a node and waits until everybody alive has it.
func (s *simulation) block(i int) (index uint64, took time.Duration) {
	begin := time.Now()
	index = s.leader().propose(fsm.Command{Actor: "token:test", Op: fsm.AddBlock{
		Target: target(s.t, fmt.Sprintf("203.%d.%d.%d/32", i>>16&255, i>>8&255, i&255)), Reason: "abuse",
	}}).Index
	for _, n := range s.nodes {
		for n.alive() && n.store.View().Index() < index {
			time.Sleep(50 * time.Microsecond) // virtual
			if time.Since(begin) > 20*time.Second {
				s.t.Fatalf("%s is at index %d, not at %d", n.id, n.store.View().Index(), index)
			}
		}
	}
	return index, time.Since(begin)
}

func (s *simulation) measure(t *testing.T, p *profiler) figures {
	least := 100
	if os.Getenv("PALISADE_SIMULATE") != "" {
		least = 400 // for the figures: a sample of the CPU stands for 2 ms
	}
	got := figures{Peers: len(s.nodes), Writes: min(max(100_000/len(s.nodes), least), 2000)}
	for _, n := range s.following {
		got.Depth = max(got.Depth, len(n.path()))
	}
	leader := s.leader()
	const idle = 20 * time.Second
	all, own := s.traffic(leader.id)
	time.Sleep(idle) // virtual
	all2, own2 := s.traffic(leader.id)
	idleAll, idleOwn := all2.minus(all).over(idle), own2.minus(own).over(idle)
	got.LeaderIdle = idleOwn[0]

	p.start()
	begin := time.Now()
	var spread []time.Duration
	var last uint64
	for i := range got.Writes {
		index, took := s.block(i)
		spread, last = append(spread, took), index
	}
	took := time.Since(begin).Seconds()
	prof := p.stop()
	all3, own3 := s.traffic(leader.id)
	s.agree(last)
	if !leader.leads() {
		t.Error("the leader changed")
	}
	slices.Sort(spread)
	got.Spread, got.SpreadMax = ms(spread[len(spread)/2]), ms(spread[len(spread)-1])
	n := float64(got.Writes)
	d, o := all3.minus(all2), own3.minus(own2)
	got.Messages, got.Bytes = (d[0]-idleAll[0]*took)/n, (d[1]-idleAll[1]*took)/n
	got.LeaderMessages, got.LeaderBytes = (o[0]-idleOwn[0]*took)/n, (o[1]-idleOwn[1]*took)/n
	if prof == nil {
		return got
	}
	byNode, err := cpuByLabel(prof, "node")
	if err != nil {
		t.Fatal(err)
	}
	var others time.Duration
	for id, d := range byNode {
		if id != leader.id && id != "" {
			others += d
		}
	}
	got.LeaderCPU = float64(byNode[leader.id].Microseconds()) / n
	got.OtherCPU = float64(others.Microseconds()) / n / float64(len(s.nodes)-1)
	return got
}

// killInner kills nodes that others follow, each in its turn up to a number, then a voter and the leader, and looks
// what becomes of those that followed them.
func (s *simulation) killInner(t *testing.T, got *figures) {
	var inner []*node
	for _, n := range s.following {
		if n.c.source.followers() > 0 {
			inner = append(inner, n)
		}
	}
	most := min(max(10_000/len(s.nodes), 8), 16)
	inner = inner[:min(len(inner), most)]
	for _, v := range s.voting {
		if !v.leads() {
			inner = append(inner, v)
			break
		}
	}
	inner = append(inner, s.leader())
	for i, n := range inner {
		var orphans []*node
		for _, m := range s.following {
			if p := m.path(); len(p) > 0 && p[len(p)-1] == n.id {
				orphans = append(orphans, m)
			}
		}
		from := n.store.View().Index()
		s.agree(from)
		watch := map[*node]*fsm.Watcher{}
		for _, m := range orphans {
			watch[m] = m.store.Watch(from)
		}
		n.crash()
		begin := time.Now()
		var last uint64
		for k := range 3 {
			last, _ = s.block(1<<20 + i*10 + k)
			if k == 0 {
				got.Resume = max(got.Resume, ms(time.Since(begin)))
			}
		}
		want := feed(t, s.leader().store.Watch(from), last)
		for _, m := range orphans {
			if is := feed(t, watch[m], last); is != want {
				t.Errorf("%s followed %s, which died, and saw %s, not %s", m.id, n.id, is, want)
			}
		}
		s.up(n)
		s.ready()
		s.agree(last)
		got.Killed++
	}
}

// feed is what a node's state machine told up to an index.
func feed(t *testing.T, w *fsm.Watcher, last uint64) string {
	var b strings.Builder
	for {
		v, events, err := w.Next(within(t, time.Second))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			fmt.Fprintf(&b, "%d %s; ", e.Index, e.Type)
		}
		if v.Index() >= last {
			return b.String()
		}
	}
}

type sums [2]float64 // messages, bytes

func (s sums) minus(o sums) sums { return sums{s[0] - o[0], s[1] - o[1]} }

func (s sums) over(d time.Duration) sums { return sums{s[0] / d.Seconds(), s[1] / d.Seconds()} }

// traffic is what all nodes have sent, and what one has.
func (s *simulation) traffic(of string) (all, own sums) {
	for id := range s.all {
		t := s.net.traffic(id)
		is := sums{float64(t.messages.Load()), float64(t.bytes.Load())}
		all[0], all[1] = all[0]+is[0], all[1]+is[1]
		if id == of {
			own = is
		}
	}
	return all, own
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// profileRate is samples of the CPU a second.
const profileRate = 500

// profiler takes CPU profiles for a bubble of virtual time from outside of it: what pprof waits for would stop the
// time in it.
type profiler struct {
	phase atomic.Int32 // counts orders and answers in turn
	data  bytes.Buffer
	ended chan struct{}
}

func newProfiler() *profiler {
	p := &profiler{ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		for {
			switch p.phase.Load() {
			case 1:
				runtime.SetCPUProfileRate(profileRate) // pprof's own is too coarse; it says that it can't set it
				_ = pprof.StartCPUProfile(&p.data)     // without one there are no figures
				p.phase.Store(2)
			case 3:
				pprof.StopCPUProfile()
				p.phase.Store(4)
				return
			case 5:
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return p
}

func (p *profiler) start() {
	if p != nil {
		p.order(1)
	}
}

// stop returns the profile, nothing without a profiler.
func (p *profiler) stop() []byte {
	if p == nil {
		return nil
	}
	p.order(3)
	return p.data.Bytes()
}

// order waits without blocking, for which virtual time would not stand still.
func (p *profiler) order(phase int32) {
	p.phase.Store(phase)
	for p.phase.Load() == phase {
		runtime.Gosched()
	}
}

func (p *profiler) end() {
	if p == nil {
		return
	}
	p.phase.CompareAndSwap(0, 5)
	<-p.ended
}

// cpuByLabel sums the time in a CPU profile by the value of a label of the goroutines.
func cpuByLabel(profile []byte, label string) (map[string]time.Duration, error) {
	zip, err := gzip.NewReader(bytes.NewReader(profile))
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(zip)
	if err != nil {
		return nil, err
	}
	var texts []string
	var samples [][]byte
	fields(data, func(field protowire.Number, _ uint64, value []byte) {
		if field == 2 {
			samples = append(samples, value)
		}
		if field == 6 {
			texts = append(texts, string(value))
		}
	})
	out := map[string]time.Duration{}
	for _, s := range samples {
		var values []uint64
		who := ""
		fields(s, func(field protowire.Number, number uint64, value []byte) {
			switch {
			case field == 2 && value == nil:
				values = append(values, number)
			case field == 2:
				for len(value) > 0 {
					v, n := protowire.ConsumeVarint(value)
					values, value = append(values, v), value[n:]
				}
			case field == 3:
				var key, is uint64
				fields(value, func(f protowire.Number, number uint64, _ []byte) {
					if f == 1 {
						key = number
					}
					if f == 2 {
						is = number
					}
				})
				if texts[key] == label {
					who = texts[is]
				}
			}
		})
		if len(values) == 2 { // samples, nanoseconds
			out[who] += time.Duration(values[1])
		}
	}
	return out, nil
}

// fields walks the fields of an encoded message.
func fields(data []byte, f func(field protowire.Number, number uint64, value []byte)) {
	for len(data) > 0 {
		field, kind, n := protowire.ConsumeTag(data)
		data = data[max(n, 0):]
		switch {
		case n < 0:
			return
		case kind == protowire.VarintType:
			v, n := protowire.ConsumeVarint(data)
			data = data[n:]
			f(field, v, nil)
		case kind == protowire.BytesType:
			v, n := protowire.ConsumeBytes(data)
			data = data[n:]
			f(field, 0, v)
		default:
			data = data[protowire.ConsumeFieldValue(field, kind, data):]
		}
	}
}
