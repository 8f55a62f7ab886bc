package cluster

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// errNotVoting refuses a vote that this node must not ask for or give yet.
var errNotVoting = errors.New("this node may lack what it once acknowledged and does not vote before the leader has brought it up to date")

// tap stands between raft and its transport. It changes nothing of what raft says, except that it
// keeps a gated node out of elections. It learns: in which term this node leads and which headers it
// sends (for the nudge), what the leader is known to have committed (for CaughtUp), and who was heard
// when.
type tap struct {
	inner raft.Transport
	ears  *ears
	gated atomic.Bool
	raft  atomic.Pointer[raft.Raft] // set once raft runs

	out  chan raft.RPC
	done chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	mu   sync.Mutex
	sent map[raft.ServerID]*template
	gone map[raft.ServerID]bool      // followers that raft has stopped to replicate to
	took map[raft.ServerID]time.Time // when a follower last answered what this node said as the leader

	contact atomic.Int64 // unix nanoseconds of the last accepted word of a leader; 0 if never
	feed    leaderFeed

	// installing counts snapshots on their way to followers.
	installing atomic.Int32

	silence time.Duration // after which a leader that is heard again may have committed anything
}

// template is the last AppendEntries that raft itself sent to a follower, without its entries.
type template struct {
	target raft.ServerAddress
	header raft.RPCHeader
	term   uint64
	commit uint64 // highest LeaderCommitIndex sent in the term
}

// leaderFeed is what a follower knows of the leader's commits.
type leaderFeed struct {
	mu     sync.Mutex
	term   uint64 // of the leader
	start  uint64 // an index known to be of term, 0 if none: the leader's own entries begin at or before it
	commit uint64 // what the leader has committed, proven to include an entry of its own term; 0 if not
}

var (
	_ raft.Transport   = (*tap)(nil)
	_ raft.WithPreVote = (*tap)(nil)
	_ raft.WithClose   = (*tap)(nil)
)

func newTap(inner raft.Transport, ears *ears, silence time.Duration) *tap {
	t := &tap{
		inner: inner, ears: ears, silence: silence,
		out: make(chan raft.RPC), done: make(chan struct{}),
		sent: map[raft.ServerID]*template{}, gone: map[raft.ServerID]bool{}, took: map[raft.ServerID]time.Time{},
	}
	t.wg.Go(t.relay)
	return t
}

// stop ends the relay; raft must have been shut down.
func (t *tap) stop() {
	t.once.Do(func() { close(t.done) })
	t.wg.Wait()
}

func (t *tap) relay() {
	in := t.inner.Consumer()
	for {
		select {
		case <-t.done:
			return
		case rpc := <-in:
			if rpc, ok := t.incoming(rpc); ok {
				select {
				case t.out <- rpc:
				case <-t.done:
					return
				}
			}
		}
	}
}

// incoming looks at an RPC on its way to raft; false means that it was answered here.
func (t *tap) incoming(rpc raft.RPC) (raft.RPC, bool) {
	switch req := rpc.Command.(type) {
	case *raft.RequestVoteRequest:
		if t.gated.Load() {
			rpc.Respond(&raft.RequestVoteResponse{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}, nil)
			return rpc, false
		}
	case *raft.RequestPreVoteRequest:
		if t.gated.Load() {
			rpc.Respond(&raft.RequestPreVoteResponse{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}, nil)
			return rpc, false
		}
	case *raft.TimeoutNowRequest:
		if t.gated.Load() {
			rpc.Respond(nil, errNotVoting)
			return rpc, false
		}
	case *raft.AppendEntriesRequest:
		answer, ch := rpc.RespChan, make(chan raft.RPCResponse, 1)
		rpc.RespChan = ch
		t.wg.Go(func() {
			select {
			case resp := <-ch:
				t.accepted(req, resp)
				answer <- resp
			case <-t.done:
			}
		})
	}
	return rpc, true
}

