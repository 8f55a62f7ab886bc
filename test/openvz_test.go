package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
)

// container is one of a stand-in for OpenVZ: a namespace behind a veth of its own, on the bridge, or behind
// the interface venet0 that all such containers of a node share.
type container struct {
	ctid  int
	venet bool
	addr  string
}

func (c container) netns() string { return fmt.Sprintf("palvz-ct%d", c.ctid) }
func (c container) end() probe.End {
	return probe.End{Netns: c.netns(), Addr: netip.MustParseAddr(c.addr)}
}
func (c container) hostIf() string  { return fmt.Sprintf("veth%d.0", c.ctid) }
func (c container) mac() string     { return fmt.Sprintf("00:18:51:00:00:%02x", c.ctid) }
func hub(node string) string        { return "palvz-hub" + strings.TrimPrefix(node, "node-") }
func hubAddr(node string) string    { return "10.91.9.20" + strings.TrimPrefix(node, "node-") }
func bridgeAddr(node string) string { return "10.90.0." + strings.TrimPrefix(node, "node-") }
func nodeNetns(node string) string  { return "palvz-n" + strings.TrimPrefix(node, "node-") }

// openvz is two nodes whose agents read what a stand-in for vzlist prints: of node-1 by running it, of node-2
// at a socket.
type openvz struct {
	*lab
	t *testing.T

	mu     sync.Mutex
	status map[string]map[int]string // by node and container, as vzlist says
	cts    map[int]container
}

