package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
)

// Sources keeps in the kernel of one network namespace what guests may send from, in tables of its own: `bridge
// palisade_source`, `inet palisade_source`, and `arp palisade_source` where the kernel has that family. They
// are there while a guest is bound. Its methods are safe for concurrent use; each waits for the one before. Nothing is
// removed on error, at start or at exit.
type Sources struct {
	opts Options

	mu          sync.Mutex
	wire        *wire // nil: dial first
	bufferBytes int
	families    []family  // nil: not asked yet
	generation  uint32    // of the ruleset when it was last found right
	rest        time.Time // the elements are not looked at before
	exists      bool      // the tables, all of them right
	right       bool      // the kernel is known to hold what held says
	held        map[enforce.SourceElement]struct{}
	counts      map[base]int // of held
	index       uint64
}

// sourceChunk is how many elements one transaction changes at most, in each table.
const sourceChunk = 250

// OpenSources connects to the kernel and changes nothing; call Adopt before anything else. Of the options, Table defaults
// to "palisade_source", ChunkElements to 250, and sizes are not used.
func OpenSources(o Options) (*Sources, error) {
	if o.Table == "" {
		o.Table = "palisade_source"
	}
	if o.ChunkElements == 0 {
		o.ChunkElements = sourceChunk
	}
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	k := &Sources{opts: o, bufferBytes: o.BufferBytes}
	if err := k.connected(); err != nil {
		return nil, err
	}
	return k, nil
}

// Close ends the connection and leaves the kernel enforcing what it holds.
func (k *Sources) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.hangUp()
}

func (k *Sources) connected() error {
	if k.wire != nil {
		return nil
	}
	w, err := dial(k.opts.NetNS, k.bufferBytes, k.opts.Timeout)
	k.wire = w
	return err
}

func (k *Sources) hangUp() error {
	w := k.wire
	k.wire, k.right = nil, false
	if w == nil {
		return nil
	}
	return w.close()
}

// failed gives up the connection and all that is believed of the kernel.
func (k *Sources) failed(err error) error {
	if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EMSGSIZE) {
		k.bufferBytes = min(max(k.bufferBytes*16, 4<<20), bufferBytesMost)
	}
	return errors.Join(err, k.hangUp())
}

// SourcesHeld is what a kernel was found to hold.
type SourcesHeld struct {
	Index    uint64 // the log index that it stands for, 0 if none is recorded
	Elements map[enforce.SourceElement]struct{}
	Intact   bool // all is as Sources leaves it; else the first Apply writes all anew
}

// Adopt reads what the kernel holds, and writes nothing. The caller owns the result.
func (k *Sources) Adopt(ctx context.Context) (SourcesHeld, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	in, generation, err := k.inspect(ctx)
	if err != nil {
		return SourcesHeld{}, fmt.Errorf("adopt what guests are bound to: %w", k.failed(err))
	}
	k.generation, k.exists, k.right = generation, in.exists, in.problem == ""
	k.index, k.held, k.counts = in.index, in.held, countSources(in.held)
	return SourcesHeld{Index: in.index, Elements: maps.Clone(in.held), Intact: k.right}, nil
}

func countSources(held map[enforce.SourceElement]struct{}) map[base]int {
	counts := make(map[base]int)
	for e := range held {
		b, _ := sourceKey(e)
		counts[b]++
	}
	return counts
}

// Apply carries out a delta, and returns nil only after every element of it was asked for. What binds an
// interface comes after what its guest may use, and goes before it. After an error all is written anew by the next call.
func (k *Sources) Apply(ctx context.Context, d enforce.SourceDelta) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held == nil {
		return ErrNotAdopted
	}
	var add, remove []enforce.SourceElement
	for _, e := range d.Add {
		if _, held := k.held[e]; !held {
			add = append(add, e)
		}
	}
	for _, e := range d.Remove {
		if _, held := k.held[e]; held {
			remove = append(remove, e)
		}
	}
	if k.right && len(add)+len(remove) == 0 {
		return nil
	}
	k.index = max(k.index, d.Index)
	err := k.connected()
	if err == nil {
		err = k.change(ctx, add, remove)
	}
	if err != nil {
		k.note(add, remove) // what is to be; nobody knows what is
		return fmt.Errorf("bind guests to their addresses: %w", k.failed(err))
	}
	return nil
}

