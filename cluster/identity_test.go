package cluster

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
)

func testKey(b byte) []byte { return bytes.Repeat([]byte{b}, MinKeyBytes) }

func mustIdentity(t testing.TB, key []byte, id string) Identity {
	t.Helper()
	i, err := SharedKeyIdentity(key, id)
	if err != nil {
		t.Fatal(err)
	}
	return i
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

func TestSharedKeyAdmitsOnlyTheFleet(t *testing.T) {
	a := mustIdentity(t, testKey(1), "n1")
	b := mustIdentity(t, testKey(1), "n2")
	stranger := mustIdentity(t, testKey(2), "n2")

	if ce, se := handshake(a.Client("n2"), b.Server()); ce != nil || se != nil {
		t.Fatalf("same key: client %v, server %v", ce, se)
	}
	if ce, _ := handshake(a.Client("n2"), stranger.Server()); !errors.Is(ce, errNotOfFleet) {
		t.Errorf("a client accepted a server with another key: %v", ce)
	}
	// A stranger that does not check us must still be refused by the server.
	careless := stranger.Client("n1")
	careless.VerifyConnection = nil
	if ce, se := handshake(careless, a.Server()); !errors.Is(se, errNotOfFleet) || ce == nil {
		t.Errorf("a server accepted a client with another key: client %v, server %v", ce, se)
	}
	if _, se := handshake(&tls.Config{InsecureSkipVerify: true}, a.Server()); se == nil {
		t.Error("a server accepted a client without a certificate")
	}
	if ce, _ := handshake(a.Client("n3"), b.Server()); ce == nil || !strings.Contains(ce.Error(), `"n2" where node "n3"`) {
		t.Errorf("a client reached another node than it wanted and went on: %v", ce)
	}
	old := a.Client("n2")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if ce, se := handshake(old, b.Server()); ce == nil || se == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

func TestShortKeyIsRefused(t *testing.T) {
	if _, err := SharedKeyIdentity(make([]byte, MinKeyBytes-1), "n1"); err == nil {
		t.Error("a short key made an identity")
	}
	if _, err := GossipKey(nil); err == nil {
		t.Error("an empty key made a gossip key")
	}
	k, err := GossipKey(testKey(1))
	if err != nil || len(k) != 32 || bytes.Equal(k, testKey(1)) {
		t.Errorf("gossip key %x, %v", k, err)
	}
}
