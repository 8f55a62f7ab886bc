package httpapi

import (
	"testing"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

func TestBlockReceipts(t *testing.T) {
	f := newFleet(t, "n2", "n3")
	s := newServer(t, f)
	add(t, s, `{"target":{"prefix":"203.0.113.9"}}`)
	get := func(query string) wire.Receipts {
		t.Helper()
		return decode[wire.Receipts](t, s.do(t, request{method: "GET", path: "/v1/blocks/b1/receipts" + query}), 200)
	}
	if r := get(""); !r.Complete || nodes(r.Receipts) != "n1 n2 n3" || r.Index != 2 || r.EnforcedIndex != 2 || len(r.Unconfirmed) != 0 {
		t.Errorf("%+v", r)
	}
	f.Apply(fsm.PutGuard{Prefix: mustPrefix(t, "198.51.100.1")})
	f.Set(func() { f.Peers["n2"].Stuck = 2 })
	f.Apply(fsm.LiftBlock{ID: "b1"})
	if r := get("?wait=150ms"); r.Complete || nodes(r.Receipts) != "n1 n3" || nodes(r.Unconfirmed) != "n2" || r.Index != 4 || r.EnforcedIndex != 2 {
		t.Errorf("%+v", r)
	}
	// The wait ends as soon as the last one has it.
	done := make(chan wire.Receipts, 1)
	go func() { done <- get("?wait=60s") }()
	waitFor(t, "the question", func() bool {
		asked := false
		f.Set(func() { asked = f.Peers["n2"].LastAsk.WaitIndex == 4 })
		return asked
	})
	f.Set(func() { f.Peers["n2"].Stuck = 0 })
	if r := <-done; !r.Complete || nodes(r.Receipts) != "n1 n2 n3" || r.EnforcedIndex != 4 {
		t.Errorf("%+v", r)
	}
	refused(t, s, request{method: "GET", path: "/v1/blocks/b1/receipts?wait=5"}, 422, wire.CodeInvalid)
	refused(t, s, request{method: "GET", path: "/v1/blocks/b9/receipts"}, 404, wire.CodeNotFound)
}

// A block on a list is in force with the content that the list has now.
func TestReceiptsOfAList(t *testing.T) {
	f := newFleet(t, "n2")
	f.Apply(fsm.DescribeList{Name: "feed"})
	s := newServer(t, f)
	b := add(t, s, `{"target":{"list":"feed"},"reason":"attack"}`)
	if b.Target.List != "feed" {
		t.Errorf("%+v", b.Target)
	}
	f.Set(func() { f.Peers["n2"].Stuck = b.Index })
	get := func() wire.Receipts {
		return decode[wire.Receipts](t, s.do(t, request{method: "GET", path: "/v1/blocks/b1/receipts?wait=150ms"}), 200)
	}
	if r := get(); !r.Complete || r.Index != b.Index {
		t.Errorf("%+v", r)
	}
	packed := fsm.PrefixSetBuilder{}
	packed.Add(mustPrefix(t, "203.0.113.0/24"))
	set, _ := packed.Set()
	f.Apply(fsm.PatchList{Name: "feed", Add: set.Pack()})
	if r := get(); r.Complete || nodes(r.Unconfirmed) != "n2" || r.Index != f.View().Index() {
		t.Errorf("%+v", r)
	}
}
