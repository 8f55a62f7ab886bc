package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
)

// TestDeviceList has a node with guests on every kind of network.
func TestDeviceList(t *testing.T) {
	all := []link{
		{Index: 1, Name: "lo", Flags: unix.IFF_LOOPBACK},
		{Index: 2, Name: "eth0"}, // the node's own, watched by a sniffer
		{Index: 3, Name: "br0", Kind: "bridge"},
		{Index: 4, Name: "vnet1", Kind: "tun", Master: 3, MasterKind: "bridge"},
		{Index: 5, Name: "macvtap0", Kind: "macvtap"},
		{Index: 6, Name: "rt0", Kind: "tun"},
		{Index: 7, Name: "ovs-system", Kind: "openvswitch"},
		{Index: 8, Name: "vnet2", Kind: "tun", Master: 7, MasterKind: "openvswitch"},
		{Index: 9, Name: "bond0", Kind: "bond"},
		{Index: 10, Name: "odd", Kind: "tun", Master: 9, MasterKind: "bond"},
	}
	read, routed := map[int]bool{1: true, 2: true, 6: true, 12: true}, map[int]bool{2: true, 6: true, 14: true}
	list := deviceList(all, read, routed)
	want := []nft.Device{{Name: "macvtap0", Index: 5, Path: nft.Macvtap}, {Name: "vnet2", Index: 8, Path: nft.Switched}}
	if !reflect.DeepEqual(list, want) {
		t.Errorf("devices %+v, want %+v", list, want)
	}
	kinds := networksOf(all, list)
	for name, kind := range map[string]string{
		"vnet1": fsm.NetworkBridge, "macvtap0": fsm.NetworkMacvtap, "rt0": fsm.NetworkRouted, "vnet2": fsm.NetworkOpenVSwitch, "odd": fsm.NetworkUnknown,
	} {
		if kinds[name] != kind {
			t.Errorf("%s is on %q, want %q", name, kinds[name], kind)
		}
	}

	// With a switch in a program: its guest, its uplink and its own port.
	all = append(all, link{Index: 11, Name: "vnet3", Kind: "tun"}, link{Index: 12, Name: "eth1"}, link{Index: 14, Name: "ovsbr0", Kind: "tun"})
	read[11] = true
	list = deviceList(all, read, routed)
	want = []nft.Device{
		{Name: "macvtap0", Index: 5, Path: nft.Macvtap}, {Name: "rt0", Index: 6, Path: nft.Switched}, {Name: "vnet2", Index: 8, Path: nft.Switched},
		{Name: "vnet3", Index: 11, Path: nft.Read}, {Name: "eth1", Index: 12, Path: nft.Read}, {Name: "ovsbr0", Index: 14, Path: nft.Switched},
	}
	if !reflect.DeepEqual(list, want) {
		t.Errorf("devices %+v, want %+v", list, want)
	}
	if kind := networksOf(all, list)["vnet3"]; kind != fsm.NetworkUserspace {
		t.Errorf("vnet3 is on %q", kind)
	}
}

func TestPacketSockets(t *testing.T) {
	got, err := parsePacketSockets(strings.NewReader(`sk               RefCnt Type Proto  Iface R Rmem   User   Inode
00000000ba6a06f0 3      3    0003   4     1 0      0      8295170
000000008d1ea9ad 3      2    88cc   2     1 0      0      8295172
000000008d1ea9ae 3      3    0003   0     1 0      0      8295173
`))
	if err != nil || !maps.Equal(got, map[int]bool{4: true}) {
		t.Errorf("read %v, %v", got, err)
	}
}

// deviceKernelStub fails until it is told not to.
type deviceKernelStub struct {
	mu    sync.Mutex
	err   error
	got   []nft.Device
	loose map[string]error
}

func (k *deviceKernelStub) SetDevices(_ context.Context, list []nft.Device) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		k.got = list
	}
	return k.err
}

func (k *deviceKernelStub) Unenforced() map[string]error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.loose
}

// TestDevicesAreTold: a failure is a problem until it is over.
func TestDevicesAreTold(t *testing.T) {
	b := newBench(t, 0)
	k := &deviceKernelStub{err: errors.New("no family netdev")}
	links := newLinkMonitor(slog.New(slog.DiscardHandler))
	close(links.listed)
	d := newDevices(slog.New(slog.DiscardHandler), links, k)
	d.routed = func() (map[int]bool, error) { return nil, nil }
	d.read = func() (map[int]bool, error) { return nil, nil }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	b.eventually("the problem is told", func() bool { return strings.Contains(d.problem(), "no family netdev") })
	k.mu.Lock()
	k.err = nil
	k.mu.Unlock()
	links.mu.Lock()
	links.told(links.put(nil, 5, link{Index: 5, Name: "macvtap0", Kind: "macvtap"}))
	links.mu.Unlock()
	b.eventually("the device is told", func() bool { k.mu.Lock(); defer k.mu.Unlock(); return len(k.got) == 1 })
	b.eventually("the problem is over", func() bool { return d.problem() == "" })
	k.mu.Lock()
	k.loose = map[string]error{"vnet3": errors.New("no CAP_BPF")}
	k.mu.Unlock()
	if got := d.problem(); got != "interface vnet3: no CAP_BPF" {
		t.Errorf("problem %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestOpenNICs: a block of a guest that can't be enforced here is not reported in force.
func TestOpenNICs(t *testing.T) {
	b := newBench(t, 0)
	store := b.store
	good, bad := fsm.NIC{MAC: fsm.MAC{2, 1}, Tap: "vnet1", Network: fsm.NetworkBridge}, fsm.NIC{MAC: fsm.MAC{2, 2}, Network: fsm.NetworkHostdev}
	nics := map[string][]fsm.NIC{"v1": {good}, "v2": {good, bad}}
	var blocks []*fsm.Block
	for _, vm := range []string{"v1", "v2"} {
		b.apply(fsm.DeclareVM{ID: vm, Owner: "acct-" + vm})
		b.apply(fsm.ObserveVM{ID: vm, Node: "n1", Phase: fsm.PhaseRunning, Epoch: 1, NICs: nics[vm]})
		b.apply(fsm.AddBlock{Target: fsm.Target{Account: "acct-" + vm}, Reason: "abuse"})
	}
	for held := range store.View().Blocks("") {
		blocks = append(blocks, held)
	}
	if len(blocks) != 2 {
		t.Fatalf("%d blocks", len(blocks))
	}
	for _, held := range blocks {
		why := openNICs(store.View(), held, maps.All(nics), nil)
		if open := held.Target.Account == "acct-v2"; open != strings.Contains(why, fsm.NetworkHostdev) {
			t.Errorf("block of %s: %q", held.Target.Account, why)
		}
		if why := openNICs(store.View(), held, maps.All(nics), map[string]error{"vnet1": errors.New("no CAP_BPF")}); !strings.Contains(why, "no CAP_BPF") {
			t.Errorf("block of %s: %q", held.Target.Account, why)
		}
	}
}
