package fsm

import (
	"net/netip"
	"time"
)

// Command is one entry of the replicated log.
type Command struct {
	// Time is stamped by the leader just before the entry is appended. State time never runs
	// backwards: Apply uses the later of Time and the time of the entry before.
	Time  time.Time
	Actor string // who asked, "token:NAME", "unix:UID" or "node:ID"
	// From is where the request came from, for the audit: an address, or "local". It may be empty.
	From string
	// Key makes a retry have one effect and the same answer. The caller scopes it (a key of one
	// actor never meets that of another, see Apply). Empty means no replay protection.
	Key string
	Op  Op
}

// Op is what a Command does; one of the types below.
type Op interface{ isOp() }

// AddBlock creates a block, in force at once or from StartsAt on. Target.VM may be an id or a unique
// name; it is resolved in Apply. Kind and Direction default to Drop and Both.
//
// It is refused with CodeTooMany if it touches more than Settings allow and has neither ConfirmWithin
// nor Force, and with CodeNotYet if it is of ReasonUnpaid and would start before DoNotBlockUntil of its
// VM or account.
type AddBlock struct {
	Target     Target
	Kind       Kind
	Direction  Direction
	Rate       Rate
	Ports      []PortRange
	RedirectTo netip.AddrPort
	Reason     string // defaults to ReasonManual
	Note       string
	StartsAt   time.Time // zero, or not after the state time: at once
	EndsAt     time.Time // zero: never by itself
	// Duration, if not zero, sets the end, counted from the start. Not together with EndsAt.
	Duration time.Duration
	// ConfirmWithin, if not zero, ends the block that long after its start unless it is confirmed.
	ConfirmWithin time.Duration
	Force         bool
}

// LiftBlock ends an active block or cancels a pending one. Lifting one that is over is refused with
// CodeConflict.
type LiftBlock struct {
	ID string
	// IfRevision, if not zero, must equal the block's revision.
	IfRevision uint64
}

// LiftReason lifts every active and pending block of one reason on exactly one target. Its Result has
// the blocks as Items. If there is none it is refused with CodeNotFound.
type LiftReason struct {
	Target Target
	Reason string
}

// PatchBlock changes a block that is not over. What is nil stays. A pending block's StartsAt and
// EndsAt can change, an active block's EndsAt; a time that has passed takes effect at once. Anything
// else is refused with CodeConflict.
type PatchBlock struct {
	ID         string
	IfRevision uint64
	StartsAt   *time.Time // zero: at once
	EndsAt     *time.Time // zero: never by itself
	Note       *string
	Confirm    bool // the block needs no confirmation any more
}

// FireBlock starts or ends a block at its due time. It is proposed by the leader only. It is refused
// with CodeConflict unless the block is at Revision and its Due is not after At, so that it happens
// once and never early.
type FireBlock struct {
	ID       string
	Revision uint64
	At       time.Time // what a majority's clocks agree to have passed
}

// DeclareVM creates a VM or replaces what is declared of it. Observed fields are kept.
type DeclareVM struct {
	ID        string
	Name      string // empty keeps the known name
	Owner     string
	Addresses []netip.Prefix
	// DoNotBlockUntil moves the start of pending blocks of ReasonUnpaid on the VM too.
	DoNotBlockUntil time.Time
	SourceGuard     SourceGuard // SourceInherit keeps what is set, SourceReset inherits
	IfRevision      uint64      // if not zero, must equal the VM's revision
}

// PutAccount sets what is known of an account. DoNotBlockUntil moves the start of pending blocks of
// ReasonUnpaid on it too. An account without note and time is removed.
type PutAccount struct {
	ID              string
	DoNotBlockUntil time.Time
	Note            string
	IfRevision      uint64
}

// Phase is what a node observes of a VM.
type Phase string

// The phases of an observation.
const (
	PhaseRunning  Phase = "running"  // runs here
	PhaseIncoming Phase = "incoming" // in flight to here
	PhaseStopped  Phase = "stopped"  // defined here but not running
	PhaseGone     Phase = "gone"     // was here, is no longer
)

