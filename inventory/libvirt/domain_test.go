package libvirt

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/go-cmp/cmp"

	"github.com/palisade/palisade/fsm"
)

func fixture(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The fixtures are what libvirt 9.0 gave for running guests; macvtap-sriov.xml is put together from
// its documentation, because this needs hardware.
func TestReadDomainXML(t *testing.T) {
	for _, c := range []struct {
		file  string
		phase fsm.Phase
		want  []string // "ID NAME", then for each NIC "MAC TAP ADDRESSES"
		odd   int
	}{
		{"migrated.xml", fsm.PhaseIncoming, []string{
			"528bd5a4-753b-4773-a2d4-6c672f1d9126 g1",
			"52:54:00:5a:00:01 vnet0 []",
		}, 0},
		{"filtered-running.xml", fsm.PhaseRunning, []string{
			"0eb1a0d0-0229-42f1-a8da-c50f43a04aa4 web-7",
			"52:54:00:5a:07:01 vnet1 [192.0.2.7 192.0.2.8 2001:db8::7]",
			"52:54:00:5a:07:02 tap107i1 []",
			"52:54:00:5a:07:03 tap107i2 []",
			"52:54:00:5a:07:04  []",
		}, 0},
		{"filtered-stopped.xml", fsm.PhaseStopped, []string{
			"799f75d3-e347-4a9f-8b6e-463b485d49a0 web-7",
			"52:54:00:5a:07:01  [192.0.2.7 192.0.2.8 2001:db8::7]",
			"52:54:00:5a:07:02  []", // its XML names tap107i1, which does not exist now
			"52:54:00:5a:07:03  []",
			"52:54:00:5a:07:04  []",
		}, 0},
		{"macvtap-sriov.xml", fsm.PhaseRunning, []string{
			"c7a5fdbd-cdaf-9455-926a-d65c16db1809 db-3",
			"fa:16:3e:00:00:01 macvtap0 []",
			"fa:16:3e:00:00:02  []",
			"fa:16:3e:00:00:03 vhu1 []",
			"fa:16:3e:00:00:04 vnet12 [192.0.2.33]",
		}, 2},
	} {
		t.Run(c.file, func(t *testing.T) {
			vm, odd, err := read(fixture(t, c.file), c.phase)
			if err != nil {
				t.Fatal(err)
			}
			got := []string{vm.ID + " " + vm.Name}
			for _, n := range vm.NICs {
				got = append(got, fmt.Sprint(n.MAC, " ", n.Tap, " ", n.Addresses))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if vm.Kind != "kvm" || vm.Phase != c.phase || len(odd) != c.odd {
				t.Errorf("kind %s, phase %s, odd %q", vm.Kind, vm.Phase, odd)
			}
		})
	}
}

func TestReadRefusesWhatIsNoDomain(t *testing.T) {
	for _, text := range []string{"", "<domain", "<network><name>x</name></network>"} {
		if _, _, err := read(text, fsm.PhaseRunning); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

func TestPhase(t *testing.T) {
	const (
		running   = int32(golibvirt.DomainRunning)
		paused    = int32(golibvirt.DomainPaused)
		off       = int32(golibvirt.DomainShutoff)
		migration = int32(golibvirt.DomainPausedMigration)
		starting  = int32(golibvirt.DomainPausedStartingUp)
		postcopy  = int32(golibvirt.DomainPausedPostcopy)
		byUser    = int32(golibvirt.DomainPausedUser)
	)
	for name, c := range map[string]struct {
		s       state
		phase   fsm.Phase
		leaving bool
	}{
		"running":                    {state{state: running}, fsm.PhaseRunning, false},
		"running, still receiving":   {state{state: running, receiving: true}, fsm.PhaseRunning, false},
		"paused by the user":         {state{state: paused, reason: byUser}, fsm.PhaseRunning, false},
		"starting":                   {state{state: paused, reason: starting}, fsm.PhaseRunning, false},
		"received, before the tap":   {state{state: paused, reason: starting, receiving: true}, fsm.PhaseIncoming, false},
		"received, started":          {state{state: paused, reason: migration, receiving: true}, fsm.PhaseIncoming, false},
		"sent, last moments":         {state{state: paused, reason: migration}, fsm.PhaseRunning, true},
		"sent, post-copy":            {state{state: paused, reason: postcopy}, fsm.PhaseRunning, true},
		"off":                        {state{state: off, persistent: true}, fsm.PhaseStopped, false},
		"off, transient":             {state{state: off}, fsm.PhaseGone, false},
		"crashed, kept for analysis": {state{state: int32(golibvirt.DomainCrashed)}, fsm.PhaseStopped, false},
		"shutting down":              {state{state: int32(golibvirt.DomainShutdown)}, fsm.PhaseRunning, false},
		"suspended by the guest":     {state{state: int32(golibvirt.DomainPmsuspended)}, fsm.PhaseRunning, false},
	} {
		if p, leaving := c.s.phase(); p != c.phase || leaving != c.leaving {
			t.Errorf("%s: phase %s leaving %v, want %s %v", name, p, leaving, c.phase, c.leaving)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, name := range []string{"migrated.xml", "filtered-running.xml", "macvtap-sriov.xml"} {
		f.Add(fixture(f, name))
	}
	f.Fuzz(func(t *testing.T, text string) {
		vm, _, err := read(text, fsm.PhaseRunning)
		if err == nil && len(vm.NICs) > fsm.MaxNICs {
			t.Errorf("%d NICs", len(vm.NICs))
		}
		if err != nil && strings.TrimSpace(err.Error()) == "" {
			t.Error("an error that says nothing")
		}
	})
}

// TestNetworks: what has no interface on the host is told from what has.
func TestNetworks(t *testing.T) {
	xml := `<domain type='kvm'><name>a</name><uuid>0000aaaa-0000-0000-0000-000000000001</uuid><devices>`
	want := map[string]string{
		`<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='vnet1'/></interface>`:                                      "",
		`<interface type='direct'><mac address='52:54:00:00:00:02'/><source dev='eth0' mode='passthrough'/><target dev='macvtap0'/></interface>`:                  "",
		`<interface type='user'><mac address='52:54:00:00:00:03'/></interface>`:                                                                                   fsm.NetworkUser,
		`<interface type='vhostuser'><mac address='52:54:00:00:00:04'/><source type='unix' path='/s' mode='client'/></interface>`:                                 fsm.NetworkVhostUser,
		`<interface type='hostdev'><mac address='52:54:00:00:00:05'/><source><address type='pci' domain='0' bus='0' slot='7' function='0'/></source></interface>`: fsm.NetworkHostdev,
		`<interface type='mcast'><mac address='52:54:00:00:00:06'/><source address='230.0.0.1' port='5558'/></interface>`:                                         fsm.NetworkUnknown,
		`<interface type='vdpa'><mac address='52:54:00:00:00:07'/><source dev='/dev/vhost-vdpa-0'/></interface>`:                                                  fsm.NetworkVDPA,
	}
	for nic, network := range want {
		vm, odd, err := read(xml+nic+`</devices></domain>`, fsm.PhaseRunning)
		if err != nil || len(odd) > 0 || len(vm.NICs) != 1 || vm.NICs[0].Network != network {
			t.Errorf("%s: %+v, %v, %v; want network %q", nic, vm.NICs, odd, err, network)
		}
	}
}
