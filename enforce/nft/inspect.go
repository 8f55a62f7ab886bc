package nft

import (
	"bytes"
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
)

// inspection is what a ruleset holds for us, and what must be done so that it drops all of that.
type inspection struct {
	families tables
	sets     map[setID]*liveSet // as they are after the repair
	held     map[enforce.Element]struct{}
	jumps    map[place]enforce.Treatment
	index    uint64
	// markerLost says that there are elements but no index.
	markerLost bool

	// problems says what is not as we leave it; each is solved by the repair below.
	problems []string

	tables       []family // to create or to wake
	createMarker bool
	dropMarker   bool // before it is created: it has another type
	create       []setID
	treatments   []treatmentFix
	load         grouped // elements that a set lacks
	junk         []setElements
	chains       []chainFix
	drop         []setName
}

type setName struct {
	family family
	name   string
}

type setElements struct {
	id       setID
	set      string
	elements []element
}

// treatmentFix creates the chain of a treatment, or gives it its rules again.
type treatmentFix struct {
	family    family
	treatment enforce.Treatment
	discard   bool // it is a base chain
}

// presence says which tables hold an element, and the chain that it has there.
type presence struct {
	families uint8
	chain    string
}

func (in *inspection) problem(format string, args ...any) {
	in.problems = append(in.problems, fmt.Sprintf(format, args...))
}

// candidate is the generation of a set that its table's rules look into.
type candidate struct {
	name       string
	generation int
	state      *setState
}

// inspect is pure. An element that only one of the tables holds counts as held: our own
// transactions change both, so another program deleted the other half.
func inspect(families tables, r ruleset, sizes func(base) uint32) inspection {
	in := inspection{
		families: families,
		sets:     make(map[setID]*liveSet),
		held:     make(map[enforce.Element]struct{}),
		jumps:    make(map[place]enforce.Treatment),
		load:     make(grouped),
	}
	in.inspectMarker(r[families.home()])

	candidates := make(map[setID]candidate)
	newest := make(map[setID]int) // generation
	for _, f := range in.families {
		if t := r[f]; !t.exists {
			in.problem("table %s is missing", f)
			in.tables = append(in.tables, f)
		} else if t.flags != 0 {
			in.problem("table %s has flags %#x", f, t.flags)
			in.tables = append(in.tables, f)
		}
		in.pick(f, r[f], candidates, newest)
	}

	in.inspectTreatments(r)
	present := make(map[base]map[key]presence)
	for _, b := range exactBases() {
		present[b] = make(map[key]presence)
	}
	for _, id := range sorted(maps.Keys(candidates)) {
		if !in.readElements(id, candidates[id], present) {
			in.problem("set %s %s has other chains than that of the other table", id.family, candidates[id].name)
			in.drop = append(in.drop, setName{id.family, candidates[id].name})
			delete(candidates, id)
		}
	}
	for b, keys := range present {
		for _, f := range in.families {
			if b.in(f) {
				id := setID{f, b}
				c, found := candidates[id]
				in.settle(id, c, found, newest[id], keys, sizes(b))
			}
		}
	}
	in.create = sorted(slices.Values(in.create))
	in.inspectChains(r)
	in.markerLost = len(in.held) > 0 && in.index == 0
	slices.Sort(in.problems)
	return in
}

func (in *inspection) inspectMarker(t *tableState) {
	s := t.sets[markerSet]
	switch {
	case s == nil:
		in.problem("set %s is missing", markerSet)
		in.createMarker = true
		return
	case s.keyType != markerType() || s.keyLen != 8 || s.flags != 0:
		in.problem("set %s has another type", markerSet)
		in.createMarker, in.dropMarker = true, true
		return
	}
	for _, e := range s.elements {
		// Of several, the highest: a kernel never goes back.
		in.index = max(in.index, markerIndex(e.key))
	}
}

