package probe_test

import (
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/palisade/palisade/internal/probe"
)

// TestStationsAndWires sends numbered packets over a bridge, stops them there, and asks the stations and the watcher.
func TestStationsAndWires(t *testing.T) {
	p := build(t)
	a, b := pair(t)
	// The second namespace is a node: its bridge has the wire as a port, and its own stack answers at the bridge.
	const mac = "52:54:00:00:00:0a"
	run(t, "ip", "-n", a.Netns, "link", "set", "eth0", "address", mac)
	for _, line := range [][]string{
		{"link", "set", "eth0", "name", "vnet0"}, {"addr", "flush", "dev", "vnet0"},
		{"link", "add", "br0", "type", "bridge"}, {"link", "set", "vnet0", "master", "br0", "up"},
		{"addr", "add", b.Addr.String() + "/24", "dev", "br0"}, {"link", "set", "br0", "up"},
	} {
		run(t, append([]string{"ip", "-n", b.Netns}, line...)...)
	}
	start := func(netns string, args []string) *probe.Station {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "ip", append([]string{"netns", "exec", netns, p.Binary}, args...)...)
		cmd.Stderr = os.Stderr
		s, err := probe.NewStation(cmd)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	guest, host := start(a.Netns, probe.StationArgs(7, a.Addr)), start(b.Netns, probe.StationArgs(9000, b.Addr))
	wire := start(b.Netns, probe.WireArgs(false, "52:54:00:00:00:0b", mac))
	order := func(s *probe.Station, o probe.StationOrder) probe.Tally {
		t.Helper()
		tally, err := s.Order(o)
		if err != nil {
			t.Fatal(err)
		}
		return tally
	}
	var frames []probe.Frame
	passed, tried := func(f probe.Frame) bool { return f.Passed }, func(f probe.Frame) bool { return !f.Passed && f.Tap && f.From }
	await := func(what string, match func(probe.Frame) bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			frames = append(frames, order(wire, probe.StationOrder{}).Frames...)
			n := 0
			for _, f := range frames {
				if f.Address == 1 && f.Stream == 3 && match(f) {
					n++
				}
			}
			if n >= 20 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d of %d frames", what, n, len(frames))
			}
		}
	}
	order(guest, probe.StationOrder{Send: []probe.Stream{{ID: 3, From: a.Addr, To: netip.AddrPortFrom(b.Addr, 9000), Rate: 200}}})
	await("passing", passed)
	if heard := order(host, probe.StationOrder{}).Heard; len(heard) == 0 || heard[0].Stream != 3 || heard[0].At < heard[0].Sent {
		t.Errorf("the station heard %v", heard)
	}
	run(t, "ip", "netns", "exec", b.Netns, "nft", "add table bridge t; add chain bridge t c { type filter hook prerouting priority -300; policy drop; }")
	time.Sleep(50 * time.Millisecond) // what was under way is over
	order(wire, probe.StationOrder{})
	order(host, probe.StationOrder{})
	frames = nil
	await("stopped", tried)
	for _, f := range frames {
		if f.Passed {
			t.Fatalf("%+v passed a bridge that drops everything", f)
		}
	}
	sent := order(guest, probe.StationOrder{Stop: true}).Sent[3]
	if heard := order(host, probe.StationOrder{}).Heard; len(heard) != 0 || sent < 40 {
		t.Errorf("%d packets were sent; behind the drop %d were heard", sent, len(heard))
	}
	for _, s := range []*probe.Station{guest, host, wire} {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
