package page

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var site = netip.MustParseAddr("203.0.113.7")

// serve runs a server on a loopback port, where every connection was meant for the site.
func serve(t *testing.T, o Options) (address string) {
	t.Helper()
	if o.wanted == nil {
		o.wanted = func(net.Conn) (netip.AddrPort, error) { return netip.AddrPortFrom(site, 80), nil }
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return l.Addr().String()
}

func always(h Hold) func(netip.Addr) (Hold, bool) {
	return func(a netip.Addr) (Hold, bool) { return h, a == site }
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// ask sends a request as it is written and returns the answer.
func ask(t *testing.T, address, request string) (*http.Response, string) {
	t.Helper()
	c := dial(t, address)
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

func get(path string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: shop.example\r\n\r\n"
}

func TestThePage(t *testing.T) {
	address := serve(t, Options{Lookup: always(Hold{
		Title: "Suspended <b>", Text: "Please pay.\n<script>alert(1)</script>", Link: "https://pay.example/?a=1&b=2",
	})})
	for _, request := range []string{
		get("/"), get("/any/path?with=query"), "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
		"GET http://other.example/ HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		res, body := ask(t, address, request)
		if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" || !res.Close {
			t.Errorf("%q: %d, headers %v", request, res.StatusCode, res.Header)
		}
		for name, want := range map[string]string{
			"Cache-Control": "no-store", "X-Robots-Tag": "noindex", "Content-Type": "text/html; charset=utf-8", "X-Content-Type-Options": "nosniff",
		} {
			if got := res.Header.Get(name); got != want {
				t.Errorf("%q: %s is %q, want %q", request, name, got, want)
			}
		}
		if csp := res.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; style-src 'sha256-") || strings.Contains(csp, "unsafe") {
			t.Errorf("policy %q", csp)
		}
		for _, want := range []string{
			"<h1>Suspended &lt;b&gt;</h1>", "Please pay.\n&lt;script&gt;", `href="https://pay.example/?a=1&amp;b=2"`, "<style>" + style + "</style>",
		} {
			if !strings.Contains(body, want) {
				t.Errorf("%q: the page has no %q:\n%s", request, want, body)
			}
		}
		if strings.Contains(body, "<script") {
			t.Errorf("the page has a script:\n%s", body)
		}
	}
	if res, body := ask(t, address, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"); res.StatusCode != http.StatusServiceUnavailable || body != "" {
		t.Errorf("HEAD: %d %q", res.StatusCode, body)
	}
	address = serve(t, Options{Lookup: always(Hold{Title: "x", Link: "javascript:alert(1)"})})
	if _, body := ask(t, address, get("/")); strings.Contains(body, `href="javascript:`) {
		t.Errorf("a link that is a script:\n%s", body)
	}
}

// silent expects a connection to be closed without an answer.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("answered %q, %v", b, err)
	}
}

func TestNoAnswerForOthers(t *testing.T) {
	lookup := always(Hold{Title: "x"})
	direct := serve(t, Options{Lookup: lookup, wanted: func(net.Conn) (netip.AddrPort, error) { return netip.AddrPort{}, errNotRedirected }})
	c := dial(t, direct)
	_, _ = io.WriteString(c, get("/")) // it may be closed already
	silent(t, c)
	lifted := serve(t, Options{Lookup: func(netip.Addr) (Hold, bool) { return Hold{}, false }})
	c = dial(t, lifted)
	_, _ = io.WriteString(c, get("/"))
	silent(t, c)
	// Without conntrack, or for a connection to the port itself, the kernel knows of no other destination.
	asked := serve(t, Options{Lookup: lookup, wanted: originalDestination})
	c = dial(t, asked)
	_, _ = io.WriteString(c, get("/"))
	silent(t, c)
}

func TestAnotherServerAnswers(t *testing.T) {
	var seen atomic.Pointer[http.Request]
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		seen.Store(r)
		w.Header().Set("X-Backend", "yes")
		w.WriteHeader(http.StatusPaymentRequired)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL, b)
	}))
	defer backend.Close()
	to := netip.MustParseAddrPort(backend.Listener.Addr().String())
	address := serve(t, Options{Lookup: always(Hold{To: to, Title: "fallback"})})
	res, body := ask(t, address, "POST /pay?x=1 HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 1.2.3.4\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nabc")
	if res.StatusCode != http.StatusPaymentRequired || res.Header.Get("X-Backend") != "yes" || body != "POST /pay?x=1 abc" {
		t.Errorf("%d %q", res.StatusCode, body)
	}
	r := seen.Load()
	if r.Host != "shop.example" || r.Header.Get("X-Forwarded-For") != "127.0.0.1" || r.Header.Get("Upgrade") != "" {
		t.Errorf("the other server saw host %q, headers %v", r.Host, r.Header)
	}
	// A request of another site, written in full, goes to the same server.
	if _, body := ask(t, address, "GET http://127.0.0.1:1/y HTTP/1.1\r\nHost: a\r\n\r\n"); body != "GET /y " {
		t.Errorf("%q", body)
	}
}

