package nft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/palisade/palisade/enforce"
)

// Apply brings the delta into the kernel and returns nil only after every element of it, and the
// index, have been asked for and are there or gone. It is idempotent. A delta of up to
// Options.ChunkElements is one transaction; a larger one comes in several, additions first, the index
// in the last.
//
// After an error it dials again, reads everything, and brings the kernel to all that it should hold,
// which also undoes what another program did to our tables. Only if that fails too it returns an
// error; then a part of the delta may be in force. The next Apply starts from there: the caller may
// repeat the delta, or go on, or call Adopt.
func (k *Kernel) Apply(ctx context.Context, d enforce.Delta) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.apply(ctx, d); err != nil {
		k.devices.behind = true
		return err
	}
	return k.follow(ctx, d)
}

func (k *Kernel) apply(ctx context.Context, d enforce.Delta) error {
	if !k.adopted {
		return ErrNotAdopted
	}
	if d.Index < k.index {
		return fmt.Errorf("apply index %d after %d: %w", d.Index, k.index, ErrBackwards)
	}
	for _, list := range [][]enforce.Element{d.Add, d.Remove} {
		for _, e := range list {
			if _, _, err := keyOf(e); err != nil {
				return err
			}
		}
	}
	var err error
	if k.want == nil {
		err = k.change(ctx, d.Index, d.Add, d.Remove)
		if err == nil {
			return nil
		}
		err = k.failed(err)
		k.want = maps.Clone(k.shadow)
		k.opts.Logger.WarnContext(ctx, "an nftables change failed, reading everything again", "index", d.Index, "error", err)
	}
	for _, e := range d.Add {
		k.want[e] = struct{}{}
	}
	for _, e := range d.Remove {
		delete(k.want, e)
	}
	intact, again := k.restore(ctx, d.Index)
	if again != nil {
		return fmt.Errorf("apply index %d: %w", d.Index, errors.Join(err, k.failed(again)))
	}
	k.want = nil
	if !intact {
		k.watch.met = []string{"a change met tables that were not as they had been left"}
	}
	return nil
}

// restore brings the kernel, whatever it holds, to want. intact says that the tables were as they had been left.
func (k *Kernel) restore(ctx context.Context, index uint64) (intact bool, err error) {
	intact, err = k.load(ctx)
	if err != nil {
		return false, err
	}
	if index < k.index {
		return false, ErrBackwards
	}
	var add, remove []enforce.Element
	for e := range k.want {
		if _, ok := k.shadow[e]; !ok {
			add = append(add, e)
		}
	}
	for e := range k.shadow {
		if _, ok := k.want[e]; !ok {
			remove = append(remove, e)
		}
	}
	return intact, k.change(ctx, index, add, remove)
}

// change is an element as the kernel holds it.
type change struct {
	element enforce.Element
	base    base
	key     key
	chain   string // of an element that has one
}

func (c change) place() place { return place{c.base, c.key} }

// locate says where the kernel holds an element. One with a chain, that it does not hold, is in the
// first slot.
func (k *Kernel) locate(e enforce.Element) (change, error) {
	b, key, err := keyOf(e)
	c := change{element: e, base: b, key: key}
	if err != nil || !b.chained() {
		return c, err
	}
	c.chain = string(e.Treatment)
	if _, held := k.shadow[e]; held {
		for k.jumps[c.place()] != e.Treatment {
			if c.base.slot == math.MaxUint16 {
				return c, fmt.Errorf("element %v is held, and in no slot", e)
			}
			c.base.slot++
		}
	}
	return c, nil
}

// locateAll locates what is to be added, in slots that are free, and what is to be removed. Chains are
// the first to be added, and the last to be removed.
func (k *Kernel) locateAll(add, remove []enforce.Element) (adding, removing []change, err error) {
	taken := make(map[place]bool)
	for _, e := range add {
		c, err := k.locate(e)
		if err != nil {
			return nil, nil, err
		}
		if _, held := k.shadow[e]; c.chain != "" && !held {
			for k.jumps[c.place()] != "" || taken[c.place()] {
				c.base.slot++
			}
			taken[c.place()] = true
		}
		adding = append(adding, c)
	}
	for _, e := range remove {
		c, err := k.locate(e)
		if err != nil {
			return nil, nil, err
		}
		if _, held := k.shadow[e]; c.chain == "" || held { // else another may be in its slot
			removing = append(removing, c)
		}
	}
	chainsLast := func(a, b change) int { return cmp.Compare(a.base.kind, b.base.kind) }
	slices.SortStableFunc(removing, chainsLast)
	slices.SortStableFunc(adding, func(a, b change) int { return chainsLast(b, a) })
	return adding, removing, nil
}

