package fsm

import (
	"bytes"
	"encoding/binary"
	"iter"
	"net/netip"
	"time"

	"github.com/google/btree"
)

// table is an ordered map from keys to objects. A frozen table is immutable. Each copy of it can be
// changed by one goroutine without touching the others; freeze ends the changing.
type table[T any] struct {
	tree *btree.BTreeG[pair[T]] // frozen
	work *btree.BTreeG[pair[T]] // nil while nothing was changed since freeze
	n    int
}

type pair[T any] struct {
	key   []byte
	value T
}

// branching of the trees: a change copies the nodes on its way, of up to 32 pairs each.
const branching = 16

func newTable[T any]() table[T] {
	less := func(a, b pair[T]) bool { return bytes.Compare(a.key, b.key) < 0 }
	// Without a list of free nodes: those that views still hold can't be used again.
	return table[T]{tree: btree.NewWithFreeListG(branching, less, btree.NewFreeListG[pair[T]](0))}
}

func (t *table[T]) current() *btree.BTreeG[pair[T]] {
	if t.work != nil {
		return t.work
	}
	return t.tree
}

func (t *table[T]) get(key []byte) (T, bool) {
	p, ok := t.current().Get(pair[T]{key: key})
	return p.value, ok
}

// put keeps the key: the caller must not use its bytes again.
func (t *table[T]) put(key []byte, v T) {
	if _, replaced := t.changing().ReplaceOrInsert(pair[T]{key, v}); !replaced {
		t.n++
	}
}

func (t *table[T]) remove(key []byte) {
	if _, removed := t.changing().Delete(pair[T]{key: key}); removed {
		t.n--
	}
}

func (t *table[T]) changing() *btree.BTreeG[pair[T]] {
	if t.work == nil {
		mine := *t.tree // Clone changes its receiver, which other copies share
		t.work = mine.Clone()
	}
	return t.work
}

func (t *table[T]) freeze() {
	if t.work != nil {
		t.tree, t.work = t.work, nil
	}
}

// first returns the object with the lowest key.
func (t *table[T]) first() (T, bool) {
	p, ok := t.current().Min()
	return p.value, ok
}

// all walks in the order of the keys. The table must not be changed meanwhile.
func (t *table[T]) all() iter.Seq[T] { return t.from(nil) }

// from walks all keys at or after the one given.
func (t *table[T]) from(key []byte) iter.Seq[T] {
	return func(yield func(T) bool) {
		t.current().AscendGreaterOrEqual(pair[T]{key: key}, func(p pair[T]) bool { return yield(p.value) })
	}
}

// under walks all keys that begin with the prefix.
func (t *table[T]) under(prefix []byte) iter.Seq[T] {
	return func(yield func(T) bool) {
		t.current().AscendGreaterOrEqual(pair[T]{key: prefix}, func(p pair[T]) bool {
			return bytes.HasPrefix(p.key, prefix) && yield(p.value)
		})
	}
}

// The keys. Ids, names and actors hold no NUL byte, so that it can end them.

func numberKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func pairKey(a, b string) []byte {
	k := make([]byte, 0, len(a)+1+len(b))
	return append(append(append(k, a...), 0), b...)
}

// hardwareKey leaves out the first byte of an address, see View.VMsWithHardware.
func hardwareKey(m MAC, id string) []byte { return append(m[1:len(m):len(m)], id...) }

func groupKey(a string) []byte { return append([]byte(a), 0) }

// prefixKey orders as comparePrefix does.
func prefixKey(p netip.Prefix) []byte { return appendPrefixKey(nil, p) }

func appendPrefixKey(k []byte, p netip.Prefix) []byte {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		return append(append(append(k, 4), a[:]...), byte(p.Bits()))
	}
	a := p.Addr().As16()
	return append(append(append(k, 6), a[:]...), byte(p.Bits()))
}

// addressKey is an address of a VM, ordered by prefix.
func addressKey(p netip.Prefix, vm string) []byte {
	return append(appendPrefixKey(make([]byte, 0, 18+len(vm)), p), vm...)
}

// vmGuardKey comes after the keys of all prefixes.
func vmGuardKey(vm string) []byte { return append([]byte{'v'}, vm...) }

func guardKey(g *Guard) []byte {
	if g.VM != "" {
		return vmGuardKey(g.VM)
	}
	return prefixKey(g.Prefix)
}

// targetKey is the front of the keys of all blocks on a target.
func targetKey(t Target) []byte {
	named := func(kind byte, name string) []byte {
		k := make([]byte, 0, len(name)+2+8)
		return append(append(append(k, kind), name...), 0)
	}
	switch {
	case t.VM != "":
		return named('v', t.VM)
	case t.Account != "":
		return named('a', t.Account)
	case t.List != "":
		return named('l', t.List)
	}
	return appendPrefixKey(append(make([]byte, 0, 19+8), 'p'), t.Prefix)
}

// dueKey orders by due time.
func dueKey(due time.Time, number uint64) []byte {
	return binary.BigEndian.AppendUint64(numberKey(uint64(toNanos(due))), number)
}

func activeKey(t Target, number uint64) []byte {
	return binary.BigEndian.AppendUint64(targetKey(t), number)
}

// overKey orders by the end of the block. It depends on nothing but the block, so that a restored
// node forgets blocks in the same order as the others.
func overKey(b *Block, number uint64) []byte {
	return binary.BigEndian.AppendUint64(numberKey(b.Index), number)
}
