// Package fsm is the replicated state machine: the vocabulary of Palisade (nodes, VMs, blocks,
// guards), the commands that change it, their deterministic application, immutable views of the
// result, and the feed of what changed.
//
// The package has no clock, no I/O, no goroutine, no randomness and no logging. Time enters only
// inside commands, stamped by the leader. Two nodes that applied the same log hold byte-identical
// state and the same state hash.
package fsm

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Node is a virtualization host that takes part in the fleet, or did: Membership says so. It registers
// itself; what it says of its own addresses guards them on every other node.
type Node struct {
	ID   string // chosen by the operator, never reused
	Name string
	// Addresses are all addresses the node answers on. They can never be blocked.
	Addresses []netip.Addr
	// Gateways are the next hops of the node's routes. They can never be blocked.
	Gateways []netip.Addr
	// MACs are the hardware addresses of the node's own interfaces (bridges and uplinks, never the
	// taps of guests). They can never be blocked.
	MACs     []MAC
	Guards   []netip.Prefix // from the node's config file; they can never be blocked
	Version  string         // of the agent's build
	Revision uint64         // log index of the last change
	Format   uint32         // highest command format that its build reads; 0 counts as 1
	Membership
}

// VMState says what is known of a VM's life. The zero value is not a state.
type VMState string

// The states of a VM.
const (
	VMDeclared  VMState = "declared"  // known from the API only, seen on no node yet
	VMRunning   VMState = "running"   // runs on VM.Node
	VMMigrating VMState = "migrating" // runs on VM.Node, in flight to VM.Destination
	VMStopped   VMState = "stopped"   // last ran on VM.Node
	// VMLost was last seen on VM.Node, which was retired. Nobody knows what became of it, until a node says that it
	// runs there. What holds it goes on.
	VMLost VMState = "lost"
)

// NIC is one network interface of a VM as its node's hypervisor reports it.
type NIC struct {
	MAC MAC
	// Tap is the host side interface on the VM's node ("vnet3", "tap101i0"), empty if unknown.
	Tap       string
	Addresses []netip.Addr
	// Network is the kind of network that it is on, one of the words below; empty if the node did not say.
	Network string
}

// Kinds of network. What is said of packets is said of those of a guest on it.
const (
	NetworkBridge      = "bridge"                // they pass a Linux bridge
	NetworkRouted      = "routed"                // they pass the node's own stack
	NetworkMacvtap     = "macvtap"               // they pass a macvtap
	NetworkOpenVSwitch = "openvswitch"           // they pass the kernel datapath of Open vSwitch
	NetworkUserspace   = "openvswitch-userspace" // a program on the node passes them, read from a packet socket
	NetworkHostdev     = "hostdev"               // the guest has the device (SR-IOV): the node's kernel never sees them
	NetworkVhostUser   = "vhostuser"             // a program has them in the guest's memory (DPDK)
	NetworkVDPA        = "vdpa"                  // likewise a device
	NetworkUser        = "user"                  // QEMU makes connections of its own of them
	NetworkUnknown     = "unknown"
)

// Enforceable says whether a node can hold what is on the interface. Of a network that it does not know, a node can't.
func (n NIC) Enforceable() bool {
	switch n.Network {
	case "", NetworkBridge, NetworkRouted, NetworkMacvtap, NetworkOpenVSwitch, NetworkUserspace:
		return true
	default:
		return false
	}
}

// Equal says whether two reports of an interface say the same.
func (n NIC) Equal(o NIC) bool {
	return n.MAC == o.MAC && n.Tap == o.Tap && n.Network == o.Network && slices.Equal(n.Addresses, o.Addresses)
}

// SameNICs says whether two reports of a VM's interfaces say the same.
func SameNICs(a, b []NIC) bool { return slices.EqualFunc(a, b, NIC.Equal) }

// VM is a virtual machine (KVM domain or OpenVZ container). Name, owner and addresses are declared
// through the API or taken from the node; location and NICs are observed by nodes.
type VM struct {
	ID    string // the hypervisor's UUID or the operator's id; never reused
	Name  string // need not be unique
	Kind  string // "kvm", "openvz", "netns"; empty while only declared
	Owner string // account, "" if undeclared

	// Declared holds the addresses and prefixes routed to the VM by declaration (API).
	Declared []netip.Prefix
	// DoNotBlockUntil refuses holds of ReasonUnpaid that would start before it; zero refuses none.
	DoNotBlockUntil time.Time
	// SourceGuard says whether the VM may use its registered addresses alone; SourceInherit is what the
	// settings say.
	SourceGuard SourceGuard
	NICs        []NIC // observed

	Node        string // id of the node it runs or last ran on, "" if never seen
	Destination string // id of the node it is in flight to, only while State is VMMigrating
	State       VMState
	// Epoch grows by one with every claim of the VM by a node. An observation with a lower epoch is
	// stale and is ignored.
	Epoch    uint64
	Revision uint64 // log index of the last change
	// Migration is the last one, nil if there was none.
	Migration *Migration
}

