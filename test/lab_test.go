// Package test checks the system as a whole: who may import whom, and fleets of real agents, each a
// process in namespaces of its own, with packets counted at the receiver.
package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/test/rig"
)

// lab is a fleet under test.
type lab struct{ *rig.Rig }

// shared is the fleet that most tests use: three nodes, two bridged guests each, one routed guest each, and a
// host that nobody manages.
var shared = rig.NewShared(func() fleet.Options {
	return fleet.Options{Prefix: "paltest", RoutedGuests: 3, Unmanaged: true}
})

func TestMain(m *testing.M) { os.Exit(shared.Main(m)) }

// newLab brings up a fleet of its own for one test.
func newLab(t *testing.T, o fleet.Options) *lab {
	t.Helper()
	l, err := bringUp(t.Context(), o)
	if l != nil {
		t.Cleanup(func() {
			if t.Failed() {
				l.ShowLogs(t)
			}
			if err := l.Down(context.Background()); err != nil {
				t.Errorf("the fleet did not go down: %v", err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// sharedLab returns the shared fleet, ready and blocking nothing.
func sharedLab(t *testing.T) *lab {
	t.Helper()
	return &lab{shared.Get(t)}
}

func bringUp(ctx context.Context, o fleet.Options) (*lab, error) {
	b, err := shared.Binaries()
	if err != nil {
		return nil, err
	}
	if o.Prefix == "" {
		o.Prefix = "palown"
	}
	r, err := rig.Up(ctx, b, o)
	if r == nil {
		return nil, err
	}
	return &lab{r}, err
}

// follower returns a node that does not lead, and the leader.
func (l *lab) follower(t *testing.T) (follower, leader string) {
	t.Helper()
	l.Eventually(t, "there is a leader", func() error {
		st, err := l.Clients[l.alive(t)].Status(t.Context())
		if err != nil {
			return err
		}
		if leader = st.Leader; leader == "" {
			return errors.New("no leader")
		}
		return nil
	})
	for _, n := range l.Nodes() {
		if n.Name != leader && n.Agent.Alive() {
			return n.Name, leader
		}
	}
	t.Fatal("no follower is alive")
	return "", ""
}

func (l *lab) alive(t *testing.T) string {
	t.Helper()
	for _, n := range l.Nodes() {
		if n.Agent.Alive() {
			return n.Name
		}
	}
	t.Fatal("no agent is alive")
	return ""
}

// rest lets the flows run for a while: this is what the packets are counted over.
func rest(d time.Duration) { time.Sleep(d) }

// response is a raw HTTP answer.
type response struct {
	status int
	header http.Header
	body   []byte
}

func (r response) problem(t *testing.T) client.Problem {
	t.Helper()
	var p client.Problem
	if err := json.Unmarshal(r.body, &p); err != nil {
		t.Fatalf("not a problem document: %v\n%s", err, r.body)
	}
	return p
}

// transport trusts the fleet's authority, and gives each request a connection of its own.
func (l *lab) transport(t *testing.T) *http.Transport {
	t.Helper()
	roots, err := l.Roots()
	if err != nil {
		t.Fatal(err)
	}
	return &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}}
}

// raw sends one request as it is, with the node's token unless the headers say otherwise.
func (l *lab) raw(t *testing.T, node, method, path, body string, header ...string) response {
	t.Helper()
	n, err := l.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, n.API+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+n.Token)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for pair := range slices.Chunk(header, 2) {
		req.Header.Set(pair[0], pair[1])
	}
	hc := http.Client{Transport: l.transport(t), Timeout: time.Minute}
	res, err := hc.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(res.Body); err != nil {
		t.Fatal(err)
	}
	return response{res.StatusCode, res.Header, buf.Bytes()}
}
