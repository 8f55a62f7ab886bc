package fsm

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func held(ids []*Block) (out []string) {
	for _, b := range ids {
		out = append(out, b.ID)
	}
	return out
}

// TestReasonsLiftOnlyThemselves is the promise to billing: paid lifts unpaid, never abuse.
func TestReasonsLiftOnlyThemselves(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, DeclareVM{ID: "v1", Owner: "acct-42"})
	for _, reason := range []string{ReasonUnpaid, ReasonAbuse, ReasonUnpaid} {
		log.ok(t, AddBlock{Target: Target{Account: "acct-42"}, Reason: reason})
	}
	log.ok(t, AddBlock{Target: Target{VM: "v1"}, Reason: ReasonUnpaid})
	got := log.ok(t, LiftReason{Target: Target{Account: "acct-42"}, Reason: ReasonUnpaid})
	if len(got.Items) != 2 || got.Items[0].Block.ID != "b1" || got.Items[1].Block.ID != "b3" {
		t.Errorf("lifted %+v", got.Items)
	}
	vm, _ := s.View().VM("v1")
	if ids := held(s.View().Holding(vm)); !slices.Equal(ids, []string{"b2", "b4"}) {
		t.Errorf("v1 is held by %v, want the abuse of its account and its own block", ids)
	}
	log.refused(t, LiftReason{Target: Target{Account: "acct-42"}, Reason: ReasonUnpaid}, CodeNotFound, "reason")
}

// TestAnAccountHoldsItsVMs of now and later, and none that leaves it.
func TestAnAccountHoldsItsVMs(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, AddBlock{Target: Target{Account: "a"}})
	holds := func(id string) bool {
		vm, _ := s.View().VM(id)
		return len(s.View().Holding(vm)) > 0
	}
	log.ok(t, DeclareVM{ID: "v1", Owner: "a"})
	log.ok(t, DeclareVM{ID: "v2", Owner: "b"})
	if !holds("v1") || holds("v2") {
		t.Error("the account holds the wrong VMs")
	}
	log.ok(t, DeclareVM{ID: "v1", Owner: "b"})
	log.ok(t, DeclareVM{ID: "v2", Owner: "a"})
	if holds("v1") || !holds("v2") {
		t.Error("the hold did not follow the owner")
	}
}

func TestDelayedBlockLivesItsLife(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	start := log.time.Add(time.Hour)
	b := log.ok(t, AddBlock{Target: Target{Account: "a"}, StartsAt: start, Duration: 2 * time.Hour}).Block
	if b.State != BlockPending || !b.StartsAt.Equal(start) || !b.EndsAt.Equal(start.Add(2*time.Hour)) || s.View().CountActive() != 0 {
		t.Fatalf("got %+v", b)
	}
	fire := func(at time.Time, revision uint64) FireBlock { return FireBlock{ID: b.ID, Revision: revision, At: at} }
	log.refused(t, fire(start.Add(-time.Nanosecond), b.Revision), CodeConflict, "at")
	log.refused(t, fire(start, b.Revision+1), CodeRevision, "revision")
	started := log.ok(t, fire(start, b.Revision)).Block
	if started.State != BlockActive || !started.Since().Equal(start) || started.Index == b.Index {
		t.Fatalf("got %+v", started)
	}
	log.refused(t, fire(start, b.Revision), CodeRevision, "revision") // once
	log.refused(t, fire(b.EndsAt.Add(-1), started.Revision), CodeConflict, "at")
	ended := log.ok(t, fire(b.EndsAt.Add(time.Minute), started.Revision)).Block
	if ended.State != BlockEnded || ended.LiftedBy != ByDueTime || s.View().CountActive() != 0 || s.View().CountDue() != 0 {
		t.Fatalf("got %+v", ended)
	}
	log.refusedSaying(t, LiftBlock{ID: b.ID}, CodeConflict, "id", "ended")
}

