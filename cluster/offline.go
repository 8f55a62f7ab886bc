package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/files"
)

// Offline is what the store of a node holds, read while its agent does not run.
type Offline struct {
	// State has every entry of the store, also those at the end that may never have been committed.
	State *fsm.Store
	// Index and Term are those of the last entry, 0 for an empty store.
	Index, Term uint64
	// Snapshot is the log index that is known to have been committed: that of the newest snapshot.
	Snapshot uint64
	// Voters are the ids of the voters that the store knows of, sorted.
	Voters []string
	// Gated says that the store lacks what its node once had, and was not filled since.
	Gated bool
	// Owner is the id of the node that the store belongs to.
	Owner string
}

// ErrInUse is the error of ReadOffline for a store that an agent has open.
var ErrInUse = errors.New("the store is in use: stop the agent first")

// ReadOffline reads the store in dir. It changes nothing but what a crash left half done. A store that is missing
// or empty is no error. Errors of a damaged one say so; what it held can't be had from it.
func ReadOffline(dir string, logger *slog.Logger) (*Offline, error) {
	out := &Offline{State: fsm.NewStore()}
	if err := finishAside(dir); err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return out, nil
	}
	d, err := openDisk(dir, newGuard(dir, time.Minute, func(error) {}), logger)
	if err != nil {
		if inUse(err) {
			return nil, fmt.Errorf("%s: %w", dir, ErrInUse)
		}
		return nil, err
	}
	return out, errors.Join(out.read(d), d.close())
}

func (o *Offline) read(d *disk) error {
	owner, err := d.stable.Get([]byte(keyNode))
	if err != nil && !notFound(err) {
		return err
	}
	o.Owner = string(owner)
	if o.Gated, err = d.mustRejoin(); err != nil {
		return err
	}
	list, err := d.snaps.List()
	if err != nil {
		return err
	}
	if len(list) > 0 {
		_, content, err := d.snaps.Open(list[0].ID)
		if err != nil {
			return err
		}
		if err := errors.Join(o.State.Restore(content), content.Close()); err != nil {
			return fmt.Errorf("the snapshot at index %d: %w", list[0].Index, err)
		}
		o.Index, o.Term, o.Snapshot = list[0].Index, list[0].Term, list[0].Index
		o.Voters = voters(list[0].Configuration)
	}
	last, err := d.logs.LastIndex()
	if err != nil {
		return err
	}
	for i := o.Index + 1; i <= last; i++ {
		var l raft.Log
		if err := d.logs.GetLog(i, &l); err != nil {
			return err
		}
		o.Index, o.Term = l.Index, l.Term
		switch l.Type {
		case raft.LogCommand:
			if _, err := o.State.ApplyBatch([]fsm.Entry{{Index: l.Index, Data: l.Data}}); err != nil {
				return fmt.Errorf("entry %d: %w", i, err)
			}
		case raft.LogConfiguration:
			o.Voters = voters(raft.DecodeConfiguration(l.Data))
		default: // nothing of the state
		}
	}
	return nil
}

func voters(c raft.Configuration) []string {
	var out []string
	for _, s := range c.Servers {
		if s.Suffrage == raft.Voter {
			out = append(out, string(s.ID))
		}
	}
	slices.Sort(out)
	return out
}

// founding is a store whose node is the only voter of its fleet.
type founding struct {
	Node string // id
	Term uint64 // above every term of the fleet's that is known
	View *fsm.View
	Why  string // why the store that was there, if one was, is set aside

	proof *epochProof // nil in tests
}

// foundStore puts the store in the place of the one in dir, which is kept beside it, and returns where, "" if there was
// none. It is complete, or has not happened, whenever it is cut short. No agent may run on dir.
func foundStore(ctx context.Context, dir string, f founding, logger *slog.Logger) (kept string, err error) {
	if f.View.Index() == 0 {
		return "", errors.New("a fleet can't be founded on an empty state")
	}
	if err := finishAside(dir); err != nil {
		return "", err
	}
	// The lock of a running agent's store is the proof that none runs.
	release, err := lockStore(dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, release()) }()
	fresh := dir + freshMark
	if err := os.RemoveAll(fresh); err != nil {
		return "", err
	}
	if err := f.write(fresh, logger); err != nil {
		return "", errors.Join(fmt.Errorf("write the new store: %w", err), os.RemoveAll(fresh))
	}
	if err := ctx.Err(); err != nil {
		return "", errors.Join(err, os.RemoveAll(fresh))
	}
	switch _, err := os.Stat(dir); {
	case errors.Is(err, os.ErrNotExist):
		return "", finishAside(dir)
	case err != nil:
		return "", err
	}
	return replaceStore(dir, fsm.SetAside{At: time.Now().UTC(), Why: f.Why})
}

// writeEpoch writes the epoch with its proof: if the identity is not told any more, the store tells it.
func (f *founding) writeEpoch(bolt *raftboltdb.BoltStore) error {
	if f.proof == nil {
		return nil
	}
	data, err := json.Marshal(f.proof)
	if err != nil {
		return err
	}
	return errors.Join(bolt.SetUint64([]byte(keyEpoch), f.proof.Epoch), bolt.Set([]byte(keyProof), data))
}

func (f *founding) write(dir string, logger *slog.Logger) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	bolt, err := raftboltdb.NewBoltStore(filepath.Join(dir, logFile))
	if err != nil {
		return err
	}
	err = errors.Join(
		bolt.Set([]byte(keyNode), []byte(f.Node)),
		f.writeEpoch(bolt),
		bolt.SetUint64([]byte(keyTerm), f.Term),
		bolt.Close(),
	)
	if err != nil {
		return err
	}
	snaps, err := raft.NewFileSnapshotStore(dir, keptSnapshots, io.Discard)
	if err != nil {
		return err
	}
	_, encoder := raft.NewInmemTransport("")
	sink, err := snaps.Create(raft.SnapshotVersionMax, f.View.Index(), f.Term, raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: raft.ServerID(f.Node), Address: raft.ServerAddress(f.Node),
	}}}, f.View.Index(), encoder)
	if err != nil {
		return err
	}
	if err := (viewSnapshot{f.View}).Persist(sink); err != nil {
		return err
	}
	// What was written is read as an agent will.
	d, err := openDisk(dir, newGuard(dir, time.Minute, func(error) {}), logger)
	if err != nil {
		return err
	}
	return errors.Join(d.close(), files.SyncDir(dir))
}
