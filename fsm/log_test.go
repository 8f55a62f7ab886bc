package fsm

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// log appends commands to stores, all the same.
type log struct {
	stores []*Store
	index  uint64
	time   time.Time
	actor  string
	key    string // of the next command only
}

func newLog(stores ...*Store) *log {
	return &log{stores: stores, time: time.Unix(1_700_000_000, 0), actor: "token:test"}
}

// do applies one op and returns the result of the first store.
func (l *log) do(tb testing.TB, op Op) Result {
	tb.Helper()
	l.index++
	l.time = l.time.Add(time.Second)
	entry := Entry{l.index, encode(tb, Command{Time: l.time, Actor: l.actor, Key: l.key, Op: op})}
	l.key = ""
	var first Result
	for i, s := range l.stores {
		results, err := s.ApplyBatch([]Entry{entry})
		if err != nil || len(results) != 1 {
			tb.Fatalf("apply %+v: %d results, %v", op, len(results), err)
		}
		if i == 0 {
			first = results[0]
		}
	}
	return first
}

// ok is do for an op that must not be refused.
func (l *log) ok(tb testing.TB, op Op) Result {
	tb.Helper()
	r := l.do(tb, op)
	if r.Err != nil {
		tb.Fatalf("%+v was refused: %v", op, r.Err)
	}
	return r
}

// refused is do for an op that must be refused, and must change nothing but the index.
func (l *log) refused(tb testing.TB, op Op, code Code, field string) {
	tb.Helper()
	l.refusedSaying(tb, op, code, field, "")
}

// refusedSaying is refused for an op whose refusal must have a text in its detail.
func (l *log) refusedSaying(tb testing.TB, op Op, code Code, field, says string) {
	tb.Helper()
	before := l.stores[0].View()
	r := l.do(tb, op)
	if r.Err == nil || r.Err.Code != code || r.Err.Field != field {
		tb.Fatalf("%+v gave %+v, want a refusal with %s of %q", op, r.Err, code, field)
	}
	if r.Err.Detail == "" || !strings.Contains(r.Err.Detail, says) {
		tb.Errorf("%+v was refused with the reason %q, want %q in it", op, r.Err.Detail, says)
	}
	if r.Block != nil || r.VM != nil || r.Node != nil || r.Guard != nil || r.Token != nil || r.User != nil || r.Session != nil {
		tb.Errorf("a refusal came with an object: %+v", r)
	}
	after := l.stores[0].View()
	if after.sum != before.sum || len(after.events) != len(before.events) {
		tb.Errorf("%+v was refused and changed the state", op)
	}
}

func encode(tb testing.TB, c Command) []byte {
	tb.Helper()
	b, err := MarshalCommand(c)
	if err != nil {
		tb.Fatalf("marshal %+v: %v", c, err)
	}
	return b
}

func snapshot(tb testing.TB, v *View) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := v.WriteSnapshot(&b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}
