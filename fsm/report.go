package fsm

import (
	"net/netip"
	"time"
)

// Query asks one peer what it knows of its own kernel.
type Query struct {
	// WaitIndex, if not zero, holds the answer until the peer has enforced this log index or the
	// context ends; with what lists hold, if one of Blocks is on a list.
	WaitIndex uint64
	// Blocks are ids to report on, at most MaxQueryBlocks.
	Blocks []string
	// AuditFrom, if not zero, asks for the audit lines from this number on, or from the oldest that the peer
	// has if that is later.
	AuditFrom uint64
	// Explain, if not nil, asks what the peer does with a packet.
	Explain *Packet
	// Sources asks how it went to load the lists that have a source. The leader knows.
	Sources bool
	// Drops, if not nil, asks what the peer dropped lately.
	Drops *DropsQuery
	// SourceGuard, if not empty, asks what the VM with this id is bound to on the peer.
	SourceGuard string
}

// MaxQueryBlocks bounds Query.Blocks.
const MaxQueryBlocks = 1000

// Report is a peer's answer to a Query: the receipts of its kernel.
type Report struct {
	Node     string
	At       time.Time // the peer's clock when it answered
	Applied  uint64    // log index of the peer's state
	Enforced uint64    // log index in the peer's kernel, read back, with what lists hold
	Hash     string    // state hash at Applied, hex
	Version  string
	Problem  string // why the kernel is behind, "" if it is not
	// EnforcedBlocks is Enforced of all but the blocks on lists: a large list takes seconds to load, and holds up
	// nothing else.
	EnforcedBlocks uint64
	// Warning says what else is wrong with the node; its kernel stands as it says.
	Warning string
	// Problems are what the peer finds wrong with itself, in order of their codes.
	Problems []Problem
	// ClockOffset is by how much the peer's clock is ahead of those of the voters, if ClockKnown.
	ClockOffset time.Duration
	ClockKnown  bool
	Blocks      map[string]BlockReport
	// Audit are the lines that were asked for, as many as fit into MaxReportAuditBytes, at least one.
	Audit [][]byte
	// Explained is the answer to Query.Explain.
	Explained *Explanation
	// Sources is the answer to Query.Sources, by list; nil on a peer that loads none.
	Sources map[string]SourceStatus
	// Drops is the answer to Query.Drops.
	Drops *Drops
	// SourceGuard is the answer to Query.SourceGuard; nil if the VM is not to be bound there.
	SourceGuard *SourceReport
}

// SourceReport is what a VM is bound to on a node, as its kernel holds it.
type SourceReport struct {
	MACs, Addresses bool   // is it bound to those that are registered?
	Why             string // why not to both, for people
	Packets, Bytes  uint64 // dropped there since the agent started
}

// SourceStatus is how it went to load a list from its source.
type SourceStatus struct {
	CheckedAt time.Time // when it was last asked for
	Error     string    // of that time, "" if it was loaded
}

// Severity says how soon somebody should look at a problem.
type Severity string

// The severities of problems.
const (
	Critical Severity = "critical" // something that was promised does not hold, or soon will not
	Warning  Severity = "warning"  // it holds, with less to fall back on
)

// Problem is what a watchdog of a node has noticed and has not ended yet.
type Problem struct {
	Code     string // one of the agent's list, see docs/monitoring.md
	Severity Severity
	Since    time.Time // clock of the node that noticed it
	Text     string    // what is wrong, and what to do
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
	// Open says why some of the target's packets pass although the kernel holds the block: then Enforced is false.
	Open string
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
	// Aside are the stores that this node set aside and still has, newest first.
	Aside []SetAside
}

// SetAside is a store that its node could not go on with, and kept beside the one that took its place.
type SetAside struct {
	Path string
	At   time.Time // the node's clock
	Why  string
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

// Packet is what Explain is asked about. The zero value of a field is an unknown one: only what is
// given can match.
type Packet struct {
	Src, Dst         netip.Addr
	Protocol         uint8 // IP protocol number: 6 TCP, 17 UDP
	SrcPort, DstPort uint16
}

// Verdict is what a node does with a packet that comes by.
type Verdict string

// The verdicts.
const (
	VerdictPass     Verdict = "pass"
	VerdictDrop     Verdict = "drop"
	VerdictReject   Verdict = "reject"   // discarded, and answered with a reset or ICMP
	VerdictRedirect Verdict = "redirect" // answered by the node's page
	VerdictLimit    Verdict = "limit"    // passes as long as the rate is not exceeded
)

// Explanation says what one node does with a packet and why.
type Explanation struct {
	Verdict Verdict
	Why     string // for people
	// Holds are the blocks that match the packet, the strictest first. The first that Treats decides.
	Holds []ExplainedHold
	// Guards are why holds do not match that else would: the guarded prefix or VM, and who guards it.
	Guards []string
}

// ExplainedHold is one block that matches a packet.
type ExplainedHold struct {
	Block     string
	Kind      Kind      // as this node carries it out: Drop for what its kernel can't do
	Direction Direction // of the packet, seen from the target: In or Out
	By        string    // what of the packet is the target's, "192.0.2.7 of VM vm1", "192.0.2.0/24"
	Treats    bool      // false for ports that are not those of the packet
	Started   bool      // by this node alone, while it has no quorum
	Since     time.Time
	// Packets and Bytes were discarded for the block on this node.
	Packets, Bytes uint64
}
