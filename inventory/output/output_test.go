package output

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func shell(script string) Source { return Source{Command: []string{"/bin/sh", "-c", script}} }

func TestAll(t *testing.T) {
	defer goleak.VerifyNone(t)
	got, err := shell("echo one; echo two").All(t.Context(), 20*time.Second)
	if err != nil || string(got) != "one\ntwo\n" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := shell("echo half; printf 'no\\tlicence\\033[1m\\n' >&2; exit 7").All(t.Context(), 20*time.Second); err == nil || !strings.HasSuffix(err.Error(), "exit status 7: no licence\ufffd[1m") {
		t.Errorf("error %q", err)
	}
	_, err = shell("head -c 5000 /dev/zero | tr '\\0' y >&2; exit 1").All(t.Context(), 20*time.Second)
	if err == nil || strings.Count(err.Error(), "y") != maxStderr {
		t.Errorf("%d bytes of stderr are in the error", strings.Count(err.Error(), "y"))
	}
	if _, err := shell("cat /dev/zero").All(t.Context(), 60*time.Second); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("an endless output: %v", err)
	}
}

// TestNothingIsLeftBehind ends a program that is too slow, with what it started.
func TestNothingIsLeftBehind(t *testing.T) {
	defer goleak.VerifyNone(t)
	file := filepath.Join(t.TempDir(), "pid")
	_, err := shell("sleep 600 & echo $! > "+file+"; wait").All(t.Context(), 500*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "no answer within 500ms") {
		t.Errorf("error %v", err)
	}
	pid, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(pid)), "stat"))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("what it started goes on")
		}
	}
}

func TestFollowEndsWithTheReader(t *testing.T) {
	defer goleak.VerifyNone(t)
	enough := errors.New("enough")
	err := shell("yes").Follow(context.Background(), func(r io.Reader) error {
		if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
			return err
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Errorf("error %v", err)
	}
}
