package openvz

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

// device is a network device in the Hardware of prlctl's list. Older versions don't print dev.
type device struct {
	Dev  string `json:"dev"`  // interface on the host
	Type string `json:"type"` // "routed"; a device of a virtual network has none
	MAC  string `json:"mac"`  // "001C42E1A819"
	IPs  string `json:"ips"`  // "192.0.2.7/255.255.255.0 2001:DB8:0:0:0:0:0:7/64 "
}

// environment reads one element of prlctl's list: a container or a VM.
func environment(data []byte) (inventory.Seen, []string, error) {
	var e struct {
		ID       string                     `json:"ID"`
		Name     string                     `json:"Name"`
		Type     string                     `json:"Type"`
		State    string                     `json:"State"`
		Hardware map[string]json.RawMessage `json:"Hardware"`
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return inventory.Seen{}, nil, err
	}
	vm := inventory.VM{ID: strings.ToLower(strings.Trim(e.ID, "{}")), Name: e.Name}
	if !uuidForm.MatchString(vm.ID) {
		return inventory.Seen{}, nil, fmt.Errorf("ID: %q is not a UUID", e.ID)
	}
	if vm.Name == "" {
		vm.Name = vm.ID
	}
	var odd []string
	switch e.Type {
	case "CT":
		vm.Kind = "openvz"
	case "VM":
		vm.Kind = "kvm"
	default:
		odd = append(odd, fmt.Sprintf("%s: Type %q is not known", vm.ID, e.Type))
	}
	phase, moving, known := state(e.State)
	if vm.Phase = phase; !known {
		odd = append(odd, fmt.Sprintf("%s: State %q is not known", vm.ID, e.State))
	}
	for _, name := range devices(e.Hardware) {
		nic, problems := netDevice(e.Hardware[name])
		for _, p := range problems {
			odd = append(odd, fmt.Sprintf("%s: %s: %s", vm.ID, name, p))
		}
		vm.NICs = append(vm.NICs, nic)
	}
	odd = append(odd, bound(&vm)...)
	return inventory.Seen{VM: vm, Moving: moving}, odd, nil
}

// state maps what prlctl says. What is not known counts as running: that binds the interfaces.
func state(s string) (phase fsm.Phase, moving, known bool) {
	switch s {
	case "stopped", "suspended", "mounted":
		return fsm.PhaseStopped, false, true
	case "migrating": // on either side
		return fsm.PhaseRunning, true, true
	case "running", "paused", "starting", "restoring", "resetting", "pausing", "suspending", "stopping", "snapshoting",
		"continuing", "resuming", "syncing", "reconnecting", "compacting", "del_snapshot":
		return fsm.PhaseRunning, false, true
	}
	return fsm.PhaseRunning, false, false
}

// devices returns the names of the network devices in order: venet0, then net0, net1, …
func devices(hardware map[string]json.RawMessage) []string {
	var names []string
	for name := range hardware {
		if n, ok := strings.CutPrefix(name, "net"); name == "venet0" || ok && n != "" && strings.Trim(n, "0123456789") == "" {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		switch {
		case a == "venet0":
			return -1
		case b == "venet0":
			return 1
		case len(a) != len(b):
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return names
}

func netDevice(data []byte) (nic fsm.NIC, odd []string) {
	var d device
	if err := json.Unmarshal(data, &d); err != nil {
		return nic, []string{err.Error()}
	}
	if d.MAC != "" {
		var err error
		if nic.MAC, err = plainMAC(d.MAC); err != nil {
			odd = append(odd, "mac: "+err.Error())
		}
	}
	var err error
	if nic.Tap, err = tapName(d.Dev); err != nil {
		odd = append(odd, "dev: "+err.Error())
		nic.Tap = ""
	}
	for ip := range strings.FieldsSeq(d.IPs) {
		a, err := address(ip)
		if err != nil {
			odd = append(odd, "ips: "+err.Error())
			continue
		}
		nic.Addresses = append(nic.Addresses, a)
	}
	return nic, odd
}

// plainMAC reads "001C42E1A819", and forms with separators.
func plainMAC(s string) (fsm.MAC, error) {
	if len(s) != 12 {
		return fsm.ParseMAC(s)
	}
	parts := make([]byte, 0, 17)
	for i := 0; i < len(s); i += 2 {
		if i > 0 {
			parts = append(parts, ':')
		}
		parts = append(parts, s[i], s[i+1])
	}
	return fsm.ParseMAC(string(parts))
}
