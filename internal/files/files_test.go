package files

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestAFailedWriteLeavesTheOldFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "keys")
	if err := ReplaceBytes(path, []byte("old")); err != nil {
		t.Fatal(err)
	}
	cut := errors.New("cut off")
	err := Replace(path, func(w io.Writer) error {
		_, _ = io.WriteString(w, "half of the n")
		return cut
	})
	if !errors.Is(err, cut) {
		t.Errorf("a write that failed: %v", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
		t.Errorf("after it the file has %q, %v", got, err)
	}
	if err := ReplaceBytes(path, []byte("new")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "new" {
		t.Errorf("the file has %q, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
