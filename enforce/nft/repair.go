package nft

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
)

func (k *Kernel) writer() *writer { return &writer{table: k.opts.Table, families: k.families} }

// repair carries out an inspection: first everything that adds, then, in one transaction, the rules
// and the removal of what is not needed once they stand.
func (k *Kernel) repair(ctx context.Context, in inspection) error {
	b := k.writer()
	for _, f := range in.tables {
		b.addTable(f)
	}
	if in.dropMarker {
		b.deleteSet(b.families.home(), markerSet)
	}
	if in.createMarker {
		b.addMarkerSet()
	}
	for _, id := range in.create {
		b.addSet(id, in.sets[id].name, in.sets[id].size)
	}
	for _, t := range in.treatments {
		if t.discard {
			b.deleteChain(t.family, string(t.treatment))
		}
		b.addChain(chain{family: t.family, name: string(t.treatment)})
		if err := b.setTreatment(t.family, t.treatment); err != nil {
			return err
		}
	}
	if err := k.wire.commit(ctx, &b.batch); err != nil {
		return err
	}
	for id, list := range in.load {
		if err := k.loadSet(ctx, id, in.sets[id].name, list); err != nil {
			return err
		}
	}
	b = k.writer()
	if err := b.fixChains(in.chains, in.sets); err != nil {
		return err
	}
	for _, s := range in.drop {
		b.deleteSet(s.family, s.name)
	}
	for _, j := range in.junk {
		if in.sets[j.id] != nil && in.sets[j.id].name == j.set { // else it goes with its set
			b.deleteElements(j.id.family, j.set, j.id.base.keyLen(), j.elements)
		}
	}
	return k.wire.commit(ctx, &b.batch)
}

// loadSet adds elements to one set in chunks.
func (k *Kernel) loadSet(ctx context.Context, id setID, set string, list []element) error {
	for chunk := range slices.Chunk(list, k.opts.ChunkElements) {
		b := k.writer()
		b.addElements(id.family, set, id.base.keyLen(), chunk)
		if err := k.wire.commit(ctx, &b.batch); err != nil {
			return err
		}
	}
	return nil
}

// grow replaces sets by ones with room for as many elements as need says. The old ones drop until
// the rules, in one transaction, look into the new ones. The counters go along; what is dropped
// between their reading and the switch is not counted.
func (k *Kernel) grow(ctx context.Context, need map[setID]int) error {
	if len(need) == 0 {
		return nil
	}
	bigger := maps.Clone(k.sets)
	b := k.writer()
	for id, n := range need {
		old := k.sets[id]
		s := &liveSet{generation: old.generation + 1, size: fit(old.size, n), count: old.count}
		s.name = id.base.name(s.generation)
		bigger[id] = s
		b.addSet(id, s.name, s.size)
		k.opts.Logger.InfoContext(ctx, "an nftables set grows", "family", id.family, "set", s.name, "size", s.size)
	}
	if err := k.wire.commit(ctx, &b.batch); err != nil {
		return err
	}
	for id := range need {
		if err := k.copySet(ctx, id, bigger[id].name); err != nil {
			return fmt.Errorf("grow set %s %s: %w", id.family, id.base, err)
		}
	}
	b = k.writer()
	if err := b.switchRules(k.sets, bigger); err != nil {
		return err
	}
	for id := range need {
		b.deleteSet(id.family, k.sets[id].name)
	}
	if err := k.wire.commit(ctx, &b.batch); err != nil {
		return err
	}
	k.sets = bigger
	return nil
}

