package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
)

// neighbours starts, in a node, a libvirtd with its default network and a firewalld whose default zone accepts everything. What they keep
// is on file systems of their own. It ends, and all that it started with it, when its input does: with the test, however that ends.
const neighbours = `
set -eu
mkdir -p /run/dbus /run/libvirt
for d in /etc/libvirt /etc/firewalld; do
	mkdir -p /run/copy$d && cp -a $d/. /run/copy$d/ && mount --bind /run/copy$d $d
done
for d in /var/lib/libvirt /var/cache/libvirt /var/log; do mount -t tmpfs none $d; done
rm -f /etc/libvirt/qemu/networks/autostart/*
dbus-daemon --system --nofork --nopidfile &
libvirtd &
firewalld --nofork --nopid &
exec cat > /dev/null
`

// coexisting is a node that runs other programs which own firewall rules.
type coexisting struct {
	*lab
	m machine
}

func (c coexisting) eventually(t *testing.T, what string, argv ...string) {
	t.Helper()
	c.Eventually(t, what, func() error {
		_, err := c.Exec(t.Context(), c.m.node, argv...)
		return err
	})
}

// others are the rules of everybody else, without counters, handles and our tables.
func (c coexisting) others(t *testing.T) string {
	t.Helper()
	var kept []string
	ours := false
	for line := range strings.Lines(c.Ruleset(t, c.m.node)) {
		if strings.HasPrefix(line, "table ") {
			ours = regexp.MustCompile(`^table \S+ palisade`).MatchString(line)
		}
		if !ours {
			kept = append(kept, regexp.MustCompile(`counter packets \d+ bytes \d+`).ReplaceAllString(line, "counter"))
		}
	}
	return strings.Join(kept, "")
}

// firewalld is the head of firewalld's table, with the handle that the kernel gave it.
func (c coexisting) firewalld(t *testing.T) string {
	t.Helper()
	head, _, _ := strings.Cut(c.m.exec(t, "nft", "--terse", "--handle", "list", "table", "inet", "firewalld"), "\n")
	return head
}

// Docker's rules, as it writes them with iptables-nft.
const docker = `*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
*filter
:FORWARD ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
`

