package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/internal/openvswitch"
)

func newMacvtapBed(t *testing.T) (b *deviceBed, blocked, innocent *station) {
	t.Helper()
	b = &deviceBed{host: newNetNS(t)}
	outside := b.uplink(t, "up0", 9)
	blocked, innocent = newStation("blocked", 2), newStation("innocent", 5)
	for i, s := range []*station{blocked, innocent} {
		s.tap = []string{"macvtap0", "macvtap1"}[i]
		s.read(t, openMacvtap(t, b.host, "up0", s))
		b.device(t, s.tap, Macvtap)
	}
	b.all = []*station{blocked, innocent, outside}
	b.open(t)
	return b, blocked, innocent
}

// TestMacvtap has guests on macvtaps of one lower device.
func TestMacvtap(t *testing.T) {
	b, blocked, _ := newMacvtapBed(t)
	k := adopted(t, b.host)
	b.shoot(t, "nothing held", nobody)
	b.set(t, k)
	b.everyHold(t, k, blocked)
}

// newReadBed has guests on a bridge of Open vSwitch's userspace datapath, the host on its own port of it, and an uplink.
func newReadBed(t *testing.T) (b *deviceBed, blocked, innocent *station) {
	t.Helper()
	b = &deviceBed{host: newNetNS(t), deliver: true}
	outside := b.uplink(t, "up0", 9)
	blocked, innocent = newStation("blocked", 2), newStation("innocent", 5)
	s := openvswitch.Start(t, b.host.path())
	s.Run("add-br", "ovs0", "--", "set", "bridge", "ovs0", "datapath_type=netdev", "fail-mode=standalone", "other-config:hwaddr=\"52:54:00:00:20:01\"", "--", "add-port", "ovs0", "up0")
	for i, guest := range []*station{blocked, innocent} {
		guest.tap = []string{"vnet1", "vnet2"}[i]
		guest.read(t, openTap(t, b.host, "/dev/net/tun", guest.tap))
		b.host.run("ip", "link", "set", guest.tap, "up")
		s.Run("add-port", "ovs0", guest.tap)
	}
	host := hostStation(t, b.host, "ovs0", 1, blocked, innocent, outside)
	for _, d := range []string{"up0", "ovs0", "vnet1", "vnet2"} {
		b.device(t, d, Read)
	}
	b.all = []*station{blocked, innocent, outside, host}
	b.open(t)
	return b, blocked, innocent
}

// TestOpenVSwitchUserspace has guests on a switch that reads frames from packet sockets.
func TestOpenVSwitchUserspace(t *testing.T) {
	b, blocked, _ := newReadBed(t)
	k := adopted(t, b.host)
	b.shoot(t, "nothing held", nobody)
	b.set(t, k)
	b.everyHold(t, k, blocked)
}

func nobody(shot, *station, *station) bool { return false }

func party(victim *station) func(shot, *station, *station) bool {
	return func(_ shot, from, to *station) bool { return from == victim || to == victim }
}

// TestDevicesTampered has another program change what is on devices, and wants it found and undone.
func TestDevicesTampered(t *testing.T) {
	b, blocked, _ := newReadBed(t)
	k := adopted(t, b.host)
	b.set(t, k)
	apply(t, k, 1, elements(tap(blocked.tap), mac(blocked.mac.String())), nil)
	b.shoot(t, "blocked", party(blocked))
	for _, c := range []struct{ name, command string }{
		{"everything", "nft flush ruleset"},
		{"the table", "nft delete table netdev palisade"},
		{"rules", "nft flush chain netdev palisade deliver"},
		{"the chain of a device", fmt.Sprintf("nft flush chain netdev palisade egress_%[1]d; nft delete chain netdev palisade egress_%[1]d", b.index(t, "up0"))},
		{"an element", "nft delete element netdev palisade taps '{ vnet1 }'"},
		{"XDP", "ip link set dev vnet1 xdpgeneric off"},
	} {
		if d, err := k.Check(t.Context()); err != nil || !d.None() {
			t.Fatalf("%s: before: %+v, %v", c.name, d, err)
		}
		b.host.run("sh", "-c", c.command)
		waitFor(t, "found: "+c.name, func() bool {
			d, err := k.Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return !d.None()
		})
		if err := k.Heal(t.Context()); err != nil {
			t.Fatal(err)
		}
		verify(t, k)
		b.shoot(t, "healed: "+c.name, party(blocked))
	}
}