// change writes what is not so already, reads all of it back, and records it.
func (k *Kernel) change(ctx context.Context, index uint64, addElements, removeElements []enforce.Element) error {
	if _, err := k.connected(); err != nil {
		return err
	}
	add, remove, err := k.locateAll(addElements, removeElements)
	if err != nil {
		return err
	}
	adding, removing := k.lacking(add, remove)
	p := k.plan(adding, removing)
	if err := k.grow(ctx, p.grow); err != nil {
		return err
	}
	if err := k.write(ctx, p, index); err != nil {
		return err
	}
	if err := k.readBack(ctx, index, add, remove); err != nil {
		return err
	}
	k.record(p, index)
	return nil
}

// lacking leaves out what the kernel has already: it refuses a transaction that deletes what is not
// there.
func (k *Kernel) lacking(add, remove []change) (adding, removing []change) {
	for _, c := range add {
		if _, ok := k.shadow[c.element]; !ok {
			adding = append(adding, c)
		}
	}
	for _, c := range remove {
		if _, ok := k.shadow[c.element]; ok {
			removing = append(removing, c)
		}
	}
	return adding, removing
}

// plan is how a change is brought into the sets.
type plan struct {
	add, remove  []change
	grow         map[setID]int // elements to make room for, before
	create, drop []setID       // transient sets that get their first or lose their last element
}

func (k *Kernel) plan(add, remove []change) plan {
	p := plan{add: add, remove: remove, grow: make(map[setID]int)}
	more, fewer := make(map[base]int), make(map[base]int)
	for _, c := range add {
		if c.base.kind != kindChain {
			more[c.base]++
		}
	}
	for _, c := range remove {
		if c.base.kind != kindChain {
			fewer[c.base]++
		}
	}
	for b, n := range more {
		for _, f := range k.families {
			id := setID{f, b}
			switch s := k.sets[id]; {
			case !b.in(f):
			case s == nil:
				p.create = append(p.create, id)
			case uint64(s.count+n) > uint64(s.size):
				p.grow[id] = s.count + n
			}
		}
	}
	p.create = sorted(slices.Values(p.create))
	for b, n := range fewer {
		for _, f := range k.families {
			id := setID{f, b}
			if s := k.sets[id]; s != nil && b.transient() && s.count+more[b]-n <= 0 {
				p.drop = append(p.drop, id)
			}
		}
	}
	return p
}

