package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/cluster/internal/peerpb"
)

const (
	helloTime  = 2 * time.Second
	askAgain   = 500 * time.Millisecond
	sayAgain   = 5 * time.Second
	catchUpTry = 50 * time.Millisecond
)

// start is how a node begins its life with raft.
type start struct {
	bootstrap bool // write the configuration that all nodes of a new fleet write
	gated     bool // don't vote before the leader has brought this node up to date
}

// standing is what a store holds. A store with nothing but the bootstrap entry counts as new: nobody
// can have acknowledged anything to anyone.
func standing(last uint64) peerpb.Standing {
	switch last {
	case 0:
		return peerpb.Standing_STANDING_EMPTY
	case 1:
		return peerpb.Standing_STANDING_FRESH
	default:
		return peerpb.Standing_STANDING_FORMED
	}
}

// form decides how to start. A node with an empty store must find out whether the fleet is new or the
// store was lost: it asks its peers, and waits until it knows. It returns an error if ctx ends first,
// or if the answers contradict what this node is known to have applied.
func (c *Cluster) form(ctx context.Context, d *disk) (start, error) {
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
	if hasState && last < c.knownIndex && !rejoin {
		c.log.Warn("the store is older than what this node is known to have applied: it was rolled back; the node does not vote until it is up to date",
			"store_index", last, "known_index", c.knownIndex)
		rejoin = true
		if err := d.setRejoin(true); err != nil {
			return start{}, err
		}
	}
	if hasState || rejoin {
		return start{gated: rejoin}, nil
	}
	if !c.peers[c.id].Voter {
		return start{}, nil // a leader fills it; it has no vote to protect
	}
	return c.formEmpty(ctx, d)
}

// formEmpty is form for a voter with an empty store.
func (c *Cluster) formEmpty(ctx context.Context, d *disk) (start, error) {
	voters := 0
	for _, p := range c.peers {
		if p.Voter {
			voters++
		}
	}
	began, said := time.Now(), time.Time{}
	for {
		empty, formed, silent := c.askStanding(ctx)
		if formed != "" {
			c.log.Warn("the store is empty but the fleet exists: the leader will fill this node, and it does not vote until then", "formed_peer", formed)
			return start{gated: true}, d.setRejoin(true)
		}
		all := len(silent) == 0
		majority := empty+1 > voters/2
		if all || majority && time.Since(began) >= c.timing.FormGrace {
			if c.knownIndex > 0 {
				return start{}, fmt.Errorf("refused to form a new fleet: this node is known to have applied log index %d, but its store and those of its peers are empty", c.knownIndex)
			}
			c.log.Info("forming a new fleet", "peers", len(c.peers), "empty", empty+1, "silent", silent)
			return start{bootstrap: true}, nil
		}
		if time.Since(said) >= sayAgain {
			said = time.Now()
			c.log.Info("the store is empty: waiting for peers to tell whether the fleet is new", "silent", silent, "answered", empty, "needed", voters/2)
		}
		select {
		case <-ctx.Done():
			return start{}, ctx.Err()
		case <-time.After(askAgain):
		}
	}
}

// askStanding asks every other voter: how many have nothing, one that has something, who is silent.
func (c *Cluster) askStanding(ctx context.Context) (empty int, formed string, silent []string) {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for id, p := range c.peers {
		if id == c.id || !p.Voter {
			continue
		}
		wg.Go(func() {
			resp, err := c.rpc.hello(ctx, id, &peerpb.HelloRequest{Node: c.id})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				silent = append(silent, id)
			case resp.GetStanding() == peerpb.Standing_STANDING_FORMED:
				formed = id
			default:
				empty++
			}
		})
	}
	wg.Wait()
	slices.Sort(silent)
	return empty, formed, silent
}

// configuration is what every node of a new fleet writes as its first entry; equal everywhere.
func (c *Cluster) configuration() raft.Configuration {
	var conf raft.Configuration
	for id, p := range c.peers {
		s := raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(p.Address), Suffrage: raft.Nonvoter}
		if p.Voter {
			s.Suffrage = raft.Voter
		}
		conf.Servers = append(conf.Servers, s)
	}
	slices.SortFunc(conf.Servers, func(a, b raft.Server) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return conf
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
func (c *Cluster) onHello(ctx context.Context, req *peerpb.HelloRequest) (*peerpb.HelloResponse, error) {
	resp := &peerpb.HelloResponse{Node: c.id, Version: c.version}
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
		// A node that is known to have lost its store is part of a fleet, whatever it holds.
		rejoin, err := d.mustRejoin()
		if err != nil {
			return nil, err
		}
		resp.LastIndex, resp.Standing = last, standing(last)
		if rejoin {
			resp.Standing = peerpb.Standing_STANDING_FORMED
		}
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
	resp.Standing = standing(resp.GetLastIndex())
	if r.tap.gated.Load() {
		resp.Standing = peerpb.Standing_STANDING_FORMED
	}
	return resp, nil
}
