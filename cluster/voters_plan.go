package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// role is what a node is to raft.
type role int

const (
	follows role = iota // no member of raft: takes the log as a stream
	staged              // a member without a vote: the step between following and voting
	votes
)

// candidate is what the leader knows of one node of the fleet when it plans the voters.
type candidate struct {
	id      string
	zone    string
	version string
	role    role
	leader  bool // this node leads; it is alive and votes
	barred  bool // drained, or could not become a voter: others are to vote in its place
	retired bool // no node of the fleet any more; barred too
	alive   bool
	dead    time.Duration // since when it is not alive
	// current says that it has, or had a moment ago, all that the leader had committed: a staged node in its
	// own log, as it acknowledged, a follower as it says itself.
	current bool
}

// stepKind is a change of one member of raft.
type stepKind int

const (
	stepNone     stepKind = iota
	stepStage             // make a follower a member without a vote
	stepPromote           // give a staged node a vote
	stepRemove            // make a voter or a staged node a follower
	stepHandOver          // let another voter lead: the leader itself is to be removed
)

// step is the next change on the way to the wanted voters.
type step struct {
	kind stepKind
	id   string
	why  string // for the log
	stay bool   // of stepHandOver: the leader goes on as a voter, there is nobody for its place
}

// planVoters says what to do next, one change at a time. It is pure. Its promises, which the tests check:
// from any situation that stays as it is, repeated steps end in a situation that asks for none. If all nodes are
// well, the voters are then the largest odd number that is neither above want nor above the nodes of the fleet;
// a barred one is among them only if there are no others, and no swap would spread them better over the zones. On the way, and whoever is not well, there
// is at every moment a majority of voters alive if there was one at the beginning; a voter is removed only after all
// that are to take its place have their votes; and no voter is removed without need: above all not because others
// that could vote are away at the moment.
func planVoters(all []candidate, want int, patience time.Duration) step {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(a.id, b.id) })
	target := chooseVoters(all, want, patience)
	in := func(c candidate) bool { return target[c.id] }

	voters := selected(all, func(c candidate) bool { return c.role == votes })
	ready := selected(all, func(c candidate) bool { return c.role == staged && in(c) && c.alive && c.current })
	for _, c := range all {
		switch {
		case c.role == staged && !in(c):
			return step{kind: stepRemove, id: c.id, why: "it is not needed as a voter any more"}
		case c.role == follows && in(c):
			return step{kind: stepStage, id: c.id, why: "it is to vote"}
		}
	}
	leaving := selected(voters, func(c candidate) bool { return !in(c) })
	// From an odd number of voters a single one more is a loss: the majority grows, what it bears does not. So
	// those that are to vote wait for each other, unless another voter leaves after.
	if len(ready) > 0 && (len(ready) > 1 || len(voters)%2 == 0 || len(leaving) > 0) {
		if c := ready[0]; bears(append(slices.Clone(voters), c)) {
			return step{kind: stepPromote, id: c.id, why: "it is up to date"}
		}
	}
	if selected(all, func(c candidate) bool { return in(c) && c.role != votes }) != nil {
		return step{} // wait for them
	}
	// The dead leave first: each of them makes the majority smaller that the others need.
	slices.SortStableFunc(leaving, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(order(a.alive), order(b.alive)), cmp.Compare(order(b.barred), order(a.barred)))
	})
	for _, c := range leaving {
		rest := selected(voters, func(v candidate) bool { return v.id != c.id })
		if !bears(rest) {
			continue
		}
		if c.leader {
			if len(leaving) > 1 { // it removes the others first
				continue
			}
			return step{kind: stepHandOver, id: c.id, why: whyRemoved(c, patience)}
		}
		return step{kind: stepRemove, id: c.id, why: whyRemoved(c, patience)}
	}
	for _, c := range voters {
		if c.leader && c.barred && slices.IndexFunc(voters, mayLead) >= 0 {
			return step{kind: stepHandOver, id: c.id, why: whyRemoved(c, patience), stay: true}
		}
	}
	return step{}
}

func mayLead(c candidate) bool { return c.role == votes && c.alive && !c.barred }

func whyRemoved(c candidate, patience time.Duration) string {
	switch {
	case c.barred:
		return "it is drained or no node of the fleet"
	case !c.alive && c.dead >= patience:
		return fmt.Sprintf("it has not been heard for %s", c.dead.Round(time.Second))
	default:
		return "others vote in its place"
	}
}

