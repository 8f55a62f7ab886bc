package nft

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// family is the nf_tables family of one of our two tables.
type family uint8

const (
	bridge family = unix.NFPROTO_BRIDGE
	inet   family = unix.NFPROTO_INET
)

func (f family) String() string {
	if f == bridge {
		return "bridge"
	}
	return "inet"
}

// kind is what the elements of a set are. The order is that of the rules.
type kind uint8

const (
	kindTap kind = iota + 1
	kindMAC
	kind4
	kind6
)

// base names what a set holds, the same in both tables: a kind of element and, of addresses, the
// length of the prefix. It is the set's name without the generation.
type base struct {
	kind kind
	bits uint8
}

// exactBases are those that always have a set. A masked set exists while it has an element, because
// each costs every packet two lookups.
func exactBases() []base {
	return []base{{kindTap, 0}, {kindMAC, 0}, {kind4, 32}, {kind6, 128}}
}

func (b base) String() string {
	switch b.kind {
	case kindTap:
		return "taps"
	case kindMAC:
		return "macs"
	case kind4:
		return fmt.Sprintf("a4_%d", b.bits)
	default:
		return fmt.Sprintf("a6_%d", b.bits)
	}
}

// name is the set's name in the kernel. A set that outgrew its size lives on as the next generation.
func (b base) name(generation int) string {
	if generation <= 1 {
		return b.String()
	}
	return fmt.Sprintf("%s.%d", b, generation)
}

// parseName is the inverse of base.name.
func parseName(s string) (b base, generation int, ok bool) {
	generation = 1
	if name, g, found := strings.Cut(s, "."); found {
		n, err := strconv.Atoi(g)
		if err != nil || n < 2 || strconv.Itoa(n) != g {
			return base{}, 0, false
		}
		s, generation = name, n
	}
	switch {
	case s == "taps":
		return base{kindTap, 0}, generation, true
	case s == "macs":
		return base{kindMAC, 0}, generation, true
	case strings.HasPrefix(s, "a4_"), strings.HasPrefix(s, "a6_"):
		b, most := base{kind: kind4}, 32
		if s[1] == '6' {
			b, most = base{kind: kind6}, 128
		}
		bits, err := strconv.Atoi(s[3:])
		if err != nil || bits < 1 || bits > most || strconv.Itoa(bits) != s[3:] {
			return base{}, 0, false
		}
		b.bits = uint8(bits)
		return b, generation, true
	}
	return base{}, 0, false
}

func (b base) masked() bool {
	return b.kind == kind4 && b.bits < 32 || b.kind == kind6 && b.bits < 128
}

// in says whether the table of that family has a set for the base. Hardware addresses are matched
// where frames have them, on bridges.
func (b base) in(f family) bool { return b.kind != kindMAC || f == bridge }

func (b base) keyLen() int {
	switch b.kind {
	case kindTap:
		return unix.IFNAMSIZ
	case kindMAC:
		return len(fsm.MAC{})
	case kind4:
		return 4
	default:
		return 16
	}
}

// keyType is the nft type that makes the set readable for an operator.
func (b base) keyType() uint32 {
	var t nftables.SetDatatype
	switch b.kind {
	case kindTap:
		t = nftables.TypeIFName
	case kindMAC:
		t = nftables.TypeEtherAddr
	case kind4:
		t = nftables.TypeIPAddr
	default:
		t = nftables.TypeIP6Addr
	}
	return t.GetNFTMagic()
}

// key is an element as a set of its base holds it, the first base.keyLen bytes.
type key [16]byte

// keyOf returns where the kernel holds the element. The error says why it can't.
func keyOf(e enforce.Element) (base, key, error) {
	var k key
	fields := 0
	var b base
	if e.Treatment != "" {
		return b, k, fmt.Errorf("element %v: no set is for its treatment", e)
	}
	if e.Tap != "" {
		fields++
		if len(e.Tap) >= unix.IFNAMSIZ {
			return b, k, fmt.Errorf("tap %q is longer than an interface name", e.Tap)
		}
		b = base{kind: kindTap}
		copy(k[:], e.Tap)
	}
	if e.MAC != (fsm.MAC{}) {
		fields++
		b = base{kind: kindMAC}
		copy(k[:], e.MAC[:])
	}
	if p := e.Prefix; p != (netip.Prefix{}) {
		fields++
		switch {
		case !p.IsValid() || p.Bits() == 0 || p != p.Masked() || p.Addr().Is4In6():
			return b, k, fmt.Errorf("prefix %v can't be an element", p)
		case p.Addr().Is4():
			b = base{kind4, uint8(p.Bits())}
		default:
			b = base{kind6, uint8(p.Bits())}
		}
		copy(k[:], p.Addr().AsSlice())
	}
	if fields != 1 {
		return b, k, fmt.Errorf("element %+v has %d fields, want 1", e, fields)
	}
	return b, k, nil
}

// elementOf is the inverse of keyOf; ok is false for a key that we would not have written.
func elementOf(b base, k key) (e enforce.Element, ok bool) {
	switch b.kind {
	case kindTap:
		e.Tap = attrText(k[:])
	case kindMAC:
		e.MAC = fsm.MAC(k[:len(e.MAC)])
	case kind4:
		e.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte(k[:4])), int(b.bits))
	default:
		e.Prefix = netip.PrefixFrom(netip.AddrFrom16(k), int(b.bits))
	}
	back, same, err := keyOf(e)
	return e, err == nil && back == b && same == k
}
