package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/files"
	"github.com/palisade/palisade/pki"
)

// JoinOptions is what a node joins a fleet with.
type JoinOptions struct {
	// DataDir is where the identity is put. A key that an earlier try has left there is used again, so that a
	// lost answer can be asked for again with the same token.
	DataDir string
	Remote  string // peer address of any member, host:port
	Token   pki.JoinToken

	Node string // id of this node
	Name string // for people; empty is the id
	Zone string // empty takes the token's

	// Where this node will be reached, see Peer. API may be empty.
	Address, Gossip, API string
}

// Joined is what a node got by joining, or by forming.
type Joined struct {
	Fleet     string    // id
	Node      string    // id
	Authority string    // id of the authority that signed, hex
	NotAfter  time.Time // of the certificate
	Index     uint64    // log index at which the node was admitted, 0 if it formed the fleet
	Peers     int       // members, this node included
	Again     bool      // the node was a member, and got a new certificate
}

var (
	// ErrOtherFleet is a node at the address to join that is not of the fleet that the token is of.
	ErrOtherFleet = errors.New("the join token is of another fleet than the node at this address")
	// ErrHasIdentity is a data directory that has an identity already, with a certificate that has not ended.
	ErrHasIdentity = errors.New("this node belongs to a fleet already")
)

// Join has a fleet admit this node, and keeps its identity under the data directory: from then on
// LoadIdentity finds it. It proves who the fleet is by the token before it sends the secret. It blocks until
// that is done or ctx ends; it is safe to be called again after any error. What the fleet refuses is an
// *fsm.Error; ErrOtherFleet and ErrHasIdentity can be told too.
//
// A node that has an identity whose certificate has ended gets a new certificate for its key, if the token is made for that.
// All else that it has stays.
func Join(ctx context.Context, o JoinOptions) (Joined, error) {
	dir := filepath.Join(o.DataDir, identityDir)
	id, err := endedIdentity(o)
	if err != nil {
		return Joined{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Joined{}, fmt.Errorf("make the identity directory: %w", err)
	}
	key, err := joinKey(filepath.Join(dir, keyFile))
	if err != nil {
		return Joined{}, err
	}
	request, err := pki.Request(key)
	if err != nil {
		return Joined{}, err
	}
	name := o.Name
	if name == "" {
		name = o.Node
	}
	fleet := ""
	if id != nil {
		fleet = id.Fleet()
	}
	resp, err := askToJoin(ctx, o.Remote, o.Token.Pin(), fleet, &peerpb.AdmitRequest{
		Token: o.Token.ID(), Secret: o.Token.Secret(), Node: o.Node, Name: name, Zone: o.Zone,
		Address: o.Address, Gossip: o.Gossip, Api: o.API, Request: request, Format: fsm.Format,
	})
	if err != nil {
		return Joined{}, err
	}
	switch {
	case resp.GetRefusal() != nil:
		return Joined{}, decodeRefusal(resp.GetRefusal())
	case resp.GetProblem() != "":
		return Joined{}, errors.New(resp.GetProblem())
	}
	cred, err := newCredentials(key, resp.GetChain())
	if err != nil {
		return Joined{}, fmt.Errorf("the certificate that the fleet gave: %w", err)
	}
	if cred.member.Node != o.Node || cred.member.Fleet != resp.GetFleet() {
		return Joined{}, fmt.Errorf("the fleet gave a certificate of node %q, this is node %q", cred.member.Node, o.Node)
	}
	if id != nil {
		return comeBack(id, cred, decodeRoster(resp.GetRoster()), decodeKeys(resp.GetKeys()))
	}
	return settle(dir, cred, decodeRoster(resp.GetRoster()), decodeKeys(resp.GetKeys()), fleetJSON{Proof: decodeProof(resp.GetEpochProof()), Generation: resp.GetGeneration()})
}

// checkNoIdentity refuses a data directory that is used.
func checkNoIdentity(dataDir string) error {
	_, err := LoadIdentity(dataDir)
	switch {
	case errors.Is(err, ErrNoIdentity):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: see %s", ErrHasIdentity, filepath.Join(dataDir, identityDir, fleetFile))
}

// endedIdentity returns the identity that a node has whose certificate has ended, nil if it has none. One that is good is refused.
func endedIdentity(o JoinOptions) (*Identity, error) {
	id, err := LoadIdentity(o.DataDir)
	switch {
	case errors.Is(err, ErrNoIdentity):
		return nil, nil //nolint:nilnil // it is a new node
	case err != nil:
		return nil, err
	case id.Node() != o.Node:
		return nil, fmt.Errorf("%w: %s holds the identity of node %q, this is to be node %q", ErrHasIdentity, o.DataDir, id.Node(), o.Node)
	}
	if ends := id.Certificate().NotAfter; id.now().Before(ends) {
		return nil, fmt.Errorf("%w: as node %q, with a certificate until %s, which renews itself; see %s",
			ErrHasIdentity, id.Node(), ends.Format(time.RFC3339), filepath.Join(o.DataDir, identityDir, fleetFile))
	}
	return id, nil
}

// comeBack keeps what a node got that was away until its certificate ended. Epoch and generation stay: if the fleet
// has gone on under a new epoch meanwhile, the peers say so.
func comeBack(id *Identity, cred *credentials, r Roster, keys Keys) (Joined, error) {
	if err := errors.Join(
		saveKeys(id.file(keyringFile), keys),
		saveRoster(id.file(rosterFile), r),
		cred.save(id.dir), // last: an agent that runs looks for it
	); err != nil {
		return Joined{}, fmt.Errorf("keep the certificate: %w", err)
	}
	out, err := joined(cred, r)
	out.Again = true
	return out, err
}

// joinKey reads the key of an earlier try, or makes one and keeps it.
func joinKey(path string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if err == nil {
		key, err := pki.DecodeKey(text)
		if err != nil {
			return nil, fmt.Errorf("the key %s of an earlier try: %w", path, err)
		}
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the node's key: %w", err)
	}
	key, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	if text, err = pki.EncodeKey(key); err != nil {
		return nil, err
	}
	if err := files.ReplaceBytes(path, text); err != nil {
		return nil, fmt.Errorf("keep the node's key: %w", err)
	}
	return key, nil
}

// askToJoin makes the one call of a node that has no certificate that is good. If fleet is not empty, it says what is to be answered by
// a node of that fleet alone.
func askToJoin(ctx context.Context, remote string, pin [32]byte, fleet string, req *peerpb.AdmitRequest) (*peerpb.AdmitResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*doorTime)
	defer cancel()
	var d net.Dialer
	tcp, err := d.DialContext(ctx, "tcp", remote)
	if err != nil {
		return nil, fmt.Errorf("reach the fleet: %w", err)
	}
	defer tcp.Close()
	conn := tls.Client(tcp, &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{alpnJoin},
		// The name of who answers is not known. VerifyConnection is the check: it must be a node of the fleet
		// whose authority the token names.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != alpnJoin {
				return errors.New("it admits no nodes")
			}
			return verifyPinned(cs.PeerCertificates, pin, fleet)
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS with %s: %w", remote, err)
	}
	defer context.AfterFunc(ctx, func() { _ = tcp.Close() })()
	if err := writeMessage(conn, req); err != nil {
		return nil, fmt.Errorf("ask %s: %w", remote, err)
	}
	resp := &peerpb.AdmitResponse{}
	if err := readMessage(conn, maxAdmitResponse, resp); err != nil {
		return nil, fmt.Errorf("the answer of %s was lost, the same command again is safe: %w", remote, err)
	}
	return resp, nil
}