// pick finds the generation of each set that is in use, and leaves the others to be dropped: they
// are what a process that ended in the middle of a growth left.
func (in *inspection) pick(f family, t *tableState, candidates map[setID]candidate, newest map[setID]int) {
	used := make(map[string]bool)
	for _, c := range t.chains {
		for _, rule := range c.rules {
			for name := range lookupSets(rule) {
				used[name] = true
			}
		}
	}
	better := func(a, b candidate) bool {
		if used[a.name] != used[b.name] {
			return used[a.name]
		}
		return cmp.Or(cmp.Compare(len(a.state.elements), len(b.state.elements)), cmp.Compare(a.generation, b.generation)) > 0
	}
	for name, s := range t.sets {
		b, generation, ours := parseName(name)
		if !ours {
			continue
		}
		id := setID{f, b}
		newest[id] = max(newest[id], generation)
		unreadable := (s.flags^b.flags())&(unix.NFT_SET_INTERVAL|unix.NFT_SET_MAP) != 0
		if !b.in(f) || unreadable || s.keyType != b.keyType() || s.keyLen != uint32(b.keyLen()) {
			in.problem("set %s %s has another type", f, name)
			in.drop = append(in.drop, setName{f, name})
			continue
		}
		c, old := candidate{name, generation, s}, candidates[id]
		if old.state != nil {
			if better(old, c) {
				c, old = old, c
			}
			in.problem("set %s %s is left over", f, old.name)
			in.drop = append(in.drop, setName{f, old.name})
		}
		candidates[id] = c
	}
}

// lookupSets walks the sets that a rule looks into.
func lookupSets(rule []byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, one := range attrs(rule) {
			for typ, v := range attrs(one) {
				if typ != unix.NFTA_EXPR_DATA && attrText(v) != "lookup" {
					break
				}
				if typ != unix.NFTA_EXPR_DATA {
					continue
				}
				for typ, v := range attrs(v) {
					if typ == unix.NFTA_LOOKUP_SET && !yield(attrText(v)) {
						return
					}
				}
			}
		}
	}
}

// readElements adds what a set holds to what is present. It returns false, and adds nothing, if the set
// contradicts what was read before.
func (in *inspection) readElements(id setID, c candidate, present map[base]map[key]presence) bool {
	keys := present[id.base]
	for _, e := range c.state.elements {
		if known, ok := keys[e.key]; ok && known.chain != e.chain {
			return false
		}
	}
	if keys == nil {
		keys = make(map[key]presence, len(c.state.elements))
		present[id.base] = keys
	}
	var junk []element
	for _, e := range c.state.elements {
		el, ok := elementOf(id.base, e.key, e.chain)
		if !ok {
			junk = append(junk, e)
			continue
		}
		keys[e.key] = presence{keys[e.key].families | id.family.bit(), e.chain}
		in.held[el] = struct{}{}
		if id.base.chained() {
			in.jumps[place{id.base, e.key}] = el.Treatment
		}
	}
	if len(junk) > 0 {
		in.problem("set %s %s has %d elements that are not ours", id.family, c.name, len(junk))
		in.junk = append(in.junk, setElements{id, c.name, junk})
	}
	return true
}

// inspectTreatments looks at the chains of treatments. One that is in one table only is in force.
func (in *inspection) inspectTreatments(r ruleset) {
	held := make(map[enforce.Treatment]bool)
	for _, f := range in.families {
		for name := range r[f].chains {
			if t, ok := enforce.Treatment(name).Terms(); ok && t.Chained() && f.treats(t.Kind) {
				held[enforce.Treatment(name)] = true
			}
		}
	}
	for _, t := range slices.Sorted(maps.Keys(held)) {
		in.held[enforce.Element{Treatment: t}] = struct{}{}
		terms, _ := t.Terms()
		for _, f := range in.families.with(terms.Kind) {
			c := r[f].chains[string(t)]
			if c != nil && c.sort == "" && sameTreatment(f, t, c.rules) {
				continue
			}
			in.problem("chain %s %s is missing or not as it should be", f, t)
			in.treatments = append(in.treatments, treatmentFix{f, t, c != nil && c.sort != ""})
		}
	}
}

