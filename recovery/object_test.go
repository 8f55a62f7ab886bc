package recovery

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

func patch(list string, prefixes ...string) fsm.PatchList {
	op := fsm.PatchList{Name: list, Force: true}
	for _, p := range prefixes {
		op.Add = fsm.AppendPacked(op.Add, netip.MustParsePrefix(p))
	}
	return op
}

func owned(id, owner string, addresses ...string) fsm.DeclareVM {
	op := fsm.DeclareVM{ID: id, Name: id, Owner: owner}
	for _, a := range addresses {
		op.Addresses = append(op.Addresses, netip.MustParsePrefix(a))
	}
	return op
}

// TestWhatWasAgreedIsListed goes through all that a backup can lack besides holds in force: each is listed in words that say
// what, and either carried over, so that nothing is left, or said to be impossible.
func TestWhatWasAgreedIsListed(t *testing.T) {
	later := time.Unix(9_000_000, 0)
	source := fsm.ListSource{URL: "https://feed.example/x?xxxxx", Sealed: "hush", Interval: time.Hour, MaxBytes: 1 << 20}
	account := drop(fsm.Target{Account: "acme"})
	for name, c := range map[string]struct {
		both, now, backup []fsm.Op
		lost              []string // a part of each loss, in order
		agreed, unkept    bool
	}{
		"a hold that has yet to start": {now: []fsm.Op{fsm.AddBlock{Target: prefix("192.0.2.1/32"), StartsAt: later, Reason: "unpaid"}},
			lost: []string{"b1: drop on 192.0.2.1, reason unpaid, to start at 1970-04-15"}, agreed: true},
		"one that was put off in the backup": {now: []fsm.Op{fsm.AddBlock{Target: prefix("192.0.2.1/32"), StartsAt: later}},
			backup: []fsm.Op{fsm.AddBlock{Target: prefix("192.0.2.1/32"), StartsAt: later.Add(time.Hour)}}, lost: []string{"b1: "}, agreed: true},
		"one that is in force now, and was to start as early": {now: []fsm.Op{fsm.AddBlock{Target: prefix("192.0.2.1/32"), StartsAt: time.Unix(3, 0)}, fsm.FireBlock{ID: "b1", Revision: 1, At: time.Unix(3, 0)}},
			backup: []fsm.Op{fsm.AddBlock{Target: prefix("192.0.2.1/32"), StartsAt: time.Unix(3, 0)}}},
		"one that starts earlier in the backup": {now: []fsm.Op{fsm.AddBlock{Target: prefix("192.0.2.1/32"), StartsAt: later}}, backup: []fsm.Op{fsm.AddBlock{Target: prefix("192.0.2.1/32")}}},
		"a list": {now: []fsm.Op{patch("bad", "192.0.2.0/24", "198.51.100.7/32")},
			lost: []string{"list bad, there is not known, with 2 prefixes"}, agreed: true},
		"a list that is held": {now: []fsm.Op{patch("bad", "192.0.2.0/24"), drop(fsm.Target{List: "bad"})},
			lost: []string{"list bad, held by b1, there is not known, with 1 prefixes", "b1: drop on list bad"}},
		"what a list has": {both: []fsm.Op{patch("bad", "192.0.2.0/24"), drop(fsm.Target{List: "bad"})}, now: []fsm.Op{patch("bad", "198.51.100.7/32")},
			lost: []string{"list bad, held by b1, there lacks 1 prefixes"}},
		"a list in other words": {now: []fsm.Op{patch("bad", "192.0.2.0/24", "198.51.100.7/32"), drop(fsm.Target{List: "bad"})},
			backup: []fsm.Op{patch("bad", "192.0.2.0/24", "198.51.100.0/24"), drop(fsm.Target{List: "bad"})}},
		"where a list is from": {both: []fsm.Op{patch("bad", "192.0.2.0/24")}, now: []fsm.Op{fsm.DescribeList{Name: "bad", Source: &source}},
			lost: []string{"list bad, there is not loaded from https://feed.example/x?xxxxx"}, agreed: true},
		"an owner": {both: []fsm.Op{guest("vm1", 1, "203.0.113.1"), account}, now: []fsm.Op{owned("vm1", "acme")},
			lost: []string{"VM vm1 (vm1), held by b1, there is not of account acme"}},
		"another owner": {both: []fsm.Op{owned("vm1", "other", "203.0.113.1/32"), account}, now: []fsm.Op{owned("vm1", "acme", "203.0.113.1/32")},
			lost: []string{"VM vm1 (vm1), held by b1, there is not of account acme"}},
		"a VM of an account": {both: []fsm.Op{account}, now: []fsm.Op{guest("vm1", 1, "203.0.113.1"), owned("vm1", "acme")},
			lost: []string{"VM vm1 (vm1), held by b1, there is not known to be of account acme"}},
		"a declared address": {both: []fsm.Op{guest("vm1", 1, "203.0.113.1"), drop(fsm.Target{VM: "vm1"})}, now: []fsm.Op{owned("vm1", "", "203.0.113.8/32")},
			lost: []string{"VM vm1 (vm1), held by b1, there lacks the address 203.0.113.8/32"}},
		"a declared address of a VM that is held since": {both: []fsm.Op{owned("vm1", "", "203.0.113.1/32")}, now: []fsm.Op{owned("vm1", "", "203.0.113.8/32"), drop(fsm.Target{VM: "vm1"})},
			lost: []string{"VM vm1 (vm1), held by b1, there lacks the address 203.0.113.8/32", "b1: drop on vm1"}},
		"an interface": {both: []fsm.Op{fsm.PutNode{Node: fsm.Node{ID: "n1"}}, guest("vm1", 1, "203.0.113.1"), drop(fsm.Target{VM: "vm1"})}, now: []fsm.Op{guest("vm1", 9, "203.0.113.1")},
			lost: []string{"there lacks the hardware address 02:00:00:00:00:09"}},
		"a guard": {now: []fsm.Op{fsm.PutGuard{Prefix: netip.MustParsePrefix("192.0.2.9/32"), Note: "office"}},
			lost: []string{"guard of 192.0.2.9/32 (office): it could be blocked"}, agreed: true},
		"a guard of a VM": {now: []fsm.Op{owned("vm1", ""), fsm.PutGuard{VM: "vm1"}}, lost: []string{"guard of VM vm1: it could be blocked"}, agreed: true},
		"a promise to a VM": {both: []fsm.Op{owned("vm1", "")}, now: []fsm.Op{fsm.DeclareVM{ID: "vm1", DoNotBlockUntil: later}},
			lost: []string{"VM vm1 is not to be blocked for unpaid before 1970-04-15"}, agreed: true},
		"a promise to an account": {now: []fsm.Op{fsm.PutAccount{ID: "acme", DoNotBlockUntil: later}},
			lost: []string{"account acme is not to be blocked for unpaid before 1970-04-15"}, agreed: true},
		"a longer promise in the backup": {now: []fsm.Op{fsm.PutAccount{ID: "acme", DoNotBlockUntil: later}}, backup: []fsm.Op{fsm.PutAccount{ID: "acme", DoNotBlockUntil: later.Add(1)}}},
		"a VM that a guard frees": {both: []fsm.Op{owned("vm1", "acme", "203.0.113.1/32"), account}, backup: []fsm.Op{fsm.PutGuard{VM: "vm1", Note: "ours"}},
			lost: []string{"VM vm1 (vm1), held by b1, there is guarded ours"}, unkept: true},
		"an address that a guard frees": {both: []fsm.Op{owned("vm1", "acme", "203.0.113.1/32"), account}, backup: []fsm.Op{fsm.PutGuard{Prefix: netip.MustParsePrefix("203.0.113.0/24")}},
			lost: []string{"VM vm1 (vm1), held by b1, there is guarded (203.0.113.0/24: guard)"}, unkept: true},
		"a part of a list that a guard frees": {both: []fsm.Op{patch("bad", "192.0.2.0/24"), drop(fsm.Target{List: "bad"})}, backup: []fsm.Op{fsm.PutGuard{Prefix: netip.MustParsePrefix("192.0.2.9/32")}},
			lost: []string{"list bad, held by b1, there has a part that is guarded (192.0.2.9/32: guard)"}, unkept: true},
		"a part of a prefix that a node frees": {both: []fsm.Op{drop(prefix("192.0.2.0/24"))}, backup: []fsm.Op{fsm.PutNode{Node: fsm.Node{ID: "n1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}}},
			lost: []string{"b1: drop on 192.0.2.0/24, reason abuse, since 1970-01-01 00:00:01Z; a part of it is guarded"}, unkept: true},
	} {
		now, backup := newLog(t, slices.Concat(c.both, c.now)...), newLog(t, slices.Concat(c.both, c.backup)...)
		losses := Losses(now.view(), backup.view())
		if err := Try(backup.view(), losses); err != nil {
			t.Fatal(err)
		}
		var said []string
		for _, l := range losses {
			said = append(said, l.String())
			if l.Agreed != c.agreed || (l.Unkept != "") != c.unkept {
				t.Errorf("%s: %q agreed %v, unkept %q", name, l, l.Agreed, l.Unkept)
			}
			if strings.Contains(l.String(), "hush") {
				t.Errorf("%s: %q tells a secret", name, l)
			}
		}
		if !slices.EqualFunc(said, c.lost, strings.Contains) {
			t.Errorf("%s: losses %q, want %q", name, said, c.lost)
		}
		for _, op := range Keep(losses) {
			backup.do(op)
		}
		if left := Losses(now.view(), backup.view()); len(left) != 0 && !c.unkept {
			t.Errorf("%s: after all was kept: %v", name, names(left))
		}
	}
}

// TestANewerBackupLosesNothing: what was lifted, moved or changed after the state on the disk is no loss.
func TestANewerBackupLosesNothing(t *testing.T) {
	now, backup := newLog(t, base()...), newLog(t, base()...)
	for _, l := range []*log{now, backup} {
		l.do(owned("vm2", "acme", "203.0.113.2/32"))
		l.do(drop(fsm.Target{Account: "acme"}))
		l.do(patch("bad", "192.0.2.0/24", "198.51.100.7/32"))
		l.do(drop(fsm.Target{List: "bad"}))
	}
	backup.do(fsm.LiftBlock{ID: "b1"})
	backup.do(owned("vm2", "other"))
	remove := patch("bad", "198.51.100.7/32")
	remove.Add, remove.Remove = nil, remove.Add
	backup.do(remove)
	if got := Losses(now.view(), backup.view()); len(got) != 0 {
		t.Errorf("losses of an older state: %v", names(got))
	}
	if got := names(Losses(backup.view(), now.view())); len(got) != 0 {
		t.Errorf("losses of what was taken back: %v", got)
	}
}

// TestWhatComesBackIsListed has what was taken back after the backup.
func TestWhatComesBackIsListed(t *testing.T) {
	guard := fsm.PutGuard{Prefix: netip.MustParsePrefix("192.0.2.9/32"), Note: "office"}
	until := time.Unix(9_000_000, 0)
	ops := []fsm.Op{owned("vm1", ""), guard, fsm.PutAccount{ID: "acme", DoNotBlockUntil: until}, fsm.DeclareVM{ID: "vm1", DoNotBlockUntil: until}, fsm.AddBlock{Target: prefix("192.0.2.7/32"), StartsAt: until}}
	now, backup := newLog(t, ops...), newLog(t, ops...)
	if got := Returns(now.view(), backup.view()); len(got) != 0 {
		t.Fatalf("of equal states: %v", got)
	}
	for _, op := range []fsm.Op{fsm.DeleteGuard{Prefix: guard.Prefix}, fsm.PutAccount{ID: "acme"}, fsm.DeclareVM{ID: "vm1"}, fsm.LiftBlock{ID: "b1"}} {
		now.do(op)
	}
	var got []string
	for _, r := range Returns(now.view(), backup.view()) {
		got = append(got, r.String())
	}
	want := []string{"b1: drop on 192.0.2.7, reason manual, to start at 1970-04-15", "VM vm1 is not to be blocked", "account acme is not to be blocked", "guard of 192.0.2.9/32 (office)"}
	if !slices.EqualFunc(got, want, strings.Contains) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestNothingIsLostInSilence: after all losses were carried over, all that a node's kernel enforced of the one state it enforces of
// the other, whatever the two are, unless something is said not to be possible.
func TestNothingIsLostInSilence(t *testing.T) {
	addresses := []string{"192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32", "192.0.2.0/24", "198.51.100.1/32"}
	op := rapid.Custom(func(r *rapid.T) fsm.Op {
		vm, address, owner := rapid.SampledFrom([]string{"vm1", "vm2", "vm3"}), rapid.SampledFrom(addresses), rapid.SampledFrom([]string{"", "acme", "other"})
		switch rapid.IntRange(0, 8).Draw(r, "op") {
		case 0, 1:
			o := guest(vm.Draw(r, "vm"), byte(rapid.IntRange(1, 5).Draw(r, "mac")), strings.TrimSuffix(rapid.SampledFrom(addresses[:3]).Draw(r, "a"), "/32"))
			o.Epoch = uint64(rapid.IntRange(1, 3).Draw(r, "epoch"))
			return o
		case 2, 3:
			return owned(vm.Draw(r, "vm"), owner.Draw(r, "owner"), address.Draw(r, "a"))
		case 4:
			return drop(fsm.Target{VM: vm.Draw(r, "vm")})
		case 5:
			return drop(fsm.Target{Account: rapid.SampledFrom([]string{"acme", "other"}).Draw(r, "owner")})
		case 6:
			return drop(prefix(address.Draw(r, "a")))
		case 7:
			return fsm.LiftBlock{ID: fsm.FormatBlockID(uint64(rapid.IntRange(1, 4).Draw(r, "block")))}
		}
		return fsm.PutGuard{Prefix: netip.MustParsePrefix(address.Draw(r, "a"))}
	})
	local := enforce.Local{Node: "n1"}
	rapid.Check(t, func(r *rapid.T) {
		both := append([]fsm.Op{fsm.PutNode{Node: fsm.Node{ID: "n1"}}}, rapid.SliceOfN(op, 0, 8).Draw(r, "both")...)
		now, backup := newLog(t), newLog(t)
		for _, op := range both {
			now.may(op)
			backup.may(op)
		}
		for _, op := range rapid.SliceOfN(op, 0, 8).Draw(r, "now") {
			now.may(op)
		}
		losses := Losses(now.view(), backup.view())
		if err := Try(backup.view(), losses); err != nil {
			r.Fatal(err)
		}
		for _, op := range Keep(losses) {
			backup.do(op)
		}
		if slices.ContainsFunc(losses, func(l Loss) bool { return l.Unkept != "" }) {
			return
		}
		kernel := map[enforce.Element]bool{}
		for _, e := range enforce.NewCompiler().Reset(now.view(), local).Add {
			kernel[e] = true
		}
		if left := KernelLosses(maps.Keys(kernel), nil, backup.view(), local); len(left) != 0 {
			r.Fatalf("lost in silence: %v; listed were %v", names(left), names(losses))
		}
	})
}
