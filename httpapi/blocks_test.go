package httpapi

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// decode reads an answer with the status expected.
func decode[T any](t testing.TB, res *http.Response, status int) T {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != status {
		t.Fatalf("status %d, want %d: %s", res.StatusCode, status, b)
	}
	var v T
	if len(b) == 0 && status == http.StatusNoContent {
		return v
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return v
}

func nodes[T wire.Receipt | wire.Unconfirmed](list []T) string {
	var out []string
	for _, v := range list {
		switch v := any(v).(type) {
		case wire.Receipt:
			out = append(out, v.Node)
		case wire.Unconfirmed:
			out = append(out, v.Node)
		}
	}
	return strings.Join(out, " ")
}

func TestAddBlockShapes(t *testing.T) {
	f := newFleet(t, "n2")
	f.RunVM("vm-1", "web", "n1", "192.0.2.7", "2001:db8::7")
	s := newServer(t, f)
	res := s.do(t, request{method: "POST", path: "/v1/blocks", body: `{"target":{"vm":"web"},"reason":"abuse","note":"spam"}`})
	raw := decode[map[string]any](t, res, 201)
	for field, want := range map[string]any{"id": "b1", "reason": "abuse", "note": "spam", "actor": "token:root",
		"kind": "drop", "direction": "both", "state": "active", "index": 3.0, "revision": 3.0} {
		if raw[field] != want {
			t.Errorf("%s is %v, want %v", field, raw[field], want)
		}
	}
	if got := raw["target"].(map[string]any); len(got) != 1 || got["vm"] != "vm-1" {
		t.Errorf("target is %v, want the VM's id alone", got)
	}
	if got, ok := raw["receipts"].([]any); !ok || len(got) != 0 {
		t.Errorf("receipts are %v, want an empty list: nobody was asked", raw["receipts"])
	}
	if got := raw["unconfirmed"].([]any); len(got) != 2 {
		t.Errorf("unconfirmed is %v, want both nodes", got)
	}
	for k, want := range map[string]string{"ETag": `"3"`, "Palisade-Index": "3", "Content-Type": "application/json", "Idempotency-Replayed": ""} {
		if got := res.Header.Get(k); got != want {
			t.Errorf("header %s is %q, want %q", k, got, want)
		}
	}
	if _, ok := raw["lifted_at"]; ok {
		t.Error("an active block has lifted_at")
	}
	b := decode[wire.Block](t, s.do(t, request{method: "POST", path: "/v1/blocks", body: `{"target":{"prefix":"198.51.100.9"}}`}), 201)
	if b.Target.Prefix != "198.51.100.9" || b.Reason != "manual" {
		t.Errorf("got %+v, want a single address without length and reason manual", b)
	}
}

func TestWaitEnforced(t *testing.T) {
	add := request{method: "POST", path: "/v1/blocks?wait=enforced&timeout=300ms", body: `{"target":{"prefix":"203.0.113.0/24"}}`}
	for name, c := range map[string]struct {
		script      func(f *fleet)
		status      int
		receipts    string
		unconfirmed string
		atLeast     time.Duration
	}{
		"all confirm":                   {func(*fleet) {}, 201, "n1 n2 n3", "", 0},
		"one is dead":                   {func(f *fleet) { f.Peers["n3"].Hangs, f.Peers["n3"].Alive = true, false }, 201, "n1 n2", "n3", 0},
		"one is dead but answers":       {func(f *fleet) { f.Peers["n3"].Alive = false; f.Peers["n2"].Stuck = 0 }, 201, "", "", 0},
		"one refuses":                   {func(f *fleet) { f.Peers["n2"].Down = true }, 201, "n1 n3", "n2", 0},
		"one is alive and hangs":        {func(f *fleet) { f.Peers["n2"].Hangs = true }, 202, "n1 n3", "n2", 300 * time.Millisecond},
		"one kernel is stuck":           {func(f *fleet) { f.Peers["n2"].Stuck = 1 }, 202, "n1 n3", "n2", 300 * time.Millisecond},
		"own kernel is stuck":           {func(f *fleet) { f.Peers["n1"].Hangs = true; f.Peers["n1"].Alive = false }, 202, "n2 n3", "n1", 300 * time.Millisecond},
		"one fails once, then confirms": {func(f *fleet) { f.Peers["n2"].FailOnce = errors.New("reset") }, 201, "n1 n2 n3", "", 0},
		"one always fails":              {func(f *fleet) { f.Peers["n2"].Fails = errors.New("reset") }, 202, "n1 n3", "n2", 300 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, "n2", "n3")
			f.Apply(fsm.DeclareVM{ID: "x"}) // so that index 1 is not the block's
			f.Set(func() { c.script(f) })
			s := newServer(t, f)
			start := time.Now()
			b := decode[wire.Block](t, s.do(t, add), c.status)
			took := time.Since(start)
			if c.receipts != "" && (nodes(b.Receipts) != c.receipts || nodes(b.Unconfirmed) != c.unconfirmed) {
				t.Errorf("receipts %q, unconfirmed %q; want %q, %q", nodes(b.Receipts), nodes(b.Unconfirmed), c.receipts, c.unconfirmed)
			}
			if took < c.atLeast {
				t.Errorf("answered after %v, want the timeout to be used", took)
			}
			if c.atLeast == 0 && took > 250*time.Millisecond {
				t.Errorf("answered after %v: waited for a member that is not live", took)
			}
			for _, r := range b.Receipts {
				if r.Index < b.Index || r.At.IsZero() {
					t.Errorf("receipt %+v does not cover the block's index %d", r, b.Index)
				}
			}
			for _, u := range b.Unconfirmed {
				if u.Since.Before(b.CreatedAt) {
					t.Errorf("unconfirmed since %v, before the block was made at %v", u.Since, b.CreatedAt)
				}
			}
		})
	}
}

