package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

const fleet = "0123456789abcdef"

func noon() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func authority(tb testing.TB) *Authority {
	tb.Helper()
	return must(NewAuthority(fleet, noon()))
}

func request(tb testing.TB) []byte {
	tb.Helper()
	return must(Request(must(NewKey())))
}

// node is the chain of a node's certificate.
func node(tb testing.TB, a *Authority, id string, serial uint64) []*x509.Certificate {
	tb.Helper()
	leaf := must(a.IssueNode(request(tb), NodeTerms{Fleet: fleet, Node: id, Serial: serial}, noon()))
	return must(ParseChain(a.Chain(leaf)))
}

func trust(tb testing.TB, all ...*Authority) Trust {
	tb.Helper()
	t := Trust{Fleet: fleet}
	for _, a := range all {
		t.Authorities = append(t.Authorities, must(x509.ParseCertificate(a.Certificate())))
	}
	return t
}

func TestANodeIsWhoItsCertificateSays(t *testing.T) {
	a := authority(t)
	key := must(NewKey())
	csr := must(Request(key))
	terms := NodeTerms{Fleet: fleet, Node: "kvm-7.example:a_b", Serial: 1<<64 - 1}
	chain := must(ParseChain(a.Chain(must(a.IssueNode(csr, terms, noon())))))
	m, err := trust(t, a).Verify(chain, noon())
	if err != nil {
		t.Fatal(err)
	}
	if m.Fleet != fleet || m.Node != terms.Node || m.Serial != terms.Serial || m.KeyHash != must(RequestKey(csr)) {
		t.Errorf("got %+v", m)
	}
	if !m.NotAfter.Equal(terms.NotAfter(noon())) || !m.NotAfter.Equal(noon().Add(90*24*time.Hour)) {
		t.Errorf("it ends at %s", m.NotAfter)
	}
	if got := m.RenewAt(); !got.Equal(noon().Add(60 * 24 * time.Hour)) {
		t.Errorf("it is renewed at %s", got)
	}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		t.Error("the certificate is of another key")
	}
}

func TestHostilePeersAreRefused(t *testing.T) {
	a, foreign := authority(t), authority(t)
	good := node(t, a, "n1", 5)
	other := must(a.IssueNode(request(t), NodeTerms{Fleet: "ffffffffffffffff", Node: "n1", Serial: 5}, noon()))
	serving := must(a.IssueServing(request(t), ServingTerms{Node: "n1", Names: []string{"n1"}}, noon()))
	self := selfSigned(t)
	for name, c := range map[string]struct {
		chain []*x509.Certificate
		now   time.Time
		want  error
		says  string
	}{
		"nothing":           {nil, noon(), ErrNoCertificate, "no certificate"},
		"foreign authority": {node(t, foreign, "n1", 5), noon(), ErrUntrusted, "unknown authority"},
		"self-signed":       {[]*x509.Certificate{self}, noon(), ErrUntrusted, ""},
		"other fleet":       {must(ParseChain(a.Chain(other))), noon(), ErrOtherFleet, "ffffffffffffffff"},
		"of an API":         {must(ParseChain(a.Chain(serving))), noon(), ErrNotNode, "another use"},
		"the authority":     {good[1:], noon(), ErrNotNode, "authority"},
		"expired":           {good, noon().Add(LeafLifetime + time.Second), ErrTime, "2027-02-21"},
		"not yet valid":     {good, noon().Add(-Backdate - time.Second), ErrTime, "clock"},
	} {
		m, err := trust(t, a).Verify(c.chain, c.now)
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: got %+v, %v", name, m, err)
		}
	}
	if _, err := trust(t, a).Verify(good, noon().Add(-Backdate+time.Second)); err != nil {
		t.Errorf("a clock that is a bit behind: %v", err)
	}
}

// selfSigned says that it is node n1, by itself.
func selfSigned(tb testing.TB) *x509.Certificate {
	tb.Helper()
	key := must(NewKey())
	template := leafTemplate("n1", noon(), 0)
	template.SerialNumber = must(randomSerial())
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return must(sign(template, template, &key.PublicKey, key))
}

