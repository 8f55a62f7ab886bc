package inventory

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/palisade/palisade/fsm"
)

func TestArrivals(t *testing.T) {
	vm := func(id string, p fsm.Phase) VM { return VM{ID: id, Phase: p} }
	prev := []VM{
		vm("a", fsm.PhaseRunning), vm("b", fsm.PhaseIncoming), vm("c", fsm.PhaseStopped),
		vm("d", fsm.PhaseRunning), vm("e", fsm.PhaseRunning),
	}
	next := []VM{
		vm("a", fsm.PhaseRunning), vm("b", fsm.PhaseRunning), vm("c", fsm.PhaseIncoming),
		vm("d", fsm.PhaseStopped), vm("f", fsm.PhaseRunning), vm("g", fsm.PhaseStopped),
	}
	if got := Arrivals(prev, next); !slices.Equal(got, []string{"b", "c", "f"}) {
		t.Errorf("arrivals %v", got)
	}
	if got := Arrivals(nil, next); !slices.Equal(got, []string{"a", "b", "c", "f"}) {
		t.Errorf("arrivals of a first report %v", got)
	}
}

func TestEqualSeesEveryField(t *testing.T) {
	mk := func() []VM {
		return []VM{{ID: "a", Name: "n", Kind: "kvm", Phase: fsm.PhaseRunning, NICs: []fsm.NIC{{
			MAC: fsm.MAC{1: 1}, Tap: "t", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		}}}}
	}
	if !Equal(mk(), mk()) {
		t.Error("equal lists differ")
	}
	for name, change := range map[string]func(*VM){
		"id":      func(v *VM) { v.ID = "b" },
		"name":    func(v *VM) { v.Name = "m" },
		"kind":    func(v *VM) { v.Kind = "openvz" },
		"phase":   func(v *VM) { v.Phase = fsm.PhaseStopped },
		"nics":    func(v *VM) { v.NICs = nil },
		"mac":     func(v *VM) { v.NICs[0].MAC[2] = 1 },
		"tap":     func(v *VM) { v.NICs[0].Tap = "u" },
		"address": func(v *VM) { v.NICs[0].Addresses[0] = netip.MustParseAddr("192.0.2.2") },
	} {
		other := mk()
		change(&other[0])
		if Equal(mk(), other) {
			t.Errorf("a change of %s is not seen", name)
		}
	}
}

func TestAddress(t *testing.T) {
	if a, err := Address("::ffff:192.0.2.1"); err != nil || a != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("%v %v", a, err)
	}
	for _, s := range []string{"", "192.0.2.1/32", "fe80::1%eth0", "example.org"} {
		if _, err := Address(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}
