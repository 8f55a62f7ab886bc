package httpapi

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/palisade/palisade/httpapi/wire"
)

// heap is what is in use after a collection.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// zeros is a body of 1 GiB that is made as it is read; it counts what was taken.
type zeros struct {
	left  int64
	taken atomic.Int64 // the client may go on to read after the answer
}

func (z *zeros) Read(b []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(b)), z.left)
	clear(b[:n])
	z.left -= n
	z.taken.Add(n)
	return int(n), nil
}

// TestHugeBodies sends 1 GiB to every route that takes a body, with its length said and without. Nothing of it is kept,
// and little of it read.
func TestHugeBodies(t *testing.T) {
	f := newFleet(t)
	s := serve(t, f)
	before := heap()
	for _, rt := range routes() {
		if rt.op.Method == http.MethodGet || rt.op.Method == http.MethodDelete {
			continue
		}
		for _, said := range []bool{true, false} {
			q := sample(rt)
			body := &zeros{left: 1 << 30}
			r, err := http.NewRequest(q.method, s.url+q.path, body)
			if err != nil {
				t.Fatal(err)
			}
			if said {
				r.ContentLength = body.left
			}
			r.Header.Set("Authorization", "Bearer "+adminToken)
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set(csrfHeader, "1")
			for k, v := range q.header {
				r.Header.Set(k, v)
			}
			res, err := s.client.Do(r)
			if err == nil {
				if res.StatusCode/100 == 2 && rt.op.OperationID != "logout" {
					t.Errorf("%s %s with 1 GiB is answered %d", q.method, q.path, res.StatusCode)
				}
				_ = res.Body.Close()
			} // else the server has closed the connection under the client, which is as good
			if taken := body.taken.Load(); taken > s.opts.MaxListBytes+8<<20 {
				t.Errorf("%s %s took %d MiB", q.method, q.path, taken>>20)
			}
		}
	}
	if grown := int64(heap()) - int64(before); grown > 64<<20 {
		t.Errorf("it keeps %d MiB", grown>>20)
	}
}

