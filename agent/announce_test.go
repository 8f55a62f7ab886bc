package agent

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// speech is a bench with an announcer whose words are noted, in a bubble of its own time.
type speech struct {
	*bench
	began time.Time
	mu    sync.Mutex
	said  []string // "tap after"
}

var guestMAC = fsm.MAC{2, 0, 0, 0, 0, 1}

// newSpeech starts with vm1 running on this node (n1) and blocked there.
func newSpeech(t *testing.T) (s *speech, block *fsm.Block) {
	t.Helper()
	s = &speech{bench: newBench(t, 0)}
	a := newAnnouncer(s.enforcer.log, "n1", s.store.View, s.enforcer)
	a.forward = func(tap string, mac fsm.MAC) error {
		if s.kernel.has(enforce.Element{MAC: mac}) {
			t.Errorf("announced %v while the kernel drops it", mac)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.said = append(s.said, fmt.Sprintf("%s %v", tap, time.Since(s.began)))
		return nil
	}
	s.enforcer.freed = a.Freed
	s.run()
	done := make(chan error, 1)
	go func() { done <- a.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	close(s.caughtUp)
	s.observe("n1", fsm.PhaseRunning, 1)
	s.enforcer.SetLocal(func(l *enforce.Local) {
		l.NICs = enforce.MapOf(map[string][]fsm.NIC{"vm1": {{MAC: guestMAC, Tap: "tap1"}}})
	})
	block = s.hold()
	synctest.Wait()
	s.began = time.Now()
	return s, block
}

func (s *speech) observe(node string, phase fsm.Phase, epoch uint64) {
	s.t.Helper()
	s.apply(fsm.ObserveVM{ID: "vm1", Name: "vm1", Kind: "kvm", Node: node, Phase: phase, NICs: []fsm.NIC{{MAC: guestMAC, Tap: "tap1"}}, Epoch: epoch})
}

func (s *speech) hold() *fsm.Block {
	s.t.Helper()
	return s.apply(fsm.AddBlock{Target: fsm.Target{VM: "vm1"}}).Block
}

func (s *speech) lift(b *fsm.Block) {
	s.t.Helper()
	s.apply(fsm.LiftBlock{ID: b.ID})
}

func (k *fakeKernel) has(el enforce.Element) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.held[el]
	return ok
}

func TestALiftedGuestIsAnnounced(t *testing.T) {
	always := []string{"tap1 0s", "tap1 100ms", "tap1 500ms", "tap1 2s"}
	tests := map[string]struct {
		do   func(s *speech, b *fsm.Block)
		want []string
	}{
		"that runs here": {func(s *speech, b *fsm.Block) { s.lift(b) }, always},
		"that is blocked again": {func(s *speech, b *fsm.Block) {
			s.lift(b)
			time.Sleep(50 * time.Millisecond)
			s.hold()
		}, always[:1]},
		"that another block still holds": {func(s *speech, b *fsm.Block) {
			s.hold()
			s.lift(b)
		}, nil},
		"when the kernel has lifted it": {func(s *speech, b *fsm.Block) {
			s.kernel.setFail(os.ErrInvalid)
			s.lift(b)
			synctest.Wait()
			s.kernel.setFail(nil) // tried again after 50 ms
		}, []string{"tap1 50ms", "tap1 150ms", "tap1 550ms", "tap1 2.05s"}},
		"that arrives just then": {func(s *speech, b *fsm.Block) {
			s.observe("n2", fsm.PhaseRunning, 2)
			s.observe("n1", fsm.PhaseIncoming, 3)
			s.lift(b)
			time.Sleep(300 * time.Millisecond)
			s.observe("n1", fsm.PhaseRunning, 3)
		}, always[2:]},
		"that leaves just then": {func(s *speech, b *fsm.Block) {
			s.observe("n2", fsm.PhaseIncoming, 2)
			s.lift(b)
			time.Sleep(300 * time.Millisecond)
			s.observe("n2", fsm.PhaseRunning, 2)
		}, nil},
		"whose interface is seen late": {func(s *speech, b *fsm.Block) {
			s.enforcer.SetLocal(func(l *enforce.Local) { l.NICs = enforce.Map[[]fsm.NIC]{} })
			s.lift(b)
			time.Sleep(200 * time.Millisecond)
			s.enforcer.SetLocal(func(l *enforce.Local) {
				l.NICs = enforce.MapOf(map[string][]fsm.NIC{"vm1": {{MAC: guestMAC, Tap: "tap7"}}})
			})
		}, []string{"tap7 500ms", "tap7 2s"}},
		"but not with the address of a node": {func(s *speech, _ *fsm.Block) {
			s.apply(fsm.PutNode{Node: fsm.Node{ID: "n2", Name: "n2", MACs: []fsm.MAC{guestMAC}}})
		}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, b := newSpeech(t)
				tt.do(s, b)
				time.Sleep(time.Minute)
				s.mu.Lock()
				defer s.mu.Unlock()
				if !slices.Equal(s.said, tt.want) {
					t.Errorf("announced %q, want %q", s.said, tt.want)
				}
			})
		})
	}
}

