package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

func putText(path, body string, header ...string) request {
	q := request{method: "PUT", path: path, body: body, header: map[string]string{"Content-Type": "text/plain"}}
	for i := 0; i < len(header); i += 2 {
		q.header[header[i]] = header[i+1]
	}
	return q
}

func entries(t *testing.T, s *Server, path string) []string {
	t.Helper()
	res := s.do(t, request{method: "GET", path: path})
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain") {
		t.Fatalf("%s: %d %s %v", path, res.StatusCode, b, err)
	}
	return strings.Fields(string(b))
}

func TestAListIsPutAndRead(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	f.Apply(fsm.PutGuard{Prefix: mustPrefix(t, "198.51.100.1/32")})
	s := newServer(t, f)
	text := "# feed\n192.0.2.0/24\n192.0.2.9 ; nested\n198.51.100.0/24\n2001:db8::/32\n"
	proposed := len(f.Proposals())
	dry := decode[wire.ListResult](t, s.do(t, putText("/v1/lists/drop?dry_run=true", text)), 200)
	if !dry.DryRun || dry.List.Name != "drop" || dry.Size != 3 || dry.Merged != 1 || dry.VMs != 1 || dry.Guarded != 1 || len(f.Proposals()) != proposed {
		t.Errorf("dry run: %+v and %d proposals", dry, len(f.Proposals()))
	}
	res := s.do(t, putText("/v1/lists/drop?origin=drop.txt", text))
	etag := res.Header.Get("ETag")
	put := decode[wire.ListResult](t, res, 200)
	if put.Size != 3 || put.Merged != 1 || put.Added != 3 || put.Guarded != 1 || put.List.Size != 3 || put.List.Origin != "drop.txt" || put.List.Actor != "token:root" {
		t.Errorf("put: %+v", put)
	}
	if got := entries(t, s, "/v1/lists/drop/entries"); !slices.Equal(got, []string{"192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"}) {
		t.Errorf("entries %v", got)
	}
	if got := entries(t, s, "/v1/lists/drop/entries?within=192.0.2.77"); !slices.Equal(got, []string{"192.0.2.0/24"}) {
		t.Errorf("the entry around an address: %v", got)
	}
	if got := entries(t, s, "/v1/lists/drop/entries?within=198.51.0.0/16"); !slices.Equal(got, []string{"198.51.100.0/24"}) {
		t.Errorf("the entries inside a prefix: %v", got)
	}

	// What was read can be put: it changes nothing.
	before := f.View().Index()
	again := decode[wire.ListResult](t, s.do(t, putText("/v1/lists/drop?origin=drop.txt", strings.Join(entries(t, s, "/v1/lists/drop/entries"), "\n"))), 200)
	if f.View().Index() != before || again.Added+again.Removed != 0 {
		t.Errorf("the same content again: %+v", again)
	}

	// As JSON, with a condition.
	refused(t, s, request{method: "PUT", path: "/v1/lists/drop", body: `{"prefixes":["192.0.2.0/25"]}`, header: map[string]string{"If-Match": `"999"`}}, 412, wire.CodeRevision)
	small := decode[wire.ListResult](t, s.do(t, request{method: "PUT", path: "/v1/lists/drop", body: `{"prefixes":["192.0.2.0/25","2001:db8::/32"]}`, header: map[string]string{"If-Match": etag}}), 200)
	if small.Added != 1 || small.Removed != 2 || small.List.Origin != "drop.txt" {
		t.Errorf("put as JSON: %+v", small)
	}
	if got := entries(t, s, "/v1/lists/drop/entries"); !slices.Equal(got, []string{"192.0.2.0/25", "2001:db8::/32"}) {
		t.Errorf("entries %v", got)
	}
	page := decode[wire.Page[wire.List]](t, s.do(t, request{method: "GET", path: "/v1/lists"}), 200)
	if len(page.Items) != 1 || page.Items[0].Name != "drop" {
		t.Errorf("lists: %+v", page)
	}
}

func TestBadLinesAreTold(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	var text strings.Builder
	text.WriteString("192.0.2.1\nnonsense\n10.0.0.0/7\n")
	for range 200 {
		text.WriteString("192.0.2.3/24\n")
	}
	p := refused(t, s, putText("/v1/lists/drop", text.String()), 422, wire.CodeInvalid)
	if len(p.Errors) != 100 || p.Errors[0].Location != "line 2" || p.Errors[1].Location != "line 3" || !strings.Contains(p.Detail, "202") {
		t.Errorf("problem %q with %d errors: %+v", p.Detail, len(p.Errors), p.Errors[:2])
	}
	if len(f.Proposals()) != 0 {
		t.Error("something was proposed")
	}
	r := decode[wire.ListResult](t, s.do(t, putText("/v1/lists/drop?skip_invalid=true", text.String())), 200)
	if r.Skipped != 202 || r.Size != 1 || len(r.Problems) != 100 || r.Problems[0].Line != 2 {
		t.Errorf("with skip_invalid: %+v", r)
	}
	for body, media := range map[string]string{`{"prefixes":["x"]`: "application/json", `["192.0.2.1"]`: "application/json", "x": "text/csv"} {
		res := s.do(t, putText("/v1/lists/other", body, "Content-Type", media))
		if res.StatusCode < 400 || res.StatusCode >= 500 {
			t.Errorf("%s %s: %d", media, body, res.StatusCode)
		}
	}
	if _, _, ok := f.View().List("other"); ok {
		t.Error("half a body made a list")
	}
}

