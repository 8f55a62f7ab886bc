package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/fsm"
)

const damageMe = "damage me "

// spoil is a way in which a disk gives back something else than was written.
type spoil struct {
	name string
	do   func(t *testing.T, dir string)
}

func change(t *testing.T, path string, edit func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, edit(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// newestSnapshot is the directory of the snapshot that raft would start from.
func newestSnapshot(t *testing.T, dir string) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, snapshotsDir, "*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("there is no snapshot in %s: %v", dir, err)
	}
	return paths[len(paths)-1]
}

func spoils() []spoil {
	log := func(edit func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) { change(t, filepath.Join(dir, logFile), edit) }
	}
	return []spoil{
		{"log is garbage", log(func(b []byte) []byte { return []byte(strings.Repeat("garbage", len(b)/7)) })},
		{"log is cut", log(func(b []byte) []byte { return b[:len(b)/3] })},
		{"log is cut to a page", log(func(b []byte) []byte { return b[:4096] })},
		{"bytes of entries differ", log(func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte(damageMe), []byte("damaged!! "))
		})},
		{"log is gone", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, logFile)); err != nil {
				t.Fatal(err)
			}
		}},
		{"snapshot differs", func(t *testing.T, dir string) {
			change(t, filepath.Join(newestSnapshot(t, dir), "state.bin"), func(b []byte) []byte { b[len(b)/2] ^= 0x10; return b })
		}},
		{"snapshot is cut", func(t *testing.T, dir string) {
			change(t, filepath.Join(newestSnapshot(t, dir), "state.bin"), func(b []byte) []byte { return b[:len(b)/2] })
		}},
		{"snapshot's description is gone", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(newestSnapshot(t, dir), "meta.json")); err != nil {
				t.Fatal(err)
			}
		}},
		{"snapshots are gone", func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, snapshotsDir)); err != nil {
				t.Fatal(err)
			}
		}},
	}
}

// damageable is a fleet whose nodes have snapshots, logs that begin behind them, and entries to flip.
func damageable(t *testing.T) (*fleet, uint64) {
	t.Helper()
	f := realFleet(t, 3, func(_ string, o *Options) {
		o.seams.raft = func(c *raft.Config) { c.TrailingLogs = 5 }
	}).start().ready()
	for i := range 20 {
		f.leader().propose(declare(fmt.Sprintf("vm%d", i), strings.Repeat(damageMe, 20)))
	}
	f.agree(f.leader().store.View().Index())
	for _, n := range f.nodes {
		if err := n.c.running.Load().raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	return f, f.leader().propose(declare("last", strings.Repeat(damageMe, 20))).Index
}

// TestDamagedStoreIsSetAside: whatever the disk did to a node's store, the node comes back by itself, does
// not vote before it holds what it may have acknowledged, and what was there is kept.
func TestDamagedStoreIsSetAside(t *testing.T) {
	t.Parallel()
	f, index := damageable(t)
	var kept []fsm.SetAside
	for _, s := range spoils() {
		t.Run(s.name, func(t *testing.T) {
			f.t = t
			n := f.follower()
			f.agree(index)
			n.crash()
			s.do(t, n.dir())
			spoilt, _ := os.Stat(filepath.Join(n.dir(), logFile))
			n.start()
			f.await("the node to run", func() bool { return n.c.running.Load() != nil })
			aside := n.c.Status().Aside
			if len(aside) == 0 || len(aside) > keptAside || !strings.Contains(aside[0].Why, "damaged") || time.Since(aside[0].At) > time.Minute {
				t.Fatalf("set aside: %+v", aside)
			}
			if kept, err := os.Stat(filepath.Join(aside[0].Path, logFile)); spoilt != nil && (err != nil || kept.Size() < spoilt.Size()) {
				t.Errorf("what was damaged is not kept: %v", err)
			}
			f.ready().agree(index)
			f.await("the gate to open", n.votes)
			if got := owner(n.store, "last"); !strings.HasPrefix(got, damageMe) {
				t.Errorf("the node came back with %q", got)
			}
			index = n.propose(declare("last", damageMe+s.name)).Index
			for range 20 { // entries to flip, and to take a snapshot behind
				index = f.leader().propose(declare("more", strings.Repeat(damageMe, 20))).Index
			}
			f.agree(index)
			for _, n := range f.nodes {
				if err := n.c.running.Load().raft.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
					t.Fatal(err)
				}
			}
			index = f.leader().propose(declare("last", strings.Repeat(damageMe, 20))).Index
			kept = aside
		})
	}
	if len(kept) == 0 {
		t.Error("nothing was kept")
	}
	f.t = t
}

