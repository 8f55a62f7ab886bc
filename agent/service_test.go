package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// manager is the other end of a service.
type manager struct {
	t *testing.T
	c *net.UnixConn
}

func newManager(t *testing.T, watchdog string) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", watchdog)
	return &manager{t, c}
}

// next returns the next message, "" if there is none within the time.
func (m *manager) next(within time.Duration) string {
	m.t.Helper()
	if err := m.c.SetReadDeadline(time.Now().Add(within)); err != nil {
		m.t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, err := m.c.Read(b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

// until reads messages until one begins like that.
func (m *manager) until(begin string) string {
	m.t.Helper()
	for range 1000 {
		if s := m.next(20 * time.Second); strings.HasPrefix(s, begin) {
			return s
		} else if s == "" {
			break
		}
	}
	m.t.Fatalf("no %q came", begin)
	return ""
}

func serve(t *testing.T) *service {
	t.Helper()
	s := newService(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

// Ready is told when a look has succeeded, and the watchdog is fed while looks do, and not a moment longer.
func TestTheWatchdogIsFedByWhoIsAlive(t *testing.T) {
	const limit = 600 * time.Millisecond
	m := newManager(t, "600000")
	s := serve(t)
	if said := m.next(200 * time.Millisecond); said != "" {
		t.Errorf("before it is ready, it says %q", said)
	}
	s.set(func(context.Context) (string, error) { return "follows\nREADY=0", errors.New("not yet") })
	if said := m.next(200 * time.Millisecond); said != "" {
		t.Errorf("before a look succeeds, it says %q", said)
	}
	status := "follows node-2"
	s.set(func(context.Context) (string, error) { return oneLine(status + "\nX=1"), nil })
	if said := m.until("READY=1"); said != "READY=1\nSTATUS=follows node-2 X=1" {
		t.Errorf("it says %q", said)
	}
	for range 3 {
		m.until("WATCHDOG=1")
	}
	s.set(func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() }) // a loop that hangs
	for m.next(limit) != "" {                                                               // what was on its way
	}
	if said := m.next(2 * limit); said != "" {
		t.Errorf("while a loop hangs, it says %q", said)
	}
	s.set(func(context.Context) (string, error) { return "leads", nil })
	m.until("STATUS=leads")
	m.until("WATCHDOG=1")
}

func TestStoppingIsTold(t *testing.T) {
	m := newManager(t, "")
	s := newService(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.run(ctx); close(done) }()
	s.set(func(context.Context) (string, error) { return "leads", nil })
	m.until("READY=1")
	cancel()
	m.until("STOPPING=1")
	<-done
}

// The look through the enforcer needs its loop.
func TestALoopThatHangsIsNotAlive(t *testing.T) {
	b := newBench(t, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.enforcer.Alive(ctx); err == nil {
		t.Error("alive, and does not run")
	}
	b.run()
	if err := b.enforcer.Alive(t.Context()); err != nil {
		t.Error(err)
	}
}
