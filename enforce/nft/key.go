package nft

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// family is the nf_tables family of one of our tables.
type family uint8

const (
	bridge family = unix.NFPROTO_BRIDGE
	arp    family = unix.NFPROTO_ARP
	inet   family = unix.NFPROTO_INET
	netdev family = unix.NFPROTO_NETDEV
)

func (f family) String() string {
	switch f {
	case bridge:
		return "bridge"
	case arp:
		return "arp"
	case netdev:
		return "netdev"
	default:
		return "inet"
	}
}

// tables are the families of tables that change in one transaction. The last has the marker.
type tables []family

func (t tables) home() family { return t[len(t)-1] }

// with are those that treat what is of a kind.
func (t tables) with(k fsm.Kind) tables {
	return slices.DeleteFunc(slices.Clone(t), func(f family) bool { return !f.treats(k) })
}

// treats says whether packets of a family are treated differently because of a kind. ARP has no ports, and those who
// are answered can be found.
func (f family) treats(k fsm.Kind) bool { return f != arp || k == fsm.Drop || k == fsm.Limit }

// nodeTables are those that every node has whose kernel has them, listTables those of lists, deviceTables what a node
// with devices has beside them that pass none of these.
func nodeTables() tables   { return tables{bridge, arp, inet} }
func listTables() tables   { return tables{bridge, inet} }
func deviceTables() tables { return tables{netdev} }

// kind is what the elements of a set are. The order is that of the rules.
type kind uint8

const (
	kindTap kind = iota + 1
	kindMAC
	kind4
	kind6
	// kindChain is no set, but the chain of a treatment; the class is the treatment.
	kindChain
)

// base names what a set holds, the same in both tables. It is the set's name without the generation.
type base struct {
	// class is the treatment of the elements. Elements with a chain of their own share one map for each
	// kind and direction ("limit_in"), which says the chain of each.
	class string
	kind  kind
	bits  uint8 // of addresses, the length of the prefix
	// slot tells apart the maps of a class: an element with three chains is in the first three.
	slot uint16
}

// exactBases are those that always have a set. Any other exists while it has an element, because each
// costs every packet two lookups.
func exactBases() []base {
	return []base{{kind: kindTap}, {kind: kindMAC}, {kind: kind4, bits: 32}, {kind: kind6, bits: 128}}
}

func (b base) String() string {
	s := b.class
	if b.slot > 0 {
		s += fmt.Sprintf("_%d", b.slot+1)
	}
	if s != "" && b.kind != kindChain {
		s += "_"
	}
	switch b.kind {
	case kindTap:
		return s + "taps"
	case kindMAC:
		return s + "macs"
	case kind4:
		return fmt.Sprintf("%sa4_%d", s, b.bits)
	case kind6:
		return fmt.Sprintf("%sa6_%d", s, b.bits)
	default:
		return s
	}
}

// name is the set's name in the kernel. A set that outgrew its size lives on as the next generation.
func (b base) name(generation int) string {
	if generation <= 1 {
		return b.String()
	}
	return fmt.Sprintf("%s.%d", b, generation)
}

var (
	setPattern  = regexp.MustCompile(`^(?:(.+)_)?(taps|macs|a4|a6)(?:_(\d+))?(?:\.(\d+))?$`)
	slottedName = regexp.MustCompile(`^(.+)_(\d+)$`)
)

// parseName is the inverse of base.name.
func parseName(s string) (b base, generation int, ok bool) {
	m := setPattern.FindStringSubmatch(s)
	if m == nil {
		return base{}, 0, false
	}
	b.class, b.kind = m[1], map[string]kind{"taps": kindTap, "macs": kindMAC, "a4": kind4, "a6": kind6}[m[2]]
	bits, _ := strconv.ParseUint(m[3], 10, 8)
	b.bits = uint8(bits)
	if slotted := slottedName.FindStringSubmatch(b.class); slotted != nil && isChained(slotted[1]) {
		slot, _ := strconv.ParseUint(slotted[2], 10, 16)
		b.class, b.slot = slotted[1], uint16(max(slot, 1)-1)
	}
	generation = 1
	if m[4] != "" {
		generation, _ = strconv.Atoi(m[4])
	}
	if !b.known() || b.name(generation) != s {
		return base{}, 0, false
	}
	return b, generation, true
}

