package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/cluster/internal/peerpb"
)

// followLog is the log of a follower: the same files that raft keeps, in the same form, so that raft can
// go on with them. It holds committed entries only. One goroutine uses it, but for what is atomic.
type followLog struct {
	disk    *disk
	logs    raft.LogStore // with a cache, from which the followers of this one are served
	applier *applier
	members *membership
	log     *slog.Logger

	last atomic.Pointer[position]
	snap uint64 // index of the newest snapshot

	confIndex uint64 // of the last list of raft's members, and the list
	conf      raft.Configuration

	compaction compaction
	compacting chan snapped // buffered, 1; nil while no snapshot is being written
}

type position struct{ index, term uint64 }

// compaction is when the log is cut.
type compaction struct {
	threshold uint64 // entries after the last snapshot that make a new one worth it
	trailing  uint64 // entries that stay, for followers that are behind
}

// snapped is a snapshot that was written, or not.
type snapped struct {
	index uint64
	err   error
}

// openFollowLog brings the state up to all that the log holds: no network is needed for that.
func openFollowLog(d *disk, a *applier, m *membership, cut compaction, log *slog.Logger) (*followLog, error) {
	f := &followLog{disk: d, applier: a, members: m, compaction: cut, log: log}
	f.last.Store(&position{})
	var err error
	if f.logs, err = raft.NewLogCache(logCacheEntries, d.logs); err != nil {
		return nil, err
	}
	meta, err := d.newest()
	if err != nil {
		return nil, err
	}
	if meta != nil {
		if err := f.restore(meta); err != nil {
			return nil, err
		}
	}
	last, err := f.logs.LastIndex()
	if err != nil {
		return nil, err
	}
	if last < f.snap { // a snapshot was installed, and the log not yet cut
		return f, clearLog(f.logs)
	}
	for i := f.snap + 1; i <= last; {
		var batch []*raft.Log
		for ; i <= last && len(batch) < maxAppendEntries; i++ {
			l := &raft.Log{}
			if err := f.logs.GetLog(i, l); err != nil {
				return nil, fmt.Errorf("read entry %d: %w", i, err)
			}
			batch = append(batch, l)
		}
		f.apply(batch)
	}
	return f, nil
}

// restore takes the state of a snapshot, unless the state is already past it.
func (f *followLog) restore(meta *raft.SnapshotMeta) error {
	if f.applier.last.Load() < meta.Index {
		_, rc, err := f.disk.snaps.Open(meta.ID)
		if err != nil {
			return err
		}
		err = f.applier.Restore(rc)
		if err := errors.Join(err, rc.Close()); err != nil {
			return err
		}
		f.applier.advance(meta.Index)
	}
	f.snap = meta.Index
	f.last.Store(&position{meta.Index, meta.Term})
	f.confIndex, f.conf = meta.ConfigurationIndex, meta.Configuration
	f.members.note(meta.ConfigurationIndex, meta.Configuration)
	return nil
}

// append stores entries, tells of them, and applies them. Entries that the log has are passed over; after a
// gap, or with a damaged entry, nothing is taken.
func (f *followLog) append(in []*peerpb.FollowEntry, stored func(index uint64)) error {
	was := *f.last.Load()
	logs := make([]*raft.Log, 0, len(in))
	for next := was.index + 1; len(in) > 0; in = in[1:] {
		switch i := in[0].GetIndex(); {
		case i < next:
			continue
		case i > next:
			return fmt.Errorf("entry %d came, %d is the next", i, next)
		}
		l, err := decodeEntry(in[0])
		if err != nil {
			return err
		}
		logs = append(logs, l)
		next++
	}
	if len(logs) == 0 {
		return nil
	}
	if err := f.logs.StoreLogs(logs); err != nil {
		return err
	}
	stored(logs[len(logs)-1].Index)
	f.apply(logs)
	return nil
}

