package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// post sends any bytes as a body. Whatever they are, the answer is a success that was proposed, or a
// problem with a code of the table, and never a 500.
func post(t *testing.T, s *Server, f *fleet, method, path string, body []byte, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(string(body)))
	r.Header.Set("Authorization", "Bearer "+adminToken)
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = []string{header[i+1]}
	}
	before := len(f.Proposals())
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	res := w.Result()
	switch res.StatusCode / 100 {
	case 2:
		if method != "GET" && len(f.Proposals()) != before+1 {
			t.Fatalf("%d without a proposal", res.StatusCode)
		}
		if !json.Valid(w.Body.Bytes()) {
			t.Fatalf("not JSON: %q", w.Body)
		}
	default:
		var p wire.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
			t.Fatalf("%v: %q", err, w.Body)
		}
		if status, _ := kindOf(p.Code); status != res.StatusCode || p.Code == wire.CodeInternal {
			t.Fatalf("status %d, code %q: %s", res.StatusCode, p.Code, p.Detail)
		}
		if w.Body.Len() > 32<<10 {
			t.Fatalf("a problem of %d bytes", w.Body.Len())
		}
	}
	return res
}

func FuzzBlockBody(f *testing.F) {
	for _, s := range []string{
		`{"target":{"vm":"vm-1"},"reason":"abuse","note":"x"}`, `{"target":{"prefix":"10.0.0.0/8"}}`, `{"target":{"prefix":"::ffff:10.0.0.1/104"}}`,
		`{"Target":{"VM":"vm-1"},"target":{"prefix":"10.0.0.1"}}`, `{"target":null}`, `null`, `[[[`, `{"a":1e999}`, "\xff\xfe", `{"note":"\ud800"}`,
	} {
		f.Add([]byte(s))
	}
	fl := newFleet(f)
	fl.RunVM("vm-1", "web", "n1", "192.0.2.7")
	s := newServer(f, fl)
	f.Fuzz(func(t *testing.T, body []byte) {
		res := post(t, s, fl, "POST", "/v1/blocks", body)
		if res.StatusCode != http.StatusCreated {
			return
		}
		// What was accepted holds exactly one target, and never anything guarded.
		var b wire.Block
		if err := json.NewDecoder(res.Body).Decode(&b); err != nil || (b.Target.VM == "") == (b.Target.Prefix == "") {
			t.Fatalf("%v: %+v", err, b)
		}
		if b.Target.Prefix != "" {
			p, err := fsm.ParsePrefix("", b.Target.Prefix)
			if err != nil {
				t.Fatalf("the answer's prefix does not parse: %v", err)
			}
			for _, g := range fsm.BuiltinGuards() {
				if g.Prefix.Overlaps(p) {
					t.Fatalf("%s is blocked", p)
				}
			}
		}
	})
}

func FuzzVMBody(f *testing.F) {
	f.Add("vm-1", []byte(`{"name":"a","owner":"b","addresses":["10.0.0.1","2001:db8::/64"]}`), `"1"`)
	f.Add("..%2f", []byte(`{"addresses":[null]}`), `W/"1"`)
	f.Add("%00", []byte(`{"addresses":{}}`), `*`)
	fl := newFleet(f)
	s := newServer(f, fl)
	f.Fuzz(func(t *testing.T, id string, body []byte, match string) {
		if id == "" || id == "." || id == ".." || strings.ContainsAny(match, "\r\n\x00") {
			return // another route, or no request
		}
		post(t, s, fl, "PUT", "/v1/vms/"+url.PathEscape(id), body, "If-Match", match)
	})
}

func FuzzCursor(f *testing.F) {
	f.Add(encodeCursor("vm", "vm-1"))
	f.Add("")
	f.Add("dm06")
	f.Add("dm06\r000") // was taken, though it is not what any page says
	f.Add("!!")
	f.Fuzz(func(t *testing.T, cursor string) {
		after, err := decodeCursor("vm", cursor)
		if err == nil && cursor != "" && encodeCursor("vm", after) != cursor {
			t.Fatalf("%q decodes to %q, which is not its own", cursor, after)
		}
		if err == nil && (after == "") != (cursor == "") {
			t.Fatalf("%q starts the list again", cursor)
		}
	})
}

func FuzzLastEventID(f *testing.F) {
	for _, s := range []string{"0", "17", "-1", "18446744073709551615", "18446744073709551616", "0x10", "1_000", " 1", ""} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, header, query string) {
		in := eventsInput{LastEventID: header, From: query}
		index, given, err := in.after()
		switch {
		case err != nil:
			if p, ok := errors.AsType[*wire.Problem](err); !ok || p.Code != wire.CodeInvalid {
				t.Fatalf("%v", err)
			}
		case given != (header != "" || query != ""):
			t.Fatalf("given is %v for %q and %q", given, header, query)
		case !given && index != 0:
			t.Fatalf("index %d from nothing", index)
		}
	})
}

