package nft

import (
	"context"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
)

// markerSetID is the number that the marker's set has in a batch; those of others follow.
const markerSetID = 1

// listWriter brings changes of the tables of lists to the kernel, in transactions of a bounded number of
// elements, so that whoever has something urgent waits for one of them at most.
type listWriter struct {
	k   *Lists
	ctx context.Context
	writer
	room    int    // elements that still fit
	sent    uint32 // sets created: each has a number in its batch
	add     map[listBase][]key
	remove  map[listBase][]key
	sets    map[listBase]*liveSet
	queries []query // of what was sent: the first and the last of each message
	present []bool  // and whether it must be there
	err     error   // the first
}

func (k *Lists) begin(ctx context.Context, sets map[listBase]*liveSet) *listWriter {
	return &listWriter{
		k: k, ctx: ctx, writer: writer{families: k.families, table: k.opts.Table}, room: k.opts.ChunkElements, sets: sets,
		sent: markerSetID, add: make(map[listBase][]key), remove: make(map[listBase][]key),
	}
}

func (w *listWriter) put(into map[listBase][]key, b listBase, k key) {
	into[b] = append(into[b], k)
	w.spend(1)
}

// flush commits what was gathered, and looks at samples of it.
func (w *listWriter) flush() {
	w.elements(w.add, unix.NFT_MSG_NEWSETELEM, netlink.Create, "add elements to", true)
	w.elements(w.remove, unix.NFT_MSG_DELSETELEM, 0, "delete elements of", false)
	if w.err == nil {
		w.err = w.k.wire.commit(w.ctx, &w.batch)
	}
	if w.err == nil {
		w.err = w.sample()
	}
	w.writer = writer{families: w.families, table: w.table}
	w.sent = markerSetID
	w.room, w.queries, w.present = w.k.opts.ChunkElements, w.queries[:0], w.present[:0]
}

// elements puts the keys into the batch, in all tables: the attributes are the same.
func (w *listWriter) elements(of map[listBase][]key, typ uint16, flags netlink.HeaderFlags, verb string, present bool) {
	for b, all := range of {
		set, n := w.sets[b].name, b.base.keyLen()
		for list := range slices.Chunk(all, elementsPerMessage) {
			a := appendElementList(make([]byte, 0, 64+len(list)*(n+16)), w.table, set)
			a, nest := openNest(a, unix.NFTA_SET_ELEM_LIST_ELEMENTS)
			for i := range list {
				a = appendElement(a, list[i][:n], element{})
			}
			a = closeNest(a, nest)
			for _, f := range w.families {
				w.batch.add(typ, flags, f, fmt.Sprintf("%s set %s %s %s", verb, f, w.table, set), a)
				first, last := list[0], list[len(list)-1]
				w.queries = append(w.queries, query{f, set, first[:n]}, query{f, set, last[:n]})
				w.present = append(w.present, present, present)
			}
		}
	}
	clear(of)
}

func (w *listWriter) sample() error {
	answers, err := w.k.wire.get(w.ctx, w.table, w.queries)
	if err != nil {
		return err
	}
	for i, a := range answers {
		if q := w.queries[i]; a.found != w.present[i] {
			return fmt.Errorf("read back: element %x of set %s %s: there %t, want %t", q.key, q.family, q.set, a.found, w.present[i])
		}
	}
	return nil
}

// cost is what it takes the kernel to create a set, in elements added: it allocates and clears the buckets, which takes
// 10 ms for 150,000 elements where the memory was not used before.
func (s *liveSet) cost() int { return int(s.size / 40) }

