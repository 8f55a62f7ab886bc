package cluster

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/palisade/palisade/internal/hclogslog"
)

const (
	logFile       = "raft.db"
	snapshotsDir  = "snapshots" // the name is raft's
	keptSnapshots = 2
)

// Keys of ours in raft's stable store.
const (
	keyNode = "palisade/node" // id of the node the store belongs to
	// keyRejoin is 1 while the store may lack what this node once acknowledged, see form.go.
	keyRejoin = "palisade/rejoin"
	// keyEpoch is the fleet's epoch in which the store was begun.
	keyEpoch = "palisade/epoch"
	// keyFollows is 1 while the log is taken as a stream: then all of it is committed.
	keyFollows = "palisade/follows"
	keyTerm    = "CurrentTerm" // the name is raft's
	// keyProof is the proof of that epoch, as JSON, if this node began it.
	keyProof = "palisade/epoch-proof"
)

// disk is what raft keeps, behind a guard.
type disk struct {
	guard  *guard
	logs   raft.LogStore
	stable raft.StableStore
	snaps  raft.SnapshotStore
	close  func() error
}

// openDisk opens or makes the store in dir. An error names the file and says what is wrong with it; it wraps a
// damagedError if what is there can't be relied on.
func openDisk(dir string, g *guard, logger *slog.Logger) (d *disk, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the store directory: %w", err)
	}
	path := filepath.Join(dir, logFile)
	if err := checkSnapshots(dir); err != nil {
		return nil, err
	}
	first, last, dead, err := checkLog(path)
	if err != nil {
		return nil, fmt.Errorf("the store %s: %w", path, err)
	}
	bolt, err := raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout: 3 * time.Second,
			// The list of free pages is found again at start instead of written with every commit.
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("open the store %s (is another agent running?): %w", path, err)
	}
	hlog := hclogslog.New(logger, raftLevel)
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, keptSnapshots, hlog)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the snapshots in %s: %w", dir, err), bolt.Close())
	}
	d = &disk{
		guard:  g,
		logs:   &guardedLogs{g, bolt},
		stable: &guardedStable{g, bolt},
		snaps:  &guardedSnaps{g, files},
		close:  bolt.Close,
	}
	for _, check := range []func() error{
		func() error { return d.checkGap(path, first, last) },
		func() error { return d.checkEntries(first, last) },
		d.checkNewest,
		func() error { return bury(bolt, dead) },
	} {
		if err := check(); err != nil {
			return nil, errors.Join(err, bolt.Close())
		}
	}
	return d, nil
}

// bury removes entries before a gap, which a snapshot has in it.
func bury(bolt *raftboltdb.BoltStore, dead uint64) error {
	if dead == 0 {
		return nil
	}
	return bolt.DeleteRange(1, dead)
}

// checkLog reads every key and value of the log file read-only, in this goroutine, where a bad page
// (bbolt panics) and a truncated file (SIGBUS) can be caught, and returns the first and last index.
//
// Raft leaves the old entries of a node that was given a snapshot, and goes on behind it. Then first is the entry after
// that gap, and dead the last before it, else 0.
func checkLog(path string) (first, last, dead uint64, err error) {
	if st, err := os.Stat(path); errors.Is(err, os.ErrNotExist) || err == nil && st.Size() == 0 {
		return 0, 0, 0, nil
	}
	// First as a file: bbolt says "invalid" of a file that the disk fails to give.
	if err := readWhole(path); err != nil {
		return 0, 0, 0, err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if err = readWhole(path); err == nil {
				err = damagef("unreadable page: %v", r)
			}
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: 3 * time.Second})
	if err != nil {
		return 0, 0, 0, damageOr(err)
	}
	defer func() { _ = db.Close() }()
	tx, err := db.Begin(false)
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { _ = tx.Rollback() }()
	// What is in use now may all lie in front of a cut; the next write would go behind it.
	st, err := os.Stat(path)
	if err != nil {
		return 0, 0, 0, err
	}
	if st.Size() < tx.Size() {
		return 0, 0, 0, damagef("the file has %d bytes of %d", st.Size(), tx.Size())
	}
	err = tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		return b.ForEach(func(k, v []byte) error {
			if string(name) != "logs" {
				return nil
			}
			if len(k) != 8 {
				return damagef("log key of %d bytes", len(k))
			}
			index := binary.BigEndian.Uint64(k)
			switch {
			case last == 0:
				first = index
			case index == last+1:
			case dead == 0 && index > last:
				first, dead = index, last
			default:
				return damagef("entry %d follows entry %d", index, last)
			}
			last = index
			return nil
		})
	})
	return first, last, dead, damageOr(err)
}

