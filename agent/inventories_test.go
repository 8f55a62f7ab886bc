package agent

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

func TestInventoryDrivers(t *testing.T) {
	for name, c := range map[string]struct {
		driver any
		want   string // type of what comes out, "" for an error
	}{
		"default":            {nil, "nil"},
		"empty":              {"", "nil"},
		"none":               {"none", "nil"},
		"a list of none":     {[]any{"none"}, "nil"},
		"one":                {"libvirt", "one"},
		"a list of one":      {[]any{"openvz"}, "one"},
		"all but static":     {[]any{"libvirt", "openvz", "proxmox", "exec"}, "several"},
		"static without dir": {"static", ""},
		"unknown":            {"xen", ""},
		"unknown in a list":  {[]any{"libvirt", "xen"}, ""},
		"none beside one":    {[]any{"libvirt", "none"}, ""},
		"twice":              {[]any{"exec", "exec"}, ""},
		"no name":            {7, ""},
		"no name in a list":  {[]any{7}, ""},
		"an empty list":      {[]any{}, ""},
	} {
		i := InventoryConfig{Driver: c.driver}
		i.setDefaults()
		hints := 0
		d, err := i.newDriver(slog.Default(), func() <-chan struct{} { hints++; return nil })
		problems := 0
		i.validate(func(string, string, ...any) { problems++ })
		if (err == nil) != (problems == 0) {
			t.Errorf("%s: to start says %v, to check says %d problems", name, err, problems)
		}
		got := ""
		switch {
		case err != nil:
		case d == nil:
			got = "nil"
		case hints == 3:
			got = "several"
		default:
			got = "one"
		}
		if got != c.want {
			t.Errorf("%s: %s (%v), want %s", name, got, err, c.want)
		}
	}
}

func TestHintsAreOfInterfacesThatComeAndGo(t *testing.T) {
	m := newLinkMonitor(slog.Default())
	hints := m.hints()
	for name, c := range map[string]struct {
		change linkChange
		want   bool
	}{
		"comes":        {linkChange{Now: link{Index: 7, Name: "veth101.0"}}, true},
		"goes":         {linkChange{Before: link{Index: 7, Name: "veth101.0"}}, true},
		"is renamed":   {linkChange{link{Index: 7, Name: "veth0"}, link{Index: 7, Name: "veth101.0"}}, true},
		"is made anew": {linkChange{link{Index: 7, Name: "veth0"}, link{Index: 8, Name: "veth0"}}, true},
		"goes up":      {linkChange{link{Index: 7, Name: "veth0"}, link{Index: 7, Name: "veth0", Flags: 1}}, false},
	} {
		m.mu.Lock()
		m.told([]linkChange{c.change, c.change})
		m.mu.Unlock()
		select {
		case <-hints:
			if !c.want {
				t.Errorf("%s: a hint", name)
			}
		default:
			if c.want {
				t.Errorf("%s: no hint", name)
			}
		}
	}
}

// TestTwoContainersBehindOneInterface: interfaces of routed containers have no address and no tap of their own.
// They are told apart by their addresses, and the registry takes them as they are.
func TestTwoContainersBehindOneInterface(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	vm := inventory.VM{ID: "ct-101", Name: "ct-101", Kind: "openvz", Phase: fsm.PhaseRunning, NICs: []fsm.NIC{{Addresses: []netip.Addr{a, b}}}}
	known := &fsm.VM{ID: "ct-101", Name: "ct-101", Kind: "openvz", Node: "n", State: fsm.VMRunning, NICs: []fsm.NIC{{Addresses: []netip.Addr{a, b}}}}
	if !shows(known, vm, "n") {
		t.Error("the registry never agrees with the inventory")
	}
}

// TestAStoppedVMIsBoundToItsOwnTapAlone: its addresses may be in use elsewhere by now.
func TestAStoppedVMIsBoundToItsOwnTapAlone(t *testing.T) {
	mac, addr := fsm.MAC{2, 1}, netip.MustParseAddr("192.0.2.1")
	vm := inventory.VM{ID: "ct-101", Phase: fsm.PhaseStopped, NICs: []fsm.NIC{{Addresses: []netip.Addr{addr}}, {MAC: mac, Tap: "veth101.0", Addresses: []netip.Addr{addr}}}}
	if got := boundHere(vm); len(got) != 1 || got[0].Tap != "veth101.0" || got[0].MAC != mac || len(got[0].Addresses) > 0 {
		t.Errorf("%+v", got)
	}
	vm.NICs = vm.NICs[:1]
	if got := boundHere(vm); len(got) > 0 {
		t.Errorf("%+v", got)
	}
}
