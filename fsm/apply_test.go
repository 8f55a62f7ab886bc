package fsm

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

func TestARetryHasOneEffectAndTheSameAnswer(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	again := func(key string, op Op) Result {
		log.key = key
		return log.do(t, op)
	}
	first := again("k1", onPrefix("198.51.100.7/32"))
	log.ok(t, LiftBlock{ID: "b1"})
	retry := again("k1", onPrefix("198.51.100.7/32"))
	if !retry.Replayed || retry.Index != first.Index || retry.Block != first.Block {
		t.Errorf("a retry gave %+v, want %+v", retry, first)
	}
	if s.View().CountBlocks() != 1 || s.View().Index() != 3 {
		t.Errorf("%d blocks at %d", s.View().CountBlocks(), s.View().Index())
	}
	if r := again("k1", onPrefix("198.51.100.8/32")); r.Err == nil || r.Err.Code != CodeKeyReused || r.Err.Field != "key" {
		t.Errorf("another request under the key gave %+v", r)
	}
	if r := again("k1", onPrefix("198.51.100.7/32")); !r.Replayed {
		t.Error("the refusal of another request took the key")
	}
	log.actor = "token:other"
	if r := again("k1", onPrefix("198.51.100.8/32")); r.Err != nil || r.Replayed {
		t.Errorf("the key of one actor met that of another: %+v", r)
	}
}

func TestARefusalIsRepeatedEvenIfItWouldPassNow(t *testing.T) {
	log := newLog(NewStore())
	log.key = "k"
	log.refused2(t, onVM("v1"), CodeNotFound)
	log.ok(t, DeclareVM{ID: "v1"})
	log.key = "k"
	if r := log.do(t, onVM("v1")); r.Err == nil || r.Err.Code != CodeNotFound || !r.Replayed || r.Index != 1 {
		t.Errorf("got %+v", r)
	}
}

// refused2 is refused for a command with a key, whose result is kept.
func (l *log) refused2(tb testing.TB, op Op, code Code) {
	tb.Helper()
	if r := l.do(tb, op); r.Err == nil || r.Err.Code != code {
		tb.Fatalf("%+v gave %+v, want %s", op, r, code)
	}
}

func TestResultsAreForgottenOldestFirst(t *testing.T) {
	s := newStore(limits{results: 3, over: 10, events: 10})
	log := newLog(s)
	for i := range 5 {
		log.key = fmt.Sprintf("k%d", i)
		log.ok(t, onPrefix("198.51.100.7/32"))
	}
	for _, c := range []struct {
		key  string
		want bool
	}{{"k2", true}, {"k4", true}, {"k1", false}} {
		log.key = c.key
		if r := log.ok(t, onPrefix("198.51.100.7/32")); r.Replayed != c.want {
			t.Errorf("%s: replayed is %t", c.key, r.Replayed)
		}
	}
	if n := len(s.View().order); n != 3 || s.View().results.n != 3 {
		t.Errorf("%d results kept", n)
	}
}

