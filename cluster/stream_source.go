package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/cluster/internal/peerpb"
)

const (
	// fanOut is how many followers a node serves; a leader, which has more to do, a third of them. With
	// three voters that makes three levels for a thousand nodes, see docs/architecture.md.
	fanOut = 12
	// batchEntries and batchBytes bound one message with entries, but for a single large one.
	batchEntries = 256
	batchBytes   = 512 << 10
	chunkBytes   = 256 << 10 // of a snapshot
	// maxSnapshotsOut is how many followers are sent a snapshot at once.
	maxSnapshotsOut = 2
	// maxTry bounds whom a full source names.
	maxTry = 8
)

// source serves the committed log to followers, from this node's own store. It lives as long as the
// Cluster, through changes between raft and following; whoever runs the log at the time says with publish
// how far it is committed. Each follower has its own goroutine that reads the store: one that is slow
// holds up nobody and costs one batch of memory.
type source struct {
	self  string
	most  func() int    // followers at once
	every time.Duration // between beats
	snaps chan struct{}
	rooms chan uint32 // the last change of room, to be told to this node's own source; buffered, 1

	mu       sync.Mutex
	children map[string]*child
	now      pulse
	changed  chan struct{} // closed with the next change of now
	logs     raft.LogStore
	store    raft.SnapshotStore
	told     uint32 // room, last

	batch batch
}

// pulse is how far the log is committed and what is known of the leader.
type pulse struct {
	index    uint64 // every entry up to here is committed and stored
	beat     uint64 // counts beats: each is passed on
	leader   string
	term     uint64
	commit   uint64    // of the leader, proven; 0 if not
	contact  time.Time // when the leader was heard
	path     []string  // from a voter to this node
	attached bool
}

type child struct {
	id   string
	room uint32
	end  context.CancelCauseFunc
}

// batch is the last message with entries, shared by the followers that are at the same place.
type batch struct {
	mu   sync.Mutex
	from uint64
	last uint64
	msg  *peerpb.FollowDown
}

var (
	errReplaced = errors.New("the follower has called again")
	errNoStore  = errors.New("this node's log is closed")
	errShed     = errors.New("the node serves fewer followers now")
	errCompact  = errors.New("the log does not reach back so far")
)

func newSource(self string, every time.Duration, most func() int) *source {
	return &source{
		self: self, every: every, most: most, snaps: make(chan struct{}, maxSnapshotsOut), rooms: make(chan uint32, 1),
		children: map[string]*child{}, changed: make(chan struct{}), now: pulse{path: []string{self}},
	}
}

// use sets the store that is served, nil for none.
func (s *source) use(logs raft.LogStore, snaps raft.SnapshotStore) {
	s.mu.Lock()
	s.logs, s.store = logs, snaps
	s.mu.Unlock()
	s.batch.mu.Lock()
	s.batch.msg = nil
	s.batch.mu.Unlock()
}

func (s *source) stores() (raft.LogStore, raft.SnapshotStore) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logs, s.store
}

// publish changes what followers are told.
func (s *source) publish(change func(p *pulse)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.now)
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *source) current() (pulse, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now, s.changed
}

