package test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/pki"
)

// on runs palisade on a node, as root does there, and returns what it prints.
func (l *lab) on(t *testing.T, node, stdin string, wantCode int, args ...string) string {
	t.Helper()
	n, err := l.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := l.Command(t.Context(), node, append([]string{l.Binary(node), "--socket", n.Socket}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != wantCode {
		t.Fatalf("palisade %v on %s: exit %d (%v), want %d\n%s", args, node, code, err, wantCode, out)
	}
	return string(out)
}

func (l *lab) config(node string) string { return filepath.Join(l.Dir(), node, "agent.toml") }

func (l *lab) identity(node string) string { return filepath.Join(l.Dir(), node, "data", "identity") }

// TestANodeJoins goes the way of an operator with a third node: every wrong token says what is wrong with it and changes
// nothing, the right one admits the node, which then enforces what the fleet does.
func TestANodeJoins(t *testing.T) {
	l := newLab(t, fleet.Options{Nodes: 3, Apart: 1, GuestsPerNode: 1, Prefix: "paljoin"})
	const node = "node-3"
	first := l.Nodes()[0]
	api := l.Clients[first.Name]
	if err := l.LaunchAgent(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	l.Eventually(t, "an agent without a fleet says how to go on", func() error {
		out := l.on(t, node, "", 4, "--retry-for", "0s", "status")
		if !strings.Contains(out, "belongs to no fleet yet") || !strings.Contains(out, "palisade join") {
			return errors.New(out)
		}
		return nil
	})
	v4, _ := l.Ends(t, "guest3")
	if _, err := api.AddBlock(t.Context(), client.BlockRequest{Target: client.Target{Prefix: v4.Addr.String()}, Reason: "abuse"}, client.Write{}); err != nil {
		t.Fatal(err)
	}
	good, err := api.CreateJoinToken(t.Context(), client.JoinTokenRequest{Node: node, TTL: "10m"})
	if err != nil {
		t.Fatal(err)
	}
	l.refusedTokens(t, api, node, good.Token)

	join := []string{"join", first.PeerAddress(), "--config", l.config(node), "--token-file", "-"}
	out := l.on(t, node, good.Token+"\n", 0, join...)
	for _, want := range []string{"key made, and admitted to fleet", "certificate until", "caught up at index", "in force in the kernel up to index", "as one of 3 nodes"} {
		if !strings.Contains(out, want) {
			t.Errorf("join does not say %q:\n%s", want, out)
		}
	}
	if !l.inLog(t, node) {
		t.Error("the admission is not in the log: nothing can be said of refused ones")
	}
	if rules := l.Ruleset(t, node); !strings.Contains(rules, v4.Addr.String()) {
		t.Errorf("what the fleet blocks is not in the kernel of the new node:\n%s", rules)
	}
	if out := l.on(t, node, good.Token, 1, join...); !strings.Contains(out, "belongs to a fleet already") {
		t.Errorf("joining twice says: %s", out)
	}
	if out := l.on(t, node, "", 1, "init", "--config", l.config(node)); !strings.Contains(out, "belongs to a fleet already") {
		t.Errorf("init on a member says: %s", out)
	}
	if out := l.on(t, node, "", 0, "join-token", "ls"); !strings.Contains(out, "used") || strings.Contains(out, good.Token) {
		t.Errorf("join-token ls:\n%s", out)
	}
	l.Eventually(t, "the new node is shown", func() error {
		n, err := api.Node(t.Context(), node)
		if err == nil && (!n.Healthy || n.State != "active" || n.Address == "" || n.Certificate == nil || !n.Certificate.Confirmed) {
			err = fmt.Errorf("%+v", n)
		}
		return err
	})
	l.usedToken(t, good.Token)
	l.lostAnswer(t, node, good.Token, join)
}

// refusedTokens tries every wrong token. None of these joins may come into the fleet's log, which strangers could fill with them.
func (l *lab) refusedTokens(t *testing.T, api *client.Client, node, good string) {
	t.Helper()
	address := l.Nodes()[0].PeerAddress()
	token := func(r client.JoinTokenRequest) string {
		t.Helper()
		made, err := api.CreateJoinToken(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return made.Token
	}
	parsed, err := pki.ParseJoinToken(good)
	if err != nil {
		t.Fatal(err)
	}
	fake := func(pin [32]byte) string {
		t.Helper()
		f, err := pki.NewJoinToken(pin)
		if err != nil {
			t.Fatal(err)
		}
		return f.Text()
	}
	short, other, zoned := token(client.JoinTokenRequest{TTL: "1ms"}), token(client.JoinTokenRequest{Node: "node-9"}), token(client.JoinTokenRequest{Zone: "z1"})
	tries := []struct {
		name, address, token string
		code                 int
		says                 string
		more                 []string
	}{
		{"garbage", address, "hello", 2, "a join token begins with pjt1.", nil},
		{"cut", address, good[:50], 2, "was it cut", nil},
		{"wrong secret", address, fake(parsed.Pin()), 3, "this fleet has no such join token", nil},
		{"foreign", address, fake([32]byte{1}), 3, "of another fleet", nil},
		{"expired", address, short, 3, "the join token ended at", nil},
		{"of another node", address, other, 3, "for node node-9 only", nil},
		{"of another zone", address, zoned, 3, `for zone "z1"`, []string{"--zone", "z2"}},
		{"to nobody", "10.90.0.99:7420", good, 4, "reach the fleet", nil},
		{"to no fleet", l.Nodes()[2].PeerAddress(), good, 4, "reach the fleet", nil},
	}
	for _, c := range tries {
		args := append([]string{"join", c.address, "--config", l.config(node), "--token-file", "-"}, c.more...)
		out := l.on(t, node, c.token, c.code, args...)
		if !strings.Contains(out, c.says) {
			t.Errorf("%s: got %s, want %q in it", c.name, out, c.says)
		}
		if len(c.token) > 20 && strings.Contains(out, c.token[20:]) {
			t.Errorf("%s: the answer shows the token", c.name)
		}
	}
	if l.inLog(t, node) {
		t.Error("a refused join is in the log")
	}
	if _, err := os.Stat(filepath.Join(l.identity(node), "fleet.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused node has an identity: %v", err)
	}
}

// inLog says whether a member's log holds a node's admission, which has its address. The log is looked into, for its index grows by what a fleet writes for itself.
func (l *lab) inLog(t *testing.T, node string) bool {
	t.Helper()
	n, err := l.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	for _, member := range []string{"node-1", "node-2"} {
		log, err := os.ReadFile(filepath.Join(l.Dir(), member, "data", "raft", "raft.db"))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(log, []byte(n.PeerAddress())) {
			return true
		}
	}
	return false
}

// usedToken tries the token that admitted a node for another one.
func (l *lab) usedToken(t *testing.T, token string) {
	t.Helper()
	b, err := os.ReadFile(l.config("node-2"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	text := strings.NewReplacer(filepath.Join(l.Dir(), "node-2", "data"), dir, `"node-2"`, `"node-4"`, ":742", ":842").Replace(string(b))
	config := filepath.Join(dir, "agent.toml")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out := l.on(t, "node-2", token, 3, "join", l.Nodes()[0].PeerAddress(), "--config", config, "--token-file", "-")
	if !strings.Contains(out, "was used by node node-3 at") || !strings.Contains(out, "join-token create") {
		t.Errorf("a used token: %s", out)
	}
}

// lostAnswer takes from a node what the answer to its joining gave it, as if that had been lost on the way: the same
// token admits it again, as the same member.
func (l *lab) lostAnswer(t *testing.T, node, token string, join []string) {
	t.Helper()
	before, err := l.Clients["node-1"].Node(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	l.kill(t, node)
	for _, name := range []string{"fleet.json", "node.crt", "peers.json", "gossip.json", "ca.pem"} {
		if err := os.Remove(filepath.Join(l.identity(node), name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.LaunchAgent(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	if out := l.on(t, node, token, 0, join...); !strings.Contains(out, "in force in the kernel") {
		t.Errorf("again, join says:\n%s", out)
	}
	after, err := l.Clients["node-1"].Node(t.Context(), node)
	if err != nil || after.Certificate.Serial != before.Certificate.Serial || !after.JoinedAt.Equal(before.JoinedAt) {
		t.Errorf("it is another member now: %+v, %v, was %+v", after, err, before)
	}
}

// writing adds and lifts blocks through a node without a retry of its own, until it is stopped. Every failure counts.
type writing struct {
	done   chan struct{}
	stop   context.CancelFunc
	writes atomic.Int64
	mu     sync.Mutex
	failed []error
}

func (l *lab) writing(t *testing.T, node string) *writing {
	t.Helper()
	n, err := l.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := &writing{done: make(chan struct{}), stop: cancel}
	go func() {
		defer close(w.done)
		var api *client.Client
		trusted := ""
		for i := 0; ctx.Err() == nil; i++ {
			pem, err := os.ReadFile(l.CAFile())
			if err == nil && string(pem) != trusted { // a client of long ago trusts over one rotation, not over two
				roots := x509.NewCertPool()
				roots.AppendCertsFromPEM(pem)
				trusted = string(pem)
				api, err = client.New(client.Options{URL: n.API, Token: n.Token, RootCAs: roots, RetryFor: -1})
			}
			if err == nil {
				var b client.Written
				target := client.Target{Prefix: fmt.Sprintf("198.51.100.%d", i%200+1)}
				if b, err = api.AddBlock(context.WithoutCancel(ctx), client.BlockRequest{Target: target, Reason: "abuse"}, client.Write{}); err == nil {
					_, err = api.LiftBlock(context.WithoutCancel(ctx), b.Block.ID, client.Write{})
				}
			}
			if err != nil {
				w.fail(fmt.Errorf("%s through %s: %w", time.Now().Format(time.TimeOnly), node, err))
			}
			w.writes.Add(2)
		}
	}()
	return w
}

func (w *writing) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = append(w.failed, err)
}

func (w *writing) end(t *testing.T) {
	t.Helper()
	w.stop()
	<-w.done
	t.Logf("%d writes, %d failed", w.writes.Load(), len(w.failed))
	if len(w.failed) > 0 {
		t.Errorf("%d writes failed, the first: %v", len(w.failed), w.failed[0])
	}
}

// TestKeysChangeWithoutInterruption rotates the authority and the gossip key twice under writes through every node, while
// certificates live so shortly that they renew themselves in between. Not one write may fail.
func TestKeysChangeWithoutInterruption(t *testing.T) {
	l := newLab(t, fleet.Options{Nodes: 3, GuestsPerNode: -1, Prefix: "palkeys"})
	for _, n := range l.Nodes() { // one after the other: an operator's change of the config
		b, err := os.ReadFile(l.config(n.Name))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(string(b), "[cluster]\n", "[cluster]\ncertificate_lifetime = \"30s\"\n", 1)
		if err := os.WriteFile(l.config(n.Name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := l.KillAgent(t.Context(), n.Name, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := l.StartAgent(t.Context(), n.Name); err != nil {
			t.Fatal(err)
		}
		if err := l.AwaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var all []*writing
	for _, n := range l.Nodes() {
		all = append(all, l.writing(t, n.Name))
	}
	serials := func() map[string]uint64 {
		out := map[string]uint64{}
		for _, n := range l.Nodes() {
			var got client.Node
			if err := l.Call(t.Context(), "node-1", "GET", "/v1/nodes/"+n.Name, nil, &got); err != nil {
				t.Fatal(err)
			}
			out[n.Name] = got.Certificate.Serial
		}
		return out
	}
	for round := range 2 {
		before := l.keys(t)
		l.on(t, "node-2", "", 0, "ca", "rotate", "--wait", "60s")
		l.on(t, "node-3", "", 0, "gossip-key", "rotate", "--wait", "60s")
		after := l.keys(t)
		if len(after.Authorities) != 1 || len(after.GossipKeys) != 1 || after.Authorities[0].SHA256 == before.Authorities[0].SHA256 ||
			after.GossipKeys[0].ID == before.GossipKeys[0].ID {
			t.Errorf("round %d: from %+v to %+v", round, before, after)
		}
		l.Eventually(t, "the file of authorities is new on every node", func() error {
			for _, n := range l.Nodes() {
				pem, err := os.ReadFile(filepath.Join(l.identity(n.Name), "ca.pem"))
				if err != nil || string(pem) != after.Authorities[0].Certificate {
					return fmt.Errorf("%s has another one, %w", n.Name, err)
				}
			}
			return nil
		})
		was := serials()
		l.Eventually(t, "every certificate renews itself", func() error {
			for node, serial := range serials() {
				if serial == was[node] {
					return fmt.Errorf("%s has certificate %d", node, serial)
				}
			}
			return nil
		})
	}
	for _, w := range all {
		w.end(t)
	}
	// Longer than any certificate has lived: the peers have met with new ones since.
	for _, n := range l.Nodes() {
		l.kill(t, n.Name)
		l.start(t, n.Name)
	}
	if err := l.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) keys(t *testing.T) client.Fleet {
	t.Helper()
	var out client.Fleet
	if err := json.Unmarshal([]byte(l.on(t, "node-1", "", 0, "-o", "json", "ca", "show")), &out); err != nil {
		t.Fatal(err)
	}
	return out
}
