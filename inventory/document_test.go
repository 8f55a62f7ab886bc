package inventory

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/palisade/palisade/fsm"
)

func TestParse(t *testing.T) {
	vm, err := Parse([]byte(`{"id":"ct-101","kind":"openvz","phase":"running","nics":[
		{"mac":"00-18-51-01-02-03","tap":"veth101.0"}, {"addresses":["192.0.2.7","::ffff:192.0.2.8"]}]}`))
	want := []VM{{ID: "ct-101", Name: "ct-101", Kind: "openvz", Phase: fsm.PhaseRunning, NICs: []fsm.NIC{
		{MAC: fsm.MAC{0, 0x18, 0x51, 1, 2, 3}, Tap: "veth101.0"},
		{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.8")}},
	}}}
	if err != nil || !Equal([]VM{vm}, want) {
		t.Errorf("%+v, %v", vm, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, c := range map[string]struct{ content, want string }{
		"no JSON":          {`{`, "unexpected EOF"},
		"unknown field":    {`{"id":"a","phase":"running","owner":"x"}`, `unknown field "owner"`},
		"two values":       {`{"id":"a","phase":"running"}{}`, "more than one"},
		"wrong type":       {`{"id":7}`, "id: is a JSON number, want string"},
		"no id":            {`{"phase":"running"}`, "id: want 1 to 255"},
		"long id":          {`{"phase":"running","id":"` + strings.Repeat("a", 256) + `"}`, "id: want 1 to 255"},
		"control":          {`{"phase":"running","id":"a","name":"a\nb"}`, "name: holds a control"},
		"space in the id":  {`{"phase":"running","id":"a b"}`, "id: want 1 to 255"},
		"kind":             {`{"phase":"running","id":"a","kind":"KVM"}`, "kind: want"},
		"phase":            {`{"id":"a","phase":"gone"}`, "phase: is \"gone\""},
		"mac":              {`{"id":"a","phase":"running","nics":[{"mac":"52:54"}]}`, "nics[0].mac: "},
		"address":          {`{"id":"a","phase":"running","nics":[{"mac":"52:54:00:00:00:01","addresses":["10.0.0.1/8"]}]}`, "nics[0].addresses[0]: "},
		"zone":             {`{"id":"a","phase":"running","nics":[{"mac":"52:54:00:00:00:01","addresses":["fe80::1%eth0"]}]}`, "has a zone"},
		"tap":              {`{"id":"a","phase":"running","nics":[{"mac":"52:54:00:00:00:01","tap":"sixteencharacter"}]}`, "nics[0].tap: "},
		"too many nics":    {`{"id":"a","phase":"running","nics":[` + strings.Repeat(`{"mac":"52:54:00:00:00:01"},`, 64) + `{"mac":"52:54:00:00:00:01"}]}`, "nics: 65"},
		"deeply nested":    {strings.Repeat("[", 60_000), "exceeded max depth"},
		"null instead of":  {`null`, "id: want 1 to 255"},
		"array instead of": {`[]`, "want an object"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(c.content))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"id":"a","name":"n","kind":"netns","phase":"running","nics":[{"mac":"52:54:00:5a:00:01","tap":"tap101i0","addresses":["10.90.1.1","fd90::1:1"]}]}`))
	f.Add([]byte(`{"id":"a","phase":"stopped","nics":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		vm, err := Parse(data)
		if err == nil && (vm.ID == "" || vm.Name == "" || vm.Phase == "" || vm.Phase == fsm.PhaseGone) {
			t.Errorf("accepted %+v", vm)
		}
	})
}
