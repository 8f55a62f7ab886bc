package cluster

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/cluster/internal/peerpb"
)

// memPipe carries encoded messages one way, in order, each after the latency of the link.
type memPipe struct {
	ctx     context.Context //nolint:containedctx // a test's
	link    *memLink
	ch      chan memFrame
	latency time.Duration
}

type memFrame struct {
	at   time.Time // of its arrival
	data []byte
}

// memLink is what both directions of a stream share.
type memLink struct {
	ctx  context.Context //nolint:containedctx // a test's
	end  context.CancelFunc
	open func() bool // whether the two still reach each other
	sent *traffic
}

// traffic counts what a node sends on streams.
type traffic struct{ messages, bytes atomic.Int64 }

var errCut = errors.New("connection lost")

func (p *memPipe) write(m proto.Message) error {
	data, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if p.link.sent != nil {
		p.link.sent.messages.Add(1)
		p.link.sent.bytes.Add(int64(len(data)) + 4)
	}
	select {
	case p.ch <- memFrame{time.Now().Add(p.latency), data}:
		return nil
	case <-p.ctx.Done():
		return errCut
	case <-time.After(takeTime):
		return errors.New("not taken")
	}
}

// read gets nothing while the two are cut; what was sent comes late, as over TCP.
func (p *memPipe) read(m proto.Message) error {
	var f memFrame
	select {
	case f = <-p.ch:
	case <-p.ctx.Done():
		return io.EOF
	}
	for wait := time.Until(f.at); wait > 0 || !p.link.open(); wait = 20 * time.Millisecond {
		select {
		case <-time.After(max(wait, 0)):
		case <-p.ctx.Done():
			return io.EOF
		}
		if p.link.open() {
			break
		}
	}
	return proto.Unmarshal(f.data, m)
}

type memUpstream struct{ up, down *memPipe }

func (s *memUpstream) say(m *peerpb.FollowUp) error { return s.up.write(m) }

func (s *memUpstream) next() (*peerpb.FollowDown, error) {
	m := &peerpb.FollowDown{}
	return m, s.down.read(m)
}

func (s *memUpstream) close() { s.up.link.end() }

type memDownstream struct{ up, down *memPipe }

func (s *memDownstream) say(m *peerpb.FollowDown) error { return s.down.write(m) }

func (s *memDownstream) next() (*peerpb.FollowUp, error) {
	m := &peerpb.FollowUp{}
	return m, s.up.read(m)
}

// measures is what a memNet counts, and how slow it is.
type measures struct {
	latency time.Duration // of a message one way, on streams
	counted sync.Map      // node id to *traffic, of what it sends on streams
	work    func(id string, f func() error) error
}

func (m *measures) traffic(id string) *traffic {
	t, _ := m.counted.LoadOrStore(id, &traffic{})
	return t.(*traffic) //nolint:forcetypeassert // nothing else is in it
}

// as runs what a node does for another, counted as its own work.
func (m *measures) as(id string, f func() error) error {
	if m.work == nil {
		return f()
	}
	return m.work(id, f)
}

// memLife ends the streams that a node serves with the node.
type memLife struct {
	gone    context.Context //nolint:containedctx // a test's
	die     context.CancelFunc
	serving sync.WaitGroup
}

func (l *memLife) begin() { l.gone, l.die = context.WithCancel(context.Background()) }

func (l *memLife) end() {
	l.die()
	l.serving.Wait()
}

// follow opens a stream over the memNet.
func (w *memWorld) follow(ctx context.Context, id string, first *peerpb.FollowUp) (upstream, error) {
	to := w.net.reach(w.id, id)
	if to == nil || to.c.opened.Load() == nil || to.gone.Err() != nil {
		return nil, errNotSent
	}
	ctx, end := context.WithCancel(ctx)
	link := &memLink{ctx: ctx, end: end, sent: w.net.traffic(id), open: func() bool {
		return w.net.reach(w.id, id) == to && w.net.reach(id, w.id) == w
	}}
	up := &memPipe{ctx: ctx, link: link, ch: make(chan memFrame, 4), latency: w.net.latency}
	down := &memPipe{ctx: ctx, link: link, ch: make(chan memFrame, 16), latency: w.net.latency}
	stop := context.AfterFunc(to.gone, end) //nolint:contextcheck // a node that dies resets its connections
	to.serving.Go(func() {
		defer stop()
		defer end()
		if !sleep(ctx, 2*w.net.latency) { // a round to open the connection
			return
		}
		_ = w.net.as(id, func() error { return to.c.onFollow(ctx, first, &memDownstream{up: up, down: down}) })
		<-time.After(w.net.latency + time.Millisecond) // the last message arrives
	})
	return &memUpstream{up: up, down: down}, nil
}

// lagTransport is raft's transport over links with a latency, and counts.
type lagTransport struct {
	*raft.InmemTransport
	net *memNet
	id  string
}

func (t *lagTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	const header = 100 // bytes, about
	size := int64(header)
	for _, l := range req.Entries {
		size += int64(len(l.Data)) + header/4
	}
	own, theirs := t.net.traffic(t.id), t.net.traffic(string(id))
	own.messages.Add(1)
	own.bytes.Add(size)
	time.Sleep(t.net.latency)
	err := t.InmemTransport.AppendEntries(id, target, req, resp)
	time.Sleep(t.net.latency)
	if err == nil {
		theirs.messages.Add(1)
		theirs.bytes.Add(header)
	}
	return err
}

// AppendEntriesPipeline makes raft call one after the other.
func (*lagTransport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// sleep waits, and says whether it could to the end. It does nothing for no time.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
