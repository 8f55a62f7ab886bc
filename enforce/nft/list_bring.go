package nft

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/palisade/palisade/enforce"
)

// ListChange is what Lists.Bring does.
type ListChange struct {
	Lists *enforce.Lists
	// Index is the log index that the kernel stands for afterwards.
	Index uint64
	// Remove allows that something is no longer dropped. Without it the kernel only gets more.
	Remove bool
}

// Bring brings the kernel to a content and returns nil only when all of it is in force: every transaction
// was acknowledged, and samples of each were asked for.
//
// A set of which more than half changes, or that is full, is loaded anew beside the old one, and the
// rules of all such sets switch in one transaction. In other sets additions come first and removals last. So
// what is in both contents is dropped at every moment.
//
// After an error the next call reads the kernel again. What it finds stays in force until all of the new
// content is.
//
// If there are devices, they have the content after that too, and their chains; what the kernel refuses of that is
// no error, but in Unenforced.
func (k *Lists) Bring(ctx context.Context, c ListChange) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.known(ctx, c.Lists)
	if err == nil && c.Index < k.marker.index {
		return fmt.Errorf("bring index %d after %d: %w", c.Index, k.marker.index, ErrBackwards)
	}
	if err == nil {
		err = k.bring(ctx, c)
	}
	if err != nil {
		return fmt.Errorf("bring lists of index %d: %w", c.Index, k.failed(err))
	}
	return k.bringDevices(ctx, c)
}

// listDelta is what changes of one set.
type listDelta struct {
	adds, removes int
	add, remove   []key
	anew          bool // loaded as a new generation; add and remove are not kept
}

// deltas finds what is to be done with each set.
func (k *Lists) deltas(c ListChange) map[listBase]*listDelta {
	deltas := make(map[listBase]*listDelta)
	of := func(b listBase) *listDelta {
		if deltas[b] == nil {
			deltas[b] = &listDelta{}
		}
		return deltas[b]
	}
	if k.have == c.Lists && len(k.stale) == 0 {
		return deltas
	}
	for e, added := range enforce.ListChanges(k.have, c.Lists) {
		b, key := keyOfList(e)
		d := of(b)
		if added {
			d.adds++
			d.add = append(d.add, key)
		} else {
			d.removes++
			d.remove = append(d.remove, key)
		}
		if k.anew(b, d) {
			d.anew, d.add, d.remove = true, nil, nil
		}
	}
	if c.Remove && len(k.stale) > 0 {
		n := counts(c.Lists)
		for b := range k.stale {
			// Of these nothing is known but what they are to hold.
			d := of(b)
			*d = listDelta{anew: true, adds: n[b]}
			if s := k.live[b]; s != nil {
				d.removes = s.count
			}
		}
	}
	return deltas
}

// anew says whether it is better to load a set anew than to change it.
func (k *Lists) anew(b listBase, d *listDelta) bool {
	const small = 4000
	if d.anew {
		return true
	}
	s := k.live[b]
	if s == nil {
		return d.adds > small
	}
	return s.count+d.adds > int(s.size) || d.adds+d.removes > small && d.adds+d.removes > s.count/2
}

func (k *Lists) bring(ctx context.Context, c ListChange) error {
	deltas := k.deltas(c)
	p := k.planLists(deltas, c)
	if !k.exists && len(p.after) == 0 {
		// There is nothing, and nothing is to be.
		k.have, k.live = c.Lists, p.after
		return nil
	}
	if !k.ready {
		if err := k.prepare(ctx); err != nil {
			return err
		}
	}
	w := k.begin(ctx, p.after)
	if p.several {
		// Until the last transaction, the tables are not what any marker says.
		w.setListMarker(listMarker{index: k.marker.index})
	}
	for _, b := range p.create {
		w.addListSet(b, p.after[b])
	}
	k.load(w, deltas, c.Lists)
	if w.err != nil {
		return w.err
	}
	rules := inForce(p.after, k.legacy)
	if c.Remove {
		rules = inForce(p.after, nil)
	}
	return k.settle(w, c, deltas, p, rules)
}