// TestDevicesRestart: another process takes over, without a write, and can lift what the first one held.
func TestDevicesRestart(t *testing.T) {
	b, blocked, innocent := newReadBed(t)
	k := adopted(t, b.host)
	b.set(t, k)
	apply(t, k, 1, elements(tap(blocked.tap), tap(innocent.tap)), nil)
	apply(t, k, 2, nil, elements(tap(innocent.tap)))
	before := generation(t, k)
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	b.shoot(t, "without a process", party(blocked))

	k = open(t, b.host)
	held := adopt(t, k)
	if _, ok := held.Elements[tap(blocked.tap)]; !held.Intact || held.Index != 2 || !ok || len(held.Elements) != 1 {
		t.Errorf("adopted %+v", held)
	}
	b.set(t, k)
	if now := generation(t, k); now != before {
		t.Errorf("a restart wrote: generation %d, was %d", now, before)
	}
	b.shoot(t, "adopted", party(blocked))
	apply(t, k, 3, nil, elements(tap(blocked.tap)))
	b.shoot(t, "lifted by another process", nobody)

	// Without devices, a start leaves nothing behind.
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	k = adopted(t, b.host)
	b.devices = nil
	b.set(t, k)
	if out, err := b.host.try("", "nft", "list", "table", "netdev", "palisade"); err == nil {
		t.Errorf("the table is still there: %s", out)
	}
}

// TestDevicesDisagree: whatever one of the tables holds at a start is in force, and comes to be in both.
func TestDevicesDisagree(t *testing.T) {
	b, blocked, _ := newMacvtapBed(t)
	k := adopted(t, b.host)
	b.set(t, k)
	apply(t, k, 1, elements(mac(blocked.mac.String()), tap(blocked.tap)), nil)
	b.host.run("nft", "delete", "table", "bridge", "palisade")
	b.host.run("nft", "delete", "table", "inet", "palisade")
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	k = open(t, b.host)
	if held := adopt(t, k); held.Intact || held.Index != 1 || len(held.Elements) != 2 {
		t.Errorf("adopted %+v", held)
	}
	b.set(t, k)
	verify(t, k)
	b.shoot(t, "adopted", party(blocked))
}

// TestDeviceRecreated: a device comes back under its name, and others come and go meanwhile.
func TestDeviceRecreated(t *testing.T) {
	b, blocked, _ := newMacvtapBed(t)
	k := adopted(t, b.host)
	b.set(t, k)
	apply(t, k, 1, elements(tap(blocked.tap)), nil)
	b.host.run("ip", "link", "del", blocked.tap)
	// Nobody has told yet.
	apply(t, k, 2, elements(prefix("10.99.0.1")), nil)
	if d, err := k.Check(t.Context()); err != nil || !d.None() {
		t.Errorf("a device that is gone is no tampering: %+v, %v", d, err)
	}
	if err := k.Heal(t.Context()); err != nil {
		t.Error(err)
	}
	blocked.read(t, openMacvtap(t, b.host, "up0", blocked))
	b.devices = nil
	b.device(t, "macvtap0", Macvtap)
	b.device(t, "macvtap1", Macvtap)
	gone := Device{Name: "macvtap9", Index: 1 << 20, Path: Macvtap}
	b.devices = append(b.devices, gone)
	b.set(t, k)
	verify(t, k)
	if loose := k.Unenforced(); len(loose) > 0 {
		t.Errorf("not in force: %v", loose)
	}
	b.shoot(t, "recreated", party(blocked))
	apply(t, k, 3, nil, elements(tap(blocked.tap)))
	b.open(t)
}