// addListSet creates a set in all tables, without counters: they would be half of its memory. A large one fills a
// transaction, so that who has something urgent waits for one of them at most.
func (w *listWriter) addListSet(b listBase, s *liveSet) {
	for _, f := range w.families {
		w.sent++
		a := appendString(nil, unix.NFTA_SET_TABLE, w.table)
		a = appendString(a, unix.NFTA_SET_NAME, s.name)
		a = appendUint32(a, unix.NFTA_SET_FLAGS, 0)
		a = appendUint32(a, unix.NFTA_SET_KEY_TYPE, b.base.keyType())
		a = appendUint32(a, unix.NFTA_SET_KEY_LEN, uint32(b.base.keyLen()))
		a = appendUint32(a, unix.NFTA_SET_ID, w.sent)
		a, desc := openNest(a, unix.NFTA_SET_DESC)
		a = closeNest(appendUint32(a, unix.NFTA_SET_DESC_SIZE, s.size), desc)
		w.batch.add(unix.NFT_MSG_NEWSET, netlink.Create, f, fmt.Sprintf("add set %s %s %s of size %d", f, w.table, s.name, s.size), a)
		w.spend(s.cost())
	}
}

// spend takes room in the transaction, and begins another if there is none left.
func (w *listWriter) spend(elements int) {
	if w.room -= elements; w.room <= 0 {
		w.flush()
	}
}

func (w *listWriter) addListChain(c listChain) {
	a := appendString(nil, unix.NFTA_CHAIN_TABLE, w.table)
	a = appendString(a, unix.NFTA_CHAIN_NAME, c.name)
	if c.hooked() {
		var hook int
		a, hook = openNest(a, unix.NFTA_CHAIN_HOOK)
		a = appendUint32(a, unix.NFTA_HOOK_HOOKNUM, c.hook)
		a = appendUint32(a, unix.NFTA_HOOK_PRIORITY, uint32(c.priority))
		a = closeNest(a, hook)
		a = appendUint32(a, unix.NFTA_CHAIN_POLICY, policyAccept)
		a = appendString(a, unix.NFTA_CHAIN_TYPE, "filter")
	}
	w.batch.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, c.family, fmt.Sprintf("add chain %s %s %s", c.family, w.table, c.name), a)
}

// flushRules removes the rules of all tables, in the transaction that brings them back, so that what they refer to can
// be created anew.
func (w *listWriter) flushRules() {
	for _, f := range w.families {
		w.batch.add(unix.NFT_MSG_DELRULE, 0, f, fmt.Sprintf("flush table %s %s", f, w.table), appendString(nil, unix.NFTA_RULE_TABLE, w.table))
	}
}

func (w *listWriter) dropListChain(c listChain) {
	a := appendString(nil, unix.NFTA_CHAIN_TABLE, w.table)
	a = appendString(a, unix.NFTA_CHAIN_NAME, c.name)
	w.batch.add(unix.NFT_MSG_DELCHAIN, 0, c.family, fmt.Sprintf("delete chain %s %s %s", c.family, w.table, c.name), a)
}

// replaceListRules makes the rules of all chains look into these sets.
func (w *listWriter) replaceListRules(sets []listSet) error {
	for _, c := range listChains(w.families) {
		rules, err := c.rules(sets)
		if err != nil {
			return err
		}
		in := appendString(nil, unix.NFTA_RULE_TABLE, w.table)
		in = appendString(in, unix.NFTA_RULE_CHAIN, c.name)
		w.batch.add(unix.NFT_MSG_DELRULE, 0, c.family, fmt.Sprintf("flush chain %s %s %s", c.family, w.table, c.name), in)
		for _, r := range rules {
			a := appendAttr(in[:len(in):len(in)], unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, r)
			w.batch.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, c.family, fmt.Sprintf("add a rule to %s %s %s", c.family, w.table, c.name), a)
		}
	}
	return nil
}

func (w *listWriter) setListMarker(m listMarker) {
	flush := appendElementList(nil, w.table, markerSet)
	w.batch.add(unix.NFT_MSG_DELSETELEM, 0, w.families.home(), "flush the marker", flush)
	w.addElements(w.families.home(), markerSet, 8, []element{{key: markerKey(m.index), comment: m.comment()}})
}

// counts returns how many elements each set has for a content.
func counts(l *enforce.Lists) map[listBase]int {
	n := make(map[listBase]int)
	for e := range enforce.ListChanges(&enforce.Lists{}, l) {
		b, _ := keyOfList(e)
		n[b]++
	}
	return n
}
