package agent

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// tapBench is a binder without a kernel: links are told by hand.
type tapBench struct {
	*bench
	binder *tapBinder
	local  enforce.Local
}

func newTapBench(t *testing.T) *tapBench {
	b := &tapBench{bench: newBench(t, 0)}
	b.binder = newTapBinder(b.store, newLinkMonitor(slog.New(slog.DiscardHandler)), func(f func(*enforce.Local)) { f(&b.local) })
	ctx := t.Context()
	go func() { _ = b.binder.Run(ctx) }()
	return b
}

func (b *tapBench) has(vm string, nics ...fsm.NIC) {
	b.t.Helper()
	b.apply(fsm.ObserveVM{ID: vm, Name: vm, Kind: "kvm", Node: "n2", Phase: fsm.PhaseRunning, Epoch: 1, NICs: nics})
	synctest.Wait()
}

func (b *tapBench) tell(before, now link) {
	b.binder.hear([]linkChange{{before, now}})
	synctest.Wait()
}

func (b *tapBench) want(want string) {
	b.t.Helper()
	var is []string
	for vm, nics := range b.local.NICs.All() {
		for _, n := range nics {
			is = append(is, fmt.Sprintf("%s:%s %s", vm, n.Tap, n.MAC))
		}
	}
	slices.Sort(is)
	if got := strings.Join(is, ", "); got != want {
		b.t.Errorf("bound: %s\n want: %s", got, want)
	}
}

func tun(index int, name string, first, last byte) link {
	return link{Index: index, Name: name, Kind: "tun", MAC: fsm.MAC{first, 0x54, 0, 0, 0, last}}
}

func guestNIC(last byte, tap string) fsm.NIC {
	return fsm.NIC{MAC: fsm.MAC{0x52, 0x54, 0, 0, 0, last}, Tap: tap}
}

const guest1, guest2 = "52:54:00:00:00:01", "52:54:00:00:00:02"

// TestATapIsBoundByItsAddress: what the hardware address of a tap tells, while and only while nobody
// knows better.
func TestATapIsBoundByItsAddress(t *testing.T) {
	tests := map[string]func(b *tapBench){
		"the guest's, until the tap is gone": func(b *tapBench) {
			b.tell(link{}, tun(7, "vnet7", 0xfe, 1))
			b.want("vm1:vnet7 " + guest1)
			b.tell(tun(7, "vnet7", 0xfe, 1), link{})
			b.want("")
		},
		"the guest's once the address is set": func(b *tapBench) {
			b.tell(link{}, tun(7, "vnet7", 0x4e, 9))
			b.want("")
			b.tell(tun(7, "vnet7", 0x4e, 9), tun(7, "vnet7", 0xfe, 1))
			b.want("vm1:vnet7 " + guest1)
		},
		"another's after a new name and address": func(b *tapBench) {
			b.tell(link{}, tun(7, "vnet7", 0xfe, 1))
			b.tell(tun(7, "vnet7", 0xfe, 1), tun(7, "vnet8", 0xfe, 2))
			b.want("vm2:vnet8 " + guest2)
		},
		"made again before its end was told": func(b *tapBench) {
			b.tell(link{}, tun(7, "vnet7", 0xfe, 1))
			b.tell(link{}, tun(8, "vnet7", 0xfe, 2))
			b.tell(tun(7, "vnet7", 0xfe, 1), link{})
			b.want("vm2:vnet7 " + guest2)
		},
		"nobody's: of another kind": func(b *tapBench) {
			l := tun(7, "vnet7", 0xfe, 1)
			l.Kind = "veth"
			b.tell(link{}, l)
			b.want("")
		},
		"nobody's: not in the registry": func(b *tapBench) {
			b.tell(link{}, tun(7, "vnet7", 0xfe, 3))
			b.want("")
		},
		"nobody's while two could be meant": func(b *tapBench) {
			b.tell(link{}, tun(7, "vnet7", 0xfe, 1))
			b.has("double", fsm.NIC{MAC: fsm.MAC{2, 0x54, 0, 0, 0, 1}})
			b.want("")
			b.has("double", guestNIC(9, ""))
			b.want("vm1:vnet7 " + guest1)
		},
		"who is registered later": func(b *tapBench) {
			b.tell(link{}, tun(7, "vnet7", 0xfe, 5))
			b.has("vm5", guestNIC(5, ""))
			b.want("vm5:vnet7 52:54:00:00:00:05")
		},
		"the hypervisor agrees": func(b *tapBench) {
			b.tell(link{}, tun(7, "vnet7", 0xfe, 1))
			b.binder.Report(map[string][]fsm.NIC{"vm1": {guestNIC(1, "vnet7")}})
			b.want("vm1:vnet7 " + guest1)
			b.tell(tun(7, "vnet7", 0xfe, 1), link{}) // by name, so a tap that comes back is held from its first packet
			b.want("vm1:vnet7 " + guest1)
		},
		"the hypervisor says otherwise": func(b *tapBench) {
			b.tell(link{}, tun(7, "vnet7", 0xfe, 1))
			b.binder.Report(map[string][]fsm.NIC{"vm2": {guestNIC(2, "vnet7")}})
			b.want("vm2:vnet7 " + guest2)
			b.binder.Report(map[string][]fsm.NIC{})
			b.want("vm1:vnet7 " + guest1)
		},
		"the hypervisor speaks of others": func(b *tapBench) {
			b.tell(link{}, tun(7, "vnet7", 0xfe, 1))
			b.binder.Report(map[string][]fsm.NIC{"vm2": {guestNIC(2, "vnet2")}, "vm1": {guestNIC(1, "")}})
			b.want("vm1: " + guest1 + ", vm1:vnet7 " + guest1 + ", vm2:vnet2 " + guest2)
		},
		"the hypervisor spoke first": func(b *tapBench) {
			b.binder.Report(map[string][]fsm.NIC{"vm2": {guestNIC(2, "vnet7")}})
			b.tell(link{}, tun(7, "vnet7", 0xfe, 1))
			b.want("vm2:vnet7 " + guest2)
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTapBench(t)
				b.has("vm1", guestNIC(1, ""))
				b.has("vm2", guestNIC(2, ""))
				test(b)
			})
		})
	}
}
