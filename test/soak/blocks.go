package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/test/rig"
)

// blocks makes blocks of the suspects and lifts them, and notes what is promised of each.
type blocks struct {
	rig      *rig.Rig
	ledger   *ledger
	suspects []spot
	nodes    []string

	mu    sync.Mutex
	made  []*hold
	state map[string]string // acknowledged, by block id: active, lifted or ended
	slow  time.Duration     // the longest that all receipts took
}

func newBlocks(r *rig.Rig, l *ledger, guests []spot) *blocks {
	b := &blocks{rig: r, ledger: l, state: map[string]string{}}
	for _, g := range guests {
		if g.suspect {
			b.suspects = append(b.suspects, g)
		}
	}
	for _, n := range r.Nodes() {
		b.nodes = append(b.nodes, n.Name)
	}
	return b
}

// account is whose VM a suspect is: two have one owner.
func (b *blocks) account(k int) string { return fmt.Sprintf("account-%d", k/2) }

// declare gives the suspects their owners.
func (b *blocks) declare(ctx context.Context) error {
	for k, s := range b.suspects {
		if _, err := b.rig.Clients[b.nodes[0]].PutVM(ctx, s.guest, client.VMRequest{Owner: b.account(k)}, client.Write{}); err != nil {
			return err
		}
	}
	return nil
}

func (b *blocks) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.made)
}

// run makes and lifts blocks until ctx ends; then none is left that does not end by itself.
func (b *blocks) run(ctx context.Context, seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 3))
	work := context.WithoutCancel(ctx) // what was begun is brought to its end
	for ctx.Err() == nil {
		k := rnd.IntN(len(b.suspects))
		s := b.suspects[k]
		req := client.BlockRequest{Reason: fmt.Sprintf("storm-%d", seed), Target: client.Target{VM: s.guest}}
		h := &hold{guests: []string{s.guest}}
		ends := false
		switch rnd.IntN(6) {
		case 0:
			h = &hold{addr: s.v4}
			req.Target = client.Target{Prefix: s.v4.String()}
		case 1:
			h = &hold{addr: s.v6}
			req.Target = client.Target{Prefix: s.v6.String()}
		case 2:
			h = &hold{}
			for i, o := range b.suspects {
				if b.account(i) == b.account(k) {
					h.guests = append(h.guests, o.guest)
				}
			}
			req.Target = client.Target{Account: b.account(k)}
		case 3:
			req.Duration, ends = fmt.Sprintf("%dms", 2000+rnd.IntN(3000)), true
		case 4:
			req.StartsAt = time.Now().Add(time.Duration(200+rnd.IntN(800)) * time.Millisecond)
		}
		if err := b.add(work, b.pick(rnd), req, h); err != nil {
			return err
		}
		_ = pause(ctx, time.Duration(800+rnd.IntN(3200))*time.Millisecond)
		if ends {
			b.mu.Lock()
			b.state[h.id] = "ended"
			b.mu.Unlock()
			continue
		}
		if err := b.lift(work, b.pick(rnd), h); err != nil {
			return err
		}
	}
	return nil
}

func (b *blocks) pick(rnd *rand.Rand) string { return b.nodes[rnd.IntN(len(b.nodes))] }

// patience is for what waits until killed agents are back.
const patience = time.Minute

// add makes a block through a node and waits until every node's receipt is known.
func (b *blocks) add(ctx context.Context, node string, req client.BlockRequest, h *hold) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	w, err := b.rig.Clients[node].AddBlock(ctx, req, client.Write{Wait: true})
	if err != nil {
		return fmt.Errorf("block %s through %s: %w", req.Target, node, err)
	}
	if !w.Block.EndsAt.IsZero() {
		h.until = w.Block.EndsAt.UnixNano()
	}
	h.id = w.Block.ID
	b.ledger.add(h)
	b.mu.Lock()
	b.made = append(b.made, h)
	b.state[h.id] = "active"
	b.mu.Unlock()
	begin := time.Now()
	if w.Block.StartsAt.After(begin) {
		begin = w.Block.StartsAt
	}
	err = until(ctx, patience, 20*time.Millisecond, func() error {
		r, err := b.rig.Clients[node].Block(ctx, h.id)
		if err != nil {
			return err
		}
		switch {
		case r.State == "pending":
			return fmt.Errorf("block %s is pending", h.id)
		case r.State == "ended" && h.until != 0 && h.until < time.Now().UnixNano():
			return nil // its nodes were away too long
		case r.State != "active":
			return fmt.Errorf("block %s is %s", h.id, r.State)
		}
		have := 0
		for _, rec := range r.Receipts {
			have = b.ledger.inForce(h, rec.Node)
		}
		if have < len(b.nodes) {
			return fmt.Errorf("block %s has %d receipts", h.id, have)
		}
		return nil
	})
	b.mu.Lock()
	b.slow = max(b.slow, time.Since(begin))
	b.mu.Unlock()
	return err
}

// lift lifts a block through a node.
func (b *blocks) lift(ctx context.Context, node string, h *hold) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	b.ledger.lift(h, time.Now())
	if _, err := b.rig.Clients[node].LiftBlock(ctx, h.id, client.Write{Wait: true}); err != nil {
		return fmt.Errorf("lift %s through %s: %w", h.id, node, err)
	}
	b.mu.Lock()
	b.state[h.id] = "lifted"
	b.mu.Unlock()
	return nil
}

// all blocks every suspect whole, and returns the blocks.
func (b *blocks) all(ctx context.Context) (list []*hold, err error) {
	for k, s := range b.suspects {
		h := &hold{guests: []string{s.guest}}
		req := client.BlockRequest{Reason: "storm-end", Target: client.Target{VM: s.guest}}
		if err := b.add(ctx, b.nodes[k%len(b.nodes)], req, h); err != nil {
			return list, err
		}
		list = append(list, h)
	}
	return list, nil
}

// kept checks on every node that each acknowledged write is there.
func (b *blocks) kept(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, n := range b.nodes {
		for _, h := range b.made {
			is, err := b.rig.Clients[n].Block(ctx, h.id)
			want := b.state[h.id]
			if err != nil {
				errs = append(errs, fmt.Errorf("%s, block %s, acknowledged as %s: %w", n, h.id, want, err))
			} else if is.State != want {
				errs = append(errs, fmt.Errorf("%s has block %s %s, acknowledged as %s", n, h.id, is.State, want))
			}
		}
	}
	return errors.Join(errs...)
}
