package nft

import (
	"cmp"
	"iter"
	"maps"
	"math"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// markerSet holds the log index that the kernel stands for, as one element of the inet table.
const markerSet = "enforced"

// Hook priorities. Ours come before defragmentation (-400) and conntrack (-200), so that a fragment
// and a packet of an established flow are dropped like any other. Only after routing we also come
// after source NAT (100): there the addresses are those that leave.
const (
	priorityFirst    = -500
	priorityAfterNAT = 250
	// priorityPage is before the destination NAT of others (-100).
	priorityPage = -150

	policyAccept = 1 // NF_ACCEPT
)

// chain is one of our chains and what its rules match.
type chain struct {
	family   family
	name     string
	sort     string // of a base chain, "filter" or "nat"
	hook     uint32
	priority int32
	device   string // of a base chain of family netdev
	matches  []match
	limits   []match // of family netdev: those of matches that limits count
	// unless ends the chain for packets that it is not about; 0: it is about all.
	unless test
	depth  depth // of sources and destinations
	// tagged is the chain for frames with more tags than the kernel takes off.
	tagged string
	// rules of the chain, given the sets of its table that exist.
	list func(c chain, s setList) []rule
	// needed says whether the chain exists, given all sets.
	needed func(s setList) bool
}

// match is one field of a packet that a rule looks up in the sets of its kind.
type match uint8

const (
	inTap match = iota + 1
	outTap
	sourceMAC
	destMAC
	source
	dest
	// sentTap and gotTap are of devices that are on the guest's side, as it were: what leaves a macvtap was sent by
	// its guest.
	sentTap
	gotTap
)

// direction is that of a packet whose field is in a set, seen from the target.
func (m match) direction() fsm.Direction {
	if m == inTap || m == sourceMAC || m == source || m == sentTap {
		return fsm.Out
	}
	return fsm.In
}

func (m match) looksFor(k kind) bool {
	switch m {
	case inTap, outTap, sentTap, gotTap:
		return k == kindTap
	case sourceMAC, destMAC:
		return k == kindMAC
	default:
		return k == kind4 || k == kind6
	}
}

// chains returns every chain that the tables of these families can have, but for those of single devices. Which
// packets meet which is in DESIGN.md.
func chains(families tables) []chain {
	if slices.Contains(families, netdev) {
		return deviceChains()
	}
	return slices.DeleteFunc(nodeChains(), func(c chain) bool { return !slices.Contains(families, c.family) })
}

// The hooks of family arp.
const (
	hookARPIn  = 0 // NF_ARP_IN
	hookARPOut = 1 // NF_ARP_OUT
)

// nodeChains are those of nodeTables. Bridge hooks have the numbers of the inet hooks.
func nodeChains() []chain {
	hooked := []chain{
		{family: bridge, name: "prerouting", hook: unix.NF_INET_PRE_ROUTING, priority: priorityFirst, matches: []match{inTap, sourceMAC, destMAC, source, dest}, tagged: "tagged"},
		{family: bridge, name: "input", hook: unix.NF_INET_LOCAL_IN, priority: priorityFirst, matches: []match{inTap, sourceMAC}, unless: notReserved},
		{family: bridge, name: "output", hook: unix.NF_INET_LOCAL_OUT, priority: priorityFirst, matches: []match{outTap, destMAC, dest}, tagged: "tagged_output"},
		{family: bridge, name: "postrouting", hook: unix.NF_INET_POST_ROUTING, priority: priorityFirst, matches: []match{outTap}},
		{family: inet, name: "prerouting", hook: unix.NF_INET_PRE_ROUTING, priority: priorityFirst, matches: []match{inTap, source, dest}},
		{family: inet, name: "output", hook: unix.NF_INET_LOCAL_OUT, priority: priorityFirst, matches: []match{dest}},
		{family: inet, name: "postrouting", hook: unix.NF_INET_POST_ROUTING, priority: priorityAfterNAT, matches: []match{outTap, source, dest}},
	}
	var all []chain
	for _, c := range hooked {
		c.sort, c.list, c.needed = "filter", chain.treatments, always
		all = append(all, c)
		c.sort, c.name, c.list, c.needed = "", c.name+"_answer", chain.answers, setList.answers
		all = append(all, c)
	}
	rejects := func(s setList) bool { return s.has(fsm.Reject) }
	pages := func(s setList) bool { return s.has(enforce.Page) }
	return append(all,
		chain{family: arp, name: "input", sort: "filter", hook: hookARPIn, priority: priorityFirst, matches: []match{inTap}, list: chain.links, needed: always},
		chain{family: arp, name: "output", sort: "filter", hook: hookARPOut, priority: priorityFirst, matches: []match{outTap}, list: chain.links, needed: always},
		chain{family: bridge, name: "tagged", hook: unix.NF_INET_PRE_ROUTING, matches: []match{source, dest}, depth: behindTag, list: chain.taggedRules, needed: always},
		chain{family: bridge, name: "tagged_output", hook: unix.NF_INET_LOCAL_OUT, matches: []match{dest}, depth: pastTags, list: chain.taggedRules, needed: always},
		chain{family: inet, name: "reject", list: chain.reject, needed: rejects},
		chain{family: bridge, name: "refuse", list: chain.refuse, needed: rejects},
		chain{family: bridge, name: "page", list: chain.page, needed: pages},
		chain{family: bridge, name: "page_reply", list: chain.pageReply, needed: pages},
		chain{family: bridge, name: "hand_up", list: chain.handUp, needed: setList.answers},
		chain{family: inet, name: "page_reply", list: chain.pageReply, needed: pages},
		chain{family: inet, name: "page_nat", sort: "nat", hook: unix.NF_INET_PRE_ROUTING, priority: priorityPage, list: chain.pageNAT, needed: pages},
		chain{family: inet, name: "page_nat_own", sort: "nat", hook: unix.NF_INET_LOCAL_OUT, priority: priorityPage, list: chain.pageNATOwn, needed: pages},
	)
}

func always(setList) bool { return true }

// namedSet is a set, and what is done with its elements.
type namedSet struct {
	id    setID
	name  string
	terms enforce.Terms
}

// setList is all sets in the order of their rules.
type setList []namedSet

func listSets(sets map[setID]*liveSet) setList {
	var list setList
	for _, id := range sorted(maps.Keys(sets)) {
		t, _ := terms(id.base.class)
		list = append(list, namedSet{id, sets[id].name, t})
	}
	return list
}

func (s setList) has(kinds ...fsm.Kind) bool {
	return slices.ContainsFunc(s, func(n namedSet) bool { return slices.Contains(kinds, n.terms.Kind) })
}

func (s setList) answers() bool { return s.has(fsm.Reject, fsm.Redirect, enforce.Page) }

// rules returns the rules of the chain, given the sets that exist.
func (c chain) rules(s setList) []rule { return c.list(c, s) }

// look returns rules that look fields up in all sets of a kind, and do the same with what is found.
func (c chain) look(s setList, k fsm.Kind, do rule, matches ...match) []rule {
	var rules []rule
	for _, n := range s {
		for _, m := range matches {
			if n.id.family != c.family || n.terms.Kind != k || !m.looksFor(n.id.base.kind) {
				continue
			}
			if d := n.terms.Direction; d == fsm.In || d == fsm.Out {
				if d != m.direction() {
					continue
				}
			}
			r := do
			r.match, r.base, r.set, r.depth = m, n.id.base, n.name, c.depth
			if n.terms.Kind == enforce.Bridge {
				r.mac = n.terms.Bridge
			}
			if c.sort == "nat" {
				r.port = n.terms.Port
			}
			rules = append(rules, r)
		}
	}
	return rules
}

// treatments are the rules of a base chain: from the strictest to the mildest.
func (c chain) treatments(s setList) []rule {
	var rules []rule
	if c.unless != 0 {
		rules = append(rules, rule{test: c.unless, do: accept})
	}
	rules = append(rules, c.look(s, fsm.Drop, rule{do: drop}, c.matches...)...)
	if c.tagged != "" {
		rules = append(rules, rule{test: isTagged, do: jump, chain: c.tagged}, rule{test: isServiceTagged, do: jump, chain: c.tagged})
	}
	rules = append(rules, c.look(s, fsm.Ports, rule{do: toChain}, c.matches...)...)
	if s.answers() {
		rules = append(rules, rule{do: jump, chain: c.name + "_answer"})
	}
	for _, r := range c.look(s, fsm.Limit, rule{do: toChain}, c.matches...) {
		// A limit counts a packet once. A link is met once; an address is looked for where the packet
		// is met first: what has come through a bridge was counted there.
		switch {
		case r.match == outTap && c.family == bridge && c.hook == unix.NF_INET_LOCAL_OUT: // counted after this
			continue
		case r.base.kind == kindTap || r.base.kind == kindMAC:
		case c.family == inet && c.hook == unix.NF_INET_PRE_ROUTING:
			r.test = notFromBridge
		case c.family == bridge && c.hook == unix.NF_INET_PRE_ROUTING, c.family == inet && c.hook == unix.NF_INET_LOCAL_OUT:
		default:
			continue
		}
		rules = append(rules, r)
	}
	return rules
}

// links are the rules of a base chain that knows packets by their tap alone, and answers nobody.
func (c chain) links(s setList) []rule {
	return append(c.look(s, fsm.Drop, rule{do: drop}, c.matches...), c.look(s, fsm.Limit, rule{do: toChain}, c.matches...)...)
}

// taggedRules are for addresses in frames whose tags the kernel has not all taken off. Nobody is answered there.
func (c chain) taggedRules(s setList) []rule {
	rules := c.look(s, fsm.Drop, rule{do: drop}, c.matches...)
	rules = append(rules, c.look(s, fsm.Ports, rule{do: toChain}, c.matches...)...)
	rules = append(rules, c.look(s, fsm.Reject, rule{do: drop}, c.matches...)...)
	rules = append(rules, c.look(s, fsm.Redirect, rule{do: drop}, c.matches...)...)
	return append(rules, c.look(s, fsm.Limit, rule{do: toChain}, c.matches...)...)
}

// answers are the rules of what the node answers, called by a base chain: rejects, then redirects.
func (c chain) answers(s setList) []rule {
	first := c.hook == unix.NF_INET_PRE_ROUTING
	var rules []rule
	if c.family == bridge {
		rules = append(rules, rule{test: isARP, do: leave})
	}
	rules = append(rules, rule{test: isNeighbour, do: leave})
	if !first { // what the node answers to a target, or in its name, is itself from or to the target
		rules = append(rules, rule{test: isReset, do: leave}, rule{test: isProhibited4, do: leave}, rule{test: isProhibited6, do: leave})
	}
	refused := rule{do: drop}
	switch {
	case c.family == bridge && first:
		refused = rule{do: goTo, chain: "refuse"}
	case c.family == inet && c.hook != unix.NF_INET_POST_ROUTING:
		refused = rule{do: goTo, chain: "reject"}
	}
	if c.family == inet && first && s.has(fsm.Reject) {
		rules = append(rules, rule{test: isOwnReset, do: leave}, rule{test: isHandedUp, do: goTo, chain: "reject"})
	}
	rules = append(rules, c.look(s, fsm.Reject, refused, c.matches...)...)

	visits := rule{test: toHTTP, do: leave} // to where a node answers
	// What a node has answered in a guest's name is let through, but not what the guest says itself.
	answered := rule{test: fromHTTP, do: jump, chain: "page_reply"}
	pages := func(r rule, m match) { rules = append(rules, c.look(s, enforce.Page, r, m)...) }
	redirected := func(matches ...match) {
		rules = append(rules, c.look(s, fsm.Redirect, rule{do: drop}, matches...)...)
	}
	switch {
	case c.family == bridge && first:
		redirected(inTap, sourceMAC)
		pages(rule{test: toHTTP, do: goTo, chain: "page"}, dest)
		redirected(destMAC, dest)
		pages(answered, source)
		redirected(source)
	case c.family == inet && first:
		redirected(inTap)
		pages(answered, source)
		redirected(source)
		pages(visits, dest)
		redirected(dest)
	case c.family == inet && c.hook == unix.NF_INET_POST_ROUTING:
		redirected(outTap)
		// With br_netfilter, frames to the guest's own node pass by here too. What is routed to a guest is a
		// connection of before, which address translation has not touched.
		pages(rule{test: toHTTPIntoBridge, do: leave}, dest)
		redirected(dest)
		pages(rule{test: fromHTTP, do: leave}, source)
		redirected(source)
	case c.family == inet: // what this node itself asks for is redirected after this
		pages(visits, dest)
		redirected(dest)
	default:
		redirected(c.matches...)
	}
	return rules
}

// reject answers that what was asked for is prohibited.
func (chain) reject(setList) []rule {
	return []rule{{test: isTCP, do: reset}, {do: prohibit}}
}

// refuse has the node answer a frame that only passes by: it is marked, and handed up to the node's own
// stack, which rejects what has the mark.
func (chain) refuse(setList) []rule {
	return []rule{
		{test: isIPv4, do: markAndHandUp, chain: "hand_up"},
		{test: isIPv6, do: markAndHandUp, chain: "hand_up"},
		{do: drop},
	}
}

// page hands a visitor's request up if the guest is on this node. Otherwise it goes on: the guest's node
// answers.
func (c chain) page(s setList) []rule {
	return append(c.look(s, enforce.Here, rule{do: goTo, chain: "hand_up"}, destMAC), rule{do: accept})
}

// pageReply lets the answer of another node pass, but not that of a guest itself.
func (c chain) pageReply(s setList) []rule {
	own := sourceMAC
	if c.family == inet {
		own = inTap
	}
	return append(c.look(s, enforce.Here, rule{do: leave}, own), rule{do: accept})
}

// handUp addresses a frame to the bridge that it came in on.
func (c chain) handUp(s setList) []rule {
	return append(c.look(s, enforce.Bridge, rule{do: address}, inTap), rule{do: drop})
}

// pageNAT takes a visitor's packets in: what is routed, and what a bridge has handed up. With br_netfilter
// it sees frames that only pass by, too.
func (c chain) pageNAT(s setList) []rule {
	rules := c.look(s, enforce.Page, rule{test: toHTTPNotFromBridge, do: redirect}, dest)
	var bridges []fsm.MAC
	for _, n := range s {
		if n.terms.Kind == enforce.Bridge && !slices.Contains(bridges, n.terms.Bridge) {
			bridges = append(bridges, n.terms.Bridge)
			rules = append(rules, c.look(s, enforce.Page, rule{test: toHTTPAt, mac: n.terms.Bridge, do: redirect}, dest)...)
		}
	}
	return rules
}

// pageNATOwn is for the node itself as a visitor.
func (c chain) pageNATOwn(s setList) []rule {
	return c.look(s, enforce.Page, rule{test: toHTTP, do: redirect}, dest)
}

// sorted gives sets in the order of their rules: by class, kind, exact before masked.
func sorted(ids iter.Seq[setID]) []setID {
	return slices.SortedFunc(ids, func(a, b setID) int {
		return cmp.Or(cmp.Compare(b.family, a.family), // bridge first
			cmp.Compare(a.base.class, b.base.class), cmp.Compare(a.base.slot, b.base.slot),
			cmp.Compare(a.base.kind, b.base.kind), cmp.Compare(b.base.bits, a.base.bits))
	})
}

// setID names one of our sets across generations.
type setID struct {
	family family
	base   base
}

// liveSet is the generation of a set that the rules look into.
type liveSet struct {
	name       string
	generation int
	size       uint32 // most elements that fit
	count      int
}

// fit returns the smallest doubling of size that holds n elements.
func fit(size uint32, n int) uint32 {
	for uint64(size) < uint64(n) && size <= math.MaxUint32/2 {
		size *= 2
	}
	return size
}

// markerType is the nft type of the marker: the index as two numbers, high and low.
func markerType() uint32 {
	t := nftables.MustConcatSetType(nftables.TypeMark, nftables.TypeMark)
	return t.GetNFTMagic()
}
