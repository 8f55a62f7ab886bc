package libvirt

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

// domain is what one look at a domain gave.
type domain struct {
	vm inventory.VM
	// leaving: its guest is paused by the end of a migration away from here. Here, but no news.
	leaving bool
	// returned: it was leaving, but its migration failed. News until it is published.
	returned bool
}

// state is the life of a domain as libvirt gives it, with what is needed to understand it.
type state struct {
	state, reason int32
	persistent    bool
	// receiving: a migration into this domain is going on.
	receiving bool
}

// ambiguous says that state and reason alone do not tell a domain that is being received from one
// that starts or leaves: both are paused for the same reasons.
func (s state) ambiguous() bool {
	if golibvirt.DomainState(s.state) != golibvirt.DomainPaused {
		return false
	}
	switch golibvirt.DomainPausedReason(s.reason) {
	case golibvirt.DomainPausedMigration, golibvirt.DomainPausedStartingUp,
		golibvirt.DomainPausedPostcopy, golibvirt.DomainPausedPostcopyFailed:
		return true
	default:
		return false
	}
}

// phase translates. A transient domain that is shut off is about to vanish, without a further event.
func (s state) phase() (p fsm.Phase, leaving bool) {
	is := golibvirt.DomainState(s.state)
	switch {
	case is == golibvirt.DomainCrashed: // kept for a look at its memory
		return fsm.PhaseStopped, false
	case is == golibvirt.DomainShutoff && s.persistent:
		return fsm.PhaseStopped, false
	case is == golibvirt.DomainShutoff:
		return fsm.PhaseGone, false
	case !s.ambiguous():
		return fsm.PhaseRunning, false
	case s.receiving:
		return fsm.PhaseIncoming, false
	default:
		return fsm.PhaseRunning, golibvirt.DomainPausedReason(s.reason) != golibvirt.DomainPausedStartingUp
	}
}

// read makes a VM of a domain's XML. NICs that can't be read (no MAC, a wrong one) are left out and
// named in the second value; an error means that the XML as a whole can't be read.
func read(text string, p fsm.Phase) (inventory.VM, []string, error) {
	var doc libvirtxml.Domain
	if err := doc.Unmarshal(text); err != nil {
		return inventory.VM{}, nil, fmt.Errorf("domain XML: %w", err)
	}
	vm := inventory.VM{ID: strings.ToLower(doc.UUID), Name: doc.Name, Kind: "kvm", Phase: p}
	if doc.Devices == nil {
		return vm, nil, nil
	}
	var odd []string
	for i, in := range doc.Devices.Interfaces {
		if len(vm.NICs) == fsm.MaxNICs {
			odd = append(odd, fmt.Sprintf("interface %d and those after it: more than %d", i, fsm.MaxNICs))
			break
		}
		if in.MAC == nil {
			odd = append(odd, fmt.Sprintf("interface %d: no MAC", i))
			continue
		}
		mac, err := fsm.ParseMAC(in.MAC.Address)
		if err != nil {
			odd = append(odd, fmt.Sprintf("interface %d: %v", i, err))
			continue
		}
		nic := fsm.NIC{MAC: mac, Network: network(in)}
		// The tap named in the XML of a stopped domain does not exist, and its name may by now be that
		// of another VM.
		if in.Target != nil && vm.Here() {
			nic.Tap = in.Target.Dev
			if err := inventory.CheckTap(nic.Tap); err != nil {
				odd = append(odd, fmt.Sprintf("interface %d: %v", i, err))
				nic.Tap = ""
			}
		}
		for _, s := range stated(in) {
			a, err := inventory.Address(s)
			if err != nil {
				odd = append(odd, fmt.Sprintf("interface %d: %v", i, err))
				continue
			}
			if usable(a) && !slices.Contains(nic.Addresses, a) {
				nic.Addresses = append(nic.Addresses, a)
			}
		}
		vm.NICs = append(vm.NICs, nic)
	}
	return vm, odd, nil
}

// network is the kind of network of an interface that has none on the host, which the kernel would tell of; else "".
func network(in libvirtxml.DomainInterface) string {
	switch s := in.Source; {
	case s == nil:
		return ""
	case s.Hostdev != nil:
		return fsm.NetworkHostdev
	case s.VHostUser != nil:
		return fsm.NetworkVhostUser
	case s.VDPA != nil:
		return fsm.NetworkVDPA
	case s.User != nil:
		return fsm.NetworkUser
	case s.Server != nil, s.Client != nil, s.MCast != nil, s.UDP != nil:
		return fsm.NetworkUnknown // QEMU passes frames on by sockets of its own
	default:
		return ""
	}
}

// Announced reads the domain XML of a guest that is about to come. Names of interfaces that the hypervisor makes up are left
// out: here it will make up others, and these are other guests'.
func Announced(text string) (inventory.VM, error) {
	vm, _, err := read(text, fsm.PhaseIncoming)
	if err == nil && vm.ID == "" {
		err = errors.New("domain XML: there is no UUID in it")
	}
	for i := range vm.NICs {
		for _, made := range []string{"vnet", "vif", "macvtap", "macvlan"} {
			if strings.HasPrefix(vm.NICs[i].Tap, made) {
				vm.NICs[i].Tap = ""
			}
		}
	}
	return vm, err
}

// stated are the addresses that an administrator gave the interface: as its IP, or as the parameters
// by which libvirt's own filters bind a guest to its addresses.
func stated(in libvirtxml.DomainInterface) []string {
	var out []string
	for _, ip := range in.IP {
		out = append(out, ip.Address)
	}
	if in.FilterRef != nil {
		for _, p := range in.FilterRef.Parameters {
			if p.Name == "IP" || p.Name == "IPV6" {
				out = append(out, p.Value)
			}
		}
	}
	return out
}

// usable leaves out what can't be the address of one guest.
func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback()
}

// uuid is the text form of a domain's UUID, equal to the one in its XML.
func uuid(u golibvirt.UUID) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}
