package debian

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const userspaceDropIn = "/usr/share/doc/palisade/examples/openvswitch-userspace.conf"

// inventory has the agent learn its VMs from another driver, until what it returns is called.
func (m *machine) inventory(driver string) (restore func()) {
	m.t.Helper()
	path := filepath.Join(m.root, "etc/palisade/palisade.toml")
	before, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	use := func(text []byte) {
		m.t.Helper()
		if err := os.WriteFile(path, text, 0o640); err != nil { // keeps owner and mode
			m.t.Fatal(err)
		}
		m.must("systemctl", "restart", "palisade.service")
	}
	text := bytes.Replace(before, []byte("\ndriver = \"none\""), []byte("\ndriver = \""+driver+"\""), 1)
	use(bytes.Replace(text, []byte("\n# dir = \"/var/lib/palisade/vms\""), []byte("\ndir = \"/var/lib/palisade/vms\""), 1))
	return func() { use(before) }
}

// agentStatus is what the kernel says of the agent that systemd started.
func (m *machine) agentStatus() string {
	m.t.Helper()
	return m.must("cat", "/proc/"+m.property("palisade.service", "MainPID")+"/status")
}

// proven wants the agent's canary to have shown on every path that what is blocked is dropped.
func (m *machine) proven() error {
	if _, err := m.try("sh", "-c", "rm -f /root/proof.tar.gz && palisade debug bundle --out /root/proof.tar.gz"); err != nil {
		return err
	}
	metrics, err := m.try("tar", "-xzOf", "/root/proof.tar.gz", "palisade-debug/metrics.txt")
	if err != nil {
		return err
	}
	if !regexp.MustCompile(`(?m)^palisade_canary_proven_timestamp_seconds [1-9]`).MatchString(metrics) {
		return errors.New("it is not proven yet")
	}
	for _, line := range strings.Split(metrics, "\n") {
		if (strings.HasPrefix(line, "palisade_canary_passed_total{") || strings.HasPrefix(line, "palisade_canary_blind_total{")) && !strings.HasSuffix(line, " 0") {
			return errors.New(line)
		}
	}
	return nil
}

// readTap is a guest's tap in the machine that a packet socket reads, as a switch that is a program does.
type readTap struct{ guest, program int }

// sees sends a frame as the guest, and says whether the program has it.
func (r readTap) sees(number byte) bool {
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0, 0, 0x77, 0x88, 0xb5}, bytes.Repeat([]byte{number}, 50)...)
	if _, err := unix.Write(r.guest, frame); err != nil {
		return false // what XDP drops is an error of some kernels
	}
	b := make([]byte, 2048)
	for late := time.Now().Add(200 * time.Millisecond); time.Now().Before(late); {
		n, err := unix.Read(r.program, b)
		if err != nil {
			time.Sleep(time.Millisecond)
		} else if bytes.Equal(b[:n], frame) {
			return true
		}
	}
	return false
}

func (m *machine) readTap(name string) (r readTap) {
	m.t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with it
		done <- func() error {
			ns, err := unix.Open("/run/netns/"+machineNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer func() { _ = unix.Close(ns) }()
			if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
				return err
			}
			if r.guest, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
				return err
			}
			req, err := unix.NewIfreq(name)
			if err != nil {
				return err
			}
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			if err := unix.IoctlIfreq(r.guest, unix.TUNSETIFF, req); err != nil {
				return err
			}
			const all = 0x0300 // ETH_P_ALL in network order
			if r.program, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all); err != nil {
				return err
			}
			i, err := net.InterfaceByName(name)
			if err != nil {
				return err
			}
			return unix.Bind(r.program, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
		}()
	}()
	if err := <-done; err != nil {
		m.t.Fatal(err)
	}
	must(m.t, "ip", "-n", machineNS, "link", "set", name, "up")
	return r
}

// userspace blocks a guest whose frames only XDP can stop: without the drop-in the agent may not, and says so; with it
// they are stopped.
func (m *machine) userspace() {
	m.t.Helper()
	r := m.readTap("tapu")
	m.must("install", "-d", "-o", "palisade", "-g", "palisade", "/var/lib/palisade/vms")
	m.write("/var/lib/palisade/vms/u1.json", `{"id": "u1", "phase": "running", "nics": [{"mac": "52:54:00:00:00:77", "tap": "tapu", "addresses": ["192.0.2.77"]}]}`)
	restore := m.inventory("static")
	m.eventually("the kind of network is known", func() error {
		out, err := m.try("palisade", "-o", "json", "vm", "show", "u1")
		return errors.Join(err, wants(out, `"openvswitch-userspace"`))
	})
	var block string
	m.eventually("a block of it", func() (err error) {
		block, err = m.try("palisade", "-o", "json", "block", "add", "u1")
		return err
	})
	id := regexp.MustCompile(`"id": "([^"]+)"`).FindStringSubmatch(block)
	if id == nil {
		m.t.Fatalf("no id: %s", block)
	}
	m.eventually("it is said that the unit may not", func() error {
		out, err := m.try("palisade", "-o", "json", "status")
		return errors.Join(err, wants(out, "network_unenforceable"), wants(out, "CAP_BPF"))
	})
	if !r.sees(1) {
		m.t.Error("without CAP_BPF the guest is cut after all: the drop-in is not needed")
	}

	m.must("mkdir", "-p", "/etc/systemd/system/palisade.service.d")
	m.must("cp", userspaceDropIn, "/etc/systemd/system/palisade.service.d/")
	m.must("systemctl", "daemon-reload")
	m.must("systemctl", "restart", "palisade.service")
	const andBPF = "0000008000003000"
	if status := m.agentStatus(); !strings.Contains(status, "\nCapEff:\t"+andBPF+"\n") || !strings.Contains(status, "\nCapBnd:\t"+andBPF+"\n") {
		m.t.Errorf("with the drop-in the agent's capabilities are not %s:\n%s", andBPF, status)
	}
	number := byte(2)
	sees := func(want bool) func() error {
		return func() error {
			if number++; r.sees(number) != want {
				out, _ := m.try("palisade", "-o", "json", "status")
				return fmt.Errorf("the switch sees the guest's frames: %v\n%s", !want, out)
			}
			return nil
		}
	}
	m.eventually("the guest is cut", sees(false))
	if out := must(m.t, "ip", "-n", machineNS, "link", "show", "tapu"); !strings.Contains(out, "xdpgeneric") {
		m.t.Errorf("nothing of XDP is on the tap:\n%s", out)
	}
	m.eventually("the block is lifted", func() error { _, err := m.try("palisade", "block", "lift", id[1]); return err })
	m.eventually("the guest is free", sees(true))

	m.must("rm", "-r", "/etc/systemd/system/palisade.service.d", "/var/lib/palisade/vms")
	m.must("systemctl", "daemon-reload")
	if err := errors.Join(unix.Close(r.guest), unix.Close(r.program)); err != nil { // the tap goes with it
		m.t.Fatal(err)
	}
	restore()
	m.eventually("nothing for devices is left", func() error {
		if out := m.rules(); strings.Contains(out, "table netdev") {
			return errors.New(out)
		}
		return nil
	})
}
