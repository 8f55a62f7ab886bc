package httpapi

import (
	"strings"
	"testing"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

func TestLeavingTakesTwoSteps(t *testing.T) {
	f := newFleet(t, "n2", "n3")
	f.Form()
	f.Admit("n2")
	f.Admit("n3")
	f.Set(func() { f.Peers["n2"].Voter, f.Peers["n3"].Voter = true, false })
	f.RunVM("vm-1", "web", "n2", "192.0.2.7")
	s := newServer(t, f)
	post := func(path, body string) request {
		return request{method: "POST", path: "/v1/nodes/" + path, body: body}
	}
	says := func(p wire.Problem, want string) {
		t.Helper()
		if !strings.Contains(p.Detail, want) {
			t.Errorf("%q does not say %q", p.Detail, want)
		}
	}
	says(refused(t, s, post("n3/retire", `{}`), 409, wire.CodeConflict), "drain it first")
	refused(t, s, post("n9/drain", ""), 404, wire.CodeNotFound)

	n := decode[wire.Node](t, s.do(t, post("n2/drain", "")), 200)
	if n.State != "drained" || n.VMs != 1 {
		t.Errorf("drained: %+v", n)
	}
	f.Set(func() { f.Peers["n2"].Voter = false })
	n = decode[wire.Node](t, s.do(t, post("n2/undrain", "")), 200)
	if n.State != "active" {
		t.Errorf("undrained: %+v", n)
	}
	decode[wire.Node](t, s.do(t, post("n2/drain", "")), 200)
	n = decode[wire.Node](t, s.do(t, post("n2/retire", "{}")), 200)
	if n.State != "retired" || n.VMs != 1 || n.Problem != "retired" || n.Healthy {
		t.Errorf("retired: %+v", n)
	}
	if vm := decode[wire.VM](t, s.do(t, request{method: "GET", path: "/v1/vms/vm-1"}), 200); vm.State != "lost" || vm.Node != "n2" {
		t.Errorf("its VM: %+v", vm)
	}
	st := decode[wire.Status](t, s.do(t, request{method: "GET", path: "/v1/status"}), 200)
	if st.Counts.Nodes != 2 || st.Counts.LostVMs != 1 || st.Counts.VMs != 1 {
		t.Errorf("counts: %+v", st.Counts)
	}
	refused(t, s, post("n2/undrain", ""), 409, wire.CodeConflict)

	// One that is dead can't be drained; a dead voter is replaced by the others.
	f.Set(func() { f.Peers["n3"].Voter, f.Peers["n3"].Alive, f.Peers["n3"].Down = true, false, true })
	says(refused(t, s, post("n3/retire", "{}"), 409, wire.CodeConflict), "drain it first")
	f.Admit("n4")
	decode[wire.Node](t, s.do(t, post("n3/retire", `{"force":true}`)), 200)
}

func TestSettling(t *testing.T) {
	f := newFleet(t)
	f.Form()
	s := newServer(t, f)
	f.Apply(fsm.BeginEpoch{Fleet: "0123456789abcdef", Epoch: 2, How: fsm.EpochRestored, Node: "n1"})
	fleet := decode[wire.Fleet](t, s.do(t, request{method: "GET", path: "/v1/ca"}), 200)
	if fleet.Epoch != 2 || fleet.Since == nil || fleet.Since.How != "restore" || fleet.Since.Node != "n1" || fleet.Since.Settled {
		t.Errorf("%+v", fleet)
	}
	refused(t, s, request{method: "POST", path: "/v1/fleet/settle", body: `{"epoch":1}`}, 409, wire.CodeConflict)
	decode[wire.Settled](t, s.do(t, request{method: "POST", path: "/v1/fleet/settle", body: `{"epoch":2}`}), 200)
	if fleet := decode[wire.Fleet](t, s.do(t, request{method: "GET", path: "/v1/ca"}), 200); !fleet.Since.Settled {
		t.Errorf("%+v", fleet.Since)
	}
}