func TestWaitGivesUpOnMemberThatDies(t *testing.T) {
	f := newFleet(t, "n2")
	f.Set(func() { f.Peers["n2"].Hangs = true })
	s := newServer(t, f)
	go func() {
		for asked := 0; asked == 0; {
			f.Set(func() { asked = f.Peers["n2"].Asked })
		}
		f.Set(func() { f.Peers["n2"].Alive = false })
	}()
	start := time.Now()
	b := decode[wire.Block](t, s.do(t, request{method: "POST", path: "/v1/blocks?wait=enforced&timeout=30s", body: `{"target":{"prefix":"203.0.113.1"}}`}), 201)
	if took := time.Since(start); took > 5*time.Second || nodes(b.Unconfirmed) != "n2" {
		t.Errorf("after %v: unconfirmed %q", took, nodes(b.Unconfirmed))
	}
}

func TestGetBlockSumsCountersAndNamesTheSilent(t *testing.T) {
	f := newFleet(t, "n2", "n3")
	s := newServer(t, f)
	decode[wire.Block](t, s.do(t, request{method: "POST", path: "/v1/blocks", body: `{"target":{"prefix":"203.0.113.1"}}`}), 201)
	f.Set(func() {
		f.Peers["n1"].Held = map[string]uint64{"b1": 3}
		f.Peers["n2"].Held = map[string]uint64{"b1": 4}
		f.Peers["n3"].Hangs = true
	})
	res := s.do(t, request{method: "GET", path: "/v1/blocks/b1"})
	if got := res.Header.Get("ETag"); got != `"2"` {
		t.Errorf("ETag %s", got)
	}
	b := decode[wire.Block](t, res, 200)
	if *b.Counters != (wire.Counters{Packets: 7, Bytes: 700}) || nodes(b.Receipts) != "n1 n2" || nodes(b.Unconfirmed) != "n3" {
		t.Errorf("got %+v, %q, %q", *b.Counters, nodes(b.Receipts), nodes(b.Unconfirmed))
	}
	page := decode[wire.Page[wire.Block]](t, s.do(t, request{method: "GET", path: "/v1/blocks"}), 200)
	if len(page.Items) != 1 || page.Items[0].Counters.Packets != 7 || page.Next != nil {
		t.Errorf("list is %+v", page)
	}
}

