// Package fleet builds a fleet of virtualization nodes on one machine, for the demo and the system
// tests. Every node is a network, mount and UTS namespace with its own bridge and its own agent
// process; guests are namespaces behind a veth end named like a tap ("netns"), or QEMU machines under
// the node's own libvirtd ("qemu").
//
// Nothing of it touches the network of the machine itself: the segment that joins the nodes is a
// bridge in a namespace of its own. So any number of fleets with different prefixes can stand side by
// side, all with the same addresses. See DESIGN.md for the picture and the reasons.
package fleet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// The kinds of guests.
const (
	GuestsNetns = "netns"
	GuestsQEMU  = "qemu"
)

// Outside and Unmanaged name, besides nodes and guests, the places where Fleet.Command runs
// something: the world outside of the fleet (its namespace also holds the bridge that joins the
// nodes), and the host on node 1's bridge that no inventory knows.
const (
	Outside   = "outside"
	Unmanaged = "unmanaged"
)

// Options of a fleet. Dir and Binary must be given.
type Options struct {
	// Dir holds everything the fleet writes. It must not be below /run or /var/run (the nodes see
	// their own there), and should be on a real disk.
	Dir    string
	Binary string // the palisade binary: runs the agents and, as "demo guest", what light guests serve
	// Prefix begins the names of the fleet's network namespaces. Default "pal".
	Prefix        string
	Nodes         int    // default 3
	GuestsPerNode int    // default 2, negative for none
	Guests        string // GuestsNetns (default) or GuestsQEMU
	// RoutedGuests are light guests that are routed instead of bridged, spread over the nodes.
	RoutedGuests int
	Unmanaged    bool // also a host on node 1's bridge that no inventory knows
	// Apart are the last nodes whose agents are not started: machines that belong to no fleet yet. Their guests
	// run. StartAgent lets such a node join, LaunchAgent leaves that to the caller.
	Apart    int
	NoAgents bool     // namespaces and guests alone; StartAgent can start agents later
	AgentEnv []string // added to the environment of every agent ("KEY=value")
	LogLevel string   // of the agents; default "info"
	// Progress is told what is being done, one line at a time, from one goroutine. May be nil.
	Progress func(string)
}

var prefixForm = regexp.MustCompile(`^[a-z][a-z0-9]{0,15}$`)

// complete fills in the defaults and checks the options.
func (o Options) complete() (Options, error) {
	if o.Prefix == "" {
		o.Prefix = "pal"
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.GuestsPerNode == 0 {
		o.GuestsPerNode = 2
	}
	o.GuestsPerNode = max(o.GuestsPerNode, 0)
	if o.Guests == "" {
		o.Guests = GuestsNetns
	}
	if o.LogLevel == "" {
		o.LogLevel = "info"
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	switch {
	case !prefixForm.MatchString(o.Prefix):
		return o, fmt.Errorf("prefix %q: want a lower case letter, then at most 15 letters and digits", o.Prefix)
	case o.Nodes < 1 || o.Nodes > 32:
		return o, fmt.Errorf("nodes: %d, want 1 to 32", o.Nodes)
	case o.Nodes*o.GuestsPerNode+max(o.RoutedGuests, 0) > 800:
		return o, errors.New("more than 800 guests")
	case o.Guests != GuestsNetns && o.Guests != GuestsQEMU:
		return o, fmt.Errorf("guests: %q, want %s or %s", o.Guests, GuestsNetns, GuestsQEMU)
	case o.Apart < 0 || o.Apart >= o.Nodes:
		return o, fmt.Errorf("apart: %d of %d nodes, want fewer", o.Apart, o.Nodes)
	case o.RoutedGuests < 0:
		return o, errors.New("routed guests: negative")
	}
	var err error
	if o.Dir, err = cleanDir(o.Dir); err != nil {
		return o, err
	}
	if o.Binary, err = filepath.Abs(o.Binary); err != nil {
		return o, err
	}
	info, err := os.Stat(o.Binary)
	switch {
	case err != nil:
		return o, fmt.Errorf("palisade binary: %w", err)
	case info.IsDir() || info.Mode()&0o111 == 0:
		return o, fmt.Errorf("palisade binary: %s is not executable", o.Binary)
	case hidden(o.Binary):
		return o, fmt.Errorf("palisade binary: %s is below /run, where the nodes cannot see it", o.Binary)
	}
	return o, nil
}

// cleanDir makes the path absolute and checks that the nodes can use it.
func cleanDir(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("state directory: not given")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	if resolved, err := filepath.EvalSymlinks(dir); err == nil {
		dir = resolved
	}
	// The kernel takes 107 bytes for the path of a Unix socket.
	if longest := len(filepath.Join(dir, "node-32", socketName)); longest > 107 {
		return "", fmt.Errorf("state directory: %s is %d bytes too long for the agents' sockets", dir, longest-107)
	}
	if hidden(dir) {
		return "", fmt.Errorf("state directory: %s is below /run, where the nodes have their own", dir)
	}
	// It is written into the agents' config files and a shell script.
	if strings.ContainsAny(dir, "\"'`$\\\n\r\t ") {
		return "", fmt.Errorf("state directory: %q holds a space, a quote or another special character", dir)
	}
	return dir, nil
}

func hidden(path string) bool {
	return path == "/run" || strings.HasPrefix(path, "/run/") || strings.HasPrefix(path, "/var/run/")
}

// The addresses of a fleet. Bridged: all in one segment, 10.90.0.0/16 and fd90::/64. Routed guests:
// 10.91.NODE.K and fd91::NODE:K, each as a /32 and /128 route on its node.
func nodeAddrs(i int) []netip.Addr { return []netip.Addr{addr4(90, 0, i), addr6(0x90, 0, i)} }
func outsideAddrs() []netip.Addr   { return []netip.Addr{addr4(90, 0, 254), addr6(0x90, 0, 0xfffe)} }
func guestAddrs(k int) []netip.Addr {
	return []netip.Addr{addr4(90, 1+(k-1)/250, 1+(k-1)%250), addr6(0x90, 1, k)}
}
func routedAddrs(node, k int) []netip.Addr {
	return []netip.Addr{addr4(91, node, k), addr6(0x91, node, k)}
}
func unmanagedAddrs() []netip.Addr { return []netip.Addr{addr4(90, 9, 1), addr6(0x90, 9, 1)} }

func addr4(net, c, d int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(net), byte(c), byte(d)})
}

func addr6(net, group, host int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: byte(net), 12: byte(group >> 8), 13: byte(group), 14: byte(host >> 8), 15: byte(host)})
}

func guestMAC(k int) string  { return fmt.Sprintf("52:54:00:5a:%02x:%02x", k>>8, k&0xff) }
func bridgeMAC(i int) string { return fmt.Sprintf("02:90:00:00:00:%02x", i) }
func uplinkMAC(i int) string { return fmt.Sprintf("02:90:00:00:01:%02x", i) }
