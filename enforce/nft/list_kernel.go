package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// Lists keeps what lists drop in the kernel of one network namespace, in two tables of its own, so that a
// million elements are in nobody's way: `bridge palisade_lists` and `inet palisade_lists`. They are created
// when the first list is held and stay. While there are devices that pass neither (SetDevices), `netdev palisade_lists`
// is a third. Its methods are safe for concurrent use; each waits for the one
// before, but SetDevices and Unenforced do not wait for a load. Nothing is removed on error, at start or at exit.
//
// It has no copy of the elements. What it knows of the kernel is which content it brought there.
type Lists struct {
	opts     Options
	families tables
	devices  *listDevices // nil in what it has itself for devices

	mu          sync.Mutex
	wire        *wire // nil: dial first
	bufferBytes int
	generation  uint32 // of the ruleset when it was last looked at
	// have is the content of the live sets; nil if the kernel has not been read since the start or an error.
	have   *enforce.Lists
	live   map[listBase]*liveSet
	stale  map[listBase]bool // live sets that hold more than have says
	legacy []listSet         // sets in force whose content is not known
	newest map[listBase]int  // generation
	marker listMarker
	// ready says that tables, chains and the sets of the marker and of hits are there and right; badMark, discard and
	// badHits, that a set or a chain is there and is not.
	exists  bool // one of the tables does
	ready   bool
	badMark bool
	discard []listChain
	badHits []setName
	counted map[hitKey][2]uint64 // what Hits has returned
	junk    []setName
	rules   []listSet // that the rules look into; nil if they are not known
}

// listChunk is how many elements one transaction changes, in each table: in a quarter of a millisecond. A load
// takes as long with more, and longer with much fewer.
const listChunk = 250

// OpenLists connects to the kernel and changes nothing. Of the options, Table defaults to
// "palisade_lists", ChunkElements to 250, and the sizes of sets are not used: they follow the lists.
func OpenLists(o Options) (*Lists, error) {
	if o.Table == "" {
		o.Table = "palisade_lists"
	}
	if o.ChunkElements == 0 {
		o.ChunkElements = listChunk
	}
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	k := newLists(o, listTables())
	k.devices = newListDevices(o)
	if err := k.connected(); err != nil {
		return nil, err
	}
	return k, nil
}

func newLists(o Options, families tables) *Lists {
	return &Lists{opts: o, families: families, bufferBytes: o.BufferBytes}
}

// Close ends the connection and leaves the kernel enforcing what it holds.
func (k *Lists) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return errors.Join(k.hangUp(), k.devices.close())
}

func (k *Lists) connected() error {
	if k.wire != nil {
		return nil
	}
	w, err := dial(k.opts.NetNS, k.bufferBytes, k.opts.Timeout)
	k.wire = w
	return err
}

func (k *Lists) hangUp() error {
	w := k.wire
	k.wire, k.have = nil, nil
	if w == nil {
		return nil
	}
	return w.close()
}

// failed gives up the connection and all that is believed of the kernel.
func (k *Lists) failed(err error) error {
	if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EMSGSIZE) {
		k.bufferBytes = min(max(k.bufferBytes*16, 4<<20), bufferBytesMost)
	}
	return errors.Join(err, k.hangUp())
}

// Exists says whether one of the tables is in the kernel. It changes nothing.
func (k *Lists) Exists(ctx context.Context) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.connected()
	exists := false
	if err == nil {
		exists, err = k.wire.tableExists(ctx, k.families, k.opts.Table)
	}
	if err != nil {
		return false, k.failed(err)
	}
	return exists, nil
}

// Index returns the log index that the kernel stands for, 0 if it holds no lists.
func (k *Lists) Index(ctx context.Context) (uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.known(ctx, nil); err != nil {
		return 0, k.failed(err)
	}
	on, err := k.onDevices(ctx)
	if on == nil || err != nil {
		return k.marker.index, err
	}
	index, err := on.Index(ctx)
	return max(k.marker.index, index), err
}

// Release takes prefixes that cover one of these guards, or are it, out of sets whose content is not known
// yet, and puts the prefixes around the guard in their place. It is for a node that has not caught up: its
// kernel may drop, since an earlier life, what it needs to catch up.
func (k *Lists) Release(ctx context.Context, guards []netip.Prefix) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.known(ctx, nil)
	if err == nil && len(k.legacy) > 0 {
		err = k.release(ctx, guards)
	}
	if err != nil {
		return fmt.Errorf("take guards out of the lists: %w", k.failed(err))
	}
	on, err := k.onDevices(ctx)
	if on == nil || err != nil {
		return err
	}
	return on.Release(ctx, guards)
}