// TestMajorityOfDamagedStores: two of three nodes lose their stores at once. No fleet is formed anew, nobody
// leads without what was acknowledged, and the one whole store is enough once a person says so (recover).
func TestMajorityOfDamagedStores(t *testing.T) {
	t.Parallel()
	f, index := damageable(t)
	f.agree(index)
	whole := f.follower()
	for _, n := range f.nodes {
		n.crash()
		if n != whole {
			change(t, filepath.Join(n.dir(), logFile), func(b []byte) []byte { return b[:4096] })
		}
	}
	f.start()
	f.await("all to run", func() bool {
		for _, n := range f.nodes {
			if n.c.running.Load() == nil && n.c.follows.Load() == nil {
				return false
			}
		}
		return true
	})
	for deadline := time.Now().Add(4 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, n := range f.nodes {
			if n.leads() {
				t.Fatalf("%s leads: its store holds index %d", n.id, n.store.View().Index())
			}
		}
	}
	for _, n := range f.nodes {
		if !n.votes() == (n == whole) {
			t.Errorf("%s: votes is %v", n.id, n.votes())
		}
		if s := n.c.Status(); s.Quorum || s.CaughtUp {
			t.Errorf("%s claims to be in order: %+v", n.id, s)
		}
		// The gate is on the disk: a restart does not open it.
		n.crash()
	}
	f.start()
	f.await("all to run again", func() bool {
		for _, n := range f.nodes {
			if n.c.running.Load() == nil && n.c.follows.Load() == nil {
				return false
			}
		}
		return true
	})
	for _, n := range f.nodes {
		if n != whole && n.votes() {
			t.Errorf("%s votes after a restart", n.id)
		}
	}
}

// TestPassingFailureSetsNothingAside: a disk that does not answer is asked again later; its store may be whole.
func TestPassingFailureSetsNothingAside(t *testing.T) {
	t.Parallel()
	for _, err := range []error{syscall.EIO, syscall.ENOSPC, syscall.ENOMEM, syscall.EMFILE, syscall.EACCES, syscall.EROFS} {
		wrapped := fmt.Errorf("open: %w", &fs.PathError{Op: "read", Path: "raft.db", Err: err})
		if _, damaged := errors.AsType[damagedError](damageOr(wrapped)); damaged {
			t.Errorf("%v counts as damage", err)
		}
	}
	base, err := os.MkdirTemp("/var/tmp", "palisade-cluster-") //nolint:usetesting // /tmp may be a tmpfs
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	dir := filepath.Join(base, "raft")
	guard := func() *guard { return newGuard(dir, time.Second, func(error) {}) }
	// Reading a directory gives EISDIR: an error of the system, whatever is in the file's place.
	if err := os.MkdirAll(filepath.Join(dir, logFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := openWhole(dir, "n1", 1, guard, logger(t)); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("openWhole: %v", err)
	}
	// Another process has the store open.
	if err := os.Remove(filepath.Join(dir, logFile)); err != nil {
		t.Fatal(err)
	}
	d, err := openWhole(dir, "n1", 1, guard, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openWhole(dir, "n1", 1, guard, logger(t)); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("openWhole of an open store: %v", err)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	if aside := listAside(dir); len(aside) != 0 {
		t.Errorf("set aside: %+v", aside)
	}
}

// TestSetAsideSurvivesACrash: at whatever step it is cut short, the store that is opened next is the damaged one or
// one with the gate shut.
func TestSetAsideSurvivesACrash(t *testing.T) {
	base, err := os.MkdirTemp("/var/tmp", "palisade-cluster-") //nolint:usetesting // /tmp may be a tmpfs
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	guard := func() *guard { return newGuard("x", time.Second, func(error) {}) }
	garbage := func(dir string) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, logFile), []byte(strings.Repeat("garbage", 9000)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, crash := range map[string]func(dir string) error{
		"before anything": func(string) error { return nil },
		"while the new one is made": func(dir string) error {
			return errors.Join(os.MkdirAll(dir+freshMark, 0o700), os.WriteFile(filepath.Join(dir+freshMark, logFile), []byte("half"), 0o600))
		},
		"before the rename": func(dir string) error { return makeGated(dir+freshMark, "n1", 1) },
		"between the renames": func(dir string) error {
			return errors.Join(makeGated(dir+freshMark, "n1", 1), os.Rename(dir, dir+asideMark+"20260102T030405.000Z"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(base, strings.ReplaceAll(name, " ", "-"))
			garbage(dir)
			if err := crash(dir); err != nil {
				t.Fatal(err)
			}
			d, err := openWhole(dir, "n1", 1, guard, logger(t))
			if err != nil {
				t.Fatal(err)
			}
			if gated, err := d.mustRejoin(); err != nil || !gated {
				t.Errorf("the store that took the place of a damaged one votes: %v", err)
			}
			if err := d.close(); err != nil {
				t.Fatal(err)
			}
			if aside := listAside(dir); len(aside) != 1 {
				t.Errorf("set aside: %+v", aside)
			}
		})
	}
	// No more than a few are kept, the newest.
	dir := filepath.Join(base, "often")
	var last string
	for range keptAside + 3 {
		garbage(dir)
		d, err := openWhole(dir, "n1", 1, guard, logger(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.close(); err != nil {
			t.Fatal(err)
		}
		last = listAside(dir)[0].Path
		time.Sleep(2 * time.Millisecond) // the names end with milliseconds
	}
	if aside := listAside(dir); len(aside) != keptAside || aside[0].Path != last {
		t.Errorf("set aside: %+v", aside)
	}
}
