package matrix_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/palisade/palisade/fsm"
)

// end is an interface where packets begin and end: a guest's, that of a host outside, or the one by which
// a node meets a guest.
type end struct {
	name   string
	ns     netNS
	dev    string
	mac    mac
	v4, v6 netip.Addr
	local  netip.Addr // link-local IPv6
	tap    string     // of a guest: its interface on the node
	// next is who routes for it: frames to another network go there.
	next *end

	packets *receiver // what reaches the interface
	send    int       // a packet socket on it
	stack   *stack    // of a node
	// passed receives what a bridge hands up beside IP.
	passed *receiver
}

func (e *end) String() string { return e.name }

// claimed is an address that ARP says is the sender's, one for each token.
func (*end) claimed(token []byte) netip.Addr {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 10<<24|99<<16|binary.BigEndian.Uint32(token[4:])&0xffff)
	return netip.AddrFrom4(a)
}

// role is who the held guest exchanges packets with.
type role uint8

const (
	near    role = iota // a VM of the same node
	far                 // a VM of another node
	node                // the node itself
	outside             // a host that is nobody's guest
)

func roles() []role { return []role{near, far, node, outside} }

func (r role) String() string {
	return [...]string{"VM on the same node", "VM on another node", "the node", "outside"}[r]
}

// topology is a way in which guests are connected to a node. A new one is built in bed.go and has all
// kinds of packets walked over all paths.
type topology struct {
	name string
	// held is the one that is blocked in its turn; free has all that it has, and never is.
	held, free *end
	others     map[role]*end // near, far and outside
	nodeAt     map[*end]*end // where the node meets held and free
	// switched are those to whom frames get whole; others only get what is routed.
	switched map[role]bool
	// bound says that the guest's interface on the node is known and only its own.
	bound bool
	// device says that packets pass neither a bridge nor the node's own stack.
	device bool
	// program says that a program of the node passes them on, in its own time.
	program bool
}

// nic is what the inventory of a node reports of a guest.
func (p *topology) nic(e *end) fsm.NIC {
	n := fsm.NIC{Addresses: []netip.Addr{e.v4, e.v6}}
	if p.bound {
		n.MAC, n.Tap = fsm.MAC(e.mac), e.tap
	}
	return n
}

func (p *topology) peer(subject *end, r role) *end {
	if r == node {
		return p.nodeAt[subject]
	}
	return p.others[r]
}

// cell is one path of one kind of packet, in one topology.
type cell struct {
	topology *topology
	role     role
	out      bool // from the guest
	kind     kind
}

func (c cell) String() string {
	direction := "from"
	if c.out {
		direction = "to"
	}
	return fmt.Sprintf("%s, %s %s: %s", c.topology.name, direction, c.role, c.kind.name)
}

func (c cell) ends(subject *end) (from, to *end) {
	from, to = subject, c.topology.peer(subject, c.role)
	if !c.out {
		from, to = to, from
	}
	return from, to
}

// absent says why a cell can't exist, if it can't. With gathered, an IP stack on the way puts fragments together.
func (c cell) absent(gathered bool) string {
	switched := c.topology.switched[c.role]
	k := c.kind
	switch {
	case c.topology.name == macvtapName && c.role == node:
		return "a macvtap and its node do not reach each other"
	case k.upward && (c.role != node || !c.out || !switched):
		return "a bridge passes this to the node alone, and it comes from guests"
	case k.pieces && c.role == node && c.out:
		return "a node puts fragments together: from a part of them nobody has anything"
	case k.pieces && gathered:
		return "connection tracking, on this path, puts fragments together before anything else sees them"
	case switched:
		return ""
	case k.scope == frames:
		return "no router passes such a frame on, and the node's own stack has no use for it"
	case c.role == node && !c.out && k.socket:
		return "the node's stack sends none; see what is not covered for packet sockets"
	case c.role == node && strings.HasPrefix(k.name, "ARP") && c.topology.name == venetName:
		return "a venet has no ARP"
	case k.scope == link && c.role != node:
		return "no router passes this on"
	default:
		return ""
	}
}

// cells are all that exist, and how many do not, by reason.
func cells(topologies []*topology, e environment) (exist []cell, absent map[string]int) {
	absent = make(map[string]int)
	for _, p := range topologies {
		for _, r := range roles() {
			for _, out := range []bool{true, false} {
				for _, k := range kinds() {
					c := cell{p, r, out, k}
					if why := c.absent(e.gathers(c)); why != "" {
						absent[why]++
						continue
					}
					exist = append(exist, c)
				}
			}
		}
	}
	return exist, absent
}
