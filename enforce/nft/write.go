package nft

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
)

// writer puts changes of our tables into a batch.
type writer struct {
	batch
	table    string
	families tables
	names    int // of sets created in this batch
}

func (b *writer) addTable(f family) {
	// With the flags given, a table that another program made dormant wakes up.
	a := appendUint32(appendString(nil, unix.NFTA_TABLE_NAME, b.table), unix.NFTA_TABLE_FLAGS, 0)
	b.add(unix.NFT_MSG_NEWTABLE, netlink.Create, f, fmt.Sprintf("add table %s %s", f, b.table), a)
}

func (b *writer) addChain(c chain) {
	a := appendString(nil, unix.NFTA_CHAIN_TABLE, b.table)
	a = appendString(a, unix.NFTA_CHAIN_NAME, c.name)
	if c.sort != "" {
		var hook int
		a, hook = openNest(a, unix.NFTA_CHAIN_HOOK)
		a = appendUint32(a, unix.NFTA_HOOK_HOOKNUM, c.hook)
		a = appendUint32(a, unix.NFTA_HOOK_PRIORITY, uint32(c.priority))
		if c.device != "" {
			a = appendString(a, unix.NFTA_HOOK_DEV, c.device)
		}
		a = closeNest(a, hook)
		a = appendUint32(a, unix.NFTA_CHAIN_POLICY, policyAccept)
		a = appendString(a, unix.NFTA_CHAIN_TYPE, c.sort)
	}
	b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, c.family, fmt.Sprintf("add chain %s %s %s", c.family, b.table, c.name), a)
}

func (b *writer) deleteChain(f family, name string) {
	a := appendString(nil, unix.NFTA_CHAIN_TABLE, b.table)
	a = appendString(a, unix.NFTA_CHAIN_NAME, name)
	b.add(unix.NFT_MSG_DELCHAIN, 0, f, fmt.Sprintf("delete chain %s %s %s", f, b.table, name), a)
}

// flushChain deletes all rules of a chain.
func (b *writer) flushChain(f family, name string) {
	b.add(unix.NFT_MSG_DELRULE, 0, f, fmt.Sprintf("flush chain %s %s %s", f, b.table, name), b.ruleHeader(name))
}

// replaceRules gives the chain these rules instead of all that it has. Packets see the old rules or
// the new ones.
func (b *writer) replaceRules(f family, name string, rules [][]expr.Any) error {
	b.flushChain(f, name)
	for _, r := range rules {
		if err := b.addRule(f, name, r); err != nil {
			return err
		}
	}
	return nil
}

// addRule appends a rule to a chain.
func (b *writer) addRule(f family, chain string, rule []expr.Any) error {
	list, err := marshalRule(f, rule)
	if err != nil {
		return err
	}
	a := appendAttr(b.ruleHeader(chain), unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, list)
	b.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, f, fmt.Sprintf("add a rule to %s %s %s", f, b.table, chain), a)
	return nil
}

func (b *writer) ruleHeader(chain string) []byte {
	return appendString(appendString(nil, unix.NFTA_RULE_TABLE, b.table), unix.NFTA_RULE_CHAIN, chain)
}

// addTreatment creates the chain of a treatment in all tables that have one.
func (b *writer) addTreatment(t enforce.Treatment) error {
	terms, _ := t.Terms()
	for _, f := range b.families.with(terms.Kind) {
		b.addChain(chain{family: f, name: string(t)})
		if err := b.setTreatment(f, t); err != nil {
			return err
		}
	}
	return nil
}

func (b *writer) setTreatment(f family, t enforce.Treatment) error {
	terms, _ := t.Terms()
	return b.replaceRules(f, string(t), treatmentRules(f, terms))
}

// chainFix is what must be done to one chain.
type chainFix struct {
	chain chain
	// discard: it has another hook, and is created again. remove: it is not needed any more.
	discard, create, remove bool
}

// fixChains does what must be done to chains, in an order in which none is missing where it is called.
func (b *writer) fixChains(fixes []chainFix, sets map[setID]*liveSet) error {
	list := listSets(sets)
	for _, fix := range fixes {
		if fix.discard {
			b.deleteChain(fix.chain.family, fix.chain.name)
		}
		if fix.create {
			b.addChain(fix.chain)
		}
	}
	for _, fix := range fixes {
		if fix.remove {
			continue
		}
		var rules [][]expr.Any
		for _, r := range fix.chain.rules(list) {
			rules = append(rules, r.exprs(fix.chain.family))
		}
		if err := b.replaceRules(fix.chain.family, fix.chain.name, rules); err != nil {
			return err
		}
	}
	for _, fix := range fixes {
		if fix.remove {
			b.flushChain(fix.chain.family, fix.chain.name)
		}
	}
	for _, fix := range fixes {
		if fix.remove {
			b.deleteChain(fix.chain.family, fix.chain.name)
		}
	}
	return nil
}

