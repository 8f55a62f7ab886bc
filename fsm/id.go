package fsm

import (
	"net/netip"
	"slices"
	"strconv"
)

// FormatBlockID gives the id of the block with this number: "b17".
func FormatBlockID(number uint64) string {
	return "b" + strconv.FormatUint(number, 10)
}

// ParseBlockID gives the number in a block id. It accepts only what FormatBlockID gives: no sign, no
// leading zero, not "b0".
func ParseBlockID(id string) (uint64, bool) {
	if len(id) < 2 || id[0] != 'b' || id[1] < '1' || id[1] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(id[1:], 10, 64)
	return n, err == nil
}

// String gives what the target names: a VM id, "account ID", "list NAME", or the prefix (an address
// without its full length).
func (t Target) String() string {
	switch {
	case t.VM != "":
		return t.VM
	case t.Account != "":
		return "account " + t.Account
	case t.List != "":
		return "list " + t.List
	case t.Prefix.IsSingleIP():
		return t.Prefix.Addr().String()
	case t.Prefix.IsValid():
		return t.Prefix.String()
	default:
		return ""
	}
}

// AllAddresses returns what is declared of the VM and the addresses of its NICs, as prefixes, sorted
// by family, address and length, without repeats. The caller owns the result.
func (v *VM) AllAddresses() []netip.Prefix {
	all := slices.Clone(v.Declared)
	for i := range v.NICs {
		for _, a := range v.NICs[i].Addresses {
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	slices.SortFunc(all, comparePrefix)
	return slices.Compact(all)
}
