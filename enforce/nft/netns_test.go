package nft

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// netNS is a network namespace that lives as long as its descriptor.
type netNS struct {
	t  testing.TB
	fd int
}

func newNetNS(t testing.TB) netNS {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{0, fmt.Errorf("unshare: %w", err)}
			return
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		done <- result{fd, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = unix.Close(r.fd) })
	n := netNS{t, r.fd}
	n.run("ip", "link", "set", "lo", "up")
	return n
}

func (n netNS) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.fd) }

// run runs a command in the namespace and returns what it printed.
func (n netNS) run(name string, args ...string) string {
	n.t.Helper()
	return n.runInput("", name, args...)
}

func (n netNS) runInput(input, name string, args ...string) string {
	n.t.Helper()
	out, err := n.try(input, name, args...)
	if err != nil {
		n.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func (n netNS) try(input, name string, args ...string) (string, error) {
	cmd := exec.Command("nsenter", append([]string{"--net=" + n.path(), name}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// do runs a function on a thread in the namespace; sockets that it opens belong there.
func (n netNS) do(f func() error) {
	n.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		n.t.Fatal(err)
	}
}

func open(t testing.TB, n netNS, change ...func(*Options)) *Kernel {
	t.Helper()
	o := Options{NetNS: n.fd, ExactSize: 1024, MaskedSize: 64, TapSize: 64}
	for _, c := range change {
		c(&o)
	}
	k, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func adopt(t testing.TB, k *Kernel) Held {
	t.Helper()
	held, err := k.Adopt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return held
}

func adopted(t testing.TB, n netNS, change ...func(*Options)) *Kernel {
	t.Helper()
	k := open(t, n, change...)
	adopt(t, k)
	return k
}

func apply(t testing.TB, k *Kernel, index uint64, add, remove []enforce.Element) {
	t.Helper()
	if err := k.Apply(t.Context(), enforce.Delta{Index: index, Add: add, Remove: remove}); err != nil {
		t.Fatal(err)
	}
}

func verify(t testing.TB, k *Kernel) {
	t.Helper()
	d, err := k.Verify(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if !d.None() {
		t.Fatalf("the kernel differs: %d missing, %d unexpected, index %d want %d, %q",
			len(d.Missing), len(d.Unexpected), d.Index, d.WantIndex, d.Problems)
	}
}

func generation(t testing.TB, k *Kernel) uint32 {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	g, err := k.wire.generation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 10 s: not yet %s", what)
		}
	}
}

func tap(s string) enforce.Element { return enforce.Element{Tap: s} }

func mac(s string) enforce.Element {
	m, err := fsm.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return enforce.Element{MAC: m}
}

func prefix(s string) enforce.Element {
	if !strings.Contains(s, "/") {
		a := netip.MustParseAddr(s)
		return enforce.Element{Prefix: netip.PrefixFrom(a, a.BitLen())}
	}
	return enforce.Element{Prefix: netip.MustParsePrefix(s)}
}

func elements(list ...enforce.Element) []enforce.Element { return list }

// addresses returns n single IPv4 addresses from 10.0.0.1 on.
func addresses(n int) []enforce.Element {
	list := make([]enforce.Element, n)
	for i := range list {
		a := netip.AddrFrom4([4]byte{10, byte((i + 1) >> 16), byte((i + 1) >> 8), byte(i + 1)})
		list[i].Prefix = netip.PrefixFrom(a, 32)
	}
	return list
}

func testLogger(to io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(to, nil)) }
