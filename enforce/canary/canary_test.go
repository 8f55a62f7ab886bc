package canary

import (
	"bytes"
	"net"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// alone moves the test to a thread in a network namespace of its own, which ends with it.
func alone(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	run(t, "", "ip", "link", "set", "lo", "up")
}

func run(t *testing.T, input, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// wall is what the kernel's driver makes of Elements, as far as the canary can see it.
const wall = `
table bridge palisade {
 set taps { type ifname; elements = { "palcan1" } }
 set macs { type ether_addr; elements = { 02:70:61:6c:00:01 } }
 set a4 { type ipv4_addr; elements = { 127.112.97.108 } }
 set a6 { type ipv6_addr; elements = { 100::7061:6c } }
 chain pre {
  type filter hook prerouting priority -500; policy accept;
  iifname @taps drop
  ether saddr @macs drop
  ip saddr @a4 drop
  ip6 saddr @a6 drop
 }
}
table inet palisade {
 set a4 { type ipv4_addr; elements = { 127.112.97.108 } }
 chain out { type filter hook output priority -500; policy accept; ip daddr @a4 drop; }
}
`

func fly(t *testing.T, c *Canary) Flight {
	t.Helper()
	f, err := c.Fly(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFlight: what is blocked does not arrive, and whatever opens one path is found on that path.
func TestFlight(t *testing.T) {
	alone(t)
	c := New(Options{Wait: 300 * time.Millisecond})
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for _, s := range []struct {
		name, script  string
		passed, blind []Path
	}{
		{"no rules", "", Paths(), nil},
		{"the wall", wall, nil, nil},
		{"no tap", wall + `delete element bridge palisade taps { "palcan1" }`, []Path{BridgeTap}, nil},
		{"no hardware address", wall + "flush set bridge palisade macs", []Path{BridgeMAC}, nil},
		{"no IPv4", wall + "flush set bridge palisade a4\nflush set inet palisade a4", []Path{BridgeIPv4, HostIPv4}, nil},
		{"no IPv6", wall + "flush set bridge palisade a6", []Path{BridgeIPv6}, nil},
		{"asleep", wall + "add table bridge palisade { flags dormant; }", Paths()[:4], nil},
		{"an accept of others in front", wall + "table bridge x { chain pre { type filter hook prerouting priority -1000; policy accept; counter accept; }; }", nil, nil},
		{"others drop all", wall + "table bridge x { chain pre { type filter hook prerouting priority -1000; policy drop; }; }\n" +
			"table inet x { chain out { type filter hook output priority -1000; policy drop; }; }", nil, Paths()},
	} {
		run(t, "flush ruleset\n"+s.script+"\n", "nft", "-f", "-")
		f := fly(t, c)
		slices.Sort(f.Passed)
		slices.Sort(s.passed)
		if !slices.Equal(f.Passed, s.passed) || !slices.Equal(f.Blind, s.blind) {
			t.Errorf("%s: passed %v, blind %v", s.name, f.Passed, f.Blind)
		}
	}
}

// TestNothingLeaves: on a node that forwards, with an uplink that has a default route, no frame comes out of it, also
// when nothing is dropped; and closing leaves no interface.
func TestNothingLeaves(t *testing.T) {
	alone(t)
	run(t, `link add up0 type veth peer name far0
link set up0 addrgenmode none
link set far0 addrgenmode none
link set up0 up
link set far0 up
addr add 192.0.2.1/24 dev up0
route add default via 192.0.2.2
neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev up0
`, "ip", "-batch", "-")
	run(t, "", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv6.conf.all.forwarding=1")
	left := listen(t, "far0")
	before := run(t, "", "ip", "-o", "link")
	c := New(Options{})
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if f := fly(t, c); len(f.Passed) != len(Paths()) {
			t.Errorf("without rules, passed %v, blind %v", f.Passed, f.Blind)
		}
	}
	if addrs := run(t, "", "ip", "-o", "addr"); strings.Contains(addrs, "palcan") {
		t.Errorf("a link has an address:\n%s", addrs)
	}
	if n := left(); n != 0 {
		t.Errorf("%d packets left the node", n)
	}
	stray, err := net.Dial("udp4", "192.0.2.2:9")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stray.Write([]byte("palisade")); err != nil || left() != 1 {
		t.Errorf("%v; what does leave is not seen: the test shows nothing", err)
	}
	_ = stray.Close()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if after := run(t, "", "ip", "-o", "link"); after != before {
		t.Errorf("links remain:\n%s", after)
	}
}

// listen returns what counts the frames of the canary, or about it, that have come in from an interface.
func listen(t *testing.T, name string) func() int {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: l.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	return func() (n int) {
		for b := make([]byte, 2048); ; {
			size, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				return n
			}
			if bytes.Contains(b[:size], []byte("palisade")) {
				n++
			}
		}
	}
}

// TestOfAnEarlierLife: links that were left are replaced; one of somebody else is left alone.
func TestOfAnEarlierLife(t *testing.T) {
	alone(t)
	killed := New(Options{})
	if err := killed.Open(); err != nil {
		t.Fatal(err)
	}
	c := New(Options{})
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	if f := fly(t, c); len(f.Blind) != 0 {
		t.Errorf("blind on %v", f.Blind)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	run(t, "", "ip", "link", "add", portFree, "type", "bridge")
	if err := c.Open(); err == nil || !strings.Contains(err.Error(), "not the canary's") {
		t.Errorf("with an interface of somebody else: %v", err)
	}
	if out := run(t, "", "ip", "-o", "link"); !strings.Contains(out, portFree+":") {
		t.Errorf("it is gone:\n%s", out)
	}
}