// TestOtherFirewallsOnTheNode: firewalld, whose zone accepts everything, libvirt's default network with its address translation, and rules as
// Docker writes them, on one node. They do not open what is blocked, not while firewalld reloads either, and nothing that we do changes a rule
// of theirs.
func TestOtherFirewallsOnTheNode(t *testing.T) {
	const node, blocked, innocent = "node-1", "192.168.122.50", "192.168.122.51"
	l := newLab(t, fleet.Options{Nodes: 1, GuestsPerNode: -1, Prefix: "palco"})
	c := coexisting{l, l.machine(t, node)}
	run, err := l.Command(t.Context(), node, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", neighbours)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	run.Stdout, run.Stderr = &said, &said
	open, err := run.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = open.Close()
		_ = run.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	c.eventually(t, "firewalld runs", "firewall-cmd", "--state")
	c.m.exec(t, "firewall-cmd", "-q", "--set-default-zone=trusted")
	c.eventually(t, "libvirt runs", "virsh", "-q", "-c", "qemu:///system", "net-list", "--all")
	c.m.exec(t, "virsh", "-q", "-c", "qemu:///system", "net-start", "default")
	load := exec.CommandContext(t.Context(), "ip", "netns", "exec", c.netns(t), "iptables-nft-restore", "--noflush")
	load.Stdin = strings.NewReader(docker)
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i, a := range []string{blocked, innocent} {
		c.plugDefault(t, fmt.Sprintf("palco-v%d", i), fmt.Sprintf("vnet%d", i), a)
	}
	before := c.others(t)
	for _, want := range []string{"table inet firewalld", "MASQUERADE", "DOCKER-USER", "LIBVIRT"} {
		if !strings.Contains(strings.ToUpper(before), strings.ToUpper(want)) {
			t.Fatalf("the rules of others have no %s: the test shows nothing\n%s", want, before)
		}
	}

	f := l.Flows(t)
	end := func(ns, a string) probe.End { return probe.End{Netns: ns, Addr: netip.MustParseAddr(a)} }
	outside, _ := l.Ends(t, fleet.Outside)
	host := end(c.netns(t), "192.168.122.1")
	out := f.One("blocked", "outside, behind NAT", end("palco-v0", blocked), outside)
	victims := []*probe.Flow{out, f.One("host", "blocked", host, end("palco-v0", blocked)),
		f.One("blocked", "innocent", end("palco-v0", blocked), end("palco-v1", innocent)), f.One("innocent", "blocked", end("palco-v1", innocent), end("palco-v0", blocked))}
	f.Passing(append([]*probe.Flow{f.One("host", "innocent", host, end("palco-v1", innocent))}, victims...))
	innocents := []*probe.Flow{f.One("innocent", "outside, behind NAT", end("palco-v1", innocent), outside), f.One("host", "innocent", host, end("palco-v1", innocent))}
	f.Passing(innocents)
	block, since := l.Block(t, node, client.Target{Prefix: blocked})
	same := func(after string) {
		t.Helper()
		f.Silent(victims, since)
		if is := c.others(t); is != before {
			t.Errorf("%s, the rules of others changed:\n%s", after, cmp.Diff(before, is))
		}
	}
	rest(time.Second)
	same("after a block")
	ours := l.Ruleset(t, node)
	l.kill(t, node)
	l.start(t, node)
	same("after a restart")
	c.m.exec(t, "nft", "delete table bridge palisade; delete table inet palisade")
	l.Eventually(t, "our rules are back", func() error {
		if l.metric(t, node, `palisade_kernel_drift_healed_total{tables="blocks"}`) == "0" {
			return errors.New("not yet")
		}
		return nil
	})
	since = time.Now()
	rest(time.Second / 2)
	same("after ours were deleted and came back")
	f.Lossless(innocents)

	for _, how := range []string{"--reload", "--complete-reload"} {
		was := c.firewalld(t)
		c.m.exec(t, "firewall-cmd", "-q", how)
		if is := c.firewalld(t); is == was {
			t.Errorf("firewall-cmd %s left firewalld's table as it was (%s): the test shows nothing", how, is)
		}
		rest(time.Second / 2)
		f.Silent(victims, since)
		for _, table := range []string{"table bridge palisade", "table inet palisade"} {
			if is := l.Ruleset(t, node); !strings.Contains(ours, table) || !strings.Contains(is, table) {
				t.Errorf("after firewall-cmd %s there is no %s", how, table)
			}
		}
	}
	if found := l.metric(t, node, `palisade_kernel_drift_found_total{tables="blocks"}`); found != "1" {
		t.Errorf("our rules were changed %s times, want once: by this test", found)
	}
	l.Lift(t, node, block.ID)
	f.Passing(victims)
}

func (c coexisting) netns(t *testing.T) string {
	t.Helper()
	n, err := c.Node(c.m.node)
	if err != nil {
		t.Fatal(err)
	}
	return n.Netns
}

// plugDefault makes a guest on libvirt's default network.
func (c coexisting) plugDefault(t *testing.T, ns, tap, address string) {
	t.Helper()
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	ip("netns", "add", ns)
	t.Cleanup(func() { ip("netns", "del", ns) })
	node := c.netns(t)
	ip("-n", node, "link", "add", tap, "type", "veth", "peer", "name", "eth0", "netns", ns)
	ip("-n", node, "link", "set", tap, "master", "virbr0", "up")
	ip("-n", ns, "link", "set", "lo", "up")
	ip("-n", ns, "link", "set", "eth0", "up")
	ip("-n", ns, "addr", "add", address+"/24", "dev", "eth0")
	ip("-n", ns, "route", "add", "default", "via", "192.168.122.1")
}
