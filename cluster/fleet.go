package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/files"
	"github.com/palisade/palisade/pki"
)

// FormOptions is what the first node of a fleet forms it with.
type FormOptions struct {
	DataDir string // gets the identity, the seal key and the store; must have none of them
	Actor   string // who asked for it

	Node string // id of this node
	Name string // for people; empty is the id
	Zone string

	// Where this node will be reached, see Peer. API may be empty.
	Address, Gossip, API string

	// Commands follow the forming in the log: the first API token, for one. One that the state machine refuses
	// is an error of Form.
	Commands []fsm.Op
	// Lifetime of the certificate; zero is pki.LeafLifetime.
	Lifetime time.Duration
	Logger   *slog.Logger
}

// storeDir is the name of the store in the data directory. The agent opens it there.
const storeDir = "raft"

// Form makes a fleet with this node as its first and only member: the authority, the gossip key, the seal key that
// guards both, this node's certificate, and a store that begins with all that. Nothing is formed by starting an
// agent: a store that is lost later is never taken for a new fleet. A Form that was interrupted leaves nothing that
// an agent would take.
func Form(o FormOptions) (joined Joined, err error) {
	if err := checkNoIdentity(o.DataDir); err != nil {
		return Joined{}, err
	}
	for _, name := range []string{storeDir, sealFile} {
		if _, err := os.Lstat(filepath.Join(o.DataDir, name)); !errors.Is(err, os.ErrNotExist) {
			return Joined{}, fmt.Errorf("%s is there but no identity: if it is of no use any more, move it away first", filepath.Join(o.DataDir, name))
		}
	}
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return Joined{}, fmt.Errorf("make the data directory: %w", err)
	}
	work, err := os.MkdirTemp(o.DataDir, ".forming-")
	if err != nil {
		return Joined{}, fmt.Errorf("form the fleet: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if joined, err = formIn(work, o); err != nil {
		return Joined{}, err
	}
	// The identity comes last: without it no agent starts.
	for _, name := range []string{sealFile, storeDir, identityDir} {
		if err := os.Rename(filepath.Join(work, name), filepath.Join(o.DataDir, name)); err != nil {
			return Joined{}, fmt.Errorf("form the fleet: %w", err)
		}
	}
	return joined, files.SyncDir(o.DataDir)
}

func formIn(dir string, o FormOptions) (Joined, error) {
	now := time.Now().UTC()
	b, err := newBirth(o, now)
	if err != nil {
		return Joined{}, err
	}
	state := fsm.NewStore()
	var entries [][]byte
	for i, op := range append([]fsm.Op{b.op}, o.Commands...) {
		data, err := fsm.MarshalCommand(fsm.Command{Time: now, Actor: o.Actor, From: "local", Op: op})
		if err != nil {
			return Joined{}, fmt.Errorf("encode command %d of the new fleet: %w", i, err)
		}
		res, err := state.ApplyBatch([]fsm.Entry{{Index: uint64(i) + 2, Data: data}})
		if err == nil && res[0].Err != nil {
			err = res[0].Err
		}
		if err != nil {
			return Joined{}, fmt.Errorf("form the fleet: %w", err)
		}
		entries = append(entries, data)
	}
	store := filepath.Join(dir, storeDir)
	d, err := openDisk(store, newGuard(store, time.Minute, func(error) {}), o.Logger)
	if err != nil {
		return Joined{}, err
	}
	if err := errors.Join(birth(d, o.Node, entries), d.close()); err != nil {
		return Joined{}, err
	}
	if err := files.ReplaceBytes(filepath.Join(dir, sealFile), b.seal); err != nil {
		return Joined{}, fmt.Errorf("keep the seal key: %w", err)
	}
	identity := filepath.Join(dir, identityDir)
	if err := os.Mkdir(identity, 0o700); err != nil {
		return Joined{}, err
	}
	r, _ := rosterOf(state.View())
	f, _ := state.View().Fleet()
	keys, err := openKeys(f, b.seal)
	if err != nil {
		return Joined{}, err
	}
	joined, err := settle(identity, b.cred, r, keys, fleetJSON{})
	joined.Index = 0
	return joined, err
}

// newborn is what a fleet begins with.
type newborn struct {
	op   fsm.FormFleet
	seal []byte
	cred *credentials
}

func newBirth(o FormOptions, now time.Time) (*newborn, error) {
	fleet, err := pki.NewID()
	if err != nil {
		return nil, err
	}
	seal, err := pki.NewSecret()
	if err != nil {
		return nil, err
	}
	authority, err := pki.NewAuthority(fleet, now)
	if err != nil {
		return nil, err
	}
	ca, err := sealCA(fleet, seal, authority)
	if err != nil {
		return nil, err
	}
	gossip, err := newGossipKey(fleet, seal)
	if err != nil {
		return nil, err
	}
	key, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	request, err := pki.Request(key)
	if err != nil {
		return nil, err
	}
	hash, err := pki.RequestKey(request)
	if err != nil {
		return nil, err
	}
	terms := pki.NodeTerms{Fleet: fleet, Node: o.Node, Serial: fsm.FirstSerial, Lifetime: o.Lifetime}
	leaf, err := authority.IssueNode(request, terms, now)
	if err != nil {
		return nil, err
	}
	cred, err := newCredentials(key, authority.Chain(leaf))
	if err != nil {
		return nil, err
	}
	name := o.Name
	if name == "" {
		name = o.Node
	}
	return &newborn{seal: seal, cred: cred, op: fsm.FormFleet{
		ID: fleet, CA: ca, GossipKey: gossip,
		Node: fsm.Admission{
			ID: o.Node, Name: name, Zone: o.Zone, Address: o.Address, Gossip: o.Gossip, API: o.API,
			KeyHash: hash, NotAfter: terms.NotAfter(now), Format: fsm.Format,
		},
	}}, nil
}

// sealCA is an authority as the state keeps it.
func sealCA(fleet string, seal []byte, a *pki.Authority) (fsm.CA, error) {
	key, err := a.Key()
	if err != nil {
		return fsm.CA{}, err
	}
	sealed, err := pki.Seal(seal, pki.AuthorityPurpose(fleet, a.ID()), key)
	if err != nil {
		return fsm.CA{}, err
	}
	return fsm.CA{ID: a.ID(), Certificate: a.Certificate(), Cross: a.Cross(), SealedKey: sealed}, nil
}

// newGossipKey makes a gossip key as the state keeps it.
func newGossipKey(fleet string, seal []byte) (fsm.GossipKey, error) {
	id, err := pki.NewID()
	if err != nil {
		return fsm.GossipKey{}, err
	}
	key, err := pki.NewSecret()
	if err != nil {
		return fsm.GossipKey{}, err
	}
	sealed, err := pki.Seal(seal, pki.GossipPurpose(fleet, id), key)
	if err != nil {
		return fsm.GossipKey{}, err
	}
	return fsm.GossipKey{ID: id, SealedKey: sealed}, nil
}