// serve sends a follower all that it lacks, and what comes, until ctx ends, the follower goes, or it is
// to go. It returns nil if the follower was refused.
func (s *source) serve(ctx context.Context, first *peerpb.FollowUp, conn downstream) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	next := uint64(0) // no log has it: a snapshot comes first
	if s.agrees(first.GetIndex(), first.GetTerm()) {
		next = first.GetIndex() + 1
	}
	c, refused := s.admit(first, end)
	if refused != nil {
		return conn.say(&peerpb.FollowDown{What: &peerpb.FollowDown_Refused{Refused: refused}})
	}
	defer s.leave(c)
	go func() { // ends with the connection
		for {
			up, err := conn.next()
			if err != nil {
				end(err)
				return
			}
			s.setRoom(c, up.GetRoom())
		}
	}()
	for told, greeted := uint64(0), false; ; {
		now, changed := s.current()
		if !greeted || now.beat != told {
			// Before the entries, so that a follower which has much to take hears that its source lives.
			if err := conn.say(s.beat(now)); err != nil {
				return err
			}
			told, greeted = now.beat, true
		}
		if next <= now.index {
			last, err := s.send(ctx, conn, next, now.index)
			if err != nil {
				return err
			}
			next = last + 1
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// send sends one message with entries, or a snapshot, and returns the last index in it.
func (s *source) send(ctx context.Context, conn downstream, from, to uint64) (uint64, error) {
	msg, last, err := s.read(from, to)
	if errors.Is(err, errCompact) {
		return s.sendSnapshot(ctx, conn)
	}
	if err == nil {
		err = conn.say(msg)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return last, err
}

// admit takes a follower in, or says why not and who may.
func (s *source) admit(first *peerpb.FollowUp, end context.CancelCauseFunc) (*child, *peerpb.FollowRefused) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := first.GetNode()
	no := func(try []string, format string, args ...any) (*child, *peerpb.FollowRefused) {
		return nil, &peerpb.FollowRefused{Why: fmt.Sprintf(format, args...), Try: try}
	}
	switch {
	case s.logs == nil || !s.now.attached:
		return no(nil, "node %s hears no voter itself", s.self)
	case slices.Contains(s.now.path, id):
		return no(nil, "node %s follows %s", s.self, id)
	case first.GetIndex() > s.now.index:
		return no(nil, "node %s is at index %d itself", s.self, s.now.index)
	case s.children[id] == nil && len(s.children) >= s.most():
		return no(s.others(id), "node %s serves as many as it may", s.self)
	}
	if was := s.children[id]; was != nil {
		was.end(errReplaced)
	}
	c := &child{id: id, room: first.GetRoom(), end: end}
	s.children[id] = c
	s.tellRoom()
	return c, nil
}

// agrees says whether an entry is in the log as the follower has it.
func (s *source) agrees(index, term uint64) bool {
	logs, store := s.stores()
	if index == 0 || logs == nil {
		return true // the log tells whether it reaches back
	}
	var l raft.Log
	if err := logs.GetLog(index, &l); err == nil {
		return l.Term == term
	}
	list, err := store.List()
	return err == nil && len(list) > 0 && list[0].Index == index && list[0].Term == term
}

func (s *source) leave(c *child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.children[c.id] == c {
		delete(s.children, c.id)
		s.tellRoom()
	}
}

func (s *source) setRoom(c *child, room uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.room = room
	s.tellRoom()
}

// room is how many levels below this node the nearest free place is. The caller holds mu.
func (s *source) room() uint32 {
	if len(s.children) < s.most() {
		return 0
	}
	nearest := uint32(1 << 16)
	for _, c := range s.children {
		nearest = min(nearest, c.room)
	}
	return nearest + 1
}

func (s *source) tellRoom() {
	r := s.room()
	if r == s.told {
		return
	}
	s.told = r
	select {
	case <-s.rooms:
	default:
	}
	s.rooms <- r // nobody else sends
}

// currentRoom is room for callers.
func (s *source) currentRoom() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room()
}

// others names followers where there may be room, the nearest room first. The caller holds mu.
func (s *source) others(not string) []string {
	var all []*child
	for _, c := range s.children {
		if c.id != not {
			all = append(all, c)
		}
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] }) // so that not all go to one
	slices.SortStableFunc(all, func(a, b *child) int { return cmp.Compare(a.room, b.room) })
	var out []string
	for _, c := range all[:min(len(all), maxTry)] {
		out = append(out, c.id)
	}
	return out
}

// shed sends one follower away if there are more than there may be: a voter that leads now serves fewer.
func (s *source) shed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.children) <= s.most() {
		return
	}
	for _, c := range s.children {
		c.end(errShed)
		return
	}
}

// sayAlive tells a follower that nothing is sent but that this node lives, and what it knows of the leader.
func (s *source) sayAlive(conn downstream) error {
	now, _ := s.current()
	return conn.say(s.beat(now))
}

func (s *source) beat(p pulse) *peerpb.FollowDown {
	age := int64(-1)
	if !p.contact.IsZero() {
		age = max(int64(time.Since(p.contact)), 0)
	}
	return &peerpb.FollowDown{What: &peerpb.FollowDown_Beat{Beat: &peerpb.FollowBeat{
		Leader: p.leader, Term: p.term, Commit: p.commit, Age: age, Path: p.path, Attached: p.attached, Index: p.index,
	}}}
}

