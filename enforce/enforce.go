// Package enforce compiles a view of the replicated state, seen from one node, to the set of kernel
// elements that must be dropped there. It is pure: no clock, no I/O. Package enforce/nft brings the
// kernel to it.
package enforce

import (
	"net/netip"

	"github.com/palisade/palisade/fsm"
)

// Element is one thing whose packets the kernel treats. Exactly one of Tap, MAC and Prefix is set; none
// is in an element that stands for the chain of a treatment, see Terms.Chained. Elements are
// comparable.
type Element struct {
	Tap    string       // host interface of a local guest
	MAC    fsm.MAC      // hardware address of a guest
	Prefix netip.Prefix // masked address or prefix; a single address is a /32 or /128
	// Treatment is what is done with the packets; the zero value drops them in both directions.
	Treatment Treatment
}

// Local is what a node knows of itself beyond the replicated state.
type Local struct {
	Node string
	// NICs are the interfaces of the guests that run or arrive on this node now, by VM id, as its
	// own hypervisor reports them: known earlier here than in the log.
	NICs Map[[]fsm.NIC]
	// Guards are prefixes that this node's kernel must never drop, known before the node could
	// register them: its own addresses, its peers and gateways, and its configured guards. They are
	// subtracted like those of the View. A change of them recomputes everything.
	Guards []netip.Prefix
	// Started are pending blocks, by id, that this node has started on its own clock while it has no
	// quorum. They are held like active ones.
	Started map[string]struct{}
	// PagePort is the TCP port on which this node serves the page of Redirect; 0: it serves none, and
	// Redirect drops everything.
	PagePort uint16
	// Bridges names the ports of this node's bridges, with the hardware address of their bridge. Without
	// it, nobody is answered on a bridge.
	Bridges Map[fsm.MAC]
	// Missing are the kinds of blocks that this node's kernel can't carry out. They drop everything.
	Missing []fsm.Kind
}

// Delta is a change of the kernel's elements. Add and Remove are disjoint and each without repeats.
type Delta struct {
	// Index is the log index that the kernel stands for once the delta is in it.
	Index  uint64
	Add    []Element
	Remove []Element
}

// Counter is what was discarded of an element's packets on this node.
type Counter struct{ Packets, Bytes uint64 }
