package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// slowIO is how many times longer a call that moves a whole snapshot may take.
const slowIO = 12

// ticks is how often the guard looks while a call may take its time.
const ticks = 5

// guard stands between raft and its disk. The first failure of any call is final: it is reported to
// fatal, and every later call fails with it. That is needed because the kernel forgets a failed
// write: after fdatasync returned EIO once, it drops the dirty pages and the next fdatasync returns
// success, so bbolt would report success for a log that is not on the disk. A call that does not
// return in time is a failure too; raft's heartbeats do not touch the disk, so a leader with a hung
// disk would lead for ever.
type guard struct {
	where string // the store's path, for messages
	limit time.Duration
	fatal func(error)

	// quiet holds back fatal while the store is opened (the opener returns the error instead) and closed.
	quiet   atomic.Bool
	failure atomic.Pointer[error]
	// appended is told how long it took to bring entries to the disk; set before raft runs, may be nil.
	appended func(took time.Duration)

	mu   sync.Mutex
	next uint64
	ops  map[uint64]op
	// ran is how long this process was seen to run: a clock that hardly advances while the whole process
	// waits for a processor, so that starvation is not taken for a hung disk.
	ran time.Duration
	// worst is the longest call that ended lately, and when on the clock of ran.
	worst, worstAt time.Duration
}

type op struct {
	what  string
	since time.Duration // on the clock of guard.ran
	limit time.Duration
}

func newGuard(where string, limit time.Duration, fatal func(error)) *guard {
	g := &guard{where: where, limit: limit, fatal: fatal, ops: map[uint64]op{}}
	g.quiet.Store(true)
	return g
}

// err is the final failure, nil while there was none.
func (g *guard) err() error {
	if p := g.failure.Load(); p != nil {
		return *p
	}
	return nil
}

func (g *guard) fail(err error) error {
	if !g.failure.CompareAndSwap(nil, &err) {
		return g.err()
	}
	if !g.quiet.Load() {
		g.fatal(err)
	}
	return err
}

// do runs one call, which may take times the limit. What the store says when it merely does not have a thing is passed through.
func (g *guard) do(what string, times int, call func() error) error {
	if err := g.err(); err != nil {
		return err
	}
	g.mu.Lock()
	id := g.next
	g.next++
	g.ops[id] = op{what: what, since: g.ran, limit: time.Duration(times) * g.limit}
	g.mu.Unlock()

	err := call()

	g.mu.Lock()
	if took := g.ran - g.ops[id].since; took >= g.worst || g.ran-g.worstAt > lately {
		g.worst, g.worstAt = took, g.ran
	}
	delete(g.ops, id)
	g.mu.Unlock()
	switch {
	case err == nil, errors.Is(err, raft.ErrLogNotFound), errors.Is(err, io.EOF), notFound(err):
		return err
	}
	return g.fail(fmt.Errorf("store %s: %s failed, what it holds can no longer be relied on: %w", g.where, what, err))
}

// notFound tells a missing key. Raft compares by text, so both spellings are one.
func notFound(err error) bool {
	return errors.Is(err, raftboltdb.ErrKeyNotFound) || err.Error() == raftboltdb.ErrKeyNotFound.Error()
}

// watch reports calls that do not return, until ctx ends.
func (g *guard) watch(ctx context.Context) {
	tick := time.NewTicker(g.limit / ticks)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		o, stuck := g.passed(now.Sub(last))
		last = now
		if stuck > 0 {
			_ = g.fail(fmt.Errorf("store %s: %s has not returned for %s: the disk hangs", g.where, o.what, stuck.Round(time.Millisecond)))
			return
		}
	}
}

// passed advances the clock, by one tick at most, and returns a call that takes too long, and for how long it does.
func (g *guard) passed(d time.Duration) (op, time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ran += min(d, g.limit/ticks)
	for _, o := range g.ops {
		if took := g.ran - o.since; took > o.limit {
			return o, took
		}
	}
	return op{}, 0
}

// lately is how long the slowest call is told of.
const lately = time.Minute

// slowest is how long the slowest call took of those under way and of the last minute. It is known to one
// tick of the guard, a fifth of its limit.
func (g *guard) slowest() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	var d time.Duration
	if g.ran-g.worstAt <= lately {
		d = g.worst
	}
	for _, o := range g.ops {
		d = max(d, g.ran-o.since)
	}
	return d
}

// guardedLogs seals every entry with a checksum, which bbolt does not do, so that an entry that was
// changed on the disk is never applied.
type guardedLogs struct {
	g     *guard
	inner raft.LogStore
}

var _ raft.LogStore = (*guardedLogs)(nil)

func (l *guardedLogs) FirstIndex() (i uint64, err error) {
	err = l.g.do("read of the first index", 1, func() (e error) { i, e = l.inner.FirstIndex(); return })
	return i, err
}

