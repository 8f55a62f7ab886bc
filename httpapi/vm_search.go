package httpapi

import (
	"net/netip"
	"strings"

	"github.com/palisade/palisade/fsm"
)

// vmSearch is what a person typed: words that must all be found, each anywhere in the id, the name, the owner, a MAC or an
// address, without regard to case. A whole address or prefix finds the VMs that have it, declared or observed.
type vmSearch struct{ words []searchWord }

type searchWord struct {
	text   string       // lower case
	prefix netip.Prefix // valid if the word is a whole address or prefix
}

// maxSearchWords bounds the work for one request.
const maxSearchWords = 8

func newVMSearch(text string) vmSearch {
	var s vmSearch
	for _, w := range strings.Fields(strings.ToLower(text)) {
		if len(s.words) == maxSearchWords {
			break
		}
		s.words = append(s.words, searchWord{w, searchPrefix(w)})
	}
	return s
}

// searchPrefix reads a whole address or prefix, bits of the host taken off; what is none gives an invalid one.
func searchPrefix(w string) netip.Prefix {
	if a, err := netip.ParseAddr(w); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen())
	}
	p, err := netip.ParsePrefix(w)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}
	}
	return p.Masked()
}

// named says whether the text is in what names a VM.
func named(vm *fsm.VM, text string) bool {
	return containsFold(vm.ID, text) || containsFold(vm.Name, text) || containsFold(vm.Owner, text)
}

// containsFold says whether text, which is in lower case, is anywhere in s.
func containsFold(s, text string) bool { return strings.Contains(strings.ToLower(s), text) }
