package cluster

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/files"
	"github.com/palisade/palisade/pki"
)

// RefoundOptions is what a fleet goes on with from one node, after a recovery or a restore.
type RefoundOptions struct {
	DataDir string
	Actor   string // who asked for it
	How     fsm.EpochHow

	View *fsm.View // the state to go on with
	// Index and Term are the highest that are known of the time before, from wherever.
	Index, Term uint64
	// SealKey opens the secrets of the state; nil is the one in DataDir.
	SealKey []byte

	// Node is the id of this node. Without an identity in DataDir it is made a new member, with Name and Zone.
	Node, Name, Zone string
	// Where this node is reached, see Peer. What is empty stays as it was; a new member needs Address and Gossip.
	Address, Gossip, API string

	Commands []fsm.Op // follow the beginning of the epoch; one that is refused is an error
	Retire   []string // nodes that were retired in the lost time
	Why      string   // why the store that was here is set aside
	Lifetime time.Duration
	Logger   *slog.Logger
}

// Refounded is what a fleet goes on as.
type Refounded struct {
	Fleet, Node string
	Epoch       uint64
	Index       uint64 // log index that it begins with
	Kept        string // where the store is that was here, empty if there was none
}

// Refound makes this node the only voter of its fleet, under a new epoch. The others set what they hold of the epochs
// before aside as soon as they hear of it, by the word of the fleet's authority, and rejoin by themselves. No agent may run
// on DataDir. A Refound that was cut short has changed nothing that an agent would take, or is completed by the next
// start of the agent.
func Refound(ctx context.Context, o RefoundOptions) (Refounded, error) {
	f, ok := o.View.Fleet()
	if !ok {
		return Refounded{}, errors.New("the state is of no fleet")
	}
	r := refounding{o: o, fleet: f}
	if err := r.who(); err != nil {
		return Refounded{}, err
	}
	if err := r.sign(); err != nil {
		return Refounded{}, err
	}
	state, err := r.begin()
	if err != nil {
		return Refounded{}, err
	}
	store := filepath.Join(o.DataDir, storeDir)
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return Refounded{}, fmt.Errorf("make the data directory: %w", err)
	}
	if o.SealKey != nil {
		if err := files.ReplaceBytes(filepath.Join(o.DataDir, sealFile), r.seal); err != nil {
			return Refounded{}, fmt.Errorf("keep the seal key: %w", err)
		}
	}
	kept, err := foundStore(ctx, store, founding{Node: o.Node, Term: o.Term + 1, View: state.View(), Why: o.Why, proof: r.proof}, o.Logger)
	if err != nil {
		return Refounded{}, err
	}
	out := Refounded{Fleet: f.ID, Node: o.Node, Epoch: r.proof.Epoch, Index: state.View().Index(), Kept: kept}
	return out, r.identify(state.View())
}

type refounding struct {
	o        RefoundOptions
	fleet    *fsm.Fleet
	identity *Identity // nil for a new member
	seal     []byte
	proof    *epochProof
	ca       *pki.Authority
	key      *ecdsa.PrivateKey // of a new member
	request  []byte
	now      time.Time
}

// who finds out which node this is.
func (r *refounding) who() error {
	r.now = time.Now().UTC()
	var err error
	r.identity, err = LoadIdentity(r.o.DataDir)
	switch {
	case errors.Is(err, ErrNoIdentity):
		r.identity = nil
		if r.key, err = pki.NewKey(); err != nil {
			return err
		}
		r.request, err = pki.Request(r.key)
		return err
	case err != nil:
		return err
	case r.identity.Fleet() != r.fleet.ID:
		return fmt.Errorf("this node belongs to the fleet %s, the state is of the fleet %s", r.identity.Fleet(), r.fleet.ID)
	case r.identity.Node() != r.o.Node:
		return fmt.Errorf("the identity here is of node %q, not of %q", r.identity.Node(), r.o.Node)
	}
	return nil
}

func (r *refounding) sign() error {
	r.seal = r.o.SealKey
	if r.seal == nil {
		key, err := os.ReadFile(filepath.Join(r.o.DataDir, sealFile))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w, and a backup has it too", errNoSeal)
		}
		if err != nil {
			return fmt.Errorf("read the seal key: %w", err)
		}
		r.seal = key
	}
	epoch := r.fleet.Epoch
	if r.identity != nil {
		epoch = max(epoch, r.identity.Epoch())
	}
	var err error
	if r.proof, r.ca, err = signEpoch(r.fleet, r.seal, epoch+1, r.o.Node); err != nil {
		return fmt.Errorf("the seal key does not open this fleet's secrets: %w", err)
	}
	_, err = openKeys(r.fleet, r.seal)
	return err
}

// begin is the state with the beginning of the epoch in it.
func (r *refounding) begin() (*fsm.Store, error) {
	op := fsm.BeginEpoch{
		Fleet: r.fleet.ID, Epoch: r.proof.Epoch, How: r.o.How, Node: r.o.Node,
		Address: r.o.Address, Gossip: r.o.Gossip, API: r.o.API, Retire: r.o.Retire,
	}
	if r.identity == nil {
		hash, err := pki.RequestKey(r.request)
		if err != nil {
			return nil, err
		}
		name := r.o.Name
		if name == "" {
			name = r.o.Node
		}
		op.Admit = &fsm.Admission{
			ID: r.o.Node, Name: name, Zone: r.o.Zone, Address: r.o.Address, Gossip: r.o.Gossip, API: r.o.API,
			KeyHash: hash, NotAfter: pki.NodeTerms{Lifetime: r.o.Lifetime}.NotAfter(r.now),
		}
	}
	return r.proceed(max(r.o.View.Index(), r.o.Index)+fsm.EpochIndexGap, append([]fsm.Op{op}, r.o.Commands...))
}

// proceed copies the state and applies ops to the copy, from a log index on. An op that is refused is an error.
func (r *refounding) proceed(index uint64, ops []fsm.Op) (*fsm.Store, error) {
	state, err := r.o.View.Clone()
	if err != nil {
		return nil, err
	}
	for i, op := range ops {
		data, err := fsm.MarshalCommand(fsm.Command{Time: r.now, Actor: r.o.Actor, From: "local", Op: op})
		if err != nil {
			return nil, err
		}
		res, err := state.ApplyBatch([]fsm.Entry{{Index: index + uint64(i), Data: data}})
		if err == nil && res[0].Err != nil {
			err = res[0].Err
		}
		if err != nil {
			return nil, fmt.Errorf("apply %T to the state: %w", op, err)
		}
	}
	return state, nil
}

// identify makes this node what the new store says that it is.
func (r *refounding) identify(view *fsm.View) error {
	dir := filepath.Join(r.o.DataDir, identityDir)
	roster, _ := rosterOf(view)
	if r.identity != nil {
		return errors.Join(r.identity.follow(r.proof), saveRoster(filepath.Join(dir, rosterFile), roster))
	}
	n, _ := view.Node(r.o.Node)
	leaf, err := r.ca.IssueNode(r.request, pki.NodeTerms{Fleet: r.fleet.ID, Node: n.ID, Serial: n.Serial, Lifetime: r.o.Lifetime}, r.now)
	if err != nil {
		return err
	}
	cred, err := newCredentials(r.key, r.ca.Chain(leaf))
	if err != nil {
		return err
	}
	f, _ := view.Fleet()
	keys, err := openKeys(f, r.seal)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_, err = settle(dir, cred, roster, keys, fleetJSON{Proof: r.proof})
	return err
}
