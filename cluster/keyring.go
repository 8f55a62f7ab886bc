package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/hashicorp/memberlist"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/files"
)

// Keys are the open gossip keys of a fleet as of one change of them. They are secrets.
type Keys struct {
	Epoch    uint64      `json:"epoch"`
	Revision uint64      `json:"revision"` // log index of the change
	Primary  string      `json:"primary"`  // id of the one to write with
	Keys     []GossipKey `json:"keys"`
}

// GossipKey is one open gossip key, 32 bytes.
type GossipKey struct {
	ID  string `json:"id"`
	Key []byte `json:"key"`
}

// String hides the keys.
func (k Keys) String() string {
	return fmt.Sprintf("%d gossip keys as of index %d", len(k.Keys), k.Revision)
}

// GoString is String.
func (k Keys) GoString() string { return k.String() }

// keyring holds the gossip keys that this node can read by. It is kept on the disk, so that a node that starts
// without a voter in reach gossips all the same.
type keyring struct {
	file string // empty keeps none
	ring *memberlist.Keyring

	mu    sync.Mutex
	keys  Keys
	got   chan struct{} // closed with the first key
	began bool
}

func loadKeyring(file string) (*keyring, error) {
	ring, err := memberlist.NewKeyring(nil, nil)
	if err != nil {
		return nil, err
	}
	k := &keyring{ring: ring, got: make(chan struct{})}
	if file == "" {
		return k, nil
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		k.file = file
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the gossip keys: %w", err)
	}
	var keys Keys
	if json.Unmarshal(data, &keys) != nil { // its error could quote a key
		return nil, fmt.Errorf("the gossip keys in %s can't be read; remove the file, the fleet gives them anew", file)
	}
	if err := k.put(keys); err != nil {
		return nil, err
	}
	k.file = file
	return k, nil
}

// put takes keys unless newer ones are known: new ones can be read from now on, the primary one is written with,
// and what is not among them is forgotten. The error may be that of keeping them; they are in force then.
func (k *keyring) put(keys Keys) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if keys.Epoch < k.keys.Epoch || keys.Epoch == k.keys.Epoch && keys.Revision < k.keys.Revision {
		return nil
	}
	at := slices.IndexFunc(keys.Keys, func(g GossipKey) bool { return g.ID == keys.Primary })
	if at < 0 {
		return errors.New("the gossip keys have no primary one")
	}
	for _, g := range keys.Keys {
		if err := k.ring.AddKey(g.Key); err != nil {
			return fmt.Errorf("gossip key %s: %w", g.ID, err)
		}
	}
	if err := k.ring.UseKey(keys.Keys[at].Key); err != nil {
		return fmt.Errorf("gossip key %s: %w", keys.Primary, err)
	}
	for _, old := range k.keys.Keys {
		if !slices.ContainsFunc(keys.Keys, func(g GossipKey) bool { return slices.Equal(g.Key, old.Key) }) {
			if err := k.ring.RemoveKey(old.Key); err != nil {
				return fmt.Errorf("gossip key %s: %w", old.ID, err)
			}
		}
	}
	k.keys = keys
	if !k.began {
		k.began = true
		close(k.got)
	}
	if k.file == "" {
		return nil
	}
	return saveKeys(k.file, keys)
}

func saveKeys(file string, keys Keys) error {
	data, err := json.MarshalIndent(keys, "", " ")
	if err == nil {
		err = files.ReplaceBytes(file, data)
	}
	if err != nil {
		return fmt.Errorf("keep the gossip keys: %w", err)
	}
	return nil
}

// await waits for the first key; false if ctx ends before.
func (k *keyring) await(ctx context.Context) bool {
	select {
	case <-k.got:
		return true
	case <-ctx.Done():
		return false
	}
}

// standing says which keys are in force, without them.
func (k *keyring) standing() (primary string, ids []string, revision uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, g := range k.keys.Keys {
		ids = append(ids, g.ID)
	}
	return k.keys.Primary, ids, k.keys.Revision
}

// follow puts in force what a fleet says of keys that are all known; false if one is not, or the fleet is older than
// what is known.
func (k *keyring) follow(f *fsm.Fleet) (done bool, err error) {
	k.mu.Lock()
	known := k.keys
	k.mu.Unlock()
	if f.Epoch < known.Epoch || f.Epoch == known.Epoch && f.Revision < known.Revision {
		return true, nil
	}
	next := Keys{Epoch: f.Epoch, Revision: f.Revision}
	for _, g := range f.GossipKeys {
		at := slices.IndexFunc(known.Keys, func(have GossipKey) bool { return have.ID == g.ID })
		if at < 0 {
			return false, nil
		}
		next.Keys = append(next.Keys, known.Keys[at])
		if g.State == fsm.GossipKeyPrimary {
			next.Primary = g.ID
		}
	}
	return true, k.put(next)
}
