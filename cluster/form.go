package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/cluster/internal/peerpb"
)

const (
	helloTime  = 2 * time.Second
	sayAgain   = 5 * time.Second
	catchUpTry = 50 * time.Millisecond
)

// start is how a node begins its life with raft.
type start struct {
	gated  bool // don't vote before the leader has brought this node up to date
	follow bool // take the log as a stream instead
	chosen bool // it was a follower until now
}

// form decides how to start. No node forms a fleet by starting: the store of the first one was born formed
// (see Form), and an empty store is that of a node that was just admitted, or one that was lost. Either way the node
// begins as a follower. If the log that it takes says that it is a voter, it does not vote until a leader has brought
// it up to date.
func (c *Cluster) form(d *disk) (start, error) {
	last, err := d.lastIndex()
	if err != nil {
		return start{}, err
	}
	hasState, err := raft.HasExistingState(d.logs, d.stable, d.snaps)
	if err != nil {
		return start{}, err
	}
	rejoin, err := d.mustRejoin()
	if err != nil {
		return start{}, err
	}
	follow, err := d.follows()
	if err != nil {
		return start{}, err
	}
	follow = follow || !hasState
	switch {
	case rejoin:
	case !hasState:
		c.log.Info("the store is empty: this node follows, and does not vote until a leader has brought it up to date", "known_index", c.knownIndex)
	case last < c.knownIndex:
		c.log.Warn("the store is older than what this node is known to have applied: it was rolled back; the node does not vote until it is up to date",
			"store_index", last, "known_index", c.knownIndex)
	default:
		return start{follow: follow}, nil
	}
	return start{gated: true, follow: follow}, d.setRejoin(true)
}

// birth writes the log that a new fleet begins with: this node as its only voter, then the commands. The
// store must be empty.
func birth(d *disk, id string, commands [][]byte) error {
	first := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(id), Address: raft.ServerAddress(id)}}}
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(id)
	_, trans := raft.NewInmemTransport(raft.ServerAddress(id)) // asked for nothing in this version of the log
	if err := raft.BootstrapCluster(conf, d.logs, d.stable, d.snaps, trans, first); err != nil {
		return fmt.Errorf("write the first entry of the log: %w", err)
	}
	entries := make([]*raft.Log, len(commands))
	for i, data := range commands {
		entries[i] = &raft.Log{Index: uint64(i) + 2, Term: 1, Type: raft.LogCommand, Data: data}
	}
	if err := d.logs.StoreLogs(entries); err != nil {
		return fmt.Errorf("write the first entries of the log: %w", err)
	}
	return d.claim(id)
}

// openGate lets a gated node vote once it certainly holds everything it may have acknowledged in its
// earlier life: everything in the log of a leader that proves, after this node's start, that it leads.
func (c *Cluster) openGate(ctx context.Context, r *running) {
	said := time.Now()
	for r.tap.gated.Load() {
		if err := c.tryGate(ctx, r); err == nil {
			if err := r.disk.setRejoin(false); err != nil {
				return // the guard has ended the process
			}
			r.tap.gated.Store(false)
			c.log.Info("up to date with the leader: this node votes again", "index", r.raft.AppliedIndex())
			return
		} else if time.Since(said) >= sayAgain {
			said = time.Now()
			c.log.Info("not voting yet: this node must first be brought up to date by a leader, which the other voters elect", "state", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(catchUpTry):
		}
	}
}

func (c *Cluster) tryGate(ctx context.Context, r *running) error {
	leader := c.leader()
	if leader == "" || leader == c.id {
		return errNoLeader
	}
	call, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	resp, err := c.rpc.hello(call, leader, &peerpb.HelloRequest{Node: c.id, Verify: true})
	if err != nil {
		return err
	}
	if !resp.GetLeading() {
		return errors.New("the peer taken for the leader does not lead")
	}
	for r.raft.AppliedIndex() < resp.GetLastIndex() {
		if c.leader() != leader || r.raft.CurrentTerm() != resp.GetTerm() {
			return errors.New("the leader changed")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(catchUpTry):
		}
	}
	return nil
}

// onHello tells a peer what this node's store holds and whom it follows. It works from the opening of
// the store on, before raft runs.
func (c *Cluster) onHello(ctx context.Context, from string, req *peerpb.HelloRequest) (*peerpb.HelloResponse, error) {
	c.hearMembers(from, req.GetMembership())
	resp := &peerpb.HelloResponse{
		Node: c.id, Version: c.version, Sealed: c.identity != nil && c.identity.SealKey() != nil,
		Membership: c.tellMembers(), CaughtUp: c.Status().CaughtUp, Room: c.source.currentRoom(),
	}
	if c.keyring != nil {
		_, _, resp.KeysRevision = c.keyring.standing()
	}
	if f := c.follows.Load(); f != nil {
		k := f.know.now()
		resp.Term, resp.Leader, resp.LastIndex, resp.Follows = k.term, c.leader(), f.log.last.Load().index, true
		return resp, nil
	}
	r := c.running.Load()
	if r == nil {
		d := c.opened.Load()
		if d == nil {
			return nil, errors.New("the store is not open yet")
		}
		last, err := d.lastIndex()
		if err != nil {
			return nil, err
		}
		resp.LastIndex, resp.Gated = last, true
		return resp, nil
	}
	resp.Term = r.raft.CurrentTerm()
	resp.Leader = c.leader()
	resp.Leading = r.throne.current() != nil
	if resp.Leading && req.GetVerify() {
		resp.Leading = c.verifyLeader(ctx, r) == nil
	}
	// Read after the proof: everything acknowledged before it is in.
	resp.LastIndex = r.raft.LastIndex()
	resp.Gated = r.tap.gated.Load()
	return resp, nil
}
