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
// its commit timeout. Why this is safe is proven in DESIGN.md. It keeps one goroutine for each peer,
// with the latest index only; an idle fleet sends nothing.
type nudger struct {
	tap     *tap
	workers map[raft.ServerID]*nudgeWorker
	count   func() // of nudges sent
}

type nudgeWorker struct {
	wake chan struct{} // buffered, 1

	mu          sync.Mutex
	index, term uint64
}

func newNudger(t *tap, peers map[string]Peer, self string, count func()) *nudger {
	n := &nudger{tap: t, workers: map[raft.ServerID]*nudgeWorker{}, count: count}
	for id := range peers {
		if id != self {
			n.workers[raft.ServerID(id)] = &nudgeWorker{wake: make(chan struct{}, 1)}
		}
	}
	return n
}

// committed tells the workers of a committed entry. It is called on every node for every batch and
// never blocks; only on the leader of the entry's term does anything come of it.
func (n *nudger) committed(index, term uint64) {
	for id, w := range n.workers {
		if _, leads := n.tap.template(id, term); !leads {
			continue
		}
		w.mu.Lock()
		w.index, w.term = index, term
		w.mu.Unlock()
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// run serves one goroutine for each peer until ctx ends.
func (n *nudger) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for id, w := range n.workers {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-w.wake:
					n.send(ctx, id, w)
				}
			}
		})
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
