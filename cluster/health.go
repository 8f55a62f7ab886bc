package cluster

import "time"

// Health is how this node's part in the fleet does, beyond its Status.
type Health struct {
	// StoreSlowest is how long the slowest call to the store took of those under way and of the last minute, to
	// about a second. At Timing.StuckIO the process ends.
	StoreSlowest time.Duration
	// CommitStall is how long this node leads without being able to commit; 0 while it can, or does not
	// lead. At Timing.StuckLead the process ends.
	CommitStall time.Duration
	// Gossip is memberlist's own measure of how late this node is to answer: 0 is well, 8 the worst.
	Gossip int
}

// Health returns how this node does now. It never blocks on the network or the disk.
func (c *Cluster) Health() Health {
	var h Health
	if d := c.opened.Load(); d != nil {
		h.StoreSlowest = d.guard.slowest()
	}
	if r := c.running.Load(); r != nil {
		h.CommitStall = r.throne.stall()
	}
	if c.gossip != nil {
		h.Gossip = c.gossip.health()
	}
	return h
}

// Facts is what raft tells of itself, for people: indexes, terms, the configuration. Its keys are raft's own.
func (c *Cluster) Facts() map[string]string {
	r := c.running.Load()
	if r == nil {
		return map[string]string{"state": "raft does not run"}
	}
	return r.raft.Stats()
}
