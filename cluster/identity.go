package cluster

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// What a TLS connection on the peer port is for, by ALPN.
const (
	alpnRaft = "palisade-raft"
	alpnRPC  = "h2"
)

// MinKeyBytes is the least length of the shared cluster key.
const MinKeyBytes = 32

// Identity proves to peers that this node belongs to the fleet, and checks their proof. The configs
// must refuse everything below TLS 1.3 and any peer outside of the fleet; NextProtos is set by the
// caller on its own copy. An Identity is safe for concurrent use. It is the seam where a cluster CA
// takes the shared key's place.
type Identity interface {
	// Server is the config for incoming connections.
	Server() *tls.Config
	// Client is the config for a connection to the peer with this node id; it must refuse any other.
	Client(peerID string) *tls.Config
}

// errNotOfFleet is a peer whose certificate does not carry this fleet's key.
var errNotOfFleet = errors.New("the peer does not hold this fleet's shared key")

type sharedKeyIdentity struct {
	cert tls.Certificate
	pub  ed25519.PublicKey
}

var _ Identity = (*sharedKeyIdentity)(nil)

// SharedKeyIdentity derives an identity from a key that all nodes of the fleet share: who holds it is
// a peer. The key must have at least MinKeyBytes bytes of a random source. The certificate is made
// anew in memory and carries the node id, which guards against mixed-up addresses, not against a
// peer that lies.
func SharedKeyIdentity(key []byte, nodeID string) (Identity, error) {
	seed, err := derive(key, "palisade peer identity v1", ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	priv := ed25519.NewKeyFromSeed(seed)
	pub, ok := priv.Public().(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("ed25519 gave a public key of another type")
	}
	// Nobody checks the dates (a node's clock may be years off); they are there because they must be.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: nodeID, Organization: []string{"palisade"}},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(2999, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, priv)
	if err != nil {
		return nil, fmt.Errorf("make the peer certificate: %w", err)
	}
	return &sharedKeyIdentity{
		cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: priv},
		pub:  pub,
	}, nil
}

// GossipKey derives the gossip key (AES-256) from the shared cluster key.
func GossipKey(key []byte) ([]byte, error) { return derive(key, "palisade gossip v1", 32) }

func derive(key []byte, info string, n int) ([]byte, error) {
	if len(key) < MinKeyBytes {
		return nil, fmt.Errorf("the cluster key has %d bytes, want at least %d", len(key), MinKeyBytes)
	}
	out, err := hkdf.Key(sha256.New, key, nil, info, n)
	if err != nil {
		return nil, fmt.Errorf("derive %q: %w", info, err)
	}
	return out, nil
}

func (s *sharedKeyIdentity) Server() *tls.Config {
	c := s.config("")
	c.ClientAuth = tls.RequireAnyClientCert
	return c
}

func (s *sharedKeyIdentity) Client(peerID string) *tls.Config {
	c := s.config(peerID)
	// The standard chain and name check has nothing to go by here: VerifyConnection is the check,
	// and it runs on every connection, resumed ones included.
	c.InsecureSkipVerify = true
	return c
}

func (s *sharedKeyIdentity) config(peerID string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{s.cert},
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return s.verify(cs.PeerCertificates, peerID)
		},
	}
}

// verify fails closed. TLS has already proven that the peer holds the private key of the leaf.
func (s *sharedKeyIdentity) verify(chain []*x509.Certificate, peerID string) error {
	if len(chain) == 0 {
		return errNotOfFleet
	}
	pub, ok := chain[0].PublicKey.(ed25519.PublicKey)
	if !ok || !bytes.Equal(pub, s.pub) {
		return errNotOfFleet
	}
	if got := chain[0].Subject.CommonName; peerID != "" && got != peerID {
		return fmt.Errorf("reached node %q where node %q should be: check the peer addresses", got, peerID)
	}
	return nil
}
