package fsm

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"strings"
)

// ParsePrefix reads an address or a CIDR as a target. It refuses host bits and names what would be
// right, unmaps IPv4-mapped IPv6, and refuses zones. Width and guards are checked by Apply.
func ParsePrefix(field, s string) (netip.Prefix, *Error) {
	invalid := func(format string, args ...any) (netip.Prefix, *Error) {
		return netip.Prefix{}, &Error{CodeInvalid, field, fmt.Sprintf(format, args...)}
	}
	if strings.Contains(s, "%") {
		return invalid("%s has a zone; an address that is blocked on every node can't have one", quote(s))
	}
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return invalid("%s is no IPv4 or IPv6 address or CIDR", quote(s))
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return invalid("%s is no IPv4 or IPv6 address or CIDR", quote(s))
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return invalid("%s is IPv4-mapped and wider than all of IPv4; write it in IPv4 form", quote(s))
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p != p.Masked() {
		return invalid("%s has bits set beyond its length; the prefix is %s, the address alone is %s",
			quote(s), p.Masked(), p.Addr())
	}
	return p, nil
}

// checkPrefix refuses what can neither be blocked, declared nor guarded, whatever the state.
func checkPrefix(field string, p netip.Prefix) *Error {
	switch {
	case !p.IsValid():
		return &Error{CodeInvalid, field, "is missing or no prefix"}
	case p.Addr().Is4In6():
		return &Error{CodeInvalid, field, p.String() + " is IPv4-mapped; write it in IPv4 form"}
	case p != p.Masked():
		return &Error{CodeInvalid, field,
			fmt.Sprintf("%s has bits set beyond its length; the prefix is %s", p, p.Masked())}
	}
	widest := MinPrefixBits6
	if p.Addr().Is4() {
		widest = MinPrefixBits4
	}
	if p.Bits() < widest {
		return &Error{CodeTooWide, field, fmt.Sprintf("%s is too wide: /%d is the widest allowed", p, widest)}
	}
	return nil
}

// comparePrefix orders by family, address and length.
func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// prefixLengths counts prefixes by length, so that a search for those around an address tries only
// the lengths that exist.
type prefixLengths struct {
	v4 [33]uint32
	v6 [129]uint32
}

func (l *prefixLengths) of(a netip.Addr) []uint32 {
	if a.Is4() {
		return l.v4[:]
	}
	return l.v6[:]
}

func (l *prefixLengths) add(p netip.Prefix)    { l.of(p.Addr())[p.Bits()]++ }
func (l *prefixLengths) remove(p netip.Prefix) { l.of(p.Addr())[p.Bits()]-- }

// around walks the prefixes that cover p, p itself included, of the lengths that exist, widest first.
func (l *prefixLengths) around(p netip.Prefix) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for bits, n := range l.of(p.Addr())[:p.Bits()+1] {
			if n == 0 {
				continue
			}
			if wide, err := p.Addr().Prefix(bits); err != nil || !yield(wide) {
				return
			}
		}
	}
}
