package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/palisade/palisade/test/rig"
)

// faults kills agents and starts them again.
type faults struct {
	rig *rig.Rig
	rnd *rand.Rand

	mu     sync.Mutex
	kills  int
	ill    bool
	healed time.Time // when all agents were ready again after the last kill
}

func newFaults(r *rig.Rig, seed uint64) *faults {
	return &faults{rig: r, rnd: rand.New(rand.NewPCG(seed, 2))}
}

// run kills with SIGKILL, one agent or now and then all of them, until ctx ends; then all run and are ready.
func (f *faults) run(ctx context.Context) error {
	every := context.WithoutCancel(ctx) // what was killed is started again in any case
	for pause(ctx, 500*time.Millisecond+time.Duration(f.rnd.IntN(4500))*time.Millisecond) == nil {
		nodes := f.rig.Nodes()
		f.rnd.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		if f.rnd.IntN(6) > 0 {
			nodes = nodes[:1]
		}
		f.mu.Lock()
		f.ill = true
		f.mu.Unlock()
		for _, n := range nodes {
			if err := f.rig.KillAgent(every, n.Name, syscall.SIGKILL); err != nil {
				return err
			}
		}
		_ = pause(ctx, time.Duration(f.rnd.IntN(1200))*time.Millisecond)
		slices.Reverse(nodes)
		for _, n := range nodes {
			if err := f.rig.StartAgent(every, n.Name); err != nil {
				return err
			}
		}
		if err := f.rig.AwaitReady(every); err != nil {
			return fmt.Errorf("after a kill of %d agents: %w", len(nodes), err)
		}
		f.mu.Lock()
		f.kills += len(nodes)
		f.ill, f.healed = false, time.Now()
		f.mu.Unlock()
	}
	if err := ctx.Err(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (f *faults) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.kills
}

// well returns from when on all agents were ready, if that is after a time; or else that time.
func (f *faults) well(since time.Time) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.ill:
		return time.Now()
	case f.healed.After(since):
		return f.healed
	}
	return since
}
