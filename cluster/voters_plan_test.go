package cluster

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const patient = 5 * time.Minute

// situation draws a fleet with a leader and a majority of voters alive, or with all nodes well.
func situation(t *rapid.T, zones []string, well bool) []candidate {
	n := rapid.IntRange(1, 12).Draw(t, "nodes")
	all := make([]candidate, n)
	voters, dead := 1, 0
	for i := range all {
		c := &all[i]
		c.id, c.zone = fmt.Sprintf("n%02d", i), rapid.SampledFrom(zones).Draw(t, "zone")
		c.version = rapid.SampledFrom([]string{"1", "2"}).Draw(t, "version")
		c.role = rapid.SampledFrom([]role{follows, follows, staged, votes}).Draw(t, "role")
		c.barred = rapid.IntRange(0, 5).Draw(t, "barred") == 0
		c.retired = c.barred && rapid.Bool().Draw(t, "retired")
		if well {
			c.alive, c.current = true, true
		} else {
			c.alive = rapid.IntRange(0, 3).Draw(t, "alive") > 0
			c.current = c.alive && rapid.IntRange(0, 5).Draw(t, "current") > 0
		}
		if !c.alive {
			c.dead = rapid.SampledFrom([]time.Duration{time.Minute, time.Hour}).Draw(t, "dead")
		}
		if i == 0 {
			c.role, c.leader, c.alive, c.current, c.dead = votes, true, true, true, 0
			continue
		}
		if c.role == votes {
			if voters++; !c.alive {
				dead++
			}
			if dead > (voters-1)/2 { // the leader would have no majority
				c.alive, c.current, c.dead = true, true, 0
				dead--
			}
		}
	}
	return all
}

// take carries out a step, as raft would.
func take(t *rapid.T, all []candidate, s step) {
	i := slices.IndexFunc(all, func(c candidate) bool { return c.id == s.id })
	if i < 0 {
		t.Fatalf("%+v is of nobody", s)
	}
	c := &all[i]
	switch s.kind {
	case stepStage:
		if c.role != follows || c.barred || !c.alive || !c.current {
			t.Fatalf("%+v of %+v", s, *c)
		}
		c.role = staged
	case stepPromote:
		if c.role != staged || c.barred || !c.alive || !c.current {
			t.Fatalf("%+v of %+v", s, *c)
		}
		c.role = votes
	case stepRemove:
		if c.role == follows || c.leader {
			t.Fatalf("%+v of %+v", s, *c)
		}
		c.role = follows
	case stepHandOver:
		heirs := selected(all, mayLead)
		if len(heirs) == 0 {
			heirs = selected(all, func(o candidate) bool { return o.role == votes && o.alive && o.id != c.id })
		}
		if !c.leader || len(heirs) == 0 {
			t.Fatalf("%+v of %+v, %d could take over", s, *c, len(heirs))
		}
		heir := rapid.SampledFrom(heirs).Draw(t, "heir").id
		for k := range all {
			all[k].leader = all[k].id == heir
		}
	case stepNone:
	}
}

func voting(all []candidate) []candidate {
	return selected(all, func(c candidate) bool { return c.role == votes })
}

func TestPlanEndsWellFromAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		zones := rapid.SampledFrom([][]string{{""}, {"a", "b", "c"}, {"a", "b"}, {"a", "b", "c", "d", "e", "f"}}).Draw(t, "zones")
		well := rapid.Bool().Draw(t, "well")
		all := situation(t, zones, well)
		want := rapid.SampledFrom([]int{1, 3, 5, 7}).Draw(t, "want")
		before := slices.Clone(all)
		fit := selected(all, func(c candidate) bool { return c.role == votes && !c.barred && c.alive })
		steps := 0
		for s := planVoters(all, want, patient); s.kind != stepNone; s = planVoters(all, want, patient) {
			if s.kind == stepRemove && slices.ContainsFunc(voting(all), func(c candidate) bool { return c.id == s.id }) {
				wanted := chooseVoters(all, want, patient)
				for _, c := range all {
					if wanted[c.id] && c.role != votes {
						t.Fatalf("%+v, but %s has no vote yet", s, c.id)
					}
				}
			}
			take(t, all, s)
			if !bears(voting(all)) {
				t.Fatalf("after %+v no majority is alive: %+v", s, all)
			}
			if steps++; steps > 40 {
				t.Fatalf("no end after %d steps", steps)
			}
		}

		end := voting(all)
		members := selected(all, func(c candidate) bool { return !c.retired })
		usable := selected(all, func(c candidate) bool { return !c.barred })
		waiting := selected(all, func(c candidate) bool { return c.role == staged })
		for _, c := range waiting { // for those that are not up to date yet, or for a partner
			if c.barred || !c.alive {
				t.Errorf("%+v is left staged", c)
			}
		}
		most := min(want, len(members))
		if most -= (most + 1) % 2; well && len(usable) >= 1 {
			barred := selected(end, func(c candidate) bool { return c.barred })
			if len(end) > most || len(end)%2 == 0 && len(end) > len(voting(before)) || len(waiting) > 0 {
				t.Errorf("%d vote, at most %d should: %+v, then %+v", len(end), most, before, all)
			}
			if len(usable) >= most && (len(end) != most || len(barred) > 0) {
				t.Errorf("%d vote, %d should, %d of them are barred: %+v", len(end), most, len(barred), all)
			}
		}
		left := 0
		for _, c := range fit {
			if !slices.ContainsFunc(end, func(e candidate) bool { return e.id == c.id }) {
				left++
			}
		}
		if len(zones) == 1 && left > max(0, len(fit)-most)+1 || left > 0 && len(end) < min(2, len(fit), most) {
			t.Errorf("%d living voters left: %+v, then %+v", left, before, all)
		}
		if len(waiting) == 0 && len(end) > len(voting(before)) && len(end)%2 == 0 {
			t.Errorf("%d voters became %d: %+v", len(voting(before)), len(end), all)
		}
		// Spread: no swap would be better.
		if !well || len(usable) < most {
			return
		}
		for _, out := range end {
			for _, in := range all {
				if in.role != votes && in.alive && in.current && !in.barred && !out.leader &&
					crowding(append(without(end, out), in)) < crowding(end) {
					t.Errorf("%s instead of %s would spread better: %+v", in.id, out.id, all)
				}
			}
		}
	})
}

