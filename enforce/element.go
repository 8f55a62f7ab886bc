package enforce

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/palisade/palisade/fsm"
)

// String names the element for people: an interface, a hardware address, an address or a prefix, and
// its treatment if it is not the drop of everything.
func (e Element) String() string {
	switch {
	case e == Element{Treatment: e.Treatment}:
		return string(e.Treatment)
	case e.Treatment != "":
		return Element{Tap: e.Tap, MAC: e.MAC, Prefix: e.Prefix}.String() + " " + string(e.Treatment)
	case e.Tap != "":
		return e.Tap
	case !e.Prefix.IsValid():
		return e.MAC.String()
	case e.Prefix.IsSingleIP():
		return e.Prefix.Addr().String()
	default:
		return e.Prefix.String()
	}
}

// Compare orders elements: chains, taps, hardware addresses, then prefixes by family, address and
// length; then by treatment.
func (e Element) Compare(o Element) int {
	return cmp.Or(
		cmp.Compare(e.rank(), o.rank()),
		cmp.Compare(e.Tap, o.Tap),
		bytes.Compare(e.MAC[:], o.MAC[:]),
		e.Prefix.Addr().Compare(o.Prefix.Addr()),
		cmp.Compare(e.Prefix.Bits(), o.Prefix.Bits()),
		cmp.Compare(e.Treatment, o.Treatment),
	)
}

func (e Element) rank() int {
	switch {
	case e.Tap != "":
		return 1
	case e.Prefix.IsValid():
		return 3
	case e.MAC != fsm.MAC{}:
		return 2
	default:
		return 0
	}
}

// compact sorts and leaves out repeats.
func compact(list []Element) []Element {
	sortElements(list)
	return slices.Compact(list)
}

func sortElements(list []Element) { slices.SortFunc(list, Element.Compare) }
