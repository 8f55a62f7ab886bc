package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/palisade/palisade/internal/files"
	"github.com/palisade/palisade/pki"
)

// What a TLS connection on the peer port is for, by ALPN.
const (
	alpnRaft = "palisade-raft"
	alpnRPC  = "h2"
	alpnJoin = "palisade-join" // without a certificate of the client
)

// Names of the files of an identity, in its directory, and of the seal key beside it.
const (
	identityDir  = "identity"
	fleetFile    = "fleet.json" // written last: with it the identity is whole
	keyFile      = "node.key"
	chainFile    = "node.crt"
	authorityPEM = "ca.pem" // of the trusted authorities, for people and clients of the API
	rosterFile   = "peers.json"
	keyringFile  = "gossip.json"
	sealFile     = "seal.key"
)

var (
	// ErrNoIdentity is a data directory without an identity: the node was neither init'ed nor joined.
	ErrNoIdentity = errors.New("this node belongs to no fleet yet")
	// errRefused is a peer that is not of this fleet, or not any more.
	errRefused = errors.New("the peer was refused")
)

// Identity is what a node proves itself by to its peers: its key and its certificate, and the seal key if it
// has one. It lives in files under the data directory, and is safe for concurrent use.
type Identity struct {
	dir  string // of the files; empty keeps none
	seal string // the file of the seal key
	now  func() time.Time

	mu      sync.Mutex // of changes; guards about, but for Fleet and Node
	cur     atomic.Pointer[credentials]
	sealKey atomic.Pointer[[]byte]
	about   fleetJSON
}

// credentials are one key with its certificate.
type credentials struct {
	key    *ecdsa.PrivateKey
	chain  [][]byte
	tls    tls.Certificate
	member pki.Member
}

// fleetJSON is what a node knows of its fleet for ever.
type fleetJSON struct {
	Fleet string `json:"fleet"`
	Node  string `json:"node"`
	// Proof is that of the present epoch, nil in the first.
	Proof *epochProof `json:"epoch_proof,omitempty"`
	// Generation is the number of starts of the agent.
	Generation uint64 `json:"generation"`
}

// LoadIdentity reads the identity under a data directory. The error wraps ErrNoIdentity if there is none, and
// otherwise names the file that can't be used; it never holds what was read.
func LoadIdentity(dataDir string) (*Identity, error) {
	dir := filepath.Join(dataDir, identityDir)
	i := &Identity{dir: dir, seal: filepath.Join(dataDir, sealFile), now: time.Now}
	path := filepath.Join(dir, fleetFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no %s", ErrNoIdentity, path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the identity: %w", err)
	}
	if err := json.Unmarshal(data, &i.about); err != nil {
		return nil, fmt.Errorf("read the identity %s: %w", path, err)
	}
	c, err := loadCredentials(dir)
	if err != nil {
		return nil, err
	}
	if c.member.Fleet != i.about.Fleet || c.member.Node != i.about.Node {
		return nil, fmt.Errorf("the certificate %s is of node %q in fleet %s, the identity is of node %q in fleet %s",
			filepath.Join(dir, chainFile), c.member.Node, c.member.Fleet, i.about.Node, i.about.Fleet)
	}
	i.cur.Store(c)
	key, err := os.ReadFile(i.seal)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("read the seal key: %w", err)
	case len(key) != pki.KeyBytes:
		return nil, fmt.Errorf("the seal key %s has %d bytes, not %d", i.seal, len(key), pki.KeyBytes)
	default:
		i.sealKey.Store(&key)
	}
	return i, nil
}