func TestPlanGrowsAndReplaces(t *testing.T) {
	all := []candidate{{id: "a", role: votes, leader: true, alive: true, current: true}}
	expect := func(want int, kind stepKind, id string) {
		t.Helper()
		s := planVoters(all, want, patient)
		if s.kind != kind || s.id != id {
			t.Fatalf("step %+v, want %d of %q", s, kind, id)
		}
		for i := range all {
			if all[i].id != s.id {
				continue
			}
			all[i].role = map[stepKind]role{stepStage: staged, stepPromote: votes, stepRemove: follows}[s.kind]
		}
	}
	expect(3, stepNone, "") // alone
	all = append(all, candidate{id: "b", alive: true, current: true})
	expect(3, stepNone, "") // two voters bear no more than one
	all = append(all, candidate{id: "c", alive: true, current: false})
	expect(3, stepNone, "")
	all[2].current = true
	expect(3, stepStage, "b")
	expect(3, stepStage, "c")
	all[2].current = false
	expect(3, stepNone, "") // b alone would be the second of two
	all[2].current = true
	expect(3, stepPromote, "b")
	expect(3, stepPromote, "c")
	expect(3, stepNone, "")

	all = append(all, candidate{id: "d", alive: true, current: true}, candidate{id: "e", alive: true, current: true})
	expect(3, stepNone, "")
	all[1].alive, all[1].dead = false, patient-time.Second
	expect(3, stepNone, "") // not yet
	all[1].dead = patient
	expect(3, stepStage, "d")
	expect(3, stepPromote, "d")
	expect(3, stepRemove, "b")
	expect(3, stepNone, "")
	all[1].alive, all[1].dead, all[1].current = true, 0, true
	expect(3, stepNone, "") // b is back, and follows

	all[0].barred = true // the leader is drained
	expect(3, stepStage, "b")
	expect(3, stepPromote, "b")
	if s := planVoters(all, 3, patient); s.kind != stepHandOver || s.id != "a" {
		t.Fatalf("step %+v", s)
	}
	all[0].leader, all[1].leader = false, true
	expect(3, stepRemove, "a")
	expect(3, stepNone, "")
}

// TestADeadVoterStaysWithoutSubstitute: to remove it would make the fleet bear fewer failures, or none.
func TestADeadVoterStaysWithoutSubstitute(t *testing.T) {
	all := []candidate{
		{id: "a", role: votes, leader: true, alive: true, current: true},
		{id: "b", role: votes, alive: true, current: true},
		{id: "c", role: votes, dead: time.Hour},
		{id: "d", dead: time.Hour},
	}
	if s := planVoters(all, 3, patient); s.kind != stepNone {
		t.Errorf("step %+v", s)
	}
	all[2].barred = true
	if s := planVoters(all, 3, patient); s.kind != stepNone {
		t.Errorf("step %+v", s)
	}
	all[2].retired = true // it can't vote any more in any case, and the other two go on
	if s := planVoters(all, 3, patient); s.kind != stepRemove || s.id != "c" {
		t.Errorf("step %+v", s)
	}
	all[2].role = follows
	if s := planVoters(all, 3, patient); s.kind != stepNone { // d may come back
		t.Errorf("step %+v", s)
	}
	all[3].barred, all[3].retired = true, true
	if s := planVoters(all, 3, patient); s.kind != stepRemove || s.id != "b" { // two nodes in all
		t.Errorf("step %+v", s)
	}
}