// note takes a change over into what is held.
func (k *Sources) note(add, remove []enforce.SourceElement) {
	for _, e := range add {
		if _, held := k.held[e]; !held {
			b, _ := sourceKey(e)
			k.held[e] = struct{}{}
			k.counts[b]++
		}
	}
	for _, e := range remove {
		if _, held := k.held[e]; held {
			b, _ := sourceKey(e)
			delete(k.held, e)
			if k.counts[b]--; k.counts[b] == 0 {
				delete(k.counts, b)
			}
		}
	}
}

func (k *Sources) change(ctx context.Context, add, remove []enforce.SourceElement) error {
	if !k.right {
		k.note(add, remove)
		return k.rewrite(ctx)
	}
	if !k.exists {
		if err := k.rewrite(ctx); err != nil {
			return err
		}
	}
	// What is allowed before who is bound, who is free before what was allowed: between transactions, nobody is bound
	// to less than before or after.
	isTap := func(e enforce.SourceElement) bool { b, _ := sourceKey(e); return b.kind == kindTap }
	last := func(list []enforce.SourceElement, taps bool) {
		slices.SortStableFunc(list, func(a, b enforce.SourceElement) int {
			switch {
			case isTap(a) == isTap(b):
				return 0
			case isTap(a) == taps:
				return 1
			}
			return -1
		})
	}
	last(add, true)
	last(remove, false)
	for len(add)+len(remove) > 0 {
		n := min(len(add), k.opts.ChunkElements)
		m := min(len(remove), k.opts.ChunkElements-n)
		if err := k.changeSome(ctx, add[:n], remove[:m]); err != nil {
			return err
		}
		k.note(add[:n], remove[:m])
		add, remove = add[n:], remove[m:]
	}
	if len(k.held) == 0 {
		return k.rewrite(ctx)
	}
	return nil
}

// changeSome changes elements in one transaction, and reads them back.
func (k *Sources) changeSome(ctx context.Context, add, remove []enforce.SourceElement) error {
	after := maps.Clone(k.counts)
	for _, e := range add {
		b, _ := sourceKey(e)
		after[b]++
	}
	for _, e := range remove {
		b, _ := sourceKey(e)
		if after[b]--; after[b] == 0 {
			delete(after, b)
		}
	}
	before, bases := basesOf(k.counts), basesOf(after)
	w := &sourceWriter{writer: writer{table: k.opts.Table, families: tables{inet}}}
	var queries []query
	var present []bool
	for _, f := range k.families {
		for _, b := range bases {
			if !slices.Contains(before, b) && sourceIn(f, b) {
				w.addSourceSet(f, b.String(), b)
			}
		}
		w.sourceElements(f, remove, false)
		w.sourceElements(f, add, true)
		if !slices.Equal(before, bases) {
			if err := w.replaceSourceRules(f, bases); err != nil {
				return err
			}
		}
		for _, b := range before {
			if !slices.Contains(bases, b) && sourceIn(f, b) {
				w.deleteSet(f, b.String())
			}
		}
		for i, list := range [][]enforce.SourceElement{add, remove} {
			for _, e := range list {
				if b, key := sourceKey(e); sourceIn(f, b) {
					queries, present = append(queries, query{f, b.String(), key}), append(present, i == 0)
				}
			}
		}
	}
	w.setMarker(k.index)
	if err := k.wire.commit(ctx, &w.batch); err != nil {
		return err
	}
	answers, err := k.wire.get(ctx, k.opts.Table, queries)
	if err != nil {
		return err
	}
	for i, a := range answers {
		if q := queries[i]; a.found != present[i] {
			return fmt.Errorf("read back: element %x of set %s %s: there %t, want %t", q.key, q.family, q.set, a.found, present[i])
		}
	}
	return nil
}

