package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
)

// TestPortsOfBridgesAreKnown plugs and unplugs real interfaces.
func TestPortsOfBridgesAreKnown(t *testing.T) {
	ns := fmt.Sprintf("palbr-%d", os.Getpid())
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	run("netns", "add", ns)
	t.Cleanup(func() { run("netns", "del", ns) })
	in := func(line string) { t.Helper(); run(append([]string{"-n", ns}, strings.Fields(line)...)...) }
	in("link add br0 address 02:00:00:00:00:f0 type bridge")
	in("link add tap0 type veth peer name guest0")
	in("link set tap0 master br0")

	seen := make(chan map[string]fsm.MAC, 16)
	links := newLinkMonitor(slog.New(slog.DiscardHandler))
	b := newBridges(links, func(ports map[string]fsm.MAC) { seen <- ports })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- within(ns, func() error { return links.Run(ctx) }) }()
	go func() { done <- b.Run(ctx) }()
	want := func(ports map[string]fsm.MAC) {
		t.Helper()
		late := time.After(10 * time.Second)
		for {
			select {
			case got := <-seen:
				if maps.Equal(got, ports) {
					return
				}
				t.Logf("on the way: %v", got)
			case <-late:
				t.Fatalf("after 10 s: not %v", ports)
			}
		}
	}
	first, second := fsm.MAC{2, 0, 0, 0, 0, 0xf0}, fsm.MAC{2, 0, 0, 0, 0, 0xf1}
	want(map[string]fsm.MAC{"tap0": first})
	in("link set guest0 master br0")
	want(map[string]fsm.MAC{"tap0": first, "guest0": first})
	in("link set br0 address 02:00:00:00:00:f1")
	want(map[string]fsm.MAC{"tap0": second, "guest0": second})
	in("link set guest0 nomaster")
	want(map[string]fsm.MAC{"tap0": second})
	in("link del tap0")
	want(map[string]fsm.MAC{})
	cancel()
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
