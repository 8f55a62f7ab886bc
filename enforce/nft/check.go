package nft

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/palisade/palisade/enforce"
)

const (
	// wholeCheck is up to how many elements Check reads everything: some milliseconds.
	wholeCheck = 1_000
	// sweepChunk is how many elements Check asks for at a time, so that a change waits 2 ms for it at most.
	sweepChunk = 500
	// sweepRest is how many times longer than a check of elements took the next one is put off, so that a
	// host whose rules change all the time pays a fiftieth of a core at most.
	sweepRest = 50
)

// watch is what Check remembers.
type watch struct {
	right uint32    // the generation at which the kernel was last found as it should be
	rest  time.Time // no elements are asked for before
	// met is what a change found, and put right, before a look did: the next look tells.
	met []string
}

// Check looks whether another program changed our tables, if any program has changed any rules since the
// last look: then it compares tables, chains, rules, sets and the log index, and asks for every element.
// The first takes about a millisecond, the other 4 us an element, in steps between which other calls
// have their turn. It changes nothing; Heal repairs. Elements that another program added to more than
// a thousand of ours are not found. While a change that failed waits to be repeated it finds nothing.
func (k *Kernel) Check(ctx context.Context) (Difference, error) {
	d, err := k.checkNode(ctx)
	if err != nil {
		return d, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	more, err := k.checkDevices(ctx)
	return d.with(more), err
}

func (k *Kernel) checkNode(ctx context.Context) (Difference, error) {
	d, list, generation, err := k.checkRules(ctx)
	if err != nil || !d.None() || list == nil {
		return d, err
	}
	begin := time.Now()
	for chunk := range slices.Chunk(list, sweepChunk) {
		if err := k.checkElements(ctx, chunk, &d); err != nil {
			return Difference{}, err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.watch.rest = time.Now().Add(sweepRest * time.Since(begin))
	if d.None() {
		k.watch.right = generation
	}
	return d, nil
}

// checkRules compares all but the elements, and returns those that are still to be asked for.
func (k *Kernel) checkRules(ctx context.Context) (d Difference, list []enforce.Element, generation uint32, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.adopted || k.want != nil {
		return d, nil, 0, nil
	}
	if len(k.watch.met) > 0 {
		d.Problems, k.watch.met = k.watch.met, nil
		return d, nil, 0, nil
	}
	if _, err = k.connected(); err == nil {
		generation, err = k.wire.generation(ctx)
	}
	if err != nil {
		return d, nil, 0, fmt.Errorf("check the kernel: %w", k.failed(err))
	}
	rested := !time.Now().Before(k.watch.rest)
	switch {
	case generation == k.watch.right:
		return d, nil, generation, nil
	case len(k.shadow) <= wholeCheck && rested:
		begin := time.Now()
		if d, err = k.verify(ctx); err == nil && d.None() {
			k.watch.right = generation
		}
		k.watch.rest = time.Now().Add(sweepRest * time.Since(begin))
		return d, nil, generation, err
	}
	r, err := k.wire.readParts(ctx, k.families, k.opts.Table, func(set string) bool { return set == markerSet })
	if err != nil {
		return d, nil, 0, fmt.Errorf("check the kernel: %w", k.failed(err))
	}
	d = k.compareRules(r)
	if d.None() && rested {
		list = slices.AppendSeq(make([]enforce.Element, 0, len(k.shadow)), maps.Keys(k.shadow))
	}
	return d, list, generation, nil
}

// compareRules compares everything but the elements of sets.
func (k *Kernel) compareRules(r ruleset) Difference {
	in := inspection{families: k.families, sets: k.sets, held: make(map[enforce.Element]struct{}), jumps: make(map[place]enforce.Treatment)}
	in.inspectMarker(r[k.families.home()])
	for _, f := range k.families {
		if !r[f].exists || r[f].flags != 0 {
			in.problem("table %s is missing or asleep", f)
		}
		for name := range r[f].sets {
			if b, _, ours := parseName(name); ours && (k.sets[setID{f, b}] == nil || k.sets[setID{f, b}].name != name) {
				in.problem("set %s %s is left over", f, name)
			}
		}
	}
	for id, s := range k.sets {
		got := r[id.family].sets[s.name]
		if got == nil || got.keyType != id.base.keyType() || got.keyLen != uint32(id.base.keyLen()) || got.flags != id.base.flags() || !got.counter {
			in.problem("set %s %s is missing or of another type", id.family, s.name)
		}
	}
	in.inspectTreatments(r)
	in.inspectChains(r)
	slices.Sort(in.problems)
	return Difference{Index: in.index, WantIndex: k.index, Problems: in.problems}
}

// checkElements asks for elements, and notes those that are held and not there.
func (k *Kernel) checkElements(ctx context.Context, list []enforce.Element, d *Difference) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.adopted || k.want != nil {
		return nil
	}
	changes := make([]change, 0, len(list))
	for _, e := range list {
		if _, held := k.shadow[e]; !held {
			continue // removed meanwhile
		}
		c, err := k.locate(e)
		if err != nil {
			return err
		}
		if c.base.kind != kindChain { // compared as a rule
			changes = append(changes, c)
		}
	}
	if _, err := k.connected(); err != nil {
		return fmt.Errorf("check the kernel: %w", err)
	}
	answers, err := k.wire.get(ctx, k.opts.Table, k.queries(nil, changes))
	if err != nil {
		return fmt.Errorf("check the kernel: %w", k.failed(err))
	}
	for _, c := range changes {
		there := true
		for _, f := range k.families {
			if c.base.in(f) {
				there = there && answers[0].found && answers[0].chain == c.chain
				answers = answers[1:]
			}
		}
		if !there {
			d.Missing = append(d.Missing, c.element)
		}
	}
	return nil
}

// Heal brings the kernel, whatever another program made of it, back to all that Apply confirmed. No drop
// that stands is absent at any moment. If it fails, the next Heal or Apply goes on from there.
func (k *Kernel) Heal(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.adopted {
		return ErrNotAdopted
	}
	if k.want == nil {
		k.want = maps.Clone(k.shadow)
	}
	index := k.index
	if _, err := k.restore(ctx, index); err != nil {
		k.index = max(k.index, index) // what was read of a marker that is gone says nothing
		return fmt.Errorf("heal the kernel: %w", k.failed(err))
	}
	k.want = nil
	k.devices.behind = k.devices.kernel != nil
	if err := k.bringDevices(ctx); err != nil {
		return fmt.Errorf("heal the kernel: %w", err)
	}
	return nil
}