func TestABatchGivesAResultForEachOp(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	batch := Batch{Ops: []Op{
		onPrefix("198.51.100.7/32"), onVM("v1"), DeclareVM{ID: "v1"}, onVM("v1"), LiftBlock{ID: "b1"},
		PutGuard{Prefix: prefix("192.0.2.0/24"), Note: ""}, onPrefix("192.0.2.9/32"),
	}}
	log.key = "k"
	r := log.ok(t, batch)
	var got []string
	for _, item := range r.Items {
		switch {
		case item.Err != nil:
			got = append(got, string(item.Err.Code))
		case item.Block != nil:
			got = append(got, item.Block.ID+" "+string(item.Block.State))
		default:
			got = append(got, "ok")
		}
		if item.Index != 1 {
			t.Errorf("item has index %d", item.Index)
		}
	}
	want := []string{"b1 active", "not_found", "ok", "b2 active", "b1 lifted", "ok", "guard_conflict"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	log.key = "k"
	if again := log.ok(t, batch); !again.Replayed || !reflect.DeepEqual(again.Items, r.Items) {
		t.Error("a retry of the batch gave other results")
	}
	fresh := NewStore()
	if err := fresh.Restore(strings.NewReader(string(snapshot(t, s.View())))); err != nil {
		t.Fatal(err)
	}
	log.stores, log.key = []*Store{fresh}, "k"
	if again := log.ok(t, batch); !again.Replayed || !reflect.DeepEqual(again.Items, r.Items) {
		t.Error("a retry of the batch after a restore gave other results")
	}
}

func TestEntriesThatComeAgainAreSkipped(t *testing.T) {
	s := NewStore()
	var entries []Entry
	for i := range 4 {
		op := onPrefix(fmt.Sprintf("198.51.100.%d/32", i))
		entries = append(entries, Entry{uint64(i*2 + 1), encode(t, Command{Op: op})})
	}
	if _, err := s.ApplyBatch(entries[:2]); err != nil {
		t.Fatal(err)
	}
	view := s.View()
	results, err := s.ApplyBatch(entries[:2])
	if err != nil || len(results) != 2 || results[1].Index != 3 || results[1].Block != nil || s.View() != view {
		t.Errorf("got %+v, %v", results, err)
	}
	results, err = s.ApplyBatch(entries)
	if err != nil || len(results) != 4 || results[2].Block.ID != "b3" || s.View().Index() != 7 {
		t.Errorf("got %+v, %v", results, err)
	}
	if results, err := s.ApplyBatch(nil); err != nil || len(results) != 0 {
		t.Errorf("no entries gave %v, %v", results, err)
	}
}

// TestMalformedEntriesAreRefused: they are counted, so that a node does not stumble over them for ever.
func TestMalformedEntriesAreRefused(t *testing.T) {
	valid := encode(t, Command{Actor: "a", Key: "k", Op: onPrefix("198.51.100.7/32")})
	prefixOf := func(b []byte) []byte {
		return wire(t, &fsmpb.Op{Op: &fsmpb.Op_DeleteGuard{DeleteGuard: &fsmpb.DeleteGuard{Prefix: b}}})
	}
	batch := &fsmpb.Op{Op: &fsmpb.Op_Batch{Batch: &fsmpb.Batch{}}}
	cases := map[string][]byte{
		"nothing":       nil,
		"noise":         []byte("\xff\xff\xff\xff"),
		"cut":           valid[:len(valid)-1],
		"no op":         wire(t, nil),
		"an empty op":   wire(t, &fsmpb.Op{}),
		"bad UTF-8":     append(append([]byte{}, valid...), 0x1a, 1, 0xff),
		"short prefix":  prefixOf([]byte{10, 8}),
		"long prefix":   prefixOf([]byte{10, 0, 0, 0, 33}),
		"nested batch":  wire(t, &fsmpb.Op{Op: &fsmpb.Op_Batch{Batch: &fsmpb.Batch{Ops: []*fsmpb.Op{batch}}}}),
		"empty batch":   wire(t, batch),
		"no version":    append(append([]byte{}, valid...), 0x08, 0),
		"control actor": encode(t, Command{Actor: "a\x00", Op: onPrefix("198.51.100.7/32")}),
		"control key":   encode(t, Command{Key: "a\n", Op: onPrefix("198.51.100.7/32")}),
		"long key":      encode(t, Command{Key: strings.Repeat("a", 256), Op: onPrefix("198.51.100.7/32")}),
		"huge":          make([]byte, MaxCommandBytes+1),
	}
	for name, data := range cases {
		t.Run(name, func(t *testing.T) {
			s := NewStore()
			results, err := s.ApplyBatch([]Entry{{5, data}, {6, valid}})
			if err != nil || len(results) != 2 {
				t.Fatalf("got %d results, %v", len(results), err)
			}
			if r := results[0]; r.Err == nil || r.Err.Code != CodeInvalid || r.Index != 5 {
				t.Errorf("got %+v", r)
			}
			if results[1].Err != nil || s.View().Index() != 6 {
				t.Errorf("the entry after it gave %+v", results[1])
			}
		})
	}
}

// TestWhatANewerBuildWroteHalts: skipping it would make this node's state differ from the others'.
func TestWhatANewerBuildWroteHalts(t *testing.T) {
	valid := encode(t, Command{Op: onPrefix("198.51.100.7/32")})
	field := func(b []byte, n protowire.Number) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), 1)
	}
	addBlock := &fsmpb.AddBlock{Target: &fsmpb.Target{Prefix: []byte{198, 51, 100, 7, 32}}}
	starts := proto.Clone(addBlock).(*fsmpb.AddBlock)
	starts.ProtoReflect().SetUnknown(field(nil, 6))
	account := proto.Clone(addBlock).(*fsmpb.AddBlock)
	account.Target = &fsmpb.Target{}
	account.Target.ProtoReflect().SetUnknown(field(nil, 3))
	kind := proto.Clone(addBlock).(*fsmpb.AddBlock)
	kind.Kind = "scold"
	op := func(b *fsmpb.AddBlock) *fsmpb.Op { return &fsmpb.Op{Op: &fsmpb.Op_AddBlock{AddBlock: b}} }
	unknown := &fsmpb.Op{}
	unknown.ProtoReflect().SetUnknown(field(nil, 8))
	batch := func(o *fsmpb.Op) *fsmpb.Op {
		return &fsmpb.Op{Op: &fsmpb.Op_Batch{Batch: &fsmpb.Batch{Ops: []*fsmpb.Op{o}}}}
	}
	cases := map[string][]byte{
		"version":         protowire.AppendVarint(protowire.AppendTag(append([]byte{}, valid...), 1, protowire.VarintType), 7),
		"envelope field":  field(append([]byte{}, valid...), 60),
		"op":              wire(t, unknown),
		"op in a batch":   wire(t, batch(unknown)),
		"field of an op":  wire(t, op(starts)),
		"field, in batch": wire(t, batch(op(starts))),
		"target":          wire(t, op(account)),
		"kind":            wire(t, op(kind)),
	}
	for name, data := range cases {
		t.Run(name, func(t *testing.T) {
			s := NewStore()
			results, err := s.ApplyBatch([]Entry{{1, valid}, {2, data}, {3, valid}})
			var unsupported *UnsupportedError
			if !errors.As(err, &unsupported) || unsupported.Index != 2 || unsupported.Version < 1 {
				t.Fatalf("got %v", err)
			}
			if len(results) != 1 || results[0].Block == nil {
				t.Errorf("the entry before it gave %+v", results)
			}
			if s.View().Index() != 1 || s.View().CountBlocks() != 1 {
				t.Errorf("view at %d with %d blocks", s.View().Index(), s.View().CountBlocks())
			}
			if results, again := s.ApplyBatch([]Entry{{3, valid}}); !errors.Is(again, err) || results != nil {
				t.Errorf("a later call gave %v, %v", results, again)
			}
			if !errors.Is(s.Halted(), err) {
				t.Errorf("halted is %v", s.Halted())
			}
			log := newLog(NewStore())
			log.index = 10
			log.ok(t, onPrefix("198.51.100.7/32"))
			if err := s.Restore(strings.NewReader(string(snapshot(t, log.stores[0].View())))); err != nil {
				t.Fatal(err)
			}
			if _, err := s.ApplyBatch([]Entry{{12, valid}}); err != nil || s.Halted() != nil {
				t.Errorf("after a restore: %v, %v", err, s.Halted())
			}
		})
	}
	if s := NewStore(); s.Halted() != nil {
		t.Error("a new store is halted")
	}
}

