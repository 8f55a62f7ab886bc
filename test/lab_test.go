// Package test checks the system as a whole: who may import whom, and fleets of real agents, each a
// process in namespaces of its own, with packets counted at the receiver.
package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
)

// lab is a fleet with a client for each node.
type lab struct {
	*fleet.Fleet
	probe   *probe.Probe
	clients map[string]*client.Client
}

// binaries are built once for all tests of a run.
type binaries struct {
	dir, palisade, probe string
	err                  error
}

var buildOnce = sync.OnceValue(func() (b binaries) {
	if b.dir, b.err = os.MkdirTemp("/var/tmp", "palisade-test-"); b.err != nil {
		return b
	}
	build := func(out, pkg string) {
		cmd := exec.Command("go", "build", "-tags", "hashicorpmetrics", "-o", out, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			b.err = errors.Join(b.err, fmt.Errorf("build %s: %w\n%s", pkg, err, text))
		}
	}
	b.probe = filepath.Join(b.dir, "probe")
	build(b.probe, module+"internal/probe/cmd/probe")
	if b.palisade = os.Getenv("PALISADE_BINARY"); b.palisade == "" {
		b.palisade = filepath.Join(b.dir, "palisade")
		build(b.palisade, module+"cmd/palisade")
	}
	return b
})

// shared is the fleet that most tests use, one after the other. Each leaves it whole.
var shared struct {
	once sync.Once
	lab  *lab
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.lab != nil {
		if err := shared.lab.Down(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "the shared fleet did not go down:", err)
			code = max(code, 1)
		}
	}
	if b := buildOnce(); b.dir != "" {
		_ = os.RemoveAll(b.dir)
	}
	os.Exit(code)
}