// settle makes the rules look into the new sets, and then removes what is not to be dropped.
func (k *Lists) settle(w *listWriter, c ListChange, deltas map[listBase]*listDelta, p listPlan, rules []listSet) error {
	if k.rules == nil || !slices.Equal(k.rules, rules) {
		if err := w.replaceListRules(rules); err != nil {
			return err
		}
	}
	if c.Remove {
		for b, d := range deltas {
			if p.after[b] == nil {
				continue // it goes with its set
			}
			for _, key := range d.remove {
				w.put(w.remove, b, key)
			}
		}
		for _, s := range k.dropped(p) {
			w.deleteSet(s.family, s.name)
		}
	}
	for _, s := range k.junk {
		w.deleteSet(s.family, s.name)
	}
	exact := c.Remove || len(k.legacy) == 0 && len(p.stale) == 0
	marker := listMarker{index: c.Index}
	if exact {
		marker.hash = c.Lists.Hash()
	}
	w.setListMarker(marker)
	w.flush()
	if w.err != nil {
		return w.err
	}
	k.have, k.live, k.stale, k.marker, k.rules = c.Lists, p.after, p.stale, marker, rules
	if k.junk = nil; c.Remove {
		k.legacy = nil
	}
	return nil
}

// dropped are the sets that no rule looks into any more.
func (k *Lists) dropped(p listPlan) []setName {
	var names []string
	for b, s := range k.live {
		if now := p.after[b]; now == nil || now.name != s.name {
			names = append(names, s.name)
		}
	}
	for _, s := range k.legacy {
		names = append(names, s.name)
	}
	var sets []setName
	for _, name := range names {
		for _, f := range k.families {
			sets = append(sets, setName{f, name})
		}
	}
	return sets
}

// listPlan is how the sets change.
type listPlan struct {
	after  map[listBase]*liveSet
	stale  map[listBase]bool
	create []listBase
	// several says that it takes more than one transaction.
	several bool
}

func (k *Lists) planLists(deltas map[listBase]*listDelta, c ListChange) listPlan {
	p := listPlan{after: maps.Clone(k.live), stale: make(map[listBase]bool)}
	if !c.Remove {
		maps.Copy(p.stale, k.stale)
	}
	elements := 0
	for b, d := range deltas {
		was := k.live[b]
		n := d.adds - d.removes
		if was != nil {
			n += was.count
		}
		if !c.Remove && d.removes > 0 {
			p.stale[b] = true
			n += d.removes // they stay
		}
		if n <= 0 {
			delete(p.after, b)
			continue
		}
		if was != nil && !d.anew {
			p.after[b] = &liveSet{name: was.name, generation: was.generation, size: was.size, count: n}
			elements += d.adds + d.removes
			continue
		}
		if was != nil && !c.Remove {
			// The old generation stays in force until something may go.
			k.legacy = append(k.legacy, listSet{b, was.name})
		}
		p.after[b] = k.newSet(b, n)
		p.create = append(p.create, b)
		p.several = p.several || d.anew
		elements += n + 2*p.after[b].cost()
	}
	p.several = p.several || elements >= k.opts.ChunkElements
	return p
}

// load adds what is to be added: to sets that stay, and all of those that are loaded anew.
func (k *Lists) load(w *listWriter, deltas map[listBase]*listDelta, l *enforce.Lists) {
	anew := false
	for b, d := range deltas {
		anew = anew || d.anew
		for _, key := range d.add {
			w.put(w.add, b, key)
		}
	}
	if !anew {
		return
	}
	for e := range l.All() {
		b, key := keyOfList(e)
		if d := deltas[b]; d != nil && d.anew && w.sets[b] != nil {
			w.put(w.add, b, key)
		}
		if w.err != nil {
			return
		}
	}
}

// prepare creates tables, chains and the marker's set, with the rules for what is in force.
func (k *Lists) prepare(ctx context.Context) error {
	w := k.begin(ctx, k.live)
	for _, f := range k.families {
		w.addTable(f)
	}
	if len(k.discard)+len(k.badHits) > 0 {
		w.flushRules()
	}
	for _, c := range k.discard {
		w.dropListChain(c)
	}
	for _, s := range k.badHits {
		w.deleteSet(s.family, s.name)
	}
	for _, c := range listChains(k.families) {
		if c.hasHits() {
			w.addHitSet(c)
		}
		w.addListChain(c)
	}
	if k.badMark {
		w.deleteSet(k.families.home(), markerSet)
	}
	w.addMarkerSet()
	rules := inForce(k.live, k.legacy)
	if err := w.replaceListRules(rules); err != nil {
		return err
	}
	w.flush()
	if w.err == nil {
		k.exists, k.ready, k.badMark, k.discard, k.badHits, k.rules = true, true, false, nil, nil, rules
	}
	return w.err
}
