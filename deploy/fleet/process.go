package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a process that the fleet started. Its start time tells it from a later one that was
// given the same number. The zero value is no process.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot
}

// Alive says whether the process still runs.
func (p Process) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	start, dead, err := procStat(p.PID)
	return err == nil && !dead && start == p.Start
}

// signal sends a signal to exactly this process.
func (p Process) signal(s os.Signal) error {
	// The handle is taken before the check, so that the number cannot pass to another in between.
	h, err := os.FindProcess(p.PID)
	if err != nil {
		return err
	}
	defer func() { _ = h.Release() }()
	if !p.Alive() {
		return os.ErrProcessDone
	}
	return h.Signal(s)
}

// procStat reads when a process started and whether it has ended but was not reaped.
func procStat(pid int) (start uint64, dead bool, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, true, err
	}
	// The name, in brackets, may itself hold brackets and spaces.
	_, rest, found := bytes.Cut(b[bytes.LastIndexByte(b, ')'):], []byte(" "))
	fields := strings.Fields(string(rest))
	if !found || len(fields) < 20 {
		return 0, true, fmt.Errorf("/proc/%d/stat: unreadable", pid)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0] == "Z" || fields[0] == "X", err
}

// launch starts a process that outlives this one: a session of its own, nothing on its input, its
// output appended to a file. Extra files are its descriptors from 3 on.
func (f *Fleet) launch(argv, env []string, logPath string, extra ...*os.File) (Process, error) {
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return Process{}, err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // it outlives every context of its start
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = extra
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return Process{}, err
	}
	p := Process{PID: cmd.Process.Pid}
	p.Start, _, err = procStat(p.PID)
	ended := make(chan struct{})
	f.mu.Lock()
	f.children[p.PID] = ended
	f.mu.Unlock()
	go func() {
		_ = cmd.Wait() // reaps; how it ended is in its log
		f.mu.Lock()
		delete(f.children, p.PID)
		f.mu.Unlock()
		close(ended)
	}()
	return p, err
}

// await blocks until the process or ctx has ended.
func (f *Fleet) await(ctx context.Context, p Process, limit time.Duration) error {
	f.mu.Lock()
	ended := f.children[p.PID]
	f.mu.Unlock()
	if ended != nil {
		select {
		case <-ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(limit):
			return fmt.Errorf("process %d did not end within %v", p.PID, limit)
		}
	}
	return until(ctx, limit, 5*time.Millisecond, func() error {
		if p.Alive() {
			return fmt.Errorf("process %d did not end", p.PID)
		}
		return nil
	})
}

// end terminates a process, by force if it does not listen.
func (f *Fleet) end(ctx context.Context, p Process, grace time.Duration) error {
	if err := p.signal(syscall.SIGTERM); errors.Is(err, os.ErrProcessDone) || p.PID <= 0 {
		return nil
	}
	if err := f.await(ctx, p, grace); err == nil || ctx.Err() != nil {
		return err
	}
	if err := p.signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return f.await(ctx, p, 10*time.Second)
}

// tool runs a program to its end; its error holds what the program said.
func tool(ctx context.Context, stdin string, argv ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	return output(cmd, stdin)
}

func output(cmd *exec.Cmd, stdin string) ([]byte, error) {
	var out, errs bytes.Buffer
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &out, &errs
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	err := cmd.Run()
	if err != nil {
		said := strings.TrimSpace(errs.String())
		if said == "" {
			said = strings.TrimSpace(out.String())
		}
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, said)
	}
	return out.Bytes(), err
}

// tail is the end of a log file, for an error message.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return filepath.Base(path) + " ends with:\n" + strings.Join(all[max(0, len(all)-lines):], "\n")
}
