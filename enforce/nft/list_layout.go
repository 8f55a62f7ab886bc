package nft

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// listBase names what a set of lists holds: prefixes of one family and length, in one direction.
type listBase struct {
	direction fsm.Direction
	base      base
}

func (b listBase) String() string { return fmt.Sprintf("%s_%s", b.direction, b.base) }

// name is the set's name in the kernel. A set whose content was loaded anew lives on as the next generation.
func (b listBase) name(generation int) string {
	return fmt.Sprintf("%s_%s", b.direction, b.base.name(generation))
}

// parseListName is the inverse of listBase.name.
func parseListName(s string) (b listBase, generation int, ok bool) {
	direction, rest, _ := strings.Cut(s, "_")
	b.direction = fsm.Direction(direction)
	if b.direction != fsm.In && b.direction != fsm.Out && b.direction != fsm.Both {
		return b, 0, false
	}
	b.base, generation, ok = parseName(rest)
	return b, generation, ok && b.name(generation) == s && (b.base.kind == kind4 || b.base.kind == kind6)
}

func (b listBase) compare(o listBase) int {
	return cmp.Or(cmp.Compare(b.base.kind, o.base.kind), cmp.Compare(o.base.bits, b.base.bits),
		cmp.Compare(b.direction, o.direction))
}

// keyOfList returns where the kernel holds an element.
func keyOfList(e enforce.ListElement) (listBase, key) {
	var k key
	b := listBase{e.Direction, base{kind: kind6, bits: uint8(e.Prefix.Bits())}}
	if a := e.Prefix.Addr(); a.Is4() {
		b.base.kind = kind4
		four := a.As4()
		copy(k[:], four[:])
	} else {
		k = a.As16()
	}
	return b, k
}

// looks says whether a chain's match finds the set's prefixes: packets from them go out of the target, packets to
// them come in.
func (b listBase) looks(m match) bool {
	return m == source && b.direction != fsm.In || m == dest && b.direction != fsm.Out
}

// listChain is one of our chains. A base chain sends the packets of each protocol to the chains that look
// an address up; a chain with a look has no hook.
type listChain struct {
	family   family
	name     string
	hook     uint32
	priority int32
	matches  []match
	look     match // of a chain that is called
	kind     kind  // likewise: IPv4 or IPv6
	hit      bool  // of a chain that a look calls: it counts and drops
	depth    depth // of a bridge: where the address is
	// tagged is the depth in frames with more tags than the kernel takes off, for which there is a chain.
	tagged depth
}

// hooked says that the chain is a base chain. Those of family netdev are of single devices.
func (c listChain) hooked() bool { return c.look == 0 && c.depth == outer && c.family != netdev }

// listChains are those of the tables of these families, after the chains that they call: on bridges and in the node's
// own stack those of the main tables that look at addresses, for the same reasons. On devices all addresses are looked
// at on every way, and who sends does not matter: what comes out of a switch in a program is judged where it leaves.
func listChains(families tables) []listChain {
	var all []listChain
	for _, f := range families {
		for _, m := range []match{source, dest} {
			for _, k := range []kind{kind4, kind6} {
				for _, d := range []depth{outer, behindTag, pastTags} {
					if d != outer && f == inet || d == pastTags && m == source && f == bridge {
						continue
					}
					all = append(all,
						listChain{family: f, name: hitChain(m, k) + d.suffix(), look: m, kind: k, depth: d, hit: true},
						listChain{family: f, name: lookName(m, k) + d.suffix(), look: m, kind: k, depth: d},
					)
				}
			}
		}
	}
	both := []match{source, dest}
	if slices.Contains(families, netdev) {
		return append(all,
			listChain{family: netdev, name: "tagged", matches: both, depth: behindTag},
			listChain{family: netdev, name: "tagged_output", matches: both, depth: pastTags},
			listChain{family: netdev, name: listIngress, matches: both, tagged: behindTag}, // the kernel has taken one tag off
			listChain{family: netdev, name: listEgress, matches: both, tagged: pastTags},
		)
	}
	return append(all,
		listChain{family: bridge, name: "tagged", matches: both, depth: behindTag},
		listChain{family: bridge, name: "tagged_output", matches: []match{dest}, depth: pastTags},
		listChain{family: bridge, name: "prerouting", hook: unix.NF_INET_PRE_ROUTING, priority: priorityFirst, matches: both, tagged: behindTag},
		listChain{family: bridge, name: "output", hook: unix.NF_INET_LOCAL_OUT, priority: priorityFirst, matches: []match{dest}, tagged: pastTags},
		listChain{family: inet, name: "prerouting", hook: unix.NF_INET_PRE_ROUTING, priority: priorityFirst, matches: both},
		listChain{family: inet, name: "output", hook: unix.NF_INET_LOCAL_OUT, priority: priorityFirst, matches: []match{dest}},
		listChain{family: inet, name: "postrouting", hook: unix.NF_INET_POST_ROUTING, priority: priorityAfterNAT, matches: both},
	)
}