// wire is a command as only another build would write it.
func wire(tb testing.TB, op *fsmpb.Op) []byte {
	tb.Helper()
	b, err := proto.Marshal(&fsmpb.Command{Version: 1, Op: op})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestMarshalRefusesWhatHasNoForm(t *testing.T) {
	for name, c := range map[string]struct {
		op    Op
		code  Code
		field string
	}{
		"no op":         {nil, CodeUnsupported, "op"},
		"kind":          {AddBlock{Kind: "scold"}, CodeUnsupported, "kind"},
		"direction":     {AddBlock{Direction: "up"}, CodeUnsupported, "direction"},
		"phase":         {ObserveVM{Phase: "paused"}, CodeUnsupported, "phase"},
		"UTF-8":         {AddBlock{Note: "\xff"}, CodeInvalid, ""},
		"empty batch":   {Batch{}, CodeInvalid, "ops"},
		"large batch":   {Batch{Ops: make([]Op, MaxBatchOps+1)}, CodeInvalid, "ops"},
		"nested batch":  {Batch{Ops: []Op{Batch{Ops: []Op{AddBlock{}}}}}, CodeInvalid, "ops[0].ops"},
		"kind in batch": {Batch{Ops: []Op{AddBlock{}, AddBlock{Kind: "x"}}}, CodeUnsupported, "ops[1].kind"},
		"huge":          {AddBlock{Note: strings.Repeat("a", MaxCommandBytes)}, CodeInvalid, ""},
	} {
		_, err := MarshalCommand(Command{Time: time.Unix(1, 0), Op: c.op})
		var refused *Error
		if !errors.As(err, &refused) || refused.Code != c.code || refused.Field != c.field {
			t.Errorf("%s: got %v (%+v)", name, err, refused)
		}
	}
}

func TestGuards(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, onPrefix("198.51.100.7/32"))
	log.ok(t, onPrefix("203.0.0.0/16"))
	log.refusedSaying(t, PutGuard{Prefix: prefix("198.51.100.0/24"), Note: ""}, CodeConflict, "prefix", "b1")
	log.refused(t, PutGuard{Prefix: prefix("198.51.100.7/32"), Note: ""}, CodeConflict, "prefix")
	log.ok(t, LiftBlock{ID: "b1"})
	log.ok(t, PutGuard{Prefix: prefix("198.51.100.0/24"), Note: "office"})
	g := log.ok(t, PutGuard{Prefix: prefix("203.0.113.0/24"), Note: ""}).Guard // inside b2, which keeps standing
	if g.Actor != "token:test" || g.Revision != log.index {
		t.Errorf("guard is %+v", g)
	}
	if b, _ := s.View().Block("b2"); b.State != BlockActive {
		t.Error("a guard lifted a block")
	}
	log.refused(t, PutGuard{Prefix: prefix("0.0.0.0/0"), Note: ""}, CodeTooWide, "prefix")
	log.refused(t, PutGuard{Prefix: netip.Prefix{}, Note: ""}, CodeInvalid, "prefix")
	log.refused(t, PutGuard{Prefix: prefix("198.51.0.0/16"), Note: "\a"}, CodeInvalid, "note")
	log.refused(t, DeleteGuard{Prefix: prefix("198.51.100.0/25")}, CodeNotFound, "prefix")
	log.refused(t, onPrefix("198.51.100.7/32"), CodeGuardConflict, "target.prefix")
	if g := log.ok(t, DeleteGuard{Prefix: prefix("198.51.100.0/24")}).Guard; g.Note != "office" {
		t.Errorf("deleted %+v", g)
	}
	log.ok(t, onPrefix("198.51.100.7/32"))
}

