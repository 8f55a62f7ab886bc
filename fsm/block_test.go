package fsm

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func onPrefix(s string) AddBlock { return AddBlock{Target: Target{Prefix: prefix(s)}, Force: true} }

func onVM(ref string) AddBlock { return AddBlock{Target: Target{VM: ref}} }

func TestBlockHasDefaultsAndStamps(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	b := log.ok(t, onPrefix("198.51.100.7/32")).Block
	want := Block{
		ID: "b1", Target: Target{Prefix: prefix("198.51.100.7/32")}, Kind: Drop, Direction: Both,
		Reason: "manual", Actor: "token:test", State: BlockActive, CreatedAt: log.time.UTC(), Index: 1, Revision: 1,
	}
	if !equalBlocks(b, &want) {
		t.Errorf("got %+v\nwant %+v", *b, want)
	}
	log.actor = "unix:0"
	lifted := log.ok(t, LiftBlock{ID: "b1", IfRevision: 1}).Block
	want.State, want.LiftedAt, want.LiftedBy, want.Index, want.Revision = BlockLifted, log.time.UTC(), "unix:0", 2, 2
	if !equalBlocks(lifted, &want) {
		t.Errorf("got %+v\nwant %+v", *lifted, want)
	}
	if b.State != BlockActive {
		t.Error("the block of the earlier result changed")
	}
}

func TestBlocksAreIndependent(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, DeclareVM{ID: "v1", Addresses: []netip.Prefix{prefix("203.0.113.5/32")}})
	log.ok(t, AddBlock{Target: Target{VM: "v1"}, Reason: "unpaid"})
	log.ok(t, AddBlock{Target: Target{VM: "v1"}, Reason: "abuse"})
	log.ok(t, onPrefix("203.0.113.0/24"))
	log.ok(t, LiftBlock{ID: "b1"})
	log.refused(t, LiftBlock{ID: "b1"}, CodeConflict, "id")
	vm, _ := s.View().VM("v1")
	if got := ids(s.View().Holding(vm)); !slices.Equal(got, []string{"b2", "b3"}) {
		t.Errorf("v1 is held by %v", got)
	}
}

func TestBlockFollowsTheIDNotTheName(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, DeclareVM{ID: "v1", Name: "web"})
	if b := log.ok(t, onVM("web")).Block; b.Target.VM != "v1" {
		t.Errorf("target is %+v, want the id", b.Target)
	}
	log.ok(t, DeclareVM{ID: "v1", Name: "old"})
	log.ok(t, DeclareVM{ID: "v2", Name: "web"})
	vm, _ := s.View().VM("v1")
	if got := ids(s.View().Holding(vm)); !slices.Equal(got, []string{"b1"}) {
		t.Errorf("v1 is held by %v", got)
	}
	// An id wins over a name.
	log.ok(t, DeclareVM{ID: "v3", Name: "v2"})
	if b := log.ok(t, onVM("v2")).Block; b.Target.VM != "v2" {
		t.Errorf("target is %+v, want v2", b.Target)
	}
	log.ok(t, DeclareVM{ID: "v4", Name: "web"})
	log.refusedSaying(t, onVM("web"), CodeAmbiguous, "target.vm", "v2, v4")
}

