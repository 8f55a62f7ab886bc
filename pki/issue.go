package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// MaxRequestBytes is far above any request for a certificate that Request makes.
const MaxRequestBytes = 4 << 10

// ErrRequest is wrapped by the error of a request for a certificate that is none.
var ErrRequest = errors.New("no valid certificate request")

// Request makes a request for a certificate of the key (PKCS #10, DER). It says nothing but the key: what
// goes into the certificate is decided by who signs it.
func Request(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return der, nil
}

// RequestKey reads a request and proves that who made it has the key. It returns the KeyHash that a
// certificate for it will have. Errors wrap ErrRequest.
func RequestKey(request []byte) (hash [32]byte, err error) {
	_, hash, err = readRequest(request)
	return hash, err
}

func readRequest(request []byte) (key *ecdsa.PublicKey, hash [32]byte, err error) {
	if len(request) > MaxRequestBytes {
		return nil, hash, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrRequest, len(request), MaxRequestBytes)
	}
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, hash, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, hash, fmt.Errorf("%w: its key is not of ECDSA P-256", ErrRequest)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, hash, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return key, KeyHash(&x509.Certificate{RawSubjectPublicKeyInfo: csr.RawSubjectPublicKeyInfo}), nil
}

// NodeTerms are what a node's certificate says.
type NodeTerms struct {
	Fleet, Node string
	Serial      uint64        // grows with every certificate of a node
	Lifetime    time.Duration // zero is LeafLifetime
}

// NotAfter is when a certificate that is signed now would end. Certificates count in seconds.
func (t NodeTerms) NotAfter(now time.Time) time.Time { return notAfter(now, t.Lifetime) }

// IssueNode signs a node's certificate, by which it is both server and client to its peers, in DER.
func (a *Authority) IssueNode(request []byte, t NodeTerms, now time.Time) ([]byte, error) {
	key, _, err := readRequest(request)
	if err != nil {
		return nil, err
	}
	uri, err := nodeURI(t.Fleet, t.Node)
	if err != nil {
		return nil, err
	}
	template := leafTemplate(t.Node, now, t.Lifetime)
	template.SerialNumber = new(big.Int).SetUint64(t.Serial)
	template.URIs = []*url.URL{uri}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	return a.issue(template, key)
}

// ServingTerms are what the certificate of a node's API says.
type ServingTerms struct {
	Node      string
	Names     []string // DNS names; what can be none is left out
	Addresses []netip.Addr
	Lifetime  time.Duration // zero is LeafLifetime
}

// IssueServing signs the certificate of a node's API, in DER. It is no identity among peers.
func (a *Authority) IssueServing(request []byte, t ServingTerms, now time.Time) ([]byte, error) {
	key, _, err := readRequest(request)
	if err != nil {
		return nil, err
	}
	template := leafTemplate(t.Node, now, t.Lifetime)
	if template.SerialNumber, err = randomSerial(); err != nil {
		return nil, err
	}
	for _, name := range t.Names {
		if name = strings.ToLower(name); Hostname(name) && !slices.Contains(template.DNSNames, name) {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	for _, addr := range t.Addresses {
		if addr.IsValid() && !addr.IsUnspecified() {
			template.IPAddresses = append(template.IPAddresses, net.IP(addr.Unmap().AsSlice()))
		}
	}
	if len(template.DNSNames)+len(template.IPAddresses) == 0 {
		return nil, errors.New("the certificate of an API needs a name or an address")
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	return a.issue(template, key)
}

// issue signs a leaf, which never outlives what it is checked by.
func (a *Authority) issue(template *x509.Certificate, key *ecdsa.PublicKey) ([]byte, error) {
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	cert, err := sign(template, a.cert, key, a.key)
	if err != nil {
		return nil, err
	}
	return cert.Raw, nil
}

func leafTemplate(name string, now time.Time, lifetime time.Duration) *x509.Certificate {
	if len(name) > 64 {
		name = name[:64] // of a common name; the whole id is in the URI
	}
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-Backdate).UTC().Truncate(time.Second),
		NotAfter:              notAfter(now, lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
}

func notAfter(now time.Time, lifetime time.Duration) time.Time {
	if lifetime == 0 {
		lifetime = LeafLifetime
	}
	return now.Add(lifetime).UTC().Truncate(time.Second)
}

// Hostname says whether s can stand as a DNS name in a certificate; it must be in lower case.
func Hostname(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return true
}

// nodeURI is the identity in a node's certificate: palisade://FLEET/node/ID.
func nodeURI(fleet, node string) (*url.URL, error) {
	if !plain(fleet) || !plain(node) || strings.ContainsRune(fleet, ':') {
		return nil, fmt.Errorf("%q and %q are no ids of a fleet and a node", fleet, node)
	}
	return &url.URL{Scheme: "palisade", Host: fleet, Path: "/node/" + node}, nil
}

// plain says whether s consists of what ids consist of, which URIs never escape.
func plain(s string) bool {
	const most = 255
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._:-", rune(c)) {
			return false
		}
	}
	return s != "" && len(s) <= most
}
