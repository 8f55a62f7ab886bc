package fsm

import "time"

// Query asks one peer what it knows of its own kernel.
type Query struct {
	// WaitIndex, if not zero, holds the answer until the peer has enforced this log index or the
	// context ends.
	WaitIndex uint64
	// Blocks are ids to report on, at most MaxQueryBlocks.
	Blocks []string
	// AuditFrom, if not zero, asks for the audit lines from this number on, or from the oldest that the peer
	// has if that is later.
	AuditFrom uint64
}

// MaxQueryBlocks bounds Query.Blocks.
const MaxQueryBlocks = 1000

// Report is a peer's answer to a Query: the receipts of its kernel.
type Report struct {
	Node     string
	At       time.Time // the peer's clock when it answered
	Applied  uint64    // log index of the peer's state
	Enforced uint64    // log index in the peer's kernel, read back
	Hash     string    // state hash at Applied, hex
	Version  string
	Problem  string // why the kernel is behind, "" if it is not
	// Warning says what else is wrong with the node; its kernel stands as it says.
	Warning string
	Blocks  map[string]BlockReport
	// Audit are the lines that were asked for, as many as fit into MaxReportAuditBytes, at least one.
	Audit [][]byte
}

// MaxReportAuditBytes bounds Report.Audit, but for its first line.
const MaxReportAuditBytes = 2 << 20

// BlockReport is one peer's receipt for one block.
type BlockReport struct {
	// Enforced says that the kernel holds the block (or, for a lifted block, no longer holds it).
	Enforced bool
	Index    uint64    // log index in the kernel when the receipt was given
	At       time.Time // when the kernel first held it as far as this process can vouch
	// Packets and Bytes were dropped for the block's target on this node.
	Packets, Bytes uint64
}

// Member is one peer as the cluster sees it right now.
type Member struct {
	ID        string
	Name      string
	Address   string // peer address, host:port
	Voter     bool
	Leader    bool
	Alive     bool      // by gossip
	LastHeard time.Time // this node's clock; zero if never
	Self      bool
}

// Status is this node's standing in the cluster.
type Status struct {
	Node        string // own id
	Leader      string // id of the leader, "" if none is known
	Quorum      bool   // a leader was heard from within its lease
	Term        uint64
	CommitIndex uint64
	Applied     uint64 // of the View
	// LastContact is when the state was last known to be current: now on a leader with a valid lease,
	// else when the leader was last heard from; zero if never.
	LastContact time.Time
	// CaughtUp says that everything the leader had committed at last contact has been applied.
	CaughtUp bool
}

// Sighting is a hint, by gossip, of where a VM is. Raft is the truth; a sighting only says earlier
// what a commit will say.
type Sighting struct {
	VM    string
	Name  string
	Node  string
	Phase Phase
	Epoch uint64
	At    time.Time // the reporting node's clock
}
