package fleet

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctls are set in every namespace before it has an interface: addresses are usable at once,
// nothing is learned from routers, and a packet may go back another way than it came.
func sysctls() map[string]string {
	return map[string]string{
		"net/ipv6/conf/all/accept_dad":         "0",
		"net/ipv6/conf/default/accept_dad":     "0",
		"net/ipv6/conf/all/accept_ra":          "0",
		"net/ipv6/conf/default/accept_ra":      "0",
		"net/ipv6/conf/all/accept_redirects":   "0",
		"net/ipv4/conf/all/accept_redirects":   "0",
		"net/ipv4/conf/all/send_redirects":     "0",
		"net/ipv4/conf/default/send_redirects": "0",
		"net/ipv4/conf/all/rp_filter":          "0",
		"net/ipv4/conf/default/rp_filter":      "0",
		"net/ipv4/icmp_ratelimit":              "0",
		"net/ipv6/icmp/ratelimit":              "0",
	}
}

func forwarding() map[string]string {
	return map[string]string{
		"net/ipv4/ip_forward":          "1",
		"net/ipv6/conf/all/forwarding": "1",
	}
}

// addNamespace makes a network namespace; it is recorded first, so that Down finds it.
func (f *Fleet) addNamespace(ctx context.Context, name string) error {
	if _, err := os.Stat(nsPath(name)); err == nil {
		return fmt.Errorf("the network namespace %s exists already and is not ours: choose another prefix", name)
	}
	if err := f.update(func(s *state) { s.Namespaces = append(s.Namespaces, name) }); err != nil {
		return err
	}
	if _, err := tool(ctx, "", "ip", "netns", "add", name); err != nil {
		// Someone may have made it just now; then it is not ours to delete.
		_ = f.update(func(s *state) {
			s.Namespaces = slices.DeleteFunc(s.Namespaces, func(n string) bool { return n == name })
		})
		return err
	}
	if err := setSysctls(name, sysctls()); err != nil {
		return err
	}
	return ip(ctx, name, "link set lo up")
}

func nsPath(name string) string { return "/run/netns/" + name }

// ip runs commands of the ip tool in a namespace, one a line, until one fails.
func ip(ctx context.Context, ns string, lines ...string) error {
	_, err := tool(ctx, strings.Join(lines, "\n")+"\n", "ip", "-n", ns, "-batch", "-")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, numbered(lines))
	}
	return nil
}

func numbered(lines []string) string {
	var b strings.Builder
	for i, l := range lines {
		fmt.Fprintf(&b, "%4d  %s\n", i+1, l)
	}
	return b.String()
}

// inside runs a function on a thread that is in another network namespace. The thread is thrown away
// after it: nothing else ever runs there.
func inside(ns string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			// The first thread can't end, and its namespace counts as that of the whole process. It is
			// held here so that the next attempt gets another.
			done <- inside(ns, f)
			runtime.UnlockOSThread()
			return
		}
		done <- func() error {
			fd, err := unix.Open(nsPath(ns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("network namespace %s: %w", ns, err)
			}
			defer func() { _ = unix.Close(fd) }()
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("network namespace %s: %w", ns, err)
			}
			return f()
		}()
	}()
	return <-done
}

// setSysctls writes settings of a network namespace. A setting that this kernel lacks is no error.
func setSysctls(ns string, values map[string]string) error {
	return inside(ns, func() error {
		for key, value := range values {
			err := os.WriteFile("/proc/sys/"+key, []byte(value), 0)
			if err != nil && !os.IsNotExist(err) {
				return err
			}
		}
		return nil
	})
}

// outsideNetwork makes the world outside: the bridge that joins the nodes, and a host on it.
func (f *Fleet) outsideNetwork(ctx context.Context, ns string) error {
	if err := f.addNamespace(ctx, ns); err != nil {
		return err
	}
	if err := setSysctls(ns, forwarding()); err != nil {
		return err
	}
	return ip(ctx, ns, append(bridge(bridgeMAC(0xfe)), assign("br0", outsideAddrs())...)...)
}

// nodeNetwork makes a node's bridge, with an uplink to the outside's.
func (f *Fleet) nodeNetwork(ctx context.Context, ns, outside string, i int) error {
	if err := f.addNamespace(ctx, ns); err != nil {
		return err
	}
	if err := setSysctls(ns, forwarding()); err != nil {
		return err
	}
	up := "up" + strconv.Itoa(i)
	if err := ip(ctx, outside,
		fmt.Sprintf("link add %s type veth peer name eth0 address %s netns %s", up, uplinkMAC(i), ns),
		fmt.Sprintf("link set %s addrgenmode none", up),
		fmt.Sprintf("link set %s master br0 up", up),
	); err != nil {
		return err
	}
	lines := append(bridge(bridgeMAC(i)),
		"link set eth0 addrgenmode none",
		"link set eth0 master br0 up")
	lines = append(lines, assign("br0", nodeAddrs(i))...)
	lines = append(lines, defaultRoutes()...)
	return ip(ctx, ns, lines...)
}

// bridge makes br0. Its address is fixed: else it would change with the taps that come and go.
func bridge(mac string) []string {
	return []string{
		"link add br0 address " + mac + " type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
		"link set br0 up",
	}
}

// assign gives a device addresses of the segment that joins the nodes.
func assign(dev string, addrs []netip.Addr) []string {
	var lines []string
	for _, a := range addrs {
		if a.Is4() {
			lines = append(lines, fmt.Sprintf("addr add %s/16 dev %s", a, dev))
		} else {
			lines = append(lines, fmt.Sprintf("addr add %s/64 dev %s nodad", a, dev))
		}
	}
	return lines
}

func defaultRoutes() []string {
	o := outsideAddrs()
	return []string{fmt.Sprintf("route add default via %s", o[0]), fmt.Sprintf("route add default via %s", o[1])}
}