func TestAListIsPatched(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	decode[wire.ListResult](t, s.do(t, putText("/v1/lists/drop", "10.0.0.0/24\n10.0.9.0/24\n")), 200)
	refused(t, s, request{method: "PATCH", path: "/v1/lists/none", body: `{"add":["192.0.2.1"]}`}, 404, wire.CodeNotFound)
	refused(t, s, request{method: "PATCH", path: "/v1/lists/drop", body: `{}`}, 422, wire.CodeInvalid)
	p := refused(t, s, request{method: "PATCH", path: "/v1/lists/drop", body: `{"add":["192.0.2.1","x"],"remove":["y"]}`}, 422, wire.CodeInvalid)
	if len(p.Errors) != 2 || p.Errors[0].Location != "body.add[1]" || p.Errors[1].Location != "body.remove[0]" {
		t.Errorf("problem %+v", p)
	}
	dry := decode[wire.ListResult](t, s.do(t, request{method: "PATCH", path: "/v1/lists/drop?dry_run=true", body: `{"remove":["10.0.0.0/25"]}`}), 200)
	if !dry.DryRun || dry.Size != 2 || dry.Added != 1 || dry.Removed != 1 {
		t.Errorf("dry run: %+v", dry)
	}
	q := request{method: "PATCH", path: "/v1/lists/drop", header: map[string]string{"Idempotency-Key": "k"},
		body: `{"add":["192.0.2.1"],"remove":["10.0.0.0/25"],"owner":"abuse desk"}`}
	r := decode[wire.ListResult](t, s.do(t, q), 200)
	if got := entries(t, s, "/v1/lists/drop/entries"); !slices.Equal(got, []string{"10.0.0.128/25", "10.0.9.0/24", "192.0.2.1"}) {
		t.Errorf("entries %v", got)
	}
	if r.List.Owner != "abuse desk" || r.List.Size != 3 {
		t.Errorf("patched: %+v", r)
	}
	if res := s.do(t, q); res.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("a retry is not told: %d", res.StatusCode)
	}
	refused(t, s, request{method: "PATCH", path: "/v1/lists/drop", body: `{"note":"x"}`, header: map[string]string{"If-Match": `"1"`}}, 412, wire.CodeRevision)
}

func TestAListIsHeldAndDeleted(t *testing.T) {
	f := newFleet(t, "n2")
	s := newServer(t, f)
	decode[wire.ListResult](t, s.do(t, putText("/v1/lists/drop", "10.0.0.0/24")), 200)
	b := add(t, s, `{"target":{"list":"drop"},"direction":"out"}`)
	if b.Target.List != "drop" {
		t.Errorf("block %+v", b)
	}
	l := decode[wire.List](t, s.do(t, request{method: "GET", path: "/v1/lists/drop"}), 200)
	if !slices.Equal(l.Blocks, []string{b.ID}) {
		t.Errorf("the list is held by %v", l.Blocks)
	}
	refused(t, s, request{method: "DELETE", path: "/v1/lists/drop"}, 409, wire.CodeConflict)

	// wait=enforced asks for the block that holds the list.
	f.Set(func() { f.Peers["n2"].Stuck = f.View().Index() })
	r := decode[wire.ListResult](t, s.do(t, putText("/v1/lists/drop?wait=enforced&timeout=200ms", "10.0.1.0/24")), 202)
	var asked []string
	f.Set(func() { asked = f.Peers["n2"].LastAsk.Blocks })
	if !slices.Equal(r.Unconfirmed, []string{"n2"}) || !slices.Equal(asked, []string{b.ID}) {
		t.Errorf("unconfirmed %v, asked for %v", r.Unconfirmed, asked)
	}
	f.Set(func() { f.Peers["n2"].Stuck = 0 })
	if r := decode[wire.ListResult](t, s.do(t, putText("/v1/lists/drop?wait=enforced", "10.0.2.0/24")), 200); len(r.Unconfirmed) > 0 {
		t.Errorf("unconfirmed %v", r.Unconfirmed)
	}
	s.do(t, request{method: "DELETE", path: "/v1/blocks/" + b.ID})
	if res := s.do(t, request{method: "DELETE", path: "/v1/lists/drop"}); res.StatusCode != http.StatusNoContent {
		t.Errorf("delete: %d", res.StatusCode)
	}
	refused(t, s, request{method: "GET", path: "/v1/lists/drop"}, 404, wire.CodeNotFound)
	refused(t, s, request{method: "GET", path: "/v1/lists/drop/entries"}, 404, wire.CodeNotFound)
}