// TestALeafSignsNothing: a stolen node can't admit others.
func TestALeafSignsNothing(t *testing.T) {
	a := authority(t)
	key := must(NewKey())
	leaf := must(a.IssueNode(must(Request(key)), NodeTerms{Fleet: fleet, Node: "n1", Serial: 5}, noon()))
	thief := &Authority{cert: must(x509.ParseCertificate(leaf)), key: key}
	forged := must(thief.IssueNode(request(t), NodeTerms{Fleet: fleet, Node: "n2", Serial: 6}, noon()))
	chain := must(ParseChain([][]byte{forged, leaf, a.Certificate()}))
	if m, err := trust(t, a).Verify(chain, noon()); !errors.Is(err, ErrUntrusted) {
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestIdentitiesAreReadStrictly(t *testing.T) {
	a := authority(t)
	for _, id := range []string{"", "a b", "n1/../n2", "n%31", "n\x00", "é", strings.Repeat("n", 256)} {
		if _, err := a.IssueNode(request(t), NodeTerms{Fleet: fleet, Node: id, Serial: 1}, noon()); err == nil {
			t.Errorf("node %q got a certificate", id)
		}
	}
	if _, err := a.IssueNode(request(t), NodeTerms{Fleet: "f:1", Node: "n1", Serial: 1}, noon()); err == nil {
		t.Error("a fleet with a port got a certificate")
	}
	long := strings.Repeat("n", 255)
	if m, err := trust(t, a).Verify(node(t, a, long, 1), noon()); err != nil || m.Node != long {
		t.Errorf("long id: %+v, %v", m, err)
	}
}

func TestARotationBreaksNoChain(t *testing.T) {
	first := authority(t)
	second := must(first.Next(fleet, noon()))
	third := must(second.Next(fleet, noon()))
	old, renewed := node(t, first, "n1", 5), node(t, second, "n2", 9)
	for _, c := range []struct {
		name  string
		trust Trust
		chain []*x509.Certificate
		ok    bool
	}{
		{"who has not heard of the rotation accepts the new", trust(t, first), renewed, true},
		{"both accept both", trust(t, first, second), old, true},
		{"both accept both", trust(t, first, second), renewed, true},
		{"the new alone accepts the new", trust(t, second), renewed, true},
		{"after the end the old is nothing", trust(t, second), old, false},
		{"nothing is inherited over two rotations", trust(t, first), node(t, third, "n3", 12), false},
	} {
		if m, err := c.trust.Verify(c.chain, noon()); (err == nil) != c.ok {
			t.Errorf("%s: %+v, %v", c.name, m, err)
		}
	}
	// A token made before the rotation pins the first, one made after it the second.
	pin := func(a *Authority) [32]byte { return KeyHash(must(x509.ParseCertificate(a.Certificate()))) }
	withFirst := append(bytesOf(renewed), first.Certificate())
	for name, p := range map[string][32]byte{"first": pin(first), "second": pin(second)} {
		if m, err := VerifyPinned(must(ParseChain(withFirst)), p, noon()); err != nil || m.Node != "n2" {
			t.Errorf("pinned to the %s: %+v, %v", name, m, err)
		}
	}
	if _, err := VerifyPinned(renewed, pin(third), noon()); !errors.Is(err, ErrUntrusted) {
		t.Errorf("pinned to another: %v", err)
	}
	if _, err := VerifyPinned(nil, pin(first), noon()); !errors.Is(err, ErrNoCertificate) {
		t.Errorf("no chain: %v", err)
	}
	// The certificate of the authority in a chain proves nothing about the leaf before it.
	forged := []*x509.Certificate{node(t, must(NewAuthority(fleet, noon())), "n1", 1)[0], old[1]}
	if _, err := VerifyPinned(forged, pin(first), noon()); !errors.Is(err, ErrUntrusted) {
		t.Errorf("forged: %v", err)
	}
}

func bytesOf(chain []*x509.Certificate) (der [][]byte) {
	for _, c := range chain {
		der = append(der, c.Raw)
	}
	return der
}

func TestAnAuthorityIsSealedAndOpened(t *testing.T) {
	first := authority(t)
	a := must(first.Next(fleet, noon()))
	seal := must(NewSecret())
	purpose := AuthorityPurpose(fleet, a.ID())
	sealed := must(Seal(seal, purpose, must(a.Key())))
	b := must(OpenAuthority(a.Certificate(), a.Cross(), must(Open(seal, purpose, sealed))))
	if m, err := trust(t, first).Verify(node(t, b, "n1", 3), noon()); err != nil || b.ID() != a.ID() {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := OpenAuthority(first.Certificate(), nil, must(a.Key())); err == nil {
		t.Error("a key was taken for that of another certificate")
	}
	for name, broken := range map[string][]byte{
		"changed": append(bytes.Clone(sealed[:len(sealed)-1]), sealed[len(sealed)-1]^1), "cut": sealed[:11], "empty": nil,
	} {
		if _, err := Open(seal, purpose, broken); !errors.Is(err, ErrSealed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(seal, GossipPurpose(fleet, a.ID()), sealed); !errors.Is(err, ErrSealed) {
		t.Errorf("another purpose: %v", err)
	}
	if _, err := Open(must(NewSecret()), purpose, sealed); !errors.Is(err, ErrSealed) {
		t.Errorf("another key: %v", err)
	}
	if _, err := Seal(seal[1:], purpose, nil); err == nil {
		t.Error("sealed with a short key")
	}
	if bytes.Equal(sealed, must(Seal(seal, purpose, must(a.Key())))) {
		t.Error("a nonce was used twice")
	}
}

// TestSealSame: the same gives the same, and whatever differs another nonce.
func TestSealSame(t *testing.T) {
	key := must(NewSecret())
	of := func(key []byte, purpose, secret string) []byte {
		sealed := must(SealSame(key, purpose, []byte(secret)))
		if got, err := Open(key, purpose, sealed); err != nil || string(got) != secret {
			t.Errorf("opened %q, %v", got, err)
		}
		return sealed
	}
	first := of(key, "p", "secret")
	if !bytes.Equal(first, of(key, "p", "secret")) {
		t.Error("the same secret gave another text")
	}
	for what, other := range map[string][]byte{
		"key": of(must(NewSecret()), "p", "secret"), "secret": of(key, "p", "Secret"), "purpose": of(key, "ps", "ecret"),
	} {
		if bytes.Equal(first[:nonceBytes], other[:nonceBytes]) {
			t.Errorf("another %s, and the same nonce", what)
		}
	}
	if _, err := SealSame(key[1:], "p", nil); err == nil {
		t.Error("sealed with a short key")
	}
}

func TestTheAPIHasItsNames(t *testing.T) {
	a := authority(t)
	terms := ServingTerms{
		Node: "n1", Names: []string{"N1", "n1", "a_b", "x..y", "-x", "kvm.example", ""},
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.IPv4Unspecified(), {}},
	}
	cert := must(x509.ParseCertificate(must(a.IssueServing(request(t), terms, noon()))))
	if got := fmt.Sprint(cert.DNSNames, cert.IPAddresses); got != "[n1 kvm.example] [192.0.2.1 2001:db8::1]" {
		t.Errorf("got %s", got)
	}
	pool := x509.NewCertPool()
	pool.AddCert(must(x509.ParseCertificate(a.Certificate())))
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, DNSName: "192.0.2.1", CurrentTime: noon()}); err != nil {
		t.Error(err)
	}
	if cert.SerialNumber.IsUint64() {
		t.Error("its serial could be that of a node")
	}
	if _, err := a.IssueServing(request(t), ServingTerms{Node: "n1", Names: []string{"_"}}, noon()); err == nil {
		t.Error("a certificate without a name was signed")
	}
}

func TestHostileRequests(t *testing.T) {
	good := request(t)
	weak := must(rsa.GenerateKey(rand.Reader, 2048))
	p224 := must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	changed := bytes.Clone(good)
	changed[len(changed)-1] ^= 1
	for name, csr := range map[string][]byte{
		"empty": nil, "cut": good[:50], "not of its key": changed, "long": bytes.Repeat([]byte{0x30}, MaxRequestBytes+1),
		"rsa":  must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)),
		"p224": must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p224)),
	} {
		if _, err := RequestKey(csr); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := authority(t).IssueNode(csr, NodeTerms{Fleet: fleet, Node: "n1", Serial: 1}, noon()); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: signed, %v", name, err)
		}
	}
}

func TestPEM(t *testing.T) {
	a := authority(t)
	chain := a.Chain(must(a.IssueNode(request(t), NodeTerms{Fleet: fleet, Node: "n1", Serial: 5}, noon())))
	text := EncodeChain(chain)
	if got := must(DecodeChain(text)); len(got) != 2 || !bytes.Equal(got[0], chain[0]) {
		t.Errorf("got %d certificates", len(got))
	}
	key := must(NewKey())
	secret := must(EncodeKey(key))
	if got := must(DecodeKey(secret)); !got.Equal(key) {
		t.Error("another key")
	}
	for name, in := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "key": secret, "cut": text[:100], "more": append(bytes.Clone(text), "x"...),
	} {
		if _, err := DecodeChain(in); err == nil {
			t.Errorf("%s was taken for certificates", name)
		}
	}
	for name, in := range map[string][]byte{"empty": nil, "chain": text, "twice": append(bytes.Clone(secret), secret...), "cut": secret[:80]} {
		if _, err := DecodeKey(in); err == nil {
			t.Errorf("%s was taken for a key", name)
		}
	}
}
