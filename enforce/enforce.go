// Package enforce compiles a view of the replicated state, seen from one node, to the set of kernel
// elements that must be dropped there. It is pure: no clock, no I/O. Package enforce/nft brings the
// kernel to it.
package enforce

import (
	"net/netip"

	"github.com/palisade/palisade/fsm"
)

// Element is one thing that the kernel drops packets of, in both directions. Exactly one field is
// set. Elements are comparable.
type Element struct {
	Tap    string       // host interface of a local guest
	MAC    fsm.MAC      // hardware address of a guest
	Prefix netip.Prefix // masked address or prefix; a single address is a /32 or /128
}

// Local is what a node knows of itself beyond the replicated state.
type Local struct {
	Node string
	// NICs are the interfaces of the guests that run or arrive on this node now, by VM id, as its
	// own hypervisor reports them: known earlier here than in the log.
	NICs map[string][]fsm.NIC
	// Guards are prefixes that this node's kernel must never drop, known before the node could
	// register them: its own addresses, its peers and gateways, and its configured guards. They are
	// subtracted like those of the View. A change of them recomputes everything.
	Guards []netip.Prefix
}

// Delta is a change of the kernel's elements. Add and Remove are disjoint and each without repeats.
type Delta struct {
	// Index is the log index that the kernel stands for once the delta is in it.
	Index  uint64
	Add    []Element
	Remove []Element
}

// Counter is what an element dropped on this node.
type Counter struct{ Packets, Bytes uint64 }
