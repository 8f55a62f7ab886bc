package enforce

import (
	"hash/fnv"
	"iter"
	"maps"
)

// Map is an immutable map by name. A changed copy shares with the one before what they have in common,
// so that a change of one of ten thousand names costs little, and so does finding it again: Compiler
// asks with every change of the state whether the guests changed. The zero value is empty.
type Map[V any] struct {
	shards *[mapShards]*map[string]V // nil or shared: never written to once it is in a Map
}

const mapShards = 256

// MapOf returns a Map of what m has now.
func MapOf[V any](m map[string]V) Map[V] {
	return Map[V]{}.Replace(m, func(V, V) bool { return false })
}

func shardOf(name string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	return int(h.Sum32() % mapShards)
}

// IsZero says that the map was never made, which is not to be empty: nobody has said yet what it has.
func (m Map[V]) IsZero() bool { return m.shards == nil }

// Get returns the value of a name, the zero value if there is none.
func (m Map[V]) Get(name string) V {
	v, _ := m.Lookup(name)
	return v
}

// Lookup is Get that says whether there is one.
func (m Map[V]) Lookup(name string) (v V, ok bool) {
	if m.shards == nil {
		return v, false
	}
	if shard := m.shards[shardOf(name)]; shard != nil {
		v, ok = (*shard)[name]
	}
	return v, ok
}

// All walks the map, in no order.
func (m Map[V]) All() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		if m.shards == nil {
			return
		}
		for _, shard := range m.shards {
			if shard == nil {
				continue
			}
			for name, v := range *shard {
				if !yield(name, v) {
					return
				}
			}
		}
	}
}

// With returns a copy in which a name has a value.
func (m Map[V]) With(name string, v V) Map[V] {
	return m.change(name, func(shard map[string]V) { shard[name] = v })
}

// Without returns a copy that lacks a name.
func (m Map[V]) Without(name string) Map[V] {
	if _, ok := m.Lookup(name); !ok {
		return m
	}
	return m.change(name, func(shard map[string]V) { delete(shard, name) })
}

func (m Map[V]) change(name string, f func(map[string]V)) Map[V] {
	var shards [mapShards]*map[string]V
	if m.shards != nil {
		shards = *m.shards
	}
	i := shardOf(name)
	next := make(map[string]V)
	if shards[i] != nil {
		next = maps.Clone(*shards[i])
	}
	f(next)
	shards[i] = &next
	return Map[V]{&shards}
}

// Replace returns a Map of what full has now, which shares with m what is equal.
func (m Map[V]) Replace(full map[string]V, equal func(a, b V) bool) Map[V] {
	var next [mapShards]map[string]V
	for name, v := range full {
		i := shardOf(name)
		if next[i] == nil {
			next[i] = make(map[string]V, len(full)/mapShards+1)
		}
		next[i][name] = v
	}
	var shards [mapShards]*map[string]V
	for i := range next {
		var was map[string]V
		if m.shards != nil && m.shards[i] != nil {
			was = *m.shards[i]
		}
		switch {
		case was != nil && maps.EqualFunc(was, next[i], equal):
			shards[i] = m.shards[i]
		case next[i] != nil:
			shards[i] = &next[i]
		}
	}
	return Map[V]{&shards}
}

// changed walks the names whose values differ between two maps. What they share costs nothing.
func changed[V any](a, b Map[V], equal func(a, b V) bool) iter.Seq[string] {
	return func(yield func(string) bool) {
		if a.shards == b.shards {
			return
		}
		for i := range mapShards {
			var from, to map[string]V
			if a.shards != nil && a.shards[i] != nil {
				from = *a.shards[i]
			}
			if b.shards != nil && b.shards[i] != nil {
				to = *b.shards[i]
			}
			if a.shards != nil && b.shards != nil && a.shards[i] == b.shards[i] {
				continue
			}
			for name, v := range to {
				if was, ok := from[name]; (!ok || !equal(was, v)) && !yield(name) {
					return
				}
			}
			for name := range from {
				if _, ok := to[name]; !ok && !yield(name) {
					return
				}
			}
		}
	}
}