func sameTreatment(f family, t enforce.Treatment, got [][]byte) bool {
	terms, _ := t.Terms()
	return sameExprs(f, treatmentRules(f, terms), got)
}

func sameExprs(f family, want [][]expr.Any, got [][]byte) bool {
	return slices.EqualFunc(want, got, func(want []expr.Any, got []byte) bool {
		b, err := marshalRule(f, want)
		return err == nil && bytes.Equal(b, got)
	})
}

func (f family) bit() uint8 {
	switch f {
	case bridge:
		return 1
	case inet:
		return 2
	case arp:
		return 8
	default:
		return 4
	}
}

// settle decides what becomes of one set, which must hold the keys.
func (in *inspection) settle(id setID, c candidate, found bool, newest int, keys map[key]presence, size uint32) {
	if len(keys) == 0 && id.base.transient() {
		if found {
			in.problem("set %s %s is empty", id.family, c.name)
			in.drop = append(in.drop, setName{id.family, c.name})
		}
		return
	}
	live := &liveSet{name: c.name, generation: c.generation, count: len(keys)}
	in.sets[id] = live
	if found {
		live.size = c.state.size
	}
	switch {
	case !found:
		in.problem("set %s %s is missing", id.family, id.base)
	case c.state.flags != id.base.flags() || !c.state.counter || c.state.size < uint32(len(keys)):
		in.problem("set %s %s has flags %#x, size %d, counters: %t", id.family, c.name, c.state.flags, c.state.size, c.state.counter)
		in.drop = append(in.drop, setName{id.family, c.name})
		for _, e := range c.state.elements {
			if _, ok := keys[e.key]; ok {
				in.load[id] = append(in.load[id], e)
			}
		}
	default:
		in.loadMissing(id, keys)
		return
	}
	live.generation, live.size = newest+1, fit(max(size, live.size), len(keys))
	live.name = id.base.name(live.generation)
	in.create = append(in.create, id)
	in.loadMissing(id, keys)
}

func (in *inspection) loadMissing(id setID, keys map[key]presence) {
	missing := 0
	for k, p := range keys {
		if p.families&id.family.bit() == 0 {
			in.load[id] = append(in.load[id], element{key: k, chain: p.chain})
			missing++
		}
	}
	if missing > 0 {
		in.problem("set %s %s lacks %d elements that the other table has", id.family, id.base, missing)
	}
}

func (in *inspection) inspectChains(r ruleset) {
	sets := listSets(in.sets)
	for _, c := range chains(in.families) {
		s := r[c.family].chains[c.name]
		switch {
		case !c.needed(sets):
			if s != nil {
				in.problem("chain %s %s is left over", c.family, c.name)
				in.chains = append(in.chains, chainFix{chain: c, remove: true})
			}
		case s == nil:
			in.problem("chain %s %s is missing", c.family, c.name)
			in.chains = append(in.chains, chainFix{chain: c, create: true})
		case !c.sameHook(s):
			in.problem("chain %s %s has another hook, priority or policy", c.family, c.name)
			in.chains = append(in.chains, chainFix{chain: c, create: true, discard: true})
		case !c.sameRules(sets, s.rules):
			in.problem("chain %s %s has other rules", c.family, c.name)
			in.chains = append(in.chains, chainFix{chain: c})
		}
	}
}

func (c chain) sameHook(s *chainState) bool {
	return s.sort == c.sort && (c.sort == "" || s.hook == c.hook && s.prio == c.priority && s.policy == policyAccept)
}

func (c chain) sameRules(sets setList, got [][]byte) bool {
	var want [][]expr.Any
	for _, r := range c.rules(sets) {
		want = append(want, r.exprs(c.family))
	}
	return sameExprs(c.family, want, got)
}
