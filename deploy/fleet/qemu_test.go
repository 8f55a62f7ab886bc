package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/inventory"
	"github.com/palisade/palisade/inventory/libvirt"
)

// sighting is one report of a driver, with when it came.
type sighting struct {
	At     time.Time
	Report inventory.Report
}

// observe runs the libvirt driver inside a node and prints what it reports, until ctx ends.
func observe(ctx context.Context) error {
	d, err := libvirt.New(libvirt.Options{Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	return d.Run(ctx, func(r inventory.Report) { _ = out.Encode(sighting{time.Now(), r}) })
}

// observation is what a driver on one node has reported so far.
type observation struct {
	node string
	mu   sync.Mutex
	seen []sighting
}

func (f *Fleet) observation(t *testing.T, node string) *observation {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := f.Command(context.Background(), node, self, "observe")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	o := &observation{node: node}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for dec := json.NewDecoder(out); ; {
			var s sighting
			if dec.Decode(&s) != nil {
				return
			}
			o.mu.Lock()
			o.seen = append(o.seen, s)
			o.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if err := cmd.Wait(); err != nil {
			t.Errorf("driver on %s: %v", node, err)
		}
	})
	return o
}

// await waits until the last report has the wanted VMs, as "NAME PHASE", and tells when it came.
func (o *observation) await(t *testing.T, want ...string) sighting {
	t.Helper()
	var got sighting
	err := until(t.Context(), 30*time.Second, 5*time.Millisecond, func() error {
		o.mu.Lock()
		defer o.mu.Unlock()
		if len(o.seen) == 0 {
			return fmt.Errorf("%s reported nothing", o.node)
		}
		got = o.seen[len(o.seen)-1]
		if s := phases(got.Report); s != strings.Join(want, ", ") {
			return fmt.Errorf("%s reports %q, want %q", o.node, s, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// since gives the reports after a time.
func (o *observation) since(at time.Time) []sighting {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, s := range o.seen {
		if s.At.After(at) {
			return append([]sighting(nil), o.seen[i:]...)
		}
	}
	return nil
}

func phases(r inventory.Report) string {
	var out []string
	for _, v := range r.VMs {
		out = append(out, v.Name+" "+string(v.Phase))
	}
	return strings.Join(out, ", ")
}

// A real libvirt on two nodes, a real QEMU guest: it boots, is seen, migrates while it is watched, gets
// another interface, and libvirt itself goes away and comes back.
func TestQEMUGuestUnderLibvirt(t *testing.T) {
	f := up(t, Options{NoAgents: true, Nodes: 2, GuestsPerNode: 1, Guests: GuestsQEMU})
	ctx := t.Context()
	src, dst := f.observation(t, "node-1"), f.observation(t, "node-2")
	first := src.await(t, "guest1 running")
	dst.await(t, "guest2 running")
	g := f.Guests()[0]
	vm := first.Report.VMs[0]
	if vm.ID != g.VM || vm.Kind != "kvm" || vm.NICs[0].MAC.String() != g.MAC || !strings.HasPrefix(vm.NICs[0].Tap, "vnet") || len(first.Report.Arrived) != 1 {
		t.Errorf("first report %+v", first.Report)
	}
	for _, a := range g.Addresses {
		out := f.must(t, Outside, "sh", "-c", "echo marco | nc -u -W 1 -w 5 "+a+" 7")
		if out != "marco\n" {
			t.Errorf("UDP echo on %s said %q", a, out)
		}
	}
	talk := f.converse(t, g.Addresses[1])
	talk.say(t, "before")

	m, err := f.Migrate(ctx, g.Name, "node-2")
	if err != nil {
		t.Fatal(err)
	}
	talk.say(t, "after")
	dst.await(t, "guest1 running, guest2 running")
	src.await(t)
	var incoming, running *sighting
	for _, s := range dst.since(m.Incoming) {
		switch v := s.Report.VMs[0]; {
		case v.Name == g.Name && v.Phase == "incoming" && incoming == nil:
			incoming = &s
			if v.NICs[0].Tap == "" {
				t.Error("incoming without its tap")
			}
		case v.Name == g.Name && v.Phase == "running" && running == nil:
			running = &s
		}
	}
	if incoming == nil || running == nil {
		t.Fatalf("the destination saw incoming %v, running %v", incoming, running)
	}
	if len(incoming.Report.Arrived) != 1 || len(running.Report.Arrived) != 1 {
		t.Errorf("arrivals %v, then %v", incoming.Report.Arrived, running.Report.Arrived)
	}
	t.Logf("destination: incoming %v after the begin, running %v later; virsh ended %v after that",
		incoming.At.Sub(m.Incoming), running.At.Sub(incoming.At), m.Gone.Sub(running.At))
	for _, s := range src.since(m.Incoming) {
		if len(s.Report.Arrived) != 0 {
			t.Errorf("the source claims the guest while it leaves: %+v", s)
		}
	}

	n, err := f.Node("node-2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.virsh(ctx, n, "attach-interface", g.VM, "bridge", "br0", "--mac", "52:54:00:5a:ff:01", "--target", "tap0extra", "--model", "virtio", "--live"); err != nil {
		t.Fatal(err)
	}
	if err := until(t.Context(), 10*time.Second, 5*time.Millisecond, func() error {
		nics := dst.await(t, "guest1 running, guest2 running").Report.VMs[0].NICs
		if len(nics) != 2 || nics[1].Tap != "tap0extra" {
			return fmt.Errorf("NICs %+v", nics)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}

	if err := f.end(ctx, n.Libvirtd, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	lost := time.Now()
	if err := f.StartLibvirtd(ctx, "node-2"); err != nil {
		t.Fatal(err)
	}
	back := dst.await(t, "guest1 running, guest2 running")
	if err := until(t.Context(), 20*time.Second, 5*time.Millisecond, func() error {
		if back = dst.await(t, "guest1 running, guest2 running"); back.At.Before(lost) {
			return errors.New("nothing reported since libvirtd came back")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if len(back.Report.Arrived) != 2 {
		t.Errorf("arrivals after libvirtd came back: %v", back.Report.Arrived)
	}
	for _, s := range dst.since(lost) {
		if len(s.Report.VMs) != 2 {
			t.Errorf("a VM disappeared with libvirtd: %+v", s)
		}
	}
	if _, err := f.virsh(ctx, n, "destroy", g.VM); err != nil {
		t.Fatal(err)
	}
	dst.await(t, "guest2 running")
}