// A node that is behind must not take what it has for what the fleet has: the answer 200 would be of a content
// that somebody has replaced already.
func TestAListIsPutOverWhatTheFleetHas(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	first := decode[wire.ListResult](t, s.do(t, putText("/v1/lists/drop", "192.0.2.1\n192.0.2.2")), 200)
	f.Set(func() {
		f.StrongRead = func(context.Context) (uint64, error) {
			f.StrongRead = nil
			return f.Apply(fsm.PatchList{Name: "drop", Add: fsm.AppendPacked(nil, mustPrefix(t, "198.51.100.1/32"))}).Index, nil //nolint:contextcheck // somebody else's write
		}
	})
	again := decode[wire.ListResult](t, s.do(t, putText("/v1/lists/drop", "192.0.2.1\n192.0.2.2")), 200)
	if got := entries(t, s, "/v1/lists/drop/entries"); again.Removed != 1 || again.List.Revision == first.List.Revision || len(got) != 2 {
		t.Errorf("the content is %v, the answer %+v", got, again)
	}
	f.Set(func() { f.StrongRead = func(context.Context) (uint64, error) { return 0, fsm.ErrUnavailable } })
	if res := s.do(t, putText("/v1/lists/drop", "192.0.2.1\n192.0.2.2")); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("without quorum the answer is %d", res.StatusCode)
	}
}

// A content that fits no single op is uploaded in parts, and an answer that is lost on the way harms nothing.
func TestALargeListIsUploaded(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	var text strings.Builder
	for i := range 60_000 {
		fmt.Fprintf(&text, "20.%d.%d.%d\n", i>>15, i>>7&255, i<<1&255)
	}
	decode[wire.ListResult](t, s.do(t, putText("/v1/lists/drop", "192.0.2.1")), 200)
	var chunks, lost int
	f.Set(func() {
		f.FailWith = func(c fsm.Command) error {
			if op, ok := c.Op.(fsm.AddListChunk); ok {
				chunks++
				if len(op.Prefixes) > 64<<10 {
					t.Errorf("a part of %d bytes", len(op.Prefixes))
				}
				if lost++; lost == 2 {
					return fsm.ErrUnknown
				}
			}
			return nil
		}
	})
	r := decode[wire.ListResult](t, s.do(t, putText("/v1/lists/drop", text.String())), 200)
	if r.List.Size != 60_000 || chunks < 4 {
		t.Errorf("%d prefixes in %d parts", r.List.Size, chunks)
	}
	if got := entries(t, s, "/v1/lists/drop/entries"); len(got) != 60_000 {
		t.Errorf("%d entries", len(got))
	}
	f.Set(func() { f.FailWith = func(fsm.Command) error { return fsm.ErrUnavailable } })
	s.opts.MaxListBytes = 1000
	refused(t, s, putText("/v1/lists/drop", text.String()), 413, wire.CodeTooLarge)
}

func TestAListHasASource(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	path := "/v1/lists/drop/source"
	for body, location := range map[string]string{
		`{"url":"ftp://x/y","interval":"1h"}`:   "body.url",
		`{"url":"https:///y","interval":"1h"}`:  "body.url",
		`{"url":"https://x/y","interval":"1s"}`: "body.interval",
		`{"url":"https://x/y","interval":"x"}`:  "body.interval",
	} {
		if p := refused(t, s, request{method: "PUT", path: path, body: body}, 422, wire.CodeInvalid); len(p.Errors) != 1 || p.Errors[0].Location != location {
			t.Errorf("%s: %+v", body, p)
		}
	}
	l := decode[wire.List](t, s.do(t, request{method: "PUT", path: path, body: `{"url":"https://lists.example/drop.txt","interval":"1d"}`}), 200)
	if l.Source == nil || l.Source.URL != "https://lists.example/drop.txt" || l.Source.Interval != "24h0m0s" || l.Source.MaxBytes != 32<<20 {
		t.Errorf("source %+v", l.Source)
	}
	sealed := l.Source.URL + "?xxxxx" // as the leader leaves it
	res, err := f.Propose(t.Context(), fsm.Command{Op: fsm.DescribeList{Name: "drop", Source: &fsm.ListSource{URL: sealed, Sealed: "secret", Interval: time.Hour, MaxBytes: 1}}})
	if err != nil || res.Err != nil {
		t.Fatal(err, res.Err)
	}
	l = decode[wire.List](t, s.do(t, request{path: "/v1/lists/drop"}), 200)
	if b, err := json.Marshal(l); err != nil || l.Source.URL != sealed || strings.Contains(string(b), "secret") {
		t.Errorf("the sealed URL is shown: %s", b)
	}
	refused(t, s, request{method: "DELETE", path: "/v1/lists/drop", token: operatorToken}, 403, wire.CodeForbidden)
	l = decode[wire.List](t, s.do(t, request{method: "DELETE", path: path}), 200)
	if l.Source != nil {
		t.Errorf("source %+v", l.Source)
	}
	if res := s.do(t, request{method: "DELETE", path: "/v1/lists/none/source"}); res.StatusCode != http.StatusNotFound {
		t.Errorf("of no list: %d", res.StatusCode)
	}
}