// TestEncodedBodiesAreRefused: no compressed body is ever unpacked.
func TestEncodedBodiesAreRefused(t *testing.T) {
	s := newServer(t, newFleet(t))
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := io.Copy(z, &zeros{left: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for _, rt := range routes() {
		if rt.op.Method == http.MethodGet || rt.scope == scopeOpen || rt.scope == scopeLocal {
			continue // a local route: see TestTheHookIsAnsweredOnTheSocketAlone
		}
		for _, encoding := range []string{"gzip", "br", "deflate", "zstd", "identity, gzip", "GZIP"} {
			q := sample(rt)
			q.body, q.header = bomb.String(), map[string]string{"Content-Encoding": encoding, csrfHeader: "1"}
			p := decode[wire.Problem](t, s.do(t, q), http.StatusUnsupportedMediaType)
			if p.Code != wire.CodeMediaType {
				t.Errorf("%s %s with %s: %+v", q.method, q.path, encoding, p)
			}
		}
	}
	q := request{method: "POST", path: "/v1/blocks", body: `{"target":{"prefix":"203.0.113.7"}}`, header: map[string]string{"Content-Encoding": "identity"}}
	decode[wire.Block](t, s.do(t, q), 201)
}

func TestDeepAndDoubleJSON(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	deep := strings.Repeat(`{"a":`, 33) + "1" + strings.Repeat("}", 33)
	for name, body := range map[string]string{
		"deep objects": deep, "deep arrays": strings.Repeat("[", 500_000), "deep in a field": `{"target":` + deep + `}`,
		"twice":            `{"target":{"prefix":"203.0.113.7"},"reason":"abuse","reason":"unpaid"}`,
		"twice, deeper":    `{"target":{"prefix":"203.0.113.7","prefix":"203.0.113.8"}}`,
		"twice, escaped":   `{"target":{"prefix":"203.0.113.7"},"reason":"abuse","re\u0061son":"unpaid"}`,
		"twice, of many":   `{"target":{"prefix":"203.0.113.7"},` + names(60) + names(60) + `"x":1}`,
		"twice, of many 2": `{` + names(60) + `"n50":1}`,
		"twice, far apart": `{"target":{"prefix":"203.0.113.7"},` + names(200) + `"target":{}}`,
	} {
		p := decode[wire.Problem](t, s.do(t, request{method: "POST", path: "/v1/blocks", body: body}), 400)
		if p.Code != wire.CodeMalformedJSON {
			t.Errorf("%s: %+v", name, p)
		}
		if len(body) < 60_000 {
			results, _ := bulk(t, s, "", body, 200)
			if len(results) != 1 || results[0].Status != 400 {
				t.Errorf("%s, in bulk: %+v", name, results)
			}
		}
	}
	began := time.Now()
	decode[wire.Problem](t, s.do(t, request{method: "POST", path: "/v1/blocks", body: "{" + names(60_000) + `"x":1}`}), 422)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("an object of 60,000 names takes %s", took)
	}
	if f.View().CountBlocks() != 0 {
		t.Error("something was blocked")
	}
}

func names(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"n%d":1,`, i)
	}
	return b.String()
}

// TestCheckedJSONIsTheSame: what has no name twice and is not deep is decoded as ever.
func TestCheckedJSONIsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var doc func(depth int) *rapid.Generator[any]
		doc = func(depth int) *rapid.Generator[any] {
			leaf := rapid.OneOf(rapid.Map(rapid.String(), func(s string) any { return s }), rapid.Map(rapid.Float64(), func(f float64) any { return f }), rapid.Just[any](nil))
			if depth == 0 {
				return leaf
			}
			return rapid.OneOf(leaf,
				rapid.Map(rapid.SliceOfN(doc(depth-1), 0, 4), func(l []any) any { return l }),
				rapid.Map(rapid.MapOfN(rapid.String(), doc(depth-1), 0, 20), func(m map[string]any) any { return m }))
		}
		b, err := json.Marshal(doc(4).Draw(t, "document"))
		if err != nil {
			t.Fatal(err)
		}
		if err := checkJSON(b); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
	})
}

func FuzzCheckJSON(f *testing.F) {
	for _, s := range []string{`{"a":1,"a":2}`, `{"a":{"a":1},"b":["a","a"]}`, `{"a`, `"\`, `}`, `[[{]`, `{"\u0061":1,"a":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var v any
		if err := unmarshalJSON(b, &v); err == nil && !json.Valid(b) {
			t.Fatalf("%q is no JSON", b)
		}
	})
}

// TestIdleConnections: thousands of connections of one source leave places for others, and are closed.
func TestIdleConnections(t *testing.T) {
	s := serve(t, newFleet(t), func(o *Options) { o.ReadHeaderTimeout, o.IdleTimeout = time.Second, time.Second })
	addr := strings.TrimPrefix(s.url, "http://")
	before := runtime.NumGoroutine()
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for range 5000 {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).Dial("tcp", addr)
		if err != nil {
			t.Fatalf("after %d: %v", len(open), err)
		}
		open = append(open, c)
		if n := s.conns.count(); n > 256+1 {
			t.Fatalf("%d connections of one source are open", n)
		}
	}
	decode[struct{}](t, s.get(t, "/healthz"), 200) // from another source
	waitFor(t, "the end of the idle connections", func() bool { return s.conns.count() <= 1 && runtime.NumGoroutine() < before+20 })
}

// TestManySourcesOfIdleConnections: when all places are taken by many sources, idle ones make room.
func TestManySourcesOfIdleConnections(t *testing.T) {
	s := serve(t, newFleet(t), func(o *Options) { o.MaxConns, o.MaxConnsPerSource = 64, 8 })
	addr := strings.TrimPrefix(s.url, "http://")
	var open []net.Conn
	for i := range 40 { // 8 of each of 40 sources
		for range 8 {
			c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i+1))}}).Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		decode[struct{}](t, s.get(t, "/healthz"), 200)
		s.client.CloseIdleConnections()
	}
	if n := s.conns.count(); n > 64 {
		t.Errorf("%d connections are open", n)
	}
	// What is under way is not closed for it.
	e := openEvents(t, s, "/v1/events", "")
	for i := range 100 {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 2, byte(i+1))}}).Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if s.streams.Load() != 1 {
		t.Error("a stream was closed to make room")
	}
	e.close()
	for _, c := range open {
		_ = c.Close()
	}
	waitFor(t, "the connections to be given back", func() bool { return s.conns.count() <= 1 })
}