func TestTimesCanChangeWhilePending(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	start := log.time.Add(time.Hour)
	b := log.ok(t, AddBlock{Target: Target{Account: "a"}, StartsAt: start, EndsAt: start.Add(time.Hour), ConfirmWithin: time.Minute}).Block
	later := start.Add(30 * time.Minute)
	b = log.ok(t, PatchBlock{ID: b.ID, IfRevision: b.Revision, StartsAt: &later}).Block
	if !b.StartsAt.Equal(later) || !b.ConfirmBy.Equal(later.Add(time.Minute)) || !b.Due().Equal(later) {
		t.Errorf("got %+v", b)
	}
	log.refused(t, PatchBlock{ID: b.ID, IfRevision: b.Revision - 1}, CodeRevision, "if_revision")
	log.refused(t, PatchBlock{ID: b.ID, EndsAt: &later}, CodeInvalid, "ends_at")
	b = log.ok(t, PatchBlock{ID: b.ID, StartsAt: new(time.Time), EndsAt: new(time.Time)}).Block
	if b.State != BlockActive || !b.EndsAt.IsZero() || b.ConfirmBy.Sub(b.StartedAt) != time.Minute {
		t.Errorf("got %+v", b)
	}
	log.refused(t, PatchBlock{ID: b.ID, StartsAt: &later}, CodeConflict, "starts_at")
	if b = log.ok(t, PatchBlock{ID: b.ID, Confirm: true}).Block; !b.ConfirmBy.IsZero() || !b.Due().IsZero() {
		t.Errorf("got %+v", b)
	}
	// The state time may come from one wrong clock, so that an end before it is not yet an end.
	past := log.time.Add(-time.Second)
	if b = log.ok(t, PatchBlock{ID: b.ID, EndsAt: &past}).Block; b.State != BlockActive || !b.Due().Equal(past) {
		t.Errorf("an end that has passed: %+v", b)
	}
	log.refused(t, FireBlock{ID: b.ID, Revision: b.Revision, At: past.Add(-time.Minute)}, CodeConflict, "at")
	if b = log.ok(t, FireBlock{ID: b.ID, Revision: b.Revision, At: past}).Block; b.State != BlockEnded {
		t.Errorf("fired at its end: %+v", b)
	}
	b = log.ok(t, AddBlock{Target: Target{Account: "a"}, StartsAt: start}).Block
	log.refused(t, PatchBlock{ID: b.ID, StartsAt: new(time.Time), EndsAt: &past}, CodeInvalid, "ends_at")
}

func TestUnconfirmedBlockEnds(t *testing.T) {
	log := newLog(NewStore())
	b := log.ok(t, AddBlock{Target: Target{Account: "a"}, ConfirmWithin: time.Minute}).Block
	ended := log.ok(t, FireBlock{ID: b.ID, Revision: b.Revision, At: b.ConfirmBy}).Block
	if ended.State != BlockEnded || ended.LiftedBy != ByNoConfirmation {
		t.Errorf("got %+v", ended)
	}
}

func TestUnpaidWaits(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	until := log.time.Add(24 * time.Hour)
	log.ok(t, DeclareVM{ID: "v1", Owner: "a"})
	pending := log.ok(t, AddBlock{Target: Target{VM: "v1"}, Reason: ReasonUnpaid, StartsAt: log.time.Add(time.Hour), Duration: time.Hour}).Block
	log.ok(t, PutAccount{ID: "a", DoNotBlockUntil: until})
	if b, _ := s.View().Block(pending.ID); !b.StartsAt.Equal(until) || b.EndsAt.Sub(b.StartsAt) != time.Hour {
		t.Errorf("the pending block was not put off: %+v", b)
	}
	for _, target := range []Target{{VM: "v1"}, {Account: "a"}} {
		log.refusedSaying(t, AddBlock{Target: target, Reason: ReasonUnpaid}, CodeNotYet, "reason", "account a")
		log.ok(t, AddBlock{Target: target, Reason: ReasonAbuse})
		log.ok(t, AddBlock{Target: target, Reason: ReasonUnpaid, StartsAt: until})
	}
}

func TestWideBlocksNeedConsent(t *testing.T) {
	log := newLog(NewStore())
	for _, id := range []string{"v1", "v2", "v3"} {
		log.ok(t, DeclareVM{ID: id, Owner: "a", Addresses: []netip.Prefix{prefix("10.1.2." + id[1:] + "/32")}})
	}
	settings := DefaultSettings()
	settings.MaxVMs, settings.MaxAddresses = 2, 256
	log.ok(t, PutSettings{Settings: settings})
	for _, target := range []Target{{Account: "a"}, {Prefix: prefix("10.1.2.0/24")}, {Prefix: prefix("10.2.0.0/23")}} {
		log.refused(t, AddBlock{Target: target}, CodeTooMany, "target")
		log.ok(t, AddBlock{Target: target, Force: true})
		log.ok(t, AddBlock{Target: target, ConfirmWithin: time.Minute})
	}
	log.ok(t, PutGuard{VM: "v3"})
	log.ok(t, AddBlock{Target: Target{Account: "a"}}) // two of three are left
}