func TestBlockRefusals(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, PutNode{Node{
		ID: "n1", Addresses: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")},
		Gateways: []netip.Addr{addr("192.0.2.254")}, Guards: []netip.Prefix{prefix("100.64.0.0/16")},
	}})
	log.ok(t, PutGuard{Prefix: prefix("203.0.113.0/24"), Note: "office\nask Ann"})
	for _, c := range []struct {
		name  string
		op    AddBlock
		code  Code
		field string
		says  string
	}{
		{"nothing", AddBlock{}, CodeInvalid, "target", "missing"},
		{"two targets", AddBlock{Target: Target{VM: "v", Prefix: prefix("198.51.100.1/32")}}, CodeInvalid, "target", "more than one"},
		{"no such VM", onVM("v9"), CodeNotFound, "target.vm", `"v9"`},
		{"all of IPv4", onPrefix("0.0.0.0/0"), CodeTooWide, "target.prefix", "/8"},
		{"all of IPv6", onPrefix("::/0"), CodeTooWide, "target.prefix", "/16"},
		{"a little too wide", onPrefix("10.0.0.0/7"), CodeTooWide, "target.prefix", "/8"},
		{"host bits", onPrefix("198.51.100.7/24"), CodeInvalid, "target.prefix", "198.51.100.0/24"},
		{"mapped", onPrefix("::ffff:198.51.100.7/128"), CodeInvalid, "target.prefix", "IPv4"},
		{"a node", onPrefix("192.0.2.1/32"), CodeGuardConflict, "target.prefix", "address of node n1"},
		{"around a node", onPrefix("192.0.2.0/28"), CodeGuardConflict, "target.prefix", "192.0.2.1/32"},
		{"a node in IPv6", onPrefix("2001:db8::/64"), CodeGuardConflict, "target.prefix", "address of node n1"},
		{"a gateway", onPrefix("192.0.2.254/32"), CodeGuardConflict, "target.prefix", "gateway of node n1"},
		{"inside a node's guard", onPrefix("100.64.3.0/24"), CodeGuardConflict, "target.prefix", "guard of node n1"},
		{"equal to a guard", onPrefix("203.0.113.0/24"), CodeGuardConflict, "target.prefix", "guard: office..."},
		{"inside a guard", onPrefix("203.0.113.9/32"), CodeGuardConflict, "target.prefix", "203.0.113.0/24"},
		{"around a guard", onPrefix("203.0.0.0/16"), CodeGuardConflict, "target.prefix", "203.0.113.0/24"},
		{"loopback", onPrefix("127.1.2.3/32"), CodeGuardConflict, "target.prefix", "loopback"},
		{"multicast", onPrefix("ff02::1/128"), CodeGuardConflict, "target.prefix", "multicast"},
		{"around unspecified", onPrefix("::/16"), CodeGuardConflict, "target.prefix", "unspecified"},
		{"reason", AddBlock{Target: Target{VM: "v"}, Reason: "Un paid"}, CodeInvalid, "reason", "a-z"},
		{"long reason", AddBlock{Target: Target{VM: "v"}, Reason: strings.Repeat("a", 65)}, CodeInvalid, "reason", "64"},
		{"note", AddBlock{Target: Target{VM: "v"}, Note: "a\x1b[31m"}, CodeInvalid, "note", "control"},
		{"note turns text", AddBlock{Target: Target{VM: "v"}, Note: "a\u202eb"}, CodeInvalid, "note", "control"},
		{"long note", AddBlock{Target: Target{VM: "v"}, Note: strings.Repeat("a", 4097)}, CodeInvalid, "note", "4096"},
	} {
		t.Run(c.name, func(t *testing.T) {
			log.refusedSaying(t, c.op, c.code, c.field, c.says)
		})
	}
	if s.View().CountBlocks() != 0 {
		t.Error("a refused block exists")
	}
	if b := log.ok(t, onPrefix("192.0.2.2/32")).Block; b.ID != "b1" {
		t.Errorf("refusals used up block numbers: %s", b.ID)
	}
	log.ok(t, onPrefix("203.0.112.0/24")) // beside a guard
	log.ok(t, AddBlock{Target: Target{Prefix: prefix("198.51.100.0/24")}, Note: "two\nlines"})
}

func TestAGuardedVMCanBeBlocked(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, PutNode{Node{ID: "n1", Addresses: []netip.Addr{addr("192.0.2.1")}}})
	vm := log.ok(t, running("v1", "n1", 1, "192.0.2.1", "203.0.113.1")).VM
	if len(vm.NICs[0].Addresses) != 2 {
		t.Errorf("a guarded address is not kept: %v", vm.NICs)
	}
	log.ok(t, onVM("v1"))
}

func TestLiftRefusals(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, onPrefix("198.51.100.7/32"))
	log.refused(t, LiftBlock{ID: "b2"}, CodeNotFound, "id")
	log.refused(t, LiftBlock{ID: "7"}, CodeInvalid, "id")
	log.refused(t, LiftBlock{ID: "b01"}, CodeInvalid, "id")
	log.refused(t, LiftBlock{ID: "b1", IfRevision: 9}, CodeRevision, "if_revision")
}