// read gives a message with entries from one index to another at most, and the last in it. errCompact means that
// the log begins later.
func (s *source) read(from, to uint64) (*peerpb.FollowDown, uint64, error) {
	logs, _ := s.stores()
	if logs == nil {
		return nil, 0, errNoStore
	}
	// Those that wait for what comes next share it; it is in memory. One that is behind reads alone, from
	// the disk, and holds up nobody.
	shared := to-from < batchEntries
	if shared {
		s.batch.mu.Lock()
		defer s.batch.mu.Unlock()
		if s.batch.msg != nil && s.batch.from == from && s.batch.last <= to {
			return s.batch.msg, s.batch.last, nil
		}
	}
	var entries []*peerpb.FollowEntry
	size := 0
	for i := from; i <= to && len(entries) < batchEntries && (size < batchBytes || len(entries) == 0); i++ {
		var l raft.Log
		err := logs.GetLog(i, &l)
		if errors.Is(err, raft.ErrLogNotFound) || from == 0 {
			if i > from {
				break
			}
			return nil, 0, errCompact
		}
		if err != nil {
			return nil, 0, err
		}
		if len(entries) > 0 && size+len(l.Data) > batchBytes {
			break
		}
		size += len(l.Data)
		entries = append(entries, encodeEntry(&l))
	}
	last := entries[len(entries)-1].GetIndex()
	msg := &peerpb.FollowDown{What: &peerpb.FollowDown_Entries{Entries: &peerpb.FollowEntries{Entries: entries}}}
	if shared {
		s.batch.from, s.batch.last, s.batch.msg = from, last, msg
	}
	return msg, last, nil
}

func encodeEntry(l *raft.Log) *peerpb.FollowEntry {
	return &peerpb.FollowEntry{
		Index: l.Index, Term: l.Term, Type: uint32(l.Type), Data: l.Data, Seal: seal(l), AppendedUnixNano: encodeTime(l.AppendedAt),
	}
}

// decodeEntry checks the seal.
func decodeEntry(m *peerpb.FollowEntry) (*raft.Log, error) {
	l := &raft.Log{
		Index: m.GetIndex(), Term: m.GetTerm(), Type: raft.LogType(m.GetType()), Data: m.GetData(), //nolint:gosec // sealed
		AppendedAt: decodeTime(m.GetAppendedUnixNano()),
	}
	if want := seal(l); string(want) != string(m.GetSeal()) {
		return nil, fmt.Errorf("entry %d came with the checksum %x, want %x", l.Index, m.GetSeal(), want)
	}
	return l, nil
}

// sendSnapshot sends the newest snapshot and returns its index.
func (s *source) sendSnapshot(ctx context.Context, conn downstream) (uint64, error) {
	for waiting := true; waiting; {
		select {
		case s.snaps <- struct{}{}:
			defer func() { <-s.snaps }()
			waiting = false
		case <-time.After(s.every):
			if err := s.sayAlive(conn); err != nil {
				return 0, err
			}
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	_, store := s.stores()
	if store == nil {
		return 0, errNoStore
	}
	list, err := store.List()
	if err != nil {
		return 0, err
	}
	if len(list) == 0 {
		return 0, fmt.Errorf("%w, and there is no snapshot", errCompact)
	}
	meta, rc, err := store.Open(list[0].ID)
	if err != nil {
		return 0, err
	}
	defer rc.Close()
	if err := conn.say(&peerpb.FollowDown{What: &peerpb.FollowDown_Snapshot{Snapshot: &peerpb.FollowSnapshot{
		Index: meta.Index, Term: meta.Term, Configuration: raft.EncodeConfiguration(meta.Configuration),
		ConfigurationIndex: meta.ConfigurationIndex, Size: uint64(max(meta.Size, 0)),
	}}}); err != nil {
		return 0, err
	}
	told := time.Now()
	for buf, left := make([]byte, chunkBytes), meta.Size; left > 0; {
		n, err := io.ReadFull(rc, buf[:min(left, chunkBytes)])
		if err != nil {
			return 0, fmt.Errorf("read snapshot %s: %w", meta.ID, err)
		}
		left -= int64(n)
		if err := conn.say(&peerpb.FollowDown{What: &peerpb.FollowDown_Chunk{Chunk: buf[:n:n]}}); err != nil {
			return 0, err
		}
		if time.Since(told) > s.every {
			if err := s.sayAlive(conn); err != nil {
				return 0, err
			}
			told = time.Now()
		}
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
	}
	return meta.Index, nil
}
