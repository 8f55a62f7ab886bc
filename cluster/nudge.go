package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// How often and how soon a nudge is sent again to a follower that has not stored the entry yet.
const (
	nudgeRetries = 4
	nudgeBackoff = time.Millisecond
)

// nudger tells followers of a commit at once. Raft itself tells them with the next entry, or after
// its commit timeout. Why this is safe is proven in DESIGN.md. It keeps one goroutine for each follower
// that this node's raft has ever sent entries to, with the latest index only; an idle fleet sends nothing.
type nudger struct {
	tap   *tap
	count func() // of nudges sent

	mu      sync.Mutex
	start   func(*nudgeWorker) // nil until run, and after it
	workers map[raft.ServerID]*nudgeWorker
}

type nudgeWorker struct {
	id   raft.ServerID
	wake chan struct{} // buffered, 1
	gone chan struct{} // closed when the follower is removed

	mu          sync.Mutex
	index, term uint64
}

func newNudger(t *tap, count func()) *nudger {
	return &nudger{tap: t, workers: map[raft.ServerID]*nudgeWorker{}, count: count}
}

// committed tells the workers of a committed entry. It is called on every node for every batch and
// never blocks; only on the leader of the entry's term does anything come of it.
func (n *nudger) committed(index, term uint64) {
	for _, id := range n.tap.led(term) {
		w := n.worker(id)
		w.mu.Lock()
		w.index, w.term = index, term
		w.mu.Unlock()
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (n *nudger) worker(id raft.ServerID) *nudgeWorker {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.workers[id]
	if w == nil {
		w = &nudgeWorker{id: id, wake: make(chan struct{}, 1), gone: make(chan struct{})}
		n.workers[id] = w
		if n.start != nil {
			n.start(w)
		}
	}
	return w
}

// remove ends what belongs to a follower that raft sends nothing to any more.
func (n *nudger) remove(id raft.ServerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.workers[id]; w != nil {
		close(w.gone)
		delete(n.workers, id)
	}
}

// run serves the workers until ctx ends.
func (n *nudger) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	n.mu.Lock()
	n.start = func(w *nudgeWorker) { wg.Go(func() { n.serve(ctx, w) }) }
	for _, w := range n.workers {
		n.start(w)
	}
	n.mu.Unlock()
	<-ctx.Done()
	n.mu.Lock()
	n.start = nil
	n.mu.Unlock()
}

func (n *nudger) serve(ctx context.Context, w *nudgeWorker) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.gone:
			return
		case <-w.wake:
			n.send(ctx, w.id, w)
		}
	}
}

func (n *nudger) send(ctx context.Context, id raft.ServerID, w *nudgeWorker) {
	for try := range nudgeRetries {
		w.mu.Lock()
		index, term := w.index, w.term
		w.mu.Unlock()
		// Only the leader of a term creates entries of that term, and raft sent this template as
		// its leader: the entry is this node's own.
		s, ok := n.tap.template(id, term)
		if !ok || s.commit >= index {
			return
		}
		req := raft.AppendEntriesRequest{
			RPCHeader: s.header, Term: term,
			PrevLogEntry: index, PrevLogTerm: term, LeaderCommitIndex: index,
		}
		var resp raft.AppendEntriesResponse
		n.count()
		if err := n.tap.inner.AppendEntries(id, s.target, &req, &resp); err != nil {
			return // raft's own heartbeats deal with a peer that is away
		}
		if resp.Success || resp.Term > term || resp.LastLog >= index {
			return
		}
		// The entry is still on its way to this follower. If it stays behind, raft's own commit
		// timeout does the rest.
		select {
		case <-ctx.Done():
			return
		case <-time.After(nudgeBackoff << try):
		}
	}
}
