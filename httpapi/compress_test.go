package httpapi

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"testing"
)

// TestLargeAnswersAreCompressed: for who asks for it, and what has no secrets; all else is as it was.
func TestLargeAnswersAreCompressed(t *testing.T) {
	f := newFleet(t)
	for i := range 200 {
		f.RunVM(fmt.Sprintf("vm-%03d", i), "web", "n1", fmt.Sprintf("192.0.2.%d", i))
	}
	s := newServer(t, f)
	accept := map[string]string{"Accept-Encoding": "gzip"}
	read := func(r io.Reader) string {
		t.Helper()
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	plain := s.do(t, request{method: "GET", path: "/v1/vms"})
	want := read(plain.Body)
	if enc := plain.Header.Get("Content-Encoding"); enc != "" || len(want) < 20_000 {
		t.Fatalf("not asked for, and encoded as %q; %d bytes", enc, len(want))
	}
	res := s.do(t, request{method: "GET", path: "/v1/vms", header: accept})
	if res.Header.Get("Content-Encoding") != "gzip" || res.Header.Get("Vary") != "Accept-Encoding" || res.Header.Get("Content-Type") != plain.Header.Get("Content-Type") {
		t.Fatalf("the header is %v", res.Header)
	}
	packed := read(res.Body)
	if len(packed) > len(want)/5 {
		t.Errorf("%d bytes of %d", len(packed), len(want))
	}
	res = s.do(t, request{method: "GET", path: "/v1/vms", header: accept})
	z, err := gzip.NewReader(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(z); got != want {
		t.Errorf("unpacked it has %d bytes, want %d", len(got), len(want))
	}
	for _, q := range []request{
		{method: "GET", path: "/v1/vms/vm-001", header: accept},
		{method: "GET", path: "/v1/vms?limit=-1", header: accept},
		{method: "POST", path: "/v1/tokens", body: `{"name":"t","scope":"viewer"}`, header: accept},
	} {
		if enc := s.do(t, q).Header.Get("Content-Encoding"); enc != "" {
			t.Errorf("%s %s is encoded as %s", q.method, q.path, enc)
		}
	}
	if res := s.do(t, request{method: http.MethodGet, path: "/v1/nodes", token: "-", header: accept}); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a token: %d", res.StatusCode)
	}
}
