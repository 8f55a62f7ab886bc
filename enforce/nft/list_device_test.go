package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/fsm"
)

// listed says which frames a list with the guest's addresses drops.
func listed(victim *station, d fsm.Direction) func(s shot, from, to *station) bool {
	return func(s shot, from, to *station) bool {
		out := d != fsm.In && from == victim && !s.spoof
		return !s.arp && (out || d != fsm.Out && to == victim)
	}
}

func addressesOf(s *station) []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(s.v4, 32), netip.PrefixFrom(s.v6, 128)}
}

func setListDevices(t *testing.T, k *Lists, list []Device) {
	t.Helper()
	if err := k.SetDevices(t.Context(), list); err != nil {
		t.Fatal(err)
	}
}

func (b *deviceBed) tableOfLists() bool {
	_, err := b.host.try("", "nft", "list", "table", "netdev", "palisade_lists")
	return err == nil
}

// TestListsOnDevices has a list hold guests on devices, by addresses and prefixes of all kinds, in each direction, from the
// first device to the last.
func TestListsOnDevices(t *testing.T) {
	for name, bed := range map[string]func(*testing.T) (*deviceBed, *station, *station){"macvtap": newMacvtapBed, "userspace switch": newReadBed} {
		t.Run(name, func(t *testing.T) {
			b, blocked, innocent := bed(t)
			k := openLists(t, b.host)
			s := newListState(t)
			s.put("feed", append(addressesOf(blocked), netip.MustParsePrefix("198.51.100.0/24")))
			both := s.hold("feed", fsm.Both)
			setListDevices(t, k, []Device{})
			bring(t, k, s.change())
			if b.tableOfLists() {
				t.Error("a node without devices has a table for them")
			}
			setListDevices(t, k, b.devices)
			if open := k.Unenforced(); !k.Due() || !errors.Is(open[blocked.tap], errListsNotLoaded) || len(open) != len(b.devices) {
				t.Errorf("before the lists are loaded: due %t, open %v", k.Due(), open)
			}
			bring(t, k, s.change())
			if open := k.Unenforced(); k.Due() || len(open) != 0 {
				t.Errorf("loaded: due %t, open %v", k.Due(), open)
			}
			b.shoot(t, "by addresses", listed(blocked, fsm.Both))
			s.put("feed", []netip.Prefix{netip.PrefixFrom(blocked.v4, 28).Masked(), netip.PrefixFrom(blocked.v6, 124).Masked()})
			guards := addressesOf(innocent)
			for _, other := range b.all[2:] {
				guards = append(guards, addressesOf(other)...)
			}
			bring(t, k, s.change(guards...))
			b.shoot(t, "by a prefix, less what is guarded", listed(blocked, fsm.Both))
			if _, err := k.Hits(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, d := range []fsm.Direction{fsm.Out, fsm.In} {
				id := s.hold("feed", d)
				s.do(fsm.LiftBlock{ID: both})
				bring(t, k, s.change(guards...))
				b.shoot(t, string(d), listed(blocked, d))
				hits, err := k.Hits(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				counted := uint64(0)
				for _, h := range hits {
					if h.Source != (d == fsm.Out) || h.Address != blocked.v4 && h.Address != blocked.v6 {
						t.Errorf("%s: counted %+v", d, h)
					}
					counted += h.Packets
				}
				if counted == 0 {
					t.Errorf("%s: nothing is counted", d)
				}
				both = id
			}
			s.do(fsm.LiftBlock{ID: both})
			bring(t, k, s.change(guards...))
			b.shoot(t, "lifted", nobody)
			setListDevices(t, k, []Device{})
			bring(t, k, s.change(guards...))
			if b.tableOfLists() || k.Due() {
				t.Error("the table is still there after the last device")
			}
			s.hold("feed", fsm.Both)
			setListDevices(t, k, b.devices)
			bring(t, k, s.change(guards...))
			b.shoot(t, "devices again", listed(blocked, fsm.Both))
		})
	}
}

// TestListsOnDevicesTampered: what another program does to lists on devices is found and undone.
func TestListsOnDevicesTampered(t *testing.T) {
	b, blocked, _ := newMacvtapBed(t)
	k := openLists(t, b.host)
	s := newListState(t)
	s.put("feed", addressesOf(blocked))
	s.hold("feed", fsm.Both)
	setListDevices(t, k, b.devices)
	bring(t, k, s.change())
	for _, c := range []struct{ name, command string }{
		{"a set", "nft flush set netdev palisade_lists both_a4_32"},
		{"everything", "nft flush ruleset"},
		{"the table", "nft delete table netdev palisade_lists"},
		{"rules", "nft flush chain netdev palisade_lists egress"},
		{"the chain of a device", fmt.Sprintf("nft flush chain netdev palisade_lists egress_%[1]d; nft delete chain netdev palisade_lists egress_%[1]d", b.index(t, blocked.tap))},
		{"the rule of a device", fmt.Sprintf("nft flush chain netdev palisade_lists ingress_%d", b.index(t, blocked.tap))},
		{"a set of another type", "for c in '' _tagged _tagged_output; do nft flush chain netdev palisade_lists hit_source_4$c; done; nft delete set netdev palisade_lists hits_source_4; nft add set netdev palisade_lists hits_source_4 '{ type mark; }'"},
	} {
		if err := k.Check(t.Context()); err != nil {
			t.Fatalf("%s: before: %v", c.name, err)
		}
		b.host.run("sh", "-c", c.command)
		if err := k.Check(t.Context()); !errors.Is(err, errTampered) {
			t.Errorf("%s: %v", c.name, err)
		}
		bring(t, k, s.change())
		b.shoot(t, "healed: "+c.name, listed(blocked, fsm.Both))
	}
	// In the middle of a change, before anybody has looked.
	b.host.run("nft", "delete", "table", "netdev", "palisade_lists")
	s.put("feed", append(addressesOf(blocked), netip.MustParsePrefix("198.51.100.0/24")))
	bring(t, k, s.change())
	if open := k.Unenforced(); len(open) > 0 {
		t.Errorf("open: %v", open)
	}
	b.shoot(t, "healed by a change", listed(blocked, fsm.Both))
}

// TestListsOnDevicesRestart: another process takes over what is loaded, takes guards out of it before it knows the content, and
// removes it if no device is left.
func TestListsOnDevicesRestart(t *testing.T) {
	b, blocked, innocent := newMacvtapBed(t)
	k := openLists(t, b.host)
	s := newListState(t)
	s.put("feed", append(addressesOf(blocked), netip.PrefixFrom(innocent.v4, 32), netip.PrefixFrom(innocent.v6, 128)))
	s.hold("feed", fsm.Both)
	setListDevices(t, k, b.devices)
	bring(t, k, s.change())
	sets := b.host.run("nft", "list", "sets", "netdev")
	_ = k.Close()

	k = openLists(t, b.host)
	bring(t, k, s.change())
	setListDevices(t, k, b.devices)
	bring(t, k, s.change())
	if after := b.host.run("nft", "list", "sets", "netdev"); after != sets {
		t.Error("a restart with an unchanged content loaded it again")
	}
	if err := k.Check(t.Context()); err != nil {
		t.Error(err)
	}
	_ = k.Close()

	k = openLists(t, b.host)
	if index, err := k.Index(t.Context()); err != nil || index != s.index {
		t.Errorf("the kernel stands for %d (%v), want %d", index, err, s.index)
	}
	if err := k.Release(t.Context(), addressesOf(innocent)); err != nil {
		t.Fatal(err)
	}
	b.shoot(t, "without a guard", listed(blocked, fsm.Both))
	setListDevices(t, k, []Device{})
	if !k.Due() {
		t.Error("a table that no device needs is left")
	}
	bring(t, k, s.change())
	if b.tableOfLists() {
		t.Error("the table is still there")
	}
}

// TestDeviceComesWhileListsLoad: a device that comes is hooked at once, whatever else goes on.
func TestDeviceComesWhileListsLoad(t *testing.T) {
	b, blocked, _ := newMacvtapBed(t)
	k := openLists(t, b.host)
	s := newListState(t)
	s.put("feed", addressesOf(blocked))
	s.hold("feed", fsm.Both)
	for i, d := range b.devices { // the other one is there already
		if d.Name == blocked.tap {
			b.devices[i], b.devices[0] = b.devices[0], b.devices[i]
		}
	}
	setListDevices(t, k, b.devices[1:])
	bring(t, k, s.change())
	k.mu.Lock() // as a load does
	k.devices.tables.mu.Lock()
	defer k.mu.Unlock()
	defer k.devices.tables.mu.Unlock()
	setListDevices(t, k, b.devices)
	if open := k.Unenforced(); len(open) != 0 {
		t.Error(open)
	}
	b.shoot(t, "a device that came", listed(blocked, fsm.Both))
}

// TestListsOnDevicesRefused: a kernel that refuses the table for devices has the others all the same, and is asked again.
func TestListsOnDevicesRefused(t *testing.T) {
	b, blocked, _ := newMacvtapBed(t)
	var owner *wire
	b.host.do(func() (err error) { owner, err = dial(0, 1<<20, time.Second); return err })
	var own batch
	a := appendUint32(appendString(nil, unix.NFTA_TABLE_NAME, "palisade_lists"), unix.NFTA_TABLE_FLAGS, 0x2) // NFT_TABLE_F_OWNER
	own.add(unix.NFT_MSG_NEWTABLE, netlink.Create, netdev, "own the table of lists on devices", a)
	if err := owner.commit(t.Context(), &own); err != nil {
		t.Fatal(err)
	}
	k := openLists(t, b.host)
	s := newListState(t)
	s.put("feed", addressesOf(blocked))
	s.hold("feed", fsm.Both)
	setListDevices(t, k, b.devices)
	bring(t, k, s.change())
	if err := k.Check(t.Context()); err != nil {
		t.Error(err)
	}
	for f, held := range inKernel(t, b.host) {
		if len(held) != 2 {
			t.Errorf("%s holds %v", f, held)
		}
	}
	if open := k.Unenforced(); !errors.Is(open[blocked.tap], unix.EPERM) || len(open) != 2 {
		t.Errorf("open: %v", open)
	}
	if err := owner.close(); err != nil { // its table goes with it
		t.Fatal(err)
	}
	waitFor(t, "lists hold on devices", func() bool {
		setListDevices(t, k, b.devices)
		bring(t, k, s.change())
		return len(k.Unenforced()) == 0
	})
	b.shoot(t, "after the refusal", listed(blocked, fsm.Both))
}
