package cluster

import (
	"context"
	"sync"
)

// convoy lets the leader's proposals set out together. While fewer than max groups are on the way, one
// sets out at once and alone; what comes in meanwhile waits and shares the next group, and with it the
// disk writes and messages of one round of raft. So a lone writer waits for nobody, and the cost of a
// round does not grow with the number of writers.
type convoy struct {
	max int // groups on the way at once

	mu      sync.Mutex
	groups  int
	waiting *group
}

// group is proposals that set out at the same time.
type group struct {
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
		g := &group{left: 1, started: true}
		c.mu.Unlock()
		return g, nil
	}
	if c.waiting == nil {
		c.waiting = &group{set: make(chan struct{})}
	}
	g := c.waiting
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

// arrived is arrive for a caller that holds mu. When the last of a group has arrived, the next sets out.
func (c *convoy) arrived(g *group) {
	if g.left--; g.left > 0 {
		return
	}
	next := c.waiting
	c.waiting = nil
	if next == nil || next.left == 0 {
		c.groups--
		return
	}
	next.started = true
	close(next.set)
}
