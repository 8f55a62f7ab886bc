package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

const (
	rotateAgain = time.Second      // how soon the leader looks again who still keeps a rotation from its end
	rotateSay   = 30 * time.Second // how often it says who
)

// What can be rotated.
const (
	rotateCA     = "ca"
	rotateGossip = "gossip"
)

// RotateCA begins the rotation of the fleet's authority: a new one, certified by the present one, signs from now on.
// Nodes renew their certificates by themselves; the old authority goes when every member has one of the new (see
// fsm.View.AwaitingCA). It works on any node, and blocks until the rotation is begun or ctx ends; this node's own
// state then shows it. A refusal, for one while a rotation is under way, is an *fsm.Error.
func (c *Cluster) RotateCA(ctx context.Context, actor, from string) error {
	return c.rotate(ctx, rotateCA, actor, from)
}

// RotateGossipKey begins the rotation of the gossip key. Every node first learns to read the new one, then all write
// with it, then the old one goes; nodes that are away take it when they come back. See RotateCA and AwaitingGossipKey.
func (c *Cluster) RotateGossipKey(ctx context.Context, actor, from string) error {
	return c.rotate(ctx, rotateGossip, actor, from)
}

func (c *Cluster) rotate(ctx context.Context, what, actor, from string) error {
	ctx, cancel := c.withDeadline(ctx)
	defer cancel()
	req := &peerpb.RotateRequest{What: what, Actor: actor, From: from}
	resp, err := toLeader(ctx, c, func(id string) (*peerpb.RotateResponse, error) {
		if id == c.id {
			return c.onRotate(ctx, c.id, req)
		}
		return c.rpc.rotate(ctx, id, req)
	})
	if err != nil {
		return err
	}
	if resp.GetRefusal() != nil {
		return decodeRefusal(resp.GetRefusal())
	}
	c.waitOwn(ctx, resp.GetIndex())
	return nil
}

// onRotate begins a rotation as the leader.
func (c *Cluster) onRotate(ctx context.Context, from string, req *peerpb.RotateRequest) (*peerpb.RotateResponse, error) {
	if err := c.leads(); err != nil {
		return nil, err
	}
	if err := c.knows(from); err != nil {
		return nil, err
	}
	a, f, err := c.authority(c.store.View())
	if err != nil {
		return nil, err
	}
	var op fsm.Op
	switch req.GetWhat() {
	case rotateCA:
		now, err := c.clock(ctx)
		if err != nil {
			return nil, fmt.Errorf("%w: the time is not known: %w", fsm.ErrUnavailable, err)
		}
		next, err := a.Next(f.ID, now)
		if err != nil {
			return nil, err
		}
		ca, err := sealCA(f.ID, c.identity.SealKey(), next)
		if err != nil {
			return nil, err
		}
		op = fsm.StartCA{CA: ca}
	case rotateGossip:
		key, err := newGossipKey(f.ID, c.identity.SealKey())
		if err != nil {
			return nil, err
		}
		op = fsm.AddGossipKey{Key: key}
	default:
		return nil, fmt.Errorf("%q can't be rotated", req.GetWhat())
	}
	res, err := c.Propose(ctx, fsm.Command{Actor: req.GetActor(), From: req.GetFrom(), Op: op})
	if err != nil {
		return nil, err
	}
	resp := &peerpb.RotateResponse{Index: res.Index}
	if res.Err != nil {
		resp.Refusal = encodeRefusal(res.Err)
	}
	return resp, nil
}

// tendRotations leads rotations to their end while this node leads, until ctx ends.
func (c *Cluster) tendRotations(ctx context.Context, r *running) {
	said := time.Now()
	for {
		view, turned := c.store.View(), r.throne.turned()
		var again <-chan time.Time
		if r.throne.current() != nil {
			waiting, err := c.advance(ctx, view)
			if (err != nil || waiting != "") && time.Since(said) >= rotateSay {
				said = time.Now()
				c.log.Warn("a rotation of keys goes on", "waiting", waiting, "err", err)
			}
			if err != nil || waiting != "" {
				again = time.After(rotateAgain)
			}
		}
		if again == nil {
			if !c.awaitFleet(ctx, view, turned) {
				return
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		}
	}
}

// awaitFleet waits until the fleet's keys have changed since a View, a node was retired, or the leadership has
// changed; false if ctx ends.
func (c *Cluster) awaitFleet(ctx context.Context, view *fsm.View, turned <-chan struct{}) bool {
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-turned:
			cancel()
		case <-wait.Done():
		}
	}()
	for w := c.store.Watch(view.Index()); ; {
		_, events, err := w.Next(wait)
		switch {
		case errors.Is(err, fsm.ErrCompacted):
			return true
		case err != nil:
			return ctx.Err() == nil
		case slices.ContainsFunc(events, func(e fsm.Event) bool { return e.Fleet != nil || e.Node != nil && !e.Node.Member() }):
			return true
		}
	}
}

