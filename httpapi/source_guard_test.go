package httpapi

import (
	"testing"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

func TestSourceGuardIsForAdmins(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	s := newServer(t, f)
	put := func(body, token string) request {
		return request{method: "PUT", path: "/v1/vms/vm-1", body: body, token: token}
	}
	refused(t, s, put(`{"source_guard":"on"}`, operatorToken), 403, wire.CodeForbidden)
	refused(t, s, put(`{"source_guard":"on"}`, viewerToken), 403, wire.CodeForbidden)
	if v := decode[wire.VM](t, s.do(t, request{path: "/v1/vms/vm-1"}), 200); v.SourceGuard != "inherit" || v.GuardedSource != nil {
		t.Errorf("after refusals: %q, bound to %+v", v.SourceGuard, v.GuardedSource)
	}
	if v := decode[wire.VM](t, s.do(t, put(`{"source_guard":"on"}`, adminToken)), 200); v.SourceGuard != "on" {
		t.Errorf("an admin's request gave %q", v.SourceGuard)
	}
	// Who may not change it may still change the rest, and say what is so already.
	for _, body := range []string{`{"owner":"bob"}`, `{"owner":"eve","source_guard":"on"}`} {
		if v := decode[wire.VM](t, s.do(t, put(body, operatorToken)), 200); v.SourceGuard != "on" {
			t.Errorf("%s made it %q", body, v.SourceGuard)
		}
	}
	refused(t, s, put(`{"source_guard":"inherit"}`, operatorToken), 403, wire.CodeForbidden)
}

func TestGuardedSource(t *testing.T) {
	bound := &fsm.SourceReport{MACs: true, Addresses: true, Packets: 5, Bytes: 500}
	cases := map[string]struct {
		change func(*fleet)
		want   wire.SourceGuard
	}{
		"bound": {func(f *fleet) { f.Peers["n2"].Binds = bound },
			wire.SourceGuard{Node: "n2", MACs: true, Addresses: true, Dropped: wire.Counters{Packets: 5, Bytes: 500}}},
		"not bound yet":          {func(*fleet) {}, wire.SourceGuard{Node: "n2", Why: "its node has not bound it yet"}},
		"other nodes do not say": {func(f *fleet) { f.Peers["n1"].Binds = bound }, wire.SourceGuard{Node: "n2", Why: "its node has not bound it yet"}},
		"node is down":           {func(f *fleet) { f.Peers["n2"].Down = true }, wire.SourceGuard{Node: "n2", Why: "its node did not answer: ask n2: dial: connection refused"}},
		"does not run": {func(f *fleet) {
			f.Apply(fsm.ObserveVM{ID: "vm-1", Name: "web", Kind: "netns", Node: "n2", Phase: fsm.PhaseStopped, Epoch: 1})
		},
			wire.SourceGuard{Why: "it does not run"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, "n2")
			f.RunVM("vm-1", "web", "n2", "192.0.2.7")
			f.Apply(fsm.DeclareVM{ID: "vm-1", SourceGuard: fsm.SourceOn})
			c.change(f)
			s := newServer(t, f)
			v := decode[wire.VM](t, s.do(t, request{path: "/v1/vms/vm-1"}), 200)
			e := explained(t, s, "vm=web")
			for where, got := range map[string]*wire.SourceGuard{"the VM": v.GuardedSource, "its explanation": e.GuardedSource} {
				if got == nil || *got != c.want {
					t.Errorf("%s says %+v, want %+v", where, got, c.want)
				}
			}
		})
	}
}
