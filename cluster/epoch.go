package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/files"
	"github.com/palisade/palisade/pki"
)

// Epoch is the epoch of the fleet in which this node takes part.
func (i *Identity) Epoch() uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.about.epoch()
}

func (f *fleetJSON) epoch() uint64 {
	if f.Proof != nil {
		return f.Proof.Epoch
	}
	return 1
}

// Generation is the number of this start of the agent, 0 before Run.
func (i *Identity) Generation() uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.about.Generation
}

func (i *Identity) proofOf() *epochProof {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.about.Proof
}

// change changes the epoch's proof or the generation, on the disk when it returns.
func (i *Identity) change(edit func(*fleetJSON)) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	next := i.about
	edit(&next)
	if i.dir != "" {
		data, err := json.MarshalIndent(next, "", " ")
		if err != nil {
			return err
		}
		if err := files.ReplaceBytes(filepath.Join(i.dir, fleetFile), data); err != nil {
			return fmt.Errorf("keep the identity: %w", err)
		}
	}
	i.about.Proof, i.about.Generation = next.Proof, next.Generation // the rest never changes, and is read without the lock
	return nil
}

// follow takes part in a higher epoch from the next Run on.
func (i *Identity) follow(p *epochProof) error {
	return i.change(func(f *fleetJSON) {
		if p.Epoch > f.epoch() {
			f.Proof = p
		}
	})
}

// begin counts a start.
func (i *Identity) begin() (life, error) {
	l := life{Instance: rand.Uint64()}
	err := i.change(func(f *fleetJSON) { f.Generation++; l.Generation = f.Generation })
	return l, err
}

// unbegin takes a start back that the fleet has refused: it must not make a copy look newer than the original.
func (i *Identity) unbegin() error {
	return i.change(func(f *fleetJSON) { f.Generation-- })
}

// openEpoch opens the store of this epoch. One of an epoch before is set aside; one of a later epoch is of a recovery
// that was cut short when all but the identity was done, and is believed by its proof.
func openEpoch(dir string, i *Identity, open func() (*disk, error)) (*disk, error) {
	d, err := open()
	if err != nil {
		return nil, err
	}
	epoch, proof, err := d.epoch()
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	want := i.Epoch()
	switch {
	case epoch == want:
		return d, nil
	case epoch > want && proof == nil:
		return nil, errors.Join(fmt.Errorf("the store %s is of epoch %d of the fleet, this node of epoch %d: put the identity of the same time beside it", dir, epoch, want), d.close())
	case epoch > want:
		if err := i.follow(proof); err != nil {
			return nil, errors.Join(err, d.close())
		}
		return d, nil
	}
	last, err := d.lastIndex()
	if err := errors.Join(err, d.close()); err != nil {
		return nil, err
	}
	if _, err := setAside(dir, i.Node(), want, fsm.SetAside{At: time.Now().UTC(), Why: fmt.Sprintf(
		"the fleet goes on under epoch %d; this is of epoch %d, up to log index %d", want, epoch, last)}); err != nil {
		return nil, fmt.Errorf("set the store of epoch %d aside: %w", epoch, err)
	}
	return open()
}

// epoch is the one in which the store was begun, with the proof if this node began it.
func (d *disk) epoch() (uint64, *epochProof, error) {
	epoch, err := d.stable.GetUint64([]byte(keyEpoch))
	if err != nil && !notFound(err) {
		return 0, nil, err
	}
	data, err := d.stable.Get([]byte(keyProof))
	if err != nil && !notFound(err) {
		return 0, nil, err
	}
	if epoch = max(epoch, 1); len(data) == 0 {
		return epoch, nil, nil
	}
	var p epochProof
	if err := json.Unmarshal(data, &p); err != nil {
		return 0, nil, damagef("the proof of epoch %d can't be read", epoch)
	}
	return epoch, &p, nil
}

// markEpoch says which epoch a store is of that is empty.
func (d *disk) markEpoch(epoch uint64) error {
	has, err := raft.HasExistingState(d.logs, d.stable, d.snaps)
	if err != nil || has {
		return err
	}
	return d.stable.SetUint64([]byte(keyEpoch), epoch)
}

// enough is how many peers must have greeted a node that starts: whoever knows better says so.
const enough = 2

// greet shows itself to the others before anything else, so that a copy of a node does no harm. It waits until a few have
// answered, for helloTime at most.
func (c *Cluster) greet(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	others := c.dir.now().others(c.id)
	answers := make(chan bool, len(others))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, id := range others {
		wg.Go(func() {
			_, err := c.rpc.hello(ctx, id, &peerpb.HelloRequest{Node: c.id})
			answers <- err == nil
		})
	}
	good := 0
	for range others {
		select {
		case ok := <-answers:
			if ok {
				good++
			}
			if good >= enough {
				return
			}
		case <-c.over:
			return
		case <-ctx.Done():
			return
		}
	}
}

// spreadEpoch shows itself to every member until each has answered in this epoch: those that were away do not know yet
// that the fleet goes on. The first epoch needs none of it.
func (c *Cluster) spreadEpoch(ctx context.Context, r *running) {
	if c.contacts == nil || c.contacts.mine.Epoch <= 1 {
		return
	}
	met := map[string]bool{}
	for {
		if r.throne.current() != nil {
			left := slices.DeleteFunc(c.dir.now().others(c.id), func(id string) bool { return met[id] })
			for _, id := range reached(left, func(id string) error { _, err := c.helloTo(ctx, id); return err }) {
				met[id] = true
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(spreadAgain):
		}
	}
}

// reached calls every node and returns those that answered. Many are called at once: after the loss of a quorum most may
// be dead, and each of those takes its time.
func reached(ids []string, call func(id string) error) (out []string) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	room := make(chan struct{}, spreadAtOnce)
	for _, id := range ids {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			if call(id) != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, id)
		})
	}
	wg.Wait()
	return out
}

