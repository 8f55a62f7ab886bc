// Package pki makes and checks what a fleet trusts by: its certificate authorities, the certificates of
// its nodes and of their APIs, join tokens, and sealed secrets.
//
// It is pure: it does no I/O but reading crypto/rand, keeps no state, and takes the time as an argument.
// All keys that it makes are ECDSA P-256, which browsers accept. Everything in it is safe for concurrent use.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Lifetimes of certificates.
const (
	// AuthorityLifetime is long because an authority ends by a rotation, never by itself.
	AuthorityLifetime = 10 * 365 * 24 * time.Hour
	// LeafLifetime of the certificates of nodes and APIs. They are renewed at two thirds of it, which leaves
	// a node 30 days to be away in.
	LeafLifetime = 90 * 24 * time.Hour
	// Backdate is how long before now a certificate begins: the clock of who checks it may be behind.
	Backdate = time.Hour
)

// Authority is a certificate authority of a fleet with its private key. It never prints its key.
type Authority struct {
	cert  *x509.Certificate
	cross *x509.Certificate // the same name and key certified by the authority before; nil for the first
	key   *ecdsa.PrivateKey
}

// NewAuthority makes the first authority of a fleet.
func NewAuthority(fleet string, now time.Time) (*Authority, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	template, err := authorityTemplate(fleet, &key.PublicKey, now)
	if err != nil {
		return nil, err
	}
	cert, err := sign(template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make an authority: %w", err)
	}
	return &Authority{cert: cert, key: key}, nil
}

// Next makes the authority that follows this one. This one certifies it, so that who trusts only this one
// accepts what the next signs.
func (a *Authority) Next(fleet string, now time.Time) (*Authority, error) {
	next, err := NewAuthority(fleet, now)
	if err != nil {
		return nil, err
	}
	template, err := authorityTemplate(fleet, &next.key.PublicKey, now)
	if err != nil {
		return nil, err
	}
	template.MaxPathLen, template.MaxPathLenZero = 0, true
	if a.cert.NotAfter.Before(template.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	if next.cross, err = sign(template, a.cert, &next.key.PublicKey, a.key); err != nil {
		return nil, fmt.Errorf("certify the next authority: %w", err)
	}
	return next, nil
}

func authorityTemplate(fleet string, key *ecdsa.PublicKey, now time.Time) (*x509.Certificate, error) {
	serial, err := randomSerial()
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a public key: %w", err)
	}
	id := sha256.Sum256(spki)
	return &x509.Certificate{
		SerialNumber: serial,
		// The name is that of the key: chains are found by names.
		Subject:               pkix.Name{CommonName: "Palisade fleet " + fleet, SerialNumber: hex.EncodeToString(id[:8])},
		SubjectKeyId:          id[:20],
		NotBefore:             now.Add(-Backdate).UTC(),
		NotAfter:              now.Add(AuthorityLifetime).UTC(),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true, IsCA: true,
		MaxPathLen: 1, // the authority that follows, see Next
	}, nil
}

// OpenAuthority puts an authority together from its parts: the certificates in DER (cross is empty for the
// first authority of a fleet) and the key as Key gives it.
func OpenAuthority(certificate, cross, key []byte) (*Authority, error) {
	a := &Authority{}
	var err error
	if a.cert, err = x509.ParseCertificate(certificate); err != nil {
		return nil, fmt.Errorf("read an authority's certificate: %w", err)
	}
	if len(cross) > 0 {
		if a.cross, err = x509.ParseCertificate(cross); err != nil {
			return nil, fmt.Errorf("read an authority's cross certificate: %w", err)
		}
	}
	parsed, err := x509.ParsePKCS8PrivateKey(key)
	if err != nil {
		return nil, errors.New("read an authority's key: it is no PKCS #8") // the error could quote the key
	}
	ec, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !ec.PublicKey.Equal(a.cert.PublicKey) {
		return nil, errors.New("an authority's key is not that of its certificate")
	}
	a.key = ec
	return a, nil
}

// Key encodes the private key for Seal. It is the fleet's greatest secret.
func (a *Authority) Key() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return nil, fmt.Errorf("encode an authority's key: %w", err)
	}
	return der, nil
}

// ID is KeyHash of the certificate in hex: what operators compare, and what join tokens pin.
func (a *Authority) ID() string {
	h := KeyHash(a.cert)
	return hex.EncodeToString(h[:])
}

// Certificate is the self-signed certificate in DER.
func (a *Authority) Certificate() []byte { return a.cert.Raw }

// Cross is the certificate in DER that the authority before gave to this one, empty for the first.
func (a *Authority) Cross() []byte {
	if a.cross == nil {
		return nil
	}
	return a.cross.Raw
}

// Chain is what has to be presented with a certificate that the authority signed: the certificate, then the
// authority's own for who trusts only its predecessor or has only a pin. All in DER.
func (a *Authority) Chain(leaf []byte) [][]byte {
	chain := [][]byte{leaf}
	if a.cross != nil {
		chain = append(chain, a.cross.Raw)
	}
	return append(chain, a.cert.Raw)
}

// String names the authority without its key.
func (a *Authority) String() string { return "authority " + a.ID() }

// GoString is String, so that no verb prints the key.
func (a *Authority) GoString() string { return a.String() }

// KeyHash is the SHA-256 of a certificate's public key (its SubjectPublicKeyInfo).
func KeyHash(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// NewKey makes a private key.
func NewKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

func sign(template, parent *x509.Certificate, subject *ecdsa.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, subject, key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read a certificate just signed: %w", err)
	}
	return cert, nil
}

// randomSerial has more than 64 bits, so that it is never taken for the serial of a node's certificate.
func randomSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b), nil
}