// TestGuardedVM: nothing holds it, whichever way it is named.
func TestGuardedVM(t *testing.T) {
	log := newLog(NewStore())
	log.ok(t, DeclareVM{ID: "v1", Name: "billing", Addresses: []netip.Prefix{prefix("198.51.100.7/32")}})
	b := log.ok(t, onVM("v1")).Block
	log.refusedSaying(t, PutGuard{VM: "billing"}, CodeConflict, "vm", b.ID)
	log.ok(t, LiftBlock{ID: b.ID})
	log.ok(t, PutGuard{VM: "billing"})
	log.refused(t, onVM("v1"), CodeGuardConflict, "target.vm")
	log.refused(t, onPrefix("198.51.100.0/24"), CodeGuardConflict, "target.prefix")
	log.ok(t, DeclareVM{ID: "v1", Addresses: []netip.Prefix{prefix("198.51.100.8/32")}}) // its own guard is none against itself
	held := log.ok(t, onPrefix("198.51.100.7/32")).Block
	log.refused(t, onPrefix("198.51.100.8/32"), CodeGuardConflict, "target.prefix")
	// An address that is given to it afterwards would lift what holds that address.
	for _, more := range []string{"198.51.100.7/32", "198.51.100.0/24"} {
		log.refusedSaying(t, DeclareVM{ID: "v1", Addresses: []netip.Prefix{prefix("198.51.100.8/32"), prefix(more)}}, CodeGuardConflict, "addresses", held.ID)
	}
	if guards := log.stores[0].View().GuardedPrefixes(); slices.ContainsFunc(guards, func(g GuardedPrefix) bool { return g.Prefix.Overlaps(held.Target.Prefix) }) {
		t.Error("a refused declaration guards what is blocked")
	}
	log.ok(t, DeleteGuard{VM: "v1"})
	log.ok(t, onVM("v1"))
}

func TestKindsNeedTheirParameters(t *testing.T) {
	log := newLog(NewStore())
	on := Target{Account: "a"}
	for field, ops := range map[string][]AddBlock{
		"rate": {
			{Kind: Limit}, {Kind: Limit, Rate: Rate{Bits: 1e6, Packets: 5}}, {Kind: Limit, Rate: Rate{Bits: 10}},
			{Kind: Drop, Rate: Rate{Bits: 1e6}},
		},
		"ports":       {{Kind: Ports}, {Kind: Reject, Ports: []PortRange{{6, 25, 25}}}},
		"ports[0]":    {{Kind: Ports, Ports: []PortRange{{6, 26, 25}}}, {Kind: Ports, Ports: []PortRange{{1, 1, 2}}}, {Kind: Ports, Ports: []PortRange{{}}}},
		"redirect_to": {{RedirectTo: netip.MustParseAddrPort("192.0.2.1:80")}, {Kind: Redirect, RedirectTo: netip.MustParseAddrPort("192.0.2.1:0")}},
		"direction":   {{Kind: Redirect, Direction: Out}},
	} {
		if field == "redirect_to" { // what only the node itself reaches
			for _, to := range []string{"127.0.0.1:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "169.254.169.254:80", "[fe80::1]:80", "224.0.0.1:80", "0.0.0.0:80"} {
				ops = append(ops, AddBlock{Kind: Redirect, RedirectTo: netip.MustParseAddrPort(to)})
			}
		}
		for _, op := range ops {
			op.Target = on
			log.refused(t, op, CodeInvalid, field)
		}
	}
	for _, op := range []AddBlock{
		{Kind: Limit, Rate: Rate{Packets: 1}}, {Kind: Ports, Ports: []PortRange{{6, 25, 25}, {58, 0, 0}}, Direction: Out},
		{Kind: Reject}, {Kind: Redirect, RedirectTo: netip.MustParseAddrPort("192.0.2.1:80")},
	} {
		op.Target = on
		log.ok(t, op)
	}
}

// TestAtomicBatch: all or nothing, and the refusal that stopped it is named.
func TestAtomicBatch(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, onPrefix("198.51.100.1/32"))
	before := s.View()
	r := log.do(t, Batch{Atomic: true, Ops: []Op{
		onPrefix("198.51.100.2/32"), LiftBlock{ID: "b1"}, onVM("nobody"), onPrefix("198.51.100.3/32"),
	}})
	for i, want := range []Code{CodeAborted, CodeAborted, CodeNotFound, CodeAborted} {
		if r.Items[i].Err == nil || r.Items[i].Err.Code != want || r.Items[i].Block != nil {
			t.Errorf("element %d: %+v, want %s", i, r.Items[i], want)
		}
	}
	v := s.View()
	if b, _ := v.Block("b1"); v.CountBlocks() != 1 || b.State != BlockActive || len(v.events) != len(before.events) {
		t.Errorf("something is left of the batch: %d blocks, %d events", v.CountBlocks(), len(v.events))
	}
	if next := log.ok(t, onPrefix("198.51.100.2/32")).Block; next.ID != "b2" {
		t.Errorf("the next block is %s", next.ID)
	}
}

