package pki

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// What is wrong with the certificate of a peer. Errors of Verify and VerifyPinned wrap one of these.
var (
	ErrNoCertificate = errors.New("the peer has no certificate")
	ErrUntrusted     = errors.New("the certificate is of no authority that is trusted here")
	ErrTime          = errors.New("the certificate is not valid at this time")
	ErrOtherFleet    = errors.New("the certificate is of another fleet")
	ErrNotNode       = errors.New("the certificate is not that of a node")
)

// Member is who a node's certificate says it is.
type Member struct {
	Fleet, Node         string
	Serial              uint64
	KeyHash             [32]byte
	NotBefore, NotAfter time.Time
}

// RenewAt is when a certificate with these limits should be renewed: at two thirds of its life.
func (m Member) RenewAt() time.Time { return RenewAt(m.NotBefore, m.NotAfter) }

// RenewAt is when a certificate should be renewed: at two thirds of the life that it had when it was signed.
func RenewAt(notBefore, notAfter time.Time) time.Time {
	signed := notBefore.Add(Backdate)
	return signed.Add(notAfter.Sub(signed) * 2 / 3)
}

// Trust is what a node accepts its peers by.
type Trust struct {
	Fleet       string
	Authorities []*x509.Certificate
}

// Verify checks the chain that a peer presented, its own certificate first. It knows nothing of the
// membership: whether the node was retired or has a newer certificate is for the caller to ask.
func (t Trust) Verify(chain []*x509.Certificate, now time.Time) (Member, error) {
	m, err := verify(chain, t.Authorities, now)
	if err != nil {
		return Member{}, err
	}
	if m.Fleet != t.Fleet {
		return Member{}, fmt.Errorf("%w: %s, this one is %s", ErrOtherFleet, m.Fleet, t.Fleet)
	}
	return m, nil
}

// VerifyPinned checks the chain of a peer of a fleet of which nothing is known but the KeyHash of an
// authority, which must be in the chain.
func VerifyPinned(chain []*x509.Certificate, pin [32]byte, now time.Time) (Member, error) {
	var pinned []*x509.Certificate
	for _, c := range chain[min(1, len(chain)):] {
		if KeyHash(c) == pin && c.IsCA {
			pinned = append(pinned, c)
		}
	}
	if len(chain) > 0 && len(pinned) == 0 {
		return Member{}, fmt.Errorf("%w: the join token is of a fleet with the authority %s", ErrUntrusted, short(pin))
	}
	return verify(chain, pinned, now)
}

func verify(chain, roots []*x509.Certificate, now time.Time) (Member, error) {
	if len(chain) == 0 {
		return Member{}, ErrNoCertificate
	}
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now,
		// Certificates of APIs have only the other one: they are nobody among peers.
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range roots {
		options.Roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		options.Intermediates.AddCert(c)
	}
	leaf := chain[0]
	if leaf.IsCA {
		return Member{}, fmt.Errorf("%w: it is that of an authority", ErrNotNode)
	}
	if _, err := leaf.Verify(options); err != nil {
		return Member{}, explain(err, leaf, now)
	}
	return member(leaf)
}

// explain sorts what the library says into our kinds.
func explain(err error, leaf *x509.Certificate, now time.Time) error {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if invalid.Reason == x509.Expired {
			return fmt.Errorf("%w: it is valid from %s to %s, the clock here says %s", ErrTime,
				stamp(leaf.NotBefore), stamp(leaf.NotAfter), stamp(now))
		}
		if invalid.Reason == x509.IncompatibleUsage {
			return fmt.Errorf("%w: it is for another use", ErrNotNode)
		}
	}
	return fmt.Errorf("%w: %w", ErrUntrusted, err)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// member reads the identity in a certificate, which must be written exactly as IssueNode writes it.
func member(leaf *x509.Certificate) (Member, error) {
	if len(leaf.URIs) != 1 || !leaf.SerialNumber.IsUint64() {
		return Member{}, fmt.Errorf("%w: it has no identity", ErrNotNode)
	}
	uri := leaf.URIs[0]
	node, _ := strings.CutPrefix(uri.Path, "/node/")
	want, err := nodeURI(uri.Host, node)
	if err != nil || want.String() != uri.String() {
		return Member{}, fmt.Errorf("%w: %q is no identity", ErrNotNode, uri.String())
	}
	return Member{
		Fleet: uri.Host, Node: node, Serial: leaf.SerialNumber.Uint64(), KeyHash: KeyHash(leaf),
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
	}, nil
}

// ReadMember reads whose certificate it is without checking that: for a node's own.
func ReadMember(leaf *x509.Certificate) (Member, error) { return member(leaf) }

// ParseChain reads certificates in DER.
func ParseChain(chain [][]byte) ([]*x509.Certificate, error) {
	out := make([]*x509.Certificate, 0, len(chain))
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("read a certificate: %w", err)
		}
		out = append(out, c)
	}
	return slices.Clip(out), nil
}

func short(hash [32]byte) string { return hex.EncodeToString(hash[:8]) + "..." }

// SignedBy says whether a certificate names the authority with this id (see Authority.ID) as the one that signed it.
// It checks no signature.
func SignedBy(c *x509.Certificate, authority string) bool {
	return len(c.AuthorityKeyId) > 0 && strings.HasPrefix(authority, hex.EncodeToString(c.AuthorityKeyId))
}
