// Package fsm is the replicated state machine: the vocabulary of Palisade (nodes, VMs, blocks,
// guards), the commands that change it, their deterministic application, immutable views of the
// result, and the feed of what changed.
//
// The package has no clock, no I/O, no goroutine, no randomness and no logging. Time enters only
// inside commands, stamped by the leader. Two nodes that applied the same log hold byte-identical
// state and the same state hash.
package fsm

import (
	"net/netip"
	"time"
)

// Node is a virtualization host that takes part in the fleet. It registers itself; what it says
// of its own addresses guards them on every other node.
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
}

// VMState says what is known of a VM's life. The zero value is not a state.
type VMState string

// The states of a VM.
const (
	VMDeclared  VMState = "declared"  // known from the API only, seen on no node yet
	VMRunning   VMState = "running"   // runs on VM.Node
	VMMigrating VMState = "migrating" // runs on VM.Node, in flight to VM.Destination
	VMStopped   VMState = "stopped"   // last ran on VM.Node
)

// NIC is one network interface of a VM as its node's hypervisor reports it.
type NIC struct {
	MAC MAC
	// Tap is the host side interface on the VM's node ("vnet3", "tap101i0"), empty if unknown.
	Tap       string
	Addresses []netip.Addr
}

// VM is a virtual machine (KVM domain or OpenVZ container). Name, owner and addresses are declared
// through the API or taken from the node; location and NICs are observed by nodes.
type VM struct {
	ID    string // the hypervisor's UUID or the operator's id; never reused
	Name  string // need not be unique
	Kind  string // "kvm", "openvz", "netns"; empty while only declared
	Owner string // account, "" if undeclared

	// Declared holds the addresses and prefixes routed to the VM by declaration (API).
	Declared []netip.Prefix
	NICs     []NIC // observed

	Node        string // id of the node it runs or last ran on, "" if never seen
	Destination string // id of the node it is in flight to, only while State is VMMigrating
	State       VMState
	// Epoch grows by one with every claim of the VM by a node. An observation with a lower epoch is
	// stale and is ignored.
	Epoch    uint64
	Revision uint64 // log index of the last change
}

// Target is what a block holds: exactly one field is set.
type Target struct {
	VM     string       // VM id
	Prefix netip.Prefix // masked; a single address is a /32 or /128
}

// Kind is how a block treats the packets of its target. The zero value is not a kind.
type Kind string

// Drop discards every packet of the target.
const Drop Kind = "drop"

// Direction says which packets of the target a block treats, seen from the target.
type Direction string

// Both treats packets to and from the target.
const Both Direction = "both"

// BlockState is where a block is in its life.
type BlockState string

// The states of a block. A block never leaves BlockLifted.
const (
	BlockActive BlockState = "active"
	BlockLifted BlockState = "lifted"
)

// Block is one hold on one target. Blocks are independent: a target is blocked while at least one
// active block holds it, and lifting one never touches another.
type Block struct {
	ID        string // "b" and a number that grows with every block of the fleet
	Target    Target
	Kind      Kind
	Direction Direction
	Reason    string
	Note      string
	Actor     string // who asked for it
	State     BlockState
	CreatedAt time.Time // state time, UTC
	LiftedAt  time.Time // zero while active
	LiftedBy  string
	// Index is the log index at which the state last changed: a node that has enforced this index
	// holds the block in its kernel (or, once lifted, no longer holds it).
	Index    uint64
	Revision uint64 // log index of the last change of any field
}

// Guard is a prefix that can never be blocked, set by an operator. Further guards are automatic:
// see BuiltinGuards and the addresses in Node.
type Guard struct {
	Prefix   netip.Prefix
	Note     string
	Actor    string
	Revision uint64
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