// newLab brings up a fleet of its own for one test.
func newLab(t *testing.T, o fleet.Options) *lab {
	t.Helper()
	l, err := bringUp(o)
	if l != nil {
		t.Cleanup(func() {
			if t.Failed() {
				l.showLogs(t)
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

// sharedLab returns the shared fleet: three nodes, two bridged guests each, one routed guest each, and a
// host that nobody manages. It is ready and blocks nothing.
func sharedLab(t *testing.T) *lab {
	t.Helper()
	shared.once.Do(func() {
		shared.lab, shared.err = bringUp(fleet.Options{Prefix: "paltest", RoutedGuests: 3, Unmanaged: true})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	l := shared.lab
	t.Cleanup(func() {
		if t.Failed() {
			l.showLogs(t)
		}
		l.heal(t)
	})
	return l
}

func bringUp(o fleet.Options) (*lab, error) {
	b := buildOnce()
	if b.err != nil {
		return nil, b.err
	}
	if o.Prefix == "" {
		o.Prefix = "palown"
	}
	o.Dir, o.Binary = filepath.Join(b.dir, o.Prefix), b.palisade
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	f, err := fleet.Up(ctx, o)
	if f == nil {
		return nil, err
	}
	l := &lab{Fleet: f, probe: &probe.Probe{Binary: b.probe, Stderr: os.Stderr}, clients: map[string]*client.Client{}}
	for _, n := range f.Nodes() {
		c, cerr := client.New(client.Options{URL: n.API, Token: n.Token, RetryFor: 20 * time.Second})
		if cerr != nil {
			return l, errors.Join(err, cerr)
		}
		l.clients[n.Name] = c
	}
	return l, err
}

// heal starts what is down, heals what is cut, lifts what is blocked, and waits until all is well.
func (l *lab) heal(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, n := range l.Nodes() {
		if err := l.HealNode(ctx, n.Name); err != nil {
			t.Error(err)
		}
		if !n.Agent.Alive() {
			if err := l.StartAgent(ctx, n.Name); err != nil {
				t.Error(err)
			}
		}
	}
	if err := l.AwaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	c := l.clients[l.Nodes()[0].Name]
	for b, err := range c.Blocks(ctx, client.BlockFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.LiftBlock(ctx, b.ID, client.Write{Wait: true}); err != nil {
			t.Error(err)
		}
	}
}

func (l *lab) showLogs(t *testing.T) {
	for _, n := range l.Nodes() {
		b, err := os.ReadFile(l.AgentLog(n.Name))
		if err != nil {
			continue
		}
		lines := bytes.Split(b, []byte("\n"))
		t.Logf("log of %s, last lines:\n%s", n.Name, bytes.Join(lines[max(0, len(lines)-25):], []byte("\n")))
	}
}

// follower returns a node that does not lead, and the leader.
func (l *lab) follower(t *testing.T) (follower, leader string) {
	t.Helper()
	l.eventually(t, "there is a leader", func() error {
		st, err := l.clients[l.alive(t)].Status(t.Context())
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

// eventually tries until ok gives nil; it fails the test after 30 s.
func (l *lab) eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// block blocks through a node and returns once every live kernel has it, with the time of the answer.
func (l *lab) block(t *testing.T, node string, target client.Target) (client.Block, time.Time) {
	t.Helper()
	w, err := l.clients[node].AddBlock(t.Context(), client.BlockRequest{Target: target, Reason: "abuse"}, client.Write{Wait: true, Timeout: 20 * time.Second})
	at := time.Now()
	if err != nil {
		t.Fatalf("block %s through %s: %v", target, node, err)
	}
	if !w.Confirmed {
		t.Fatalf("block %s: not every live node confirmed: %+v", target, w.Block)
	}
	return w.Block, at
}

func (l *lab) lift(t *testing.T, node, id string) time.Time {
	t.Helper()
	w, err := l.clients[node].LiftBlock(t.Context(), id, client.Write{Wait: true, Timeout: 20 * time.Second})
	if err != nil || !w.Confirmed {
		t.Fatalf("lift %s through %s: %+v, %v", id, node, w, err)
	}
	return time.Now()
}

// ends returns the places of a node, a guest, fleet.Outside or fleet.Unmanaged: IPv4, IPv6.
func (l *lab) ends(t *testing.T, where string) (v4, v6 probe.End) {
	t.Helper()
	var netns string
	var addrs []netip.Addr
	parse := func(list []string) {
		for _, s := range list {
			addrs = append(addrs, netip.MustParseAddr(s))
		}
	}
	if n, err := l.Node(where); err == nil {
		netns = n.Netns
		parse(n.Addresses)
	} else if g, err := l.Guest(where); err == nil {
		netns = g.Netns
		parse(g.Addresses)
	} else {
		prefix := strings.TrimSuffix(l.Nodes()[0].Netns, "-n1")
		switch where {
		case fleet.Outside:
			netns, addrs = prefix+"-n0", l.OutsideAddresses()
		case fleet.Unmanaged:
			netns, addrs = prefix+"-u1", l.UnmanagedAddresses()
		default:
			t.Fatalf("%q is nothing in this fleet", where)
		}
	}
	v4, v6 = probe.End{Netns: netns, Addr: addrs[0]}, probe.End{Netns: netns, Addr: addrs[1]}
	return v4, v6
}

// flows holds running flows, and ends them with the test.
type flows struct {
	t    *testing.T
	lab  *lab
	port int
	all  []*probe.Flow
}

func (l *lab) flows(t *testing.T) *flows {
	f := &flows{t: t, lab: l, port: 20000}
	t.Cleanup(func() {
		for _, fl := range f.all {
			fl.Close()
		}
	})
	return f
}

const (
	rateUDP = 200 // packets a second in one flow
	rateTCP = 50  // records a second
)

// udp starts flows between two places, both ways, in both families.
func (f *flows) udp(a, b string) []*probe.Flow {
	f.t.Helper()
	a4, a6 := f.lab.ends(f.t, a)
	b4, b6 := f.lab.ends(f.t, b)
	var out []*probe.Flow
	for _, p := range [][2]probe.End{{a4, b4}, {b4, a4}, {a6, b6}, {b6, a6}} {
		out = append(out, f.one(a, b, p[0], p[1]))
	}
	return out
}

func (f *flows) one(a, b string, from, to probe.End) *probe.Flow {
	f.t.Helper()
	f.port++
	fl, err := f.lab.probe.UDP(f.t.Context(), fmt.Sprintf("%s-%s %s>%s", a, b, from.Addr, to.Addr), from, to, f.port, rateUDP)
	if err != nil {
		f.t.Fatal(err)
	}
	f.all = append(f.all, fl)
	return fl
}

func (f *flows) tcp(a, b string, from, to probe.End) *probe.Flow {
	f.t.Helper()
	f.port++
	fl, err := f.lab.probe.TCP(f.t.Context(), fmt.Sprintf("%s-%s tcp %s>%s", a, b, from.Addr, to.Addr), from, to, f.port, rateTCP)
	if err != nil {
		f.t.Fatal(err)
	}
	f.all = append(f.all, fl)
	return fl
}

// passing waits until packets sent from now on arrive in every flow.
func (f *flows) passing(list []*probe.Flow) {
	f.t.Helper()
	from := time.Now()
	for _, fl := range list {
		f.lab.eventually(f.t, fl.Name+" passes", func() error {
			r, err := fl.Report()
			if err != nil {
				return err
			}
			if n := r.After(from); n < 5 && r.Records == 0 {
				return fmt.Errorf("%d of %d packets arrived", n, r.Sent)
			}
			return nil
		})
	}
}

// silent checks that nothing arrived after the time, and that the senders did try.
func (f *flows) silent(list []*probe.Flow, since time.Time) {
	f.t.Helper()
	for _, fl := range list {
		r, err := fl.Report()
		if err != nil {
			f.t.Fatal(err)
		}
		if n := r.After(since); n != 0 {
			f.t.Errorf("%s: %d packets arrived after the block was reported in force, the last %v later", fl.Name, n,
				time.Unix(0, r.Received[len(r.Received)-1].At).Sub(since))
		}
		if tried := r.Sent - uint64(len(r.Received)); tried == 0 {
			f.t.Errorf("%s: nothing was sent that could have leaked", fl.Name)
		}
	}
}

// lossless stops the flows and checks that every packet arrived.
func (f *flows) lossless(list []*probe.Flow) {
	f.t.Helper()
	var wg sync.WaitGroup
	for _, fl := range list {
		wg.Go(func() {
			r, err := fl.Stop(3 * time.Second)
			switch lost := r.Lost(); {
			case err != nil:
				f.t.Errorf("%s: %v", fl.Name, err)
			case len(lost) != 0:
				f.t.Errorf("%s, innocent: lost %d of %d packets (%d refused by the own kernel), first %v", fl.Name, len(lost), r.Sent, r.Failed, lost[:min(len(lost), 5)])
			case r.Sent < rateUDP/2:
				f.t.Errorf("%s: only %d packets were sent; the test shows nothing", fl.Name, r.Sent)
			}
		})
	}
	wg.Wait()
}

// rest lets the flows run for a while: this is what the packets are counted over.
func rest(d time.Duration) { time.Sleep(d) }

// ruleset lists a node's kernel rules without counters.
func (l *lab) ruleset(t *testing.T, node string) string {
	t.Helper()
	out, err := l.Exec(t.Context(), node, "nft", "-s", "list", "ruleset")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

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
	hc := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
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
