package httpapi

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/palisade/palisade/fsm"
)

// Refused logins go into the audit, many in one record, so that whoever tries them can't fill it: the first at
// once, then one record each 10 s, and less often the longer it goes on.
const (
	gatherRefusals = time.Second
	firstPause     = 10 * time.Second
	longestPause   = 5 * time.Minute
)

// refusals gathers logins that were refused. It is safe for concurrent use; its memory is bounded.
type refusals struct {
	mu     sync.Mutex
	total  uint64
	counts map[fsm.RefusedLogin]uint64 // with a Count of 0
	some   chan struct{}               // has room for one: there is something to tell
}

func newRefusals() *refusals {
	return &refusals{counts: map[fsm.RefusedLogin]uint64{}, some: make(chan struct{}, 1)}
}

func (r *refusals) note(user, from string) {
	const most = 1024
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total++
	k := fsm.RefusedLogin{User: user, From: from[:min(len(from), fsm.MaxAccessNameBytes)]}
	if _, known := r.counts[k]; known || len(r.counts) < most {
		r.counts[k]++
	}
	select {
	case r.some <- struct{}{}:
	default:
	}
}

// take returns what was gathered, those that were tried most first, and forgets it.
func (r *refusals) take() (op fsm.RefusedLogins) {
	r.mu.Lock()
	defer r.mu.Unlock()
	op.Total = r.total
	for k, n := range r.counts {
		k.Count = n
		op.Logins = append(op.Logins, k)
	}
	slices.SortFunc(op.Logins, func(a, b fsm.RefusedLogin) int {
		return cmp.Or(-cmp.Compare(a.Count, b.Count), cmp.Compare(a.From, b.From), cmp.Compare(a.User, b.User))
	})
	op.Logins = op.Logins[:min(len(op.Logins), fsm.MaxRefusedLogins)]
	r.total = 0
	clear(r.counts)
	return op
}

// putBack is for what could not be told.
func (r *refusals) putBack(op fsm.RefusedLogins) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total += op.Total
	for _, l := range op.Logins {
		n := l.Count
		l.Count = 0
		r.counts[l] += n
	}
}

// tellRefusals puts refused logins into the audit until ctx ends.
func (s *Server) tellRefusals(ctx context.Context) {
	defer func() { // at a clean end nothing is left untold
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		s.tell(last)
	}()
	pause := firstPause
	for {
		quiet := time.NewTimer(2 * longestPause)
		select {
		case <-ctx.Done():
			quiet.Stop()
			return
		case <-quiet.C:
			pause = firstPause
			continue
		case <-s.refusals.some:
			quiet.Stop()
		}
		if !sleepFor(ctx, gatherRefusals) {
			return
		}
		s.tell(ctx)
		if !sleepFor(ctx, pause) {
			return
		}
		select {
		case <-s.refusals.some: // it goes on
			pause = min(2*pause, longestPause)
			s.refusals.some <- struct{}{}
		default:
			pause = firstPause
		}
	}
}

// tell writes one record.
func (s *Server) tell(ctx context.Context) {
	op := s.refusals.take()
	if op.Total == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.ProposeTimeout)
	defer cancel()
	res, err := s.opts.Backend.Propose(ctx, fsm.Command{Actor: "node:" + s.opts.Backend.Status().Node, Key: newKey(), Op: op})
	switch {
	case err != nil:
		s.refusals.putBack(op)
		s.log.Warn("refused logins are not yet in the audit", "logins", op.Total, "error", err)
	case res.Err != nil:
		s.log.Error("refused logins could not be put into the audit", "logins", op.Total, "error", res.Err)
	}
}

func sleepFor(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
