package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

func mustPrefix(t testing.TB, s string) netip.Prefix {
	t.Helper()
	p, err := fsm.ParsePrefix("", s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Bad input gets a problem that names the field and what would be right, and changes nothing.
func TestBadInput(t *testing.T) {
	post := func(body string) request { return request{method: "POST", path: "/v1/blocks", body: body} }
	prefix := func(p string) request { return post(`{"target":{"prefix":` + fmt.Sprintf("%q", p) + `}}`) }
	get := func(path string) request { return request{method: "GET", path: path} }
	with := func(q request, k, v string) request { q.header = map[string]string{k: v}; return q }
	cases := map[string]struct {
		q        request
		status   int
		code     wire.Code
		location string
		says     string
	}{
		"unknown VM":              {post(`{"target":{"vm":"nope"}}`), 404, wire.CodeVMNotFound, "body.target.vm", "nope"},
		"ambiguous name":          {post(`{"target":{"vm":"twin"}}`), 409, wire.CodeAmbiguous, "body.target.vm", "vm-2"},
		"malformed prefix":        {prefix("10.0.0.300"), 422, wire.CodeInvalid, "body.target.prefix", "10.0.0.300"},
		"host bits":               {prefix("10.0.0.7/24"), 422, wire.CodeInvalid, "body.target.prefix", "10.0.0.0/24"},
		"everything, IPv4":        {prefix("0.0.0.0/0"), 422, wire.CodeTooWide, "body.target.prefix", "/8"},
		"everything, IPv6":        {prefix("::/0"), 422, wire.CodeTooWide, "body.target.prefix", "/16"},
		"loopback":                {prefix("127.0.0.1"), 409, wire.CodeGuardConflict, "body.target.prefix", "loopback"},
		"zone":                    {prefix("fe80::1%eth0"), 422, wire.CodeInvalid, "body.target.prefix", "zone"},
		"no target":               {post(`{"reason":"x"}`), 422, wire.CodeInvalid, "body", "target"},
		"empty target":            {post(`{"target":{}}`), 422, wire.CodeInvalid, "body.target", "exactly one"},
		"two targets":             {post(`{"target":{"vm":"vm-1","prefix":"10.0.0.1"}}`), 422, wire.CodeInvalid, "body.target", "exactly one"},
		"target is text":          {post(`{"target":"10.0.0.1"}`), 422, wire.CodeInvalid, "body.target", "object"},
		"reason with odd letters": {post(`{"target":{"prefix":"10.0.0.1"},"reason":"Über"}`), 422, wire.CodeInvalid, "body.reason", "a-z"},
		"reason too long":         {post(`{"target":{"prefix":"10.0.0.1"},"reason":"` + strings.Repeat("a", 65) + `"}`), 422, wire.CodeInvalid, "body.reason", "64"},
		"note with an escape":     {post("{\"target\":{\"prefix\":\"10.0.0.1\"},\"note\":\"\\u001b[2J\"}"), 422, wire.CodeInvalid, "body.note", "control"},
		"unknown field":           {post(`{"target":{"prefix":"10.0.0.1"},"reson":"abuse"}`), 422, wire.CodeInvalid, "body.reson", "unknown field"},
		"unknown nested field":    {post(`{"target":{"prefix":"10.0.0.1","cidr":"x"}}`), 422, wire.CodeInvalid, "body.target.cidr", "unknown field"},
		"large unknown field":     {post(`{"target":{"prefix":"10.0.0.1"},"x":{"y":"` + strings.Repeat("a", 10_000) + `"}}`), 422, wire.CodeInvalid, "body.x", "unknown field"},
		"wrong type":              {post(`{"target":{"prefix":7}}`), 422, wire.CodeInvalid, "body.target.prefix", "string"},
		"no body":                 {post(""), 400, wire.CodeMalformedJSON, "", "JSON"},
		"not JSON":                {post(`{"target":`), 400, wire.CodeMalformedJSON, "", "unexpected end"},
		"two documents":           {post(`{"target":{"prefix":"10.0.0.1"}} {}`), 400, wire.CodeMalformedJSON, "", "after top-level"},
		"deep":                    {post(strings.Repeat(`[`, 100_000)), 400, wire.CodeMalformedJSON, "", "depth"},
		"an array":                {post(`[]`), 422, wire.CodeInvalid, "body", "object"},
		"a form":                  {with(post(`target=x`), "Content-Type", "application/x-www-form-urlencoded"), 415, wire.CodeMediaType, "", "application/json"},
		"too large":               {post(`{"note":"` + strings.Repeat("a", 1<<20) + `"}`), 413, wire.CodeTooLarge, "", "1048576"},
		"unknown parameter":       {request{method: "POST", path: "/v1/blocks?wiat=enforced", body: `{"target":{"prefix":"10.0.0.1"}}`}, 422, wire.CodeInvalid, "query.wiat", "wait, timeout"},
		"unknown wait":            {request{method: "POST", path: "/v1/blocks?wait=yes", body: `{"target":{"prefix":"10.0.0.1"}}`}, 422, wire.CodeInvalid, "query.wait", "enforced"},
		"timeout too short":       {request{method: "POST", path: "/v1/blocks?wait=enforced&timeout=99ms", body: `{"target":{"prefix":"10.0.0.1"}}`}, 422, wire.CodeInvalid, "query.timeout", "100ms to 60s"},
		"timeout too long":        {request{method: "DELETE", path: "/v1/blocks/b1?wait=enforced&timeout=61s"}, 422, wire.CodeInvalid, "query.timeout", "100ms to 60s"},
		"timeout without unit":    {request{method: "DELETE", path: "/v1/blocks/b1?wait=enforced&timeout=5"}, 422, wire.CodeInvalid, "query.timeout", "5s"},
		"If-Match without quotes": {with(request{method: "DELETE", path: "/v1/blocks/b1"}, "If-Match", "7"), 422, wire.CodeInvalid, "header.If-Match", `"17"`},
		"weak If-Match":           {with(request{method: "DELETE", path: "/v1/blocks/b1"}, "If-Match", `W/"7"`), 422, wire.CodeInvalid, "header.If-Match", "quotes"},
		"If-Match on a guard":     {with(request{method: "DELETE", path: "/v1/guards/10.9.0.0/16"}, "If-Match", `"7"`), 422, wire.CodeInvalid, "header.If-Match", "without"},
		"lift unknown":            {request{method: "DELETE", path: "/v1/blocks/b99"}, 404, wire.CodeNotFound, "path.id", "b99"},
		"lift nonsense":           {request{method: "DELETE", path: "/v1/blocks/..%2Fvms"}, 422, wire.CodeInvalid, "path.id", "b17"},
		"show unknown":            {get("/v1/blocks/b99"), 404, wire.CodeNotFound, "path.id", "b99"},
		"unknown node":            {get("/v1/nodes/n9"), 404, wire.CodeNotFound, "path.id", "n9"},
		"unknown VM shown":        {get("/v1/vms/nope"), 404, wire.CodeNotFound, "path.id", "nope"},
		"ambiguous VM shown":      {get("/v1/vms/twin"), 409, wire.CodeAmbiguous, "path.id", "vm-2"},
		"limit 0":                 {get("/v1/vms?limit=0"), 422, wire.CodeInvalid, "query.limit", "1"},
		"limit too high":          {get("/v1/blocks?limit=1001"), 422, wire.CodeInvalid, "query.limit", "1000"},
		"limit is text":           {get("/v1/blocks?limit=many"), 422, wire.CodeInvalid, "query.limit", "integer"},
		"nonsense cursor":         {get("/v1/vms?cursor=%21"), 422, wire.CodeInvalid, "query.cursor", "next of the page"},
		"cursor of another list":  {get("/v1/vms?cursor=" + encodeCursor("block", "b1")), 422, wire.CodeInvalid, "query.cursor", "next of the page"},
		"filter by both":          {get("/v1/blocks?vm=vm-1&prefix=10.0.0.1"), 422, wire.CodeInvalid, "query", "exactly one of"},
		"filter by unknown VM":    {get("/v1/blocks?vm=nope"), 404, wire.CodeNotFound, "query.vm", "nope"},
		"filter by bad prefix":    {get("/v1/blocks?prefix=x"), 422, wire.CodeInvalid, "query.prefix", "CIDR"},
		"filter by unknown state": {get("/v1/blocks?state=gone"), 422, wire.CodeInvalid, "query.state", "lifted"},
		"bad consistency":         {get("/v1/status?consistency=eventual"), 422, wire.CodeInvalid, "query.consistency", "strong"},
		"bad event id":            {with(get("/v1/events"), "Last-Event-ID", "-1"), 422, wire.CodeInvalid, "header.Last-Event-ID", "17"},
		"bad from":                {get("/v1/events?from=x"), 422, wire.CodeInvalid, "query.from", "17"},
		"VM id with a slash":      {request{method: "PUT", path: "/v1/vms/a%2Fb", body: `{}`}, 422, wire.CodeInvalid, "path.id", "A-Z"},
		"VM with a bad address":   {request{method: "PUT", path: "/v1/vms/vm-9", body: `{"addresses":["10.0.0.1","10.0.0.1/8"]}`}, 422, wire.CodeInvalid, "body.addresses[1]", "10.0.0.0/8"},
		"VM with a wide prefix":   {request{method: "PUT", path: "/v1/vms/vm-9", body: `{"addresses":["0.0.0.0/1"]}`}, 422, wire.CodeTooWide, "body.addresses", "/8"},
		"VM with a guarded one":   {request{method: "PUT", path: "/v1/vms/vm-9", body: `{"addresses":["127.0.0.1"]}`}, 409, wire.CodeGuardConflict, "body.addresses", "loopback"},
		"VM with too many":        {request{method: "PUT", path: "/v1/vms/vm-9", body: `{"addresses":[` + strings.TrimSuffix(strings.Repeat(`"10.0.0.1",`, 1025), ",") + `]}`}, 422, wire.CodeInvalid, "body.addresses", "1024"},
		"guard against a block":   {request{method: "POST", path: "/v1/guards", body: `{"prefix":"203.0.113.0/24"}`}, 409, wire.CodeConflict, "body.prefix", "b1"},
		"unknown guard":           {request{method: "DELETE", path: "/v1/guards/10.9.0.0/16"}, 404, wire.CodeNotFound, "path.prefix", "10.9.0.0/16"},
		"no guard":                {request{method: "DELETE", path: "/v1/guards/"}, 422, wire.CodeInvalid, "path.prefix", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			f.RunVM("vm-1", "twin", "n1", "192.0.2.7")
			f.RunVM("vm-2", "twin", "n1", "192.0.2.8")
			f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "203.0.113.5")}})
			hash, events := f.View().Hash(), f.View().CountBlocks()
			n := len(f.Proposals())
			s := newServer(t, f)
			res := s.do(t, c.q)
			if ct := res.Header.Get("Content-Type"); ct != "application/problem+json" {
				t.Errorf("Content-Type %q", ct)
			}
			p := decode[wire.Problem](t, res, c.status)
			if p.Code != c.code || p.Status != c.status || p.Title == "" || p.Type != "urn:palisade:problem:"+string(c.code) {
				t.Errorf("problem %+v, want code %s", p, c.code)
			}
			var text strings.Builder
			text.WriteString(p.Detail)
			found := c.location == ""
			for _, e := range p.Errors {
				if strings.HasPrefix(e.Location, c.location) {
					found = true
					text.WriteString(e.Message)
				}
			}
			if !found {
				t.Errorf("no error at %s in %+v", c.location, p)
			}
			if !strings.Contains(text.String(), c.says) {
				t.Errorf("%q does not say %q", text.String(), c.says)
			}
			if b, err := json.Marshal(p); err != nil || len(b) > 4096 {
				t.Errorf("the problem has %d bytes", len(b))
			}
			if len(f.Proposals()) == n && f.View().Hash() != hash {
				t.Error("the state changed")
			}
			if f.View().CountBlocks() != events {
				t.Error("a block was made")
			}
		})
	}
}

