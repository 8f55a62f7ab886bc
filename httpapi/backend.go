package httpapi

import (
	"context"

	"github.com/palisade/palisade/fsm"
)

// Backend is what the API needs of the node it runs on. All methods are safe for concurrent use.
type Backend interface {
	// View returns the state as this node has it. It does not block.
	View() *fsm.View
	// Watch returns a watcher of everything after the log index.
	Watch(from uint64) *fsm.Watcher
	// Propose commits a command and returns its result, or fsm.ErrUnavailable or fsm.ErrUnknown. It
	// blocks until the outcome is known or ctx ends.
	Propose(ctx context.Context, c fsm.Command) (fsm.Result, error)
	// Ask asks one member, this node included. Errors of the connection unwrap to syscall errors.
	Ask(ctx context.Context, node string, q fsm.Query) (fsm.Report, error)
	// Members lists all peers, this node included.
	Members() []fsm.Member
	Status() fsm.Status
	// ReadIndex returns a log index such that a View at or past it holds every write that was
	// answered before the call. It must be an index that a View reaches.
	ReadIndex(ctx context.Context) (uint64, error)
	Rotations
	// Sighting returns the newest hint of where a VM is.
	Sighting(vm string) (fsm.Sighting, bool)
}
