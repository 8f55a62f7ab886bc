// Package qemu tests fleets whose guests are real QEMU machines, each node with a libvirtd of its own:
// what happens to packets while guests migrate and libvirt fails.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/test/rig"
)

// shared is the fleet of all tests, which run one after the other: three nodes, guest1 to guest3 on
// node-1 to node-3, and a host on node-1's bridge that nobody manages.
var shared = rig.NewShared(func() fleet.Options {
	began := time.Now()
	return fleet.Options{
		Prefix: "palqemu", Guests: fleet.GuestsQEMU, GuestsPerNode: 1, Unmanaged: true,
		Progress: func(line string) { fmt.Printf("%5.1fs  %s\n", time.Since(began).Seconds(), line) },
	}
})

// lab is the fleet under test.
type lab struct{ *rig.Rig }

func TestMain(m *testing.M) { os.Exit(shared.Main(m)) }

// sharedLab returns the fleet. Every test leaves it whole and blocking nothing; its guests may be
// elsewhere.
func sharedLab(t *testing.T) *lab {
	t.Helper()
	return &lab{shared.Get(t)}
}

// where tells on which node a guest is.
func (l *lab) where(t *testing.T, guest string) string {
	t.Helper()
	here, _ := l.place(t, guest)
	return here
}

// place tells where a guest is, and two other nodes.
func (l *lab) place(t *testing.T, guest string) (here string, others []string) {
	t.Helper()
	g, err := l.Guest(guest)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes() {
		if n.Name != g.Node {
			others = append(others, n.Name)
		}
	}
	return g.Node, others
}

// tap is the host side interface of a guest where it runs.
func (l *lab) tap(t *testing.T, guest string) string {
	t.Helper()
	vm, err := l.Clients["node-1"].VM(t.Context(), guest)
	if err != nil {
		t.Fatal(err)
	}
	if len(vm.NICs) != 1 || vm.NICs[0].Tap == "" {
		t.Fatalf("%s has interfaces %+v, want one with a tap", guest, vm.NICs)
	}
	return vm.NICs[0].Tap
}

// virsh runs libvirt's client on a node, also at the end of a test.
func (l *lab) virsh(t *testing.T, node string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	out, err := l.Exec(ctx, node, append([]string{"virsh", "-q", "-c", "qemu:///system"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// held lists what is in the sets of a kind in a node's kernel, as nft prints it.
func (l *lab) held(t *testing.T, node, set string) []string {
	t.Helper()
	out, err := l.Exec(t.Context(), node, "nft", "-s", "list", "set", "bridge", "palisade", set)
	if err != nil {
		t.Fatal(err)
	}
	_, list, found := strings.Cut(string(out), "elements = {")
	if !found {
		return nil
	}
	list, _, _ = strings.Cut(list, "}")
	var held []string
	for el := range strings.SplitSeq(list, ",") {
		// The canary's are always there.
		if name := strings.Trim(strings.Fields(el)[0], `"`); !strings.HasPrefix(name, "palcan") {
			held = append(held, name)
		}
	}
	return held
}

// within runs a function on a thread in a network namespace. The thread ends with it.
func within(netns string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		if unix.Gettid() == os.Getpid() {
			done <- within(netns, f) // the first thread can't end: it must not go there
			runtime.UnlockOSThread()
			return
		}
		fd, err := unix.Open("/run/netns/"+netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- fmt.Errorf("network namespace %s: %w", netns, err)
			return
		}
		err = errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd))
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// talk is a TCP connection from outside to the echo service of a guest, in steady use.
type talk struct {
	conn  net.Conn
	stop  chan struct{}
	ended chan error
	lines int // echoed in order; read after end
}

// talks opens a connection and sends numbered lines, each after the echo of the one before.
func (l *lab) talks(t *testing.T, addr string) *talk {
	t.Helper()
	k := &talk{stop: make(chan struct{}), ended: make(chan error, 1)}
	from, _ := l.Ends(t, fleet.Outside)
	if err := within(from.Netns, func() (err error) {
		k.conn, err = net.DialTimeout("tcp", net.JoinHostPort(addr, "7"), 10*time.Second)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.conn.Close() })
	go func() { k.ended <- k.run() }()
	return k
}

func (k *talk) run() error {
	pause := time.NewTicker(20 * time.Millisecond)
	defer pause.Stop()
	for {
		select {
		case <-k.stop:
			return nil
		case <-pause.C:
		}
		if err := k.conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return err
		}
		var got int
		if _, err := fmt.Fprintf(k.conn, "%d\n", k.lines); err != nil {
			return err
		}
		if _, err := fmt.Fscanf(k.conn, "%d\n", &got); err != nil {
			return err
		}
		if got != k.lines {
			return fmt.Errorf("line %d came back as %d", k.lines, got)
		}
		k.lines++
	}
}

// end says how many lines came back, and what ended the connection before.
func (k *talk) end() (lines int, err error) {
	close(k.stop)
	err = <-k.ended
	return k.lines, err
}
