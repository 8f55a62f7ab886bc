package probe_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/palisade/palisade/internal/probe"
)

// run runs a command that must succeed.
func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// pair makes two namespaces with one wire between them.
func pair(t *testing.T) (a, b probe.End) {
	t.Helper()
	ends := [2]probe.End{}
	for i := range ends {
		ns := fmt.Sprintf("probe%d-%d", os.Getpid(), i)
		run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
		ends[i] = probe.End{Netns: ns, Addr: netip.AddrFrom4([4]byte{10, 99, 0, byte(i + 1)})}
	}
	run(t, "ip", "link", "add", "eth0", "netns", ends[0].Netns, "type", "veth", "peer", "name", "eth0", "netns", ends[1].Netns)
	for _, e := range ends {
		run(t, "ip", "-n", e.Netns, "addr", "add", e.Addr.String()+"/24", "dev", "eth0")
		run(t, "ip", "-n", e.Netns, "link", "set", "eth0", "up")
		run(t, "ip", "-n", e.Netns, "link", "set", "lo", "up")
	}
	return ends[0], ends[1]
}

func build(t *testing.T) *probe.Probe {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "probe")
	run(t, "go", "build", "-o", bin, "./cmd/probe")
	return &probe.Probe{Binary: bin, Stderr: os.Stderr}
}

func TestTheOracleSeesWhatPassesAndWhatDoesNot(t *testing.T) {
	p := build(t)
	a, b := pair(t)
	udp, err := p.UDP(t.Context(), "a-b", a, b, 9000, 1000)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := p.TCP(t.Context(), "a-b tcp", a, b, 9001, 200)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, udp, func(r probe.Report) bool { return len(r.Received) > 100 })
	waitFor(t, tcp, func(r probe.Report) bool { return r.Records > 20 })

	// Cut the wire in the receiver's kernel: from here on nothing may be counted, and it must show
	// as lost.
	run(t, "ip", "netns", "exec", b.Netns, "nft", "add table inet cut; add chain inet cut in { type filter hook prerouting priority 0; policy drop; }")
	cut := time.Now()
	before, err := udp.Report()
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, udp, func(r probe.Report) bool { return r.Sent > before.Sent+200 })
	r, err := udp.Report()
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Lost()) < 150 {
		t.Errorf("%d of %d packets lost behind a cut wire", len(r.Lost()), r.Sent)
	}
	if n := r.Between(cut.Add(50*time.Millisecond), time.Now()); n != 0 {
		t.Errorf("%d packets arrived after the cut", n)
	}
	run(t, "ip", "netns", "exec", b.Netns, "nft", "delete table inet cut")
	healed := time.Now()
	waitFor(t, udp, func(r probe.Report) bool { return r.After(healed) > 100 })
	final, err := udp.Stop(time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if got := uint64(len(final.Received) + len(final.Lost())); got != final.Sent {
		t.Errorf("%d received and %d lost of %d sent", len(final.Received), len(final.Lost()), final.Sent)
	}
	if r, err := tcp.Stop(10 * time.Second); err != nil || r.Err != "" || r.Records != r.Sent {
		t.Errorf("TCP over a healed wire: %+v, %v", r, err)
	}
}

func TestAnUndisturbedFlowLosesNothing(t *testing.T) {
	p := build(t)
	a, b := pair(t)
	if err := p.Answer(t.Context(), b, 7); err != nil {
		t.Fatal(err)
	}
	udp, err := p.UDP(t.Context(), "a-b", a, b, 9000, 5000)
	if err != nil {
		t.Fatal(err)
	}
	echo, err := p.Echo(t.Context(), "echo", a, netip.AddrPortFrom(b.Addr, 7), 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*probe.Flow{udp, echo} {
		waitFor(t, f, func(r probe.Report) bool { return r.Sent > 2000 })
		r, err := f.Stop(2 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if lost := r.Lost(); len(lost) != 0 {
			t.Errorf("%s lost %d of %d packets", f.Name, len(lost), r.Sent)
		}
	}
}

func waitFor(t *testing.T, f *probe.Flow, ok func(probe.Report) bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		r, err := f.Report()
		if err != nil {
			t.Fatal(err)
		}
		if ok(r) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10 s; sent %d, received %d, records %d %s", f.Name, r.Sent, len(r.Received), r.Records, r.Err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
