package proxmox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
	"github.com/palisade/palisade/inventory/poll"
)

// copied is the cluster of testdata in a directory of its own, as seen by a node.
func copied(t *testing.T, name string) node {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pve")
	if err := os.CopyFS(dir, os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nodes/"+name, filepath.Join(dir, "local")); err != nil {
		t.Fatal(err)
	}
	return node{dir: dir, sockets: filepath.Join(dir, "unix"), prefix: DefaultPrefix}
}

func (n node) put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(n.dir, path), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func show(l poll.Listing) (lines []string) {
	slices.SortFunc(l.VMs, func(a, b inventory.Seen) int { return cmp.Compare(a.ID, b.ID) })
	for _, v := range l.VMs {
		phase := string(v.Phase)
		if v.Moving {
			phase += " moving"
		}
		lines = append(lines, fmt.Sprintf("%s (%s) %s %s", v.ID, v.Name, v.Kind, phase))
		for _, n := range v.NICs {
			lines = append(lines, fmt.Sprintf("  %s %q %v", n.MAC, n.Tap, n.Addresses))
		}
	}
	for _, o := range l.Odd {
		lines = append(lines, "odd: "+o)
	}
	return lines
}

func TestNode(t *testing.T) {
	l, err := copied(t, "pve1").list()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"pve-100 (web) kvm running",
		`  bc:24:11:2e:c0:01 "tap100i0" [192.0.2.100 2001:db8::100]`,
		`  12:34:56:78:90:12 "tap100i1" []`,
		`  bc:24:11:2e:c0:02 "tap100i10" []`,
		"pve-101 (leaves) kvm running moving",
		`  bc:24:11:2e:c1:01 "tap101i0" []`,
		"pve-102 (comes) kvm incoming",
		`  bc:24:11:2e:c2:01 "tap102i0" []`,
		"pve-104 (104) kvm stopped",
		`  bc:24:11:2e:c4:01 "tap104i0" []`,
		"pve-200 (mail) lxc running",
		`  bc:24:11:aa:00:01 "veth200i0" [192.0.2.200]`,
		`  bc:24:11:aa:00:02 "veth200i1" [2001:db8:1::200]`,
		"pve-201 (off) lxc stopped",
		`  bc:24:11:aa:00:03 "veth201i0" []`,
	}
	if diff := gocmp.Diff(want, show(l)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestIncomplete: from what can't be read nobody may conclude that a guest is gone.
func TestIncomplete(t *testing.T) {
	for name, spoil := range map[string]func(n node) error{
		"not mounted":        func(n node) error { return os.RemoveAll(n.dir) },
		"no list":            func(n node) error { return os.Remove(filepath.Join(n.dir, ".vmlist")) },
		"half a list":        func(n node) error { return os.Truncate(filepath.Join(n.dir, ".vmlist"), 200) },
		"an empty list":      func(n node) error { return os.Truncate(filepath.Join(n.dir, ".vmlist"), 0) },
		"another list":       func(n node) error { return os.WriteFile(filepath.Join(n.dir, ".vmlist"), []byte("{}"), 0o600) },
		"no node":            func(n node) error { return os.Remove(filepath.Join(n.dir, "local")) },
		"a file is missing":  func(n node) error { return os.Remove(filepath.Join(n.dir, "nodes/pve1/lxc/201.conf")) },
		"no list of sockets": func(n node) error { return os.Remove(n.sockets) },
		"a way out": func(n node) error {
			return os.WriteFile(filepath.Join(n.dir, ".vmlist"), []byte(`{"version":1,"ids":{"../100":{"node":"pve1","type":"qemu"}}}`), 0o600)
		},
		"a large file": func(n node) error { return os.Truncate(filepath.Join(n.dir, "nodes/pve1/lxc/201.conf"), maxConf+1) },
	} {
		n := copied(t, "pve1")
		if err := spoil(n); err != nil {
			t.Fatal(err)
		}
		if l, err := n.list(); err == nil {
			t.Errorf("%s: %v", name, show(l))
		}
	}
	n := copied(t, "pve1")
	n.put(t, ".vmlist", "{\n\"version\": 1\n\n}\n")
	if l, err := n.list(); err != nil || len(l.VMs) > 0 {
		t.Errorf("a cluster without guests: %v, %v", show(l), err)
	}
	n.put(t, ".vmlist", `{"version":1,"ids":{"100":{"node":"pve1","type":"openvz"}}}`)
	if l, err := n.list(); err != nil || len(l.VMs) > 0 {
		t.Errorf("a guest of another type: %v, %v", show(l), err)
	}
	n.put(t, ".vmlist", `{"version":1,"ids":{"555":{"node":"pve1","type":"qemu"}}}`)
	if _, err := n.list(); !errors.Is(err, errMoved) {
		t.Errorf("error %v", err)
	}
}

// TestAMigration shows both ends of a migration, as the drivers of both nodes report them.
func TestAMigration(t *testing.T) {
	source, target := copied(t, "pve1"), copied(t, "pve2")
	both := func(path, text string) {
		source.put(t, path, text)
		target.put(t, path, text)
	}
	at := func(node string) string {
		return `{"version":1,"ids":{"100":{"node":"` + node + `","type":"qemu"}}}`
	}
	socket := "0: 2 0 10000 1 1 1 /run/qemu-server/100.qmp\n"
	conf := "name: web\nnet0: virtio=BC:24:11:2E:C0:01,bridge=vmbr0\n"
	var from, to inventory.Tracker
	step := func(what, wantFrom, wantTo string) {
		t.Helper()
		for _, end := range []struct {
			n    node
			t    *inventory.Tracker
			want string
		}{{source, &from, wantFrom}, {target, &to, wantTo}} {
			l, err := end.n.list()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			r, _, err := end.t.List(l.VMs, false)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, v := range r.VMs { // at most one
				got = string(v.Phase)
				if len(v.NICs) != 1 || v.NICs[0].Tap != "tap100i0" {
					t.Errorf("%s: %+v", what, v)
				}
			}
			if got += strings.Repeat(" +", len(r.Arrived)); got != end.want {
				t.Errorf("%s: %q, want %q", what, got, end.want)
			}
		}
	}
	both(".vmlist", at("pve1"))
	both("nodes/pve1/qemu-server/100.conf", conf)
	source.put(t, "unix", socket)
	target.put(t, "unix", "")
	step("it runs", "running +", "")
	both("nodes/pve1/qemu-server/100.conf", "lock: migrate\n"+conf)
	target.put(t, "unix", socket)
	step("it is in flight", "running", "incoming +")
	both(".vmlist", at("pve2"))
	both("nodes/pve2/qemu-server/100.conf", "lock: migrate\n"+conf)
	source.put(t, "unix", "")
	step("it has arrived", "", "incoming")
	both("nodes/pve2/qemu-server/100.conf", conf)
	step("it is unlocked", "", "running +")
}

func TestDriver(t *testing.T) {
	n := copied(t, "pve1")
	d, err := New(Options{Dir: n.dir, Sockets: n.sockets, Interval: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	reports, ended := make(chan inventory.Report, 10), make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- d.Run(ctx, func(r inventory.Report) { reports <- r }) }()
	first := <-reports
	if len(first.VMs) != 6 || !slices.Equal(first.Arrived, []string{"pve-100", "pve-102", "pve-200"}) {
		t.Errorf("%+v", first)
	}
	n.put(t, "unix", "")
	if second := <-reports; slices.ContainsFunc(second.VMs, inventory.VM.Here) || len(second.VMs) != 5 {
		t.Errorf("%+v", second)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestTheKernelsOwnList reads the list of this machine.
func TestTheKernelsOwnList(t *testing.T) {
	if _, err := (node{sockets: "/proc/self/net/unix"}).active(); err != nil {
		t.Error(err)
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{"relative": {Dir: "pve"}, "prefix": {Prefix: "a b"}, "interval": {Interval: -1}} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(Options{}); err != nil {
		t.Error(err)
	}
}

func FuzzConf(f *testing.F) {
	for _, name := range []string{"pve1/qemu-server/100.conf", "pve1/lxc/200.conf"} {
		data, err := os.ReadFile(filepath.Join("testdata/nodes", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, strings.Contains(name, "lxc"))
	}
	f.Fuzz(func(t *testing.T, data []byte, container bool) {
		typ := map[bool]string{false: "qemu", true: "lxc"}[container]
		c, _ := parse(data, typ, "999999999")
		addresses := 0
		for _, n := range c.nics {
			addresses += len(n.Addresses)
			if inventory.CheckTap(n.Tap) != nil {
				t.Errorf("tap %q", n.Tap)
			}
		}
		if c.name == "" || len(c.nics) > fsm.MaxNICs || addresses > fsm.MaxVMAddresses {
			t.Errorf("accepted %+v", c)
		}
	})
}
