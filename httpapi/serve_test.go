package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// served is a server on real listeners.
type served struct {
	*Server
	url    string // of TCP
	socket string
	stop   func() // and wait
	client *http.Client
}

func serve(t *testing.T, f *fleet, change ...func(*Options)) *served {
	t.Helper()
	out := &served{Server: newServer(t, f, change...), socket: filepath.Join(t.TempDir(), "sock")}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sock, err := net.Listen("unix", out.socket)
	if err != nil {
		t.Fatal(err)
	}
	out.url = "http://" + tcp.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- out.Serve(ctx, []net.Listener{tcp}, sock) }()
	tr := &http.Transport{}
	out.client = &http.Client{Transport: tr}
	stopped := false
	out.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("Serve does not end")
		}
	}
	t.Cleanup(func() { tr.CloseIdleConnections(); out.stop() })
	return out
}

func (s *served) get(t *testing.T, path string, header ...string) *http.Response {
	t.Helper()
	return s.send(t, "GET", path, "", header...)
}

func (s *served) send(t *testing.T, method, path, body string, header ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set("Authorization", "Bearer "+adminToken)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := s.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

func TestUnixSocketNeedsNoToken(t *testing.T) {
	f := newFleet(t)
	s := serve(t, f)
	c := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", s.socket) }}}
	defer c.CloseIdleConnections()
	res, err := c.Post("http://x/v1/blocks", "application/json", strings.NewReader(`{"target":{"prefix":"203.0.113.5"}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b := decode[wire.Block](t, res, 201)
	if want := "unix:" + strconv.Itoa(os.Getuid()); b.Actor != want {
		t.Errorf("actor %q, want %q", b.Actor, want)
	}
	// The same handler over TCP knows nobody without a token.
	r, err := s.client.Get(s.url + "/v1/blocks")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	decode[wire.Problem](t, r, 401)
}

// Another user who gets at the socket, whatever its mode, is refused by what the kernel says of it.
func TestUnixSocketRefusesOtherUsers(t *testing.T) {
	for _, c := range []struct {
		p    peer
		want wire.Code
	}{
		{peer{uid: 0}, ""},
		{peer{uid: uint32(os.Geteuid())}, ""},
		{peer{uid: 65534}, wire.CodeForbidden},
		{peer{uid: 0, err: errors.New("no credentials")}, wire.CodeForbidden},
	} {
		_, p := identifyPeer(c.p)
		if (p == nil) != (c.want == "") || (p != nil && p.Code != c.want) {
			t.Errorf("%+v: %v", c.p, p)
		}
	}
	if os.Getuid() != 0 {
		t.Fatal("this test needs root, to become another user")
	}
	dir, err := os.MkdirTemp("/tmp", "palisade") //nolint:usetesting // t.TempDir is under a directory that others cannot enter
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := newServer(t, newFleet(t))
	go func() { done <- s.Serve(ctx, nil, ln) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	cmd := exec.Command("/bin/sh", "-c", `exec perl -MIO::Socket::UNIX -e '
		$s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "$!"; print $s "GET /v1/blocks HTTP/1.0\r\n\r\n"; print <$s>;' `+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("403 Forbidden")) || !bytes.Contains(out, []byte("uid 65534")) {
		t.Errorf("%v: %s", err, out)
	}
}

// A wait outlasts the time that a caller has to send its request.
func TestWaitOutlastsReadTimeout(t *testing.T) {
	f := newFleet(t, "n2")
	s := serve(t, f, func(o *Options) { o.ReadTimeout = 100 * time.Millisecond })
	for _, q := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "/v1/blocks", `{"target":{"prefix":"203.0.113.5"}}`, 201},
		{"DELETE", "/v1/blocks/b1", "", 200},
	} {
		f.Set(func() { f.Peers["n2"].Hangs = true })
		heal := time.AfterFunc(400*time.Millisecond, func() { f.Set(func() { f.Peers["n2"].Hangs = false }) })
		b := decode[wire.Block](t, s.send(t, q.method, q.path+"?wait=enforced&timeout=30s", q.body), q.status)
		if nodes(b.Receipts) != "n1 n2" {
			t.Errorf("%s: %+v", q.method, b)
		}
		heal.Stop()
	}
}