func TestOutcomes(t *testing.T) {
	add := request{method: "POST", path: "/v1/blocks", body: `{"target":{"prefix":"203.0.113.5"}}`, header: map[string]string{"Idempotency-Key": "k1"}}
	f := newFleet(t)
	s := newServer(t, f)
	f.FailWith = func(fsm.Command) error { return fmt.Errorf("leader n2 was lost: %w", fsm.ErrUnavailable) }
	res := s.do(t, add)
	p := decode[wire.Problem](t, res, 503)
	if p.Code != wire.CodeNoQuorum || res.Header.Get("Retry-After") == "" || !strings.Contains(p.Detail, "leader n2 was lost") {
		t.Errorf("got %+v, Retry-After %q", p, res.Header.Get("Retry-After"))
	}
	f.FailWith, f.FailAfter = nil, fmt.Errorf("the answer was lost: %w", fsm.ErrUnknown)
	p = decode[wire.Problem](t, s.do(t, add), 504)
	if p.Code != wire.CodeUnknownOutcome || p.Instance != "k1" || !strings.Contains(p.Detail, "safe") {
		t.Errorf("got %+v", p)
	}
	// A caller without a key is told the one that was used, so that it can still find out.
	noKey := add
	noKey.header = nil
	p = decode[wire.Problem](t, s.do(t, noKey), 504)
	if !strings.HasPrefix(p.Instance, "auto-") || !strings.Contains(p.Detail, p.Instance) {
		t.Errorf("got %+v", p)
	}
	f.FailAfter = nil
	retry := s.do(t, add)
	b := decode[wire.Block](t, retry, 201)
	if retry.Header.Get("Idempotency-Replayed") != "true" || b.ID != "b1" {
		t.Errorf("the retry made %s", b.ID)
	}
	noKey.header = map[string]string{"Idempotency-Key": p.Instance}
	if b := decode[wire.Block](t, s.do(t, noKey), 201); b.ID != "b2" {
		t.Errorf("the retry with the server's key made %s", b.ID)
	}
	f.FailWith = func(fsm.Command) error { return errors.New("secret internals: token=hunter2") }
	p = decode[wire.Problem](t, s.do(t, request{method: "POST", path: "/v1/blocks", body: add.body}), 500)
	if p.Code != wire.CodeInternal || strings.Contains(p.Detail, "hunter2") {
		t.Errorf("got %+v", p)
	}
}