// A receipt from before the block's last change says nothing of the change.
func TestReceiptsCoverTheLastChange(t *testing.T) {
	b := &fsm.Block{ID: "b1", Index: 10}
	for name, c := range map[string]struct {
		report fsm.BlockReport
		want   bool
	}{
		"at the change":     {fsm.BlockReport{Enforced: true, Index: 10}, true},
		"after it":          {fsm.BlockReport{Enforced: true, Index: 11}, true},
		"before it":         {fsm.BlockReport{Enforced: true, Index: 9}, false},
		"not in the kernel": {fsm.BlockReport{Enforced: false, Index: 11}, false},
	} {
		if _, got := confirms(&fsm.Report{Blocks: map[string]fsm.BlockReport{"b1": c.report}}, b); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if _, got := confirms(&fsm.Report{Enforced: 99}, b); got {
		t.Error("a report without the block confirms it")
	}
}

func TestSince(t *testing.T) {
	changed := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	minute := func(m int) time.Time { return changed.Add(time.Duration(m) * time.Minute) }
	b := &fsm.Block{ID: "b1", Index: 10, CreatedAt: changed, State: fsm.BlockActive}
	lifted := &fsm.Block{ID: "b1", Index: 20, CreatedAt: changed, State: fsm.BlockLifted, LiftedAt: minute(30)}
	for name, c := range map[string]struct {
		block     *fsm.Block
		enforced  uint64 // of the last report, 0 if there was none
		reported  time.Time
		live      bool
		lastHeard time.Time
		want      time.Time
	}{
		"never answered, alive: in doubt from the start":                    {b, 0, time.Time{}, true, minute(5), changed},
		"never answered, down: it was fine while it was heard":              {b, 0, time.Time{}, false, minute(5), minute(5)},
		"confirmed once, then silent: since the confirmation":               {b, 10, minute(2), true, minute(9), minute(2)},
		"confirmed once, then down: since the confirmation":                 {b, 11, minute(2), false, minute(9), minute(2)},
		"said that its kernel was behind, then died: from the start":        {b, 9, minute(2), false, minute(9), changed},
		"said so before the block was made, then died: last sign of life":   {b, 9, minute(-2), false, minute(9), minute(9)},
		"dead before the block was made: since the block":                   {b, 9, minute(-8), false, minute(-3), changed},
		"confirmed the block, not its lifting: since it was lifted":         {lifted, 10, minute(2), true, minute(40), minute(30)},
		"confirmed the lifting, then silent":                                {lifted, 20, minute(31), true, minute(40), minute(31)},
		"lifted while it was down: since it was lifted, not when last seen": {lifted, 10, minute(2), false, minute(3), minute(30)},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, newFleet(t))
			if c.enforced != 0 {
				s.memory.note("n2", &fsm.Report{Enforced: c.enforced}, c.reported)
			}
			m := fsm.Member{ID: "n2", LastHeard: c.lastHeard, Alive: c.live}
			if got := s.since(c.block, &m, c.live); !got.Equal(c.want) {
				t.Errorf("since %v, want %v", got.Sub(changed), c.want.Sub(changed))
			}
		})
	}
}