func loadCredentials(dir string) (*credentials, error) {
	read := func(name string) ([]byte, error) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("read the identity: %w", err)
		}
		return data, nil
	}
	text, err := read(keyFile)
	if err != nil {
		return nil, err
	}
	key, err := pki.DecodeKey(text)
	if err != nil {
		return nil, fmt.Errorf("the key %s: %w", filepath.Join(dir, keyFile), err)
	}
	if text, err = read(chainFile); err != nil {
		return nil, err
	}
	chain, err := pki.DecodeChain(text)
	if err != nil {
		return nil, fmt.Errorf("the certificate %s: %w", filepath.Join(dir, chainFile), err)
	}
	c, err := newCredentials(key, chain)
	if err != nil {
		return nil, fmt.Errorf("the certificate %s: %w", filepath.Join(dir, chainFile), err)
	}
	return c, nil
}

func newCredentials(key *ecdsa.PrivateKey, chain [][]byte) (*credentials, error) {
	if len(chain) == 0 {
		return nil, pki.ErrNoCertificate
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("it is not of this node's key")
	}
	member, err := pki.ReadMember(leaf)
	if err != nil {
		return nil, err
	}
	return &credentials{
		key: key, chain: chain, member: member,
		tls: tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf},
	}, nil
}

// save writes the key and the certificate, each as a whole. A renewed certificate is over the same key, so a
// crash in between leaves a pair that fits.
func (c *credentials) save(dir string) error {
	key, err := pki.EncodeKey(c.key)
	if err != nil {
		return err
	}
	return errors.Join(
		files.ReplaceBytes(filepath.Join(dir, keyFile), key),
		files.ReplaceBytes(filepath.Join(dir, chainFile), pki.EncodeChain(c.chain)),
	)
}

// file is where a file of the identity lies, empty if none is kept.
func (i *Identity) file(name string) string {
	if i.dir == "" {
		return ""
	}
	return filepath.Join(i.dir, name)
}

// Node is this node's id.
func (i *Identity) Node() string { return i.about.Node }

// Fleet is the id of the fleet.
func (i *Identity) Fleet() string { return i.about.Fleet }

// Certificate says what is in this node's present certificate.
func (i *Identity) Certificate() pki.Member { return i.cur.Load().member }

// SealKey is the key that opens the fleet's secrets, nil on a node that has none, as all that are not voters.
func (i *Identity) SealKey() []byte {
	if p := i.sealKey.Load(); p != nil {
		return *p
	}
	return nil
}

// putSealKey keeps the seal key, on the disk when it returns.
func (i *Identity) putSealKey(key []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.seal != "" {
		if err := files.ReplaceBytes(i.seal, key); err != nil {
			return fmt.Errorf("keep the seal key: %w", err)
		}
	}
	i.sealKey.Store(&key)
	return nil
}

// dropSeal deletes the seal key, from the disk when it returns, and whatever an interrupted putSealKey left there.
func (i *Identity) dropSeal() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.seal != "" {
		dir := filepath.Dir(i.seal)
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("delete the seal key: %w", err)
		}
		for _, f := range entries {
			if name := filepath.Base(i.seal); f.Name() != name && !strings.HasPrefix(f.Name(), "."+name+".") {
				continue
			}
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return fmt.Errorf("delete the seal key: %w", err)
			}
		}
		if err := files.SyncDir(dir); err != nil {
			return fmt.Errorf("delete the seal key: %w", err)
		}
	}
	i.sealKey.Store(nil)
	return nil
}

// swap puts a renewed certificate in the place of the present one, on the disk first. Connections stand.
func (i *Identity) swap(chain [][]byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	c, err := newCredentials(i.cur.Load().key, chain)
	if err != nil {
		return fmt.Errorf("the renewed certificate: %w", err)
	}
	if i.dir != "" {
		if err := c.save(i.dir); err != nil {
			return fmt.Errorf("keep the renewed certificate: %w", err)
		}
	}
	i.cur.Store(c)
	return nil
}

