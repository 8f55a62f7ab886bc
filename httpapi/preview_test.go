package httpapi

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// A dry run of any write answers what the write would answer, and leaves no trace.
func TestDryRun(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	f.RunVM("vm-2", "db", "n2", "192.0.2.8")
	f.Apply(fsm.DeclareVM{ID: "vm-1", Owner: "acct-42"})
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}, Reason: "abuse"})
	f.Apply(fsm.PutGuard{Prefix: mustPrefix(t, "192.0.2.99")})
	s := newServer(t, f)
	b1, _ := f.View().Block("b1")
	hash, proposals := f.View().Hash(), len(f.Proposals())
	match := map[string]string{"If-Match": etag(b1.Revision)}
	for name, c := range map[string]struct {
		q      request
		status int
		vms    string
		check  func(wire.Preview) bool
	}{
		"add": {request{method: "POST", path: "/v1/blocks", body: `{"target":{"vm":"web"}}`}, 201, "vm-1",
			func(p wire.Preview) bool {
				return p.Would.Block.ID == "b2" && len(p.Impact.Overlaps) == 1 && p.Impact.Overlaps[0].ID == "b1" && slices.Equal(p.Impact.Nodes, []string{"n1"})
			}},
		"account": {request{method: "POST", path: "/v1/blocks", body: `{"target":{"account":"acct-42"}}`}, 201, "vm-1", nil},
		"guarded": {request{method: "POST", path: "/v1/blocks", body: `{"target":{"prefix":"192.0.2.0/24"}}`}, 409, "vm-1 vm-2",
			func(p wire.Preview) bool {
				return p.Would.Problem.Code == wire.CodeGuardConflict && p.Impact.Guards[0].Prefix == "192.0.2.99" && p.Impact.Addresses == 256
			}},
		"unknown VM": {request{method: "POST", path: "/v1/blocks", body: `{"target":{"vm":"nope"}}`}, 404, "-",
			func(p wire.Preview) bool { return p.Would.Problem.Code == wire.CodeVMNotFound }},
		"lift": {request{method: "DELETE", path: "/v1/blocks/b1"}, 200, "vm-1",
			func(p wire.Preview) bool { return p.Would.Block.State == "lifted" && len(p.Impact.Overlaps) == 0 }},
		"lift reason": {request{method: "DELETE", path: "/v1/blocks?vm=web&reason=abuse"}, 200, "vm-1",
			func(p wire.Preview) bool { return len(p.Would.Blocks) == 1 && p.Would.Blocks[0].State == "lifted" }},
		"patch": {request{method: "PATCH", path: "/v1/blocks/b1", body: `{"note":"x"}`, header: match}, 200, "vm-1",
			func(p wire.Preview) bool { return p.Would.Block.Note == "x" }},
		"confirm": {request{method: "POST", path: "/v1/blocks/b1/confirm"}, 200, "vm-1", nil},
		"guard": {request{method: "POST", path: "/v1/guards", body: `{"prefix":"203.0.113.0/24"}`}, 201, "",
			func(p wire.Preview) bool { return p.Would.Guard.Prefix == "203.0.113.0/24" }},
		"unguard": {request{method: "DELETE", path: "/v1/guards/192.0.2.99"}, 204, "", nil},
		"VM": {request{method: "PUT", path: "/v1/vms/vm-2", body: `{"owner":"bob"}`}, 200, "vm-2",
			func(p wire.Preview) bool { return p.Would.VM.Owner == "bob" }},
		"put account": {request{method: "PUT", path: "/v1/accounts/acct-42", body: `{"note":"x"}`}, 200, "vm-1",
			func(p wire.Preview) bool { return p.Would.Account.Note == "x" }},
		"settings": {request{method: "PUT", path: "/v1/settings", body: `{"max_vms":1,"max_addresses":1,"redirect":{"title":"","text":"","link":""}}`}, 200, "-",
			func(p wire.Preview) bool { return p.Would.Settings.MaxVMs == 1 }},
	} {
		sep := "?"
		if strings.Contains(c.q.path, "?") {
			sep = "&"
		}
		c.q.path += sep + "dry_run=true"
		p := decode[wire.Preview](t, s.do(t, c.q), 200)
		vms := "-"
		if p.Impact != nil {
			vms = strings.Join(p.Impact.VMs, " ")
			if p.Impact.CountVMs != len(p.Impact.VMs) {
				t.Errorf("%s: %d VMs, %v", name, p.Impact.CountVMs, p.Impact.VMs)
			}
		}
		if p.Would.Status != c.status || vms != c.vms || c.check != nil && !c.check(p) {
			b, _ := json.Marshal(p)
			t.Errorf("%s: %s", name, b)
		}
	}
	if f.View().Hash() != hash || len(f.Proposals()) != proposals {
		t.Error("a dry run left a trace")
	}
	// What is malformed stays an error, and so does what the caller may not do.
	refused(t, s, request{method: "POST", path: "/v1/blocks?dry_run=true", body: `{"target":{}}`}, 422, wire.CodeInvalid)
	refused(t, s, request{method: "POST", path: "/v1/blocks?dry_run=true", body: `{"target":{"vm":"web"}}`, token: viewerToken}, 403, wire.CodeForbidden)
}