// known says whether a set like this can be ours.
func (b base) known() bool {
	t, ok := terms(b.class)
	switch b.kind {
	case kindTap:
		ok = ok && b.bits == 0 && t.Kind != enforce.Page
	case kindMAC:
		ok = ok && b.bits == 0 && t.Kind != enforce.Page && t.Kind != enforce.Bridge
	case kind4:
		ok = ok && b.bits >= 1 && b.bits <= 32 && t.Kind != enforce.Here && t.Kind != enforce.Bridge
	case kind6:
		ok = ok && b.bits >= 1 && b.bits <= 128 && t.Kind != enforce.Here && t.Kind != enforce.Bridge
	default:
		return false
	}
	return ok && (b.slot == 0 || t.Chained())
}

// terms says what is done with the elements of a class. Of a class with chains it is only the kind and
// the direction.
func terms(class string) (t enforce.Terms, ok bool) {
	for _, k := range []fsm.Kind{fsm.Ports, fsm.Limit} {
		for _, d := range []fsm.Direction{fsm.In, fsm.Out} {
			if t = (enforce.Terms{Kind: k, Direction: d}); class == t.Class() {
				return t, true
			}
		}
	}
	t, ok = enforce.Treatment(class).Terms()
	return t, ok && !t.Chained()
}

func isChained(class string) bool {
	t, ok := terms(class)
	return ok && t.Chained()
}

// chained says that each element has a chain.
func (b base) chained() bool { return b.class != "" && b.kind != kindChain && isChained(b.class) }

// transient says that the set exists only while it has an element.
func (b base) transient() bool { return b.class != "" || b.masked() }

func (b base) masked() bool {
	return b.kind == kind4 && b.bits < 32 || b.kind == kind6 && b.bits < 128
}

// in says whether the table of that family has a set for the base. Hardware addresses are matched
// where frames have them, on bridges and devices, and so are ports of bridges. On devices nobody is
// answered. ARP is known by taps alone.
func (b base) in(f family) bool {
	t, _ := terms(b.class)
	if f == arp {
		return b.kind == kindTap && f.treats(t.Kind)
	}
	if f == bridge || b.class == "" {
		return f != inet || b.kind != kindMAC
	}
	if f == netdev {
		return t.Kind != enforce.Bridge && t.Kind != enforce.Page && t.Kind != enforce.Here
	}
	return b.kind != kindMAC && t.Kind != enforce.Bridge
}

// flags are those of nf_tables.
func (b base) flags() uint32 {
	if b.chained() {
		return unix.NFT_SET_MAP
	}
	return 0
}

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

// place is where the kernel holds an element. Of an element with a chain, keyOf gives the first slot.
type place struct {
	base base
	key  key
}

// keyOf returns where the kernel holds the element. The error says why it can't.
func keyOf(e enforce.Element) (base, key, error) {
	var k key
	fields := 0
	var b base
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
			b = base{kind: kind4, bits: uint8(p.Bits())}
		default:
			b = base{kind: kind6, bits: uint8(p.Bits())}
		}
		copy(k[:], p.Addr().AsSlice())
	}
	if e.Treatment == "" && fields == 1 {
		return b, k, nil
	}
	t, ok := e.Treatment.Terms()
	switch {
	case !ok || fields > 1 || fields == 0 && !t.Chained():
		return b, k, fmt.Errorf("element %+v has %d fields or a treatment that is not known", e, fields)
	case fields == 0:
		return base{class: string(e.Treatment), kind: kindChain}, k, nil
	case t.Chained():
		b.class = t.Class()
	default:
		b.class = string(e.Treatment)
	}
	if !b.known() {
		return b, k, fmt.Errorf("element %v can't have this treatment", e)
	}
	return b, k, nil
}

// elementOf is the inverse of keyOf, given the chain of an element that has one; ok is false for what we
// would not have written.
func elementOf(b base, k key, chain string) (e enforce.Element, ok bool) {
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
	e.Treatment = enforce.Treatment(b.class)
	if b.chained() {
		e.Treatment = enforce.Treatment(chain)
	}
	b.slot = 0
	back, same, err := keyOf(e)
	return e, err == nil && back == b && same == k
}
