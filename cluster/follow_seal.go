package cluster

import (
	"context"
	"time"
)

// forgetEvery is how often a follower that still has the seal key looks whether it may give it up.
const forgetEvery = 5 * time.Second

// forgetSeal deletes the seal key of a node that does not vote any more, until ctx ends: who takes its disk must not
// get the fleet's secrets. It waits until a majority of the voters says that it has the key. If the node is to
// vote again it is given the key again, after this has ended.
func (f *follower) forgetSeal(ctx context.Context) {
	if f.c.identity == nil {
		return // in tests without secrets
	}
	tick := time.NewTicker(forgetEvery)
	defer tick.Stop()
	for {
		if f.c.identity.SealKey() != nil && f.mayForget(ctx) {
			if err := f.c.identity.dropSeal(); err != nil {
				f.c.log.Error("this node does not vote, but its seal key could not be deleted", "err", err)
			} else {
				f.c.log.Info("this node does not vote: its seal key was deleted")
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// mayForget says whether this node is certain not to vote, and a majority of those that do has the seal key.
func (f *follower) mayForget(ctx context.Context) bool {
	follows := func() bool {
		k := f.know.now()
		is, known := f.c.members.has(f.c.id)
		return known && is == follows && k.covers(f.log.last.Load().index)
	}
	if !follows() {
		return false
	}
	voters := f.c.voterIDs()
	sealed := reached(voters, func(id string) error {
		resp, err := f.c.helloTo(ctx, id)
		if err == nil && !resp.GetSealed() {
			err = errNoSeal
		}
		return err
	})
	return len(sealed) > len(voters)/2 && follows() && ctx.Err() == nil
}
