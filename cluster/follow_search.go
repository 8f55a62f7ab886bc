package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
)

const (
	// openTime is how long a peer may take to admit or refuse a follower.
	openTime = time.Second
	// maxAsked bounds how many peers are asked in one search.
	maxAsked = 32
	// framesAhead is how many messages of a source are read before they are taken.
	framesAhead = 4
)

// link is a stream from a source that has admitted this node.
type link struct {
	id     string
	conn   upstream
	cancel context.CancelFunc
	first  *peerpb.FollowBeat
	frames chan *peerpb.FollowDown // closed when the stream has ended, err is set then
	err    error
	done   chan struct{}
	once   sync.Once
	reader sync.WaitGroup
}

func (l *link) read() {
	defer close(l.frames)
	for {
		m, err := l.conn.next()
		if err != nil {
			l.err = err
			return
		}
		select {
		case l.frames <- m:
		case <-l.done:
			l.err = context.Canceled
			return
		}
	}
}

// close ends the stream and waits for its reader.
func (l *link) close() {
	l.once.Do(func() { close(l.done) })
	l.cancel()
	l.conn.close()
	l.reader.Wait()
}

// finder looks for sources.
type finder struct {
	self  string
	rpc   peers
	fresh time.Duration // a source that heard the leader within is preferred
}

var errNoSource = errors.New("no peer can be followed")

// find asks peers, in order, until one admits this node that accept takes; those that a full one names come next.
// A source without a fresh word of the leader is taken only if there is none with one, and this node has none at all;
// not is whom not to ask: to call the present source again would end its stream.
func (f *finder) find(ctx context.Context, at position, room uint32, ask []string, not string, accept func(*peerpb.FollowBeat) bool) (*link, error) {
	queue, seen, last := slices.Clone(ask), map[string]bool{f.self: true, not: true}, errNoSource
	var fallback *link
	defer func() {
		if fallback != nil {
			fallback.close()
		}
	}()
	for asked := 0; len(queue) > 0 && asked < maxAsked; {
		id := queue[0]
		queue = queue[1:]
		if seen[id] {
			continue
		}
		seen[id] = true
		asked++
		l, refused, err := f.open(ctx, id, &peerpb.FollowUp{Node: f.self, Index: at.index, Term: at.term, Room: room})
		switch {
		case ctx.Err() != nil:
			if l != nil {
				l.close()
			}
			return nil, ctx.Err()
		case err != nil:
			last = err
		case refused != nil:
			last = fmt.Errorf("%w: %s", errNoSource, refused.GetWhy())
			queue = append(slices.Clone(refused.GetTry()), queue...)
		case !l.first.GetAttached() || slices.Contains(l.first.GetPath(), f.self) || !accept(l.first):
			l.close()
		case freshBeat(l.first, f.fresh):
			return l, nil
		case not == "" && fallback == nil:
			fallback = l
		default:
			l.close()
		}
	}
	if fallback != nil {
		l := fallback
		fallback = nil
		return l, nil
	}
	return nil, last
}

func freshBeat(b *peerpb.FollowBeat, limit time.Duration) bool {
	return b.GetLeader() != "" && b.GetAge() >= 0 && time.Duration(b.GetAge()) < limit
}

// open asks one peer.
func (f *finder) open(ctx context.Context, id string, first *peerpb.FollowUp) (*link, *peerpb.FollowRefused, error) {
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(openTime, cancel)
	conn, err := f.rpc.follow(ctx, id, first)
	if err != nil {
		late.Stop()
		cancel()
		return nil, nil, err
	}
	m, err := conn.next()
	if !late.Stop() && err == nil {
		err = context.DeadlineExceeded
	}
	l := &link{id: id, conn: conn, cancel: cancel, frames: make(chan *peerpb.FollowDown, framesAhead), done: make(chan struct{})}
	if err == nil && m.GetRefused() == nil && m.GetBeat() == nil {
		err = fmt.Errorf("peer %s began with %T", id, m.GetWhat())
	}
	if err != nil || m.GetRefused() != nil {
		l.close()
		return nil, m.GetRefused(), err
	}
	l.first = m.GetBeat()
	l.reader.Go(l.read)
	return l, nil, nil
}

// shuffled returns ids in a random order: followers that look for a source at the same time spread.
func shuffled(ids []string) []string {
	out := slices.Clone(ids)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}
