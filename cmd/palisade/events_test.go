package main

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi"
	"github.com/palisade/palisade/httpapi/apitest"
)

// syncBuffer is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// The command follows until it is interrupted, and that is no failure.
func TestEventsUntilInterrupted(t *testing.T) {
	f := apitest.New(t)
	f.RunVM("vm-1", "web\x1b[2J", "n1", "192.0.2.7")
	s, err := httpapi.New(httpapi.Options{Backend: f, ShutdownTimeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	sctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(sctx, nil, ln) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	for _, form := range []string{"text", "json"} {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		var out, errs syncBuffer
		code := make(chan int, 1)
		go func() {
			code <- run(ctx, []string{"--socket", socket, "-o", form, "events", "--from", "1"}, &out, &errs)
		}()
		f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}, Reason: "abuse"})
		for !strings.Contains(out.String(), "block.added") && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel()
		if c := <-code; c != exitOK {
			t.Errorf("exit code %d: %s", c, errs.String())
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) < 2 || !strings.Contains(lines[0], "vm.observed") || strings.Contains(out.String(), "\x1b") {
			t.Errorf("%s: %q", form, lines)
		}
	}
}