// write commits the plan, in one transaction if it is small enough.
func (k *Kernel) write(ctx context.Context, p plan, index uint64) error {
	with := maps.Clone(k.sets) // while elements are added
	b := k.writer()
	for _, id := range p.create {
		n := 0
		for _, c := range p.add {
			if c.base == id.base {
				n++
			}
		}
		s := &liveSet{name: id.base.name(1), generation: 1, size: fit(k.newSize(id.base), n)}
		with[id] = s
		b.addSet(id, s.name, s.size)
	}
	after := maps.Clone(with)
	for _, id := range p.drop {
		delete(after, id)
	}

	before := k.sets
	if len(p.add)+len(p.remove) > k.opts.ChunkElements {
		if err := b.switchRules(before, with); err != nil {
			return err
		}
		before = with
	}
	var unused []enforce.Treatment
	room := k.opts.ChunkElements
	flush := func() error {
		err := k.wire.commit(ctx, &b.batch)
		b, room = k.writer(), k.opts.ChunkElements
		return err
	}
	for _, part := range []struct {
		list  []change
		chain func(*writer, enforce.Treatment) error
		put   func(*writer, setID, string, []element)
	}{
		{p.add, (*writer).addTreatment, func(b *writer, id setID, set string, list []element) {
			b.addElements(id.family, set, id.base.keyLen(), list)
		}},
		{p.remove, func(_ *writer, t enforce.Treatment) error {
			unused = append(unused, t)
			return nil
		}, func(b *writer, id setID, set string, list []element) {
			if after[id] != nil || id.base.chained() { // else they go with their set; a chain must be free first
				b.deleteElements(id.family, set, id.base.keyLen(), list)
			}
		}},
	} {
		for list := part.list; len(list) > 0; {
			if room == 0 {
				if err := flush(); err != nil {
					return err
				}
			}
			n := min(len(list), room)
			g := make(grouped)
			for _, c := range list[:n] {
				if c.base.kind != kindChain {
					g.put(k.families, c.base, element{key: c.key, chain: c.chain})
				} else if err := part.chain(b, c.element.Treatment); err != nil {
					return err
				}
			}
			for _, id := range sorted(maps.Keys(g)) {
				part.put(b, id, with[id].name, g[id])
			}
			list, room = list[n:], room-n
		}
	}
	if err := b.switchRules(before, after); err != nil {
		return err
	}
	for _, id := range p.drop {
		b.deleteSet(id.family, k.sets[id].name)
	}
	for _, t := range unused {
		terms, _ := t.Terms()
		for _, f := range k.families.with(terms.Kind) {
			b.deleteChain(f, string(t))
		}
	}
	if index != k.index {
		b.setMarker(index)
	}
	if err := flush(); err != nil {
		return err
	}
	k.sets = after
	return nil
}

// grouped collects elements by the set that they are for.
type grouped map[setID][]element

// put adds one element to all its sets.
func (g grouped) put(families tables, b base, e element) {
	for _, f := range families {
		if b.in(f) {
			id := setID{f, b}
			g[id] = append(g[id], e)
		}
	}
}

// readBack asks the kernel for every element of a change, and for the index.
func (k *Kernel) readBack(ctx context.Context, index uint64, add, remove []change) error {
	var queries []query
	queries = k.queries(queries, add)
	added := len(queries)
	queries = k.queries(queries, remove)
	removed := len(queries)
	if index != 0 {
		marker := markerKey(index)
		queries = append(queries, query{k.families.home(), markerSet, marker[:8]})
	}
	answers, err := k.wire.get(ctx, k.opts.Table, queries)
	if err != nil {
		return err
	}
	for i, chain := range k.jumpsOf(add) {
		if chain != "" && answers[i].found && answers[i].chain != chain {
			return fmt.Errorf("read back: element %x of set %s jumps to %q, want %q", queries[i].key, queries[i].set, answers[i].chain, chain)
		}
	}
	if err := k.readBackChains(ctx, add, true); err != nil {
		return err
	}
	if err := k.readBackChains(ctx, remove, false); err != nil {
		return err
	}
	for i, a := range answers {
		if want := i < added || i >= removed; a.found != want {
			q := queries[i]
			return fmt.Errorf("read back: element %x of set %s %s: there %t, want %t", q.key, q.family, q.set, a.found, want)
		}
	}
	return nil
}

// readBackChains asks for the rules of the chains among changes.
func (k *Kernel) readBackChains(ctx context.Context, list []change, want bool) error {
	for _, c := range list {
		if c.base.kind != kindChain {
			continue
		}
		terms, _ := c.element.Treatment.Terms()
		for _, f := range k.families.with(terms.Kind) {
			s, err := k.wire.readChain(ctx, f, k.opts.Table, c.base.class)
			if err != nil {
				return err
			}
			if want && !sameTreatment(f, c.element.Treatment, s.rules) || !want && len(s.rules) > 0 {
				return fmt.Errorf("read back: chain %s %s has %d rules that are not as they should be", f, c.base.class, len(s.rules))
			}
		}
	}
	return nil
}

// jumpsOf returns the chain that each of the queries for changes must find.
func (k *Kernel) jumpsOf(changes []change) []string {
	var list []string
	for _, c := range changes {
		for _, f := range k.families {
			if c.base.kind != kindChain && c.base.in(f) {
				list = append(list, c.chain)
			}
		}
	}
	return list
}

