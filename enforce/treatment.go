package enforce

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/palisade/palisade/fsm"
)

// Treatment says what the kernel does with the packets of an element. It is the text of Terms, in
// letters that nftables allows in a name. The zero value drops every packet, in both directions.
type Treatment string

// What the kernel must know beyond the holds, to answer for a guest.
const (
	// Page is of addresses whose visitors are sent to the node's page.
	Page fsm.Kind = "page"
	// Bridge is of ports of a bridge; frames that the node answers take its hardware address.
	Bridge fsm.Kind = "bridge"
	// Here is of hardware addresses and taps of guests on this node.
	Here fsm.Kind = "here"
)

// Terms are what a Treatment says.
type Terms struct {
	// Kind is one of fsm's, or "page", "bridge" or "here", which hold nothing but help to answer.
	Kind fsm.Kind
	// Direction of the packets that are treated. Only Drop can have fsm.Both; Kinds that hold nothing
	// have none.
	Direction fsm.Direction
	// Hold is the block of Ports and Limit. All elements with the same Treatment share its rate.
	Hold   string
	Rate   fsm.Rate        // of Limit
	Ports  []fsm.PortRange // of Ports, at most maxRanges
	Port   uint16          // of Page: the node's TCP port
	Bridge fsm.MAC         // of Bridge
}

// maxRanges keeps the text of a Treatment below the 255 bytes of a name in nftables. A block with more
// ranges has several treatments.
const maxRanges = 8

// Treatment returns the terms as text.
func (t Terms) Treatment() Treatment {
	var b strings.Builder
	switch t.Kind {
	case fsm.Drop:
		if t.Direction != fsm.Both {
			b.WriteString(string(t.Direction))
		}
	case Page:
		fmt.Fprintf(&b, "page_%d", t.Port)
	case Bridge:
		fmt.Fprintf(&b, "bridge_%x", t.Bridge[:])
	case Here:
		b.WriteString("here")
	default:
		b.WriteString(t.Class())
	}
	switch t.Kind {
	case fsm.Limit:
		fmt.Fprintf(&b, "_%s_%s", t.Hold, rateText(t.Rate))
	case fsm.Ports:
		b.WriteString("_" + t.Hold)
		for _, r := range t.Ports {
			b.WriteString("_" + rangeText(r))
		}
	default:
	}
	return Treatment(b.String())
}

// Class names all treatments of one kind and direction.
func (t Terms) Class() string { return string(t.Kind) + "_" + string(t.Direction) }

func rateText(r fsm.Rate) string {
	if r.Packets > 0 {
		return fmt.Sprintf("%dpackets", r.Packets)
	}
	return fmt.Sprintf("%dbits", r.Bits)
}

func rangeText(r fsm.PortRange) string {
	switch {
	case r.First == 0 && r.Last == 0:
		return strconv.Itoa(int(r.Protocol))
	case r.First == r.Last:
		return fmt.Sprintf("%d.%d", r.Protocol, r.First)
	default:
		return fmt.Sprintf("%d.%d-%d", r.Protocol, r.First, r.Last)
	}
}

// Terms is the inverse of Terms.Treatment; ok is false for a text that it would not write.
func (t Treatment) Terms() (terms Terms, ok bool) {
	words := strings.Split(string(t), "_")
	terms = Terms{Kind: fsm.Kind(words[0])}
	switch {
	case t == "":
		return Terms{Kind: fsm.Drop, Direction: fsm.Both}, true
	case words[0] == string(fsm.In), words[0] == string(fsm.Out):
		terms = Terms{Kind: fsm.Drop, Direction: fsm.Direction(words[0])}
	case terms.Kind == Page && len(words) == 2:
		port, _ := strconv.ParseUint(words[1], 10, 16)
		terms.Port = uint16(port)
	case terms.Kind == Bridge && len(words) == 2:
		_, _ = fmt.Sscanf(words[1], "%02x%02x%02x%02x%02x%02x", &terms.Bridge[0], &terms.Bridge[1],
			&terms.Bridge[2], &terms.Bridge[3], &terms.Bridge[4], &terms.Bridge[5])
	case len(words) >= 2:
		terms.Direction = fsm.Direction(words[1])
		terms.hold(words[2:])
	}
	return terms, terms.known() && terms.Treatment() == t
}

func (t *Terms) hold(words []string) {
	switch {
	case len(words) < 2:
	case t.Kind == fsm.Limit && len(words) == 2:
		t.Hold = words[0]
		if n, ok := strings.CutSuffix(words[1], "packets"); ok {
			t.Rate.Packets, _ = strconv.ParseUint(n, 10, 64)
		} else if n, ok := strings.CutSuffix(words[1], "bits"); ok {
			t.Rate.Bits, _ = strconv.ParseUint(n, 10, 64)
		}
	case t.Kind == fsm.Ports:
		t.Hold = words[0]
		for _, w := range words[1:] {
			t.Ports = append(t.Ports, parseRange(w))
		}
	}
}

func parseRange(s string) fsm.PortRange {
	protocol, ports, _ := strings.Cut(s, ".")
	first, last, found := strings.Cut(ports, "-")
	if !found {
		last = first
	}
	number := func(s string, bits int) uint64 {
		n, _ := strconv.ParseUint(s, 10, bits)
		return n
	}
	return fsm.PortRange{Protocol: uint8(number(protocol, 8)), First: uint16(number(first, 16)), Last: uint16(number(last, 16))}
}

// known says whether the terms can be carried out.
func (t Terms) known() bool {
	oneWay := t.Direction == fsm.In || t.Direction == fsm.Out
	switch t.Kind {
	case fsm.Drop:
		return oneWay || t.Direction == fsm.Both
	case fsm.Reject, fsm.Redirect:
		return oneWay
	case fsm.Limit:
		return oneWay && t.Hold != "" && (t.Rate.Bits > 0) != (t.Rate.Packets > 0)
	case fsm.Ports:
		return oneWay && t.Hold != "" && len(t.Ports) > 0 && len(t.Ports) <= maxRanges
	case Page:
		return t.Port != 0
	case Bridge, Here:
		return true
	default:
		return false
	}
}

// Chained says that the treatment is a chain of rules of its own in the kernel, which every element
// with it is sent to. The chain itself is an Element without tap, address and prefix.
func (t Terms) Chained() bool { return t.Kind == fsm.Ports || t.Kind == fsm.Limit }

// Answers says that the node answers for the target, for which it must know its bridges.
func (t Terms) Answers() bool { return t.Kind == fsm.Reject || t.Kind == Page }

// directions splits what the kernel treats apart.
func directions(d fsm.Direction) []fsm.Direction {
	if d == fsm.In || d == fsm.Out {
		return []fsm.Direction{d}
	}
	return []fsm.Direction{fsm.Out, fsm.In}
}