// reload takes the certificate on the disk, if it is newer than the present one, and says whether it was.
func (i *Identity) reload() (bool, error) {
	if i.dir == "" {
		return false, nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	c, err := loadCredentials(i.dir)
	if err != nil {
		return false, err
	}
	if was := i.cur.Load().member; c.member.Serial <= was.Serial {
		return false, nil
	} else if c.member.Fleet != was.Fleet || c.member.Node != was.Node {
		return false, fmt.Errorf("the certificate %s is now of node %q in fleet %s: an agent that runs can't become another node",
			filepath.Join(i.dir, chainFile), c.member.Node, c.member.Fleet)
	}
	i.cur.Store(c)
	return true, nil
}

// server is the config for incoming connections. What is trusted and who is accepted is asked of the
// directory with every handshake.
func (i *Identity) server(d *directory) *tls.Config {
	peers := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpnRaft, alpnRPC},
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &i.cur.Load().tls, nil
		},
		ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return i.verify(cs.PeerCertificates, d, "")
		},
	}
	joining := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpnJoin},
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return i.withAuthorities(d), nil
		},
	}
	config := peers.Clone()
	config.NextProtos = append(config.NextProtos, alpnJoin)
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == alpnJoin {
			return joining, nil
		}
		return peers, nil
	}
	return config
}

// withAuthorities is the certificate with all trusted authorities behind it: a joining node knows no more
// than the hash of one.
func (i *Identity) withAuthorities(d *directory) *tls.Certificate {
	cert := i.cur.Load().tls
	chain := append([][]byte(nil), cert.Certificate...)
	for _, der := range d.now().roster.Authorities {
		known := false
		for _, c := range chain {
			known = known || string(c) == string(der)
		}
		if !known {
			chain = append(chain, der)
		}
	}
	cert.Certificate = chain
	return &cert
}

// client is the config for a connection to the node with this id; it refuses any other.
func (i *Identity) client(d *directory, id, proto string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{proto},
		SessionTicketsDisabled: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &i.cur.Load().tls, nil
		},
		// The library's own check goes by host names. VerifyConnection is the check here, and it runs on
		// every connection.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != proto {
				return fmt.Errorf("the peer does not speak %q", proto)
			}
			return i.verify(cs.PeerCertificates, d, id)
		},
	}
}

// verify decides about a peer; it fails closed. TLS has proven that the peer holds the leaf's private key.
// want is the node that must be there, empty for any.
func (i *Identity) verify(chain []*x509.Certificate, d *directory, want string) error {
	trust := pki.Trust{Fleet: i.about.Fleet, Authorities: d.now().trusted}
	m, err := trust.Verify(chain, i.now())
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	if want != "" && m.Node != want {
		return fmt.Errorf("%w: reached node %q where node %q should be, check the addresses", errRefused, m.Node, want)
	}
	return d.accepts(m)
}

// A node that speaks raft proves first that it has the seal key, by a MAC over the TLS session. Only voters
// have it, so the proof holds however old the receiver's own idea of the voters is. Who has no key sends zeros.
const proofBytes = sha256.Size

func (i *Identity) proof(conn *tls.Conn) ([]byte, error) {
	key := i.SealKey()
	if key == nil {
		return make([]byte, proofBytes), nil
	}
	cs := conn.ConnectionState()
	bound, err := cs.ExportKeyingMaterial("EXPORTER-palisade-voter", nil, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("bind the proof to the connection: %w", err)
	}
	mac := hmac.New(sha256.New, key)
	_, _ = mac.Write(bound) // never fails
	return mac.Sum(nil), nil
}

func (i *Identity) sendProof(ctx context.Context, conn *tls.Conn) error {
	p, err := i.proof(conn)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.NetConn().Close() })()
	_, err = conn.Write(p)
	return err
}

// readProof says whether the peer has proven that it holds the seal key; false if this node has none to compare.
func (i *Identity) readProof(ctx context.Context, conn *tls.Conn) (bool, error) {
	defer context.AfterFunc(ctx, func() { _ = conn.NetConn().Close() })()
	got := make([]byte, proofBytes)
	if _, err := io.ReadFull(conn, got); err != nil {
		return false, err
	}
	if i.SealKey() == nil {
		return false, nil
	}
	want, err := i.proof(conn)
	if err != nil {
		return false, err
	}
	return hmac.Equal(got, want), nil
}
