package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

func TestSlowHandshakesDontKeepPeersOut(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 2, func(_ string, o *Options) { o.Timing.Handshake = time.Second }).start().ready()
	addr := f.nodes[0].c.dir.now().all["n1"].Address
	// More connections than may shake hands at once from one host, saying nothing.
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range 3 * maxHandshakesPerHost {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	// The fleet's own connections stand; and the silent ones are thrown out in time.
	f.nodes[1].propose(declare("vm", "one"))
	closed := 0
	for _, c := range conns {
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
			closed++
		}
	}
	if closed != len(conns) {
		t.Errorf("%d of %d silent connections were closed", closed, len(conns))
	}
	// And then a new peer gets in again.
	f.nodes[1].crash()
	f.nodes[1].start()
	f.ready()
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// rawClient is a peer that may say anything.
func (f *fleet) rawClient(t *testing.T, to *node) *http.Client { return f.clientAs(t, to, "n2") }

func (f *fleet) clientAs(t *testing.T, to *node, id string) *http.Client {
	t.Helper()
	conf := inMemory(f.born.creds[id], nil).client(to.c.dir, to.id, alpnRPC)
	tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

func TestPeerRPCIsBounded(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 2).start().ready()
	to := f.nodes[0]
	client, base := f.rawClient(t, to), "https://"+to.c.dir.now().all[to.id].Address
	for name, c := range map[string]struct {
		path, timeout string
		body          io.Reader
		want          int
	}{
		"too large":        {"/v1/propose", "", bytes.NewReader(make([]byte, maxRequestBytes+1)), http.StatusRequestEntityTooLarge},
		"not a message":    {"/v1/propose", "", strings.NewReader("\xff\xff\xff"), http.StatusBadRequest},
		"bad deadline":     {"/v1/hello", "soon", nil, http.StatusBadRequest},
		"negative":         {"/v1/hello", "-1", nil, http.StatusBadRequest},
		"huge deadline":    {"/v1/hello", "9223372036854775807", nil, http.StatusOK},
		"unknown call":     {"/v1/else", "", nil, http.StatusNotFound},
		"plain hello":      {"/v1/hello", "100", nil, http.StatusOK},
		"deadline too big": {"/v1/hello", "99999999999999999999999", nil, http.StatusBadRequest},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+c.path, c.body)
		if err != nil {
			t.Fatal(err)
		}
		f.nodes[1].c.contacts.say(req.Header)
		if c.timeout != "" {
			req.Header.Set(timeoutHeader, c.timeout)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		res.Body.Close()
		if res.StatusCode != c.want {
			t.Errorf("%s: %s", name, res.Status)
		}
	}
	// A peer's garbage among good commands spoils only itself.
	l := f.leader()
	good, err := fsm.MarshalCommand(declare("vm", "one"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := f.follower().c.rpc.propose(within(t, 5*time.Second), l.id, &peerpb.ProposeRequest{Commands: [][]byte{[]byte("\xff\xff"), good}})
	if err != nil || resp.Outcomes[0].Kind != peerpb.Outcome_KIND_INVALID || resp.Outcomes[1].Kind != peerpb.Outcome_KIND_DONE {
		t.Errorf("outcomes %v, %v", resp, err)
	}
}

func TestOneProtocolOfTwoMustBeAgreed(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 1).start().ready()
	n := f.nodes[0]
	for _, protos := range [][]string{nil, {"http/1.1"}, {"spdy"}} {
		conf := inMemory(f.born.creds["n1"], nil).client(n.c.dir, "n1", alpnRPC)
		conf.NextProtos, conf.VerifyConnection = protos, nil
		conn, err := tls.Dial("tcp", n.c.dir.now().all["n1"].Address, conf)
		if err != nil {
			continue
		}
		_, _ = conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		answer, err := io.ReadAll(conn)
		if len(answer) > 0 || isTimeout(err) {
			t.Errorf("with ALPN %q the port answered %q, %v", protos, answer, err)
		}
		_ = conn.Close()
	}
	n.propose(declare("vm", "one"))
}

func TestOptionsAreChecked(t *testing.T) {
	id := inMemory(bear(t, threePeers()).creds["n1"], nil)
	good := func() Options {
		return Options{
			ID: "n1", Dir: "/x", Bind: "127.0.0.1:0", Identity: id, Store: fsm.NewStore(), Logger: logger(t),
			Answer: func(context.Context, fsm.Query) (fsm.Report, error) { return fsm.Report{}, nil },
			Fatal:  func(error) {},
		}
	}
	o := good()
	if _, err := New(o); err != nil {
		t.Fatalf("good options: %v", err)
	}
	for want, spoil := range map[string]func(*Options){
		`is of node "n1"`:     func(o *Options) { o.ID = "n2" },
		"not ip:port":         func(o *Options) { o.GossipBind = "host:1" },
		"Store is missing":    func(o *Options) { o.Store = nil },
		"Answer is missing":   func(o *Options) { o.Answer = nil },
		"Fatal is missing":    func(o *Options) { o.Fatal = nil },
		"Logger is missing":   func(o *Options) { o.Logger = nil },
		"Dir is missing":      func(o *Options) { o.Dir = "" },
		"Identity is missing": func(o *Options) { o.Identity = nil },
		"Listen and Bind":     func(o *Options) { o.Bind = "" },
		"Lease <= Heartbeat":  func(o *Options) { o.Timing.Lease = 2 * time.Second },
	} {
		o := good()
		spoil(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}