// TestDevicesRefused: a kernel that refuses the table of devices goes on with those of all others, says which devices
// are open, and is asked again. It refuses for real: the table belongs to another process.
func TestDevicesRefused(t *testing.T) {
	b, blocked, innocent := newMacvtapBed(t)
	var owner *wire
	b.host.do(func() (err error) { owner, err = dial(0, 1<<20, time.Second); return err })
	var own batch
	a := appendUint32(appendString(nil, unix.NFTA_TABLE_NAME, "palisade"), unix.NFTA_TABLE_FLAGS, 0x2) // NFT_TABLE_F_OWNER
	own.add(unix.NFT_MSG_NEWTABLE, netlink.Create, netdev, "own the table of devices", a)
	if err := owner.commit(t.Context(), &own); err != nil {
		t.Fatal(err)
	}
	k := adopted(t, b.host)
	b.set(t, k)
	list := elements(tap(blocked.tap), prefix(blocked.v4.String()))
	apply(t, k, 1, list, nil)
	apply(t, k, 2, elements(prefix("10.99.0.1")), nil)
	if err := k.Heal(t.Context()); err != nil {
		t.Error(err)
	}
	if d, err := k.Check(t.Context()); err != nil || !d.None() {
		t.Errorf("check: %+v, %v", d, err)
	}
	verify(t, k)
	if held := k.shadow; len(held) != 3 {
		t.Errorf("the tables of all others hold %v", held)
	}
	loose := k.Unenforced()
	for _, s := range []*station{blocked, innocent} {
		if !errors.Is(loose[s.tap], unix.EPERM) {
			t.Errorf("%s is not told as open: %v", s.tap, loose)
		}
	}
	// A start over finds the same.
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	k = adopted(t, b.host)
	b.set(t, k)
	if len(k.Unenforced()) != 2 {
		t.Errorf("after a start: %v", k.Unenforced())
	}

	if err := owner.close(); err != nil { // its table goes with it
		t.Fatal(err)
	}
	waitFor(t, "the devices are enforced", func() bool {
		b.set(t, k)
		return len(k.Unenforced()) == 0
	})
	verify(t, k)
	b.shoot(t, "after the refusal", party(blocked))
}

// TestDevicesPartial has holds that let something pass: limits and ports.
func TestDevicesPartial(t *testing.T) {
	const most, each = 10, 100
	burst := func(from, to *station, id uint64) {
		payload := binary.BigEndian.AppendUint64([]byte(marker), id)
		for range each {
			from.write(shots()[0].frame(from, to, payload))
		}
	}
	for _, c := range []struct {
		name string
		bed  func(*testing.T) (*deviceBed, *station, *station)
		sent bool // whether a part of what the guest sends can pass
	}{{"macvtap", newMacvtapBed, true}, {"userspace switch", newReadBed, false}} {
		t.Run(c.name, func(t *testing.T) {
			b, limited, innocent := c.bed(t)
			outside := b.all[2]
			k := adopted(t, b.host)
			b.set(t, k)
			index, id := uint64(0), uint64(1<<32)
			try := func(what string, from *station, wantLeast, wantMost int, treatments ...enforce.Treatment) {
				t.Helper()
				var list []enforce.Element
				for _, treatment := range treatments {
					list = append(list, enforce.Element{Treatment: treatment}, enforce.Element{Tap: limited.tap, Treatment: treatment})
				}
				index++
				apply(t, k, index, list, nil)
				verify(t, k)
				id += 2
				to := outside
				if from == outside {
					to = limited
				}
				burst(from, to, id)
				burst(innocent, outside, id+1)
				waitFor(t, what+": the innocent's frames", func() bool { return outside.received(id+1) == each })
				waitFor(t, what+": what passes", func() bool { return to.received(id) >= wantLeast })
				if n := to.received(id); n > wantMost {
					t.Errorf("%s: %d frames passed, want at most %d", what, n, wantMost)
				}
				index++
				apply(t, k, index, nil, list)
			}
			part := func(n int) int {
				if c.sent {
					return n
				}
				return 0
			}
			try("limit of what it gets", outside, most, 3*most, "limit_in_b1_10packets")
			try("limit of what it sends", limited, part(most), part(3*most), "limit_out_b1_10packets")
			try("a port", outside, 0, 0, "ports_in_b2_17.7000")
			try("another port", outside, each, each, "ports_in_b3_17.7001")
			try("what it sends to a port", limited, 0, 0, "ports_out_b4_17.7000")
			try("what it sends to another port", limited, part(each), part(each), "ports_out_b5_17.7001")
			b.shoot(t, "lifted", nobody)
		})
	}
}
