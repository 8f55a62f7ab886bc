package nft

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
)

// listSpots is how many elements are asked for, to see whether what a marker says is so. If a part of the
// content is missing, each finds it with the probability of that part: 1% with 98%.
const listSpots = 400

// listFindings are what the kernel was found to hold of lists, without the elements.
type listFindings struct {
	exists bool // any of it
	// sound says that tables, chains and sets are there, of the right kinds, and the marker is.
	sound   bool
	discard []listChain // of another kind: created again
	used    []listSet   // rules look into them, in the order of their rules
	sizes   map[string]uint32
	junk    []setName // ours by name, but no rule looks into them, or of another type
	newest  map[listBase]int
	marker  listMarker
	// badMarker says that the marker's set is of another type.
	badMarker bool
	badHits   []setName // likewise those of hits
	ruled     bool      // the rules are those of the sets in use
}

// readLists looks at the tables of lists.
func (w *wire) readLists(ctx context.Context, families tables, table string) (listFindings, error) {
	in := listFindings{sound: true, ruled: true, sizes: make(map[string]uint32), newest: make(map[listBase]int)}
	r := make(ruleset)
	for _, f := range families {
		t, err := w.readBareTable(ctx, f, table)
		if err != nil {
			return in, fmt.Errorf("read table %s %s: %w", f, table, err)
		}
		r[f] = t
		in.exists = in.exists || t.exists
		in.sound = in.sound && t.exists && t.flags == 0
	}
	if !in.exists {
		return in, nil
	}
	for _, c := range listChains(families) {
		switch s := r[c.family].chains[c.name]; {
		case s == nil:
			in.sound = false
		case s.hook != c.hook || s.prio != c.priority || (s.sort != "") != c.hooked() || c.hooked() && s.policy != policyAccept:
			in.sound = false
			in.discard = append(in.discard, c)
		}
	}
	for _, c := range listChains(families) {
		if !c.hasHits() {
			continue
		}
		name := hitSet(c.look, c.kind)
		if s := r[c.family].sets[name]; s == nil || !c.isHitSet(s) {
			in.sound = false
			if s != nil {
				in.badHits = append(in.badHits, setName{c.family, name})
			}
		}
	}
	in.findSets(families, r)
	switch s := r[families.home()].sets[markerSet]; {
	case s == nil:
		in.sound = false
	case s.keyType != markerType() || s.flags != 0:
		in.sound, in.badMarker = false, true
	default:
		if err := w.readListMarker(ctx, families.home(), table, &in); err != nil {
			return in, err
		}
	}
	for _, c := range listChains(families) {
		want, err := c.rules(in.used)
		if err != nil {
			return in, err
		}
		s := r[c.family].chains[c.name]
		in.ruled = in.ruled && s != nil && slices.EqualFunc(want, s.rules, bytes.Equal)
	}
	return in, nil
}

// findSets sorts the sets out: those that rules of all tables can look into, and the rest.
func (in *listFindings) findSets(families tables, r ruleset) {
	used := make(map[setName]bool)
	for _, c := range listChains(families) {
		if s := r[c.family].chains[c.name]; s != nil {
			for _, rule := range s.rules {
				for name := range lookupSets(rule) {
					used[setName{c.family, name}] = true
				}
			}
		}
	}
	names := make(map[string]bool)
	for _, f := range families {
		for name := range r[f].sets {
			names[name] = true
		}
	}
	for name := range names {
		b, generation, ours := parseListName(name)
		if !ours {
			continue
		}
		in.newest[b] = max(in.newest[b], generation)
		var sets []*setState
		looked := false
		for _, f := range families {
			s := r[f].sets[name]
			looked = looked || used[setName{f, name}]
			if s != nil && s.flags == 0 && s.keyType == b.base.keyType() && s.keyLen == uint32(b.base.keyLen()) {
				sets = append(sets, s)
			}
		}
		if len(sets) == len(families) && looked {
			in.used = append(in.used, listSet{b, name})
			in.sizes[name] = slices.MinFunc(sets, func(a, b *setState) int { return cmp.Compare(a.size, b.size) }).size
			continue
		}
		for _, f := range families {
			if r[f].sets[name] != nil {
				in.sound = false
				in.junk = append(in.junk, setName{f, name})
			}
		}
	}
	sortSets(in.used)
}

func (w *wire) readListMarker(ctx context.Context, home family, table string, in *listFindings) error {
	request := appendElementList(nil, table, markerSet)
	return w.dump(ctx, unix.NFT_MSG_GETSETELEM, home, request, func(message []byte) {
		for typ, list := range attrs(message) {
			if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, one := range attrs(list) {
				if m := parseListMarker(parseElement(one).key, elementComment(one)); m.index >= in.marker.index {
					in.marker = m
				}
			}
		}
	})
}

func elementComment(b []byte) string {
	for typ, v := range attrs(b) {
		if typ == unix.NFTA_SET_ELEM_USERDATA && len(v) > 2 && v[0] == attrElemComment {
			return attrText(v[2:])
		}
	}
	return ""
}

// spots asks the kernel for some elements of a content and says whether all are there.
func (k *Lists) spots(ctx context.Context, l *enforce.Lists, sets map[listBase]*liveSet, n int) (bool, error) {
	var queries []query
	for e := range l.Some(n, rand.Uint64()) {
		b, key := keyOfList(e)
		s := sets[b]
		if s == nil {
			return false, nil
		}
		for _, f := range k.families {
			queries = append(queries, query{f, s.name, key[:b.base.keyLen()]})
		}
	}
	answers, err := k.wire.get(ctx, k.opts.Table, queries)
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(answers, func(a answer) bool { return !a.found }), nil
}

// errTampered says that the tables of lists are not as they were left.
var errTampered = errors.New("another program changed the tables of lists")
