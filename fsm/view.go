package fsm

import (
	"context"
	"io"
	"iter"
	"net/netip"
	"time"
)

// Entry is one committed log entry.
type Entry struct {
	Index uint64
	Data  []byte // an encoded Command
}

// Store holds the state. One goroutine writes (ApplyBatch, Restore); any number read Views. Readers,
// snapshots and the writer never block each other.
type Store struct{}

// NewStore returns an empty state at index 0.
func NewStore() *Store { panic("pending") }

// View returns the current state; never nil, never changes.
func (s *Store) View() *View { panic("pending") }

// ApplyBatch applies committed entries in order and publishes one View with all of them. Entries at
// or below the View's index are skipped. It returns a result for each entry. An entry that this
// build can't read stops the store: its index and all later ones are not applied, and the error says
// which version would be needed; the same error comes again from every later call.
func (s *Store) ApplyBatch(entries []Entry) ([]Result, error) { panic("pending") }

// Halted returns the error that stopped the store, nil while it applies.
func (s *Store) Halted() error { panic("pending") }

// Restore replaces the state by a snapshot. The old state stays if it returns an error.
func (s *Store) Restore(r io.Reader) error { panic("pending") }

// Watch returns a watcher of everything after log index from.
func (s *Store) Watch(from uint64) *Watcher { panic("pending") }

// Watcher walks the change feed. It is used by one goroutine; it needs no closing.
type Watcher struct{}

// Next blocks until the state is past what the watcher has seen and returns the current View with
// all events since, in order (none if the entries changed nothing). It returns ErrCompacted together
// with the current View when the feed does not reach back far enough (also after a Restore that
// skipped events): the caller starts again from that View, and the next call goes on after it. Any
// other error is the context's.
func (w *Watcher) Next(ctx context.Context) (*View, []Event, error) { panic("pending") }

// EventType names what happened.
type EventType string

// The event types. Exactly the field of Event that the type's first word names is set.
const (
	EventBlockAdded     EventType = "block.added"
	EventBlockLifted    EventType = "block.lifted"
	EventVMDeclared     EventType = "vm.declared"  // created or changed through the API
	EventVMObserved     EventType = "vm.observed"  // first seen, state or NICs changed
	EventVMMigrating    EventType = "vm.migrating" // in flight to VM.Destination
	EventVMMoved        EventType = "vm.moved"     // now runs on another node than before
	EventNodeChanged    EventType = "node.changed"
	EventGuardAdded     EventType = "guard.added" // or changed
	EventGuardRemoved   EventType = "guard.removed"
	EventBlockForgotten EventType = "block.forgotten" // a lifted block beyond RetainedLifted
)

// Event is one change of one object.
type Event struct {
	Index uint64
	Time  time.Time
	Type  EventType
	Actor string
	Block *Block
	VM    *VM
	Node  *Node
	Guard *Guard
}

// View is the state at one log index. It is immutable and safe for any number of goroutines; objects
// it returns must not be changed.
type View struct{}

// Index is the log index of the last entry applied.
func (v *View) Index() uint64 { panic("pending") }

// Time is the state time: the latest leader's stamp applied.
func (v *View) Time() time.Time { panic("pending") }

// Hash is the state hash in hex: equal on every node at the same index. It covers every object and
// all retained results and events. It is kept incrementally and costs nothing to read.
func (v *View) Hash() string { panic("pending") }

// Node returns a node by id.
func (v *View) Node(id string) (*Node, bool) { panic("pending") }

// Nodes walks all nodes by id.
func (v *View) Nodes() iter.Seq[*Node] { panic("pending") }

// VM returns a VM by id.
func (v *View) VM(id string) (*VM, bool) { panic("pending") }

// ResolveVM returns the VM that ref names: by id, else by unique name. The error has CodeNotFound or
// CodeAmbiguous, the field given, and lists the ids that share the name.
func (v *View) ResolveVM(field, ref string) (*VM, *Error) { panic("pending") }

// VMs walks all VMs by id, starting after the id given ("" for all).
func (v *View) VMs(after string) iter.Seq[*VM] { panic("pending") }

// VMsOn walks the VMs whose Node or Destination is the node.
func (v *View) VMsOn(node string) iter.Seq[*VM] { panic("pending") }

// CountVMs, CountBlocks and CountActive cost nothing.
func (v *View) CountVMs() int { panic("pending") }

// CountBlocks counts the retained blocks, active and lifted.
func (v *View) CountBlocks() int { panic("pending") }

// CountActive counts the active blocks.
func (v *View) CountActive() int { panic("pending") }

// Block returns a block by id, active or lifted.
func (v *View) Block(id string) (*Block, bool) { panic("pending") }

// Blocks walks all retained blocks in the order of their creation, after the id given ("" for all).
func (v *View) Blocks(after string) iter.Seq[*Block] { panic("pending") }

// ActiveOn walks the active blocks on exactly this target.
func (v *View) ActiveOn(t Target) iter.Seq[*Block] { panic("pending") }

// Holding returns the active blocks that hold the VM: on the VM itself, or on a prefix that covers
// one of its addresses or that one of its declared prefixes covers. In the order of their creation.
func (v *View) Holding(vm *VM) []*Block { panic("pending") }

// Guards walks the operators' guards.
func (v *View) Guards() iter.Seq[*Guard] { panic("pending") }

// GuardedPrefixes returns every prefix that can't be blocked, with who says so: built-in, of the
// nodes, and set by operators. Computed once for each View in which they changed.
func (v *View) GuardedPrefixes() []GuardedPrefix { panic("pending") }

// GuardedMACs returns the MACs of all nodes.
func (v *View) GuardedMACs() map[MAC]string { panic("pending") }

// WriteSnapshot streams the state. It never blocks the writer and is deterministic: equal states give
// equal bytes.
func (v *View) WriteSnapshot(w io.Writer) error { panic("pending") }

// GuardedPrefix is a prefix that can't be blocked and why.
type GuardedPrefix struct {
	Prefix netip.Prefix
	Why    string // "address of node n1", "gateway of node n1", "loopback", "guard: NOTE"
}

// BuiltinGuards are guarded on every fleet: they name no single machine, so a block on them would hit
// everyone. Loopback, unspecified, link-local, multicast and broadcast, of both families.
func BuiltinGuards() []GuardedPrefix { panic("pending") }

// ParsePrefix reads an address or a CIDR as a target. It refuses host bits and names what would be
// right, unmaps IPv4-mapped IPv6, and refuses zones. Width and guards are checked by Apply.
func ParsePrefix(field, s string) (netip.Prefix, *Error) { panic("pending") }

// MarshalCommand encodes a command for the log.
func MarshalCommand(c Command) ([]byte, error) { panic("pending") }

// UnmarshalCommand decodes and checks the shape of a command. It never panics on any input.
func UnmarshalCommand(b []byte) (Command, error) { panic("pending") }
