package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
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
	waitFor(t, "the connections to be given back", func() bool { return s.conns.count() == 0 })
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