// The chains that those of devices call.
const (
	listIngress = "ingress"
	listEgress  = "egress"
)

// suffix tells the chains of a depth from those of the others.
func (d depth) suffix() string { return [...]string{"", "_tagged", "_tagged_output"}[d] }

func lookName(m match, k kind) string {
	name := "source_4"
	if m == dest {
		name = "dest_4"
	}
	if k == kind6 {
		name = strings.TrimSuffix(name, "4") + "6"
	}
	return name
}

// listSet is a set that rules look into.
type listSet struct {
	base listBase
	name string
}

func sortSets(sets []listSet) []listSet {
	slices.SortFunc(sets, func(a, b listSet) int { return cmp.Or(a.base.compare(b.base), strings.Compare(a.name, b.name)) })
	return sets
}

// setsInRule bounds the sets that one rule looks into: the kernel keeps at most 4 KiB of a rule.
const setsInRule = 24

// rules returns the encoded rules of the chain for the sets.
func (c listChain) rules(sets []listSet) (rules [][]byte, err error) {
	put := func(exprs ...expr.Any) {
		b, failed := marshalRule(c.family, exprs)
		rules, err = append(rules, b), cmp.Or(err, failed)
	}
	if c.look == 0 {
		for _, m := range c.matches {
			for _, k := range []kind{kind4, kind6} {
				if slices.ContainsFunc(sets, func(s listSet) bool { return s.base.base.kind == k && s.base.looks(m) }) {
					put(append(c.depth.isProtocol(c.family, k), &expr.Verdict{Kind: expr.VerdictJump, Chain: lookName(m, k) + c.depth.suffix()})...)
				}
			}
		}
		if c.tagged != outer && len(rules) > 0 {
			for _, t := range []test{isTagged, isServiceTagged} {
				put(append(t.exprs(c.family), &expr.Verdict{Kind: expr.VerdictJump, Chain: "tagged" + strings.TrimPrefix(c.tagged.suffix(), "_tagged")})...)
			}
		}
		return rules, err
	}
	if c.hit {
		for _, rule := range c.hitRules() {
			put(rule...)
		}
		return rules, err
	}
	var mine []listSet // longest first
	for _, s := range sets {
		if s.base.base.kind == c.kind && s.base.looks(c.look) {
			mine = append(mine, s)
		}
	}
	if len(mine) == 0 {
		return nil, nil
	}
	// Nearly every packet is in none of the sets: one rule loads its address once, shortens it from length to
	// length, and sends it back. What comes past that rule is counted and dropped.
	found := &expr.Verdict{Kind: expr.VerdictGoto, Chain: hitChain(c.look, c.kind) + c.depth.suffix()}
	last := mine[max(0, len(mine)-setsInRule):]
	for _, s := range mine[:len(mine)-len(last)] {
		put(slices.Concat([]expr.Any{c.address()}, s.find(false), []expr.Any{found})...)
	}
	none := []expr.Any{c.address()}
	for _, s := range last {
		none = append(none, s.find(true)...)
	}
	put(append(none, &expr.Verdict{Kind: expr.VerdictReturn})...)
	put(found)
	return rules, err
}

// address loads what the chain looks up.
func (c listChain) address() expr.Any { return c.depth.address(c.look, c.kind) }

// find shortens the address that was loaded to the length of the set and looks for it; with absent, the rule
// goes on if it is not there.
func (s listSet) find(absent bool) (list []expr.Any) {
	n := s.base.base.keyLen()
	if s.base.base.masked() {
		list = append(list, &expr.Bitwise{
			SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: uint32(n),
			Mask: net.CIDRMask(int(s.base.base.bits), n*8), Xor: make([]byte, n),
		})
	}
	return append(list, &expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: s.name, Invert: absent})
}

// listMarker says what the tables stand for: a log index and, if they hold exactly what that is, its hash.
type listMarker struct {
	index uint64
	hash  [32]byte // zero: they hold more or less than that
}

// comment is the marker for people, and the only place of the hash.
func (m listMarker) comment() string {
	if m.hash == [32]byte{} {
		return fmt.Sprintf("log index %d, incomplete", m.index)
	}
	return fmt.Sprintf("log index %d, content %x", m.index, m.hash)
}

// parseListMarker reads the comment; an index that differs from that of the key makes it void.
func parseListMarker(k key, comment string) listMarker {
	m := listMarker{index: markerIndex(k)}
	_, text, ok := strings.Cut(comment, ", content ")
	if hash, err := hex.DecodeString(text); ok && err == nil && copy(m.hash[:], hash) == len(m.hash) && m.comment() == comment {
		return m
	}
	m.hash = [32]byte{}
	return m
}
