package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/pki"
)

// secretsAgain is how soon a node asks again for keys that nobody could give it.
const secretsAgain = time.Second

var errNoSeal = errors.New("this node has no seal key: it is no voter")

// followKeys keeps the gossip keys in step with the state until ctx ends. A node that can't open them asks one
// that can.
func (c *Cluster) followKeys(ctx context.Context) {
	var fleet *fsm.Fleet
	for w := c.store.Watch(0); ; {
		call, cancel := ctx, context.CancelFunc(func() {})
		if fleet != nil { // some keys are missing
			call, cancel = context.WithTimeout(ctx, secretsAgain)
		}
		view, events, err := w.Next(call)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && fleet == nil && !concernMembers(events):
			continue
		case view == nil:
			view = c.store.View()
		}
		f, ok := view.Fleet()
		if !ok {
			continue
		}
		fleet = f
		done, err := c.takeKeys(ctx, f)
		if err != nil {
			c.log.Warn("gossip keys of the fleet can't be taken", "err", err)
		}
		if done {
			fleet = nil
		}
	}
}

// takeKeys puts the gossip keys that the fleet has in force; false if some can't be had now.
func (c *Cluster) takeKeys(ctx context.Context, f *fsm.Fleet) (done bool, err error) {
	if done, err := c.keyring.follow(f); done || err != nil {
		return done, err
	}
	if seal := c.identity.SealKey(); seal != nil {
		keys, err := openKeys(f, seal)
		if err != nil {
			return false, err
		}
		return true, c.keyring.put(keys)
	}
	for _, id := range c.likelyVoters() {
		call, cancel := context.WithTimeout(ctx, helloTime)
		resp, err := c.rpc.secrets(call, id, &peerpb.SecretsRequest{Revision: f.Revision})
		cancel()
		if err == nil {
			return true, c.keyring.put(decodeKeys(resp.GetKeys()))
		}
	}
	return false, nil
}

// likelyVoters are other members, those that probably have the seal key first.
func (c *Cluster) likelyVoters() []string {
	leader, voters := c.leader(), c.voters()
	var first, second, rest []string
	for _, id := range c.dir.now().others(c.id) {
		switch {
		case id == leader:
			first = append(first, id)
		case voters[id]:
			second = append(second, id)
		default:
			rest = append(rest, id)
		}
	}
	return append(append(first, second...), rest...)
}

// openKeys opens all gossip keys of the fleet.
func openKeys(f *fsm.Fleet, seal []byte) (Keys, error) {
	keys := Keys{Epoch: f.Epoch, Revision: f.Revision}
	for _, g := range f.GossipKeys {
		key, err := pki.Open(seal, pki.GossipPurpose(f.ID, g.ID), g.SealedKey)
		if err != nil {
			return Keys{}, fmt.Errorf("gossip key %s: %w", g.ID, err)
		}
		keys.Keys = append(keys.Keys, GossipKey{ID: g.ID, Key: key})
		if g.State == fsm.GossipKeyPrimary {
			keys.Primary = g.ID
		}
	}
	return keys, nil
}

// knows says whether the state has the node as a member. The port also lets in who is not known yet, on the
// authority's word, so that a node whose state is old can be brought up to date. What changes something, or is
// secret, is only for members: after a restore an authority's word may be older than the state.
func (c *Cluster) knows(node string) error {
	if _, ok := c.dir.peer(node); !ok {
		return fmt.Errorf("%w: node %q is no member", fsm.ErrUnavailable, node)
	}
	return nil
}

// onSecrets gives a member the open gossip keys. The caller's certificate was accepted, so it is a member.
func (c *Cluster) onSecrets(_ context.Context, from string, req *peerpb.SecretsRequest) (*peerpb.SecretsResponse, error) {
	if err := c.knows(from); err != nil {
		return nil, err
	}
	if c.identity == nil || c.identity.SealKey() == nil {
		return nil, fmt.Errorf("%w: %w", fsm.ErrUnavailable, errNoSeal)
	}
	f, ok := c.store.View().Fleet()
	if !ok || f.Revision < req.GetRevision() {
		return nil, fmt.Errorf("%w: this node's state is older than what is asked for", fsm.ErrUnavailable)
	}
	keys, err := openKeys(f, c.identity.SealKey())
	if err != nil {
		return nil, err
	}
	return &peerpb.SecretsResponse{Keys: encodeKeys(keys)}, nil
}

// entrust gives a node that votes, or is about to, the seal key. The caller has made sure that it is one.
func (c *Cluster) entrust(ctx context.Context, id string) error {
	if c.identity == nil {
		return nil // in tests without secrets
	}
	seal := c.identity.SealKey()
	if seal == nil {
		return errNoSeal
	}
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	_, err := c.rpc.entrust(ctx, id, &peerpb.EntrustRequest{SealKey: seal})
	return err
}

// onEntrust takes the seal key. That it opens what is sealed in the state proves it, whoever brings it.
func (c *Cluster) onEntrust(_ context.Context, from string, req *peerpb.EntrustRequest) (*peerpb.EntrustResponse, error) {
	if c.identity == nil {
		return &peerpb.EntrustResponse{}, nil
	}
	f, ok := c.store.View().Fleet()
	if !ok {
		return nil, fmt.Errorf("%w: this node does not know the fleet yet", fsm.ErrUnavailable)
	}
	if _, err := openKeys(f, req.GetSealKey()); err != nil {
		return nil, errors.New("that is not the seal key of this fleet")
	}
	if string(c.identity.SealKey()) != string(req.GetSealKey()) {
		if err := c.identity.putSealKey(req.GetSealKey()); err != nil {
			return nil, err
		}
		c.log.Info("this node was given the seal key, it may vote", "by", from)
	}
	return &peerpb.EntrustResponse{}, nil
}

// authority opens the fleet's current authority; only a node with the seal key can.
func (c *Cluster) authority(view *fsm.View) (*pki.Authority, *fsm.Fleet, error) {
	if c.identity == nil || c.identity.SealKey() == nil {
		return nil, nil, errNoSeal
	}
	f, ok := view.Fleet()
	if !ok {
		return nil, nil, errors.New("there is no fleet yet")
	}
	a, err := openAuthority(f, c.identity.SealKey())
	if err != nil {
		return nil, nil, err
	}
	return a, f, nil
}

func encodeKeys(k Keys) *peerpb.Keys {
	out := &peerpb.Keys{Epoch: k.Epoch, Revision: k.Revision, Primary: k.Primary}
	for _, g := range k.Keys {
		out.Keys = append(out.Keys, &peerpb.GossipKey{Id: g.ID, Key: g.Key})
	}
	return out
}

func decodeKeys(p *peerpb.Keys) Keys {
	k := Keys{Epoch: p.GetEpoch(), Revision: p.GetRevision(), Primary: p.GetPrimary()}
	for _, g := range p.GetKeys() {
		k.Keys = append(k.Keys, GossipKey{ID: g.GetId(), Key: g.GetKey()})
	}
	return k
}
