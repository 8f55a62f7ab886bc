package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// bulk sends lines and reads the results.
func bulk(t testing.TB, s *Server, query, body string, status int, header ...string) ([]wire.BulkResult, *http.Response) {
	t.Helper()
	q := request{method: "POST", path: "/v1/blocks/bulk" + query, body: body, header: map[string]string{"Content-Type": "application/jsonl"}}
	for i := 0; i < len(header); i += 2 {
		if q.header[header[i]] = header[i+1]; header[i] == "token" {
			q.token = header[i+1]
		}
	}
	res := s.do(t, q)
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != status || res.Header.Get("Content-Type") != "application/jsonl" {
		t.Fatalf("%v, %d %s: %.500s", err, res.StatusCode, res.Header.Get("Content-Type"), b)
	}
	var out []wire.BulkResult
	for d := json.NewDecoder(bytes.NewReader(b)); d.More(); {
		var r wire.BulkResult
		if err := d.Decode(&r); err != nil {
			t.Fatal(err)
		}
		if r.Index != len(out) || (r.Problem != nil) != (r.Status >= 400) {
			t.Errorf("element %d: %+v", len(out), r)
		}
		out = append(out, r)
	}
	return out, res
}

func codes(results []wire.BulkResult) string {
	var out []string
	for _, r := range results {
		text := strconv.Itoa(r.Status)
		if r.Problem != nil {
			text = string(r.Problem.Code)
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

// Every sort of element, done and refused, in one commit and in order.
func TestBulk(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}, Reason: "abuse"})
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}, Reason: "unpaid"})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "203.0.113.5")}})
	s := newServer(t, f)
	before := len(f.Proposals())
	lines := []struct{ text, want, location string }{
		{`{"add":{"target":{"vm":"web"},"kind":"ports","ports":["tcp/25"]}}`, "201", ""},
		{`{"target":{"account":"acct-42"},"duration":"7d"}`, "201", ""},
		{"", "", ""},
		{`{"lift":{"id":"b1"}}`, "200", ""},
		{`{"lift":{"id":"b1"}}`, "conflict", "body.id"},
		{`{"lift":{"target":{"vm":"web"},"reason":"unpaid"}}`, "200", ""},
		{`{"lift":{"target":{"vm":"nope"},"reason":"unpaid"}}`, "vm_not_found", "body.target.vm"},
		{`{"patch":{"id":"b3","note":"later","ends_at":"2090-01-01T00:00:00Z"}}`, "200", ""},
		{`{"patch":{"id":"b3","revision":1,"note":"later"}}`, "revision_mismatch", "body.revision"},
		{`{"patch":{"id":"b3"}}`, "invalid", "body"},
		{`{"patch":{"note":"x"}}`, "invalid", "body"},
		{`{"add":{"target":{"vm":"nope"}}}`, "vm_not_found", "body.target.vm"},
		{`{"target":{"prefix":"10.0.0.7/24"}}`, "invalid", "body.target.prefix"},
		{`{"target":{"prefix":"127.0.0.1"}}`, "guard_conflict", "body.target.prefix"},
		{`{"target":{"prefix":"198.18.0.0/15"}}`, "too_many", "body.target"},
		{`{"target":{"vm":"web"},"colour":"red"}`, "invalid", "body.colour"},
		{`{"target":{"vm":"web"},"kind":"ports","ports":["x:1"]}`, "invalid", "body.ports[0]"},
		{`{"add":{"target":{"vm":"web"}},"lift":{"id":"b1"}}`, "invalid", "body"},
		{`{"lift":{"id":"b1","target":{"vm":"web"}}}`, "invalid", "body"},
		{`{"lift":{}}`, "invalid", "body"},
		{`{"lift":{"id":"b2","reason":"x"}}`, "invalid", "body.reason"},
		{`[]`, "malformed_json", ""},
		{`{"target"`, "malformed_json", ""},
		{`{"note":"` + strings.Repeat("a", maxBulkLine) + `"}`, "body_too_large", ""},
		{`{"target":{"prefix":"203.0.113.6"}}`, "201", ""},
	}
	var body, want []string
	for _, l := range lines {
		body = append(body, l.text)
		if l.want != "" {
			want = append(want, l.want)
		}
	}
	got, res := bulk(t, s, "", strings.Join(body, "\n"), 200)
	if codes(got) != strings.Join(want, " ") {
		t.Errorf("%s\nwant\n%s", codes(got), strings.Join(want, " "))
	}
	next := 0
	for i, l := range lines {
		if l.want == "" {
			continue
		}
		r := got[next]
		next++
		if r.Line != i+1 {
			t.Errorf("%s: line %d, want %d", l.text, r.Line, i+1)
		}
		if l.location != "" && (len(r.Problem.Errors) == 0 || !strings.HasPrefix(r.Problem.Errors[0].Location, l.location)) {
			t.Errorf("%s: %+v is not at %s", l.text, r.Problem, l.location)
		}
	}
	if b := got[0].Block; b == nil || b.ID != "b4" || b.VMName != "web" {
		t.Errorf("%+v", b)
	}
	if bs := got[4].Blocks; len(bs) != 1 || bs[0].ID != "b2" || bs[0].State != "lifted" {
		t.Errorf("%+v", bs)
	}
	if n := len(f.Proposals()) - before; n != 1 {
		t.Errorf("%d commits", n)
	}
	if i := res.Header.Get("Palisade-Index"); i != strconv.FormatUint(f.View().Index(), 10) {
		t.Errorf("index %s", i)
	}
}