// serveTLS is serve with a certificate made for it.
func serveTLS(t *testing.T, change ...func(*Options)) (addr string, roots *x509.CertPool, s *Server) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AddCert(cert)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s = newServer(t, newFleet(t), change...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, []net.Listener{tls.NewListener(ln, conf)}, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String(), roots, s
}

// TestSlowHandshakes: who does not finish the handshake, or sends a byte now and then, is cut off.
func TestSlowHandshakes(t *testing.T) {
	addr, roots, s := serveTLS(t, func(o *Options) { o.ReadHeaderTimeout, o.ReadTimeout = 300*time.Millisecond, 300*time.Millisecond })
	for name, first := range map[string]string{"silent": "", "half a record": "\x16\x03\x01\x02\x00\x01", "garbage": strings.Repeat("x", 5000), "clear text": "GET / HTTP/1.1\r\n\r\n"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, first)
		stop := make(chan struct{})
		go func() { // a byte now and then does not help
			defer close(stop)
			for range 200 {
				if _, err := io.WriteString(c, "\x00"); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection is still open", name)
		}
		_ = c.Close()
		<-stop
	}
	waitFor(t, "the connections to be given back", func() bool { return s.conns.count() == 0 })
	// Old versions of TLS are refused, and the rest is served.
	if _, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS12}); err == nil { //nolint:gosec // that is the test
		t.Error("TLS 1.2 is spoken")
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr}).Get("https://" + addr + "/healthz")
	if err != nil || res.StatusCode != http.StatusOK || res.ProtoMajor != 2 {
		t.Fatalf("%v, %v", res, err)
	}
	_ = res.Body.Close()
}

// TestSlowloris: many connections that send their headers byte by byte end, and do not keep others out meanwhile.
func TestSlowloris(t *testing.T) {
	s := serve(t, newFleet(t), func(o *Options) { o.ReadHeaderTimeout = time.Second })
	addr := strings.TrimPrefix(s.url, "http://")
	const many = 200
	ended := make(chan time.Duration, many)
	for range many {
		go func() {
			began := time.Now()
			defer func() { ended <- time.Since(began) }()
			c, err := net.Dial("tcp", addr)
			if err != nil {
				return
			}
			defer c.Close()
			if _, err := io.WriteString(c, "GET /v1/blocks HTTP/1.1\r\nHost: x\r\nX-"); err != nil {
				return
			}
			for range 600 {
				if _, err := io.WriteString(c, "a"); err != nil {
					return
				}
				_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					return
				}
			}
		}()
	}
	decode[struct{}](t, s.get(t, "/healthz"), 200)
	for range many {
		if took := <-ended; took > 15*time.Second {
			t.Errorf("a connection that sends its headers slowly lived for %s", took)
		}
	}
}

// TestHostileHeaders: what is odd is refused, and none of it comes back as anything but text in JSON.
func TestHostileHeaders(t *testing.T) {
	s := serve(t, newFleet(t))
	for _, raw := range []string{
		"GET /v1/blocks/<script>alert(1)</script> HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + adminToken + "\r\n\r\n",
		"GET /v1/nodes/..%2f..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + adminToken + "\r\n\r\n",
		"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /v1/vms/%00 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + adminToken + "\r\n\r\n",
		"POST /v1/blocks HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/tokens HTTP/1.1\r\n\r\n",
		"POST /v1/blocks HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
		"GET /v1/blocks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + adminToken + "\r\nAuthorization: Bearer x\r\n\r\n",
		"GET /v1/blocks HTTP/1.1\r\nHost: x\r\nCookie: " + sessionCookie + "=" + strings.Repeat("x", 9000) + "\r\n\r\n",
		"TRACE /v1/blocks HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT evil.example:80 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET http://evil.example/v1/blocks HTTP/1.1\r\nHost: evil.example\r\n\r\n",
	} {
		c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, raw); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		body, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		kind := res.Header.Get("Content-Type")
		if res.StatusCode/100 == 2 && !strings.Contains(raw, "Bearer x") || strings.HasPrefix(kind, "text/html") ||
			!strings.HasPrefix(kind, "application/") && !strings.HasPrefix(kind, "text/plain") || strings.Contains(string(body), adminToken) {
			t.Errorf("%q: %d %s %s", raw, res.StatusCode, kind, body)
		}
		if strings.Contains(string(body), "<script") && res.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%q comes back in a form that a browser might run", raw)
		}
		_ = c.Close()
	}
}
