package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/palisade/palisade/fsm"
)

// keeper is the loop of what keeps tables in this node's kernel equal to the state. Each is a loop of its own, so that what
// takes seconds to load holds up no block.
type keeper struct {
	store    *fsm.Store
	caughtUp <-chan struct{} // closed once the state was as new as the leader's
	localCh  chan struct{}   // signals that what the node knows of itself has changed
	interval time.Duration   // of looks at the kernel
	counting time.Duration   // between readings of what was dropped
}

func newKeeper(store *fsm.Store, caughtUp <-chan struct{}) keeper {
	return keeper{store: store, caughtUp: caughtUp, localCh: make(chan struct{}, 1), interval: lookInterval, counting: time.Second}
}

// turns are what a keeper calls, one at a time. After any of the others comes step.
type turns struct {
	took     func(b batch) // the state has changed
	local    func()
	caughtUp func()
	look     func(ctx context.Context)
	count    func(ctx context.Context)
	step     func(ctx context.Context) error // brings to the kernel what is due
	failed   func(err error)                 // step has, and will be tried again
}

// keep calls until ctx ends. What failed is tried again, at growing intervals.
func (k keeper) keep(ctx context.Context, t turns) {
	ctx, cancel := context.WithCancel(ctx)
	feed := make(chan batch)
	var wg sync.WaitGroup
	wg.Go(func() { follow(ctx, k.store, feed) })
	defer wg.Wait()
	defer cancel()

	retry := time.NewTimer(0)
	defer retry.Stop()
	<-retry.C
	look := time.NewTicker(k.interval)
	defer look.Stop()
	count := time.NewTicker(k.counting)
	defer count.Stop()
	wait := retryKernelMin
	for {
		select {
		case <-ctx.Done():
			return
		case b := <-feed:
			t.took(b)
		case <-k.localCh:
			t.local()
		case <-k.caughtUp:
			k.caughtUp = nil
			t.caughtUp()
		case <-look.C:
			t.look(ctx)
		case <-count.C:
			t.count(ctx)
		case <-retry.C:
		}
		if err := t.step(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			t.failed(err)
			retry.Reset(wait)
			wait = min(2*wait, retryKernelMax)
			continue
		}
		wait = retryKernelMin
	}
}

// follow turns the blocking watcher into a channel. It never runs ahead.
func follow(ctx context.Context, store *fsm.Store, feed chan<- batch) {
	view := store.View()
	w := store.Watch(view.Index())
	b := batch{view: view, reset: true}
	for {
		select {
		case feed <- b:
		case <-ctx.Done():
			return
		}
		v, events, err := w.Next(ctx)
		if err != nil && !errors.Is(err, fsm.ErrCompacted) {
			return
		}
		b = batch{view: v, events: events, reset: err != nil}
	}
}

// signal leaves word for who reads c, unless there is some already.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