const spreadAtOnce = 64

// spreadAgain is how soon a member is shown the epoch again that did not answer in it.
const spreadAgain = time.Second

// finish ends this node's part. Only the first reason counts.
func (c *Cluster) finish(err error) {
	c.overOnce.Do(func() {
		c.overErr = err
		close(c.over)
	})
}

// ended says whether this node's part has ended for good.
func (c *Cluster) ended() bool {
	select {
	case <-c.over:
		return true
	default:
		return false
	}
}

// beginLife counts this start and says what this node says of itself from now on.
func (c *Cluster) beginLife() error {
	if c.contacts == nil {
		return nil
	}
	l, err := c.identity.begin()
	if err != nil {
		return err
	}
	c.contacts.mine = said{Epoch: c.identity.Epoch(), life: l}
	return nil
}

// leaveLife takes back what beginLife did if the fleet has refused this node.
func (c *Cluster) leaveLife() error {
	if c.contacts == nil {
		return nil
	}
	if _, refused := errors.AsType[*RefusedError](c.overErr); !refused {
		return nil
	}
	return c.identity.unbegin()
}

// signEpoch opens the fleet's authority with a seal key and signs for an epoch.
func signEpoch(f *fsm.Fleet, seal []byte, epoch uint64, node string) (*epochProof, *pki.Authority, error) {
	a, err := openAuthority(f, seal)
	if err != nil {
		return nil, nil, err
	}
	signature, err := a.SignEpoch(f.ID, epoch, node)
	if err != nil {
		return nil, nil, err
	}
	return &epochProof{Epoch: epoch, Node: node, Signature: signature}, a, nil
}

// openAuthority opens the current authority of a fleet.
func openAuthority(f *fsm.Fleet, seal []byte) (*pki.Authority, error) {
	ca, ok := f.CurrentCA()
	if !ok {
		return nil, errors.New("the fleet has no current authority")
	}
	key, err := pki.Open(seal, pki.AuthorityPurpose(f.ID, ca.ID), ca.SealedKey)
	if err != nil {
		return nil, fmt.Errorf("the authority's key: %w", err)
	}
	return pki.OpenAuthority(ca.Certificate, ca.Cross, key)
}

// generation is the number of starts that the state knows of a node, or knew before this node was started: it may not have
// read its log yet.
func (c *Cluster) generation(id string) (starts uint64) {
	if n, ok := c.store.View().Node(id); ok {
		starts = n.Generation
	}
	return max(starts, c.dir.now().all[id].Generation)
}

// lifeOf asks which life of a node answers where the fleet reaches it. The error wraps errSilent if something is there
// that may be the node, and is too busy, or stopped.
func (c *Cluster) lifeOf(ctx context.Context, id string) (life, error) {
	call, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	resp, err := c.rpc.who(call, id, &peerpb.WhoRequest{})
	if err != nil {
		return life{}, c.silent(ctx, id, err)
	}
	return life{Generation: resp.GetGeneration(), Instance: resp.GetInstance()}, nil
}

// silent tells a node that does not answer from one that is not there, where it takes connections no more.
func (c *Cluster) silent(ctx context.Context, id string, err error) error {
	var late net.Error
	unsaid := errors.As(err, &late) && late.Timeout() || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
	peer, ok := c.dir.peer(id)
	if !unsaid || !ok {
		return err
	}
	conn, failed := (&net.Dialer{Timeout: knockTime}).DialContext(ctx, "tcp", peer.Address)
	if failed != nil {
		return err
	}
	_ = conn.Close()
	return fmt.Errorf("%w: %w", errSilent, err)
}

// knockTime is how long a connection may take to a node that did not answer.
const knockTime = time.Second

// onWho tells which life this is, to anybody of the fleet, also to one that must first find out whether to deal with
// this node.
func (c *Cluster) onWho(context.Context, string, *peerpb.WhoRequest) (*peerpb.WhoResponse, error) {
	return &peerpb.WhoResponse{Generation: c.contacts.mine.Generation, Instance: c.contacts.mine.Instance}, nil
}

// explainRefusal calls a node with which raft could not be spoken: a call comes with reasons and proofs.
func (c *Cluster) explainRefusal(id string) {
	c.beside(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, helloTime)
		defer cancel()
		_, _ = c.rpc.hello(ctx, id, &peerpb.HelloRequest{Node: c.id}) // what it says is taken in on the way
	})
}

// beside runs f in a goroutine that Run waits for, unless it has begun to. Its context ends then.
func (c *Cluster) beside(f func(context.Context)) {
	if c.callCtx.Err() == nil {
		c.calls.Go(func() { f(c.callCtx) })
	}
}

func encodeProof(p *epochProof) *peerpb.EpochProof {
	if p == nil {
		return nil
	}
	return &peerpb.EpochProof{Epoch: p.Epoch, Node: p.Node, Signature: p.Signature}
}

func decodeProof(p *peerpb.EpochProof) *epochProof {
	if p == nil {
		return nil
	}
	return &epochProof{Epoch: p.GetEpoch(), Node: p.GetNode(), Signature: p.GetSignature()}
}
