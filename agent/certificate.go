package agent

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/palisade/palisade/internal/files"
	"github.com/palisade/palisade/pki"
)

// certifier gives the certificate that the API presents, for each handshake anew.
type certifier interface {
	get(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

var (
	_ certifier = (*fileCertificate)(nil)
	_ certifier = (*fleetCertificate)(nil)
)

// tlsOfAPI is how the API's listeners speak.
func tlsOfAPI(c certifier) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: c.get, NextProtos: []string{"h2", "http/1.1"}}
}

// fileCertificate is the admin's own certificate. It is read again when its files have changed; one that can't
// be read leaves the one before in use.
type fileCertificate struct {
	log       *slog.Logger
	cert, key string
	now       func() time.Time

	mu     sync.Mutex
	cur    *tls.Certificate
	read   [2]fs.FileInfo
	looked time.Time
}

const statAgain = time.Second // at the files, at most

// newFileCertificate reads the files for the first time.
func newFileCertificate(log *slog.Logger, cert, key string, now func() time.Time) (*fileCertificate, error) {
	c := &fileCertificate{log: log, cert: cert, key: key, now: now}
	var err error
	if c.read, err = c.stat(); err != nil {
		return nil, fmt.Errorf("api.tls_cert: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("api.tls_cert: %w", err)
	}
	c.cur, c.looked = &pair, now()
	return c, nil
}

func (c *fileCertificate) stat() (info [2]fs.FileInfo, err error) {
	for i, path := range []string{c.cert, c.key} {
		if info[i], err = os.Stat(path); err != nil {
			return info, err
		}
	}
	return info, nil
}

func (c *fileCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now().Sub(c.looked) < statAgain {
		return c.cur, nil
	}
	c.looked = c.now()
	is, err := c.stat()
	if err == nil && sameFile(c.read[0], is[0]) && sameFile(c.read[1], is[1]) {
		return c.cur, nil
	}
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.LoadX509KeyPair(c.cert, c.key)
	}
	if err != nil {
		// The two files can't be replaced in one step: the next look may find a pair.
		c.log.Warn("the API's certificate has changed and can't be used; the one before is", "err", err)
		return c.cur, nil
	}
	c.cur, c.read = &pair, is
	c.log.Info("the API's certificate was read again", "file", c.cert, "until", pair.Leaf.NotAfter)
	return c.cur, nil
}

func sameFile(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// fleetCertificate is a certificate of the fleet's own authority. It is kept in the identity's directory, so
// that the API answers after a restart without a leader.
type fleetCertificate struct {
	dir string
	cur atomic.Pointer[tls.Certificate]

	key *ecdsa.PrivateKey
	// asked are the names and addresses of the last request: what the fleet left out is not asked for again.
	asked []string
}

const (
	apiKeyFile  = "api.key"
	apiCertFile = "api.crt"
)

// newFleetCertificate reads what an earlier life has left, if it can be used.
func newFleetCertificate(dir string) (*fleetCertificate, error) {
	c := &fleetCertificate{dir: dir}
	text, err := os.ReadFile(filepath.Join(dir, apiKeyFile))
	if err == nil {
		c.key, err = pki.DecodeKey(text)
	}
	if err != nil { // missing or damaged: nothing is lost with it
		if c.key, err = pki.NewKey(); err != nil {
			return nil, err
		}
		text, err := pki.EncodeKey(c.key)
		if err != nil {
			return nil, err
		}
		return c, files.ReplaceBytes(filepath.Join(dir, apiKeyFile), text)
	}
	if text, err = os.ReadFile(filepath.Join(dir, apiCertFile)); err == nil {
		if chain, err := pki.DecodeChain(text); err == nil {
			_ = c.use(chain) // of another key it is of no use, and a new one is got
		}
	}
	return c, nil
}

// use presents the chain from now on.
func (c *fleetCertificate) use(chain [][]byte) error {
	if len(chain) == 0 {
		return pki.ErrNoCertificate
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return fmt.Errorf("read the API's certificate: %w", err)
	}
	if !c.key.PublicKey.Equal(leaf.PublicKey) {
		return errors.New("the API's certificate is not of its key")
	}

	c.cur.Store(&tls.Certificate{Certificate: chain, PrivateKey: c.key, Leaf: leaf})
	return nil
}

// put is use, and keeps the chain for the next start.
func (c *fleetCertificate) put(chain [][]byte, asked []string) error {
	if err := c.use(chain); err != nil {
		return err
	}
	c.asked = asked
	return files.ReplaceBytes(filepath.Join(c.dir, apiCertFile), pki.EncodeChain(chain))
}

func (c *fleetCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert := c.cur.Load(); cert != nil {
		return cert, nil
	}
	return nil, errors.New("this node has no certificate for its API yet: the leader gives it one")
}

// due says why a new certificate is needed, "" if it is not. authority is the id of the current one.
func (c *fleetCertificate) due(now time.Time, authority string, names []string, addrs []netip.Addr) string {
	cert := c.cur.Load()
	switch {
	case cert == nil:
		return "there is none"
	case !now.Before(pki.RenewAt(cert.Leaf.NotBefore, cert.Leaf.NotAfter)):
		return "it ends soon"
	case !pki.SignedBy(cert.Leaf, authority):
		return "the authority has changed"
	case slices.Equal(c.asked, wanted(names, addrs)):
		return ""
	}
	for _, name := range names {
		if pki.Hostname(name) && cert.Leaf.VerifyHostname(name) != nil {
			return "a name was added"
		}
	}
	for _, a := range addrs {
		if cert.Leaf.VerifyHostname(a.String()) != nil {
			return "an address was added"
		}
	}
	return ""
}

// wanted is one text for each name and address.
func wanted(names []string, addrs []netip.Addr) []string {
	out := slices.Clone(names)
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}