// Every code of the state machine and of the document has a row in the table.
func TestEveryCodeHasAKind(t *testing.T) {
	for _, c := range []fsm.Code{fsm.CodeInvalid, fsm.CodeTooWide, fsm.CodeNotFound, fsm.CodeAmbiguous, fsm.CodeGuardConflict,
		fsm.CodeConflict, fsm.CodeRevision, fsm.CodeKeyReused, fsm.CodeStale, fsm.CodeUnsupported, fsm.CodeUpgrade} {
		if _, ok := codeOf(c); !ok {
			t.Errorf("code %s is not mapped", c)
		}
		if p := refusalProblem(&fsm.Error{Code: c, Detail: "x"}, nil); p.Status < 400 || p.Status > 499 || p.Title == "" {
			t.Errorf("code %s: %+v", c, p)
		}
	}
	if p := refusalProblem(&fsm.Error{Code: "from_the_future", Detail: "x"}, nil); p.Status != 422 {
		t.Errorf("an unknown refusal answers %d", p.Status)
	}
	for _, rt := range routes() {
		for _, c := range rt.codes {
			if status, _ := kindOf(c); status == 0 {
				t.Errorf("%s: code %s has no kind", rt.op.Path, c)
			}
		}
	}
}

func TestPanicIsAProblem(t *testing.T) {
	f := newFleet(t)
	f.FailWith = func(fsm.Command) error { panic("boom") }
	s := newServer(t, f)
	p := decode[wire.Problem](t, s.do(t, request{method: "POST", path: "/v1/blocks", body: `{"target":{"prefix":"203.0.113.5"}}`}), http.StatusInternalServerError)
	if p.Code != wire.CodeInternal || strings.Contains(p.Detail, "boom") {
		t.Errorf("got %+v", p)
	}
}