// A refusal in a bulk is that of the same request made alone.
func TestBulkRefusesAsSingleWritesDo(t *testing.T) {
	s := newServer(t, newFleet(t))
	for _, body := range []string{
		`{"target":{"prefix":"10.0.0.7/24"}}`, `{"target":{"prefix":"0.0.0.0/0"}}`, `{"target":{"vm":"nope"}}`, `{"target":{}}`, `{}`, `{"target":7}`,
		`{"target":{"prefix":"10.0.0.1"},"reson":"x"}`, `{"target":{"prefix":"10.0.0.1"},"reason":"Über"}`, `{"target":{"prefix":"10.0.0.1"},"force":true}`,
		`{"target":{"prefix":"10.0.0.1"},"kind":"limit"}`, `{"target":{"prefix":"10.0.0.1"},"duration":"x"}`, `{"target":{"list":"nope"}}`,
	} {
		res := s.do(t, request{method: "POST", path: "/v1/blocks", body: body, token: operatorToken})
		single := decode[wire.Problem](t, res, res.StatusCode)
		got, _ := bulk(t, s, "", body, 200, "token", operatorToken)
		a, _ := json.Marshal(single)
		b, _ := json.Marshal(got[0].Problem)
		if !bytes.Equal(a, b) {
			t.Errorf("%s:\nalone %s\nbulk  %s", body, a, b)
		}
	}
}

func prefixes(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "{\"target\":{\"prefix\":\"203.%d.%d.%d\"}}\n", i>>16, i>>8&255, i&255)
	}
	return b.String()
}

func TestBulkAtomic(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	// One that the fleet refuses undoes the others.
	got, _ := bulk(t, s, "?atomic=true", prefixes(3)+`{"lift":{"id":"b9"}}`+"\n"+prefixes(1), 409)
	if codes(got) != strings.Repeat("aborted ", 3)+"not_found aborted" || f.View().CountBlocks() != 0 {
		t.Errorf("%s, %d blocks", codes(got), f.View().CountBlocks())
	}
	// One that is not valid keeps the others from being tried.
	n := len(f.Proposals())
	got, _ = bulk(t, s, "?atomic=true", prefixes(2)+"{\n", 409)
	if codes(got) != strings.Repeat("aborted ", 2)+"malformed_json" || len(f.Proposals()) != n {
		t.Errorf("%s, %d commits", codes(got), len(f.Proposals())-n)
	}
	// Ten thousand are one commit, one more is refused as a whole.
	got, _ = bulk(t, s, "?atomic=true", prefixes(fsm.MaxBatchOps), 200)
	if len(got) != fsm.MaxBatchOps || f.View().CountBlocks() != fsm.MaxBatchOps || len(f.Proposals()) != n+1 {
		t.Errorf("%d results, %d blocks, %d commits", len(got), f.View().CountBlocks(), len(f.Proposals())-n)
	}
	long := request{method: "POST", path: "/v1/blocks/bulk?atomic=true", header: map[string]string{"Content-Type": "application/jsonl"}}
	long.body = prefixes(fsm.MaxBatchOps + 1)
	if p := refused(t, s, long, 413, wire.CodeTooLarge); !strings.Contains(p.Detail, "10000") {
		t.Error(p.Detail)
	}
	long.body = strings.Repeat(`{"target":{"prefix":"203.0.113.1"},"note":"`+strings.Repeat("a", 4000)+"\"}\n", 2100)
	refused(t, s, long, 413, wire.CodeTooLarge)
	if len(f.Proposals()) != n+1 {
		t.Error("something was tried")
	}
}

