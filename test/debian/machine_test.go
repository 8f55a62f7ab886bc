// Package debian tests the Debian package where it is used: on a Debian machine with systemd, in a container of its
// own that is installed, started, upgraded, started again with an empty kernel, and purged, while packets are
// counted on both sides of it.
package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	wireNS    = "paldeb-wire"
	machineNS = "paldeb-machine"
	guestNS   = "paldeb-guest"
	outsideNS = "paldeb-outside"
)

// machine is a Debian machine that routes between a guest and the outside. Its disk outlives a start; its kernel's
// rules do not.
type machine struct {
	t    *testing.T
	dir  string // of the disk
	root string // the disk, as the machine sees it
	log  string // its console
	run  *exec.Cmd
	init int // process number of its systemd
}

// base is a Debian system as debootstrap makes it, made once for all tests of a checkout.
func base(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../.cache/debian-bookworm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	draft := dir + ".new"
	must(t, "rm", "-rf", draft)
	t.Log("making a Debian system (a minute, once)")
	must(t, "debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus,iproute2,nftables,procps,man-db", "bookworm", draft)
	if err := os.Rename(draft, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func must(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := command(argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func command(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s%s", strings.Join(argv, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

// newMachine lays out a disk and the network around the machine, which does not run yet.
func newMachine(t *testing.T) *machine {
	t.Helper()
	lower := base(t)
	dir := t.TempDir()
	m := &machine{t: t, dir: dir, root: filepath.Join(dir, "root"), log: filepath.Join(dir, "console")}
	t.Cleanup(func() {
		m.off()
		if t.Failed() {
			t.Logf("console:\n%s", m.console())
		}
		for _, ns := range []string{machineNS, guestNS, outsideNS, wireNS} {
			_, _ = command("ip", "netns", "del", ns)
		}
		must(t, "umount", m.root)
	})
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "mount", "-t", "overlay", "overlay", "-o", fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, dir, dir), m.root)
	m.wires()
	must(t, "mkdir", "-p", filepath.Join(m.root, "var/log/journal")) // kept from start to start
	m.write("/etc/systemd/system/test-network.service", `[Unit]
DefaultDependencies=no
After=network-pre.target
Wants=network-pre.target
Before=network.target network-online.target
Wants=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -ec 'for i in 1 2; do ip addr add 10.99.$i.1/24 dev eth$i; ip link set eth$i up; done'
[Install]
WantedBy=multi-user.target
`)
	must(t, "systemctl", "--root", m.root, "enable", "-q", "test-network.service")
	return m
}

// wires makes the guest and the outside, each with a bridge that its end of a wire is in.
func (m *machine) wires() {
	m.t.Helper()
	for _, ns := range []string{wireNS, guestNS, outsideNS} {
		_, _ = command("ip", "netns", "del", ns)
		must(m.t, "ip", "netns", "add", ns)
	}
	for i, ns := range []string{guestNS, outsideNS} {
		net := fmt.Sprintf("10.99.%d", i+1)
		for _, line := range []string{
			fmt.Sprintf("ip -n %s link add sw%d type bridge", wireNS, i+1),
			fmt.Sprintf("ip -n %s link set sw%d up", wireNS, i+1),
			fmt.Sprintf("ip -n %s link add w%d type veth peer name eth0 netns %s", wireNS, i+1, ns),
			fmt.Sprintf("ip -n %s link set w%d master sw%d up", wireNS, i+1, i+1),
			fmt.Sprintf("ip -n %s addr add %s.2/24 dev eth0", ns, net),
			fmt.Sprintf("ip -n %s addr add %s.3/24 dev eth0", ns, net),
			fmt.Sprintf("ip -n %s link set lo up", ns),
			fmt.Sprintf("ip -n %s link set eth0 up", ns),
			fmt.Sprintf("ip -n %s route add default via %s.1", ns, net),
		} {
			must(m.t, strings.Fields(line)...)
		}
	}
}

// start switches the machine on: a new kernel, as far as its network goes. Its links are down until it brings them up.
func (m *machine) start() {
	m.t.Helper()
	_, _ = command("ip", "netns", "del", machineNS)
	for i := 1; i <= 2; i++ { // a namespace goes when its last process has gone
		_, _ = command(strings.Fields(fmt.Sprintf("ip -n %s link del m%d", wireNS, i))...)
	}
	must(m.t, "ip", "netns", "add", machineNS)
	must(m.t, "ip", "netns", "exec", machineNS, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	for i := 1; i <= 2; i++ {
		must(m.t, strings.Fields(fmt.Sprintf("ip -n %s link add m%d type veth peer name eth%d address 02:00:00:00:00:0%d netns %s", wireNS, i, i, i, machineNS))...)
		must(m.t, strings.Fields(fmt.Sprintf("ip -n %s link set m%d master sw%d up", wireNS, i, i))...)
	}
	console, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer console.Close()
	// Systemd needs the one hierarchy of control groups, also where this machine has the old ones.
	script := fmt.Sprintf(`set -e
if [ ! -e /sys/fs/cgroup/cgroup.controllers ]; then umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; fi
mkdir -p /sys/fs/cgroup/paldeb
echo $$ > /sys/fs/cgroup/paldeb/cgroup.procs
exec systemd-nspawn -q -D %s --register=no --keep-unit -M paldeb --network-namespace-path=/run/netns/%s --capability=CAP_NET_ADMIN,CAP_NET_RAW,CAP_BPF --system-call-filter=bpf --console=pipe --boot systemd.log_target=console`, m.root, machineNS)
	m.run = exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script)
	m.run.Stdout, m.run.Stderr = console, console
	if err := m.run.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.eventually("the machine is up", func() error {
		m.init = systemdBelow(m.run.Process.Pid)
		if m.init == 0 {
			return errors.New("it has no init yet")
		}
		out, err := m.try("systemctl", "is-system-running")
		if s := strings.TrimSpace(out); s == "running" || s == "degraded" {
			return nil
		}
		return fmt.Errorf("it is %q: %w", out, err)
	})
}

// systemdBelow finds the init of a container among the descendants of a process.
func systemdBelow(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0
	}
	for _, f := range strings.Fields(string(b)) {
		child, err := strconv.Atoi(f)
		if err != nil {
			return 0
		}
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child)); err == nil && strings.TrimSpace(string(name)) == "systemd" {
			return child
		}
		if found := systemdBelow(child); found != 0 {
			return found
		}
	}
	return 0
}