// advance takes the next step of a rotation that is under way, and says what it waits for; empty if none is. It begins
// one of the gossip key when a node was retired, which knows the present one.
func (c *Cluster) advance(ctx context.Context, view *fsm.View) (waiting string, err error) {
	f, ok := view.Fleet()
	if !ok {
		return "", nil
	}
	if len(f.CAs) > 1 {
		if ids := view.AwaitingCA(); len(ids) > 0 {
			waiting = "for certificates of the new authority on " + strings.Join(ids, ", ")
		} else if err := c.step(ctx, fsm.FinishCA{ID: f.CAs[0].ID}); err != nil {
			return "for the end of the old authority", err
		}
	}
	retired, newest := view.LastRetired(), uint64(0)
	for _, g := range f.GossipKeys {
		newest = max(newest, g.Index)
		var op fsm.Op
		switch g.State {
		case fsm.GossipKeyAdded:
			op = fsm.UseGossipKey{ID: g.ID}
			if g.Index < retired { // who was retired may have it
				return "for another gossip key", c.step(ctx, fsm.RemoveGossipKey{ID: g.ID})
			}
		case fsm.GossipKeyOld:
			op = fsm.RemoveGossipKey{ID: g.ID}
		default:
			continue
		}
		if ids := c.awaitingKey(ctx, f); len(ids) > 0 {
			return "for the gossip key on " + strings.Join(ids, ", "), nil
		}
		if err := c.step(ctx, op); err != nil {
			return "for the gossip key", err
		}
		return "for the gossip key", nil
	}
	if newest < retired {
		_, err := c.onRotate(ctx, c.id, &peerpb.RotateRequest{What: rotateGossip, Actor: "node:" + c.id})
		return "for a gossip key that the retired node does not have", err
	}
	return waiting, nil
}

func (c *Cluster) step(ctx context.Context, op fsm.Op) error {
	res, err := c.Propose(ctx, fsm.Command{Actor: "node:" + c.id, Op: op})
	if err == nil && res.Err != nil {
		err = res.Err
	}
	return err
}

// AwaitingGossipKey returns the members that are alive and have not taken the fleet's gossip keys as they are now.
// They keep a rotation from its next step. It asks all of them, and blocks for at most a few seconds.
func (c *Cluster) AwaitingGossipKey(ctx context.Context) []string {
	f, ok := c.store.View().Fleet()
	if !ok {
		return nil
	}
	return c.awaitingKey(ctx, f)
}

func (c *Cluster) awaitingKey(ctx context.Context, f *fsm.Fleet) []string {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	var mu sync.Mutex
	var missing []string
	var wg sync.WaitGroup
	limit := make(chan struct{}, 64)
	for _, m := range c.Members() {
		if !m.Alive {
			continue // takes the keys when it comes back: for that it needs no gossip
		}
		wg.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			resp, err := c.helloTo(ctx, m.ID)
			if err != nil || resp.GetKeysRevision() < f.Revision {
				mu.Lock()
				defer mu.Unlock()
				missing = append(missing, m.ID)
			}
		})
	}
	wg.Wait()
	slices.Sort(missing)
	return missing
}

// helloTo is a hello to any member, this node included. It waits for at most helloTime.
func (c *Cluster) helloTo(ctx context.Context, id string) (*peerpb.HelloResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	req := &peerpb.HelloRequest{Node: c.id, Membership: c.tellMembers()}
	if id == c.id {
		return c.onHello(ctx, c.id, req)
	}
	resp, err := c.rpc.hello(ctx, id, req)
	c.hearMembers(id, resp.GetMembership())
	return resp, err
}
