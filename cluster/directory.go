package cluster

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/palisade/palisade/internal/files"
	"github.com/palisade/palisade/pki"
)

// Peer is one node of the fleet as the others reach it.
type Peer struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"` // for people; the id if it is empty
	// Address is where the others reach it (raft and peer calls, TCP), host:port.
	Address string `json:"address"`
	// Gossip is where its gossip is reached (UDP and TCP), ip:port. Empty leaves the peer out of
	// gossip: it counts as alive while raft or a call hears from it.
	Gossip string `json:"gossip,omitempty"`
	// Confirmed is the serial of the newest certificate that the node is known to use: an older one is refused.
	Confirmed uint64 `json:"confirmed,omitempty"`
	// KeyHash is the SHA-256 of the public key of its newest certificate, hex.
	KeyHash string `json:"key_hash,omitempty"`
	// Generation is the number of starts that the node is known to have reported: one of a lower number is a copy.
	Generation uint64 `json:"generation,omitempty"`
	// Retired is a node that is no member any more and never will be.
	Retired bool `json:"retired,omitempty"`
}

// Roster is who belongs to the fleet, and by which authorities they prove it, at one log index of one epoch.
type Roster struct {
	Epoch uint64 `json:"epoch"`
	Index uint64 `json:"index"`
	Peers []Peer `json:"peers"` // retired ones included
	// Authorities are the certificates of the trusted authorities in DER, the current one first.
	Authorities [][]byte `json:"authorities"`
}

// newer says whether the roster is at least as new as another.
func (r Roster) newer(than Roster) bool {
	return r.Epoch > than.Epoch || r.Epoch == than.Epoch && r.Index >= than.Index
}

// directory is who belongs to the fleet and where they are reached. It begins with what was last known
// and then follows the state; a state that is older than what is known, as while the log is replayed at
// the start, changes nothing.
type directory struct {
	self string
	file string // that keeps the roster for the next start; empty keeps none

	mu  sync.Mutex // of put
	cur atomic.Pointer[listing]
}

// listing is an immutable roster, ready for lookups.
type listing struct {
	roster     Roster
	trusted    []*x509.Certificate
	all        map[string]Peer // retired ones included
	active     []string        // ids, sorted
	hosts      map[string]bool // where members are reached
	superseded chan struct{}   // closed once a newer listing is current
}

func newDirectory(self, file string, r Roster) (*directory, error) {
	d := &directory{self: self, file: file}
	l, err := newListing(r)
	if err != nil {
		return nil, err
	}
	d.cur.Store(l)
	return d, nil
}

func newListing(r Roster) (*listing, error) {
	trusted, err := pki.ParseChain(r.Authorities)
	if err != nil {
		return nil, fmt.Errorf("an authority of the fleet: %w", err)
	}
	l := &listing{trusted: trusted, roster: r, all: make(map[string]Peer, len(r.Peers)), hosts: map[string]bool{}, superseded: make(chan struct{})}
	for _, p := range r.Peers {
		l.all[p.ID] = p
		if !p.Retired {
			l.active = append(l.active, p.ID)
			l.hosts[hostPart(p.Address)], l.hosts[hostPart(p.Gossip)] = true, true
		}
	}
	slices.Sort(l.active)
	return l, nil
}

// now is the present listing.
func (d *directory) now() *listing { return d.cur.Load() }

// peer returns a member that is not retired.
func (d *directory) peer(id string) (Peer, bool) { return d.now().peer(id) }

func (l *listing) peer(id string) (Peer, bool) {
	p, ok := l.all[id]
	return p, ok && !p.Retired
}

// others are the ids of all members but one.
func (l *listing) others(self string) []string {
	return slices.DeleteFunc(slices.Clone(l.active), func(id string) bool { return id == self })
}

// put takes a roster unless a newer one is known, and says whether anything changed.
func (d *directory) put(r Roster) (changed bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.now()
	if !r.newer(was.roster) {
		return false, nil
	}
	next, err := newListing(r)
	if err != nil {
		return false, err
	}
	if r.Epoch == was.roster.Epoch && maps.Equal(next.all, was.all) && slices.EqualFunc(r.Authorities, was.roster.Authorities, bytes.Equal) {
		return false, nil
	}
	d.cur.Store(next)
	close(was.superseded)
	return true, nil
}

// save keeps the roster for the next start.
func (d *directory) save() error {
	if d.file == "" {
		return nil
	}
	return saveRoster(d.file, d.now().roster)
}

// accepts says whether a node with a certificate of this fleet may take part. One that is not known yet may:
// this node's state may be older than the authority's word. The error wraps errRefused.
func (d *directory) accepts(m pki.Member) error {
	p, known := d.now().all[m.Node]
	switch {
	case !known:
		return nil
	case p.Retired:
		return fmt.Errorf("%w: node %q is retired", errRefused, m.Node)
	case m.Serial < p.Confirmed:
		return fmt.Errorf("%w: node %q has a newer certificate (serial %d) than this one (serial %d)", errRefused, m.Node, p.Confirmed, m.Serial)
	}
	return nil
}

// outlived says whether an open connection with a certificate must be cut. A renewal over the same key is no reason:
// whoever holds that key may have a new connection at once.
func (d *directory) outlived(m pki.Member) bool {
	p, known := d.now().all[m.Node]
	return known && (p.Retired || m.Serial < p.Confirmed && p.KeyHash != hex.EncodeToString(m.KeyHash[:]))
}

// loadRoster reads what saveRoster wrote; a file that is missing is an empty roster.
func loadRoster(file string) (Roster, error) {
	var r Roster
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return Roster{}, fmt.Errorf("read the known peers: %w", err)
	}
	return r, nil
}

// saveRoster keeps a roster for the next start, and the trusted authorities beside it for people and for clients
// of the API.
func saveRoster(file string, r Roster) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("encode the known peers: %w", err)
	}
	return errors.Join(
		files.ReplaceBytes(file, data),
		files.ReplaceBytes(filepath.Join(filepath.Dir(file), authorityPEM), pki.EncodeChain(r.Authorities)),
	)
}