func verifyPinned(chain []*x509.Certificate, pin [32]byte, fleet string) error {
	m, err := pki.VerifyPinned(chain, pin, time.Now())
	if err == nil && fleet != "" && m.Fleet != fleet {
		return fmt.Errorf("%w: this node is of the fleet %s, the token and the node at this address are of the fleet %s", ErrOtherFleet, fleet, m.Fleet)
	}
	if errors.Is(err, pki.ErrUntrusted) {
		return fmt.Errorf("%w: %w", ErrOtherFleet, err)
	}
	return err
}

// settle keeps an identity, with what is known about the fleet beside what the certificate says. The file that makes it one is written last.
func settle(dir string, cred *credentials, r Roster, keys Keys, about fleetJSON) (Joined, error) {
	about.Fleet, about.Node = cred.member.Fleet, cred.member.Node
	text, err := json.MarshalIndent(about, "", " ")
	if err != nil {
		return Joined{}, err
	}
	if err := errors.Join(
		cred.save(dir),
		saveRoster(filepath.Join(dir, rosterFile), r),
		saveKeys(filepath.Join(dir, keyringFile), keys),
	); err != nil {
		return Joined{}, fmt.Errorf("keep the identity: %w", err)
	}
	if err := files.ReplaceBytes(filepath.Join(dir, fleetFile), text); err != nil {
		return Joined{}, fmt.Errorf("keep the identity: %w", err)
	}
	return joined(cred, r)
}

// joined tells what a node got.
func joined(cred *credentials, r Roster) (Joined, error) {
	l, err := newListing(r)
	if err != nil {
		return Joined{}, err
	}
	j := Joined{Fleet: cred.member.Fleet, Node: cred.member.Node, NotAfter: cred.member.NotAfter, Index: r.Index, Peers: len(l.active)}
	if len(l.trusted) > 0 {
		j.Authority = fmt.Sprintf("%x", pki.KeyHash(l.trusted[0]))
	}
	return j, nil
}
