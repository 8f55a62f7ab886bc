package matrix_test

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// netNS is a network namespace that lives as long as its descriptor.
type netNS struct {
	t  testing.TB
	fd int
}

func newNetNS(t testing.TB) netNS {
	t.Helper()
	n := netNS{t, -1}
	inThread(t, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		n.fd = fd
		return os.NewSyscallError("open", err)
	})
	t.Cleanup(func() { _ = unix.Close(n.fd) })
	return n
}

// inThread runs a function on a thread that ends with it.
func inThread(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// do runs a function on a thread in the namespace; sockets that it opens belong there.
func (n netNS) do(f func() error) {
	n.t.Helper()
	inThread(n.t, func() error {
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return f()
	})
}

func (n netNS) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.fd) }

// run runs a command in the namespace and returns what it printed.
func (n netNS) run(input, name string, args ...string) string {
	n.t.Helper()
	cmd := exec.CommandContext(n.t.Context(), "nsenter", append([]string{"--net=" + n.path(), name}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, input)
	}
	return string(out)
}

func (n netNS) ip(lines ...string) {
	n.t.Helper()
	n.run(strings.Join(lines, "\n")+"\n", "ip", "-batch", "-")
}

func (n netNS) sysctl(settings ...string) {
	n.t.Helper()
	n.run("", "sysctl", append([]string{"-qw"}, settings...)...)
}
