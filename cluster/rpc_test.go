package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
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
