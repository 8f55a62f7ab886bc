package cluster

import (
	"context"
	"fmt"
	"sync"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

// relay lets many followers that ask the leader for a proof at the same moment, after a silence, share the calls:
// those that come while one is under way share the next. So each answer was asked for after each question.
type relay struct {
	mu      sync.Mutex
	busy    bool
	waiting *relayed
}

type relayed struct {
	done   chan struct{}
	answer *peerpb.ReadIndexResponse
	err    error
}

// ask calls f, or waits for another's call of f that begins after this one; calls end with base.
func (r *relay) ask(ctx, base context.Context, f func(context.Context) (*peerpb.ReadIndexResponse, error)) (*peerpb.ReadIndexResponse, error) {
	r.mu.Lock()
	if r.waiting == nil {
		r.waiting = &relayed{done: make(chan struct{})}
	}
	mine := r.waiting
	if !r.busy {
		r.busy = true
		go r.run(base, f)
	}
	r.mu.Unlock()
	select {
	case <-mine.done:
		return mine.answer, mine.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// run calls until nobody waits.
func (r *relay) run(base context.Context, f func(context.Context) (*peerpb.ReadIndexResponse, error)) {
	for {
		r.mu.Lock()
		next := r.waiting
		r.waiting = nil
		if next == nil {
			r.busy = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		ctx, cancel := context.WithTimeout(base, helloTime)
		next.answer, next.err = f(ctx)
		cancel()
		close(next.done)
	}
}

// readIndexAbove asks the leader, or on a follower its source, for an index as of now.
func (c *Cluster) readIndexAbove(ctx context.Context, hops uint32) (*peerpb.ReadIndexResponse, error) {
	to := c.leader()
	if f := c.follows.Load(); f != nil {
		k := f.know.now()
		if to = ""; k.attached {
			to = k.source()
		}
	}
	if to == "" || to == c.id {
		return nil, fmt.Errorf("%w: %w", fsm.ErrUnavailable, errNoLeader)
	}
	return c.rpc.readIndex(ctx, to, &peerpb.ReadIndexRequest{Hops: hops})
}
