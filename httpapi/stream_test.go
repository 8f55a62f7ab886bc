package httpapi

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

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

func openEvents(t *testing.T, s *served, path, lastID string, header ...string) *sse {
	t.Helper()
	if lastID != "" {
		header = append(header, "Last-Event-ID", lastID)
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
	want := []struct{ id, event string }{{"", "vm.declared"}, {"", "block.added"}, {"3", "guard.added"}, {"4", "node.changed"}, {"5", "block.lifted"}}
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
		e := openEvents(t, s, "/v1/events?from=1", "")
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
			path += "?from=1" // nothing was whole yet
		}
		e = openEvents(t, s, path, last)
		for len(seen) < 40 {
			m, _ := e.next(t)
			if m.event == wire.EventReset {
				t.Fatal("reset")
			}
			seen[m.data.Block.ID] = true
			if m.id == "21" {
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
	if m, _ := e.next(t); m.event != wire.EventReset || m.id != "2" || m.data.Index != 2 {
		t.Errorf("got %+v, want a reset at index 2", m)
	}
	f.Apply(fsm.DeclareVM{ID: "vm-2"})
	if m, _ := e.next(t); m.event != "vm.declared" || m.id != "3" {
		t.Errorf("after the reset: %+v", m)
	}
	e.close()
	// One that is ahead only because this node lags a little is not reset.
	s2 := serve(t, f, func(o *Options) { o.Heartbeat = 10 * time.Second })
	e = openEvents(t, s2, "/v1/events", "4")
	f.Apply(fsm.DeclareVM{ID: "vm-3"})
	f.Apply(fsm.DeclareVM{ID: "vm-4"})
	if m, _ := e.next(t); m.event != "vm.declared" || m.id != "5" {
		t.Errorf("got %+v, want what came after 4", m)
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
