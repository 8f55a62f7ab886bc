package httpapi

import (
	"bytes"
	"flag"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

var update = flag.Bool("update", false, "write docs/openapi.json")

// sample gives a request that a route answers, for its method and path.
func sample(rt route) request {
	path := strings.NewReplacer("{prefix}", "198.51.100.0/24", "{vm}", "vm-2", "{name}", "feed", "/v1/vms/{id}", "/v1/vms/vm-1", "/v1/nodes/{id}", "/v1/nodes/n1",
		"/v1/accounts/{id}", "/v1/accounts/alice", "{id}", "b1").Replace(rt.op.Path)
	q := request{method: rt.op.Method, path: path}
	switch rt.op.OperationID {
	case "add-block":
		q.body = `{"target":{"prefix":"203.0.113.9"}}`
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

// Every route is asked with every scope; the table of routes is the only list.
func TestScopes(t *testing.T) {
	tokens := map[string]Scope{"-": scopeOpen, "wrong": scopeOpen, metricsToken: ScopeMetrics, viewerToken: ScopeViewer, operatorToken: ScopeOperator, adminToken: ScopeAdmin}
	rank := map[Scope]int{scopeOpen: 0, ScopeMetrics: 1, ScopeViewer: 2, ScopeOperator: 3, ScopeAdmin: 4}
	for _, rt := range routes() {
		for token, has := range tokens {
			f := newFleet(t)
			f.RunVM("vm-1", "web", "n1", "192.0.2.7")
			f.Apply(fsm.DeclareVM{ID: "vm-2", Owner: "alice"})
			f.Apply(fsm.PutGuard{Prefix: mustPrefix(t, "198.51.100.0/24")})
			f.Apply(fsm.PutGuard{VM: "vm-2"})
			f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}})
			f.Apply(fsm.DescribeList{Name: "feed"})
			f.Apply(fsm.CreateToken{Name: "feed", Scope: ScopeViewer, Hash: [32]byte{1}})
			before := len(f.Proposals())
			s := newServer(t, f)
			q := sample(rt)
			q.token = token
			if rt.stream {
				s.shut() // a stream would never end; an admitted caller is told that the node shuts down
			}
			res := s.do(t, q)
			want := "admitted"
			if rank[has] < rank[rt.scope] {
				want = "forbidden"
				if has == scopeOpen {
					want = "unauthorized"
				}
			}
			got := "admitted"
			switch {
			case res.StatusCode == http.StatusUnauthorized:
				got = "unauthorized"
				if res.Header.Get("WWW-Authenticate") == "" {
					t.Errorf("%s %s: 401 without WWW-Authenticate", q.method, q.path)
				}
			case res.StatusCode == http.StatusForbidden:
				got = "forbidden"
			case res.StatusCode/100 != 2 && !rt.stream:
				b, _ := io.ReadAll(res.Body)
				t.Errorf("%s %s as %s: %d %s", q.method, q.path, has, res.StatusCode, b)
			}
			if got != want {
				t.Errorf("%s %s with scope %s: %s, want %s", q.method, q.path, has, got, want)
			}
			if want != "admitted" {
				if n := len(f.Proposals()); n != before {
					t.Errorf("%s %s with scope %s was refused and still written", q.method, q.path, has)
				}
				if p := decode[wire.Problem](t, res, res.StatusCode); strings.Contains(p.Detail, token) && len(token) > 1 {
					t.Errorf("the problem repeats the token: %s", p.Detail)
				}
			}
		}
	}
}

// Writing needs operator, and admin where it changes what protects from blocks: a route that is added
// without thinking of it fails here.
func TestWritesNeedOperator(t *testing.T) {
	open := map[string]bool{"/openapi.json": true, "/healthz": true, "/readyz": true}
	for _, rt := range routes() {
		protects := strings.HasPrefix(rt.op.Path, "/v1/guards") || rt.op.Path == "/v1/settings" || strings.HasSuffix(rt.op.Path, "/source") ||
			strings.HasPrefix(rt.op.Path, "/v1/tokens")
		if rt.op.Method != http.MethodGet && (!allows(rt.scope, ScopeViewer) || rt.scope == ScopeViewer || protects != (rt.scope == ScopeAdmin)) {
			t.Errorf("%s %s has scope %s", rt.op.Method, rt.op.Path, rt.scope)
		}
		if (rt.scope == scopeOpen) != open[rt.op.Path] {
			t.Errorf("%s: open is %v", rt.op.Path, rt.scope == scopeOpen)
		}
	}
	if allows(Scope(""), ScopeViewer) || allows(ScopeAdmin, "") || allows(ScopeMetrics, ScopeViewer) || allows(ScopeOperator, ScopeAdmin) || allows(ScopeViewer, ScopeOperator) {
		t.Error("an unknown scope is allowed something")
	}
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