func TestBulkChunksAndKeys(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	const count = 2*chunkOps + 17
	body := prefixes(count)
	before := len(f.Proposals())
	got, res := bulk(t, s, "", body, 200, "Idempotency-Key", "night-1")
	if len(got) != count || f.View().CountBlocks() != count || res.Header.Get("Idempotency-Replayed") != "" {
		t.Fatalf("%d results, %d blocks", len(got), f.View().CountBlocks())
	}
	var keys []string
	for _, c := range f.Proposals()[before:] {
		keys = append(keys, c.Key)
	}
	if strings.Join(keys, " ") != "night-1#0 night-1#1 night-1#2" {
		t.Errorf("keys %v", keys)
	}
	again, res := bulk(t, s, "", body, 200, "Idempotency-Key", "night-1")
	if f.View().CountBlocks() != count || res.Header.Get("Idempotency-Replayed") != "true" || again[count-1].Block.ID != got[count-1].Block.ID {
		t.Errorf("a retry left %d blocks", f.View().CountBlocks())
	}
	// Another request under the key is refused as a whole.
	q := request{method: "POST", path: "/v1/blocks/bulk", body: prefixes(1), header: map[string]string{"Content-Type": "application/jsonl", "Idempotency-Key": "night-1"}}
	refused(t, s, q, 422, wire.CodeKeyUsed)
	q.header["Idempotency-Key"] = strings.Repeat("k", maxBulkKey+1)
	refused(t, s, q, 422, wire.CodeInvalid)
	q.header["Idempotency-Key"] = "k\tk"
	refused(t, s, q, 422, wire.CodeInvalid)
}

// Elements with long notes make a chunk of fewer ops, that still fits into one entry of the log.
func TestBulkChunksBySize(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	line := `{"target":{"prefix":"203.0.113.1"},"note":"` + strings.Repeat("a", 4000) + "\"}\n"
	const count = 2200 // 9 MB
	got, _ := bulk(t, s, "", strings.Repeat(line, count), 200)
	if len(got) != count || f.View().CountBlocks() != count || len(f.Proposals()) != 3 {
		t.Errorf("%d results, %d blocks, %d commits", len(got), f.View().CountBlocks(), len(f.Proposals()))
	}
}

// If a commit fails, what came before it is told as done, and the same request goes on from there.
func TestBulkGoesOnAfterAFailure(t *testing.T) {
	for name, fail := range map[string]error{"no_quorum": fsm.ErrUnavailable, "outcome_unknown": fsm.ErrUnknown} {
		f := newFleet(t)
		s := newServer(t, f)
		body := prefixes(3*chunkOps + 1)
		f.Set(func() {
			f.FailWith = func(c fsm.Command) error {
				if c.Key == "k#1" {
					return fail
				}
				return nil
			}
		})
		got, _ := bulk(t, s, "", body, 200, "Idempotency-Key", "k")
		at := func(i int) string { return codes(got[i : i+1]) }
		if at(0) != "201" || at(chunkOps) != name || at(2*chunkOps) != "aborted" || at(3*chunkOps) != "aborted" || f.View().CountBlocks() != chunkOps {
			t.Errorf("%s: %s %s %s %s, %d blocks", name, at(0), at(chunkOps), at(2*chunkOps), at(3*chunkOps), f.View().CountBlocks())
		}
		f.Set(func() { f.FailWith = nil })
		got, _ = bulk(t, s, "", body, 200, "Idempotency-Key", "k")
		if at(3*chunkOps) != "201" || f.View().CountBlocks() != 3*chunkOps+1 {
			t.Errorf("%s: %d blocks after the retry", name, f.View().CountBlocks())
		}
		// The first commit decides for the whole request.
		f.Set(func() { f.FailWith = func(fsm.Command) error { return fail } })
		res := s.do(t, request{method: "POST", path: "/v1/blocks/bulk", body: prefixes(2), header: map[string]string{"Content-Type": "application/jsonl", "Idempotency-Key": "k2"}})
		p := decode[wire.Problem](t, res, res.StatusCode)
		if string(p.Code) != name || res.Header.Get("Retry-After") != "1" || name == "outcome_unknown" && p.Instance != "k2" {
			t.Errorf("%+v", p)
		}
	}
}

