package openvz

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
	"github.com/palisade/palisade/inventory/output"
	"github.com/palisade/palisade/inventory/poll"
)

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// show writes a listing as one line for each VM, and one for each interface and each oddity.
func show(l poll.Listing) (lines []string) {
	for _, v := range l.VMs {
		phase := string(v.Phase)
		if v.Moving {
			phase += " moving"
		}
		lines = append(lines, fmt.Sprintf("%s (%s) %s %s", v.ID, v.Name, v.Kind, phase))
		for _, n := range v.NICs {
			var addrs []string
			for _, a := range n.Addresses {
				addrs = append(addrs, a.String())
			}
			mac := n.MAC.String()
			if n.MAC == (fsm.MAC{}) {
				mac = "-"
			}
			lines = append(lines, fmt.Sprintf("  %s %q %v", mac, n.Tap, addrs))
		}
	}
	for _, o := range l.Odd {
		lines = append(lines, "odd: "+o)
	}
	return lines
}

func TestLists(t *testing.T) {
	for name, want := range map[string][]string{
		"vzlist6.json": {
			"ct-101 (web) openvz running", "  - \"\" [192.0.2.101 2001:db8::101]",
			"ct-102 (mail.example.com) openvz running", "  00:18:51:01:02:03 \"veth102.0\" []", "  00:18:51:01:02:04 \"veth102.1\" []",
			"ct-103 (ct-103) openvz stopped", "  - \"\" [192.0.2.103]", "  00:18:51:01:03:03 \"veth103.0\" []",
			"ct-104 (old.example.com) openvz stopped",
			"ct-105 (off) openvz stopped", "  - \"\" [192.0.2.105]",
		},
		"vzlist6-fields.json": {
			"ct-101 (web) openvz running", "  - \"\" [192.0.2.101 2001:db8::101]",
			"ct-102 (ct-102) openvz running", "  00:18:51:01:02:03 \"veth102.0\" []", "  00:18:51:01:02:04 \"veth102.1\" []",
		},
		"vzlist7.json": {
			"3d1a5a4b-2c57-4f51-8a3e-6f0c54e3a001 (shop) openvz running", "  - \"\" [198.51.100.7 2001:db8:7::7]",
			"ct-207 (legacy) openvz stopped",
		},
		"prlctl7.json": {
			"ccefa40c-5c72-4e17-94c7-d68034a1c1a5 (132694) openvz running", "  - \"\" [198.51.100.189]",
			"5a2f90e1-03ab-4d59-9d3c-0c2d6a1b7e02 (front) openvz running", "  - \"\" [198.51.100.190 2001:db8::190]", "  00:1c:42:c3:fb:33 \"veth42c3fb33\" [203.0.113.9]",
			"56850624-9fd8-441a-b24f-00131f7f79ca (build) kvm running", "  00:1c:42:e1:a8:19 \"vme001c42e1a819\" [203.0.113.143 203.0.113.144]",
			"  00:1c:42:e1:a8:21 \"vme001c42e1a821\" []", "  00:1c:42:e1:a8:20 \"vme001c42e1a820\" []",
			"0d0c6e5b-27b5-4a1d-8f43-3b0de37f9c04 (moves) openvz running moving", "  - \"\" [198.51.100.191]",
			"8b1f4c3e-9a39-4a07-b8d2-51d9cbe1aa05 (off) kvm stopped", "  00:1c:42:aa:00:05 \"vme001c42aa0005\" []",
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := parse(fixture(t, name), DefaultPrefix, confDir("testdata/conf").read)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, show(l)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func noConf(string) ([]byte, error) { return nil, nil }

// TestIncompleteListsAreErrors: from what can't be read nobody may conclude that a VM is gone.
func TestIncompleteListsAreErrors(t *testing.T) {
	whole := fixture(t, "vzlist6.json")
	for name, data := range map[string]string{
		"empty":            "",
		"cut":              string(whole[:len(whole)/2]),
		"cut at the end":   strings.TrimSpace(string(whole))[:len(strings.TrimSpace(string(whole)))-1],
		"a message":        "Unable to open /dev/vzctl: Permission denied\n",
		"an object":        `{"ctid":101,"status":"running"}`,
		"text behind":      string(whole) + "x",
		"no id":            `[{"status":"running"}]`,
		"no number":        `[{"ctid":"../x","status":"running"}]`,
		"too large":        `[{"ctid":99999999999,"status":"running"}]`,
		"no UUID":          `[{"ID":"x","Type":"CT"}]`,
		"a broken element": `[{"ctid":101,"ip":"192.0.2.1"}]`,
		"raw quotes":       `[{"ctid":101,"description":"the "good" one","status":"running"}]`,
	} {
		if l, err := parse([]byte(data), "", noConf); err == nil {
			t.Errorf("%s: %v", name, show(l))
		}
	}
	if l, err := parse([]byte("[\n\n]\n"), "", noConf); err != nil || len(l.VMs) != 0 {
		t.Errorf("a node without VMs: %v, %v", show(l), err)
	}
	broken := func(string) ([]byte, error) { return nil, os.ErrPermission }
	if _, err := parse(whole, "", broken); err == nil {
		t.Error("config files that can't be read were taken for containers without interfaces")
	}
}

func TestOddPartsLeaveTheRest(t *testing.T) {
	conf := func(string) ([]byte, error) {
		return []byte(`NETIF="ifname=eth3,mac=nonsense;ifname=eth1,mac=00:18:51:00:00:01,host_ifname=a_name_that_is_too_long;ifname=venet9,host_ifname=venet0"`), nil
	}
	l, err := parse([]byte(`[{"ctid":7,"status":"thawing","ip":["192.0.2.7","host"]},{"ID":"{CCEFA40C-5C72-4E17-94C7-D68034A1C1A5}","Type":"X","State":"odd","Hardware":{"net0":{"dev":"venet0","mac":"xx","ips":"1.2.3 192.0.2.9/24"},"net1":7}}]`), "vz-", conf)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"vz-7 (vz-7) openvz running", "  - \"\" [192.0.2.7]", "  - \"veth7.3\" []", "  00:18:51:00:00:01 \"\" []", "  - \"\" []",
		"ccefa40c-5c72-4e17-94c7-d68034a1c1a5 (ccefa40c-5c72-4e17-94c7-d68034a1c1a5)  running", "  - \"\" [192.0.2.9]", "  - \"\" []",
	}
	got := show(l)
	if diff := cmp.Diff(want, got[:len(got)-len(l.Odd)]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, word := range []string{"thawing", "host", "NETIF: mac", "host_ifname", `Type "X"`, `State "odd"`, "net0: mac", "net0: ips", "net1"} {
		if !slices.ContainsFunc(l.Odd, func(o string) bool { return strings.Contains(o, word) }) {
			t.Errorf("nothing is said of %s: %q", word, l.Odd)
		}
	}
}

func TestWhatIsTooMuchIsCut(t *testing.T) {
	var ips, netif []string
	for i := range fsm.MaxVMAddresses + 10 {
		ips = append(ips, fmt.Sprintf(`"%s"`, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})))
	}
	for i := range fsm.MaxNICs + 10 {
		netif = append(netif, fmt.Sprintf("ifname=eth%d", i))
	}
	conf := func(string) ([]byte, error) { return []byte("NETIF=\"" + strings.Join(netif, ";") + "\""), nil }
	l, err := parse([]byte(`[{"ctid":7,"status":"running","ip":[`+strings.Join(ips, ",")+`]}]`), "", conf)
	if err != nil || len(l.VMs[0].NICs) != fsm.MaxNICs || len(l.VMs[0].NICs[0].Addresses) != fsm.MaxVMAddresses || len(l.Odd) != 2 {
		t.Errorf("%v, %q", err, l.Odd)
	}
}

// TestASharedNameIsNoStoppedContainers: a block of a stopped container must not hit the one that runs.
func TestASharedNameIsNoStoppedContainers(t *testing.T) {
	conf := func(string) ([]byte, error) { return []byte(`NETIF="ifname=eth0,host_ifname=lan"`), nil }
	l, err := parse([]byte(`[{"ctid":7,"status":"stopped"},{"ctid":8,"status":"running"},{"ctid":9,"status":"mounted"}]`), "", conf)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"7 (7) openvz stopped", `  - "" []`, "8 (8) openvz running", `  - "lan" []`, "9 (9) openvz stopped", `  - "" []`}, show(l)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestConfFiles(t *testing.T) {
	dir := t.TempDir()
	if data, err := confDir(dir).read("1"); data != nil || err != nil {
		t.Errorf("no file: %q, %v", data, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "2.conf"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := confDir(dir).read("2"); err == nil {
		t.Error("a directory was read")
	}
	if err := os.WriteFile(filepath.Join(dir, "3.conf"), make([]byte, maxConf+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := confDir(dir).read("3"); err == nil {
		t.Error("a large file was read")
	}
	for conf, want := range map[string]string{
		"NETIF=\"ifname=eth0\"\nNETIF='ifname=eth007'\n": "veth9.7", // the last counts, as in the shell
		"NETIF=ifname=net\n":                             "veth9.0",
		"XNETIF=\"ifname=eth0\"\n":                       "",
	} {
		nics, _ := interfaces([]byte(conf), "9")
		if got := fmt.Sprint(nics); want != "" && (len(nics) != 1 || nics[0].Tap != want) || want == "" && len(nics) > 0 {
			t.Errorf("%q: %s", conf, got)
		}
	}
}

// TestDriver reads a list, and reads it again when a config file changes.
func TestDriver(t *testing.T) {
	dir := t.TempDir()
	list := filepath.Join(dir, "list")
	put := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path+".tmp", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".tmp", path); err != nil {
			t.Fatal(err)
		}
	}
	conf := filepath.Join(dir, "conf")
	if err := os.Mkdir(conf, 0o700); err != nil {
		t.Fatal(err)
	}
	put(list, string(fixture(t, "vzlist6-fields.json")))
	d, err := New(Options{Source: output.Source{Command: []string{"/bin/cat", list}}, ConfDir: conf, Interval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	reports, ended := make(chan inventory.Report, 10), make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- d.Run(ctx, func(r inventory.Report) { reports <- r }) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	next := func(arrived ...string) inventory.Report {
		t.Helper()
		select {
		case r := <-reports:
			if !slices.Equal(r.Arrived, arrived) {
				t.Fatalf("arrived %v, want %v", r.Arrived, arrived)
			}
			return r
		case <-time.After(20 * time.Second):
			t.Fatal("no report")
			return inventory.Report{}
		}
	}
	if r := next("ct-101", "ct-102"); len(r.VMs[1].NICs) != 0 {
		t.Errorf("%+v", r.VMs[1])
	}
	put(filepath.Join(conf, "102.conf"), string(fixture(t, "conf/102.conf")))
	if r := next(); len(r.VMs[1].NICs) != 2 || r.VMs[1].NICs[0].Tap != "veth102.0" {
		t.Errorf("%+v", r.VMs[1])
	}
	put(list, "[]")
	put(filepath.Join(conf, "102.conf"), "")
	if r := next(); len(r.VMs) != 0 {
		t.Errorf("%+v", r.VMs)
	}
}

func TestOptions(t *testing.T) {
	good := output.Source{Command: []string{"/usr/sbin/vzlist", "-a", "-j"}}
	for name, o := range map[string]Options{
		"no source": {}, "relative": {Source: good, ConfDir: "x"}, "prefix": {Source: good, Prefix: "a b"},
		"timeout": {Source: good, Timeout: -1}, "interval": {Source: good, Interval: -1},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"vzlist6.json", "vzlist6-fields.json", "vzlist7.json", "prlctl7.json"} {
		f.Add(fixture(f, name), []byte(`NETIF="ifname=eth0,mac=00:18:51:01:02:03;ifname=eth1,ip=192.0.2.1"`))
	}
	f.Fuzz(func(t *testing.T, data, conf []byte) {
		l, err := parse(data, "ct-", func(string) ([]byte, error) { return conf, nil })
		if err != nil {
			return
		}
		for _, v := range l.VMs {
			addresses := 0
			for _, n := range v.NICs {
				addresses += len(n.Addresses)
				if strings.HasPrefix(n.Tap, "venet") || inventory.CheckTap(n.Tap) != nil {
					t.Errorf("tap %q of %s", n.Tap, v.ID)
				}
			}
			if v.ID == "" || v.Name == "" || len(v.NICs) > fsm.MaxNICs || addresses > fsm.MaxVMAddresses {
				t.Errorf("accepted %+v", v)
			}
		}
	})
}