func TestImpact(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, running("v1", "n1", 1, "203.0.113.5"))
	log.ok(t, running("v2", "n2", 1, "203.0.113.9"))
	log.ok(t, running("v3", "n3", 1, "198.51.100.1"))
	log.ok(t, onVM("v2"))
	got, refused := s.View().Impact(Target{Prefix: prefix("203.0.113.0/24")})
	if refused != nil || got.CountVMs != 2 || !slices.Equal(got.VMs, []string{"v1", "v2"}) || !slices.Equal(got.Nodes, []string{"n1", "n2"}) ||
		got.Addresses != 256 || len(got.Guards) != 0 || !slices.Equal(held(got.Overlaps), []string{"b1"}) {
		t.Errorf("got %+v, %v", got, refused)
	}
	log.ok(t, PutGuard{Prefix: prefix("203.0.113.128/25"), Note: "office"})
	if got, _ = s.View().Impact(Target{Prefix: prefix("203.0.113.0/24")}); len(got.Guards) != 1 || got.Guards[0].Why != "guard: office" {
		t.Errorf("guards are %+v", got.Guards)
	}
	log.ok(t, DeclareVM{ID: "v3", Owner: "a", Addresses: []netip.Prefix{prefix("198.51.100.2/32")}})
	log.ok(t, DeclareVM{ID: "v4", Owner: "a", Addresses: []netip.Prefix{prefix("198.51.100.4/32")}})
	log.ok(t, PutGuard{Prefix: prefix("198.51.100.2/32"), Note: "its name server"})
	log.ok(t, PutGuard{VM: "v4"})
	if got, _ = s.View().Impact(Target{VM: "v3"}); len(got.Guards) != 1 || got.Guards[0].Why != "guard: its name server" {
		t.Errorf("guards of a VM are %+v", got.Guards)
	}
	if got, _ = s.View().Impact(Target{Account: "a"}); len(got.Guards) != 2 || got.Guards[1].Why != "address of guarded VM v4" || got.CountVMs != 1 {
		t.Errorf("an account's VMs are %v, its guards %+v", got.VMs, got.Guards)
	}
}

// TestManyBlocksOnAList cost one walk over the VMs, not one each, and each sees what came before it in its batch.
func TestManyBlocksOnAList(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	var vms []Op
	for i := range MaxBatchOps {
		vms = append(vms, DeclareVM{ID: fmt.Sprintf("v%d", i), Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)}})
	}
	log.ok(t, Batch{Ops: vms})
	settings := DefaultSettings()
	settings.MaxVMs = 1
	log.ok(t, PutSettings{Settings: settings})
	log.upload(t, "feed", "10.0.0.1/32", "192.0.2.0/24")
	on := AddBlock{Target: Target{List: "feed"}}
	begin := time.Now()
	log.ok(t, on)
	one := time.Since(begin)
	many := make([]Op, 2000)
	for i := range many {
		many[i] = on
	}
	begin = time.Now()
	log.ok(t, Batch{Ops: many})
	if took := time.Since(begin); took > 200*one && took > time.Second {
		t.Errorf("2000 blocks on a list took %s, one took %s", took, one)
	}
	refused := func(changes ...Op) {
		t.Helper()
		got := log.ok(t, Batch{Ops: append(append([]Op{on}, changes...), on)})
		if last := got.Items[len(got.Items)-1]; got.Items[0].Err != nil || last.Err == nil || last.Err.Code != CodeTooMany {
			t.Errorf("%v: the first gave %v, the last %v", changes, got.Items[0].Err, last.Err)
		}
	}
	second := DeclareVM{ID: "v2", Addresses: []netip.Prefix{prefix("192.0.2.2/32")}}
	refused(second)
	log.ok(t, DeclareVM{ID: "v2"})
	refused(PatchList{Name: "feed", Add: packed("10.0.0.3/32"), Force: true})
	log.ok(t, PatchList{Name: "feed", Remove: packed("10.0.0.3/32")})
	settings.MaxVMs = 0
	refused(PutSettings{Settings: settings})
	settings.MaxVMs = 1
	log.ok(t, PutSettings{Settings: settings})
	log.ok(t, DeclareVM{ID: "v2", Addresses: second.Addresses})
	log.ok(t, PutGuard{VM: "v2"})
	refused(DeleteGuard{VM: "v2"})
}
