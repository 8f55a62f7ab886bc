package cluster

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/files"
)

// A store that can't be relied on is renamed to its own path with asideMark and the time, and kept there.
const (
	asideMark  = ".aside-"
	asideTime  = "20060102T150405.000Z"
	asideNote  = "set-aside.json" // in the store that was set aside: an fsm.SetAside
	freshMark  = ".fresh"         // the store that takes its place, until it does
	keptAside  = 3                // stores; the oldest goes when another is set aside
	maxNoteLen = 1 << 16
)

// damagedError says that what the disk gave back is not what was written. It is never a failure of the
// disk to answer, which may pass.
type damagedError struct{ err error }

func (e damagedError) Error() string { return "damaged: " + e.err.Error() }
func (e damagedError) Unwrap() error { return e.err }

func damagef(format string, args ...any) error { return damagedError{fmt.Errorf(format, args...)} }

// damageOr takes an error of a library that reads the store for damage, unless it comes from the system or
// from another process that holds the file: those may pass.
func damageOr(err error) error {
	_, system := errors.AsType[unix.Errno](err)
	switch {
	case err == nil, system, errors.Is(err, bolterrors.ErrTimeout):
		return err
	}
	if _, ok := errors.AsType[damagedError](err); ok {
		return err
	}
	return damagedError{err}
}

// inUse says that another process has the store open.
func inUse(err error) bool { return errors.Is(err, bolterrors.ErrTimeout) }

// lockStore keeps agents off the store in dir until release is called. It returns ErrInUse if one has it open.
func lockStore(dir string) (release func() error, err error) {
	path := filepath.Join(dir, logFile)
	none := func() error { return nil }
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return none, nil
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, ReadOnly: true})
	switch {
	case inUse(err):
		return nil, fmt.Errorf("%s: %w", path, ErrInUse)
	case err != nil:
		return none, nil //nolint:nilerr // whatever is wrong with it, nobody has it open
	}
	return db.Close, nil
}

// readWhole reads a file from the disk. It tells a page that the disk fails to give from one that is not
// there: under a memory map both are the same fault.
func readWhole(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, f)
	return err
}

// openWhole opens the store in dir for a node. One that is damaged is set aside first: then the store is
// empty, and the node does not vote before a leader has filled it. An error of the disk is returned as it is.
func openWhole(dir, id string, epoch uint64, guard func() *guard, logger *slog.Logger) (*disk, error) {
	if err := finishAside(dir); err != nil {
		return nil, err
	}
	d, err := openDisk(dir, guard(), logger)
	damaged, ok := errors.AsType[damagedError](err)
	if !ok {
		return d, err
	}
	at, err := setAside(dir, id, epoch, fsm.SetAside{At: time.Now().UTC(), Why: damaged.Error()})
	if err != nil {
		return nil, fmt.Errorf("the store %s is %w; it could not be set aside: %w", dir, damaged, err)
	}
	logger.Error("the store was damaged and is set aside; the fleet fills a new one, and this node does not vote until then",
		"damage", damaged.Error(), "kept", at)
	return openDisk(dir, guard(), logger)
}

// setAside puts a new store, with the gate shut, in the place of the one in dir, and returns where that is kept. If it is
// cut short, finishAside completes it: at no time is there an empty store that may vote.
func setAside(dir, id string, epoch uint64, why fsm.SetAside) (string, error) {
	fresh := dir + freshMark
	if err := os.RemoveAll(fresh); err != nil {
		return "", err
	}
	if err := makeGated(fresh, id, epoch); err != nil {
		return "", err
	}
	return replaceStore(dir, why)
}

// replaceStore puts the store in dir+freshMark in the place of the one in dir.
func replaceStore(dir string, why fsm.SetAside) (string, error) {
	note, err := json.Marshal(why)
	if err != nil {
		return "", err
	}
	if err := writeSynced(filepath.Join(dir, asideNote), note); err != nil {
		return "", err
	}
	kept := dir + asideMark + why.At.UTC().Format(asideTime)
	if err := os.Rename(dir, kept); err != nil {
		return "", err
	}
	if err := errors.Join(files.SyncDir(filepath.Dir(dir)), finishAside(dir)); err != nil {
		return "", err
	}
	return kept, forgetAside(dir)
}

// finishAside completes what a crash cut short: a store that was to take the place of one that is gone from there takes it,
// and one whose time had not come is removed.
func finishAside(dir string) error {
	fresh := dir + freshMark
	if _, err := os.Stat(fresh); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	switch _, err := os.Stat(dir); {
	case err == nil:
		return os.RemoveAll(fresh)
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	if err := os.Rename(fresh, dir); err != nil {
		return err
	}
	return files.SyncDir(filepath.Dir(dir))
}

// makeGated makes an empty store that does not vote.
func makeGated(dir, id string, epoch uint64) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	bolt, err := raftboltdb.NewBoltStore(filepath.Join(dir, logFile))
	if err != nil {
		return err
	}
	if err := errors.Join(bolt.Set([]byte(keyNode), []byte(id)), bolt.SetUint64([]byte(keyRejoin), 1), bolt.SetUint64([]byte(keyEpoch), epoch), bolt.Close()); err != nil {
		return err
	}
	return files.SyncDir(dir)
}

// forgetAside removes the oldest of the stores that were set aside, beyond keptAside.
func forgetAside(dir string) error {
	paths, err := asidePaths(dir)
	if err != nil {
		return err
	}
	for len(paths) > keptAside {
		if err := os.RemoveAll(paths[0]); err != nil {
			return fmt.Errorf("remove the oldest store that was set aside: %w", err)
		}
		paths = paths[1:]
	}
	return nil
}

// asidePaths are where the stores that were set aside are, oldest first.
func asidePaths(dir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(dir)+asideMark) {
			out = append(out, filepath.Join(filepath.Dir(dir), e.Name()))
		}
	}
	slices.Sort(out) // the names end with the time
	return out, nil
}

// listAside describes the stores that were set aside, newest first. A description that can't be read is left out.
func listAside(dir string) []fsm.SetAside {
	paths, err := asidePaths(dir)
	if err != nil {
		return nil
	}
	out := make([]fsm.SetAside, 0, len(paths))
	for _, path := range paths {
		var s fsm.SetAside
		if b, err := readBounded(filepath.Join(path, asideNote), maxNoteLen); err == nil {
			_ = json.Unmarshal(b, &s)
		}
		s.Path = path
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b fsm.SetAside) int { return cmp.Compare(b.Path, a.Path) })
	return out
}

func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// writeSynced writes a whole file and waits until it is on the disk.
func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// checkEntries reads every entry of the log, and so its checksum.
func (d *disk) checkEntries(first, last uint64) error {
	var entry raft.Log
	for i := first; i != 0 && i <= last; i++ {
		if err := d.logs.GetLog(i, &entry); err != nil {
			return damageOr(err)
		}
	}
	return nil
}

// checkNewest reads the newest snapshot, and so its checksum. Raft would pass over one that is damaged in
// silence and take an older one, behind which the log may be gone.
func (d *disk) checkNewest() error {
	list, err := d.snaps.List()
	if err != nil || len(list) == 0 {
		return err
	}
	_, content, err := d.snaps.Open(list[0].ID)
	if err != nil {
		return damageOr(fmt.Errorf("snapshot %s: %w", list[0].ID, err))
	}
	return content.Close()
}
