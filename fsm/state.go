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
	format      uint32 // highest command format that was applied; 0 while it is 1

	nodes  table[*Node] // by id
	vms    table[*VM]   // by id
	names  table[*VM]   // by name and id; VMs without a name are absent
	places table[*VM]   // by node or destination, and id
	owners table[*VM]   // by owner and id; VMs without an owner are absent
	// hardware are the VMs by the last five bytes of the hardware addresses of their interfaces, and id.
	hardware table[*VM]
	// addresses are those of all VMs, by prefix and VM id.
	addresses table[located]
	blocks    table[*Block]    // by number
	active    table[*Block]    // by target and number
	pending   table[*Block]    // by target and number
	over      table[*Block]    // by index of its end and number
	due       table[*Block]    // by due time and number
	guards    table[*Guard]    // by prefix, or VM
	accounts  table[*Account]  // by id
	lists     table[*List]     // by name
	contents  table[PrefixSet] // of the lists, by name
	uploads   table[*upload]   // by id
	settings  *Settings        // nil while they are the defaults
	fleet     *Fleet           // nil until it is formed
	// joinTokens are by id.
	joinTokens table[*JoinToken]
	access     access

	lengths   prefixLengths // of the active prefix blocks
	vmLengths prefixLengths // of the addresses of VMs
	guarded   *guardSet

	results table[*remembered] // by actor and key
	order   []*remembered      // by seq
	events  []Event            // by seq
	audit   auditLines

	sum multisetHash
}

// located is an address of a VM.
type located struct {
	prefix netip.Prefix
	vm     *VM
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
		owners: newTable[*VM](), hardware: newTable[*VM](), addresses: newTable[located](),
		blocks: newTable[*Block](), active: newTable[*Block](), pending: newTable[*Block](),
		over: newTable[*Block](), due: newTable[*Block](),
		guards: newTable[*Guard](), accounts: newTable[*Account](), lists: newTable[*List](),
		contents: newTable[PrefixSet](), uploads: newTable[*upload](), joinTokens: newTable[*JoinToken](),
		access:  newAccess(),
		results: newTable[*remembered](), guarded: &guardSet{},
	}
}

func (s *state) freeze() {
	s.nodes.freeze()
	s.vms.freeze()
	s.names.freeze()
	s.places.freeze()
	s.owners.freeze()
	s.hardware.freeze()
	s.addresses.freeze()
	s.blocks.freeze()
	s.active.freeze()
	s.pending.freeze()
	s.over.freeze()
	s.due.freeze()
	s.guards.freeze()
	s.accounts.freeze()
	s.lists.freeze()
	s.contents.freeze()
	s.uploads.freeze()
	s.joinTokens.freeze()
	s.access.freeze()
	s.results.freeze()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// utc is the form in which times are kept: what a snapshot gives back is equal to it.
func utc(t time.Time) time.Time { return fromNanos(toNanos(t)) }

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

// blockWithin returns a block on a prefix inside p, p itself included, nil if there is none.
func blockWithin(in *table[*Block], p netip.Prefix) (inside *Block) {
	within(in, p, func(b *Block) bool { inside = b; return false })
	return inside
}

// activeWithin calls yield for the active blocks on prefixes inside p, p itself included.
func (s *state) activeWithin(p netip.Prefix, yield func(*Block) bool) { within(&s.active, p, yield) }

func within(in *table[*Block], p netip.Prefix, yield func(*Block) bool) {
	for b := range in.from(targetKey(Target{Prefix: p})) {
		// Past p, the order is by address: nothing inside p comes after the first that is not.
		if !b.Target.Prefix.IsValid() || !p.Contains(b.Target.Prefix.Addr()) || !yield(b) {
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
	a.was.vm, a.listed = was, nil
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
		if was.Owner != "" && was.Owner != is.Owner {
			a.owners.remove(pairKey(was.Owner, was.ID))
		}
		for _, n := range was.NICs {
			a.hardware.remove(hardwareKey(n.MAC, was.ID))
		}
		for _, p := range was.AllAddresses() {
			a.addresses.remove(addressKey(p, was.ID))
			a.vmLengths.remove(p)
		}
	}
	a.indexVM(is)
	a.sum.add(a.digest(vmRecord(is)))
	if _, guarded := a.guards.get(vmGuardKey(is.ID)); guarded {
		a.guarded = &guardSet{}
	}
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
	if vm.Owner != "" {
		s.owners.put(pairKey(vm.Owner, vm.ID), vm)
	}
	for _, n := range vm.NICs {
		s.hardware.put(hardwareKey(n.MAC, vm.ID), vm)
	}
	for _, p := range vm.AllAddresses() {
		s.addresses.put(addressKey(p, vm.ID), located{p, vm})
		s.vmLengths.add(p)
	}
}

func (a *applier) setBlock(number uint64, was, is *Block) {
	a.was.block = was
	if was != nil {
		a.sum.subtract(a.digest(blockRecord(was)))
		a.unindexBlock(number, was)
	}
	a.indexBlock(number, is)
	a.sum.add(a.digest(blockRecord(is)))
}

func (s *state) indexBlock(number uint64, b *Block) {
	s.blocks.put(numberKey(number), b)
	switch b.State {
	case BlockPending:
		s.pending.put(activeKey(b.Target, number), b)
	case BlockActive:
		s.active.put(activeKey(b.Target, number), b)
		if b.Target.Prefix.IsValid() {
			s.lengths.add(b.Target.Prefix)
		}
	default:
		s.over.put(overKey(b, number), b)
	}
	if due := b.Due(); !due.IsZero() {
		s.due.put(dueKey(due, number), b)
	}
}

// unindexBlock takes a block out of every table but that of all blocks.
func (s *state) unindexBlock(number uint64, b *Block) {
	switch b.State {
	case BlockPending:
		s.pending.remove(activeKey(b.Target, number))
	case BlockActive:
		s.active.remove(activeKey(b.Target, number))
		if b.Target.Prefix.IsValid() {
			s.lengths.remove(b.Target.Prefix)
		}
	default:
		s.over.remove(overKey(b, number))
	}
	if due := b.Due(); !due.IsZero() {
		s.due.remove(dueKey(due, number))
	}
}

func (a *applier) setAccount(was, is *Account) {
	a.was.account = was
	if was != nil {
		a.sum.subtract(a.digest(accountRecord(was)))
	}
	if is == nil {
		a.accounts.remove([]byte(was.ID))
		return
	}
	a.accounts.put([]byte(is.ID), is)
	a.sum.add(a.digest(accountRecord(is)))
}

func (a *applier) setGuard(was, is *Guard) {
	a.was.guard, a.listed = was, nil
	if was != nil {
		a.sum.subtract(a.digest(guardRecord(was)))
	}
	if is != nil {
		a.guards.put(guardKey(is), is)
		a.sum.add(a.digest(guardRecord(is)))
	} else {
		a.guards.remove(guardKey(was))
	}
	a.guarded = &guardSet{}
}
