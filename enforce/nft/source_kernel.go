package nft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
)

// basesOf returns the sets that the rules look into, in the order of the rules: the narrowest prefixes first.
func basesOf(counts map[base]int) []base {
	bases := sourceBases()
	for b := range counts {
		if !slices.Contains(bases, b) {
			bases = append(bases, b)
		}
	}
	slices.SortFunc(bases, func(a, b base) int { return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(b.bits, a.bits)) })
	return bases
}

// sourceWriter puts changes of the tables of sources into a batch.
type sourceWriter struct{ writer }

func (w *sourceWriter) deleteTable(f family) {
	w.add(unix.NFT_MSG_DELTABLE, 0, f, fmt.Sprintf("delete table %s %s", f, w.table), appendString(nil, unix.NFTA_TABLE_NAME, w.table))
}

// addSourceSet creates a set. It has no size, so that it grows by itself; that of what is dropped counts.
func (w *sourceWriter) addSourceSet(f family, name string, b base) {
	a := w.setHeader(name, sourceKeyType(b), sourceKeyLen(b), 0)
	if name == droppedSet {
		var nest, data int
		a, nest = openNest(a, attrSetExpr)
		a = appendString(a, unix.NFTA_EXPR_NAME, "counter")
		a, data = openNest(a, unix.NFTA_EXPR_DATA)
		a = closeNest(closeNest(a, data), nest)
	}
	w.add(unix.NFT_MSG_NEWSET, netlink.Create, f, fmt.Sprintf("add set %s %s %s", f, w.table, name), a)
}

// sourceElements adds or deletes elements of one table; a tap is in two sets.
func (w *sourceWriter) sourceElements(f family, list []enforce.SourceElement, add bool) {
	keys := make(map[string][][]byte) // by set
	for _, e := range list {
		b, key := sourceKey(e)
		if !sourceIn(f, b) {
			continue
		}
		keys[b.String()] = append(keys[b.String()], key)
		if b.kind == kindTap {
			keys[droppedSet] = append(keys[droppedSet], key)
		}
	}
	typ, flags, verb := uint16(unix.NFT_MSG_DELSETELEM), netlink.HeaderFlags(0), "delete elements of"
	if add {
		typ, flags, verb = unix.NFT_MSG_NEWSETELEM, netlink.Create, "add elements to"
	}
	for _, set := range slices.Sorted(maps.Keys(keys)) {
		for some := range slices.Chunk(keys[set], elementsPerMessage) {
			a, nest := openNest(appendElementList(nil, w.table, set), unix.NFTA_SET_ELEM_LIST_ELEMENTS)
			for _, key := range some {
				a = appendElement(a, key, element{})
			}
			w.add(typ, flags, f, fmt.Sprintf("%s set %s %s %s", verb, f, w.table, set), closeNest(a, nest))
		}
	}
}

// replaceSourceRules gives all chains of a table the rules that look into these sets.
func (w *sourceWriter) replaceSourceRules(f family, bases []base) error {
	for _, c := range sourceChains(f, bases) {
		if err := w.replaceRules(f, c.name, c.rules); err != nil {
			return err
		}
	}
	return nil
}

// sourceFindings are what a kernel was found to hold.
type sourceFindings struct {
	exists  bool // one of the tables does
	problem string
	held    map[enforce.SourceElement]struct{}
	index   uint64
}

// inspect reads all tables, again if somebody changed rules meanwhile.
func (k *Sources) inspect(ctx context.Context) (in sourceFindings, generation uint32, err error) {
	if err := k.connected(); err != nil {
		return in, 0, err
	}
	if k.families == nil {
		if k.families, err = k.wire.sourceFamilies(ctx, k.opts.Table); err != nil {
			return in, 0, err
		}
	}
	for range readAttempts {
		before, err := k.wire.generation(ctx)
		if err != nil {
			return in, 0, err
		}
		if in, err = k.readSources(ctx); err != nil {
			return in, 0, err
		}
		if generation, err = k.wire.generation(ctx); err != nil || generation == before {
			return in, generation, err
		}
	}
	return in, 0, nil // of no generation: it is looked at again
}

// sourceFamilies asks which families the kernel has, by transactions that it refuses in any case.
func (w *wire) sourceFamilies(ctx context.Context, table string) ([]family, error) {
	b := &writer{table: table}
	b.addTable(arp)
	b.addChain(chain{family: arp, name: "probe", sort: "filter", hook: sourceHookNumber})
	last := len(b.messages)
	b.deleteSet(arp, "none")
	err := w.commit(ctx, &b.batch)
	refused := (*refusedError)(nil)
	switch {
	case err == nil:
		return nil, errors.New("the kernel took a transaction that it had to refuse")
	case errors.As(err, &refused) && refused.message == last:
		return []family{bridge, inet, arp}, nil
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT):
		return []family{bridge, inet}, nil
	}
	return nil, err
}