// TestAHeldListIsWidenedByForce alone, and only by an admin.
func TestAHeldListIsWidenedByForce(t *testing.T) {
	s := newServer(t, newFleet(t))
	put := func(query, text, token string) request {
		q := putText("/v1/lists/drop"+query, text)
		q.token = token
		return q
	}
	patch := func(query, token string) request {
		return request{method: "PATCH", path: "/v1/lists/drop" + query, body: `{"add":["10.0.0.0/12"]}`, token: token}
	}
	decode[wire.ListResult](t, s.do(t, put("", "192.0.2.0/24", operatorToken)), 200)
	add(t, s, `{"target":{"list":"drop"}}`)
	for what, q := range map[string]func(query, token string) request{
		"put":   func(query, token string) request { return put(query, "198.18.0.0/15", token) },
		"patch": patch,
	} {
		if p := refused(t, s, q("", adminToken), 409, wire.CodeTooMany); !strings.Contains(p.Detail, "force") {
			t.Errorf("%s: %s", what, p.Detail)
		}
		if p := refused(t, s, q("?force=true", operatorToken), 403, wire.CodeForbidden); p.Errors[0].Location != "query.force" {
			t.Errorf("%s: %+v", what, p)
		}
		if r := decode[wire.ListResult](t, s.do(t, q("?dry_run=true", operatorToken)), 200); !strings.Contains(r.Refused, "65536 addresses") {
			t.Errorf("a dry run of %s says %q", what, r.Refused)
		}
	}
	if l := decode[wire.List](t, s.do(t, request{method: "GET", path: "/v1/lists/drop"}), 200); l.Size != 1 {
		t.Fatalf("refused writes left %+v", l)
	}
	decode[wire.ListResult](t, s.do(t, patch("?force=true", adminToken)), 200)
	decode[wire.ListResult](t, s.do(t, put("", "192.0.2.0/24", operatorToken)), 200)
	decode[wire.ListResult](t, s.do(t, put("?force=true", "198.18.0.0/15", adminToken)), 200)
}

// TestAnyNodeTellsHowListsAreLoaded: the leader is asked; without it everything else is shown.
func TestAnyNodeTellsHowListsAreLoaded(t *testing.T) {
	f := newFleet(t, "n2")
	s := newServer(t, f)
	at := time.Now().UTC().Truncate(time.Second)
	f.Standing.Leader = "n2"
	f.Peers["n2"].Sources = map[string]fsm.SourceStatus{"drop": {CheckedAt: at, Error: "404 Not Found"}, "gone": {CheckedAt: at}}
	f.Apply(fsm.DescribeList{Name: "plain"})
	get := func() (one, other wire.List) {
		t.Helper()
		page := decode[wire.Page[wire.List]](t, s.do(t, request{method: "GET", path: "/v1/lists"}), 200)
		return decode[wire.List](t, s.do(t, request{method: "GET", path: "/v1/lists/drop"}), 200), page.Items[0]
	}
	decode[wire.List](t, s.do(t, request{method: "PUT", path: "/v1/lists/drop/source", body: `{"url":"https://lists.example/drop.txt","interval":"1d"}`}), 200)
	if one, other := get(); one.Source.LastError != "404 Not Found" || !one.Source.CheckedAt.Equal(at) || other.Source.LastError != one.Source.LastError {
		t.Errorf("one says %+v, all say %+v", one.Source, other.Source)
	}
	f.Peers["n2"].Down = true
	if one, other := get(); one.Source == nil || !one.Source.CheckedAt.IsZero() || other.Source == nil {
		t.Errorf("without the leader one says %+v, all say %+v", one.Source, other.Source)
	}
	asked := f.Peers["n2"].Asked
	decode[wire.List](t, s.do(t, request{method: "GET", path: "/v1/lists/plain"}), 200)
	if f.Peers["n2"].Asked != asked {
		t.Error("the leader was asked about a list without a source")
	}
}
