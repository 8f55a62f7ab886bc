package agent

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// leave makes a socket file that nobody listens on any more.
func leave(t *testing.T, path string) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
}

// answer makes a socket that is listened on.
func answer(t *testing.T, path string) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
}

// busy makes a listening socket whose queue is full.
func busy(t *testing.T, path string) {
	t.Helper()
	open := func() int {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	addr := &unix.SockaddrUnix{Name: path}
	l := open()
	if err := unix.Bind(l, addr); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(l, 0); err != nil {
		t.Fatal(err)
	}
	for range 64 {
		switch err := unix.Connect(open(), addr); {
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil:
			t.Fatal(err)
		}
	}
	t.Fatal("the queue does not fill")
}

func TestOnlyTheSocketOfADeadAgentIsReplaced(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	tests := map[string]struct {
		prepare  func(*testing.T, string)
		ctx      context.Context
		replaced bool
	}{
		"nothing there":      {func(*testing.T, string) {}, t.Context(), true},
		"a dead agent's":     {leave, t.Context(), true},
		"an agent's":         {answer, t.Context(), false},
		"a busy agent's":     {busy, t.Context(), false},
		"an agent's, at end": {answer, ended, false},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "sub", "s")
			if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			c.prepare(t, path)
			before, _ := os.Stat(path)
			ln, err := listenSocket(c.ctx, path)
			if (err == nil) != c.replaced {
				t.Fatalf("got %v, want replaced: %v", err, c.replaced)
			}
			after, serr := os.Stat(path)
			if serr != nil {
				t.Fatal(serr)
			}
			if !c.replaced {
				if !os.SameFile(before, after) {
					t.Error("the socket of another agent was replaced")
				}
				return
			}
			defer func() { _ = ln.Close() }()
			if after.Mode().Perm() != 0o600 {
				t.Errorf("mode %v: others can connect", after.Mode())
			}
		})
	}
}
