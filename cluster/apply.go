package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/fsm"
)

// applier brings committed entries into the fsm.Store, for raft or for a follower: one goroutine at a time
// calls it. It lives as long as the Cluster.
type applier struct {
	store *fsm.Store
	// committed is called with the last entry of a batch before it is applied; nil for nothing.
	committed atomic.Pointer[func(index, term uint64)]
	members   *membership
	// restored gives the description of the newest snapshot, which says who were raft's members; nil for nothing.
	restored func() (*raft.SnapshotMeta, error)

	last atomic.Uint64 // log index up to which every entry that concerns the store is in it

	mu      sync.Mutex
	waiters map[*waiter]struct{}
}

type waiter struct {
	index uint64
	done  chan struct{}
}

var _ raft.BatchingFSM = (*applier)(nil)

func newApplier(store *fsm.Store, members *membership) *applier {
	return &applier{store: store, members: members, waiters: map[*waiter]struct{}{}}
}

// notApplied is the response for an entry that a halted store did not apply: it is committed, and
// its result is not known here.
type notApplied struct{ err error }

// ApplyBatch applies committed entries. A store that is halted keeps its state; raft goes on, so that
// the node stays a member and tells why.
func (a *applier) ApplyBatch(logs []*raft.Log) []any {
	final := logs[len(logs)-1]
	if f := a.committed.Load(); f != nil {
		(*f)(final.Index, final.Term)
	}

	out := make([]any, len(logs))
	entries := make([]fsm.Entry, 0, len(logs))
	at := make([]int, 0, len(logs))
	for i, l := range logs {
		if l.Type == raft.LogConfiguration {
			a.members.note(l.Index, raft.DecodeConfiguration(l.Data))
		}
		if l.Type == raft.LogCommand {
			entries = append(entries, fsm.Entry{Index: l.Index, Data: l.Data})
			at = append(at, i)
		}
	}
	if len(entries) > 0 {
		results, err := a.store.ApplyBatch(entries)
		for i, pos := range at {
			if i < len(results) && (err == nil || entries[i].Index <= a.store.View().Index()) {
				out[pos] = results[i]
			} else {
				out[pos] = notApplied{err}
			}
		}
		if err != nil {
			return out
		}
	}
	a.advance(final.Index)
	return out
}

// Apply is never called: raft prefers ApplyBatch.
func (a *applier) Apply(l *raft.Log) any { return a.ApplyBatch([]*raft.Log{l})[0] }

// Snapshot hands out the current View. A halted store gives none: its log must not be cut off behind
// entries that it has not applied.
func (a *applier) Snapshot() (raft.FSMSnapshot, error) {
	if err := a.store.Halted(); err != nil {
		return nil, fmt.Errorf("no snapshot of a halted store: %w", err)
	}
	return viewSnapshot{a.store.View()}, nil
}

// Restore replaces the state by a snapshot.
func (a *applier) Restore(rc io.ReadCloser) error {
	if err := a.store.Restore(rc); err != nil {
		return fmt.Errorf("restore the state from a snapshot: %w", err)
	}
	a.last.Store(0)
	a.advance(a.store.View().Index())
	if a.restored == nil {
		return nil
	}
	meta, err := a.restored()
	if meta != nil {
		a.members.note(meta.ConfigurationIndex, meta.Configuration)
	}
	return err
}

func (a *applier) advance(index uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if index < a.last.Load() {
		return // raft hands over again what a follower had applied
	}
	a.last.Store(index)
	for w := range a.waiters {
		if w.index <= index {
			close(w.done)
			delete(a.waiters, w)
		}
	}
}

// wait blocks until the store has applied index, or ctx ends.
func (a *applier) wait(ctx context.Context, index uint64) error {
	a.mu.Lock()
	if a.last.Load() >= index {
		a.mu.Unlock()
		return nil
	}
	w := &waiter{index: index, done: make(chan struct{})}
	a.waiters[w] = struct{}{}
	a.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		a.mu.Lock()
		delete(a.waiters, w)
		a.mu.Unlock()
		return ctx.Err()
	}
}

type viewSnapshot struct{ view *fsm.View }

func (s viewSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.view.WriteSnapshot(sink); err != nil {
		return errors.Join(fmt.Errorf("write a snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

func (viewSnapshot) Release() {}
