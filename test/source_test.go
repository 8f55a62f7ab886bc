package test

import (
	"encoding/json"
	"errors"
	"fmt"
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

// guardSource sets the source guard of a guest through a node, and waits until its own node has carried it out.
func (l *lab) guardSource(t *testing.T, node, guest, to string, bound bool) {
	t.Helper()
	v, err := l.Clients[node].VM(t.Context(), guest)
	if err != nil {
		t.Fatal(err)
	}
	body := client.VMRequest{Name: v.Name, Owner: v.Owner, Addresses: v.Declared, SourceGuard: to}
	if _, err := l.Clients[node].PutVM(t.Context(), v.ID, body, client.Write{IfMatch: v.Revision}); err != nil {
		t.Fatal(err)
	}
	l.awaitBound(t, node, guest, bound)
}

func (l *lab) awaitBound(t *testing.T, node, guest string, bound bool) {
	t.Helper()
	g, err := l.Guest(guest)
	if err != nil {
		t.Fatal(err)
	}
	l.Eventually(t, fmt.Sprintf("%s is bound: %t", guest, bound), func() error {
		v, err := l.Clients[node].VM(t.Context(), guest)
		switch s := v.GuardedSource; {
		case err != nil:
			return err
		case bound && (s == nil || !s.MACs || !s.Addresses):
			return fmt.Errorf("%+v", s)
		case !bound && s != nil:
			return fmt.Errorf("%+v", s)
		case !bound && strings.Contains(l.Ruleset(t, g.Node), fmt.Sprintf("%q . ", g.Tap)):
			return errors.New("it is in the kernel")
		}
		return nil
	})
}

// TestAGuestUsesItsOwnAddressesAlone turns the source guard on and off through the API, for a guest and for the fleet: what a
// guest pretends is dropped while it is on, and its own traffic and that of others goes on.
func TestAGuestUsesItsOwnAddressesAlone(t *testing.T) {
	l := sharedLab(t)
	v4, _ := l.Ends(t, "guest1")
	near, _ := l.Ends(t, "guest2")
	other := v4
	for range 100 {
		other.Addr = other.Addr.Next()
	}
	if out, err := l.Exec(t.Context(), "guest1", "ip", "addr", "add", other.Addr.String()+"/32", "dev", "eth0"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f := l.Flows(t)
	pretended := f.One("guest1", "guest2", other, near)
	own := append(f.UDP("guest1", "guest2"), f.UDP("guest1", "guest3")...)
	own = append(own, f.UDP("guest2", fleet.Outside)...)
	own = append(own, f.UDP("guest7", "guest3")...)
	f.Passing(append([]*probe.Flow{pretended}, own...))

	l.guardSource(t, "node-2", "guest1", "on", true)
	began := time.Now()
	rest(700 * time.Millisecond)
	f.Silent([]*probe.Flow{pretended}, began)
	l.Eventually(t, "the API counts what was dropped", func() error {
		v, err := l.Clients["node-3"].VM(t.Context(), "guest1")
		if err == nil && (v.GuardedSource == nil || v.GuardedSource.Dropped.Packets == 0 || v.SourceGuard != "on") {
			err = fmt.Errorf("%s, %+v", v.SourceGuard, v.GuardedSource)
		}
		return err
	})
	l.guardSource(t, "node-3", "guest1", "inherit", false)
	f.Passing([]*probe.Flow{pretended})

	fleetWide := func(to string) {
		t.Helper()
		s, err := l.Clients["node-1"].Settings(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.SourceGuard = to
		if _, err = l.Clients["node-1"].PutSettings(t.Context(), s.SettingsRequest, client.Write{IfMatch: s.Revision}); err != nil {
			t.Fatal(err)
		}
	}
	fleetWide("on")
	for _, g := range []string{"guest1", "guest2", "guest3", "guest7"} {
		l.awaitBound(t, "node-1", g, true)
	}
	began = time.Now()
	rest(700 * time.Millisecond)
	f.Silent([]*probe.Flow{pretended}, began)
	fleetWide("off")
	for _, g := range []string{"guest1", "guest2", "guest3", "guest7"} {
		l.awaitBound(t, "node-1", g, false)
	}
	f.Passing([]*probe.Flow{pretended})
	f.Lossless(own)
	if out, err := l.Exec(t.Context(), "guest1", "ip", "addr", "del", other.Addr.String()+"/32", "dev", "eth0"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestABlockedGuestGetsAnInterface plugs a second interface, with another MAC and address, into a blocked guest: it is cut off as
// soon as the inventory tells of it, and nobody else is.
func TestABlockedGuestGetsAnInterface(t *testing.T) {
	l := sharedLab(t)
	g, err := l.Guest("guest1")
	if err != nil {
		t.Fatal(err)
	}
	n, err := l.Node(g.Node)
	if err != nil {
		t.Fatal(err)
	}
	f := l.Flows(t)
	innocents := f.UDP("guest2", "guest3")
	f.Passing(innocents)
	l.Block(t, "node-2", client.Target{VM: g.VM})
	m := l.machine(t, g.Node)
	const tap, mac = "hot0", "52:54:00:99:99:02"
	v4, _ := l.Ends(t, "guest1")
	near, _ := l.Ends(t, "guest2")
	for range 101 {
		v4.Addr = v4.Addr.Next()
	}
	add := exec.CommandContext(t.Context(), "ip", "-n", n.Netns, "link", "add", tap, "type", "veth", "peer", "name", "eth1", "address", mac, "netns", g.Netns)
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m.exec(t, "ip", "link", "set", tap, "master", "br0", "up")
	file := filepath.Join(n.Dir, "vms.d", g.VM+".json")
	was, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		m.exec(t, "ip", "link", "del", tap)
		if err := os.WriteFile(file, was, 0o600); err != nil {
			t.Error(err)
		}
	}()
	for _, args := range []string{"link set eth1 up", "addr add " + v4.Addr.String() + "/32 dev eth1", "route add " + near.Addr.String() + "/32 dev eth1 src " + v4.Addr.String()} {
		if out, err := l.Exec(t.Context(), "guest1", append([]string{"ip"}, strings.Fields(args)...)...); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	var doc map[string]any
	if err := json.Unmarshal(was, &doc); err != nil {
		t.Fatal(err)
	}
	doc["nics"] = append(doc["nics"].([]any), map[string]any{"mac": mac, "tap": tap})
	is, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	flow := f.One("guest1", "guest2", v4, near)
	f.Passing([]*probe.Flow{flow}) // nobody has told of it yet
	draft := file + ".draft"
	if err := errors.Join(os.WriteFile(draft, is, 0o600), os.Rename(draft, file)); err != nil {
		t.Fatal(err)
	}
	l.Eventually(t, "the interface is bound", func() error {
		if !strings.Contains(l.Ruleset(t, g.Node), `"`+tap+`"`) {
			return errors.New("it is not in the kernel")
		}
		return nil
	})
	began := time.Now()
	rest(700 * time.Millisecond)
	f.Silent([]*probe.Flow{flow}, began)
	f.Lossless(innocents)
}
