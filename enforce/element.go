package enforce

import (
	"bytes"
	"cmp"
	"slices"
)

// String names the element for people: an interface, a hardware address, an address or a prefix.
func (e Element) String() string {
	switch {
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

// Compare orders elements: taps, hardware addresses, then prefixes by family, address and length.
func (e Element) Compare(o Element) int {
	return cmp.Or(
		cmp.Compare(e.rank(), o.rank()),
		cmp.Compare(e.Tap, o.Tap),
		bytes.Compare(e.MAC[:], o.MAC[:]),
		e.Prefix.Addr().Compare(o.Prefix.Addr()),
		cmp.Compare(e.Prefix.Bits(), o.Prefix.Bits()),
	)
}

func (e Element) rank() int {
	switch {
	case e.Tap != "":
		return 0
	case !e.Prefix.IsValid():
		return 1
	default:
		return 2
	}
}

func sortElements(list []Element) { slices.SortFunc(list, Element.Compare) }