// rewrite replaces the tables, in one transaction, by ones that hold exactly what is held; none if that is nothing and
// they are there, empty ones if they are not.
func (k *Sources) rewrite(ctx context.Context) error {
	w := &sourceWriter{writer: writer{table: k.opts.Table, families: tables{inet}}}
	gone := len(k.held) == 0 && (k.exists || !k.right)
	all := slices.SortedFunc(maps.Keys(k.held), enforce.SourceElement.Compare)
	for _, f := range k.families {
		w.addTable(f) // or it could not be deleted
		w.deleteTable(f)
		if gone {
			continue
		}
		w.addTable(f)
		bases := basesOf(k.counts)
		for _, b := range bases {
			if sourceIn(f, b) {
				w.addSourceSet(f, b.String(), b)
			}
		}
		w.addSourceSet(f, droppedSet, base{kind: kindTap})
		for _, c := range sourceChains(f, bases) {
			at := chain{family: f, name: c.name, hook: sourceHookNumber, priority: prioritySource}
			if c.hooked {
				at.sort = "filter"
			}
			w.addChain(at)
		}
		if err := w.replaceSourceRules(f, bases); err != nil {
			return err
		}
		w.sourceElements(f, all, true)
	}
	if !gone {
		w.addMarkerSet()
		w.setMarker(k.index)
	}
	if err := k.wire.commit(ctx, &w.batch); err != nil {
		return err
	}
	in, generation, err := k.inspect(ctx)
	if err != nil {
		return err
	}
	if in.problem != "" || !maps.Equal(in.held, k.held) {
		return fmt.Errorf("this kernel does not keep what it is given: %q", in.problem)
	}
	k.generation, k.exists, k.right = generation, !gone, true
	return nil
}

// Check looks whether the tables are as they were left, if any program has changed any rules since the last look. If they
// are not, it returns an error, and the next Apply writes all anew.
func (k *Sources) Check(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held == nil || !k.right {
		return nil
	}
	generation, err := k.wire.generation(ctx)
	if err != nil {
		return k.failed(err)
	}
	begin := time.Now()
	if generation == k.generation || begin.Before(k.rest) {
		return nil
	}
	defer func() { k.rest = time.Now().Add(sweepRest * time.Since(begin)) }()
	in, generation, err := k.inspect(ctx)
	switch {
	case err != nil:
		return k.failed(err)
	case in.problem != "":
		k.right = false
		return fmt.Errorf("another program changed the tables of sources: %s", in.problem)
	case in.exists != k.exists || !maps.Equal(in.held, k.held):
		k.right = false
		return errors.New("another program changed what guests are bound to")
	}
	k.generation = generation
	return nil
}

// Dropped returns what was dropped of each bound interface, since it was bound or the tables were written anew.
func (k *Sources) Dropped(ctx context.Context) (map[string]enforce.Counter, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	dropped := make(map[string]enforce.Counter)
	if !k.right || !k.exists {
		return dropped, nil
	}
	for _, f := range k.families {
		request := appendElementList(nil, k.opts.Table, droppedSet)
		err := k.wire.dump(ctx, unix.NFT_MSG_GETSETELEM, f, request, func(b []byte) {
			eachElement(b, func(e element) {
				tap := attrText(e.key[:])
				c := dropped[tap]
				dropped[tap] = enforce.Counter{Packets: c.Packets + e.counter[0], Bytes: c.Bytes + e.counter[1]}
			})
		})
		if err != nil {
			return nil, fmt.Errorf("read what sources dropped: %w", k.failed(err))
		}
	}
	return dropped, nil
}