// accepted notes an AppendEntries of a leader that raft took.
func (t *tap) accepted(req *raft.AppendEntriesRequest, resp raft.RPCResponse) {
	r, ok := resp.Response.(*raft.AppendEntriesResponse)
	if !ok || resp.Error != nil || r.Term > req.Term {
		return
	}
	t.ears.hear(string(req.ID))
	if !r.Success {
		return
	}
	now := time.Now().UnixNano()
	if last := t.contact.Swap(now); last != 0 && time.Duration(now-last) > t.silence {
		t.feed.forget()
	}
	t.feed.note(req)
}

// forget gives up what is known, until the leader says it anew: while nothing was heard it has committed more,
// and a heartbeat, the first thing that is heard again, does not tell.
func (f *leaderFeed) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commit = 0
}

func (f *leaderFeed) note(req *raft.AppendEntriesRequest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if req.Term > f.term {
		f.term, f.start, f.commit = req.Term, 0, 0
	}
	if req.Term < f.term {
		return
	}
	own := func(index, term uint64) {
		if term == f.term && index > 0 && (f.start == 0 || index < f.start) {
			f.start = index
		}
	}
	own(req.PrevLogEntry, req.PrevLogTerm)
	for _, e := range req.Entries {
		own(e.Index, e.Term)
	}
	// Before its first own commit a leader's commit index is what it knew as a follower, possibly
	// nothing. From then on it is at least at its own first entry.
	if f.start > 0 && req.LeaderCommitIndex >= f.start {
		f.commit = max(f.commit, req.LeaderCommitIndex)
	}
}

// committed returns what the current leader is known to have committed; false if nothing is proven
// since it took over.
func (f *leaderFeed) committed() (uint64, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.commit, f.commit > 0
}

// lastContact is when a leader was last heard, zero if never.
func (t *tap) lastContact() time.Time {
	if ns := t.contact.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}

func (t *tap) Consumer() <-chan raft.RPC     { return t.out }
func (t *tap) LocalAddr() raft.ServerAddress { return t.inner.LocalAddr() }
func (t *tap) EncodePeer(id raft.ServerID, a raft.ServerAddress) []byte {
	return t.inner.EncodePeer(id, a)
}
func (t *tap) DecodePeer(b []byte) raft.ServerAddress { return t.inner.DecodePeer(b) }

// SetHeartbeatHandler keeps raft's fast path for heartbeats, which passes the main loop by.
func (t *tap) SetHeartbeatHandler(cb func(raft.RPC)) {
	if cb == nil {
		t.inner.SetHeartbeatHandler(nil)
		return
	}
	t.inner.SetHeartbeatHandler(func(rpc raft.RPC) {
		req, ok := rpc.Command.(*raft.AppendEntriesRequest)
		if !ok {
			cb(rpc)
			return
		}
		answer, ch := rpc.RespChan, make(chan raft.RPCResponse, 1)
		rpc.RespChan = ch
		cb(rpc) // has responded when it returns, unless raft is shut down
		select {
		case resp := <-ch:
			t.accepted(req, resp)
			answer <- resp
		default:
			answer <- raft.RPCResponse{Error: raft.ErrRaftShutdown}
		}
	})
}

func (t *tap) note(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sent[id]
	if s == nil || s.term < req.Term || s.target != target {
		s = &template{target: target, header: req.RPCHeader, term: req.Term}
		t.sent[id] = s
	}
	if s.term == req.Term {
		s.commit = max(s.commit, req.LeaderCommitIndex)
	}
}

// template returns what raft sent to a follower as leader of the term; false if it sent nothing.
func (t *tap) template(id raft.ServerID, term uint64) (template, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sent[id]
	if s == nil || s.term != term {
		return template{}, false
	}
	return *s, true
}

