package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi"
	"github.com/palisade/palisade/httpapi/apitest"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/httpapi/wire"
)

const token = "admin-secret-0123456789" // of apitest

func newAPI(t *testing.T, f *apitest.Fleet) *httpapi.Server {
	t.Helper()
	s, err := httpapi.New(httpapi.Options{Backend: f, Version: "test", Heartbeat: 50 * time.Millisecond, ShutdownTimeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// over serves the API over TCP through a middleman that can do harm, and returns a client of it.
func over(t *testing.T, f *apitest.Fleet, harm func(next http.Handler) http.Handler, o client.Options) *client.Client {
	t.Helper()
	h := newAPI(t, f).Handler()
	if harm != nil {
		h = harm(h)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	o.URL, o.Token = srv.URL, token
	c, err := client.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ctx(t *testing.T, d time.Duration) context.Context {
	c, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return c
}

func collect[T any](t *testing.T, seq iter.Seq2[T, error]) (out []T) {
	t.Helper()
	for v, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

var block = client.BlockRequest{Target: client.Target{Prefix: "203.0.113.5"}, Reason: "abuse"}

func TestEveryMethod(t *testing.T) {
	f := apitest.New(t, "n2")
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	s := newAPI(t, f)
	socket := filepath.Join(t.TempDir(), "sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	sctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(sctx, nil, ln) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	c, err := client.New(client.Options{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	x := ctx(t, 20*time.Second)
	w, err := c.AddBlock(x, block, client.Write{Wait: true, Timeout: time.Second})
	if err != nil || !w.Confirmed || w.Replayed || len(w.Block.Receipts) != 2 || w.Block.Actor != "unix:0" {
		t.Fatalf("%v: %+v", err, w)
	}
	if b, err := c.Block(x, w.Block.ID); err != nil || b.Reason != "abuse" {
		t.Errorf("%v: %+v", err, b)
	}
	for i := range 2100 { // three pages
		f.Apply(fsm.DeclareVM{ID: fmt.Sprintf("many-%04d", i), Owner: "bulk"})
	}
	if vms := collect(t, c.VMs(x, client.VMFilter{Owner: "bulk"})); len(vms) != 2100 {
		t.Errorf("%d VMs, want all pages", len(vms))
	}
	n := 0
	for _, err := range c.VMs(x, client.VMFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 3 {
			break
		}
	}
	v, err := c.VM(x, "web")
	if err != nil || v.ID != "vm-1" {
		t.Errorf("%v: %+v", err, v)
	}
	v2, err := c.PutVM(x, "vm-1", client.VMRequest{Owner: "alice"}, client.Write{IfMatch: v.Revision})
	if err != nil || v2.Owner != "alice" {
		t.Errorf("%v: %+v", err, v2)
	}
	_, err = c.PutVM(x, "vm-1", client.VMRequest{Owner: "bob"}, client.Write{IfMatch: v.Revision})
	if p := (*client.Problem)(nil); !errors.As(err, &p) || p.Code != wire.CodeRevision || p.Status != 412 {
		t.Errorf("a stale revision: %v", err)
	}
	if g, err := c.AddGuard(x, client.GuardRequest{Prefix: "198.51.100.0/24", Note: "up"}, client.Write{}); err != nil || g.Note != "up" {
		t.Errorf("%v: %+v", err, g)
	}
	if gs := collect(t, c.Guards(x, false)); len(gs) != 1 {
		t.Errorf("guards %+v", gs)
	}
	if gs := collect(t, c.Guards(x, true)); len(gs) < 5 {
		t.Errorf("all guards %+v", gs)
	}
	if err := c.RemoveGuard(x, "198.51.100.0/24", client.Write{}); err != nil {
		t.Error(err)
	}
	if ns := collect(t, c.Nodes(x)); len(ns) != 2 || !ns[0].Leader {
		t.Errorf("nodes %+v", ns)
	}
	if nd, err := c.Node(x, "n2"); err != nil || nd.Role != "voter" {
		t.Errorf("%v: %+v", err, nd)
	}
	if st, err := c.Status(x); err != nil || st.Node != "n1" {
		t.Errorf("%v: %+v", err, st)
	}
	if err := c.Ready(x); err != nil {
		t.Error(err)
	}
	blocked := true
	if vms := collect(t, c.VMs(x, client.VMFilter{Node: "n1", Name: "web", Blocked: &blocked})); len(vms) != 0 {
		t.Errorf("blocked VMs %+v", vms)
	}
	w, err = c.LiftBlock(x, w.Block.ID, client.Write{IfMatch: w.Block.Revision})
	if err != nil || w.Block.State != "lifted" {
		t.Errorf("%v: %+v", err, w)
	}
	if bs := collect(t, c.Blocks(x, client.BlockFilter{Prefix: "203.0.113.5", Reason: "abuse", State: "all"})); len(bs) != 1 {
		t.Errorf("blocks %+v", bs)
	}
}

// cut answers the first n requests with a harm and lets the others pass.
func cut(n int32, harm func(w http.ResponseWriter, r *http.Request, next http.Handler)) (func(http.Handler) http.Handler, *atomic.Int32) {
	var count atomic.Int32
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if count.Add(1) <= n {
				harm(w, r, next)
				return
			}
			next.ServeHTTP(w, r)
		})
	}, &count
}

func hangUp(w http.ResponseWriter, _ *http.Request, _ http.Handler) { panic(http.ErrAbortHandler) }

// afterwards does what was asked and loses the answer.
func afterwards(w http.ResponseWriter, r *http.Request, next http.Handler) {
	next.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// A write has one effect, whatever happens to the answers on the way.
func TestWritesAreRetriedWithOneEffect(t *testing.T) {
	for name, harm := range map[string]func(http.ResponseWriter, *http.Request, http.Handler){
		"the connection breaks before": hangUp,
		"the answer is lost":           afterwards,
		"the answer is 504": func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(httptest.NewRecorder(), r)
			w.WriteHeader(http.StatusGatewayTimeout)
		},
		"the answer is 503": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusServiceUnavailable)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := apitest.New(t)
			mw, count := cut(3, harm)
			c := over(t, f, mw, client.Options{})
			w, err := c.AddBlock(ctx(t, 20*time.Second), block, client.Write{})
			if err != nil {
				t.Fatal(err)
			}
			if f.View().CountActive() != 1 || w.Block.ID != "b1" || count.Load() != 4 {
				t.Errorf("%d blocks after %d requests: %+v", f.View().CountActive(), count.Load(), w)
			}
		})
	}
}

func TestOutcomesAreHonest(t *testing.T) {
	lost := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { afterwards(w, r, next) })
	}
	unavailable := func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, `{"code":"no_quorum","status":503,"detail":"no leader"}`)
		})
	}
	// once does one harm to the first request and another to all others.
	once := func(first, then func(http.Handler) http.Handler) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			mw, _ := cut(1, func(w http.ResponseWriter, r *http.Request, _ http.Handler) { first(next).ServeHTTP(w, r) })
			return mw(then(next))
		}
	}
	for name, c := range map[string]struct {
		harm    func(http.Handler) http.Handler
		unknown bool
		effects int
	}{
		"every answer is lost":             {lost, true, 1},
		"never a quorum":                   {unavailable, false, 0},
		"lost once, then never a quorum":   {once(lost, unavailable), true, 1},
		"no quorum once, then always lost": {once(unavailable, lost), true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := apitest.New(t)
			api := over(t, f, c.harm, client.Options{RetryFor: 400 * time.Millisecond})
			_, err := api.AddBlock(ctx(t, 20*time.Second), block, client.Write{Key: "k1"})
			var unknown *client.UnknownError
			if got := errors.As(err, &unknown); got != c.unknown {
				t.Errorf("unknown is %v: %v", got, err)
			}
			if c.unknown && unknown.Key != "k1" {
				t.Errorf("the key is %q", unknown.Key)
			}
			if p := (*client.Problem)(nil); !c.unknown && (!errors.As(err, &p) || p.Code != wire.CodeNoQuorum) {
				t.Errorf("got %v", err)
			}
			if n := f.View().CountActive(); n != c.effects {
				t.Errorf("%d blocks, want %d", n, c.effects)
			}
		})
	}
}