// chooseVoters chooses who is to vote. Voters stay unless there is a reason, and a dead one stays as long
// as there is nobody to take its place: fewer voters would bear fewer failures.
func chooseVoters(all []candidate, want int, patience time.Duration) map[string]bool {
	fit := selected(all, func(c candidate) bool { return !c.barred && c.role == votes && (c.alive || c.dead < patience) })
	gone := selected(all, func(c candidate) bool { return !c.barred && c.role == votes && !c.alive && c.dead >= patience })
	free := selected(all, func(c candidate) bool {
		return !c.barred && c.role != votes && c.alive && (c.role == staged || c.current)
	})
	size := min(want, len(selected(all, func(c candidate) bool { return !c.retired })))
	if size%2 == 0 {
		size--
	}
	// Barred voters stay until others can take their place: a fleet of three must not hang on one disk while one of
	// them is drained. But not those that can't take part any more.
	stay := slices.Concat(gone, selected(all, func(c candidate) bool { return c.barred && !c.retired && c.role == votes }))

	chosen := slices.Clone(fit)
	for len(chosen) > max(size, 1) {
		chosen = without(chosen, leastNeeded(chosen))
	}
	leader := slices.IndexFunc(all, func(c candidate) bool { return c.leader })
	version := ""
	if leader >= 0 {
		version = all[leader].version
	}
	for len(chosen) < size && len(free) > 0 {
		next := mostWanted(free, chosen, version)
		chosen, free = append(chosen, next), without(free, next)
	}
	// With those that are dead for a moment only it must still have a majority, or nobody barred could leave.
	for i := slices.IndexFunc(chosen, dead); i >= 0 && !bears(chosen) && len(free) > 0; i = slices.IndexFunc(chosen, dead) {
		next := mostWanted(free, without(chosen, chosen[i]), version)
		chosen, free = append(without(chosen, chosen[i]), next), without(free, next)
	}
	for len(chosen) < size && len(stay) > 0 {
		chosen, stay = append(chosen, stay[0]), stay[1:]
	}
	chosen = even(chosen)
	if len(chosen) == 0 { // nobody can take their place
		return ids(selected(all, func(c candidate) bool { return c.role == votes }))
	}
	if len(chosen) < size {
		return ids(chosen)
	}
	return ids(spread(chosen, free, version))
}

// even takes one away where an even number was chosen, because nodes that could vote are away: it would bear no
// more than one less. A barred one goes first, then one that does not vote yet. But two voters don't become
// one: there would be one disk only that has what was acknowledged.
func even(chosen []candidate) []candidate {
	if len(chosen)%2 == 1 {
		return chosen
	}
	for _, spare := range []func(candidate) bool{
		func(c candidate) bool { return c.barred },
		func(c candidate) bool { return c.role != votes },
		func(c candidate) bool { return len(chosen) > 2 && c.id == leastNeeded(chosen).id },
	} {
		for _, c := range slices.Backward(chosen) { // the most wanted are in front
			if spare(c) {
				return without(chosen, c)
			}
		}
	}
	return chosen
}

// spread swaps voters for others as long as that spreads them better over the zones. Only voters that are
// all alive are touched: a swap for the spread alone must not cost anything.
func spread(chosen, free []candidate, version string) []candidate {
	for slices.IndexFunc(chosen, dead) < 0 && len(free) > 0 {
		in := mostWanted(free, chosen, version)
		best, cost := candidate{}, crowding(chosen)
		for _, out := range chosen {
			if c := crowding(append(without(chosen, out), in)); c < cost && !out.leader {
				best, cost = out, c
			}
		}
		if best.id == "" {
			return chosen
		}
		chosen, free = append(without(chosen, best), in), without(free, in)
	}
	return chosen
}

// crowding is smaller the better nodes are spread over zones.
func crowding(of []candidate) int {
	in := map[string]int{}
	for _, c := range of {
		in[c.zone]++
	}
	sum := 0
	for _, n := range in {
		sum += n * n
	}
	return sum
}

// mostWanted is who should vote next: where the fewest vote, who is already on the way, who has the leader's
// version, the first by id.
func mostWanted(free, chosen []candidate, version string) candidate {
	in := map[string]int{}
	for _, c := range chosen {
		in[c.zone]++
	}
	return slices.MinFunc(free, func(a, b candidate) int {
		return cmp.Or(
			cmp.Compare(in[a.zone], in[b.zone]),
			cmp.Compare(order(b.role == staged), order(a.role == staged)),
			cmp.Compare(order(b.version == version), order(a.version == version)),
			cmp.Compare(a.id, b.id),
		)
	})
}

// leastNeeded is who should vote no longer when there are too many: the dead, then one of the most crowded zone; not
// the leader; the last by id.
func leastNeeded(chosen []candidate) candidate {
	in := map[string]int{}
	for _, c := range chosen {
		in[c.zone]++
	}
	return slices.MinFunc(chosen, func(a, b candidate) int {
		return cmp.Or(
			cmp.Compare(order(a.leader), order(b.leader)),
			cmp.Compare(order(a.alive), order(b.alive)),
			cmp.Compare(in[b.zone], in[a.zone]),
			cmp.Compare(b.id, a.id),
		)
	})
}

// bears says that a majority of the voters is alive.
func bears(voters []candidate) bool {
	alive := selected(voters, func(c candidate) bool { return c.alive })
	return len(alive) > len(voters)/2
}

func dead(c candidate) bool { return !c.alive }

func selected(of []candidate, ok func(candidate) bool) []candidate {
	var out []candidate
	for _, c := range of {
		if ok(c) {
			out = append(out, c)
		}
	}
	return out
}

func without(of []candidate, one candidate) []candidate {
	return selected(of, func(c candidate) bool { return c.id != one.id })
}

func ids(of []candidate) map[string]bool {
	out := make(map[string]bool, len(of))
	for _, c := range of {
		out[c.id] = true
	}
	return out
}

// order makes false come before true.
func order(b bool) int {
	if b {
		return 1
	}
	return 0
}
