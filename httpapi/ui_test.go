package httpapi

import (
	"io"
	"net/http"
	"testing"

	"github.com/palisade/palisade/httpapi/wire"
)

func TestTheUIIsServedBesideTheAPI(t *testing.T) {
	ui := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public")
		_, _ = io.WriteString(w, "page "+r.URL.Path)
	})
	s := newServer(t, newFleet(t), func(o *Options) { o.UI = ui })
	for _, path := range []string{"/", "/vms/vm-1", "/assets/a.js", "/v1x", "/login"} {
		res := s.do(t, request{method: "GET", path: path, token: "-"})
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != http.StatusOK || string(body) != "page "+path || res.Header.Get("Cache-Control") != "public" || res.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d %q %v", path, res.StatusCode, body, res.Header)
		}
	}
	if res := s.do(t, request{method: "HEAD", path: "/", token: "-"}); res.StatusCode != http.StatusOK {
		t.Errorf("HEAD: %d", res.StatusCode)
	}
	for _, q := range []request{{method: "GET", path: "/v1"}, {method: "GET", path: "/v1/nothing"}, {method: "HEAD", path: "/v1/"}, {method: "POST", path: "/"}, {method: "DELETE", path: "/assets/a.js"}} {
		if res := s.do(t, q); res.StatusCode != http.StatusNotFound || res.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s: %d %s", q.method, q.path, res.StatusCode, res.Header.Get("Content-Type"))
		}
	}
	if p := decode[wire.Problem](t, s.do(t, request{method: "GET", path: "/v1/status", token: "-"}), 401); p.Code != wire.CodeUnauthorized {
		t.Errorf("the API without a caller: %+v", p)
	}
	for path, want := range map[string]int{"/healthz": 200, "/openapi.json": 200, "/metrics": 401} {
		if res := s.do(t, request{method: "GET", path: path, token: "-"}); res.StatusCode != want || res.Header.Get("Cache-Control") == "public" {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
}
