package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/palisade/palisade/httpapi/client"
)

// steady changes a fleet at a steady rate, as in a busy hour: of ten changes four add a block, of a VM or an address in
// turn, some with an end; four lift one; two change a VM. Each is one event.
type steady struct {
	clients []*client.Client // of one token
	vms     int              // vm-0 and so on are there
	target  func() client.Target

	mu     sync.Mutex
	held   []string // ids of active blocks
	actor  string   // that the events name
	sent   int
	failed error
	late   time.Duration // the most that a change came after its time
}

const steadyWriters = 32

// fill adds n blocks as fast as they go.
func (s *steady) fill(ctx context.Context, n int) error {
	var wg sync.WaitGroup
	for w := range steadyWriters {
		wg.Go(func() {
			for i := w; i < n && s.err() == nil; i += steadyWriters {
				s.add(ctx, w, i)
			}
		})
	}
	wg.Wait()
	return s.err()
}

// run changes things, rate a second, until the context ends. Changes that are under way then are waited for. It returns what went wrong.
func (s *steady) run(ctx context.Context, rate int) error {
	began, jobs := time.Now(), make(chan int)
	var wg sync.WaitGroup
	for w := range steadyWriters {
		wg.Go(func() {
			for i := range jobs {
				s.change(context.WithoutCancel(ctx), w, i)
				s.mu.Lock()
				s.late = max(s.late, time.Since(began)-time.Duration(i)*time.Second/time.Duration(rate))
				s.mu.Unlock()
			}
		})
	}
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for i := 0; s.err() == nil; {
		select {
		case <-ctx.Done():
			close(jobs)
			wg.Wait()
			return s.err()
		case <-tick.C:
		}
		for ; i <= int(time.Since(began).Seconds()*float64(rate)); i++ {
			jobs <- i
		}
	}
	close(jobs)
	wg.Wait()
	return s.err()
}

// during runs something while things change, and returns what went wrong with either.
func (s *steady) during(ctx context.Context, rate int, f func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx, rate) }() // ends with cancel
	err := f()
	cancel()
	return errors.Join(err, <-ended)
}

func (s *steady) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *steady) change(ctx context.Context, w, i int) {
	switch k := i % 10; {
	case k < 8 && k%2 == 0:
		s.add(ctx, w, i/2)
	case k < 8:
		s.lift(ctx, w)
	default:
		n := rand.IntN(s.vms)
		vm := vmRequest(n)
		vm.Name = fmt.Sprintf("customer-%d-%d", n, i) // never what it was
		_, err := s.clients[w%len(s.clients)].PutVM(ctx, vmID(n), vm, client.Write{})
		s.done(err)
	}
}

func (s *steady) add(ctx context.Context, w, i int) {
	reasons := [...]string{"abuse", "unpaid", "attack", "spam"}
	r := client.BlockRequest{Target: client.Target{VM: vmID(rand.IntN(s.vms))}, Reason: reasons[i%len(reasons)]}
	if i%2 == 0 {
		r.Target = s.next()
	}
	if i%5 == 0 {
		r.Duration = "24h"
	}
	b, err := s.clients[w%len(s.clients)].AddBlock(ctx, r, client.Write{})
	if err == nil {
		s.mu.Lock()
		s.held, s.actor = append(s.held, b.Block.ID), b.Block.Actor
		s.mu.Unlock()
	}
	s.done(err)
}

func (s *steady) next() client.Target {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.target()
}

// lift lifts one of the blocks, any.
func (s *steady) lift(ctx context.Context, w int) {
	s.mu.Lock()
	k, last := rand.IntN(len(s.held)), len(s.held)-1
	id := s.held[k]
	s.held[k], s.held = s.held[last], s.held[:last]
	s.mu.Unlock()
	_, err := s.clients[w%len(s.clients)].LiftBlock(ctx, id, client.Write{})
	s.done(err)
}

func (s *steady) done(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.sent++
	case s.failed == nil:
		s.failed = err
	}
}