func TestLift(t *testing.T) {
	f := newFleet(t, "n2")
	s := newServer(t, f)
	s.do(t, request{method: "POST", path: "/v1/blocks", body: `{"target":{"prefix":"203.0.113.1"}}`})
	p := decode[wire.Problem](t, s.do(t, request{method: "DELETE", path: "/v1/blocks/b1", header: map[string]string{"If-Match": `"7"`}}), 412)
	if p.Code != wire.CodeRevision || p.Errors[0].Location != "header.If-Match" {
		t.Errorf("got %+v", p)
	}
	b := decode[wire.Block](t, s.do(t, request{method: "DELETE", path: "/v1/blocks/b1?wait=enforced", header: map[string]string{"If-Match": `"2"`}}), 200)
	if b.State != "lifted" || b.LiftedBy != "token:root" || b.LiftedAt.IsZero() || nodes(b.Receipts) != "n1 n2" {
		t.Errorf("got %+v", b)
	}
	p = decode[wire.Problem](t, s.do(t, request{method: "DELETE", path: "/v1/blocks/b1"}), 409)
	if p.Code != wire.CodeConflict {
		t.Errorf("lifting twice: %+v", p)
	}
	if got := decode[wire.Page[wire.Block]](t, s.do(t, request{method: "GET", path: "/v1/blocks"}), 200); len(got.Items) != 0 {
		t.Errorf("the default list has lifted blocks: %+v", got)
	}
	if got := decode[wire.Page[wire.Block]](t, s.do(t, request{method: "GET", path: "/v1/blocks?state=lifted"}), 200); len(got.Items) != 1 {
		t.Errorf("lifted list: %+v", got)
	}
	f.Set(func() { f.Peers["n2"].Stuck = 1 })
	s.do(t, request{method: "POST", path: "/v1/blocks", body: `{"target":{"prefix":"203.0.113.1"}}`})
	b = decode[wire.Block](t, s.do(t, request{method: "DELETE", path: "/v1/blocks/b2?wait=enforced&timeout=100ms"}), 202)
	if nodes(b.Unconfirmed) != "n2" {
		t.Errorf("a kernel that still drops was not named: %+v", b)
	}
}

func TestIdempotency(t *testing.T) {
	f := newFleet(t, "n2")
	s := newServer(t, f)
	add := request{method: "POST", path: "/v1/blocks", body: `{"target":{"prefix":"203.0.113.1"},"reason":"unpaid"}`, header: map[string]string{"Idempotency-Key": "order 17"}}
	first := s.do(t, add)
	b1 := decode[wire.Block](t, first, 201)
	second := s.do(t, add)
	b2 := decode[wire.Block](t, second, 201)
	if first.Header.Get("Idempotency-Replayed") != "" || second.Header.Get("Idempotency-Replayed") != "true" {
		t.Error("the replay is not marked, or the first answer is")
	}
	if b1.ID != b2.ID || b1.Index != b2.Index || !b1.CreatedAt.Equal(b2.CreatedAt) || second.Header.Get("Palisade-Index") != "2" {
		t.Errorf("the replay differs: %+v, %+v", b1, b2)
	}
	if n := f.View().CountActive(); n != 1 {
		t.Errorf("%d blocks, want 1", n)
	}
	other := add
	other.body = `{"target":{"prefix":"203.0.113.2"}}`
	p := decode[wire.Problem](t, s.do(t, other), 422)
	if p.Code != wire.CodeKeyUsed || p.Errors[0].Location != "header.Idempotency-Key" {
		t.Errorf("got %+v", p)
	}
	// The block is lifted; a late retry of the first request must not claim that it is in force.
	s.do(t, request{method: "DELETE", path: "/v1/blocks/b1"})
	add.path += "?wait=enforced&timeout=200ms"
	b := decode[wire.Block](t, s.do(t, add), 202)
	if len(b.Receipts) != 0 || nodes(b.Unconfirmed) != "n1 n2" {
		t.Errorf("a replay claims receipts for a block that was lifted: %+v", b)
	}
	// Without a key every request is its own, and the server makes a key for its own retries.
	plain := request{method: "POST", path: "/v1/blocks", body: add.body}
	s.do(t, plain)
	s.do(t, plain)
	if n := f.View().CountActive(); n != 2 {
		t.Errorf("%d active blocks, want 2", n)
	}
	keys := map[string]bool{}
	for _, c := range f.Proposals() {
		keys[c.Key] = true
		if c.Key == "" {
			t.Error("a command went out without a key")
		}
	}
	for _, bad := range []string{"a\tb", "ключ", strings.Repeat("k", 256)} {
		add.header = map[string]string{"Idempotency-Key": bad}
		p := decode[wire.Problem](t, s.do(t, add), 422)
		if p.Code != wire.CodeInvalid || p.Errors[0].Location != "header.Idempotency-Key" {
			t.Errorf("key %q: %+v", bad, p)
		}
	}
}