// apply applies stored entries. A halted state stays as it is; the log goes on, and a newer build applies it.
func (f *followLog) apply(logs []*raft.Log) {
	end := logs[len(logs)-1]
	send := make([]*raft.Log, 0, len(logs))
	for _, l := range logs {
		if l.Type == raft.LogCommand || l.Type == raft.LogConfiguration {
			send = append(send, l)
		}
		if l.Type == raft.LogConfiguration {
			f.confIndex, f.conf = l.Index, raft.DecodeConfiguration(l.Data)
		}
	}
	if len(send) > 0 {
		f.applier.ApplyBatch(send)
	}
	if f.applier.store.Halted() == nil {
		f.applier.advance(end.Index)
	}
	f.last.Store(&position{end.Index, end.Term})
}

// install puts a whole received snapshot in the place of the log.
func (f *followLog) install(sink raft.SnapshotSink) error {
	if err := sink.Close(); err != nil {
		return err
	}
	list, err := f.disk.snaps.List()
	if err != nil {
		return err
	}
	var meta *raft.SnapshotMeta
	for _, m := range list {
		if m.ID == sink.ID() {
			meta = m
		}
	}
	if meta == nil {
		return fmt.Errorf("snapshot %s is gone", sink.ID())
	}
	f.applier.last.Store(0)
	if err := f.restore(meta); err != nil {
		return err
	}
	return clearLog(f.logs)
}

func clearLog(logs raft.LogStore) error {
	first, err := logs.FirstIndex()
	if err != nil {
		return err
	}
	last, err := logs.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	return logs.DeleteRange(first, last)
}

// receive begins a snapshot that a source sends.
func (f *followLog) receive(m *peerpb.FollowSnapshot) (raft.SnapshotSink, error) {
	conf, err := decodeConfiguration(m.GetConfiguration())
	if err != nil {
		return nil, err
	}
	return f.disk.snaps.Create(raft.SnapshotVersionMax, m.GetIndex(), m.GetTerm(), conf, m.GetConfigurationIndex(), peerNames{})
}

// decodeConfiguration is raft's, which panics on what it can't read.
func decodeConfiguration(data []byte) (conf raft.Configuration, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("a list of members that can't be read: %v", p)
		}
	}()
	return raft.DecodeConfiguration(data), nil
}

// compact starts to write a snapshot, if it is time, and returns where the end will be told.
func (f *followLog) compact() <-chan snapped {
	last := *f.last.Load()
	if f.compacting != nil || last.index < f.snap+f.compaction.threshold || f.applier.store.Halted() != nil {
		return f.compacting
	}
	view := f.applier.store.View() // of the state after the last entry: this goroutine applies
	done := make(chan snapped, 1)
	f.compacting = done
	conf, confIndex := f.conf, f.confIndex
	go func() {
		sink, err := f.disk.snaps.Create(raft.SnapshotVersionMax, last.index, last.term, conf, confIndex, peerNames{})
		if err == nil {
			err = viewSnapshot{view}.Persist(sink)
		}
		done <- snapped{last.index, err}
	}()
	return done
}

// compacted cuts the log after a snapshot was written.
func (f *followLog) compacted(s snapped) error {
	f.compacting = nil
	if s.err != nil {
		return fmt.Errorf("write a snapshot: %w", s.err)
	}
	f.snap = max(f.snap, s.index)
	last := f.last.Load().index
	first, err := f.logs.FirstIndex()
	if err != nil || last <= f.compaction.trailing {
		return err
	}
	end := min(s.index, last-f.compaction.trailing)
	if first == 0 || first > end {
		return nil
	}
	f.log.Info("the log was compacted", "snapshot", s.index, "from", first, "to", end)
	return f.logs.DeleteRange(first, end)
}

// close waits until nothing is written any more.
func (f *followLog) close() {
	if f.compacting != nil {
		<-f.compacting
		f.compacting = nil
	}
}

// peerNames encodes addresses as raft's transports do, for the description of a snapshot.
type peerNames struct{ raft.Transport }

func (peerNames) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }
