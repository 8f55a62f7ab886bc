package fsm

import (
	"net/netip"
	"slices"
	"time"
)

// state is everything the log has made. A View holds one that is frozen; the writer changes a copy.
//
// Events and results are append-only slices whose arrays are shared by all copies: the writer only
// ever appends to the newest copy, so it writes beyond what any reader can see, and forgetting moves
// the front of its own copy.
type state struct {
	index       uint64
	time        int64  // nanoseconds since the epoch, 0 before the first command
	lastBlock   uint64 // number of the newest block
	lastResult  uint64 // seq of the newest result
	lastEvent   uint64 // seq of the newest event
	eventsAfter uint64 // events holds everything after this log index

	nodes  table[*Node]  // by id
	vms    table[*VM]    // by id
	names  table[*VM]    // by name and id; VMs without a name are absent
	places table[*VM]    // by node or destination, and id
	blocks table[*Block] // by number
	active table[*Block] // by target and number
	lifted table[*Block] // by index of lifting and number
	guards table[*Guard] // by prefix

	lengths prefixLengths // of the active prefix blocks
	guarded *guardSet

	results table[*remembered] // by actor and key
	order   []*remembered      // by seq
	events  []Event            // by seq
	audit   auditLines

	sum multisetHash
}

// remembered is the result of a command that had a key.
type remembered struct {
	seq         uint64
	actor, key  string
	fingerprint [32]byte // of the encoded op
	result      Result
}

func newState() state {
	return state{
		nodes: newTable[*Node](), vms: newTable[*VM](), names: newTable[*VM](), places: newTable[*VM](),
		blocks: newTable[*Block](), active: newTable[*Block](), lifted: newTable[*Block](),
		guards: newTable[*Guard](), results: newTable[*remembered](), guarded: &guardSet{},
	}
}

func (s *state) freeze() {
	s.nodes.freeze()
	s.vms.freeze()
	s.names.freeze()
	s.places.freeze()
	s.blocks.freeze()
	s.active.freeze()
	s.lifted.freeze()
	s.guards.freeze()
	s.results.freeze()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// toNanos gives 0 for the zero time and for everything before 1970, and the last instant that fits
// for everything after 2262.
func toNanos(t time.Time) int64 {
	switch {
	case t.Before(time.Unix(0, 0)):
		return 0
	case t.Year() >= 2262:
		return 1<<63 - 1
	}
	return t.UnixNano()
}

func (s *state) block(id string) (*Block, bool) {
	n, ok := ParseBlockID(id)
	if !ok {
		return nil, false
	}
	return s.blocks.get(numberKey(n))
}

func (s *state) namedBy(name string) []*VM {
	if name == "" {
		return nil
	}
	return slices.Collect(s.names.under(groupKey(name)))
}

// activeWithin calls yield for the active blocks on prefixes inside p, p itself included.
func (s *state) activeWithin(p netip.Prefix, yield func(*Block) bool) {
	for b := range s.active.from(targetKey(Target{Prefix: p})) {
		// Past p, the order is by address: nothing inside p comes after the first that is not.
		if b.Target.VM != "" || !p.Contains(b.Target.Prefix.Addr()) || !yield(b) {
			return
		}
	}
}

// Index the objects. Each of these replaces old by new in every table and in the state hash; nil
// stands for an object that does not exist.

func (a *applier) setNode(was, is *Node) {
	a.was.node = was
	if was != nil {
		a.sum.subtract(a.digest(nodeRecord(was)))
	}
	a.nodes.put([]byte(is.ID), is)
	a.sum.add(a.digest(nodeRecord(is)))
	a.guarded = &guardSet{}
}

func (a *applier) setVM(was, is *VM) {
	a.was.vm = was
	if was != nil {
		a.sum.subtract(a.digest(vmRecord(was)))
		if was.Name != "" && was.Name != is.Name {
			a.names.remove(pairKey(was.Name, was.ID))
		}
		for _, place := range []string{was.Node, was.Destination} {
			if place != "" && place != is.Node && place != is.Destination {
				a.places.remove(pairKey(place, was.ID))
			}
		}
	}
	a.indexVM(is)
	a.sum.add(a.digest(vmRecord(is)))
}

func (s *state) indexVM(vm *VM) {
	s.vms.put([]byte(vm.ID), vm)
	if vm.Name != "" {
		s.names.put(pairKey(vm.Name, vm.ID), vm)
	}
	for _, place := range []string{vm.Node, vm.Destination} {
		if place != "" {
			s.places.put(pairKey(place, vm.ID), vm)
		}
	}
}

func (a *applier) setBlock(number uint64, was, is *Block) {
	a.was.block = was
	if was != nil {
		a.sum.subtract(a.digest(blockRecord(was)))
		if was.State == BlockActive && is.State != BlockActive {
			a.active.remove(activeKey(was.Target, number))
			if was.Target.VM == "" {
				a.lengths.remove(was.Target.Prefix)
			}
		}
	}
	a.indexBlock(number, is)
	a.sum.add(a.digest(blockRecord(is)))
}

// indexBlock indexes a block that is new or was just lifted.
func (s *state) indexBlock(number uint64, b *Block) {
	s.blocks.put(numberKey(number), b)
	if b.State == BlockLifted {
		s.lifted.put(liftedKey(b, number), b)
		return
	}
	s.active.put(activeKey(b.Target, number), b)
	if b.Target.VM == "" {
		s.lengths.add(b.Target.Prefix)
	}
}

func (a *applier) setGuard(was, is *Guard) {
	a.was.guard = was
	if was != nil {
		a.sum.subtract(a.digest(guardRecord(was)))
	}
	if is != nil {
		a.guards.put(prefixKey(is.Prefix), is)
		a.sum.add(a.digest(guardRecord(is)))
	} else {
		a.guards.remove(prefixKey(was.Prefix))
	}
	a.guarded = &guardSet{}
}
