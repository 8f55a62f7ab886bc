package login

import (
	"container/list"
	"net/netip"
	"sync"
	"time"
)

// Limit is how often something may be tried: Burst times at once, and once more after each Every.
type Limit struct {
	Burst int
	Every time.Duration
}

// maxCounted bounds the memory of a Limiter, some 200 bytes each.
const maxCounted = 16_384

// Limiter counts tries by what they have in common. It is safe for concurrent use. Its memory is bounded: what was not
// tried for the longest time is forgotten first. Whoever commands more sources than it remembers is not held back by it;
// the cost of the tries is (see Passwords).
type Limiter struct {
	now func() time.Time

	mu     sync.Mutex
	counts map[string]*list.Element
	order  *list.List // of *count; the one tried last is in front
}

// count is a bucket that fills by itself.
type count struct {
	key  string
	full time.Time // when all tries are there again
}

// NewLimiter returns a limiter. Now tells the time.
func NewLimiter(now func() time.Time) *Limiter {
	return &Limiter{now: now, counts: map[string]*list.Element{}, order: list.New()}
}

// Try takes one try of each key, or none and says how long it takes until there is one.
func (l *Limiter) Try(keys map[string]Limit) (wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for key, limit := range keys {
		if e, ok := l.counts[key]; ok {
			l.order.MoveToFront(e) // also if it is refused: whoever goes on trying is not forgotten
			c := e.Value.(*count)
			wait = max(wait, c.full.Sub(now)-time.Duration(limit.Burst-1)*limit.Every)
		}
	}
	if wait > 0 {
		return wait
	}
	for key, limit := range keys {
		c := l.at(key)
		if c.full.Before(now) {
			c.full = now
		}
		c.full = c.full.Add(limit.Every)
	}
	return 0
}

// Return gives back the tries that Try took: they were good.
func (l *Limiter) Return(keys map[string]Limit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, limit := range keys {
		if e, ok := l.counts[key]; ok {
			c := e.Value.(*count)
			c.full = c.full.Add(-limit.Every)
		}
	}
}

// at returns the count of a key, in front of all others.
func (l *Limiter) at(key string) *count {
	if e, ok := l.counts[key]; ok {
		l.order.MoveToFront(e)
		return e.Value.(*count)
	}
	if l.order.Len() >= maxCounted {
		oldest := l.order.Back()
		delete(l.counts, oldest.Value.(*count).key)
		l.order.Remove(oldest)
	}
	c := &count{key: key}
	l.counts[key] = l.order.PushFront(c)
	return c
}

// Source is what an address counts as: itself, or its /64 network, of which one customer has all addresses.
func Source(addr string) string {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return addr
	}
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a.String()
	}
	p, _ := a.Prefix(64) // a is IPv6
	return p.String()
}