func TestBulkDryRun(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	s := newServer(t, f)
	hash := f.View().Hash()
	body := `{"target":{"vm":"web"}}` + "\n" + `{"target":{"vm":"nope"}}` + "\n" + `{"lift":{"id":"b1"}}`
	got, res := bulk(t, s, "?dry_run=true", body, 200)
	if codes(got) != "201 vm_not_found 200" || got[0].Impact == nil || got[0].Impact.CountVMs != 1 || res.Header.Get("Palisade-Index") != "0" {
		t.Errorf("%s: %+v", codes(got), got)
	}
	got, _ = bulk(t, s, "?dry_run=true&atomic=true", body, 409)
	if codes(got) != "aborted vm_not_found aborted" {
		t.Error(codes(got))
	}
	if f.View().Hash() != hash {
		t.Error("a dry run changed the state")
	}
}

func TestBulkBadRequests(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f, func(o *Options) { o.MaxBulkBytes = 200_000 })
	q := func(body, media string) request {
		return request{method: "POST", path: "/v1/blocks/bulk", body: body, header: map[string]string{"Content-Type": media}}
	}
	refused(t, s, q("\n\n", "application/jsonl"), 422, wire.CodeInvalid)
	refused(t, s, q(prefixes(1), "text/csv"), 415, wire.CodeMediaType)
	refused(t, s, q(prefixes(10_000), "application/x-ndjson"), 413, wire.CodeTooLarge)
	refused(t, s, request{method: "POST", path: "/v1/blocks/bulk?atomic=maybe", body: prefixes(1), header: map[string]string{"Content-Type": "application/jsonl"}}, 422, wire.CodeInvalid)
	if len(f.Proposals()) != 0 {
		t.Error("something was tried")
	}
}

// The number of elements is bounded, whatever their size: the answer is held in memory.
func TestBulkOfTooManyElements(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	got, _ := bulk(t, s, "", prefixes(1)+strings.Repeat("{}\n", maxElements), 200)
	last := got[len(got)-1]
	if len(got) != maxElements+1 || got[0].Status != 201 || last.Problem.Code != wire.CodeTooLarge || last.Line != maxElements+1 {
		t.Errorf("%d results, the last %+v", len(got), last)
	}
}

// A body that breaks off after a commit: what was committed is told, the rest is not tried.
func TestBulkCutOff(t *testing.T) {
	f := newFleet(t)
	s := serve(t, f)
	body, w := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/v1/blocks/bulk", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	req.Header.Set("Content-Type", "application/jsonl")
	done := make(chan struct{})
	go func() {
		defer close(done)
		if res, err := s.client.Do(req); err == nil {
			_ = res.Body.Close()
		}
	}()
	if _, err := io.WriteString(w, prefixes(chunkOps+5)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the first commit", func() bool { return f.View().CountBlocks() == chunkOps })
	_ = w.CloseWithError(errors.New("gone"))
	<-done
	s.stop() // and with it every request
	if n := f.View().CountBlocks(); n != chunkOps || len(f.Proposals()) != 1 {
		t.Errorf("%d blocks, %d commits", n, len(f.Proposals()))
	}
}