// Account is a customer: the owner of VMs. It exists as an object only while something is set for it;
// a VM's Owner need not have one.
type Account struct {
	ID string
	// DoNotBlockUntil refuses holds of ReasonUnpaid that would start before it; zero refuses none.
	DoNotBlockUntil time.Time
	Note            string
	Actor           string
	Revision        uint64
}

// Target is what a block holds: exactly one field is set.
type Target struct {
	VM      string       // VM id
	Prefix  netip.Prefix // masked; a single address is a /32 or /128
	Account string       // every VM with this Owner, now and later
	List    string       // name of a List: every prefix in it, now and later
}

// Kind is how a block treats the packets of its target. The zero value is not a kind. Where several
// blocks treat one packet, the strictest wins: Drop, then Ports (for what it matches), Reject, Redirect,
// Limit; several limits all apply.
type Kind string

// The kinds of blocks.
const (
	// Drop discards every packet of the target.
	Drop Kind = "drop"
	// Reject discards every packet and answers it: TCP with a reset, the rest with ICMP
	// "administratively prohibited". ARP and neighbour discovery pass.
	Reject Kind = "reject"
	// Limit discards what exceeds Block.Rate, for each direction.
	Limit Kind = "limit"
	// Ports discards packets to the destination ports in Block.Ports.
	Ports Kind = "ports"
	// Redirect lets visitors' HTTP requests (TCP port 80) to the target be answered by the node, and
	// discards everything else. ARP and neighbour discovery pass.
	Redirect Kind = "redirect"
)

// Direction says which packets of the target a block treats, seen from the target.
type Direction string

// The directions of a block.
const (
	Both Direction = "both"
	In   Direction = "in"  // to the target
	Out  Direction = "out" // from the target
)

// Rate is what a block of kind Limit lets pass in one direction: exactly one field is set.
type Rate struct {
	Bits    uint64 // a second, counted with the network header
	Packets uint64 // a second
}

// PortRange is what a block of kind Ports discards.
type PortRange struct {
	Protocol    uint8  // IP protocol number: 6 TCP, 17 UDP, 132 SCTP; other protocols have no ports
	First, Last uint16 // destination ports, both included; 0 and 0 is every packet of the protocol
}

// Reasons that are known by name. Any other word is a custom reason.
const (
	ReasonUnpaid      = "unpaid" // refused before DoNotBlockUntil
	ReasonAbuse       = "abuse"
	ReasonAttack      = "attack"
	ReasonMaintenance = "maintenance"
	ReasonLegal       = "legal"
	ReasonManual      = "manual" // if none is given
)

// BlockState is where a block is in its life.
type BlockState string

// The states of a block: pending, then active, then lifted or ended; a pending block that is cancelled
// is lifted.
const (
	BlockPending BlockState = "pending" // agreed, starts at StartsAt
	BlockActive  BlockState = "active"
	BlockLifted  BlockState = "lifted" // by somebody, LiftedBy
	BlockEnded   BlockState = "ended"  // by its due time, or because nobody confirmed it in time
)

// Over says that the block holds nothing any more and never will.
func (s BlockState) Over() bool { return s == BlockLifted || s == BlockEnded }

// Block is one hold on one target. Blocks are independent: a target is blocked while at least one
// active block holds it, and lifting one never touches another.
type Block struct {
	ID         string // "b" and a number that grows with every block of the fleet
	Target     Target
	Kind       Kind
	Direction  Direction
	Rate       Rate           // of Limit
	Ports      []PortRange    // of Ports, sorted
	RedirectTo netip.AddrPort // of Redirect: the HTTP server to ask; not valid: the node's own page
	Reason     string
	Note       string
	Actor      string // who asked for it
	State      BlockState
	CreatedAt  time.Time // state time, UTC
	// StartsAt is the agreed start of a block that was delayed, zero for one that started at once.
	StartsAt time.Time
	// EndsAt is the agreed end, zero if it is lifted by hand.
	EndsAt time.Time
	// ConfirmBy is when the block ends unless it is confirmed; zero if it needs no confirmation.
	ConfirmBy time.Time
	StartedAt time.Time // when a delayed block became active, else zero
	LiftedAt  time.Time // when it was lifted or ended, else zero
	LiftedBy  string    // who lifted it; ByDueTime or ByNoConfirmation for one that ended
	// Index is the log index at which the state last changed: a node that has enforced this index
	// holds the block in its kernel (or, once it is over, no longer holds it).
	Index    uint64
	Revision uint64 // log index of the last change of any field
}

