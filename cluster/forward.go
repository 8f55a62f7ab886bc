package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

const (
	// maxForwards is how many calls with proposals are under way to one leader. What comes in the
	// meantime shares the next call: under load many proposals cost one round trip, while one alone
	// goes at once.
	maxForwards = 2
	// maxBundle and maxBundleBytes bound what shares a call.
	maxBundle      = 256
	maxBundleBytes = 1 << 20
)

// forwarder sends this node's proposals to one peer.
type forwarder struct {
	peer    string
	propose func(ctx context.Context, id string, req *peerpb.ProposeRequest) (*peerpb.ProposeResponse, error)
	ctx     context.Context //nolint:containedctx // of the cluster: a call outlives the proposal that began it
	running *sync.WaitGroup

	mu    sync.Mutex
	queue []*forwarded
	calls int
}

type forwarded struct {
	data     []byte
	deadline time.Time
	sent     bool // guarded by forwarder.mu
	done     chan outcome
}

// forwarders keep one for each member that has led.
type forwarders struct {
	dir   *directory
	make  func(id string) *forwarder
	mu    sync.Mutex
	known map[string]*forwarder
}

// to returns the forwarder to a member, nil for who is none.
func (f *forwarders) to(id string) *forwarder {
	_, ok := f.dir.peer(id)
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.known[id]
	switch {
	case !ok:
		delete(f.known, id) // what it has under way ends by itself
		return nil
	case known == nil:
		known = f.make(id)
		f.known[id] = known
	}
	return known
}

// tidy gives up those to who is no member any more.
func (f *forwarders) tidy() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.known {
		if _, ok := f.dir.peer(id); !ok {
			delete(f.known, id)
		}
	}
}

// do forwards one encoded command and waits for its outcome.
func (f *forwarder) do(ctx context.Context, data []byte) outcome {
	p := &forwarded{data: data, done: make(chan outcome, 1)}
	p.deadline, _ = ctx.Deadline() // Propose has set one
	f.mu.Lock()
	f.queue = append(f.queue, p)
	f.kick() //nolint:contextcheck // a call outlives the proposal that began it
	f.mu.Unlock()
	select {
	case o := <-p.done:
		return o
	case <-ctx.Done():
		return f.giveUp(ctx, p)
	}
}

// giveUp takes a proposal back if it has not left yet.
func (f *forwarder) giveUp(ctx context.Context, p *forwarded) outcome {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.sent {
		return failed(unknown, fmt.Errorf("sent to %s, no answer: %w", f.peer, ctx.Err()))
	}
	for i, q := range f.queue {
		if q == p {
			f.queue = append(f.queue[:i], f.queue[i+1:]...)
			break
		}
	}
	return failed(notAppended, ctx.Err())
}

// kick starts a call with what is queued, if there may be another one. The caller holds mu.
func (f *forwarder) kick() {
	for len(f.queue) > 0 && f.calls < maxForwards {
		n, size := 0, 0
		for n < len(f.queue) && n < maxBundle && (n == 0 || size+len(f.queue[n].data) <= maxBundleBytes) {
			size += len(f.queue[n].data)
			f.queue[n].sent = true
			n++
		}
		bundle := append([]*forwarded(nil), f.queue[:n]...)
		f.queue = append(f.queue[:0], f.queue[n:]...)
		f.calls++
		f.running.Add(1)
		go func() {
			defer f.running.Done()
			f.send(bundle)
			f.mu.Lock()
			f.calls--
			f.kick()
			f.mu.Unlock()
		}()
	}
}

func (f *forwarder) send(bundle []*forwarded) {
	req := &peerpb.ProposeRequest{Commands: make([][]byte, len(bundle))}
	var last time.Time
	for i, p := range bundle {
		req.Commands[i] = p.data
		if p.deadline.After(last) {
			last = p.deadline
		}
	}
	ctx, cancel := context.WithDeadline(f.ctx, last)
	defer cancel()
	resp, err := f.propose(ctx, f.peer, req)
	if err == nil && len(resp.GetOutcomes()) != len(bundle) {
		err = fmt.Errorf("%d outcomes for %d commands", len(resp.GetOutcomes()), len(bundle))
	}
	for i, p := range bundle {
		switch {
		case errors.Is(err, errNotSent), errors.Is(err, fsm.ErrUnavailable):
			p.done <- failed(notAppended, err)
		case err != nil:
			p.done <- failed(unknown, err)
		default:
			p.done <- decodeOutcome(resp.GetOutcomes()[i])
		}
	}
}