// run runs a command on this machine.
func (o *openvz) run(argv ...string) {
	o.t.Helper()
	if out, err := exec.CommandContext(context.Background(), argv[0], argv[1:]...).CombinedOutput(); err != nil { //nolint:gosec // the test's own
		o.t.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

// ip runs lines of ip in a namespace.
func (o *openvz) ip(ns string, lines ...string) {
	o.t.Helper()
	for _, l := range lines {
		o.run(append([]string{"ip", "-n", ns}, strings.Fields(l)...)...)
	}
}

func (o *openvz) netns(name string) {
	o.t.Helper()
	o.run("ip", "netns", "add", name)
	o.t.Cleanup(func() { _ = exec.CommandContext(context.Background(), "ip", "netns", "del", name).Run() }) //nolint:gosec // the test's own
	o.ip(name, "link set lo up")
}

func (o *openvz) dir(node string) string {
	n, err := o.Node(node)
	if err != nil {
		o.t.Fatal(err)
	}
	return n.Dir
}

// say changes what vzlist prints on a node ("" for no such container any more), and touches the file that
// action scripts touch.
func (o *openvz) say(node string, ctid int, status string) {
	o.t.Helper()
	o.mu.Lock()
	if o.status[node] == nil {
		o.status[node] = map[int]string{}
	}
	if o.status[node][ctid] = status; status == "" {
		delete(o.status[node], ctid)
	}
	list := []map[string]any{}
	for id, s := range o.status[node] {
		ips := []string{}
		if c := o.cts[id]; c.venet {
			ips = append(ips, c.addr)
		}
		list = append(list, map[string]any{"ctid": id, "name": nil, "ip": ips, "status": s})
	}
	o.mu.Unlock()
	text, err := json.Marshal(list)
	if err != nil {
		o.t.Fatal(err)
	}
	o.put(filepath.Join(o.dir(node), "vzlist.json"), string(text))
	o.put(filepath.Join(o.dir(node), "look"), "")
}

func (o *openvz) put(path, text string) {
	o.t.Helper()
	if err := os.WriteFile(path+".tmp", []byte(text), 0o600); err != nil {
		o.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		o.t.Fatal(err)
	}
}

// prepare makes the stand-in of a node and the other end of its venet0, and starts its agent with it.
func (o *openvz) prepare(node string) {
	o.t.Helper()
	dir, ns := o.dir(node), nodeNetns(node)
	if err := os.Mkdir(filepath.Join(dir, "conf"), 0o700); err != nil {
		o.t.Fatal(err)
	}
	o.put(filepath.Join(dir, "vzlist.json"), "[]")
	var source string
	if node == "node-1" {
		program := filepath.Join(dir, "vzlist")
		text := "#!/bin/sh\n[ \"$*\" = '-a -j -o ctid,name,ip,status' ] || { echo \"vzlist: what is $*?\" >&2; exit 1; }\nexec cat " + filepath.Join(dir, "vzlist.json") + "\n"
		if err := os.WriteFile(program, []byte(text), 0o700); err != nil { //nolint:gosec // it is run
			o.t.Fatal(err)
		}
		source = fmt.Sprintf("command = [%q, \"-a\", \"-j\", \"-o\", \"ctid,name,ip,status\"]", program)
	} else {
		socket := filepath.Join(dir, "vz.sock")
		o.serve(socket, filepath.Join(dir, "vzlist.json"))
		source = fmt.Sprintf("socket = %q", socket)
	}
	o.netns(hub(node))
	o.ip(ns, "link add venet0 type veth peer name trunk netns "+hub(node), "link set venet0 up", "route add "+hubAddr(node)+"/32 dev venet0")
	o.ip(hub(node), "link set trunk up", "addr add "+hubAddr(node)+"/32 dev trunk", "route add default via "+bridgeAddr(node)+" dev trunk onlink")
	o.run("ip", "netns", "exec", hub(node), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

	if err := o.KillAgent(o.t.Context(), node, syscall.SIGTERM); err != nil {
		o.t.Fatal(err)
	}
	path := filepath.Join(dir, "agent.toml")
	config, err := os.ReadFile(path)
	if err != nil {
		o.t.Fatal(err)
	}
	was := "driver = \"static\"\n"
	is := fmt.Sprintf("driver = [\"static\", \"openvz\"]\ntrigger = %q\n[inventory.openvz]\n%s\nconf_dir = %q\ninterval = \"1h\"\n", filepath.Join(dir, "look"), source, filepath.Join(dir, "conf"))
	if !strings.Contains(string(config), was) {
		o.t.Fatalf("no %q in the config", was)
	}
	o.put(path, strings.Replace(string(config), was, is, 1))
	if err := o.StartAgent(o.t.Context(), node); err != nil {
		o.t.Fatal(err)
	}
}

// serve prints a file to everybody who connects, as a service behind a socket does.
func (o *openvz) serve(socket, file string) {
	o.t.Helper()
	var listen net.ListenConfig
	l, err := listen.Listen(o.t.Context(), "unix", socket)
	if err != nil {
		o.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			text, _ := os.ReadFile(file)
			_, _ = c.Write(text)
			_ = c.Close()
		}
	}()
	o.t.Cleanup(func() { _ = l.Close(); <-ended })
}

// create makes a container that runs on a node.
func (o *openvz) create(node string, c container) {
	o.t.Helper()
	o.cts[c.ctid] = c
	o.netns(c.netns())
	if c.venet {
		o.ip(hub(node), fmt.Sprintf("link add %s type veth peer name eth0 netns %s", c.hostIf(), c.netns()))
		o.ip(c.netns(), "link set eth0 up", "addr add "+c.addr+"/32 dev eth0", "route add default dev eth0")
	} else {
		o.ip(nodeNetns(node), fmt.Sprintf("link add %s type veth peer name eth0 address %s netns %s", c.hostIf(), c.mac(), c.netns()))
		o.ip(c.netns(), "link set eth0 up", "addr add "+c.addr+"/16 dev eth0")
	}
	o.configure(node, c)
	o.attach(node, c)
	o.say(node, c.ctid, "running")
}

// configure writes a container's config file on a node.
func (o *openvz) configure(node string, c container) {
	o.t.Helper()
	text := "HOSTNAME=\"ct\"\n"
	if !c.venet {
		text += fmt.Sprintf("NETIF=\"ifname=eth0,bridge=br0,mac=%s,host_ifname=%s\"\n", strings.ToUpper(c.mac()), c.hostIf())
	}
	o.put(filepath.Join(o.dir(node), "conf", fmt.Sprintf("%d.conf", c.ctid)), text)
}

// attach connects a container's interface on its node, and tells the others where it is.
func (o *openvz) attach(node string, c container) {
	o.t.Helper()
	if !c.venet {
		o.ip(nodeNetns(node), fmt.Sprintf("link set %s addrgenmode none", c.hostIf()), fmt.Sprintf("link set %s master br0 up", c.hostIf()))
		return
	}
	o.ip(hub(node), fmt.Sprintf("link set %s up", c.hostIf()), fmt.Sprintf("route replace %s/32 dev %s", c.addr, c.hostIf()))
	o.run("ip", "netns", "exec", hub(node), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/"+c.hostIf()+"/proxy_arp")
	o.ip(nodeNetns(node), fmt.Sprintf("route replace %s/32 via %s dev venet0 onlink", c.addr, hubAddr(node)))
	for _, other := range []string{"palvz-n0", "palvz-n1", "palvz-n2"} {
		if other != nodeNetns(node) {
			o.ip(other, fmt.Sprintf("route replace %s/32 via %s", c.addr, bridgeAddr(node)))
		}
	}
}

// migrate moves a blocked container as vzmigrate does: its config file goes first and its disk; then it is frozen
// here, running there, and gone here. It returns how long the registry took.
func (o *openvz) migrate(c container, from, to string) time.Duration {
	o.t.Helper()
	o.configure(to, c)
	o.say(to, c.ctid, "mounted")
	if !c.venet {
		o.Eventually(o.t, "it is bound before it comes", func() error {
			if !strings.Contains(o.Ruleset(o.t, to), c.hostIf()) {
				return errors.New("the rules don't name its interface")
			}
			return nil
		})
	}
	o.say(from, c.ctid, "suspended")
	if c.venet {
		o.ip(hub(from), fmt.Sprintf("link set %s netns %s", c.hostIf(), hub(to)))
	} else {
		o.ip(nodeNetns(from), fmt.Sprintf("link set %s netns %s", c.hostIf(), nodeNetns(to)))
	}
	o.attach(to, c)
	start := time.Now()
	o.say(to, c.ctid, "running")
	o.AwaitOn(o.t, fmt.Sprintf("ct-%d", c.ctid), to)
	took := time.Since(start)
	o.say(from, c.ctid, "")
	return took
}

// TestContainersOfOpenVZ blocks a container with a veth of its own, which then gives itself other addresses, and one
// of two behind venet0, and migrates both. The other one behind venet0 loses nothing.
func TestContainersOfOpenVZ(t *testing.T) {
	o := &openvz{
		lab: newLab(t, fleet.Options{Prefix: "palvz", Nodes: 2, GuestsPerNode: -1}), t: t,
		status: map[string]map[int]string{}, cts: map[int]container{},
	}
	for _, n := range []string{"node-1", "node-2"} {
		o.prepare(n)
	}
	bridged := container{101, false, "10.90.200.101"}
	routed, innocent := container{102, true, "10.91.9.102"}, container{103, true, "10.91.9.103"}
	for _, c := range []container{bridged, routed, innocent} {
		o.create("node-1", c)
	}
	for _, id := range []string{"ct-101", "ct-102", "ct-103"} {
		o.AwaitOn(t, id, "node-1")
	}
	vm, err := o.Clients["node-2"].VM(t.Context(), "ct-101")
	if err != nil || vm.Kind != "openvz" || len(vm.NICs) != 1 || vm.NICs[0].Tap != "veth101.0" {
		t.Errorf("%+v, %v", vm, err)
	}

	outside, _ := o.Ends(t, fleet.Outside)
	f := o.Flows(t)
	var victims, innocents []*probe.Flow
	for _, c := range []container{bridged, routed} {
		victims = append(victims, f.One(c.netns(), "outside", c.end(), outside), f.One("outside", c.netns(), outside, c.end()))
	}
	innocents = append(innocents, f.One("ct103", "outside", innocent.end(), outside), f.One("outside", "ct103", outside, innocent.end()))
	neighbours := []*probe.Flow{f.One("ct102", "ct103", routed.end(), innocent.end())} // it never leaves the venet of its node
	f.Passing(slices.Concat(victims, innocents, neighbours))

	b1, _ := o.Block(t, "node-2", client.Target{VM: "ct-101"})
	b2, since := o.Block(t, "node-2", client.Target{VM: "ct-102"})
	o.ip(bridged.netns(), "link set eth0 address 02:00:00:00:00:99", "addr add 10.90.200.199/16 dev eth0")
	spoofed := f.One("ct101 as another", "outside", probe.End{Netns: bridged.netns(), Addr: netip.MustParseAddr("10.90.200.199")}, outside)
	rest(time.Second)
	for _, c := range []container{bridged, routed} {
		if took := o.migrate(c, "node-1", "node-2"); took > 3*time.Second {
			t.Errorf("the registry knew where %d runs after %v", c.ctid, took)
		} else {
			t.Logf("the registry knew where %d runs after %v", c.ctid, took)
		}
	}
	rest(time.Second)
	for name, rules := range o.Rulesets(t) {
		if strings.Contains(rules, "venet0") {
			t.Errorf("the rules of %s name the interface that containers share", name)
		}
	}
	f.Silent(append(victims, spoofed), since)
	o.Lift(t, "node-1", b1.ID)
	o.Lift(t, "node-1", b2.ID)
	f.Passing(append(victims, spoofed))
	f.Lossless(innocents)
}
