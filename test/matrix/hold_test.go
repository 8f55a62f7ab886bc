package matrix_test

import (
	"fmt"
	"strings"

	"github.com/palisade/palisade/fsm"
)

// by says what a hold names.
type by uint8

const (
	byNothing by = iota
	byVM
	byAddress
	byPrefix
	byList
	byListPrefix
)

func (b by) String() string {
	return [...]string{"nothing", "VM", "address", "prefix", "list of addresses", "list of prefixes"}[b]
}

// hold is one way to block the held guests.
type hold struct {
	by        by
	kind      fsm.Kind
	direction fsm.Direction
	// notHere is a hold that only the other node has in its kernel.
	notHere bool
}

func (h hold) String() string {
	where := ""
	if h.notHere {
		where = ", in force on the other node alone"
	}
	return fmt.Sprintf("%s %s, %s%s", h.by, h.direction, h.kind, where)
}

// open says why a hold lets the packets of a cell pass; "" says that it must not.
func (h hold) open(c cell) string {
	k := c.kind
	switch {
	case h.by == byNothing:
		return "nothing is held"
	case h.direction == fsm.In && c.out, h.direction == fsm.Out && !c.out:
		return "the hold is of the other direction"
	}
	if strings.HasSuffix(k.name, "LLDP") && !c.topology.program {
		return "a bridge hands LLDP to the node past its hooks"
	}
	links := h.by == byVM && c.topology.bound && (!h.notHere || c.topology.switched[c.role])
	fromSocket := c.role == node && !c.out && k.socket
	tagged := strings.HasPrefix(k.name, "802.1")
	switch {
	case h.kind != fsm.Drop && !c.topology.device && k.finds() && (!fromSocket || !tagged):
		return "the rejected and the redirected can be found by their neighbours"
	case h.kind == fsm.Reject && !c.topology.device && c.role == node && c.out && tagged && k.scope == frames && !k.twice:
		return "what is rejected is handed up to the node, whose stack answers"
	}
	if links && (!h.notHere || c.out || k.unicast()) {
		return ""
	}
	seen := c.role == node && !c.out // rules know where the header is, behind any number of tags
	if c.topology.device {           // so they do of what a guest sends: not of what comes from outside, or from a guest whose node does not hold it
		seen = (c.out || c.role != outside) && (!c.out || !h.notHere)
	}
	if c.topology.program { // they are seen where they leave the switch; the node's own port is no way out for its kernel, but one in
		seen = c.role != node || !c.out
	}
	if c.topology.program && c.role == node && c.out && (k.scope == frames || k.isARP()) {
		return "what looks at frames on the node's own port of the switch sees them before any rule"
	}
	if k.deep && !seen {
		return "rules look through two tags"
	}
	if c.out && k.source || !c.out && k.dest {
		return ""
	}
	return "no address of the target is in it"
}