// A refusal is final, and says what the server said; it is never retried.
func TestRefusalsAreFinal(t *testing.T) {
	f := apitest.New(t)
	mw, count := cut(0, nil)
	c := over(t, f, mw, client.Options{})
	_, err := c.AddBlock(ctx(t, 20*time.Second), client.BlockRequest{Target: client.Target{VM: "nope"}}, client.Write{})
	var p *client.Problem
	if !errors.As(err, &p) || p.Code != wire.CodeVMNotFound || p.Errors[0].Location != "body.target.vm" || !strings.Contains(err.Error(), "nope") {
		t.Errorf("got %v", err)
	}
	if count.Load() != 1 {
		t.Errorf("%d requests", count.Load())
	}
	// The fleet's refusal after a lost answer is an answer to that attempt too: the key saw to it.
	mw, _ = cut(1, afterwards)
	c = over(t, f, mw, client.Options{})
	_, err = c.AddBlock(ctx(t, 20*time.Second), client.BlockRequest{Target: client.Target{VM: "nope"}}, client.Write{})
	if unknown := (*client.UnknownError)(nil); errors.As(err, &unknown) || !errors.As(err, &p) {
		t.Errorf("got %v", err)
	}
}

func TestNobodyThere(t *testing.T) {
	c, err := client.New(client.Options{Socket: filepath.Join(t.TempDir(), "none")})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_, err = c.AddBlock(ctx(t, 20*time.Second), block, client.Write{})
	if connect := (*client.ConnectError)(nil); !errors.As(err, &connect) || time.Since(start) > time.Second {
		t.Errorf("after %v: %v; a missing socket is no reason to wait", time.Since(start), err)
	}
	// A port where nothing listens may be an agent that restarts: tried until the end, and certain.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	c, err = client.New(client.Options{URL: "http://" + addr, Token: token, RetryFor: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	_, err = c.AddBlock(ctx(t, 20*time.Second), block, client.Write{})
	if connect := (*client.ConnectError)(nil); !errors.As(err, &connect) || time.Since(start) < 100*time.Millisecond {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	// A context that ends while a write is under way leaves the outcome open.
	f := apitest.New(t)
	slow := over(t, f, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); <-r.Context().Done() })
	}, client.Options{})
	_, err = slow.AddBlock(ctx(t, 100*time.Millisecond), block, client.Write{})
	if unknown := (*client.UnknownError)(nil); !errors.As(err, &unknown) {
		t.Errorf("got %v", err)
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]client.Options{
		"neither":            {},
		"both":               {Socket: "/x", URL: "http://127.0.0.1:1"},
		"no URL":             {URL: "127.0.0.1:8440"},
		"other scheme":       {URL: "ftp://127.0.0.1"},
		"token in the clear": {URL: "http://192.0.2.1:8440", Token: token},
	} {
		if _, err := client.New(o); err == nil || strings.Contains(err.Error(), token) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, u := range []string{"http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "https://192.0.2.1:8440/"} {
		if _, err := client.New(client.Options{URL: u, Token: token}); err != nil {
			t.Errorf("%s: %v", u, err)
		}
	}
}

