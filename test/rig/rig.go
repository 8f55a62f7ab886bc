// Package rig is what the tests of whole fleets share: it builds the binaries, brings a fleet up with a
// client for every node, and counts packets at the receiver.
package rig

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
)

const module = "github.com/palisade/palisade/"

// Binaries are what a fleet and its flows run. The caller removes Dir.
type Binaries struct {
	Dir      string // on a real disk; fleets go below it
	Palisade string // path
	Probe    string // path
}

// Build builds both binaries, or only the probe if PALISADE_BINARY names a palisade.
func Build(ctx context.Context) (b Binaries, err error) {
	if b.Dir, err = os.MkdirTemp("/var/tmp", "palisade-test-"); err != nil {
		return b, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	build := func(out, pkg string) {
		cmd := exec.CommandContext(ctx, "go", "build", "-tags", "hashicorpmetrics", "-o", out, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, berr := cmd.CombinedOutput(); berr != nil {
			err = errors.Join(err, fmt.Errorf("build %s: %w\n%s", pkg, berr, text))
		}
	}
	b.Probe = filepath.Join(b.Dir, "probe")
	build(b.Probe, module+"internal/probe/cmd/probe")
	if b.Palisade = os.Getenv("PALISADE_BINARY"); b.Palisade == "" {
		b.Palisade = filepath.Join(b.Dir, "palisade")
		build(b.Palisade, module+"cmd/palisade")
	}
	return b, err
}

// Rig is a fleet with a client for each node, by name.
type Rig struct {
	*fleet.Fleet
	Probe   *probe.Probe
	Clients map[string]*client.Client
}

// Up brings up a fleet; Dir of the options is set here, and Binary unless it is given. If it fails half way, the rig is
// given as well, to look at and to take down.
func Up(ctx context.Context, b Binaries, o fleet.Options) (*Rig, error) {
	o.Dir, o.Binary = filepath.Join(b.Dir, o.Prefix), cmp.Or(o.Binary, b.Palisade)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	f, err := fleet.Up(ctx, o)
	if f == nil {
		return nil, err
	}
	r := &Rig{Fleet: f, Probe: &probe.Probe{Binary: b.Probe, Stderr: os.Stderr}, Clients: map[string]*client.Client{}}
	if o.NoAgents {
		return r, err
	}
	return r, errors.Join(err, r.Connect())
}

// Connect makes the clients. Up does it; after an Up without agents the caller does, once they run.
func (r *Rig) Connect() error {
	roots, err := r.Roots()
	if err != nil {
		return err
	}
	for _, n := range r.Nodes() {
		c, err := client.New(client.Options{URL: n.API, Token: n.Token, RootCAs: roots, RetryFor: 20 * time.Second})
		if err != nil {
			return err
		}
		r.Clients[n.Name] = c
	}
	return nil
}

// ShowLogs adds the end of every agent's log to the test's.
func (r *Rig) ShowLogs(t *testing.T) {
	t.Helper()
	for _, n := range r.Nodes() {
		b, err := os.ReadFile(r.AgentLog(n.Name))
		if err != nil {
			continue
		}
		lines := bytes.Split(b, []byte("\n"))
		t.Logf("log of %s, last lines:\n%s", n.Name, bytes.Join(lines[max(0, len(lines)-25):], []byte("\n")))
	}
}

// patience is for what happens at once on a machine that has nothing else to do.
const patience = time.Minute

// Eventually tries until ok gives nil; it fails the test when patience is at its end.
func (r *Rig) Eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s: %v", patience, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Block blocks through a node and returns once every live kernel has it, with the time of the answer.
func (r *Rig) Block(t *testing.T, node string, target client.Target) (client.Block, time.Time) {
	t.Helper()
	w, err := r.Clients[node].AddBlock(t.Context(), client.BlockRequest{Target: target, Reason: "abuse"}, client.Write{Wait: true, Timeout: 20 * time.Second})
	at := time.Now()
	if err != nil {
		t.Fatalf("block %s through %s: %v", target, node, err)
	}
	if !w.Confirmed {
		t.Fatalf("block %s: not every live node confirmed: %+v", target, w.Block)
	}
	return w.Block, at
}

// Lift lifts a block through a node and returns the time at which no live kernel has it any more.
func (r *Rig) Lift(t *testing.T, node, id string) time.Time {
	t.Helper()
	w, err := r.Clients[node].LiftBlock(t.Context(), id, client.Write{Wait: true, Timeout: 20 * time.Second})
	if err != nil || !w.Confirmed {
		t.Fatalf("lift %s through %s: %+v, %v", id, node, w, err)
	}
	return time.Now()
}

// Heal starts what is down, heals what is cut, lifts what is blocked or to be blocked, and waits until all is well.
func (r *Rig) Heal(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, n := range r.Nodes() {
		if err := r.HealNode(ctx, n.Name); err != nil {
			t.Error(err)
		}
		if n.Libvirtd.PID != 0 && !n.Libvirtd.Alive() {
			if err := r.StartLibvirtd(ctx, n.Name); err != nil {
				t.Error(err)
			}
		}
		if !n.Agent.Alive() {
			if err := r.StartAgent(ctx, n.Name); err != nil {
				t.Error(err)
			}
		}
	}
	if err := r.AwaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	c := r.Clients[r.Nodes()[0].Name]
	for _, state := range []string{"active", "pending"} {
		for b, err := range c.Blocks(ctx, client.BlockFilter{State: state}) {
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.LiftBlock(ctx, b.ID, client.Write{Wait: true}); err != nil {
				t.Error(err)
			}
		}
	}
}

// Move migrates a guest and waits until every node has it there.
func (r *Rig) Move(t *testing.T, guest, to string) fleet.Migration {
	t.Helper()
	m, err := r.Migrate(t.Context(), guest, to)
	if err != nil {
		t.Fatal(err)
	}
	r.AwaitOn(t, guest, to)
	return m
}

// AwaitOn waits until every node has a guest running on a node and in flight to nowhere.
func (r *Rig) AwaitOn(t *testing.T, guest, node string) {
	t.Helper()
	for _, n := range r.Nodes() {
		r.Eventually(t, fmt.Sprintf("%s knows that %s is on %s", n.Name, guest, node), func() error {
			vm, err := r.Clients[n.Name].VM(t.Context(), guest)
			if err == nil && (vm.Node != node || vm.State != "running" || vm.Destination != "") {
				err = fmt.Errorf("it has it %s on %s (destination %q)", vm.State, vm.Node, vm.Destination)
			}
			return err
		})
	}
}

// Pin gives a place (fleet.Outside, or a light guest) neighbour entries of a guest that never run out,
// until the test ends: it always knows the guest's hardware address, and only bridges must find it.
func (r *Rig) Pin(t *testing.T, where, guest string) {
	t.Helper()
	g, err := r.Guest(guest)
	if err != nil {
		t.Fatal(err)
	}
	dev := "eth0"
	if where == fleet.Outside {
		dev = "br0"
	}
	for _, a := range g.Addresses {
		if _, err := r.Exec(t.Context(), where, "ip", "neigh", "replace", a, "lladdr", g.MAC, "dev", dev, "nud", "permanent"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := r.Exec(context.Background(), where, "ip", "neigh", "del", a, "dev", dev); err != nil {
				t.Error(err)
			}
		})
	}
}

// Ruleset lists a node's kernel rules without counters.
func (r *Rig) Ruleset(t *testing.T, node string) string {
	t.Helper()
	out, err := r.Exec(t.Context(), node, "nft", "-s", "list", "ruleset")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// Rulesets lists every node's rules.
func (r *Rig) Rulesets(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, n := range r.Nodes() {
		out[n.Name] = r.Ruleset(t, n.Name)
	}
	return out
}

// Ends returns the places of a node, a guest, fleet.Outside or fleet.Unmanaged: IPv4, IPv6. Nothing
// can be run at that of a QEMU guest: it has only addresses.
func (r *Rig) Ends(t *testing.T, where string) (v4, v6 probe.End) {
	t.Helper()
	var netns string
	var addrs []netip.Addr
	parse := func(list []string) {
		for _, s := range list {
			addrs = append(addrs, netip.MustParseAddr(s))
		}
	}
	if n, err := r.Node(where); err == nil {
		netns = n.Netns
		parse(n.Addresses)
	} else if g, err := r.Guest(where); err == nil {
		netns = g.Netns
		parse(g.Addresses)
	} else {
		prefix := strings.TrimSuffix(r.Nodes()[0].Netns, "-n1")
		switch where {
		case fleet.Outside:
			netns, addrs = prefix+"-n0", r.OutsideAddresses()
		case fleet.Unmanaged:
			netns, addrs = prefix+"-u1", r.UnmanagedAddresses()
		default:
			t.Fatalf("%q is nothing in this fleet", where)
		}
	}
	v4, v6 = probe.End{Netns: netns, Addr: addrs[0]}, probe.End{Netns: netns, Addr: addrs[1]}
	return v4, v6
}