// checkSnapshots removes snapshots that were never finished and refuses ones whose description can't
// be read, which raft would pass over in silence.
func checkSnapshots(dir string) error {
	root := filepath.Join(dir, snapshotsDir)
	entries, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	finished := 0
	for _, e := range entries {
		path := filepath.Join(root, e.Name())
		switch {
		case !e.IsDir():
		case strings.HasSuffix(e.Name(), ".tmp"):
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("remove an unfinished snapshot: %w", err)
			}
		default:
			meta, err := os.ReadFile(filepath.Join(path, "meta.json"))
			switch {
			case errors.Is(err, os.ErrNotExist):
				return fmt.Errorf("the snapshot %s: %w", path, damagef("meta.json is gone"))
			case err != nil:
				return fmt.Errorf("the snapshot %s: %w", path, err)
			case !json.Valid(meta):
				return fmt.Errorf("the snapshot %s: %w", path, damagef("meta.json is not JSON"))
			}
			finished++
		}
	}
	st, err := os.Stat(filepath.Join(dir, logFile))
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	case finished > 0 && (err != nil || st.Size() == 0):
		return damagef("%s holds snapshots but its log %s is gone, and with it the votes this node gave", dir, logFile)
	}
	return nil
}

// checkGap makes sure that the log begins where the newest snapshot ends, or before.
func (d *disk) checkGap(path string, first, last uint64) error {
	list, err := d.snaps.List()
	if err != nil {
		return err
	}
	var snap uint64
	if len(list) > 0 {
		snap = list[0].Index
	}
	if last > 0 && first > snap+1 {
		return fmt.Errorf("the store %s: %w", path, damagef("its log begins at entry %d, its newest snapshot ends at %d", first, snap))
	}
	return nil
}

// lastIndex is the last log index on disk, in the log or a snapshot.
func (d *disk) lastIndex() (uint64, error) {
	last, err := d.logs.LastIndex()
	if err != nil {
		return 0, err
	}
	list, err := d.snaps.List()
	if err != nil {
		return 0, err
	}
	if len(list) > 0 {
		last = max(last, list[0].Index)
	}
	return last, nil
}

// claim binds the store to a node id, so that a store copied to another node is refused.
func (d *disk) claim(id string) error {
	owner, err := d.stable.Get([]byte(keyNode))
	switch {
	case err != nil && !notFound(err):
		return err
	case len(owner) == 0:
		return d.stable.Set([]byte(keyNode), []byte(id))
	case string(owner) != id:
		return fmt.Errorf("the store %s belongs to node %q, this is node %q", d.guard.where, owner, id)
	}
	return nil
}

// mustRejoin tells whether this node still has to be brought up to date before it may vote.
func (d *disk) mustRejoin() (bool, error) {
	return d.flag(keyRejoin)
}

func (d *disk) flag(key string) (bool, error) {
	v, err := d.stable.GetUint64([]byte(key))
	if err != nil && !notFound(err) {
		return false, err
	}
	return err == nil && v != 0, nil
}

func (d *disk) setRejoin(on bool) error { return d.setFlag(keyRejoin, on) }

func (d *disk) setFlag(key string, on bool) error {
	var v uint64
	if on {
		v = 1
	}
	return d.stable.SetUint64([]byte(key), v)
}

// follows says whether this node was a follower when it stopped.
func (d *disk) follows() (bool, error) { return d.flag(keyFollows) }

// setFollows writes only what is new.
func (d *disk) setFollows(on bool) error {
	is, err := d.follows()
	if err != nil || is == on {
		return err
	}
	return d.setFlag(keyFollows, on)
}

// raiseTerm makes raft's term at least that of the last entry, as it is where raft wrote the log itself.
func (d *disk) raiseTerm() error {
	last, err := d.logs.LastIndex()
	if err != nil {
		return err
	}
	var l raft.Log
	if last > 0 {
		if err := d.logs.GetLog(last, &l); err != nil {
			return err
		}
	}
	if meta, err := d.newest(); err != nil {
		return err
	} else if meta != nil {
		l.Term = max(l.Term, meta.Term)
	}
	term, err := d.stable.GetUint64([]byte(keyTerm))
	if err != nil && !notFound(err) || term >= l.Term {
		return err
	}
	return d.stable.SetUint64([]byte(keyTerm), l.Term)
}

// newest describes the newest snapshot, nil if there is none.
func (d *disk) newest() (*raft.SnapshotMeta, error) {
	list, err := d.snaps.List()
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[0], nil
}