// TestAnAnnouncementTurnsBridges checks on real bridges that a guest which is silent and was last seen
// elsewhere is found after it.
func TestAnAnnouncementTurnsBridges(t *testing.T) {
	ns := fmt.Sprintf("palann-%d", os.Getpid())
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	// Two bridges, joined by up0 and up1. The guest is behind tap0 of the first one.
	const guest = "02:00:00:00:00:01"
	run("ip", "netns", "add", ns)
	t.Cleanup(func() { run("ip", "netns", "del", ns) })
	for _, line := range []string{
		"link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link add br1 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
		"link add up0 type veth peer name up1", "link add tap0 type veth peer name guest0", "link add tap1 type veth peer name guest1",
		"link set up0 master br0", "link set up1 master br1", "link set tap0 master br0", "link set tap1 master br1",
		"link add alone0 type veth peer name alone1",
		"link set br0 up", "link set br1 up", "link set up0 up", "link set up1 up", "link set tap0 up", "link set tap1 up", "link set guest0 up", "link set guest1 up",
	} {
		run(append([]string{"ip", "-n", ns}, strings.Fields(line)...)...)
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, port := range []string{"up0", "up1", "tap0", "tap1"} {
		for !strings.Contains(run("bridge", "-n", ns, "link", "show", "dev", port), "state forwarding") {
			if time.Now().After(deadline) {
				t.Fatalf("%s does not forward", port)
			}
		}
	}
	// Both have seen it elsewhere.
	run("bridge", "-n", ns, "fdb", "replace", guest, "dev", "up0", "master", "dynamic")
	run("bridge", "-n", ns, "fdb", "replace", guest, "dev", "tap1", "master", "dynamic")
	where := func(bridge string) string {
		for line := range strings.Lines(run("bridge", "-n", ns, "fdb", "show", "br", bridge)) {
			if f := strings.Fields(line); f[0] == guest {
				return f[2]
			}
		}
		return ""
	}
	if a, b := where("br0"), where("br1"); a != "up0" || b != "tap1" {
		t.Fatalf("before: %q and %q", a, b)
	}
	for where("br0") != "tap0" || where("br1") != "up1" {
		if time.Now().After(deadline) {
			t.Fatalf("br0 has the guest behind %q, br1 behind %q; want tap0 and up1", where("br0"), where("br1"))
		}
		if err := within(ns, func() error { return announce("tap0", guestMAC) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := within(ns, func() error { return announce("alone0", guestMAC) }); err != nil {
		t.Errorf("a tap without a bridge: %v", err)
	}
	if err := within(ns, func() error { return announce("none0", guestMAC) }); err == nil {
		t.Error("a tap that is not there: no error")
	}
}

func TestRARPFrame(t *testing.T) {
	f := rarp(guestMAC)
	if len(f) != 60 || !bytes.Equal(f[6:12], guestMAC[:]) || f[12] != 0x80 || f[13] != 0x35 {
		t.Errorf("%x", f)
	}
}

// within runs a function in a network namespace, on a thread that ends with it.
func within(ns string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}
