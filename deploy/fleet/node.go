package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	vmsName   = "vms.d"  // inventory files of a node
	guestsDir = "guests" // logs of the guests
	logName   = "agent.log"
	peerPort  = 7420
	chatPort  = 7421 // gossip
)

// hold starts the process that keeps a node's mount and UTS namespaces.
func (f *Fleet) hold(ctx context.Context, n Node, o Options) error {
	ready := filepath.Join(n.Dir, "held")
	lines := []string{"set -eu", "mount --make-rprivate /", "mount -t tmpfs -o mode=0755 tmpfs /run", "mkdir -p /run/lock"}
	if o.Guests == GuestsQEMU {
		more, err := libvirtFiles(n, o)
		if err != nil {
			return err
		}
		lines = append(lines, more...)
	}
	lines = append(lines, "hostname "+n.Name, "touch "+ready, "exec sleep infinity")
	script := filepath.Join(n.Dir, "hold.sh")
	if err := writeFile(script, []byte(strings.Join(lines, "\n")+"\n")); err != nil {
		return err
	}
	logPath := filepath.Join(n.Dir, "hold.log")
	p, err := f.launch([]string{"ip", "netns", "exec", n.Netns, "unshare", "-m", "-u", "sh", script}, nil, logPath)
	if err != nil {
		return err
	}
	if err := f.update(func(s *state) { s.node(n.Name).Holder = p }); err != nil {
		return err
	}
	return until(ctx, 10*time.Second, 5*time.Millisecond, func() error {
		if _, err := os.Stat(ready); err == nil {
			return nil
		}
		if !p.Alive() {
			return permanent{fmt.Errorf("%s: its namespaces could not be made: %s", n.Name, tail(logPath, 5))}
		}
		return fmt.Errorf("%s: its namespaces are not there yet", n.Name)
	})
}

// node finds a node to change it.
func (s *state) node(name string) *Node {
	for i := range s.Nodes {
		if s.Nodes[i].Name == name {
			return &s.Nodes[i]
		}
	}
	return &Node{}
}

func (s *state) guest(vm string) *Guest {
	for i := range s.VMs {
		if s.VMs[i].VM == vm {
			return &s.VMs[i]
		}
	}
	return &Guest{}
}

// enter is the command line that runs something on a node as a process started there would see it:
// its network, mounts and host name.
func (n Node) enter(argv ...string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(n.Holder.PID), "-n", "-m", "-u", "--"}, argv...)
}

// StartAgent starts the agent of a node and returns without waiting until it is ready. The agent
// outlives this process, and ctx. It is an error if it runs already. A node that belongs to no fleet yet forms it, if it is
// the first of all, or else joins it, which takes an agent of the fleet that runs and is ready.
func (f *Fleet) StartAgent(ctx context.Context, node string) error {
	if err := f.LaunchAgent(ctx, node); err != nil {
		return err
	}
	return f.enroll(ctx, node)
}

// LaunchAgent is StartAgent for a node that must not become a member by that: its agent waits.
func (f *Fleet) LaunchAgent(ctx context.Context, node string) error {
	n, err := f.Node(node)
	if err != nil {
		return err
	}
	s := f.snapshot()
	if n.Agent.Alive() {
		return fmt.Errorf("the agent of %s runs already (process %d)", node, n.Agent.PID)
	}
	// A socket stays in the network namespace in which it was made: the agent answers on the
	// machine's own loopback although it runs in the node's namespace.
	u, err := url.Parse(n.API)
	if err != nil {
		return err
	}
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", u.Host)
	if err != nil && n.Agent.PID == 0 {
		// Another program took the port since it was planned. Nobody was told of it yet.
		if listener, err = listen.Listen(ctx, "tcp", "127.0.0.1:0"); err == nil {
			n.API = "https://" + listener.Addr().String()
			err = f.update(func(s *state) { s.node(node).API = n.API })
		}
	}
	if err != nil {
		return fmt.Errorf("API of %s: %w", node, err)
	}
	defer func() { _ = listener.Close() }()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return fmt.Errorf("API of %s: %w", node, err)
	}
	defer func() { _ = file.Close() }()
	config := n.configFile()
	// The file is written once, so that a test can change it between two starts.
	if _, err := os.Stat(config); errors.Is(err, fs.ErrNotExist) {
		if err := writeFile(config, f.config(s, n)); err != nil {
			return err
		}
	}

	env := append([]string{"LISTEN_FDS=1", "LISTEN_FDNAMES=api", "LISTEN_PID="}, s.AgentEnv...)
	p, err := f.launch(n.enter(f.Binary(node), "agent", "--config", config), env, filepath.Join(n.Dir, logName), file)
	if err != nil {
		return fmt.Errorf("agent of %s: %w", node, err)
	}
	return f.update(func(s *state) { s.node(node).Agent = p })
}

// KillAgent sends a signal to the agent of a node. After a signal that ends a process it returns when
// the process has ended, or ctx.
func (f *Fleet) KillAgent(ctx context.Context, node string, sig syscall.Signal) error {
	n, err := f.Node(node)
	if err != nil {
		return err
	}
	if err := n.Agent.signal(sig); err != nil {
		return fmt.Errorf("agent of %s: %w", node, err)
	}
	switch sig {
	case syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGABRT:
		return f.await(ctx, n.Agent, 30*time.Second)
	default:
		return nil
	}
}