// A caller that sends slowly loses its connection, and another one is served meanwhile.
func TestSlowCallers(t *testing.T) {
	f := newFleet(t)
	f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "203.0.113.1")}})
	s := serve(t, f, func(o *Options) {
		o.ReadHeaderTimeout, o.ReadTimeout = 100*time.Millisecond, 200*time.Millisecond
	})
	addr := strings.TrimPrefix(s.url, "http://")
	head := "POST /v1/blocks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + adminToken + "\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
	for name, sent := range map[string]string{"headers": "GET /v1/blocks HTTP/1.1\r\nHost: x\r\nX-Slow: ", "body": head, "unread body": strings.Replace(head, "POST /v1/blocks", "GET /v1/status", 1),
		"unread body after a wait": strings.Replace(head, "POST /v1/blocks", "DELETE /v1/blocks/b1?wait=enforced", 1)} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, sent); err != nil {
				t.Fatal(err)
			}
			decode[struct{}](t, s.get(t, "/healthz"), 200)
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
			answer, err := io.ReadAll(c)
			if err != nil {
				t.Fatalf("the connection is still open: %v", err)
			}
			if name == "body" && !bytes.Contains(answer, []byte("408")) {
				t.Errorf("got %s", answer)
			}
		})
	}
}

func TestTooMuch(t *testing.T) {
	s := serve(t, newFleet(t), func(o *Options) { o.MaxConns = 4 })
	p := decode[wire.Problem](t, s.send(t, "POST", "/v1/blocks", `{"note":"`+strings.Repeat("a", 2<<20)+`"}`), 413)
	if p.Code != wire.CodeTooLarge {
		t.Errorf("got %+v", p)
	}
	// A body of exactly the limit is not too large.
	exact := `{"note":"` + strings.Repeat("a", 1<<20-11) + `"}`
	if p := decode[wire.Problem](t, s.send(t, "POST", "/v1/blocks", exact), 422); len(exact) != 1<<20 || p.Code != wire.CodeInvalid {
		t.Errorf("%d bytes: %+v", len(exact), p)
	}
	if res := s.get(t, "/healthz", "X-Long", strings.Repeat("a", 64<<10)); res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("64 KiB of headers: %d", res.StatusCode)
	}
	s.client.CloseIdleConnections()
	var open []net.Conn
	refused := 0
	for range 12 {
		c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	for _, c := range open {
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			refused++
		}
	}
	if refused < 8 {
		t.Errorf("%d of 12 connections were refused, want all but 4", refused)
	}
	// The Unix socket is not counted.
	uc := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", s.socket) }}}
	res, err := uc.Get("http://x/v1/status")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("the Unix socket: %v, %v", res, err)
	}
	uc.CloseIdleConnections()
	for _, c := range open {
		_ = c.Close()
	}
	waitFor(t, "the connections to be given back", func() bool { return s.conns.Load() == 0 })
	decode[struct{}](t, s.get(t, "/healthz"), 200)
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// Requests in flight are answered when the server stops; streams end.
func TestShutdown(t *testing.T) {
	f := newFleet(t)
	release := make(chan struct{})
	s := serve(t, f)
	entered := make(chan struct{})
	f.FailWith = func(fsm.Command) error { close(entered); <-release; return nil }
	stream := openEvents(t, s, "/v1/events", "")
	answered := make(chan int, 1)
	go func() {
		r, _ := http.NewRequest(http.MethodPost, s.url+"/v1/blocks", strings.NewReader(`{"target":{"prefix":"203.0.113.5"}}`))
		r.Header.Set("Authorization", "Bearer "+adminToken)
		res, err := s.client.Do(r)
		if err != nil {
			answered <- 0
			return
		}
		_ = res.Body.Close()
		answered <- res.StatusCode
	}()
	<-entered
	go func() {
		<-s.closing
		close(release)
	}()
	s.stop()
	if got := <-answered; got != 201 {
		t.Errorf("the request in flight was answered %d", got)
	}
	if err := stream.drain(); err != nil {
		t.Errorf("the stream ended with %v", err)
	}
	if n := s.streams.Load(); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// sse is a client of the events stream.
type sse struct {
	res   *http.Response
	lines *bufio.Scanner
}

// message is one event as it was sent.
type message struct {
	id, event string
	data      wire.Event
}

func openEvents(t *testing.T, s *served, path, lastID string) *sse {
	t.Helper()
	var header []string
	if lastID != "" {
		header = []string{"Last-Event-ID", lastID}
	}
	res := s.get(t, path, header...)
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "text/event-stream" {
		b, _ := io.ReadAll(res.Body)
		t.Fatalf("%d %s", res.StatusCode, b)
	}
	e := &sse{res: res, lines: bufio.NewScanner(res.Body)}
	e.lines.Buffer(nil, 1<<20)
	return e
}

// next reads one event with data, counting comments.
func (e *sse) next(t *testing.T) (m message, comments int) {
	t.Helper()
	for e.lines.Scan() {
		k, v, _ := strings.Cut(e.lines.Text(), ":")
		v = strings.TrimPrefix(v, " ")
		switch k {
		case "id":
			m.id = v
		case "event":
			m.event = v
		case "data":
			if err := json.Unmarshal([]byte(v), &m.data); err != nil {
				t.Fatal(err)
			}
		case "":
			switch {
			case e.lines.Text() != "":
				comments++
			case m.event != "":
				return m, comments
			default:
				m = message{}
			}
		}
	}
	t.Fatalf("the stream ended: %v", e.lines.Err())
	return m, 0
}

func (e *sse) drain() error {
	for e.lines.Scan() {
	}
	return e.lines.Err()
}

func (e *sse) close() { _ = e.res.Body.Close() }

func TestEvents(t *testing.T) {
	f := newFleet(t, "n2")
	f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "203.0.113.1")}})
	s := serve(t, f, func(o *Options) { o.Heartbeat = 30 * time.Millisecond })
	e := openEvents(t, s, "/v1/events", "")
	waitFor(t, "the stream", func() bool { return s.streams.Load() == 1 })
	// Three changes under one index: only the last has an id.
	f.Apply(fsm.Batch{Ops: []fsm.Op{
		fsm.DeclareVM{ID: "vm-1", Name: "web"},
		fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}, Reason: "abuse"},
		fsm.PutGuard{Prefix: mustPrefix(t, "198.51.100.0/24")},
	}})
	f.Apply(fsm.PutNode{Node: fsm.Node{ID: "n2", Name: "two"}})
	f.Apply(fsm.LiftBlock{ID: "b1"})
	want := []struct{ id, event string }{{"", "vm.declared"}, {"", "block.added"}, {"2", "guard.added"}, {"3", "node.changed"}, {"4", "block.lifted"}}
	var got []message
	for _, w := range want {
		m, _ := e.next(t)
		got = append(got, m)
		if m.id != w.id || m.event != w.event || m.data.Type != w.event || m.data.Actor != "node:n1" || m.data.At.IsZero() {
			t.Errorf("got %+v, want %+v", m, w)
		}
	}
	if got[0].data.VM.Name != "web" || got[1].data.Block.Target.VM != "vm-1" || got[2].data.Guard.Prefix != "198.51.100.0/24" ||
		got[3].data.Node.Name != "two" || got[3].data.Node.Role != "voter" || got[4].data.Block.LiftedBy != "node:n1" {
		t.Errorf("objects: %+v", got)
	}
	if b := got[1].data.Block; b.Receipts != nil || b.Counters != nil {
		t.Error("an event claims to know of receipts")
	}
	// Heartbeats go on between events.
	go func() {
		<-time.After(100 * time.Millisecond)
		f.Apply(fsm.DeclareVM{ID: "vm-2"})
	}()
	if _, comments := e.next(t); comments < 2 {
		t.Errorf("%d heartbeats in 100 ms", comments)
	}
	e.close()
	waitFor(t, "the stream to be given back", func() bool { return s.streams.Load() == 0 })
}