func (l *guardedLogs) LastIndex() (i uint64, err error) {
	err = l.g.do("read of the last index", 1, func() (e error) { i, e = l.inner.LastIndex(); return })
	return i, err
}

func (l *guardedLogs) GetLog(index uint64, log *raft.Log) error {
	return l.g.do("read of the log", 1, func() error {
		if err := l.inner.GetLog(index, log); err != nil {
			return err
		}
		if want := seal(log); string(want) != string(log.Extensions) {
			return damagef("entry %d has the checksum %x, want %x", index, log.Extensions, want)
		}
		log.Extensions = nil
		return nil
	})
}

func (l *guardedLogs) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

func (l *guardedLogs) StoreLogs(logs []*raft.Log) error {
	// Raft keeps using what it handed in, concurrently: only copies are sealed.
	sealed := make([]raft.Log, len(logs))
	refs := make([]*raft.Log, len(logs))
	for i, log := range logs {
		sealed[i] = *log
		sealed[i].Extensions = seal(log)
		refs[i] = &sealed[i]
	}
	begin := time.Now()
	err := l.g.do("append to the log", 1, func() error { return l.inner.StoreLogs(refs) })
	if err == nil && l.g.appended != nil {
		l.g.appended(time.Since(begin))
	}
	return err
}

func (l *guardedLogs) DeleteRange(lo, hi uint64) error {
	return l.g.do("truncation of the log", 1, func() error { return l.inner.DeleteRange(lo, hi) })
}

// seal is a checksum over everything of an entry that raft acts on.
func seal(log *raft.Log) []byte {
	var head [17]byte
	binary.BigEndian.PutUint64(head[0:], log.Index)
	binary.BigEndian.PutUint64(head[8:], log.Term)
	head[16] = byte(log.Type)
	table := crc32.MakeTable(crc32.Castagnoli) // cached by the package
	sum := crc32.Update(crc32.Checksum(head[:], table), table, log.Data)
	return binary.BigEndian.AppendUint32(nil, sum)
}

type guardedStable struct {
	g     *guard
	inner raft.StableStore
}

var _ raft.StableStore = (*guardedStable)(nil)

func (s *guardedStable) Set(key, val []byte) error {
	return s.g.do("write of "+string(key), 1, func() error { return s.inner.Set(key, val) })
}

func (s *guardedStable) Get(key []byte) (val []byte, err error) {
	err = s.g.do("read of "+string(key), 1, func() (e error) { val, e = s.inner.Get(key); return })
	return val, err
}

func (s *guardedStable) SetUint64(key []byte, val uint64) error {
	return s.g.do("write of "+string(key), 1, func() error { return s.inner.SetUint64(key, val) })
}

func (s *guardedStable) GetUint64(key []byte) (val uint64, err error) {
	err = s.g.do("read of "+string(key), 1, func() (e error) { val, e = s.inner.GetUint64(key); return })
	return val, err
}

type guardedSnaps struct {
	g     *guard
	inner raft.SnapshotStore
}

var _ raft.SnapshotStore = (*guardedSnaps)(nil)

func (s *guardedSnaps) Create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport) (sink raft.SnapshotSink, err error) {
	err = s.g.do("start of a snapshot", 1, func() (e error) { sink, e = s.inner.Create(v, index, term, c, ci, t); return })
	if err != nil {
		return nil, err
	}
	return &guardedSink{s.g, sink}, nil
}

func (s *guardedSnaps) List() (list []*raft.SnapshotMeta, err error) {
	err = s.g.do("listing of snapshots", 1, func() (e error) { list, e = s.inner.List(); return })
	return list, err
}

func (s *guardedSnaps) Open(id string) (meta *raft.SnapshotMeta, rc io.ReadCloser, err error) {
	err = s.g.do("opening of snapshot "+id, slowIO, func() (e error) { meta, rc, e = s.inner.Open(id); return })
	if err != nil {
		return nil, nil, err
	}
	return meta, &guardedReader{s.g, rc}, nil
}

type guardedSink struct {
	g *guard
	raft.SnapshotSink
}

func (s *guardedSink) Write(p []byte) (n int, err error) {
	err = s.g.do("write of a snapshot", 1, func() (e error) { n, e = s.SnapshotSink.Write(p); return })
	return n, err
}

func (s *guardedSink) Close() error {
	return s.g.do("sync of a snapshot", slowIO, s.SnapshotSink.Close)
}

type guardedReader struct {
	g *guard
	io.ReadCloser
}

func (r *guardedReader) Read(p []byte) (n int, err error) {
	err = r.g.do("read of a snapshot", 1, func() (e error) { n, e = r.ReadCloser.Read(p); return })
	return n, err
}
