package enforce

import (
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/palisade/palisade/fsm"
)

// Updates give what a fresh look gives, whatever happens in between.
func TestSourcesUpdateIsReset(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store, s := fsm.NewStore(), NewSources()
		held := map[SourceElement]struct{}{}
		vms := rapid.SampledFrom([]string{"a", "b", "c"})
		var local Local
		index := uint64(0)
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			watcher := store.Watch(store.View().Index())
			if rapid.Bool().Draw(t, "move") {
				nics := map[string][]fsm.NIC{}
				for _, vm := range rapid.SliceOfDistinct(vms, rapid.ID[string]).Draw(t, "here") {
					n := fsm.NIC{Tap: rapid.SampledFrom([]string{"", "tap0", "tap1", "tap2"}).Draw(t, "tap"), MAC: fsm.MAC{2, 0, 0, 0, 0, rapid.Byte().Draw(t, "mac")}}
					if rapid.Bool().Draw(t, "address") {
						n.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.1")}
					}
					nics[vm] = []fsm.NIC{n}
				}
				local.NICs = local.NICs.Replace(nics, fsm.SameNICs)
				d := s.Update(store.View(), nil, local, false)
				take(held, d)
			} else {
				var op fsm.Op = fsm.DeclareVM{
					ID: vms.Draw(t, "vm"), SourceGuard: rapid.SampledFrom([]fsm.SourceGuard{"", "on", "off", "inherit"}).Draw(t, "guard"),
					Addresses: rapid.SliceOfDistinct(rapid.SampledFrom([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fe80::/64")}), rapid.ID[netip.Prefix]).Draw(t, "declared"),
				}
				switch rapid.IntRange(0, 4).Draw(t, "op") {
				case 0:
					settings := fsm.DefaultSettings()
					settings.SourceGuard = rapid.Bool().Draw(t, "fleet")
					op = fsm.PutSettings{Settings: settings}
				case 1:
					op = fsm.PutGuard{VM: vms.Draw(t, "guarded")}
				case 2:
					op = fsm.DeleteGuard{VM: vms.Draw(t, "free")}
				}
				index++
				data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(1, 0), Actor: "test", Op: op})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := store.ApplyBatch([]fsm.Entry{{Index: index, Data: data}}); err != nil {
					t.Fatal(err)
				}
				view, events, err := watcher.Next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				take(held, s.Update(view, events, local, false))
			}
			fresh := NewSources()
			fresh.Update(store.View(), nil, local, true)
			if !maps.Equal(held, fresh.Elements()) || !maps.Equal(held, s.Elements()) {
				t.Fatalf("updates hold %v, a fresh look %v", held, fresh.Elements())
			}
		}
	})
}

func take(held map[SourceElement]struct{}, d SourceDelta) {
	for _, e := range d.Add {
		held[e] = struct{}{}
	}
	for _, e := range d.Remove {
		delete(held, e)
	}
}

// What a guest is bound to, by what is known of it.
func TestWhatAGuestIsBoundTo(t *testing.T) {
	mac := fsm.MAC{0x52, 0x54, 0, 0, 0, 2}
	store := fsm.NewStore()
	data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(1, 0), Actor: "test", Op: fsm.DeclareVM{ID: "v", SourceGuard: fsm.SourceOn}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.ApplyBatch([]fsm.Entry{{Index: 1, Data: data}}); err != nil {
		t.Fatal(err)
	}
	type guest struct {
		nics            map[string][]fsm.NIC
		taps, addresses bool
		has, lacks      string // prefixes
		why             string // part of it; "" if all is bound
	}
	on := func(network string) guest { // whose packets do not pass our tables: bound to nothing, and said so
		nics := map[string][]fsm.NIC{"v": {{MAC: mac, Tap: "t", Network: network, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}}
		return guest{nics, false, false, "", "10.0.0.1/32", "not possible: its interface 52:54:00:00:00:02 is on a network (" + network + ")"}
	}
	for name, tt := range map[string]guest{
		"an address":       {map[string][]fsm.NIC{"v": {{MAC: mac, Tap: "t", Addresses: []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1")}}}}, true, true, "10.0.0.1/32", "0.0.0.0/0", ""},
		"its own link":     {map[string][]fsm.NIC{"v": {{MAC: mac, Tap: "t", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}}, true, true, "fe80::5054:ff:fe00:2/128", "::/0", ""},
		"no address":       {map[string][]fsm.NIC{"v": {{MAC: mac, Tap: "t"}}}, true, false, "::/0", "10.0.0.1/32", "no address"},
		"no MAC":           {map[string][]fsm.NIC{"v": {{Tap: "t", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}}, false, false, "", "10.0.0.1/32", "no hardware address"},
		"a shared tap":     {map[string][]fsm.NIC{"v": {{MAC: mac, Tap: "t"}}, "w": {{MAC: mac, Tap: "t"}}}, false, false, "", "::/0", "others have it"},
		"not on the node":  {map[string][]fsm.NIC{"w": {{MAC: mac, Tap: "t"}}}, false, false, "", "::/0", ""},
		"a macvtap":        on(fsm.NetworkMacvtap),
		"Open vSwitch":     on(fsm.NetworkOpenVSwitch),
		"OVS in a program": on(fsm.NetworkUserspace),
		"SR-IOV":           on(fsm.NetworkHostdev),
		"no known switch":  on(fsm.NetworkUnknown),
		"a bridge and a macvtap": {map[string][]fsm.NIC{"v": {
			{MAC: mac, Tap: "t", Network: fsm.NetworkBridge, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
			{MAC: fsm.MAC{2}, Tap: "m", Network: fsm.NetworkMacvtap},
		}}, true, true, "10.0.0.1/32", "0.0.0.0/0", "not possible"},
	} {
		s := NewSources()
		s.Update(store.View(), nil, Local{NICs: MapOf(tt.nics)}, true)
		b := s.Bound()["v"]
		if (len(b.Taps) > 0) != tt.taps || b.Addresses != tt.addresses || !strings.Contains(b.Why, tt.why) || (tt.why == "") != (b.Why == "") {
			t.Errorf("%s: %+v", name, b)
		}
		if _, held := s.Elements()[SourceElement{Tap: "m"}]; held {
			t.Errorf("%s: an interface that the tables do not reach is in them", name)
		}
		holds := func(p string) bool {
			_, ok := s.Elements()[SourceElement{Tap: "t", Prefix: netip.MustParsePrefix(p)}]
			return ok
		}
		if tt.has != "" && !holds(tt.has) || holds(tt.lacks) {
			t.Errorf("%s: %v", name, s.Elements())
		}
	}
}