// A client that was cut off anywhere resumes without losing an event.
func TestEventsResume(t *testing.T) {
	f := newFleet(t)
	s := serve(t, f)
	for i := range 20 {
		f.Apply(fsm.Batch{Ops: []fsm.Op{
			fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, fmt.Sprintf("203.0.113.%d", i))}},
			fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, fmt.Sprintf("198.51.100.%d", i))}},
		}})
	}
	for cut := 1; cut < 12; cut++ { // after so many events
		seen := map[string]bool{}
		last := ""
		e := openEvents(t, s, "/v1/events?from=0", "")
		for range cut {
			m, _ := e.next(t)
			seen[m.data.Block.ID] = true
			if m.id != "" {
				last = m.id
			}
		}
		e.close()
		path := "/v1/events"
		if last == "" {
			path += "?from=0" // nothing was whole yet
		}
		e = openEvents(t, s, path, last)
		for len(seen) < 40 {
			m, _ := e.next(t)
			if m.event == wire.EventReset {
				t.Fatal("reset")
			}
			seen[m.data.Block.ID] = true
			if m.id == "20" {
				break
			}
		}
		e.close()
		if len(seen) != 40 {
			t.Errorf("cut after %d events: %d of 40 seen", cut, len(seen))
		}
	}
}

func TestEventsReset(t *testing.T) {
	f := newFleet(t)
	s := serve(t, f, func(o *Options) { o.Heartbeat = 20 * time.Millisecond })
	f.Apply(fsm.DeclareVM{ID: "vm-1"})
	// A client that is ahead of this node for good has seen another history.
	e := openEvents(t, s, "/v1/events", "1000")
	if m, _ := e.next(t); m.event != wire.EventReset || m.id != "1" || m.data.Index != 1 {
		t.Errorf("got %+v, want a reset at index 1", m)
	}
	f.Apply(fsm.DeclareVM{ID: "vm-2"})
	if m, _ := e.next(t); m.event != "vm.declared" || m.id != "2" {
		t.Errorf("after the reset: %+v", m)
	}
	e.close()
	// One that is ahead only because this node lags a little is not reset.
	s2 := serve(t, f, func(o *Options) { o.Heartbeat = 10 * time.Second })
	e = openEvents(t, s2, "/v1/events", "3")
	f.Apply(fsm.DeclareVM{ID: "vm-3"})
	f.Apply(fsm.DeclareVM{ID: "vm-4"})
	if m, _ := e.next(t); m.event != "vm.declared" || m.id != "4" {
		t.Errorf("got %+v, want what came after 3", m)
	}
	e.close()
	// One that comes back after the feed has moved on is told to read again.
	for i := 0; i <= fsm.RetainedEvents; i += fsm.MaxBatchOps / 2 {
		var ops []fsm.Op
		for j := range fsm.MaxBatchOps / 2 {
			ops = append(ops, fsm.DeclareVM{ID: fmt.Sprintf("many-%d", j), Owner: strconv.Itoa(i)})
		}
		f.Apply(fsm.Batch{Ops: ops})
	}
	e = openEvents(t, s2, "/v1/events", "1")
	now := strconv.FormatUint(f.View().Index(), 10)
	if m, _ := e.next(t); m.event != wire.EventReset || m.id != now {
		t.Errorf("got %+v, want a reset at index %s", m, now)
	}
	e.close()
}

