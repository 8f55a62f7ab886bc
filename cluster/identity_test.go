package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/pki"
)

// inMemory is an identity without files.
func inMemory(c *credentials, seal []byte) *Identity {
	i := &Identity{now: time.Now, about: fleetJSON{Fleet: c.member.Fleet, Node: c.member.Node}}
	i.cur.Store(c)
	if seal != nil {
		i.sealKey.Store(&seal)
	}
	return i
}

func mustDirectory(t testing.TB, self string, r Roster) *directory {
	t.Helper()
	d, err := newDirectory(self, "", r)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func mustKey(t testing.TB) (key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// handshake runs a TLS handshake over loopback and returns both sides' errors. The client reads a byte,
// because in TLS 1.3 it is done before the server has seen its certificate.
func handshake(client, server *tls.Config) (clientErr, serverErr error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err, err
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return err, err
	}
	b, err := ln.Accept()
	if err != nil {
		return err, err
	}
	cc, sc := tls.Client(a, client), tls.Server(b, server)
	done := make(chan error, 1)
	go func() {
		err := sc.Handshake()
		if err == nil {
			_, err = sc.Write([]byte{1})
		}
		b.Close()
		done <- err
	}()
	clientErr = cc.Handshake()
	if clientErr == nil {
		_, clientErr = cc.Read(make([]byte, 1))
	}
	a.Close()
	return clientErr, <-done
}

func threePeers() []Peer { return []Peer{memPeer(1), memPeer(2), memPeer(3)} }

func TestOnlyMembersShakeHands(t *testing.T) {
	b, other := bear(t, threePeers()), bear(t, threePeers())
	roster := b.roster
	n1, n2 := b.creds["n1"], b.creds["n2"]
	forged := issueBy(t, other.authority, b.fleet, mustKey(t), "n2", n2.member.Serial, 0)
	expired := b.issue(mustKey(t), "n2", n2.member.Serial, -time.Minute)
	unknown := b.issue(mustKey(t), "n9", 99, 0)
	retired := roster
	retired.Peers = []Peer{roster.Peers[0], roster.Peers[1], roster.Peers[2]}
	retired.Peers[1].Retired = true
	replaced := roster
	replaced.Peers = []Peer{roster.Peers[0], roster.Peers[1], roster.Peers[2]}
	replaced.Peers[1].Confirmed = n2.member.Serial + 1

	for name, c := range map[string]struct {
		peer   *credentials
		roster Roster
		refuse string // empty: let in
	}{
		"a member":                        {n2, roster, ""},
		"a node not known yet":            {unknown, roster, ""},
		"a renewed certificate":           {b.issue(n2.key, "n2", n2.member.Serial+7, 0), roster, ""},
		"an authority of the same name":   {forged, roster, "no authority that is trusted"},
		"another fleet":                   {other.creds["n2"], roster, "no authority that is trusted"},
		"another fleet, our authority":    {issueBy(t, b.authority, other.fleet, mustKey(t), "n2", 5, 0), roster, "of another fleet"},
		"expired":                         {expired, roster, "not valid at this time"},
		"retired":                         {n2, retired, `node "n2" is retired`},
		"an older certificate, replayed":  {n2, replaced, "has a newer certificate"},
		"the certificate of an authority": {&credentials{tls: tls.Certificate{Certificate: [][]byte{other.authority.Certificate()}, PrivateKey: mustKey(t)}}, roster, ""},
	} {
		t.Run(name, func(t *testing.T) {
			here := inMemory(n1, nil)
			dir := mustDirectory(t, "n1", c.roster)
			there := &Identity{now: time.Now, about: fleetJSON{Fleet: b.fleet, Node: "n2"}}
			there.cur.Store(c.peer)
			node := c.peer.member.Node
			careless := there.client(mustDirectory(t, "n2", roster), "n1", alpnRPC)
			careless.VerifyConnection = nil
			ce, se := handshake(careless, here.server(dir))
			if name == "the certificate of an authority" {
				if se == nil {
					t.Error("a certificate without its key was accepted")
				}
				return
			}
			lax := there.server(mustDirectory(t, "n2", roster))
			lax.GetConfigForClient = nil
			lax.VerifyConnection = nil
			ce2, _ := handshake(here.client(dir, node, alpnRPC), lax)
			if c.refuse == "" {
				if ce != nil || se != nil || ce2 != nil {
					t.Errorf("refused: %v, %v; as a server: %v", ce, se, ce2)
				}
				return
			}
			if !errors.Is(se, errRefused) || !strings.Contains(se.Error(), c.refuse) || ce == nil {
				t.Errorf("as a client: %v, told %v; want %q", se, ce, c.refuse)
			}
			if !errors.Is(ce2, errRefused) || !strings.Contains(ce2.Error(), c.refuse) {
				t.Errorf("as a server: %v; want %q", ce2, c.refuse)
			}
		})
	}

	here, dir := inMemory(n1, nil), mustDirectory(t, "n1", roster)
	there := inMemory(n2, nil)
	if _, se := handshake(&tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpnRPC}}, here.server(dir)); se == nil {
		t.Error("a client without a certificate was accepted")
	}
	if ce, _ := handshake(here.client(dir, "n3", alpnRPC), there.server(dir)); ce == nil || !strings.Contains(ce.Error(), `"n2" where node "n3"`) {
		t.Errorf("a client reached another node than it wanted and went on: %v", ce)
	}
	old := here.client(dir, "n2", alpnRPC)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if ce, se := handshake(old, there.server(dir)); ce == nil || se == nil {
		t.Error("TLS 1.2 was accepted")
	}
	serving, err := b.authority.IssueServing(mustRequest(t, n2.key), pki.ServingTerms{Node: "n2", Names: []string{"n2"}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	api := there.client(dir, "n1", alpnRPC)
	api.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: b.authority.Chain(serving), PrivateKey: n2.key}, nil
	}
	if _, se := handshake(api, here.server(dir)); !errors.Is(se, errRefused) {
		t.Errorf("the certificate of an API was taken for that of a node: %v", se)
	}
}