func TestLiftedBlocksAreForgottenOldestFirst(t *testing.T) {
	s := newStore(limits{results: 10, over: 2, events: 100})
	log := newLog(s)
	for range 4 {
		log.ok(t, onPrefix("198.51.100.7/32"))
	}
	for _, id := range []string{"b3", "b1", "b4"} {
		log.ok(t, LiftBlock{ID: id})
	}
	if got := ids(slices.Collect(s.View().Blocks(""))); !slices.Equal(got, []string{"b1", "b2", "b4"}) {
		t.Errorf("retained are %v", got)
	}
	last := s.View().events[len(s.View().events)-1]
	if last.Type != EventBlockForgotten || last.Block.ID != "b3" {
		t.Errorf("last event is %+v", last)
	}
	log.refused(t, LiftBlock{ID: "b3"}, CodeNotFound, "id")
	if b := log.ok(t, onPrefix("198.51.100.7/32")).Block; b.ID != "b5" {
		t.Errorf("a number came again: %s", b.ID)
	}
}

func TestHolding(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, running("v1", "n1", 1, "203.0.113.5", "2001:db8::5"))
	vm := log.ok(t, DeclareVM{ID: "v1", Addresses: []netip.Prefix{prefix("198.51.100.0/26")}}).VM
	held := []string{"203.0.113.5/32", "203.0.113.0/24", "203.0.0.0/16", "2001:db8::/32", "2001:db8::5/128",
		"198.51.100.0/24", "198.51.100.0/26", "198.51.100.9/32", "198.51.100.32/28"}
	for _, p := range held {
		log.ok(t, onPrefix(p))
	}
	for _, p := range []string{"203.0.113.4/32", "198.51.100.64/32", "198.51.99.0/24", "2001:db8::4/128"} {
		log.ok(t, onPrefix(p))
	}
	log.ok(t, onVM("v1"))
	log.ok(t, onPrefix("203.0.113.5/32")) // a second one
	want := []string{"b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "b9", "b14", "b15"}
	if got := ids(s.View().Holding(vm)); !slices.Equal(got, want) {
		t.Errorf("held by %v, want %v", got, want)
	}
}

func TestStateTimeNeverRunsBackwards(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, onPrefix("198.51.100.7/32"))
	at := s.View().Time()
	log.time = log.time.Add(-time.Hour)
	if b := log.ok(t, onPrefix("198.51.100.8/32")).Block; !b.CreatedAt.Equal(at) || !s.View().Time().Equal(at) {
		t.Errorf("created at %s, view at %s, want %s", b.CreatedAt, s.View().Time(), at)
	}
	log.time = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	log.ok(t, onPrefix("198.51.100.9/32"))
	if year := s.View().Time().Year(); year != 2262 {
		t.Errorf("a stamp beyond what is representable became %d", year)
	}
}

func ids(blocks []*Block) []string {
	var out []string
	for _, b := range blocks {
		out = append(out, b.ID)
	}
	return out
}

// running is a report of a VM with one NIC.
func running(id, node string, epoch uint64, addrs ...string) ObserveVM {
	op := ObserveVM{ID: id, Kind: "kvm", Node: node, Phase: PhaseRunning, Epoch: epoch,
		NICs: []NIC{{MAC: MAC{0x52, 0x54, 0, 0, 0, 1}, Tap: "tap-" + node}}}
	for _, a := range addrs {
		op.NICs[0].Addresses = append(op.NICs[0].Addresses, addr(a))
	}
	return op
}

// TestAGuardWithoutANote is not quoted as one with an empty one.
func TestAGuardWithoutANote(t *testing.T) {
	log := newLog(NewStore())
	log.ok(t, DeclareVM{ID: "v1"})
	log.ok(t, PutGuard{VM: "v1"})
	log.ok(t, PutGuard{Prefix: prefix("203.0.113.0/24")})
	for _, target := range []Target{{VM: "v1"}, {Prefix: prefix("203.0.113.7/32")}} {
		if r := log.do(t, AddBlock{Target: target}); r.Err == nil || !strings.HasSuffix(r.Err.Detail, "can never be blocked (guard)") {
			t.Errorf("%s: %v", target, r.Err)
		}
	}
}