// AgentLog is the path of the log of a node's agent.
func (f *Fleet) AgentLog(node string) string { return filepath.Join(f.dir, node, logName) }

// config is the agent's config file.
func (f *Fleet) config(s state, n Node) []byte {
	var b bytes.Buffer
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	address := func(n Node, port int) string {
		return netip.AddrPortFrom(netip.MustParseAddr(n.Addresses[0]), uint16(port)).String()
	}
	o := outsideAddrs()
	p("data_dir = %q", filepath.Join(n.Dir, "data"))
	p("[node]\nid = %q\nguards = [\"%s/32\", \"%s/128\"]", n.Name, o[0], o[1])
	p("[cluster]\nlisten = %q\ngossip = %q", address(n, peerPort), address(n, chatPort))
	p("[api]\nlisten = \"\"\nadvertise = %q\nsocket = %q", strings.TrimPrefix(n.API, "https://"), n.Socket)
	if s.Guests == GuestsQEMU {
		p("[inventory]\ndriver = \"libvirt\"\n[inventory.libvirt]\nsocket = \"/run/libvirt/libvirt-sock\"")
	} else {
		p("[inventory]\ndriver = \"static\"\n[inventory.static]\ndir = %q", filepath.Join(n.Dir, vmsName))
	}
	p("[log]\nlevel = %q\nformat = \"text\"", s.LogLevel)
	return b.Bytes()
}

// firstPort is where a fleet's ports begin: each prefix has its own range, so that a fleet finds its
// ports free also after an agent was down for a while.
func firstPort(prefix string) int {
	const first = 18441
	if prefix == "pal" {
		return first
	}
	return first + int(crc32.ChecksumIEEE([]byte(prefix))%300+1)*40
}

// freePort finds a TCP port on loopback, from the given one on.
func freePort(ctx context.Context, from int) int {
	var listen net.ListenConfig
	for port := from; port < 65536; port++ {
		l, err := listen.Listen(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err == nil {
			_ = l.Close()
			return port
		}
	}
	return from
}

// Command prepares a command that runs on a node (its name), in a light guest (its id or name),
// Outside or on the Unmanaged host. The caller runs it.
func (f *Fleet) Command(ctx context.Context, where string, argv ...string) (*exec.Cmd, error) {
	s := f.snapshot()
	var full []string
	switch where {
	case Outside:
		full = append([]string{"ip", "netns", "exec", s.Prefix + "-n0"}, argv...)
	case Unmanaged:
		if !s.Unmanaged {
			return nil, errors.New("this fleet has no unmanaged host")
		}
		full = append([]string{"ip", "netns", "exec", s.Prefix + "-u1"}, argv...)
	default:
		if n, err := f.Node(where); err == nil {
			full = n.enter(argv...)
			break
		}
		g, err := f.Guest(where)
		if err != nil {
			return nil, fmt.Errorf("%q is no node, guest, %q or %q of this fleet", where, Outside, Unmanaged)
		}
		if g.Netns == "" {
			return nil, fmt.Errorf("%s is a real machine: nothing can be run inside", where)
		}
		full = append([]string{"ip", "netns", "exec", g.Netns}, argv...)
	}
	cmd := exec.CommandContext(ctx, full[0], full[1:]...)
	cmd.Dir = "/"
	return cmd, nil
}

// Exec runs a command where Command would and returns its output. The error holds what it said.
func (f *Fleet) Exec(ctx context.Context, where string, argv ...string) ([]byte, error) {
	cmd, err := f.Command(ctx, where, argv...)
	if err != nil {
		return nil, err
	}
	return output(cmd, "")
}

// cutTable is a table of its own, with a name unlike the agent's.
const cutTable = "fleet_cut"

// CutNode drops all peer and gossip packets of a node, both ways. Guests and the API are not touched.
func (f *Fleet) CutNode(ctx context.Context, node string) error {
	rules := fmt.Sprintf(`add table inet %[1]s
delete table inet %[1]s
table inet %[1]s {
	set peer { type inet_service; elements = { %[2]d, %[3]d }; }
	chain in { type filter hook input priority -500; tcp dport @peer drop; tcp sport @peer drop; udp dport @peer drop; udp sport @peer drop; }
	chain out { type filter hook output priority -500; tcp dport @peer drop; tcp sport @peer drop; udp dport @peer drop; udp sport @peer drop; }
}
`, cutTable, peerPort, chatPort)
	return f.nft(ctx, node, rules)
}

// HealNode ends what CutNode did. Healing a node that is not cut is no error.
func (f *Fleet) HealNode(ctx context.Context, node string) error {
	return f.nft(ctx, node, fmt.Sprintf("add table inet %[1]s\ndelete table inet %[1]s\n", cutTable))
}

func (f *Fleet) nft(ctx context.Context, node, rules string) error {
	cmd, err := f.Command(ctx, node, "nft", "-f", "-")
	if err != nil {
		return err
	}
	_, err = output(cmd, rules)
	return err
}

func splitFields(b []byte) []string { return strings.Fields(string(b)) }
