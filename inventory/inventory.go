// Package inventory says which VMs run on this node, with their interfaces and where they are in a
// migration. A driver watches one hypervisor; the agent turns what it reports into announcements and
// observations of the fleet's state.
//
// A driver is level-triggered: it never passes on what the hypervisor's events claim, it takes them as
// a hint to look again. So lost, doubled or reordered events can delay a report, never falsify one.
package inventory

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/palisade/palisade/fsm"
)

// VM is one VM as the hypervisor of this node knows it.
type VM struct {
	ID   string // the hypervisor's UUID or the operator's id
	Name string
	Kind string // "kvm", "openvz", "netns"
	// Phase is running, incoming or stopped; a VM that is gone is absent from the Report. Running
	// includes a VM whose guest is paused, also by the last moments of a migration away from here.
	Phase fsm.Phase
	// NICs are in the hypervisor's order. Tap is empty until the interface exists, unless it can be no
	// other VM's: where names are made of the VM's own id, the tap of a stopped one is bound to it as well.
	NICs []fsm.NIC
}

// Here says that the VM runs here or is in flight to here.
func (v VM) Here() bool { return v.Phase == fsm.PhaseRunning || v.Phase == fsm.PhaseIncoming }

// Report is everything on this node. It is immutable: the driver never touches it again, and neither
// may the receiver.
type Report struct {
	// VMs is complete, sorted by ID, without repeats: what is not in it is not on this node. It is
	// the last knowledge; while a driver has lost its hypervisor it reports nothing at all, so losing
	// a hypervisor makes no VM disappear.
	VMs []VM
	// Arrived are the ids, sorted, for which the hypervisor has just said "here", as news: each VM
	// whose phase became running or incoming since the report before, and all that are Here when the
	// driver has just started or found its hypervisor again. A VM that is about to leave is not in it,
	// but it is once its migration has failed and it runs on.
	Arrived []string
	// Found says that the driver has just found its hypervisor again, and all is listed anew: nothing that was
	// begun before is under way any more without being in it.
	Found bool
}

// Driver watches one hypervisor.
//
// What the agent does with a report, given the fleet's view of a VM:
//
//   - In Arrived, and the view doesn't have it here in this phase: claim it, with the view's epoch + 1.
//     The claim stands until the view shows it or a later report says the VM is not Here.
//   - Not in Arrived, Here, and the view has it running nowhere (unknown, declared, stopped): claim it.
//   - Not in Arrived, Here, and the view has it on another node: nothing. That node's claim is newer;
//     while a VM moves, source and destination both say Here for a moment, and only news may win.
//   - The view has it here (as node or destination), and phase, name or NICs differ: observe it with
//     the view's epoch.
//   - The view has it here, and it is not in VMs: observe it as gone with the view's epoch.
//
// The last report and the current view are enough to decide, at any time and any number of times.
type Driver interface {
	// Run watches until ctx ends, then returns nil after the last of its goroutines. Any other return
	// means that this driver can't work at all (a wrong option); an unreachable hypervisor is not that:
	// it is retried for ever. The first report comes after the first complete listing.
	//
	// report is called by one goroutine at a time and only when something changed. While it blocks
	// the driver gathers further changes into one next report.
	Run(ctx context.Context, report func(Report)) error
}

// Sort brings VMs to the order of a Report.
func Sort(vms []VM) {
	slices.SortFunc(vms, func(a, b VM) int { return cmp.Compare(a.ID, b.ID) })
}

// Arrivals returns the ids of those VMs of next that are Here in a phase that they did not have in
// prev. Both are sorted.
func Arrivals(prev, next []VM) []string {
	var ids []string
	for _, v := range next {
		if !v.Here() {
			continue
		}
		i, known := slices.BinarySearchFunc(prev, v.ID, func(p VM, id string) int { return cmp.Compare(p.ID, id) })
		if !known || prev[i].Phase != v.Phase {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// Equal says whether two sorted lists say the same.
func Equal(a, b []VM) bool {
	return slices.EqualFunc(a, b, func(a, b VM) bool {
		return a.ID == b.ID && a.Name == b.Name && a.Kind == b.Kind && a.Phase == b.Phase && fsm.SameNICs(a.NICs, b.NICs)
	})
}

// Address reads one address of a guest. It unmaps IPv4-mapped IPv6 and refuses zones.
func Address(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, err
	}
	if a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("address %s has a zone", s)
	}
	return a.Unmap(), nil
}

// CheckTap refuses what the kernel would not take as the name of an interface; empty is fine.
func CheckTap(s string) error {
	if len(s) > 15 || strings.ContainsFunc(s, func(r rune) bool { return r == '/' || r <= ' ' || r > '~' }) {
		return fmt.Errorf("%q is not the name of a network interface", s)
	}
	return nil
}