func (k *Lists) release(ctx context.Context, guards []netip.Prefix) error {
	w := k.begin(ctx, maps.Clone(k.live))
	var gone [][]byte // one message to delete each
	for _, g := range guards {
		for _, s := range k.legacy {
			wide, err := g.Addr().Prefix(int(s.base.base.bits))
			if err != nil || g.Addr().Is4() != (s.base.base.kind == kind4) || wide.Bits() > g.Bits() {
				continue
			}
			e := enforce.ListElement{Direction: s.base.direction, Prefix: wide}
			_, key := keyOfList(e)
			n := s.base.base.keyLen()
			queries := make([]query, 0, len(k.families))
			for _, f := range k.families {
				queries = append(queries, query{f, s.name, key[:n]})
			}
			answers, err := k.wire.get(ctx, k.opts.Table, queries)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(answers, func(a answer) bool { return !a.found }) {
				continue
			}
			for p := range fsm.Carve(wide, []netip.Prefix{g}) {
				b, piece := keyOfList(enforce.ListElement{Direction: s.base.direction, Prefix: p})
				k.stale[b] = true
				if w.sets[b] == nil {
					w.sets[b] = k.newSet(b, 0)
					w.addListSet(b, w.sets[b])
				}
				w.put(w.add, b, piece)
			}
			a := appendElementList(nil, k.opts.Table, s.name)
			a, nest := openNest(a, unix.NFTA_SET_ELEM_LIST_ELEMENTS)
			gone = append(gone, closeNest(appendElement(a, key[:n], element{}), nest))
		}
	}
	if len(gone) == 0 {
		return nil
	}
	w.flush() // what is around the guards first
	if w.err != nil {
		return w.err
	}
	rules := inForce(w.sets, k.legacy)
	if err := w.replaceListRules(rules); err != nil {
		return err
	}
	for _, a := range gone {
		for _, f := range k.families {
			w.batch.add(unix.NFT_MSG_DELSETELEM, 0, f, "delete a guard", a)
		}
	}
	w.setListMarker(listMarker{index: k.marker.index})
	w.flush()
	if w.err == nil {
		k.live, k.rules, k.marker.hash = w.sets, rules, [32]byte{}
	}
	return w.err
}

// inForce are the sets that the rules have to look into.
func inForce(live map[listBase]*liveSet, legacy []listSet) []listSet {
	sets := slices.Clone(legacy)
	for b, s := range live {
		sets = append(sets, listSet{b, s.name})
	}
	return sortSets(sets)
}

func (k *Lists) newSet(b listBase, n int) *liveSet {
	const least = 1024
	k.newest[b]++
	// Room for a quarter more, or every addition would load the set anew.
	return &liveSet{name: b.name(k.newest[b]), generation: k.newest[b], size: uint32(max(least, n+n/4)), count: n}
}

// known reads what the kernel holds, unless that is known. If it is exactly want it becomes the live
// content; else it stays in force, as it is, beside what is brought.
func (k *Lists) known(ctx context.Context, want *enforce.Lists) error {
	if err := k.connected(); err != nil {
		return err
	}
	adoptable := want != nil && k.have != nil && len(k.live) == 0 && len(k.legacy) > 0
	if k.have != nil && !adoptable {
		return nil
	}
	generation, err := k.wire.generation(ctx)
	if err != nil {
		return err
	}
	in, err := k.wire.readLists(ctx, k.families, k.opts.Table)
	if err != nil {
		return err
	}
	k.generation, k.newest, k.marker = generation, in.newest, in.marker
	k.exists, k.ready, k.badMark, k.discard, k.junk = in.exists, in.exists && in.sound, in.badMarker, in.discard, in.junk
	k.badHits = in.badHits
	k.live, k.stale, k.legacy, k.rules = make(map[listBase]*liveSet), make(map[listBase]bool), in.used, nil
	k.have = &enforce.Lists{}
	if in.ruled {
		k.rules = in.used
	}
	if want == nil || !in.sound || !in.ruled || in.marker.hash != want.Hash() || in.marker.hash == [32]byte{} {
		return nil
	}
	n := counts(want)
	live := make(map[listBase]*liveSet, len(n))
	for _, s := range in.used {
		_, generation, _ := parseListName(s.name)
		live[s.base] = &liveSet{name: s.name, generation: generation, size: in.sizes[s.name], count: n[s.base]}
	}
	if len(live) != len(in.used) || len(live) != len(n) {
		return nil
	}
	if all, err := k.spots(ctx, want, live, listSpots); err != nil || !all {
		return err
	}
	k.have, k.live, k.legacy = want, live, nil
	return nil
}

// Check looks whether the tables are as they were left, if any program has changed any rules since the last look: rules and
// sets, and some elements at random. If they are not, it returns an error, and the next Bring makes them so.
func (k *Lists) Check(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var err error
	if k.have != nil && k.marker.index > 0 {
		if err = k.check(ctx); err != nil {
			err = k.failed(err)
		}
	}
	return errors.Join(err, k.devices.check(ctx))
}

func (k *Lists) check(ctx context.Context) error {
	generation, err := k.wire.generation(ctx)
	if err != nil || generation == k.generation {
		return err
	}
	in, err := k.wire.readLists(ctx, k.families, k.opts.Table)
	if err != nil {
		return err
	}
	if !in.sound || !in.ruled || in.marker != k.marker || !slices.Equal(in.used, k.rules) {
		return errTampered
	}
	if all, err := k.spots(ctx, k.have, k.live, listSpots/4); err != nil || !all {
		return errors.Join(errTampered, err)
	}
	k.generation = generation
	return nil
}
