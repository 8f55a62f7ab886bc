package web

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

// ask sends one request to the handler.
func ask(t *testing.T, method, target, accept string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, target, nil)
	if accept != "" {
		r.Header.Set("Accept-Encoding", accept)
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w.Result()
}

// text reads a body, unpacked.
func text(t *testing.T, res *http.Response) string {
	t.Helper()
	body := io.Reader(res.Body)
	if res.Header.Get("Content-Encoding") == "gzip" {
		zr, err := gzip.NewReader(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		body = zr
	}
	b, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Every place inside of the page is the page, also one of an object whose name looks like a file's.
func TestPlacesAreThePage(t *testing.T) {
	for _, p := range []string{"/", "/vms", "/vms/vm%2F1", "/lists/feed.txt", "/blacklist/schedule?x=1", "/../../etc/passwd", "/nodes/"} {
		res := ask(t, http.MethodGet, p, "")
		body := text(t, res)
		if res.StatusCode != http.StatusOK || !strings.Contains(body, `<div id="app">`) || res.Header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s: %d %v %.80s", p, res.StatusCode, res.Header, body)
		}
	}
}

// What the page names is there, is kept for ever, and is sent packed.
func TestAssets(t *testing.T) {
	index := text(t, ask(t, http.MethodGet, "/", ""))
	named := regexp.MustCompile(`(?:src|href)="(/[^"]+)"`).FindAllStringSubmatch(index, -1)
	if len(named) < 3 {
		t.Fatalf("the page names %d files: %s", len(named), index)
	}
	total := 0
	for _, m := range named {
		res := ask(t, http.MethodGet, m[1], "gzip, br")
		packed, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		total += len(packed)
		if res.StatusCode != http.StatusOK || strings.Contains(res.Header.Get("Content-Type"), "html") {
			t.Errorf("%s: %d %v", m[1], res.StatusCode, res.Header)
		}
		if strings.HasPrefix(m[1], "/assets/") && (res.Header.Get("Cache-Control") != forever || res.Header.Get("Content-Encoding") != "gzip") {
			t.Errorf("%s: %v", m[1], res.Header)
		}
		if plain := ask(t, http.MethodGet, m[1], "gzip;q=0, br"); plain.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s was sent packed to who refuses it", m[1])
		}
	}
	if total > 150_000 {
		t.Errorf("the first page takes %d bytes", total)
	}
	if res := ask(t, http.MethodGet, "/assets/index-gone.js", ""); res.StatusCode != http.StatusNotFound {
		t.Errorf("an asset of another build: %d", res.StatusCode)
	}
}

// Nothing in the page needs what the policy forbids, and nothing is loaded from elsewhere.
func TestPolicy(t *testing.T) {
	res := ask(t, http.MethodGet, "/", "")
	csp := res.Header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"} {
		if !strings.Contains(csp, want) {
			t.Errorf("no %s in %s", want, csp)
		}
	}
	if strings.Contains(csp, "unsafe") || res.Header.Get("X-Content-Type-Options") != "nosniff" || res.Header.Get("Referrer-Policy") != "no-referrer" {
		t.Errorf("%v", res.Header)
	}
	index := text(t, res)
	for _, bad := range []string{"<style", " style=", " onclick", "http://", "https://"} {
		if strings.Contains(index, bad) {
			t.Errorf("%s in %s", bad, index)
		}
	}
	if regexp.MustCompile(`<script[^>]*>[^<]`).MatchString(index) {
		t.Errorf("an inline script in %s", index)
	}
}

func TestOnlyReads(t *testing.T) {
	for _, m := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
		if res := ask(t, m, "/", ""); res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %d", m, res.StatusCode)
		}
	}
	res := ask(t, http.MethodHead, "/", "")
	if b := text(t, res); b != "" || res.StatusCode != http.StatusOK {
		t.Errorf("HEAD: %d %q", res.StatusCode, b)
	}
}

// A browser that has the page asks whether it is still the same.
func TestUnchanged(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("If-None-Match", ask(t, http.MethodGet, "/", "").Header.Get("ETag"))
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	if w.Code != http.StatusNotModified {
		t.Errorf("%d", w.Code)
	}
}