// queries appends one query for each set that holds, or would hold, each element.
func (k *Kernel) queries(list []query, changes []change) []query {
	for i := range changes {
		c := &changes[i]
		for _, f := range k.families {
			if c.base.kind == kindChain || !c.base.in(f) {
				continue
			}
			name := c.base.name(1)
			if s := k.sets[setID{f, c.base}]; s != nil {
				name = s.name
			}
			list = append(list, query{f, name, c.key[:c.base.keyLen()]})
		}
	}
	return list
}

func (k *Kernel) record(p plan, index uint64) {
	count := func(c change, by int) {
		for _, f := range k.families {
			if s := k.sets[setID{f, c.base}]; s != nil && c.base.in(f) {
				s.count += by
			}
		}
	}
	for _, c := range p.add {
		if _, ok := k.shadow[c.element]; !ok {
			k.shadow[c.element] = struct{}{}
			if c.chain != "" {
				k.jumps[c.place()] = c.element.Treatment
			}
			count(c, 1)
		}
	}
	for _, c := range p.remove {
		if _, ok := k.shadow[c.element]; ok {
			delete(k.shadow, c.element)
			if c.chain != "" {
				delete(k.jumps, c.place())
			}
			count(c, -1)
		}
	}
	k.index = index
}

// Counters returns what of each element's packets was discarded on this node since it was added, the sum
// over all tables. What XDP dropped is not counted. It asks for these elements only. Elements that the kernel does not hold are left
// out. What a chain discards is counted there, not for each element that is sent to it.
func (k *Kernel) Counters(ctx context.Context, elements []enforce.Element) (map[enforce.Element]enforce.Counter, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.adopted {
		return nil, ErrNotAdopted
	}
	var asked []change // of which the set counts
	counters := make(map[enforce.Element]enforce.Counter, len(elements))
	var chains []enforce.Element
	for _, e := range elements {
		c, err := k.locate(e)
		if err != nil {
			return nil, err
		}
		t, _ := e.Treatment.Terms()
		_, held := k.shadow[e]
		switch {
		case c.base.kind == kindChain && held:
			chains = append(chains, e)
		case c.base.kind == kindChain:
		case c.chain == "" && t.Kind != enforce.Page:
			asked = append(asked, c)
		case held:
			counters[e] = enforce.Counter{}
		}
	}
	err := k.twice(ctx, func() error {
		if _, err := k.connected(); err != nil {
			return err
		}
		if err := k.countSets(ctx, asked, counters); err != nil {
			return err
		}
		return k.countChains(ctx, chains, counters)
	})
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	if dev := k.devices.kernel; dev != nil && dev.adopted {
		more, err := dev.Counters(ctx, elements)
		if err != nil {
			return nil, err
		}
		for e, c := range more {
			sum := counters[e]
			counters[e] = enforce.Counter{Packets: sum.Packets + c.Packets, Bytes: sum.Bytes + c.Bytes}
		}
	}
	return counters, nil
}

func (k *Kernel) countSets(ctx context.Context, asked []change, counters map[enforce.Element]enforce.Counter) error {
	answers, err := k.wire.get(ctx, k.opts.Table, k.queries(nil, asked))
	if err != nil {
		return err
	}
	for _, c := range asked {
		var sum enforce.Counter
		found := false
		for _, f := range k.families {
			if !c.base.in(f) {
				continue
			}
			a := answers[0]
			answers = answers[1:]
			sum.Packets += a.counter[0]
			sum.Bytes += a.counter[1]
			found = found || a.found
		}
		if found {
			counters[c.element] = sum
		}
	}
	return nil
}

func (k *Kernel) countChains(ctx context.Context, chains []enforce.Element, counters map[enforce.Element]enforce.Counter) error {
	for _, e := range chains {
		var sum enforce.Counter
		terms, _ := e.Treatment.Terms()
		for _, f := range k.families.with(terms.Kind) {
			s, err := k.wire.readChain(ctx, f, k.opts.Table, string(e.Treatment))
			if err != nil {
				return err
			}
			sum.Packets += s.counter[0]
			sum.Bytes += s.counter[1]
		}
		counters[e] = sum
	}
	return nil
}