// Since is when the block became active.
func (b *Block) Since() time.Time {
	if b.StartedAt.IsZero() {
		return b.CreatedAt
	}
	return b.StartedAt
}

// Due is when the block starts or ends by itself next; zero if it does not.
func (b *Block) Due() time.Time {
	switch {
	case b.State == BlockPending:
		return b.StartsAt
	case b.State != BlockActive:
		return time.Time{}
	case b.EndsAt.IsZero() || !b.ConfirmBy.IsZero() && b.ConfirmBy.Before(b.EndsAt):
		return b.ConfirmBy
	}
	return b.EndsAt
}

// What ended a block, as Block.LiftedBy says it.
const (
	ByDueTime        = "schedule:end"
	ByNoConfirmation = "schedule:unconfirmed"
)

// Guard is what can never be blocked, set by an operator: a prefix or a VM. Further guards are
// automatic: see BuiltinGuards and the addresses in Node.
type Guard struct {
	Prefix   netip.Prefix
	VM       string // VM id; exactly one of Prefix and VM is set
	Note     string
	Actor    string
	Revision uint64
}

// Settings are the fleet's own. They always exist; DefaultSettings are those of a new fleet.
type Settings struct {
	// MaxVMs and MaxAddresses are what one new block may touch without a confirmation or force: VMs,
	// and addresses of a prefix (for IPv6 in /64 networks).
	MaxVMs       uint64
	MaxAddresses uint64
	// What the page of Redirect says. Text is plain text, Link an http or https URL or empty.
	RedirectTitle, RedirectText, RedirectLink string
	Revision                                  uint64
	// Voters is how many nodes vote, if there are that many: 1, 3, 5 or 7; 0 stands for DefaultVoters.
	Voters uint32
	// ReplaceVoterAfter is how long a voter is dead before another node takes its place; 0 stands for
	// DefaultReplaceVoterAfter.
	ReplaceVoterAfter time.Duration
	// SourceGuard is that of VMs that say nothing for themselves, unless a guard makes sure that they are not blocked.
	SourceGuard bool
}

// What the settings of a fleet stand for that says nothing of its voters, and what they may say.
const (
	DefaultVoters            = 3
	MaxVoters                = 7
	DefaultReplaceVoterAfter = 5 * time.Minute
	MinReplaceVoterAfter     = 10 * time.Second
	MaxReplaceVoterAfter     = 30 * 24 * time.Hour
)

// WantedVoters is how many nodes are to vote.
func (s Settings) WantedVoters() int { return int(cmp.Or(s.Voters, DefaultVoters)) }

// VoterPatience is how long a voter is dead before it is replaced.
func (s Settings) VoterPatience() time.Duration {
	return cmp.Or(s.ReplaceVoterAfter, DefaultReplaceVoterAfter)
}

// List is a named set of prefixes. Its content is in the same View, see View.List.
type List struct {
	Name     string
	Owner    string // who is responsible for it, for people
	Note     string
	Origin   string     // where the content came from, for people: a file's name, an URL
	Source   ListSource // where it is loaded from, zero if it is only uploaded
	Size     int        // prefixes, after merging
	Hash     string     // SHA-256 of the content, hex; see PrefixSet.Hash
	LoadedAt time.Time  // of the content
	Actor    string
	Revision uint64 // log index of the last change
}

// ListSource is where the leader loads a list from. The log and the state have no URL with a secret: the leader
// seals it before it appends anything.
type ListSource struct {
	URL      string // http, https, or file for a path on the leader
	Sealed   string // the whole URL, sealed, where URL is only what is shown of it; else empty
	Interval time.Duration
	MaxBytes uint64
}

// Limits on what a command may carry. They bound memory and the size of a log entry.
const (
	MaxNameBytes     = 255
	MaxNoteBytes     = 4096
	MaxReasonBytes   = 64
	MaxKeyBytes      = 255
	MaxNICs          = 64
	MaxVMAddresses   = 1024
	MaxNodeAddresses = 1024
	MaxBatchOps      = 10_000
	MaxPortRanges    = 16
	MaxSettingsBytes = 4096 // of one text
	// MaxCommandBytes bounds one encoded command.
	MaxCommandBytes = 8 << 20
	// MinPrefixBits4 and MinPrefixBits6 are the widest prefixes that can be blocked or declared.
	// An IPv4 /8 is the widest registry allocation; an IPv6 /16 is wider than any.
	MinPrefixBits4 = 8
	MinPrefixBits6 = 16
	// RetainedResults bounds the replicated idempotency results (oldest forgotten first).
	RetainedResults = 65_536
	// RetainedLifted bounds the lifted blocks that can still be looked up (oldest forgotten first).
	RetainedLifted = 10_000
	// RetainedEvents bounds the change feed (oldest forgotten first).
	RetainedEvents = 65_536
)