// led are the followers that raft has sent entries to as leader of the term.
func (t *tap) led(term uint64) []raft.ServerID {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ids []raft.ServerID
	for id, s := range t.sent {
		if s.term == term && !t.gone[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// remove notes that raft does not replicate to a follower any more: calls that are held for it end.
func (t *tap) remove(id raft.ServerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gone[id] = true
	delete(t.sent, id)
}

// restore notes that raft replicates to a follower (again).
func (t *tap) restore(id raft.ServerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.gone, id)
}

func (t *tap) removed(id raft.ServerID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.gone[id]
}

func (t *tap) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	t.note(id, target, req)
	err := t.inner.AppendEntries(id, target, req, resp)
	heartbeat := req.PrevLogEntry == 0 && len(req.Entries) == 0 && req.LeaderCommitIndex == 0
	if err != nil && !heartbeat {
		err = t.hold(err, id, target, req, resp)
	}
	if err == nil {
		t.ears.hear(string(id))
		t.mu.Lock()
		t.took[id] = time.Now()
		t.mu.Unlock()
	}
	return err
}

// answered is when a follower last answered, zero if it never did. That it is heard in another way, by gossip above all,
// says nothing of whether it can vote.
func (t *tap) answered(id raft.ServerID) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.took[id]
}

// holdPoll is how often a held call looks whether its follower is back.
const holdPoll = 100 * time.Millisecond

// hold keeps a call to a follower that is away until raft's heartbeats reach it again, and then makes
// it again. If raft saw the failures it would count them and wait up to ten seconds before it tries a
// follower that came back; its heartbeats, which go on beside this, wait a fraction of their timeout.
// A held call ends with the leadership.
//
// It says nothing of what is committed: what it said when it was made is old, and its follower would take
// itself for caught up with a leader that has committed more since.
func (t *tap) hold(err error, id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	again := *req
	again.LeaderCommitIndex = 0
	for failed := time.Now(); t.awaitBack(id, failed, req.Term); failed = time.Now() {
		if err = t.inner.AppendEntries(id, target, &again, resp); err == nil {
			return nil
		}
	}
	return err
}

// awaitBack waits until a follower was heard after a time; false once this node does not lead in the
// term any more, or raft has given the follower up.
func (t *tap) awaitBack(id raft.ServerID, after time.Time, term uint64) bool {
	poll := time.NewTicker(holdPoll)
	defer poll.Stop()
	for !t.ears.last(string(id)).After(after) {
		select {
		case <-t.done:
			return false
		case <-poll.C:
		}
		if r := t.raft.Load(); r == nil || r.State() != raft.Leader || r.CurrentTerm() != term || t.removed(id) {
			return false
		}
	}
	return true
}

func (t *tap) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.inner.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	return &tapPipeline{AppendPipeline: p, tap: t, id: id, target: target}, nil
}

type tapPipeline struct {
	raft.AppendPipeline
	tap    *tap
	id     raft.ServerID
	target raft.ServerAddress
}

func (p *tapPipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	p.tap.note(p.id, p.target, req)
	return p.AppendPipeline.AppendEntries(req, resp)
}

func (t *tap) RequestVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if t.gated.Load() {
		return errNotVoting
	}
	return t.inner.RequestVote(id, target, req, resp)
}

func (t *tap) RequestPreVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if t.gated.Load() {
		return errNotVoting
	}
	inner, ok := t.inner.(raft.WithPreVote)
	if !ok {
		return errors.New("the transport has no pre-vote")
	}
	return inner.RequestPreVote(id, target, req, resp)
}

func (t *tap) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if !t.awaitBack(id, time.Now().Add(-recently), req.Term) {
		return errors.New("leadership ended")
	}
	t.installing.Add(1)
	defer t.installing.Add(-1)
	return t.inner.InstallSnapshot(id, target, req, resp, data)
}

// recently is within what a follower that is there was heard, at raft's heartbeat of a tenth of a
// second.
const recently = time.Second

func (t *tap) TimeoutNow(id raft.ServerID, target raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.inner.TimeoutNow(id, target, req, resp)
}

// Close closes the transport. Raft calls it after its shutdown.
func (t *tap) Close() error {
	if c, ok := t.inner.(raft.WithClose); ok {
		return c.Close()
	}
	return nil
}
