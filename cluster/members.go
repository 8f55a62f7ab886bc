package cluster

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/palisade/palisade/fsm"
)

// followState keeps who belongs to the fleet, and what hangs on that, in step with the state, until ctx ends.
func (c *Cluster) followState(ctx context.Context) {
	for w := c.store.Watch(0); ; {
		view, events, err := w.Next(ctx)
		switch {
		case errors.Is(err, fsm.ErrCompacted):
		case err != nil:
			return
		case !concernMembers(events):
			continue
		}
		c.take(view)
		c.lookAtSelf(view)
	}
}

// lookAtSelf ends this node's part once its own state says that it was retired.
func (c *Cluster) lookAtSelf(view *fsm.View) {
	if n, known := view.Node(c.id); known && !n.Member() {
		c.finish(&RefusedError{Why: fmt.Sprintf("node %s was retired at %s: no node deals with it any more. %s", c.id, n.RetiredAt.Format(time.RFC3339), outside)})
	}
}

// outside is what a node is told that the fleet refuses.
const outside = "Its kernel goes on enforcing what it holds. To use this machine again, move the data directory away and join under a new id"

func concernMembers(events []fsm.Event) bool {
	for _, e := range events {
		if e.Node != nil || e.Fleet != nil {
			return true
		}
	}
	return false
}

// take puts what a View says of the members in force.
func (c *Cluster) take(view *fsm.View) {
	if r, ok := rosterOf(view); ok {
		c.enforce(r)
	}
}

// enforce puts a roster in force, unless a newer one is: who is no member any more is cut off, before anything waits for
// the disk.
func (c *Cluster) enforce(r Roster) {
	changed, err := c.dir.put(r)
	if err != nil {
		c.log.Error("who belongs to the fleet can't be read from the state", "err", err)
	}
	if !changed {
		return
	}
	c.ears.tidy()
	c.forward.tidy()
	c.world.tidy()
	if err := c.dir.save(); err != nil {
		c.log.Error("who belongs to the fleet can't be kept for the next start", "err", err)
	}
}

// rosterOf is who belongs to the fleet as a View has it; false before there is a fleet.
func rosterOf(view *fsm.View) (Roster, bool) {
	f, ok := view.Fleet()
	if !ok {
		return Roster{}, false
	}
	r := Roster{Epoch: f.Epoch, Index: view.Index()}
	for n := range view.Nodes() {
		if n.Serial == 0 {
			continue // was never admitted
		}
		r.Peers = append(r.Peers, Peer{
			ID: n.ID, Name: n.Name, Address: n.Address, Gossip: n.Gossip, Confirmed: n.Confirmed,
			KeyHash: hex.EncodeToString(n.KeyHash[:]), Generation: n.Generation, Retired: !n.Member(),
		})
	}
	for i := len(f.CAs) - 1; i >= 0; i-- { // the current one is the last
		r.Authorities = append(r.Authorities, f.CAs[i].Certificate)
	}
	return r, true
}

// mayRaft says whether a member may speak raft to this node, which means to write into its log. Who has proven that
// it holds the seal key may: only voters have it, and it can't be out of date. So may who is a voter by this node's own
// log. Everybody else is refused, a node that is not known yet included, unless this node has nothing to tell
// by: it has no seal key itself, and then is no voter.
func (c *Cluster) mayRaft(from string, proven bool) bool {
	return proven || c.identity.SealKey() == nil || c.voters()[from]
}
