package enforce

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/palisade/palisade/fsm"
)

// SourceElement is one thing that a kernel knows of guests that may use registered addresses alone. With Tap alone
// it says that the guest behind this interface is such a one; with MAC or Prefix, what that guest may send
// from. SourceElements are comparable.
type SourceElement struct {
	Tap    string
	MAC    fsm.MAC
	Prefix netip.Prefix // masked; of length 0 it allows all of a family
}

// Compare orders elements by tap: the tap itself, hardware addresses, prefixes.
func (e SourceElement) Compare(o SourceElement) int {
	return cmp.Or(strings.Compare(e.Tap, o.Tap), e.Prefix.Addr().Compare(o.Prefix.Addr()),
		cmp.Compare(e.Prefix.Bits(), o.Prefix.Bits()), bytes.Compare(e.MAC[:], o.MAC[:]))
}

// SourceDelta is a change of the kernel's elements. Add and Remove are disjoint, sorted, and each without repeats.
type SourceDelta struct {
	Index       uint64 // the log index that the kernel stands for once the delta is in it
	Add, Remove []SourceElement
}

// SourceBinding is what a guest of this node is bound to.
type SourceBinding struct {
	Taps []string // none: it is not bound
	// Addresses says that its addresses are bound too; else none is known, and only its hardware addresses are.
	Addresses bool
	// Why says why not all is bound that should be, for people; "" if all is.
	Why string

	elements []SourceElement // sorted
}

// Sources finds what the kernel of this node must hold so that guests use their registered addresses alone, and what a change
// of the state changes of it. The cost of an Update is that of the guests it touches, and for a change of interfaces a look
// at each guest of this node. It is used by one goroutine.
type Sources struct {
	view   *fsm.View
	local  Local
	shared map[string]bool // taps that more than one guest has
	bound  map[string]SourceBinding
}

// NewSources returns one that holds nothing.
func NewSources() *Sources { return &Sources{} }

// Update brings it to v, given all events since the view before, and to l; with reset it looks at everything. It keeps l,
// which must not change afterwards.
func (s *Sources) Update(v *fsm.View, events []fsm.Event, l Local, reset bool) SourceDelta {
	touched := changedVMs(nil, s.local.NICs, l.NICs)
	shared := s.shared
	if len(touched) > 0 {
		shared = sharedTaps(l.NICs)
	}
	all := reset || s.view == nil || slices.ContainsFunc(events, func(e fsm.Event) bool { return e.Settings != nil || e.Guard != nil })
	if all || !maps.Equal(shared, s.shared) {
		for id := range l.NICs.All() {
			touched[id] = struct{}{}
		}
		for id := range s.bound {
			touched[id] = struct{}{}
		}
	}
	for _, e := range events {
		if e.VM != nil {
			if _, here := l.NICs.Lookup(e.VM.ID); here {
				touched[e.VM.ID] = struct{}{}
			}
		}
	}
	s.view, s.local, s.shared = v, l, shared
	if len(touched) == 0 {
		return SourceDelta{Index: v.Index()}
	}
	before := make(map[SourceElement]bool) // of every element touched: was it held?
	for id := range touched {
		for _, e := range s.bound[id].elements {
			before[e] = true
		}
	}
	after := make(map[SourceElement]bool)
	bound := make(map[string]SourceBinding, len(s.bound))
	maps.Copy(bound, s.bound)
	for id := range touched {
		delete(bound, id)
		if _, here := l.NICs.Lookup(id); !here {
			continue
		}
		if b := s.bind(id); len(b.Taps) > 0 || b.Why != "" {
			bound[id] = b
			for _, e := range b.elements {
				after[e] = true
			}
		}
	}
	s.bound = bound
	d := SourceDelta{Index: v.Index()}
	for e := range after {
		if !before[e] {
			d.Add = append(d.Add, e)
		}
	}
	for e := range before {
		if !after[e] {
			d.Remove = append(d.Remove, e)
		}
	}
	slices.SortFunc(d.Add, SourceElement.Compare)
	slices.SortFunc(d.Remove, SourceElement.Compare)
	return d
}

// Bound returns what each guest of this node that should be bound is bound to, by VM id. It must not be changed; later
// updates leave it as it is.
func (s *Sources) Bound() map[string]SourceBinding { return s.bound }