// Any sequence of parameters on any route is answered without a fault.
func FuzzRequest(f *testing.F) {
	f.Add("/v1/vms", "limit=1&cursor=dm06")
	f.Add("/v1/guards/10.0.0.0/8", "all=true")
	f.Add("/v1/blocks/%2e%2e", "%zz=1&&=")
	f.Add("/v1/vms/a%2Fb%00", "consistency=strong")
	fl := newFleet(f)
	fl.RunVM("vm-1", "web", "n1", "192.0.2.7")
	s := newServer(f, fl)
	f.Fuzz(func(t *testing.T, path, query string) {
		u, err := url.ParseRequestURI(path)
		if err != nil || u.Host != "" || u.RawQuery != "" || !strings.HasPrefix(path, "/v1/") || u.Path == "/v1/events" {
			return
		}
		u.RawQuery = strings.Map(func(r rune) rune {
			if r <= ' ' || r > '~' || r == '#' {
				return 'x'
			}
			return r
		}, query)
		r := httptest.NewRequest(http.MethodGet, "/v1/status", nil)
		r.URL = u
		r.Header.Set("Authorization", "Bearer "+viewerToken)
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if w.Code >= 500 || !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%s: %d %s", u, w.Code, w.Body)
		}
	})
}

// Any lines give one result each, or one problem; an element that is done was proposed, and none is a fault.
func FuzzBulk(f *testing.F) {
	for _, s := range []string{
		`{"target":{"prefix":"203.0.113.9"}}`, `{"add":{"target":{"vm":"vm-1"},"kind":"ports","ports":["tcp/25",{"protocol":"udp"}]}}`,
		`{"lift":{"id":"b1"}}` + "\n\n" + `{"lift":{"target":{"account":"a"},"reason":"x"}}`, `{"patch":{"id":"b1","ends_at":null,"note":null,"revision":3}}`,
		`{"add":null}`, `{"patch":{"id":"b1","starts_at":"2090-01-01T00:00:00Z"}}` + "\r\n[", `{"add":{},"add":{"target":{"vm":"vm-1"}}}`, "\xff\n{}", `{"lift":{"target":null}}`,
	} {
		f.Add([]byte(s), false)
	}
	fl := newFleet(f)
	fl.RunVM("vm-1", "web", "n1", "192.0.2.7")
	s := newServer(f, fl)
	f.Fuzz(func(t *testing.T, body []byte, atomic bool) {
		r := httptest.NewRequest(http.MethodPost, "/v1/blocks/bulk?atomic="+strconv.FormatBool(atomic), bytes.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+adminToken)
		before := fl.View().Index()
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if w.Header().Get("Content-Type") != "application/jsonl" {
			var p wire.Problem
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code >= 500 || fl.View().Index() != before {
				t.Fatalf("%d: %s", w.Code, w.Body)
			}
			return
		}
		done := false
		for d := json.NewDecoder(w.Body); d.More(); {
			var e wire.BulkResult
			if err := d.Decode(&e); err != nil || e.Status >= 500 || e.Status == 0 || (e.Problem == nil) != (e.Status < 300) {
				t.Fatalf("%v: %+v", err, e)
			}
			done = done || e.Problem == nil
		}
		if done && fl.View().Index() == before || atomic && done != (w.Code == http.StatusOK) {
			t.Fatalf("%d, done %v", w.Code, done)
		}
	})
}

func FuzzPatch(f *testing.F) {
	for _, s := range []string{`{"ends_at":null}`, `{"note":"x","confirm":true}`, `{"starts_at":"2090-01-01T00:00:00Z"}`, `{"ends_at":"1500-01-01T00:00:00Z"}`, `{"ends_at":{}}`, `null`, `{"Note":"x","note":7}`} {
		f.Add([]byte(s))
	}
	fl := newFleet(f)
	was := &fsm.Block{State: fsm.BlockLifted}
	s := newServer(f, fl)
	f.Fuzz(func(t *testing.T, body []byte) {
		if was.State.Over() {
			b := add(t, s, `{"target":{"account":"a"},"starts_at":"2098-01-01T00:00:00Z"}`)
			was, _ = fl.View().Block(b.ID)
		}
		post(t, s, fl, "PATCH", "/v1/blocks/"+was.ID, body, "If-Match", etag(was.Revision))
		is, _ := fl.View().Block(was.ID)
		if is.Target != was.Target || is.Reason != was.Reason || is.Due().After(latestTime()) {
			t.Fatalf("%+v", is)
		}
		was = is
	})
}

// Whatever is sent as a token or as the cookie of a session lets nobody in who has none of the
// fleet's, is no fault, and is not in the answer.
func FuzzCredentials(f *testing.F) {
	f.Add("Bearer x", "__Host-palisade=x")
	f.Add("bearer "+adminToken[1:], "__Host-palisade=; __Host-palisade=a")
	f.Add("Basic YTpi", "__Host-palisade=\"\x00\"; =;;")
	f.Add("", "__Host-palisade="+strings.Repeat("A", 100))
	s := newServer(f, newFleet(f))
	f.Fuzz(func(t *testing.T, token, cookies string) {
		_, bare, _ := strings.Cut(token, " ")
		switch strings.TrimSpace(bare) {
		case adminToken, operatorToken, viewerToken, metricsToken:
			return
		}
		r := httptest.NewRequest(http.MethodGet, "/v1/whoami", nil)
		r.Header["Authorization"] = []string{token}
		r.Header["Cookie"] = []string{cookies}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		var p wire.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != http.StatusUnauthorized || p.Code != wire.CodeUnauthorized {
			t.Fatalf("%q, %q: %d %s", token, cookies, w.Code, w.Body)
		}
		if len(bare) > 20 && strings.Contains(w.Body.String(), bare) {
			t.Fatalf("the answer has the token %q: %s", bare, w.Body)
		}
	})
}
