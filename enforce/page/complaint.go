package page

import (
	"net/netip"
	"sync"
	"time"
)

const (
	complainEvery = time.Minute
	maxComplaints = 1000 // servers remembered; more, and all are forgotten
)

// complaints lets one warning about each server through in a while: every visitor of a redirected target may
// cause one.
type complaints struct {
	mu   sync.Mutex
	last map[netip.AddrPort]*complaint
}

type complaint struct {
	at   time.Time
	more int // since then
}

// due says whether to complain about a server now, and how often it was not done since the last time.
func (c *complaints) due(to netip.AddrPort, now time.Time) (due bool, more int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.last[to]
	if last != nil && now.Sub(last.at) < complainEvery {
		last.more++
		return false, 0
	}
	if c.last == nil || len(c.last) >= maxComplaints {
		c.last = map[netip.AddrPort]*complaint{}
	}
	c.last[to] = &complaint{at: now}
	if last != nil {
		more = last.more
	}
	return true, more
}
