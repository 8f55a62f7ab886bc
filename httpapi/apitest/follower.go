package apitest

import (
	"context"
	"sync"

	"github.com/palisade/palisade/fsm"
)

// Follower is the Backend of another node of a Fleet: it has a state of its own, which follows that of the fleet, and
// forwards writes and strong reads to it.
type Follower struct {
	*Fleet
	mu    sync.Mutex // the single writer of the store
	store *fsm.Store
	cut   bool
}

// Follow returns a node that has the whole state.
func (f *Fleet) Follow() *Follower { return &Follower{Fleet: f, store: fsm.NewStore()} }

// Cut stops the node from following, or lets it follow again.
func (n *Follower) Cut(off bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = off
}

// follow applies what the fleet has applied.
func (n *Follower) follow() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut {
		return
	}
	if _, err := n.store.ApplyBatch(n.after(n.store.View().Index())); err != nil {
		n.t.Errorf("follow: %v", err)
	}
}

// after returns what was applied after a log index.
func (f *Fleet) after(index uint64) []fsm.Entry {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.entries[index:]
}

// View returns the node's own state.
func (n *Follower) View() *fsm.View {
	n.follow()
	return n.store.View()
}

// Watch watches the node's own state.
func (n *Follower) Watch(from uint64) *fsm.Watcher { return n.store.Watch(from) }

// ReadIndex asks the fleet, and follows to there.
func (n *Follower) ReadIndex(ctx context.Context) (uint64, error) {
	index, err := n.Fleet.ReadIndex(ctx)
	n.follow()
	return index, err
}
