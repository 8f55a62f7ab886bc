package cluster

import (
	"context"
	"sync"
	"time"
)

// convoy lets the leader's proposals set out together. While fewer than max groups are on the way, one
// sets out at once and alone; what comes in meanwhile waits and shares the next group, and with it the
// disk writes and messages of one round of raft. So a lone writer waits for nobody, and the cost of a
// round does not grow with the number of writers.
//
// After a large group has ended, the next waits a moment for those who have just got their answers and
// write again: a round costs every node a disk write and messages, which more of them then share.
type convoy struct {
	max   int           // groups on the way at once
	large int           // members of a group after which the next one waits; 0: it never does
	wait  time.Duration // how long

	mu      sync.Mutex
	groups  int
	waiting *group
}

// group is proposals that set out at the same time.
type group struct {
	size    int           // that have joined
	left    int           // that have not arrived
	set     chan struct{} // closed when it sets out
	started bool
}

// join waits until the caller may set out. The caller must call arrive with the group when its proposals
// have ended; on an error, which is ctx's, it has not joined.
func (c *convoy) join(ctx context.Context) (*group, error) {
	c.mu.Lock()
	if c.groups < c.max {
		c.groups++
		g := &group{size: 1, left: 1, started: true}
		c.mu.Unlock()
		return g, nil
	}
	if c.waiting == nil {
		c.waiting = &group{set: make(chan struct{})}
	}
	g := c.waiting
	g.size++
	g.left++
	c.mu.Unlock()
	select {
	case <-g.set:
		return g, nil
	case <-ctx.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		if g.started {
			c.arrived(g)
		} else {
			g.left--
		}
		return nil, ctx.Err()
	}
}

// arrive ends the caller's part in its group.
func (c *convoy) arrive(g *group) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.arrived(g)
}

// arrived is arrive for a caller that holds mu. When the last of a group has arrived, the next sets out,
// or will soon.
func (c *convoy) arrived(g *group) {
	if g.left--; g.left > 0 {
		return
	}
	if c.large == 0 || g.size < c.large {
		c.next()
		return
	}
	time.AfterFunc(c.wait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.next()
	})
}

// next lets those who wait set out, in the place of a group that has ended. The caller holds mu.
func (c *convoy) next() {
	next := c.waiting
	c.waiting = nil
	if next == nil || next.left == 0 {
		c.groups--
		return
	}
	next.started = true
	close(next.set)
}