func (b *writer) addSet(id setID, name string, size uint32) {
	a := b.setHeader(name, id.base.keyType(), id.base.keyLen(), id.base.flags())
	if id.base.chained() {
		a = appendUint32(a, unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT)
	}
	if id.base.kind == kindTap {
		// nft lists names backwards unless it is told that they are in the order of the host (1).
		a = appendAttr(a, unix.NFTA_SET_USERDATA, binary.NativeEndian.AppendUint32([]byte{attrSetByteOrder, 4}, 1))
	}
	a, desc := openNest(a, unix.NFTA_SET_DESC)
	a = closeNest(appendUint32(a, unix.NFTA_SET_DESC_SIZE, size), desc)
	a, counter := openNest(a, attrSetExpr)
	a = appendString(a, unix.NFTA_EXPR_NAME, "counter")
	a, data := openNest(a, unix.NFTA_EXPR_DATA)
	a = closeNest(closeNest(a, data), counter)
	b.add(unix.NFT_MSG_NEWSET, netlink.Create, id.family, fmt.Sprintf("add set %s %s %s of size %d", id.family, b.table, name, size), a)
}

func (b *writer) addMarkerSet() {
	a := b.setHeader(markerSet, markerType(), 8, 0)
	b.add(unix.NFT_MSG_NEWSET, netlink.Create, b.families.home(), fmt.Sprintf("add set %s %s %s", b.families.home(), b.table, markerSet), a)
}

func (b *writer) setHeader(name string, keyType uint32, keyLen int, flags uint32) []byte {
	b.names++
	a := appendString(nil, unix.NFTA_SET_TABLE, b.table)
	a = appendString(a, unix.NFTA_SET_NAME, name)
	a = appendUint32(a, unix.NFTA_SET_FLAGS, flags)
	a = appendUint32(a, unix.NFTA_SET_KEY_TYPE, keyType)
	a = appendUint32(a, unix.NFTA_SET_KEY_LEN, uint32(keyLen))
	return appendUint32(a, unix.NFTA_SET_ID, uint32(b.names)) // required, and unique in the batch
}

func (b *writer) deleteSet(f family, name string) {
	a := appendString(nil, unix.NFTA_SET_TABLE, b.table)
	a = appendString(a, unix.NFTA_SET_NAME, name)
	b.add(unix.NFT_MSG_DELSET, 0, f, fmt.Sprintf("delete set %s %s %s", f, b.table, name), a)
}

// addElements adds elements; those that are there already stay as they are.
func (b *writer) addElements(f family, set string, keyLen int, list []element) {
	b.elements(unix.NFT_MSG_NEWSETELEM, netlink.Create, "add elements to", f, set, keyLen, list)
}

// deleteElements deletes elements; one that is not there fails the batch.
func (b *writer) deleteElements(f family, set string, keyLen int, list []element) {
	b.elements(unix.NFT_MSG_DELSETELEM, 0, "delete elements of", f, set, keyLen, list)
}

func (b *writer) elements(typ uint16, flags netlink.HeaderFlags, verb string, f family, set string, keyLen int, list []element) {
	for len(list) > 0 {
		n := min(len(list), elementsPerMessage)
		a := appendElementList(nil, b.table, set)
		a, nest := openNest(a, unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		for i := range list[:n] {
			a = appendElement(a, list[i].key[:keyLen], list[i])
		}
		b.add(typ, flags, f, fmt.Sprintf("%s set %s %s %s", verb, f, b.table, set), closeNest(a, nest))
		list = list[n:]
	}
}

// setMarker makes index the only element of the marker set.
func (b *writer) setMarker(index uint64) {
	flush := appendElementList(nil, b.table, markerSet)
	b.add(unix.NFT_MSG_DELSETELEM, 0, b.families.home(), "flush the index marker", flush)
	e := element{key: markerKey(index), comment: fmt.Sprintf("log index %d", index)}
	b.addElements(b.families.home(), markerSet, 8, []element{e})
}

// markerKey is the index as the marker holds it: high half, low half, each as a mark.
func markerKey(index uint64) (k key) {
	binary.NativeEndian.PutUint32(k[0:], uint32(index>>32))
	binary.NativeEndian.PutUint32(k[4:], uint32(index))
	return k
}

func markerIndex(k key) uint64 {
	return uint64(binary.NativeEndian.Uint32(k[0:]))<<32 | uint64(binary.NativeEndian.Uint32(k[4:]))
}