func (k *Sources) readSources(ctx context.Context) (sourceFindings, error) {
	in := sourceFindings{held: make(map[enforce.SourceElement]struct{})}
	of := make(map[family]map[enforce.SourceElement]struct{})
	for _, f := range k.families {
		t, err := k.wire.readBareTable(ctx, f, k.opts.Table)
		if err != nil {
			return in, fmt.Errorf("read table %s %s: %w", f, k.opts.Table, err)
		}
		of[f] = make(map[enforce.SourceElement]struct{})
		if !t.exists {
			continue
		}
		in.exists = true
		if err := k.readSourceTable(ctx, f, t, &in, of[f]); err != nil {
			return in, err
		}
	}
	for _, f := range k.families {
		maps.Copy(in.held, of[f])
	}
	for _, f := range k.families {
		for e := range in.held {
			b, _ := sourceKey(e)
			if _, ok := of[f][e]; !ok && sourceIn(f, b) {
				in.say("%s of %s is missing in family %s", b, e.Tap, f)
			}
		}
	}
	return in, nil
}

func (in *sourceFindings) say(format string, args ...any) {
	in.problem = cmp.Or(in.problem, fmt.Sprintf(format, args...))
}

// readSourceTable reads the elements of a table, and compares the rest with what it should be.
func (k *Sources) readSourceTable(ctx context.Context, f family, t *tableState, in *sourceFindings, held map[enforce.SourceElement]struct{}) error {
	if t.flags != 0 {
		in.say("table %s has flags %#x", f, t.flags)
	}
	bases := map[base]int{}
	taps := map[bool]int{} // by whether they are those of the counters
	for name, s := range t.sets {
		b, ours := parseSourceName(name)
		counts := name == droppedSet
		switch {
		case name == markerSet:
			if err := k.readSourceMarker(ctx, in); err != nil {
				return err
			}
			continue
		case !ours && !counts, s.flags != 0, counts != s.counter, counts && s.keyLen != unix.IFNAMSIZ,
			ours && (s.keyLen != uint32(sourceKeyLen(b)) || s.keyType != sourceKeyType(b)):
			in.say("set %s %s is not ours", f, name)
			continue
		}
		bases[cmp.Or(b, base{kind: kindTap})]++
		request := appendElementList(nil, k.opts.Table, name)
		err := k.wire.dump(ctx, unix.NFT_MSG_GETSETELEM, f, request, func(message []byte) {
			eachKey(message, func(key []byte) {
				if b == (base{kind: kindTap}) || counts {
					taps[counts]++
				}
				if counts {
					return
				}
				e, ok := sourceElement(b, key)
				if !ok {
					in.say("set %s %s has an element that is not ours", f, name)
					return
				}
				held[e] = struct{}{}
			})
		})
		if err != nil {
			return fmt.Errorf("read set %s %s: %w", f, name, err)
		}
	}
	if taps[true] != taps[false] {
		in.say("family %s counts for %d interfaces of %d", f, taps[true], taps[false])
	}
	compareSourceChains(f, t, basesOf(bases), in)
	return nil
}

func compareSourceChains(f family, t *tableState, bases []base, in *sourceFindings) {
	chains := sourceChains(f, bases)
	for _, c := range chains {
		s := t.chains[c.name]
		if s == nil || (s.sort == "filter") != c.hooked || c.hooked && (s.hook != sourceHookNumber || s.prio != prioritySource || s.policy != policyAccept) {
			in.say("chain %s %s is missing or of another kind", f, c.name)
			continue
		}
		if !sameExprs(f, c.rules, s.rules) {
			in.say("chain %s %s has other rules", f, c.name)
		}
	}
	if len(t.chains) != len(chains) {
		in.say("table %s has chains that are not ours", f)
	}
	for _, b := range bases {
		if sourceIn(f, b) && t.sets[b.String()] == nil {
			in.say("set %s %s is missing", f, b)
		}
	}
}

func (k *Sources) readSourceMarker(ctx context.Context, in *sourceFindings) error {
	request := appendElementList(nil, k.opts.Table, markerSet)
	return k.wire.dump(ctx, unix.NFT_MSG_GETSETELEM, inet, request, func(b []byte) {
		eachElement(b, func(e element) { in.index = max(in.index, markerIndex(e.key)) })
	})
}

// eachKey walks the keys of the elements in the attributes of a message.
func eachKey(message []byte, each func(key []byte)) {
	list, _ := findAttr(message, unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	for {
		_, one, rest, ok := cutAttr(list)
		if !ok {
			return
		}
		key, _ := findAttr(one, unix.NFTA_SET_ELEM_KEY)
		data, _ := findAttr(key, unix.NFTA_DATA_VALUE)
		each(data)
		list = rest
	}
}