// Elements returns everything that is held.
func (s *Sources) Elements() map[SourceElement]struct{} {
	held := make(map[SourceElement]struct{})
	for _, b := range s.bound {
		for _, e := range b.elements {
			held[e] = struct{}{}
		}
	}
	return held
}

func sharedTaps(all Map[[]fsm.NIC]) map[string]bool {
	owner, shared := make(map[string]string), make(map[string]bool)
	for id, list := range all.All() {
		for _, n := range list {
			if other, taken := owner[n.Tap]; taken && other != id {
				shared[n.Tap] = true
			}
			owner[n.Tap] = id
		}
	}
	return shared
}

// bind finds what a guest is bound to. Where too little is known of it, it is bound to less rather than cut off.
func (s *Sources) bind(id string) (b SourceBinding) {
	vm, known := s.view.VM(id)
	if !known {
		vm = &fsm.VM{ID: id} // the log does not have it yet
	}
	if !s.view.SourceGuarded(vm) {
		return b
	}
	var taps []string
	var allowed []SourceElement // of every tap: a guest may move an address from one interface to another
	put := func(p netip.Prefix) {
		if p = plain(netip.PrefixFrom(p.Addr().WithZone(""), p.Bits())); p.IsValid() {
			allowed = append(allowed, SourceElement{Prefix: p})
			b.Addresses = b.Addresses || !p.Addr().IsLinkLocalUnicast()
		}
	}
	for _, p := range vm.Declared {
		put(p)
	}
	macs, not := 0, "" // not: why an interface is not bound
	for _, n := range s.local.NICs.Get(id) {
		switch {
		case !reachesSources(n.Network):
			not = cmp.Or(not, fmt.Sprintf("not possible: its interface %v is on a network (%s) that the source guard does not reach", n.MAC, n.Network))
		case n.Tap == "" || len(n.Tap) > maxTapBytes || s.shared[n.Tap]:
			not = cmp.Or(not, fmt.Sprintf("the host's interface behind %v is not known, or others have it too", n.MAC))
		default:
			taps = append(taps, n.Tap)
		}
		if n.MAC != (fsm.MAC{}) {
			macs++
			allowed = append(allowed, SourceElement{MAC: n.MAC}, SourceElement{Prefix: netip.PrefixFrom(linkLocal(n.MAC), 128)})
		}
		for _, a := range n.Addresses {
			put(netip.PrefixFrom(a, a.BitLen()))
		}
	}
	switch {
	case len(taps) == 0:
		return SourceBinding{Why: cmp.Or(not, "no interface of it is known on this node")}
	case macs == 0:
		return SourceBinding{Why: "no hardware address of it is known"}
	case !b.Addresses:
		not = strings.TrimPrefix(not+"; no address of it is known: only its hardware addresses are bound", "; ")
		allowed = append(allowed, SourceElement{Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}, SourceElement{Prefix: netip.PrefixFrom(netip.IPv6Unspecified(), 0)})
	}
	slices.Sort(taps)
	b.Why = not
	b.Taps = slices.Compact(taps)
	for _, tap := range b.Taps {
		b.elements = append(b.elements, SourceElement{Tap: tap})
		for _, e := range allowed {
			e.Tap = tap
			b.elements = append(b.elements, e)
		}
	}
	slices.SortFunc(b.elements, SourceElement.Compare)
	b.elements = slices.Compact(b.elements)
	return b
}

// reachesSources says whether what a guest sends on such a network passes the tables of sources: those of bridges and of
// the node's own stack. Of a network that nobody named, that is so as for blocks.
func reachesSources(network string) bool {
	return network == "" || network == fsm.NetworkBridge || network == fsm.NetworkRouted
}

// linkLocal is the IPv6 address that an interface makes of its hardware address (RFC 4291, appendix A).
func linkLocal(m fsm.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// StrangeSources returns what of a kernel's elements is of interfaces that no guest here has with any of the hardware addresses
// that the kernel knows of them: the host has given their names to others, who must not pay for it.
func StrangeSources(held map[SourceElement]struct{}, l Local) []SourceElement {
	here := make(map[string]bool) // taps
	for _, nics := range l.NICs.All() {
		for _, n := range nics {
			if _, ok := held[SourceElement{Tap: n.Tap, MAC: n.MAC}]; ok {
				here[n.Tap] = true
			}
		}
	}
	var strange []SourceElement
	for e := range held {
		if !here[e.Tap] {
			strange = append(strange, e)
		}
	}
	slices.SortFunc(strange, SourceElement.Compare)
	return strange
}