// copySet loads what the shadow says is in a set, with its counters, into another, and reads it back.
func (k *Kernel) copySet(ctx context.Context, id setID, to string) error {
	if k.sets[id].count == 0 {
		return nil
	}
	counters := make(map[key][2]uint64, k.sets[id].count)
	request := appendElementList(nil, k.opts.Table, k.sets[id].name)
	err := k.wire.dump(ctx, unix.NFT_MSG_GETSETELEM, id.family, request, func(b []byte) {
		eachElement(b, func(e element) { counters[e.key] = e.counter })
	})
	if err != nil {
		return err
	}
	var list []element
	var queries []query
	for el := range k.shadow {
		c, err := k.locate(el)
		if err != nil {
			return err
		}
		if c.base == id.base {
			list = append(list, element{key: c.key, counter: counters[c.key], chain: c.chain})
			queries = append(queries, query{id.family, to, c.key[:c.base.keyLen()]})
		}
	}
	if err := k.loadSet(ctx, id, to, list); err != nil {
		return err
	}
	answers, err := k.wire.get(ctx, k.opts.Table, queries)
	if err != nil {
		return err
	}
	for i, a := range answers {
		if !a.found {
			return fmt.Errorf("element %x was loaded and is not there", queries[i].key)
		}
	}
	return nil
}

// switchRules replaces the rules of the chains that change when the sets do, with the chains that exist
// because of sets.
func (b *writer) switchRules(from, to map[setID]*liveSet) error {
	if maps.EqualFunc(from, to, func(a, b *liveSet) bool { return a.name == b.name }) {
		return nil
	}
	before, after := listSets(from), listSets(to)
	var fixes []chainFix
	for _, c := range chains(b.families) {
		switch was, is := c.needed(before), c.needed(after); {
		case was && !is:
			fixes = append(fixes, chainFix{chain: c, remove: true})
		case is && (!was || !slices.Equal(c.rules(before), c.rules(after))):
			fixes = append(fixes, chainFix{chain: c, create: !was})
		}
	}
	return b.fixChains(fixes, to)
}

// Difference is how the kernel differs from what it should hold.
type Difference struct {
	Missing, Unexpected []enforce.Element
	Index, WantIndex    uint64
	// Problems names tables, chains, rules and sets that are not as they should be.
	Problems []string
}

// None says that the kernel is exactly as it should be.
func (d Difference) None() bool {
	return len(d.Missing)+len(d.Unexpected)+len(d.Problems) == 0 && d.Index == d.WantIndex
}

// with adds what differs on devices, and must not.
func (d Difference) with(o Difference) Difference {
	if o.Index != o.WantIndex {
		o.Problems = append(o.Problems, fmt.Sprintf("the table of devices stands for log index %d, want %d", o.Index, o.WantIndex))
	}
	d.Missing, d.Unexpected = append(d.Missing, o.Missing...), append(d.Unexpected, o.Unexpected...)
	d.Problems = append(d.Problems, o.Problems...)
	return d
}

// Verify reads everything back and compares it with what Apply confirmed. It changes nothing; Adopt,
// Apply and Heal repair. It takes about 2 us for each element.
func (k *Kernel) Verify(ctx context.Context) (Difference, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.adopted {
		return Difference{}, ErrNotAdopted
	}
	d, err := k.verify(ctx)
	dev := k.devices.kernel
	if err != nil || dev == nil || !dev.adopted || k.devices.refused != nil { // of a refusal Unenforced tells
		return d, err
	}
	more, err := dev.Verify(ctx)
	if err == nil {
		more.Problems, err = k.checkHooks(ctx, more.Problems)
	}
	return d.with(more), err
}

func (k *Kernel) verify(ctx context.Context) (Difference, error) {
	var in inspection
	err := k.twice(ctx, func() (err error) {
		in, err = k.inspect(ctx)
		return err
	})
	if err != nil {
		return Difference{}, fmt.Errorf("verify the kernel: %w", err)
	}
	want := k.want
	if want == nil {
		want = k.shadow
	}
	d := Difference{Index: in.index, WantIndex: k.index, Problems: in.problems}
	for e := range want {
		if _, ok := in.held[e]; !ok {
			d.Missing = append(d.Missing, e)
		}
	}
	for e := range in.held {
		if _, ok := want[e]; !ok {
			d.Unexpected = append(d.Unexpected, e)
		}
	}
	return d, nil
}