// Over TLS the API speaks HTTP/2, where deadlines are timers of a stream: neither an idle stream nor a
// wait may run into one.
func TestHTTP2(t *testing.T) {
	cert := httptest.NewUnstartedServer(nil)
	cert.EnableHTTP2 = true
	cert.StartTLS()
	defer cert.Close()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, "n2")
	s := newServer(t, f, func(o *Options) {
		o.ReadTimeout, o.StreamWriteTimeout, o.Heartbeat = 100*time.Millisecond, 50*time.Millisecond, time.Minute
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.Serve(ctx, []net.Listener{tls.NewListener(inner, &tls.Config{Certificates: cert.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}})}, nil)
	}()
	c := cert.Client()
	defer func() {
		c.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	call := func(method, path, body string) *http.Response {
		r, err := http.NewRequest(method, "https://"+inner.Addr().String()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+adminToken)
		r.Header.Set("Content-Type", "application/json")
		res, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = res.Body.Close() })
		if res.ProtoMajor != 2 {
			t.Fatalf("answered with %s", res.Proto)
		}
		return res
	}
	stream := &sse{res: call("GET", "/v1/events", "")}
	stream.lines = bufio.NewScanner(stream.res.Body)
	f.Set(func() { f.Peers["n2"].Hangs = true })
	heal := time.AfterFunc(300*time.Millisecond, func() { f.Set(func() { f.Peers["n2"].Hangs = false }) })
	defer heal.Stop()
	b := decode[wire.Block](t, call("POST", "/v1/blocks?wait=enforced&timeout=30s", `{"target":{"prefix":"203.0.113.5"}}`), 201)
	if nodes(b.Receipts) != "n1 n2" {
		t.Errorf("got %+v", b)
	}
	decode[wire.Block](t, call("DELETE", "/v1/blocks/b1", ""), 200)
	for _, want := range []string{"block.added", "block.lifted"} { // the second long after the first was written
		if m, _ := stream.next(t); m.event != want {
			t.Errorf("got %+v, want %s", m, want)
		}
	}
}

// A client that does not read loses its stream; nobody waits for it.
func TestEventsSlowClient(t *testing.T) {
	f := newFleet(t)
	s := serve(t, f, func(o *Options) { o.StreamWriteTimeout, o.MaxStreams = 50*time.Millisecond, 2 })
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.(*net.TCPConn).SetReadBuffer(4096)
	if _, err := io.WriteString(c, "GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+viewerToken+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the stream", func() bool { return s.streams.Load() == 1 })
	good := openEvents(t, s, "/v1/events", "")
	res := s.get(t, "/v1/events")
	p := decode[wire.Problem](t, res, 503)
	if p.Code != wire.CodeTooManyStreams || res.Header.Get("Retry-After") == "" {
		t.Errorf("got %+v", p)
	}
	note := strings.Repeat("n", 4000)
	seen := 0
	for i := 0; s.streams.Load() == 2; i++ {
		if i > 20_000 {
			t.Fatal("the slow client still has its stream")
		}
		f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, fmt.Sprintf("203.0.%d.%d", i/256%256, i%256))}, Note: note})
		for ; seen <= i; seen++ { // the other one is up to date all the time
			good.next(t)
		}
	}
	decode[struct{}](t, s.get(t, "/healthz"), 200)
	good.close()
}
