package httpapi

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
)

// instant is a Backend whose writes cost nothing, so that what is measured is the API.
type instant struct {
	*fleet
	n     atomic.Uint64
	block fsm.Block
}

func (f *instant) Propose(context.Context, fsm.Command) (fsm.Result, error) {
	b := f.block
	b.Index = f.n.Add(1)
	return fsm.Result{Index: b.Index, Block: &b}, nil
}

func newInstant(b *testing.B) *Server {
	f := &instant{fleet: newFleet(b, "n2", "n3")}
	f.block = fsm.Block{ID: "b17", Target: fsm.Target{VM: "vm-1"}, Kind: fsm.Drop, Direction: fsm.Both, Reason: "abuse", Actor: "token:root", State: fsm.BlockActive, CreatedAt: time.Now()}
	o := testOptions(f.fleet)
	o.Backend = f
	s, err := New(o)
	if err != nil {
		b.Fatal(err)
	}
	return s
}

const benchBody = `{"target":{"vm":"vm-1"},"reason":"abuse","note":"sends spam"}`

// BenchmarkPostBlockHandler is the handler alone.
func BenchmarkPostBlockHandler(b *testing.B) {
	s := newInstant(b)
	h := s.Handler()
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest(http.MethodPost, "/v1/blocks", strings.NewReader(benchBody))
		r.Header.Set("Authorization", "Bearer "+adminToken)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", "k")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != 201 {
			b.Fatal(w.Code, w.Body)
		}
	}
}

// BenchmarkPostBlock64 is 64 writers over TCP with a client in the same process; cpu-us/op is the CPU
// of both together.
func BenchmarkPostBlock64(b *testing.B) {
	s := newInstant(b)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, []net.Listener{ln}, nil) }()
	url := "http://" + ln.Addr().String() + "/v1/blocks"
	tr := &http.Transport{MaxIdleConnsPerHost: 64}
	c := &http.Client{Transport: tr}
	b.SetParallelism(32) // times GOMAXPROCS
	before := cpu()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r, _ := http.NewRequest(http.MethodPost, url, bytes.NewReader([]byte(benchBody)))
			r.Header.Set("Authorization", "Bearer "+adminToken)
			r.Header.Set("Content-Type", "application/json")
			res, err := c.Do(r)
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
	})
	b.StopTimer()
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-us/op")
	tr.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkBulk is 10,000 holds in one call: the handler and the state machine, without a network or a log.
func BenchmarkBulk(b *testing.B) {
	body := prefixes(10_000)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		s := newServer(b, newFleet(b, "n2", "n3"))
		b.StartTimer()
		if got := s.do(b, request{method: http.MethodPost, path: "/v1/blocks/bulk", body: body, header: map[string]string{"Content-Type": "application/jsonl"}}); got.StatusCode != http.StatusOK {
			b.Fatal(got.StatusCode)
		}
	}
}
