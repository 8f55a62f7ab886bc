package fsm

import (
	"errors"
	"sync/atomic"
)

// Entry is one committed log entry.
type Entry struct {
	Index uint64
	Data  []byte // an encoded Command
}

// Store holds the state. One goroutine writes (ApplyBatch, Restore); any number read Views. Readers,
// snapshots and the writer never block each other.
type Store struct {
	current atomic.Pointer[View]
	halted  atomic.Pointer[UnsupportedError]
	held    atomic.Uint64 // see HoldAudit
	limits  limits
	buf     []byte    // of the writer
	json    auditJSON // likewise
}

// NewStore returns an empty state at index 0.
func NewStore() *Store { return newStore(defaultLimits()) }

func newStore(l limits) *Store {
	s := &Store{limits: l}
	s.held.Store(holdsNothing)
	s.current.Store(&View{state: newState(), superseded: make(chan struct{})})
	return s
}

// View returns the current state; never nil, never changes.
func (s *Store) View() *View { return s.current.Load() }

// ApplyBatch applies committed entries in order and publishes one View with all of them. Entries at
// or below the View's index are skipped; their results hold nothing but the index. It returns a result
// for each entry. An entry that this build can't read stops the store: its index and all later ones
// are not applied, and the error, an *UnsupportedError, says which version would be needed; the
// results are then those of the entries before it only. The same error comes again from every later
// call, until a Restore.
func (s *Store) ApplyBatch(entries []Entry) ([]Result, error) {
	if err := s.Halted(); err != nil {
		return nil, err
	}
	was := s.View()
	a := applier{state: was.state, limits: s.limits, buf: s.buf, json: s.json, held: s.held.Load()}
	results := make([]Result, 0, len(entries))
	var halt error
	for _, e := range entries {
		if e.Index <= a.index {
			results = append(results, Result{Index: e.Index})
			continue
		}
		r, err := a.entry(e)
		if err != nil {
			halt = err
			break
		}
		results = append(results, r)
	}
	s.buf, s.json = a.buf, a.json
	if a.index != was.index {
		s.publish(a.state, was.restored)
	}
	if unsupported, ok := errors.AsType[*UnsupportedError](halt); ok {
		s.halted.Store(unsupported)
	}
	return results, halt
}

// publish makes a state the current one and wakes the watchers.
func (s *Store) publish(next state, restored uint64) {
	next.freeze()
	was := s.current.Swap(&View{state: next, restored: restored, superseded: make(chan struct{})})
	close(was.superseded)
}

// Halted returns the error that stopped the store, nil while it applies.
func (s *Store) Halted() error {
	if err := s.halted.Load(); err != nil {
		return err
	}
	return nil
}
