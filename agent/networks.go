package agent

import (
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

// networks are the kinds of network of this node's interfaces, by name.
func (d *devices) networks() map[string]string {
	all := d.links.All()
	list, err := d.list()
	if err != nil {
		return nil // said by Run
	}
	return networksOf(all, list)
}

// networksOf says on what kind of network a guest is whose tap an interface is.
func networksOf(all []link, list []nft.Device) map[string]string {
	paths := make(map[int]nft.Path, len(list))
	for _, d := range list {
		paths[d.Index] = d.Path
	}
	networks := make(map[string]string, len(all))
	for _, l := range all {
		kind := fsm.NetworkUnknown // a port of something that we do not know
		switch {
		case paths[l.Index] == nft.Macvtap:
			kind = fsm.NetworkMacvtap
		case l.MasterKind == "openvswitch":
			kind = fsm.NetworkOpenVSwitch
		case paths[l.Index] == nft.Read:
			kind = fsm.NetworkUserspace
		case l.MasterKind == "bridge":
			kind = fsm.NetworkBridge
		case l.Master == 0, l.MasterKind == "vrf":
			kind = fsm.NetworkRouted
		}
		networks[l.Name] = kind
	}
	return networks
}

// label says of each interface of a guest here on what kind of network it is, where the hypervisor did not.
func (o *observer) label(vms []inventory.VM) {
	networks := o.networks()
	for i := range vms {
		if !vms[i].Here() {
			continue
		}
		vms[i].NICs = slices.Clone(vms[i].NICs)
		for j := range vms[i].NICs {
			n := &vms[i].NICs[j]
			if kind, known := networks[n.Tap]; known && n.Tap != "" {
				n.Network = kind
			}
		}
	}
}

// relabel is for when interfaces have changed, but not what the hypervisor reports.
func (o *observer) relabel() {
	o.reporting.Lock()
	defer o.reporting.Unlock()
	o.mu.Lock()
	known, r := o.known, o.report
	o.mu.Unlock()
	if !known {
		return
	}
	r.VMs, r.Arrived, r.Found = slices.Clone(r.VMs), nil, false
	o.label(r.VMs)
	o.mu.Lock()
	same := inventory.Equal(r.VMs, o.report.VMs)
	o.mu.Unlock()
	if !same {
		o.take(r)
	}
}

// openNICs says which interfaces of guests here, that a block holds, pass packets all the same, or "".
func openNICs(v *fsm.View, b *fsm.Block, here iter.Seq2[string, []fsm.NIC], loose map[string]error) string {
	for id, nics := range here {
		for _, n := range nics {
			if n.Enforceable() && loose[n.Tap] == nil {
				continue
			}
			vm, ok := v.VM(id)
			if !ok || !slices.ContainsFunc(v.Holding(vm), func(held *fsm.Block) bool { return held.ID == b.ID }) {
				break
			}
			if err := loose[n.Tap]; err != nil {
				return fmt.Sprintf("VM %s: interface %s: %v", id, n.Tap, err)
			}
			return fmt.Sprintf("VM %s: its interface %v is on a network (%s) that this node can't enforce", id, n.MAC, n.Network)
		}
	}
	return ""
}

// onDevice says whether the packets of an interface pass neither a bridge nor the node's own stack, but hooks of a device.
func onDevice(n fsm.NIC) bool {
	return n.Network == fsm.NetworkMacvtap || n.Network == fsm.NetworkOpenVSwitch || n.Network == fsm.NetworkUserspace
}

// unlisted says which guests, or interfaces of a switch, here pass what lists drop, or "". Until the kernel was told of the
// devices, none of them is enforced; then all but those in loose are.
func unlisted(here iter.Seq2[string, []fsm.NIC], told bool, loose map[string]error) string {
	first, why, n := "", "", 0
	for id, nics := range here {
		open := ""
		for _, nic := range nics {
			switch err := loose[nic.Tap]; {
			case err != nil:
				open = fmt.Sprintf("interface %s: %v", nic.Tap, err)
			case !nic.Enforceable(), !told && onDevice(nic):
				open = fmt.Sprintf("lists do not hold on its network (%s)", nic.Network)
			}
		}
		if open == "" {
			continue
		}
		if n++; first == "" || id < first {
			first, why = id, open
		}
	}
	switch {
	case n == 1:
		return fmt.Sprintf("VM %s: %s", first, why)
	case n > 1:
		return fmt.Sprintf("VM %s: %s; lists do not hold for %d other VMs here either", first, why, n-1)
	}
	for _, name := range slices.Sorted(maps.Keys(loose)) {
		return fmt.Sprintf("interface %s: %v", name, loose[name])
	}
	return ""
}

// openNetworks says which guests or interfaces can't be enforced on this node, or "".
func (r *rooms) openNetworks() string {
	if problem := r.devices.problem(); problem != "" {
		return problem
	}
	for id, nics := range r.enforcer.Local().NICs.All() {
		for _, n := range nics {
			if !n.Enforceable() {
				return fmt.Sprintf("VM %s has an interface (%v) on a network that can't be enforced: %s", id, n.MAC, n.Network)
			}
		}
	}
	return r.lists.open()
}
