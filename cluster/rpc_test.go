package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/pki"
)

// A common name has room for 64 bytes, an id may have 255: the identity is the one that the handshake has checked, or a
// node could choose an id that begins with the whole of another's and be taken for that one.
func TestACallerIsKnownByItsWholeID(t *testing.T) {
	b := bear(t, threePeers())
	victim := strings.Repeat("v", 64)
	for _, id := range []string{"n1", victim, victim + "2", strings.Repeat("x", 255)} {
		c := b.issue(mustKey(t), id, 7, 0)
		if got := peerOf(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.tls.Leaf}}); got != id {
			t.Errorf("node %q is taken for %q", id, got)
		}
	}
	if got := peerOf(&tls.ConnectionState{}); got != "" {
		t.Errorf("nobody is taken for %q", got)
	}
}

// TestWhoIsNoMemberChangesNothing: a node that the state does not know is let in on the authority's word, to be
// brought up to date; it may not write, nor get a certificate or a secret.
func TestWhoIsNoMemberChangesNothing(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 1).start().ready()
	c, _ := f.leader().now()
	request, err := pki.Request(mustKey(t))
	if err != nil {
		t.Fatal(err)
	}
	command, err := fsm.MarshalCommand(declare("vm1", "o"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, from := range []string{"n1", "stranger"} {
		member := from == "n1"
		got := map[string]bool{} // what was granted
		_, err := c.onSecrets(ctx, from, &peerpb.SecretsRequest{})
		got["secrets"] = err == nil
		_, err = c.onServing(ctx, from, &peerpb.ServingRequest{Request: request, Names: []string{from}})
		got["serving"] = err == nil
		resp, err := c.onRenew(ctx, from, &peerpb.RenewRequest{Request: request})
		got["renew"] = err == nil || resp != nil || !errors.Is(err, fsm.ErrUnavailable)
		_, err = c.onRotate(ctx, from, &peerpb.RotateRequest{What: rotateGossip})
		got["rotate"] = err == nil
		done, err := c.onPropose(ctx, from, &peerpb.ProposeRequest{Commands: [][]byte{command}})
		if err != nil {
			t.Fatal(err)
		}
		got["propose"] = done.GetOutcomes()[0].GetKind() != peerpb.Outcome_KIND_NOT_APPENDED
		for what, granted := range got {
			if granted != member {
				t.Errorf("%s from %s: granted %v", what, from, granted)
			}
		}
	}
}

// TestLoopbackIsEveryNodesOwn: a node that announces its API on the loopback, or by a name of its own, takes the loopback from
// no other's certificate, and the name from all.
func TestLoopbackIsEveryNodesOwn(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 2).start().ready()
	c, _ := f.leader().now()
	request, err := pki.Request(mustKey(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, api := range []string{"127.0.0.1:8440", "[::1]:8440", "localhost:8440", "kvm2.example:8440", "192.0.2.2:8440"} {
		res := f.leader().propose(fsm.Command{Actor: "node:n2", Op: fsm.PutNode{Node: fsm.Node{ID: "n2", Membership: fsm.Membership{API: api}}}})
		if res.Err != nil {
			t.Fatal(res.Err)
		}
		host := hostPart(api)
		terms := &peerpb.ServingRequest{Request: request, Names: []string{"n1", "localhost", "KVM2.example"}}
		for _, a := range []string{"127.0.0.1", "::1", "192.0.2.2", "192.0.2.1"} {
			terms.Addresses = append(terms.Addresses, netip.MustParseAddr(a).AsSlice())
		}
		resp, err := c.onServing(t.Context(), "n1", terms)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(resp.GetChain()[0])
		if err != nil {
			t.Fatal(err)
		}
		for name, own := range map[string]bool{"n1": true, "localhost": true, "127.0.0.1": true, "::1": true, "192.0.2.1": true, "kvm2.example": host != "kvm2.example", "192.0.2.2": host != "192.0.2.2"} {
			if err := cert.VerifyHostname(name); (err == nil) != own {
				t.Errorf("with the API of n2 at %s, the certificate of n1 for %s: %v", api, name, err)
			}
		}
	}
}