func TestThePageStandsInForAServer(t *testing.T) {
	closed, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	down := netip.MustParseAddrPort(closed.Addr().String())
	_ = closed.Close()
	mute, err := net.Listen("tcp4", "127.0.0.1:0") // accepts and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	for name, to := range map[string]netip.AddrPort{"down": down, "mute": netip.MustParseAddrPort(mute.Addr().String())} {
		var logged strings.Builder
		address := serve(t, Options{Lookup: always(Hold{To: to, Title: "stands in"}), Timeout: 2 * time.Second, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
		for range 3 {
			if res, body := ask(t, address, get("/")); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "stands in") {
				t.Errorf("%s: %d %s", name, res.StatusCode, body)
			}
		}
		if n := strings.Count(logged.String(), "level=WARN"); n != 1 {
			t.Errorf("%s: three visitors made %d warnings", name, n)
		}
	}
}

func TestComplaints(t *testing.T) {
	var c complaints
	now := time.Now()
	one, other := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("192.0.2.2:80")
	for i, want := range []struct {
		to   netip.AddrPort
		at   time.Duration
		due  bool
		more int
	}{
		{one, 0, true, 0}, {one, time.Second, false, 0}, {other, time.Second, true, 0}, {one, complainEvery - 1, false, 0},
		{one, complainEvery, true, 2}, {one, complainEvery + 1, false, 0}, {one, 3 * complainEvery, true, 1},
	} {
		if due, more := c.due(want.to, now.Add(want.at)); due != want.due || more != want.more {
			t.Errorf("%d: %v and %d more, want %v and %d", i, due, more, want.due, want.more)
		}
	}
	for i := range 3 * maxComplaints {
		c.due(netip.AddrPortFrom(one.Addr(), uint16(i)), now)
	}
	if len(c.last) > maxComplaints {
		t.Errorf("%d servers are remembered", len(c.last))
	}
}

// TestNoCircle sends a request to a server that is itself redirected to this one.
func TestNoCircle(t *testing.T) {
	var to atomic.Pointer[netip.AddrPort]
	var asked atomic.Int64
	address := serve(t, Options{Lookup: func(netip.Addr) (Hold, bool) {
		asked.Add(1)
		return Hold{To: *to.Load(), Title: "end of the circle"}, true
	}})
	self := netip.MustParseAddrPort(address)
	to.Store(&self)
	if res, body := ask(t, address, get("/")); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "end of the circle") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("the request went round %d times", n)
	}
}

func TestLimits(t *testing.T) {
	address := serve(t, Options{Lookup: always(Hold{Title: "x"}), MaxPerGuest: 3, Timeout: time.Second})
	var idle []net.Conn
	for range 3 {
		idle = append(idle, dial(t, address))
	}
	// Each has a connection, and nobody else of that address gets one until they have used up their time.
	c := dial(t, address)
	_, _ = io.WriteString(c, get("/"))
	silent(t, c)
	for _, c := range idle {
		silent(t, c)
	}
	// Slots come back, answered or not.
	patient := func(request string) *http.Response {
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			c := dial(t, address)
			_, _ = io.WriteString(c, request)
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err == nil {
				_ = res.Body.Close()
				return res
			}
			if time.Now().After(end) {
				t.Fatalf("no slot came back: %v", err)
			}
		}
	}
	for range 7 {
		if res := patient(get("/")); res.StatusCode != http.StatusServiceUnavailable {
			t.Fatalf("%d", res.StatusCode)
		}
	}
	if res := patient("GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", maxHeaderBytes+8<<10) + "\r\n\r\n"); res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a large header: %d", res.StatusCode)
	}
}

func TestSlots(t *testing.T) {
	s := newSlots(3, 2)
	v4, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	a, b := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff") // one visitor
	var done []func()
	for i, c := range []struct {
		addr netip.Addr
		ok   bool
	}{{a, true}, {b, true}, {a, false}, {v4, true}, {other, false}} {
		d, ok := s.take(c.addr)
		if ok != c.ok {
			t.Errorf("%d: %s got a slot: %v", i, c.addr, ok)
		}
		if ok {
			done = append(done, d)
		}
	}
	for _, d := range done {
		d()
	}
	if s.free != 3 || len(s.taken) != 0 {
		t.Errorf("%d slots are free, %v are taken", s.free, s.taken)
	}
}