func mustRequest(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	request, err := pki.Request(key)
	if err != nil {
		t.Fatal(err)
	}
	return request
}

// TestRotatedAuthority: who trusts only the old authority accepts what the new one signed; who trusts only the new one
// refuses what the old one did.
func TestRotatedAuthority(t *testing.T) {
	b := bear(t, threePeers())
	next, err := b.authority.Next(b.fleet, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	after := b.roster
	after.Authorities = [][]byte{next.Certificate()}
	renewed := inMemory(issueBy(t, next, b.fleet, mustKey(t), "n2", 90, 0), nil)
	old := inMemory(b.creds["n1"], nil)
	was, is := mustDirectory(t, "n1", b.roster), mustDirectory(t, "n2", after)
	if ce, se := handshake(renewed.client(was, "n1", alpnRPC), old.server(was)); ce != nil || se != nil {
		t.Errorf("before the end of a rotation: %v, %v", ce, se)
	}
	if _, se := handshake(old.client(was, "n2", alpnRPC), renewed.server(is)); !errors.Is(se, errRefused) {
		t.Errorf("a certificate of the old authority after the rotation: %v", se)
	}
}

func TestCertificateIsSwapped(t *testing.T) {
	b := bear(t, threePeers())
	base := t.TempDir()
	b.settle("n2", base)
	i, err := LoadIdentity(base)
	if err != nil {
		t.Fatal(err)
	}
	dir := mustDirectory(t, "n1", b.roster)
	server, client := inMemory(b.creds["n1"], nil).server(dir), i.client(dir, "n1", alpnRPC)
	seen := uint64(0)
	inner := server.GetConfigForClient
	server.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := inner(h)
		c = c.Clone()
		check := c.VerifyConnection
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			seen = cs.PeerCertificates[0].SerialNumber.Uint64()
			return check(cs)
		}
		return c, err
	}
	for _, serial := range []uint64{b.creds["n2"].member.Serial, 50} {
		if serial == 50 {
			if err := i.swap(b.issue(b.creds["n2"].key, "n2", 50, 0).chain); err != nil {
				t.Fatal(err)
			}
		}
		if ce, se := handshake(client, server); ce != nil || se != nil || seen != serial {
			t.Errorf("presented certificate %d, want %d: %v, %v", seen, serial, ce, se)
		}
	}
	again, err := LoadIdentity(base)
	if err != nil || again.Certificate().Serial != 50 {
		t.Errorf("after a restart: %+v, %v", again.Certificate(), err)
	}
	if err := i.swap(b.issue(mustKey(t), "n2", 51, 0).chain); err == nil {
		t.Error("a certificate over another key was taken")
	}
	if i.Certificate().Serial != 50 {
		t.Error("a bad certificate took the place of a good one")
	}
}

func TestIdentityFilesAreChecked(t *testing.T) {
	b := bear(t, threePeers())
	if _, err := LoadIdentity(t.TempDir()); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("an empty directory: %v", err)
	}
	for name, spoil := range map[string]func(dir string) error{
		keyFile:   func(dir string) error { return os.WriteFile(filepath.Join(dir, keyFile), []byte("secret?"), 0o600) },
		chainFile: func(dir string) error { return os.Remove(filepath.Join(dir, chainFile)) },
		fleetFile: func(dir string) error { return os.WriteFile(filepath.Join(dir, fleetFile), []byte("{"), 0o600) },
		"of node": func(dir string) error { return b.creds["n3"].save(dir) },
		sealFile: func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "..", sealFile), []byte("short"), 0o600)
		},
	} {
		base := t.TempDir()
		b.settle("n2", base)
		if err := spoil(filepath.Join(base, identityDir)); err != nil {
			t.Fatal(err)
		}
		_, err := LoadIdentity(base)
		if err == nil || errors.Is(err, ErrNoIdentity) || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "secret?") {
			t.Errorf("%s: %v", name, err)
		}
	}
	base := t.TempDir()
	b.settle("n2", base)
	for _, name := range []string{fleetFile, keyFile, chainFile, keyringFile, rosterFile, authorityPEM} {
		st, err := os.Stat(filepath.Join(base, identityDir, name))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}

// TestOnlyVotersSpeakRaft: the proof is bound to the connection, and what is no proof is none.
func TestOnlyVotersSpeakRaft(t *testing.T) {
	b := bear(t, threePeers())
	for name, c := range map[string]struct {
		client, server []byte
		proven         bool
	}{
		"a voter":            {b.seal, b.seal, true},
		"no seal key":        {nil, b.seal, false},
		"another seal key":   {make([]byte, 32), b.seal, false},
		"nothing to tell by": {b.seal, nil, false},
	} {
		dir := mustDirectory(t, "n1", b.roster)
		from, to := inMemory(b.creds["n2"], c.client), inMemory(b.creds["n1"], c.server)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := tls.Dial("tcp", ln.Addr().String(), from.client(dir, "n1", alpnRaft))
			if err == nil {
				_ = from.sendProof(context.Background(), conn)
			}
		}()
		raw, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		proven, err := to.readProof(within(t, 5*time.Second), tls.Server(raw, to.server(dir)))
		if err != nil || proven != c.proven {
			t.Errorf("%s: proven %v, %v", name, proven, err)
		}
		raw.Close()
		ln.Close()
	}
}
