package httpapi

import (
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
	"github.com/palisade/palisade/pki"
)

func TestJoinTokensAreShownOnceAndPinTheFleet(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	refused(t, s, request{method: "POST", path: "/v1/join-tokens", body: `{}`}, 404, wire.CodeNotFound)
	ca := f.Form()
	made := decode[wire.NewJoinToken](t, s.do(t, request{method: "POST", path: "/v1/join-tokens", body: `{"node":"n7","zone":"z2","ttl":"1h"}`}), 201)
	token, err := pki.ParseJoinToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(ca.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	if token.ID() != made.ID || token.Pin() != pki.KeyHash(cert) || made.Address != "192.0.2.1:7420" || made.State != "open" ||
		made.Node != "n7" || made.Zone != "z2" || made.ExpiresAt.Sub(made.CreatedAt) != time.Hour || made.Actor != "token:root" {
		t.Errorf("created %+v", made)
	}
	short := decode[wire.NewJoinToken](t, s.do(t, request{method: "POST", path: "/v1/join-tokens", body: `{}`}), 201)
	if short.ExpiresAt.Sub(short.CreatedAt) != 15*time.Minute {
		t.Errorf("without a time it ends after %s", short.ExpiresAt.Sub(short.CreatedAt))
	}
	refused(t, s, request{method: "POST", path: "/v1/join-tokens", body: `{"node":"n1"}`}, 409, wire.CodeConflict)
	refused(t, s, request{method: "POST", path: "/v1/join-tokens", body: `{"ttl":"1d"}`}, 422, wire.CodeInvalid)
	refused(t, s, request{method: "POST", path: "/v1/join-tokens", body: `{"ttl":"169h"}`}, 422, wire.CodeInvalid)
	refused(t, s, request{method: "POST", path: "/v1/join-tokens", body: `{"ttl":"-1h"}`}, 422, wire.CodeInvalid)

	admit := fsm.AdmitNode{Token: token.ID(), Hash: token.SecretHash(), Node: fsm.Admission{
		ID: "n7", Address: "192.0.2.7:7420", Gossip: "192.0.2.7:7421", KeyHash: [32]byte{7}, NotAfter: time.Now().Add(time.Hour),
	}}
	if res := f.Apply(admit); res.Err != nil {
		t.Fatal(res.Err)
	}
	body, _ := io.ReadAll(s.do(t, request{method: "GET", path: "/v1/join-tokens"}).Body)
	hash := token.SecretHash()
	for _, secret := range []string{made.Token, string(hash[:]), string(token.Secret())} {
		if strings.Contains(string(body), secret) {
			t.Error("the list shows a secret")
		}
	}
	list := decode[wire.Page[wire.JoinToken]](t, s.do(t, request{method: "GET", path: "/v1/join-tokens"}), 200)
	states := map[string]string{}
	for _, item := range list.Items {
		states[item.ID] = item.State + " " + item.UsedBy
	}
	if len(states) != 2 || states[made.ID] != "used n7" || states[short.ID] != "open " {
		t.Errorf("listed %v", states)
	}
	node := decode[wire.Node](t, s.do(t, request{method: "GET", path: "/v1/nodes/n7"}), 200)
	if node.Zone != "z2" || node.State != "active" || node.Address != "192.0.2.7:7420" || node.Certificate == nil || !node.Certificate.Confirmed || node.JoinedAt.IsZero() {
		t.Errorf("the node is %+v", node)
	}
	if res := s.do(t, request{method: "DELETE", path: "/v1/join-tokens/" + short.ID}); res.StatusCode != http.StatusNoContent {
		t.Errorf("deleting answers %d", res.StatusCode)
	}
	refused(t, s, request{method: "DELETE", path: "/v1/join-tokens/" + short.ID}, 404, wire.CodeNotFound)
}

func TestRotationsAreShownUntilTheyEnd(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	refused(t, s, request{method: "GET", path: "/v1/ca"}, 404, wire.CodeNotFound)
	refused(t, s, request{method: "POST", path: "/v1/ca/rotate"}, 409, wire.CodeConflict)
	ca := f.Form()
	was := decode[wire.Fleet](t, s.do(t, request{method: "GET", path: "/v1/ca"}), 200)
	if len(was.Authorities) != 1 || was.Authorities[0].SHA256 != ca.ID() || was.Authorities[0].State != "current" || len(was.Awaiting) != 0 ||
		!strings.Contains(was.Authorities[0].Certificate, "BEGIN CERTIFICATE") || was.GossipKeys[0].State != "primary" {
		t.Errorf("before: %+v", was)
	}
	is := decode[wire.Fleet](t, s.do(t, request{method: "POST", path: "/v1/ca/rotate"}), 200)
	if len(is.Authorities) != 2 || is.Authorities[0].State != "trusted" || is.Authorities[1].State != "current" || len(is.Awaiting) != 1 || is.Awaiting[0] != "n1" {
		t.Errorf("after: %+v", is)
	}
	refused(t, s, request{method: "POST", path: "/v1/ca/rotate"}, 409, wire.CodeConflict)
	keys := decode[wire.Fleet](t, s.do(t, request{method: "POST", path: "/v1/gossip-key/rotate"}), 200)
	if len(keys.GossipKeys) != 2 || keys.GossipKeys[1].State != "added" {
		t.Errorf("after: %+v", keys.GossipKeys)
	}
	body, _ := io.ReadAll(s.do(t, request{method: "GET", path: "/v1/ca"}).Body)
	if strings.Contains(string(body), "sealed") {
		t.Errorf("a sealed key is shown: %s", body)
	}
	if p := f.Proposals(); p[len(p)-1].Actor != "token:root" {
		t.Errorf("the rotation is recorded as that of %s", p[len(p)-1].Actor)
	}
	f.Set(func() { f.FailWith = func(fsm.Command) error { return fsm.ErrUnavailable } })
	refused(t, s, request{method: "POST", path: "/v1/gossip-key/rotate"}, 503, wire.CodeNoQuorum)
	f.Set(func() { f.FailWith = func(fsm.Command) error { return fsm.ErrUnknown } })
	refused(t, s, request{method: "POST", path: "/v1/gossip-key/rotate"}, 504, wire.CodeUnknownOutcome)
}

func TestANodeThatIsNotReadySaysWhy(t *testing.T) {
	for _, path := range []string{"/", "/v1/blocks", "/healthz"} {
		w := httptest.NewRecorder()
		NotReady("because").ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if p := decode[wire.Problem](t, w.Result(), 503); p.Code != wire.CodeNotReady || p.Detail != "because" {
			t.Errorf("%s: %+v", path, p)
		}
	}
}