// ObserveVM is a node's report of a VM. It is accepted if Epoch is higher than the VM's, or equal
// and Node is the VM's Node or Destination; else it is stale: nothing changes, and the Result says so
// with CodeStale. An incoming VM keeps running on its old node until the new one reports it running;
// gone or stopped from the destination ends the flight and leaves the VM where it was.
//
// The old node's own reports at the same epoch do not end a flight; a claim (a higher epoch) does.
// Gone or stopped from a node that neither holds nor expects a VM that is running or in flight is
// stale whatever its epoch: a definition left behind must not stop the VM elsewhere. Taps are kept only
// while the VM runs, and while it is in flight they are those of the old node.
//
// What a guest can choose is never a reason for a refusal, as that would leave the VM unknown: of the
// name, what is not printable becomes U+FFFD and what is too long is cut; NIC addresses beyond
// MaxVMAddresses are left out; a multicast or broadcast MAC becomes zero.
type ObserveVM struct {
	ID    string
	Name  string
	Kind  string
	Node  string
	Phase Phase
	NICs  []NIC
	Epoch uint64 // at least 1
	// Migration, if not empty, is what else the node knows: MigrationArmed, of an incoming VM, that its kernel
	// holds all that applies to it; MigrationSettled, of one that has left for where it is live by now, that it has
	// gone from here. The other phases follow from the rest.
	Migration MigrationPhase
}

// PutNode replaces what a node says of itself. Of its Membership only the addresses and the generation are
// taken, where they are set; the rest and the Revision are ignored. Once there is a fleet it is refused for who was not
// admitted (CodeNotFound) or was retired (CodeNodeRetired), and always for a generation that is lower than the one
// known (CodeStale).
type PutNode struct{ Node Node }

// PutGuard creates or replaces a guard of a prefix or a VM (by id or unique name). It is refused with
// CodeConflict if a pending or active block holds exactly that VM or exactly a prefix inside the guard; a
// wider block keeps standing, and the guarded part is cut out of it.
type PutGuard struct {
	Prefix netip.Prefix
	VM     string
	Note   string
}

// DeleteGuard removes a guard.
type DeleteGuard struct {
	Prefix netip.Prefix
	VM     string
}

// PutSettings replaces the settings. Settings.Revision is ignored.
type PutSettings struct {
	Settings   Settings
	IfRevision uint64
}

// Batch applies several ops in order under one log entry, each with its own result; a refused op
// does not stop the ones after it, unless Atomic: then a refused op undoes those before it, those after
// it are not tried, and every other item has CodeAborted. Batches do not nest and hold 1 to MaxBatchOps ops.
type Batch struct {
	Ops    []Op
	Atomic bool
}

func (AddBlock) isOp()    {}
func (LiftBlock) isOp()   {}
func (LiftReason) isOp()  {}
func (PatchBlock) isOp()  {}
func (FireBlock) isOp()   {}
func (PutAccount) isOp()  {}
func (PutSettings) isOp() {}
func (DeclareVM) isOp()   {}
func (ObserveVM) isOp()   {}
func (PutNode) isOp()     {}
func (PutGuard) isOp()    {}
func (DeleteGuard) isOp() {}
func (Batch) isOp()       {}

// Result is what applying a command gave, equal on every node.
type Result struct {
	Index uint64 // log index of the entry that had the effect
	Err   *Error // the state machine's refusal; nothing was changed
	// Replayed is set when the command's key was known: the result is that of the first time.
	Replayed bool
	// At most one of these is set: the object as it was right after the change.
	Block *Block
	VM    *VM
	Node  *Node
	Guard *Guard
	// Account is what PutAccount left, also when that is nothing: then its Revision is 0.
	Account  *Account
	Settings *Settings
	List     *List
	// Fleet and JoinToken are without their secrets, sealed or hashed.
	Fleet     *Fleet
	JoinToken *JoinToken
	Token     *Token
	User      *User
	Session   *Session
	Items     []Result // of a Batch one for each op, of LiftReason one for each block, of EndSessions one for each session
}
