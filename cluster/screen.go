package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/fsm"
)

// screen is what the leader does with commands before it appends anything, because the state machine can't: refused has
// the reason for each command, nil for what may go on, and screened has the commands with their secrets sealed. While a node's
// retirement is under way raft's members stay as they are, until release is called; it is always to be called. The error is
// that ctx ended, or that this leader can't seal.
func (c *Cluster) screen(ctx context.Context, r *running, cmds []fsm.Command) (screened []fsm.Command, refused []*fsm.Error, release func(), err error) {
	screened, refused, release = cmds, make([]*fsm.Error, len(cmds)), func() {}
	gone := map[string]bool{} // by the commands before
	for i, cmd := range cmds {
		ops := []fsm.Op{cmd.Op}
		if b, ok := cmd.Op.(fsm.Batch); ok {
			ops = b.Ops
		}
		for j, op := range ops {
			switch op := op.(type) {
			case fsm.FormFleet, fsm.BeginEpoch:
				refused[i] = &fsm.Error{Code: fsm.CodeConflict, Field: "op", Detail: "a fleet begins, and goes on from one node, on that node's disk only"}
			case fsm.RetireNode:
				if len(gone) == 0 {
					if release, err = r.holdMembers(ctx); err != nil {
						return nil, nil, func() {}, err
					}
				}
				gone[op.ID] = true
				if why := c.mayRetire(ctx, r, op.ID, gone); why != nil && refused[i] == nil {
					refused[i] = why
				}
			case fsm.DescribeList:
				sealed, why, err := c.sealSource(op)
				if err != nil {
					return nil, nil, release, err
				}
				refused[i] = cmp.Or(refused[i], why)
				if sealed.Source != op.Source {
					screened = withOp(screened, i, j, sealed)
				}
			}
		}
	}
	return screened, refused, release, nil
}

// withOp returns commands with op as the j-th op of the i-th; cmds stay as they are.
func withOp(cmds []fsm.Command, i, j int, op fsm.Op) []fsm.Command {
	cmds = slices.Clone(cmds)
	if b, ok := cmds[i].Op.(fsm.Batch); ok {
		b.Ops = slices.Clone(b.Ops)
		b.Ops[j] = op
		op = b
	}
	cmds[i].Op = op
	return cmds
}

// mayRetire refuses the retirement of a voter without which those that are left could commit nothing: it counts at
// once, before raft has taken the vote away, and what can't be committed can't be taken back.
func (c *Cluster) mayRetire(ctx context.Context, r *running, id string, gone map[string]bool) *fsm.Error {
	no := func(format string, args ...any) *fsm.Error {
		return &fsm.Error{Code: fsm.CodeConflict, Field: "id", Detail: fmt.Sprintf(format, args...)}
	}
	if id == c.id {
		return no("node %s leads the fleet: drain it, and retire it once another node leads", id)
	}
	voters, votes := 0, false
	var left []string
	for _, s := range r.servers() {
		is := string(s.ID)
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		votes = votes || is == id
		if n, ok := c.store.View().Node(is); (!ok || n.Member()) && !gone[is] {
			left = append(left, is)
		}
	}
	if !votes {
		return nil
	}
	if there := c.answering(ctx, left); there <= voters/2 {
		return no("node %s is one of %d voters, and of the others %d answer: without it nothing could be decided any more; drain it, and retire it once another node votes in its place (a fleet that has lost its quorum: palisade recover)", id, voters, there)
	}
	return nil
}

// answering asks nodes whether they are there, and counts those that answer and this one.
func (c *Cluster) answering(ctx context.Context, ids []string) int {
	return len(reached(ids, func(id string) error {
		if id == c.id {
			return nil
		}
		_, err := c.helloTo(ctx, id)
		return err
	}))
}

// holdMembers keeps raft's members as they are until release is called.
func (r *running) holdMembers(ctx context.Context) (release func(), err error) {
	select {
	case r.changing <- struct{}{}:
		return func() { <-r.changing }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
