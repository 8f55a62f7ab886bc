// Package output reads what programs print that know the VMs of this node: from a program that is run, or
// from a Unix socket at which a service manager runs it. The second needs no rights here: the program may
// run as root, while whoever reads it may do nothing.
package output

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
)

// MaxBytes bounds what is read of one listing.
const MaxBytes = 64 << 20

const maxStderr = 1 << 10 // bytes of it that are kept

// Source is a program or a socket; one of them must be set.
type Source struct {
	Command []string // program and arguments; no shell. The program is an absolute path.
	Socket  string   // path of a Unix stream socket; it is connected to, and nothing is written
}

// Validate says what is wrong with the source.
func (s Source) Validate() error {
	switch {
	case (len(s.Command) == 0) == (s.Socket == ""):
		return errors.New("want a command or a socket, and not both")
	case len(s.Command) > 0 && !filepath.IsAbs(s.Command[0]):
		return fmt.Errorf("command: %q is not an absolute path", s.Command[0])
	case s.Socket != "" && (!filepath.IsAbs(s.Socket) || len(s.Socket) > 107):
		return fmt.Errorf("socket: %q is not an absolute path of at most 107 bytes", s.Socket)
	}
	return nil
}

// Follow passes the output on to read, as it comes, and returns when read has returned and the program has
// ended. The program gets an environment of PATH, LANG and LC_ALL alone, no input, and a process group of its
// own, which is killed when ctx ends or read returns before the output's end. Errors are read's, else that
// the program failed, with the end of what it wrote to stderr. That a program ended well is not seen through
// a socket: what is read must say whether it is complete.
func (s Source) Follow(ctx context.Context, read func(io.Reader) error) error {
	if s.Socket != "" {
		return s.connect(ctx, read)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Command[0], s.Command[1:]...) //nolint:gosec // the operator's own config
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a grandchild in another group may hold the pipe
	said := &tail{}
	cmd.Stderr = said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = read(out)
	rest := make([]byte, 1)
	if err == nil {
		if n, _ := out.Read(rest); n > 0 {
			err = errors.New("it went on after the end of its listing")
		}
	}
	if err != nil {
		cancel()
	}
	ended := cmd.Wait()
	switch {
	case err != nil:
		return said.explain(fmt.Errorf("%s: %w", s.Command[0], err))
	case ended != nil:
		return said.explain(fmt.Errorf("%s: %w", s.Command[0], ended))
	}
	return nil
}

func (s Source) connect(ctx context.Context, read func(io.Reader) error) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", s.Socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := read(conn); err != nil {
		return fmt.Errorf("%s: %w", s.Socket, err)
	}
	return nil
}

// All returns the whole output of a program that ends, at most MaxBytes, within timeout.
func (s Source) All(ctx context.Context, timeout time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	var data []byte
	err := s.Follow(ctx, func(r io.Reader) error {
		var err error
		if data, err = io.ReadAll(io.LimitReader(r, MaxBytes+1)); err == nil && len(data) > MaxBytes {
			err = fmt.Errorf("more than %d bytes", MaxBytes)
		}
		return err
	})
	if err != nil && ctx.Err() != nil {
		return nil, errors.Join(context.Cause(ctx), err)
	}
	return data, err
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	text []byte
}

// Write meets io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if extra := len(t.text) - maxStderr; extra > 0 {
		t.text = append(t.text[:0], t.text[extra:]...)
	}
	return len(p), nil
}

// explain adds what was written to an error, on one line.
func (t *tail) explain(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	said := strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(string(t.text), "\ufffd")))
	if said == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, said)
}
