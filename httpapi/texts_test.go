package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode"

	"github.com/palisade/palisade/httpapi/wire"
)

// hostileTexts are what a caller may put where a text belongs.
var hostileTexts = []string{
	"<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "a\x1b[2J\x1b]0;owned\x07", "a\u202eb", "a\x00b", "a\r\nSet-Cookie: x=y", "../../../etc/passwd", "..\\..", "%2e%2e%2f", "/etc/shadow",
	"file:///etc/shadow", "javascript:alert(1)", "${jndi:ldap://x}", "{{.}}", strings.Repeat("x", 10_000), "' OR 1=1 --", "\ufeff", "a\u0301\u0301",
}

// leaves calls change for each string in a document, which sets it.
func leaves(v any, set func(any), visit func(set func(any))) {
	switch v := v.(type) {
	case map[string]any:
		for k, inner := range v {
			leaves(inner, func(x any) { v[k] = x }, visit)
		}
	case []any:
		for i, inner := range v {
			leaves(inner, func(x any) { v[i] = x }, visit)
		}
	case string:
		visit(set)
	}
}

// TestHostileTexts puts hostile texts into every text of every body, and into every part of every path and query. None is a
// fault, and what comes back of them is text in JSON that neither a browser nor a terminal would take for more.
func TestHostileTexts(t *testing.T) {
	s := newServer(t, newFleet(t))
	tried := 0
	try := func(q request) {
		t.Helper()
		tried++
		res := s.do(t, q)
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode >= 500 && res.StatusCode != http.StatusServiceUnavailable && res.StatusCode != http.StatusNotImplemented {
			t.Errorf("%s %s %.200s: %d %.300s", q.method, q.path, q.body, res.StatusCode, body)
		}
		if kind := res.Header.Get("Content-Type"); len(body) > 0 && !strings.HasPrefix(kind, "application/") && !strings.HasPrefix(kind, "text/plain") {
			t.Errorf("%s %s is answered as %s", q.method, q.path, kind)
		}
		if len(body) > 0 && res.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s %s: a browser may guess what the answer is", q.method, q.path)
		}
		for name, values := range res.Header {
			if name == "X" || name == "Set-Cookie" && strings.Contains(fmt.Sprint(values), "x=y") || strings.ContainsFunc(fmt.Sprint(values), unicode.IsControl) {
				t.Errorf("%s %s: a header came from a text: %s: %q", q.method, q.path, name, values)
			}
		}
		if at := bytes.IndexFunc(body, func(r rune) bool { return r == '\x1b' || r == '\x00' || r == '\x07' }); at >= 0 {
			t.Errorf("%s %s %.100q: a control character comes back: %.300q", q.method, q.path, q.body, body)
		}
	}
	for _, rt := range routes() {
		if strings.HasPrefix(rt.op.OperationID, "logout") || rt.op.Path == "/v1/events" {
			continue
		}
		for _, evil := range hostileTexts {
			q := sample(rt)
			if q.header == nil {
				q.header = map[string]string{}
			}
			q.header[csrfHeader] = "1"
			var doc any
			if json.Unmarshal([]byte(q.body), &doc) == nil {
				leaves(doc, nil, func(set func(any)) {
					set(evil)
					b, err := json.Marshal(doc)
					if err != nil {
						t.Fatal(err)
					}
					inner := q
					inner.body = string(b)
					try(inner)
				})
			}
			if front, rest, ok := strings.Cut(rt.op.Path, "{"); ok {
				inner := q
				inner.path = front + url.PathEscape(evil) + rest[strings.LastIndex(rest, "}")+1:]
				try(inner)
			}
			if q.method == http.MethodGet {
				inner := q
				for _, name := range []string{"cursor", "limit", "q", "vm", "from", "to", "node", "account", "state", "search"} {
					path, query, _ := strings.Cut(q.path, "?")
					values, err := url.ParseQuery(query)
					if err != nil {
						t.Fatal(err)
					}
					values.Set(name, evil)
					inner.path = path + "?" + values.Encode()
					try(inner)
				}
			}
		}
	}
	if tried < 2000 {
		t.Errorf("only %d requests were tried", tried)
	}
}

// TestSourcesStayWhereTheyMay: a list's source is no way to the files of the node, nor its name a way out of a folder.
func TestSourcesStayWhereTheyMay(t *testing.T) {
	s := newServer(t, newFleet(t))
	decode[wire.List](t, s.do(t, request{method: "PUT", path: "/v1/lists/feed", body: "192.0.2.0/24", header: map[string]string{"Content-Type": "text/plain"}}), 200)
	for _, u := range []string{"file://host/etc/passwd", "ftp://x/y", "gopher://x/", "javascript:alert(1)", "../../etc/passwd", "/etc/passwd", "https://x/\r\nHost: y", "https://\x1b[2J/"} {
		b, err := json.Marshal(map[string]string{"url": u, "interval": "1h"})
		if err != nil {
			t.Fatal(err)
		}
		res := s.do(t, request{method: "PUT", path: "/v1/lists/feed/source", body: string(b)})
		if res.StatusCode/100 == 2 {
			t.Errorf("the source %q was taken", u)
		}
		_ = res.Body.Close()
	}
	for _, name := range []string{"a/b", "../x", "a%2fb", "a\x00", "<script>", strings.Repeat("n", 300)} {
		res := s.do(t, request{method: "PUT", path: "/v1/lists/" + url.PathEscape(name), body: "192.0.2.0/24", header: map[string]string{"Content-Type": "text/plain"}})
		if res.StatusCode/100 == 2 {
			t.Errorf("a list is named %q", name)
		}
		_ = res.Body.Close()
	}
	// What root put there on the leader is fetched from there alone: only admins name a source.
	res := s.do(t, request{method: "PUT", path: "/v1/lists/feed/source", body: `{"url":"file:///etc/shadow","interval":"1h"}`, token: operatorToken})
	decode[wire.Problem](t, res, http.StatusForbidden)
}

// TestHeaderFloods: very many headers, very long ones, and very many cookies are refused before anything is done.
func TestHeaderFloods(t *testing.T) {
	s := serve(t, newFleet(t))
	before := heap()
	for name, set := range map[string]func(http.Header){
		"very many": func(h http.Header) {
			for i := range 20_000 {
				h.Set(fmt.Sprintf("X-%d", i), "y")
			}
		},
		"very long": func(h http.Header) { h.Set("X-Long", strings.Repeat("y", 8<<20)) },
		"cookies":   func(h http.Header) { h.Set("Cookie", strings.Repeat("a=b; ", 100_000)) },
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/v1/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+adminToken)
		set(r.Header)
		res, err := s.client.Do(r)
		if err != nil {
			continue // cut off while it was said
		}
		if res.StatusCode/100 != 4 {
			t.Errorf("%s: %d", name, res.StatusCode)
		}
		_ = res.Body.Close()
	}
	if grown := int64(heap()) - int64(before); grown > 16<<20 {
		t.Errorf("it keeps %d MiB", grown>>20)
	}
	decode[wire.Status](t, s.get(t, "/v1/status"), 200)
}
