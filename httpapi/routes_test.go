package httpapi

import (
	"bytes"
	"flag"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/palisade/palisade/httpapi/wire"
)

var update = flag.Bool("update", false, "write docs/openapi.json")

// sample gives a request that a route answers, for its method and path.
func sample(rt route) request {
	path := strings.NewReplacer("{prefix}", "198.51.100.0/24", "{vm}", "vm-2", "{name}", "feed", "/v1/vms/{id}", "/v1/vms/vm-1", "/v1/vms/{id}/", "/v1/vms/vm-1/", "/v1/nodes/{id}/", "/v1/nodes/n2/", "/v1/nodes/{id}", "/v1/nodes/n1",
		"/v1/accounts/{id}", "/v1/accounts/alice", "{id}", "b1").Replace(rt.op.Path)
	q := request{method: rt.op.Method, path: path}
	switch rt.op.OperationID {
	case "libvirt-hook":
		q.body = `{"guest":"web","operation":"migrate","xml":"<domain/>"}`
	case "retire-node":
		q.body = `{"force":true}`
	case "settle-epoch":
		q.body = `{"epoch":1}`
	case "add-block":
		q.body = `{"target":{"prefix":"203.0.113.9"}}`
	case "search":
		q.path += "?q=web"
	case "explain":
		q.path += "?vm=vm-1"
	case "bulk-blocks":
		q.body = `{"add":{"target":{"prefix":"203.0.113.9"}}}`
	case "lift-reason":
		q.path += "?vm=vm-1&reason=manual"
	case "patch-block":
		q.body, q.header = `{"note":"x"}`, map[string]string{"If-Match": `"5"`}
	case "put-account":
		q.body = `{"note":"x"}`
	case "put-settings":
		q.body = `{"max_vms":10,"max_addresses":256,"redirect":{"title":"","text":"","link":""}}`
	case "put-list":
		q.body, q.header = "192.0.2.0/24", map[string]string{"Content-Type": "text/plain"}
	case "patch-list":
		q.body = `{"add":["192.0.2.0/24"]}`
	case "put-list-source":
		q.body = `{"url":"https://lists.example/drop.txt","interval":"1h"}`
	case "put-vm":
		q.body = `{"owner":"alice"}`
	case "create-token":
		q.body = `{"name":"ci","scope":"viewer"}`
	case "add-guard":
		q.body = `{"prefix":"198.51.100.0/24"}`
	}
	return q
}

func TestUnknownRoutesAndMethods(t *testing.T) {
	s := newServer(t, newFleet(t))
	for _, path := range []string{"/", "/v1", "/v1/blocks/", "/v1/blocks/b1/x", "/v2/blocks", "/v1/%2e%2e/metrics", "/docs", "/schemas/Block.json", "/openapi.yaml"} {
		p := decode[wire.Problem](t, s.do(t, request{method: "GET", path: path, token: "-"}), 404)
		if p.Code != wire.CodeNotFound {
			t.Errorf("%s: %+v", path, p)
		}
	}
	for path, allow := range map[string]string{"/v1/blocks": "GET, POST, DELETE", "/v1/blocks/b1/confirm": "POST", "/v1/vms/x": "GET, PUT", "/v1/guards/10.0.0.0/8": "DELETE", "/v1/status": "GET"} {
		for _, m := range []string{"PATCH", "BREW"} {
			res := s.do(t, request{method: m, path: path})
			p := decode[wire.Problem](t, res, 405)
			if p.Code != wire.CodeMethod || res.Header.Get("Allow") != allow {
				t.Errorf("%s %s: %+v, Allow %q, want %q", m, path, p, res.Header.Get("Allow"), allow)
			}
		}
	}
}

func TestOpenAPIDocumentIsCurrent(t *testing.T) {
	const path = "../docs/openapi.json"
	res := newServer(t, newFleet(t)).do(t, request{method: "GET", path: "/openapi.json", token: "-"})
	got, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.MkdirAll("../docs", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/openapi.json is not what the routes say; run: go test ./httpapi -run OpenAPI -update")
	}
	for _, must := range []string{`"openapi": "3.1.0"`, `"/v1/guards/{prefix}"`, `"Idempotency-Key"`, `"202"`, `"text/event-stream"`, `outcome_unknown`} {
		if !bytes.Contains(got, []byte(must)) {
			t.Errorf("the document lacks %s", must)
		}
	}
}