// A redirect is not followed: the token would go to whoever was named.
func TestNoRedirect(t *testing.T) {
	var elsewhere atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	c := over(t, apitest.New(t), func(http.Handler) http.Handler { return http.RedirectHandler(other.URL, http.StatusTemporaryRedirect) }, client.Options{})
	if _, err := c.Status(ctx(t, 5*time.Second)); err == nil || elsewhere.Load() != 0 {
		t.Errorf("%v, %d requests elsewhere", err, elsewhere.Load())
	}
}

// Events come once each, in order, although the stream breaks off again and again, also in the middle
// of those that share an index.
func TestEventsResume(t *testing.T) {
	f := apitest.New(t)
	var n atomic.Int32
	breaks := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			after := 300 + int(n.Add(1))*97%900 // bytes: anywhere in the three events of an index
			x, cancel := context.WithCancel(r.Context())
			defer cancel()
			next.ServeHTTP(&leaky{ResponseWriter: w, left: after, cut: cancel}, r.WithContext(x))
		})
	}
	c := over(t, f, breaks, client.Options{})
	const batches, each = 30, 3
	go func() {
		for i := range batches {
			var ops []fsm.Op
			for j := range each {
				ops = append(ops, fsm.DeclareVM{ID: fmt.Sprintf("vm-%d-%d", i, j)})
			}
			f.Apply(fsm.Batch{Ops: ops})
		}
	}()
	var got []string
	from := uint64(1) // after the tokens of the fleet
	for e, err := range c.Events(ctx(t, 30*time.Second), &from) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.VM.ID)
		if len(got) == batches*each {
			break
		}
	}
	for i, id := range got {
		if want := fmt.Sprintf("vm-%d-%d", i/each, i%each); id != want {
			t.Fatalf("event %d is %s, want %s", i, id, want)
		}
	}
}

// leaky passes so many bytes on and then breaks off.
type leaky struct {
	http.ResponseWriter
	left int
	cut  func()
}

func (l *leaky) Unwrap() http.ResponseWriter { return l.ResponseWriter }

func (l *leaky) Write(b []byte) (int, error) {
	if len(b) >= l.left {
		_, _ = l.ResponseWriter.Write(b[:l.left])
		_ = http.NewResponseController(l.ResponseWriter).Flush()
		l.cut()
		return 0, errors.New("cut")
	}
	l.left -= len(b)
	return l.ResponseWriter.Write(b)
}

func TestEventsEnd(t *testing.T) {
	f := apitest.New(t)
	c := over(t, f, nil, client.Options{})
	x, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		f.Apply(fsm.DeclareVM{ID: "a"})
	}()
	from := uint64(1) // after the tokens of the fleet
	n := 0
	for _, err := range c.Events(x, &from) {
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			break
		}
		n++
		cancel()
	}
	if n != 1 {
		t.Errorf("%d events", n)
	}
	// A token that is not admitted is no reason to try again.
	bad := over(t, f, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { r.Header.Del("Authorization"); next.ServeHTTP(w, r) })
	}, client.Options{})
	for _, err := range bad.Events(ctx(t, 5*time.Second), nil) {
		if p := (*client.Problem)(nil); !errors.As(err, &p) || p.Code != wire.CodeUnauthorized {
			t.Errorf("got %v", err)
		}
	}
}
