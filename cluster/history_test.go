package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/fsm"
)

// register is one VM's owner: written by proposals, read linearizably.
type registerOp struct {
	vm    string
	write string // "" reads
}

var registers = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byVM := map[string][]porcupine.Operation{}
		for _, o := range history {
			in := o.Input.(registerOp)
			byVM[in.vm] = append(byVM[in.vm], o)
		}
		var out [][]porcupine.Operation
		for _, ops := range byVM {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		if in := input.(registerOp); in.write != "" {
			return true, in.write
		}
		return output == state, state
	},
}

// slowLogs is a disk with latency.
type slowLogs struct {
	raft.LogStore
	mu  sync.Mutex
	rnd *rand.Rand
}

func (l *slowLogs) StoreLogs(logs []*raft.Log) error {
	l.mu.Lock()
	d := time.Duration(1+l.rnd.IntN(20)) * time.Millisecond
	l.mu.Unlock()
	time.Sleep(d)
	return l.LogStore.StoreLogs(logs)
}

// TestHistoriesAreLinearizable runs clients on all nodes of a fleet whose leaders are killed and
// whose members are cut off. A write of unknown outcome is kept open for ever; one that was said to
// be certainly not written must never be read.
func TestHistoriesAreLinearizable(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { linearizable(t, seed) })
		})
	}
}

func linearizable(t *testing.T, seed uint64) {
	// Disks that take their time, so that kills hit writes under way; and a lease as long as it may
	// be, so that an old leader still believes in itself when a new one is elected.
	f, net := memFleet(t, 5, func(w *memWorld, o *Options) {
		o.Timing.Lease = time.Second
		l := &slowLogs{LogStore: w.store.logs, rnd: rand.New(rand.NewPCG(seed, uint64(len(w.id))))}
		w.wrap = func(d *disk) { d.logs = &guardedLogs{d.guard, l} }
	})
	f.start().ready()
	var (
		clock   atomic.Int64 // a logical clock: virtual time stands still too often
		mu      sync.Mutex
		history []porcupine.Operation
		counts  = map[string]int{}
		stop    = make(chan struct{})
		clients sync.WaitGroup
	)
	for client := range 8 {
		rnd := rand.New(rand.NewPCG(seed, uint64(client)))
		clients.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(rnd.IntN(60)) * time.Millisecond):
				}
				c, store := f.nodes[rnd.IntN(len(f.nodes))].now()
				if c == nil {
					continue
				}
				in := registerOp{vm: fmt.Sprintf("vm%d", rnd.IntN(3))}
				cmd := declare(in.vm, "")
				if rnd.IntN(2) == 0 {
					in.write = fmt.Sprintf("c%d-%d", client, i)
					cmd = declare(in.vm, in.write)
					if rnd.IntN(2) == 0 {
						cmd.Key = in.write
					}
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(200+rnd.IntN(4000))*time.Millisecond)
				call := clock.Add(1)
				out, kind := run(ctx, c, store, in, cmd)
				cancel()
				end := clock.Add(1)
				if kind == "unknown" {
					end = math.MaxInt64
				}
				mu.Lock()
				counts[kind]++
				if kind == "done" || kind == "unknown" {
					history = append(history, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call, Return: end})
				}
				mu.Unlock()
			}
		})
	}

	rnd := rand.New(rand.NewPCG(seed, 99))
	kills, cuts := 0, 0
	for range 12 {
		time.Sleep(time.Duration(rnd.IntN(3000)) * time.Millisecond) // virtual
		if victim := f.leader(); rnd.IntN(2) == 0 {
			kills++
			victim.crash()
			time.Sleep(time.Duration(rnd.IntN(4000)) * time.Millisecond)
			victim.start()
		} else {
			cuts++
			net.cut(victim.id, true)
			time.Sleep(time.Duration(rnd.IntN(4000)) * time.Millisecond)
			net.cut(victim.id, false)
		}
	}
	f.ready()
	close(stop)
	clients.Wait()
	f.agree(f.leader().store.View().Index())
	t.Logf("seed %d: %d kills, %d cuts, %d operations checked, outcomes %v", seed, kills, cuts, len(history), counts)
	if counts["unknown"] == 0 || counts["done"] < 500 {
		t.Error("the run has tested nothing")
	}
	for _, part := range registers.Partition(history) {
		if !porcupine.CheckOperations(registers, part) {
			t.Errorf("the history is not linearizable:\n%s", shortest(part))
		}
	}
	f.stopVirtual()
}

// shortest tells of a history that is not linearizable the last operations of its shortest beginning that is
// not either, by the order of their ends.
func shortest(history []porcupine.Operation) string {
	ends := slices.Clone(history)
	slices.SortFunc(ends, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	upTo := func(n int) (beginning []porcupine.Operation) {
		for _, o := range history {
			if o.Call > ends[n-1].Return { // had not begun
				continue
			}
			if o.Return > ends[n-1].Return {
				if o.Input.(registerOp).write == "" {
					continue // what it reads is not known yet
				}
				o.Return = math.MaxInt64
			}
			beginning = append(beginning, o)
		}
		return beginning
	}
	n := sort.Search(len(ends), func(i int) bool { return !porcupine.CheckOperations(registers, upTo(i+1)) }) + 1
	var out strings.Builder
	for _, o := range ends[max(0, n-25):min(n, len(ends))] {
		in := o.Input.(registerOp)
		fmt.Fprintf(&out, "%d to %d, client %d: write %q, read %q\n", o.Call, o.Return, o.ClientId, in.write, o.Output)
	}
	for _, o := range ends {
		if o.Return == math.MaxInt64 {
			fmt.Fprintf(&out, "unknown from %d, client %d: write %q\n", o.Call, o.ClientId, o.Input.(registerOp).write)
		}
	}
	return out.String()
}

func run(ctx context.Context, c *Cluster, store *fsm.Store, in registerOp, cmd fsm.Command) (out, kind string) {
	if in.write == "" {
		if _, err := c.ReadIndex(ctx); err != nil {
			return "", "no read"
		}
		return owner(store, in.vm), "done"
	}
	_, err := c.Propose(ctx, cmd)
	switch {
	case err == nil:
		return "", "done"
	case errors.Is(err, fsm.ErrUnknown):
		return "", "unknown"
	default:
		return "", "unavailable"
	}
}