func TestNodesGuardThemselves(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	before := s.View()
	n := log.ok(t, PutNode{Node{
		ID: "n1", Addresses: []netip.Addr{addr("192.0.2.1"), addr("::ffff:192.0.2.1"), addr("fe80::1%br0")},
		MACs: []MAC{{2, 1}, {2, 0}, {2, 1}}, Revision: 77,
	}}).Node
	if len(n.Addresses) != 2 || len(n.MACs) != 2 || n.Revision != 1 {
		t.Errorf("node is %+v", n)
	}
	if why := s.View().GuardedMACs()[MAC{2, 1}]; why != "interface of node n1" {
		t.Errorf("MAC is guarded as %q", why)
	}
	if len(before.GuardedMACs()) != 0 || len(before.GuardedPrefixes()) != len(BuiltinGuards()) {
		t.Error("an earlier view changed")
	}
	if got := len(s.View().GuardedPrefixes()); got != len(BuiltinGuards())+2 {
		t.Errorf("%d prefixes are guarded", got)
	}
	log.ok(t, PutNode{Node{ID: "n1"}})
	if len(s.View().GuardedMACs()) != 0 {
		t.Error("a node's old MACs are still guarded")
	}
	many := make([]netip.Addr, MaxNodeAddresses+1)
	log.refused(t, PutNode{}, CodeInvalid, "id")
	log.refused(t, PutNode{Node{ID: "n/1"}}, CodeInvalid, "id")
	log.refused(t, PutNode{Node{ID: "n1", Name: "\x7f"}}, CodeInvalid, "name")
	log.refused(t, PutNode{Node{ID: "n1", Version: "\x7f"}}, CodeInvalid, "version")
	log.refused(t, PutNode{Node{ID: "n1", Addresses: many}}, CodeInvalid, "addresses")
	log.refused(t, PutNode{Node{ID: "n1", Addresses: many[:1]}}, CodeInvalid, "addresses[0]")
	log.refused(t, PutNode{Node{ID: "n1", Gateways: many[:2]}}, CodeInvalid, "gateways[0]")
	log.refused(t, PutNode{Node{ID: "n1", Guards: []netip.Prefix{prefix("0.0.0.0/0")}}}, CodeTooWide, "guards[0]")
}
