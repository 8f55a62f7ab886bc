package httpapi

import (
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/palisade/palisade/httpapi/login"
)

// conns are the open TCP connections. They are bounded, so that strangers can't use up the process's file descriptors,
// which raft and the kernel driver need too; of one source they are bounded further, and when all places are taken, a
// connection that does nothing makes room, of the source that has the most: idle connections keep nobody out. The Unix
// socket is not counted: the local administrator always gets in.
type conns struct {
	most, mostOfSource int

	mu      sync.Mutex
	open    map[net.Conn]*connection
	sources map[string]int
}

type connection struct {
	source string
	idle   bool // or it has not sent a request yet
	since  time.Time
}

func newConns(most, mostOfSource int) *conns {
	return &conns{most: most, mostOfSource: mostOfSource, open: map[net.Conn]*connection{}, sources: map[string]int{}}
}

// note follows a connection, and returns those that must be closed.
func (cs *conns) note(c net.Conn, st http.ConnState, now time.Time) (shut []net.Conn) {
	if c.LocalAddr().Network() == "unix" {
		return nil
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	known := cs.open[c]
	switch st {
	case http.StateNew:
		return cs.admit(c, now)
	case http.StateClosed, http.StateHijacked:
		cs.drop(c)
	case http.StateActive, http.StateIdle:
		if known != nil {
			known.idle, known.since = st == http.StateIdle, now
		}
	}
	return nil
}

func (cs *conns) admit(c net.Conn, now time.Time) (shut []net.Conn) {
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		host = c.RemoteAddr().String()
	}
	source := login.Source(host)
	if cs.sources[source] >= cs.mostOfSource {
		return []net.Conn{c}
	}
	if len(cs.open) >= cs.most {
		victim := cs.idlest()
		if victim == nil {
			return []net.Conn{c}
		}
		cs.drop(victim)
		shut = []net.Conn{victim}
	}
	cs.open[c] = &connection{source: source, idle: true, since: now}
	cs.sources[source]++
	return shut
}

// idlest is the connection that does nothing for the longest time, of the source with the most connections that has one.
func (cs *conns) idlest() (victim net.Conn) {
	var is *connection
	for c, k := range cs.open {
		if !k.idle {
			continue
		}
		if is == nil || cs.sources[k.source] > cs.sources[is.source] ||
			cs.sources[k.source] == cs.sources[is.source] && k.since.Before(is.since) {
			victim, is = c, k
		}
	}
	return victim
}

func (cs *conns) drop(c net.Conn) {
	k := cs.open[c]
	if k == nil {
		return
	}
	delete(cs.open, c)
	if cs.sources[k.source]--; cs.sources[k.source] == 0 {
		delete(cs.sources, k.source)
	}
}

func (cs *conns) count() int {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return len(cs.open)
}

// countConn is the hook of the HTTP server.
func (s *Server) countConn(c net.Conn, st http.ConnState) {
	for _, c := range s.conns.note(c, st, time.Now()) {
		s.metrics.refused.Inc()
		s.asks.Go(func() { _ = c.Close() }) // of TLS it takes some seconds if the peer reads nothing
	}
}