// off is a power cut.
func (m *machine) off() {
	if m.run == nil {
		return
	}
	_ = m.run.Process.Kill()
	_ = m.run.Wait() // it was killed
	m.run, m.init = nil, 0
}

// try runs something in the machine.
func (m *machine) try(argv ...string) (string, error) {
	return command(append([]string{"nsenter", "-t", strconv.Itoa(m.init), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--",
		"env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"}, argv...)...)
}

func (m *machine) must(argv ...string) string {
	m.t.Helper()
	out, err := m.try(argv...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// write puts a file on the disk.
func (m *machine) write(path, content string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.root, path), []byte(content), 0o644); err != nil { //nolint:gosec // a disk of the test's own
		m.t.Fatal(err)
	}
}

// rules are the kernel's, without counters and the log index.
func (m *machine) rules() string {
	m.t.Helper()
	out := must(m.t, "ip", "netns", "exec", machineNS, "nft", "-s", "list", "ruleset")
	var kept []string
	in := false
	for line := range strings.Lines(out) {
		in = in || strings.Contains(line, "set enforced")
		// No tap is loaded at boot, and of the machine's the agent has only the canary's.
		if !in && !strings.Contains(line, `elements = { "palcan`) {
			kept = append(kept, line)
		}
		in = in && strings.TrimSpace(line) != "}"
	}
	return strings.Join(kept, "")
}

func (m *machine) eventually(what string, ok func() error) {
	m.t.Helper()
	const patience = 90 * time.Second
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("not within %v: %s: %v", patience, what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// property is one of a unit.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return strings.TrimSpace(m.must("systemctl", "show", "-P", name, unit))
}

func (m *machine) console() string {
	if journal, err := command("journalctl", "--no-pager", "-q", "-n", "80", "-D", filepath.Join(m.root, "var/log/journal")); err == nil {
		return journal
	}
	b, err := os.ReadFile(m.log)
	if err != nil {
		return err.Error()
	}
	const most = 12_000
	return string(b[max(0, len(b)-most):])
}
