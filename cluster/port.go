package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Bounds on what anyone who reaches the peer port can take.
const (
	maxHandshakes        = 128 // at once
	maxHandshakesPerHost = 32  // at once, so that one host can't keep the others out
	maxPeerConns         = 1024
)

// port owns the peer port: it accepts, shakes hands, and hands each connection to raft or to the peer
// RPC server by what ALPN agreed on. Whoever does not belong to the fleet gets no further than the
// handshake.
type port struct {
	ln        net.Listener // set before run
	identity  Identity
	peers     map[string]Peer
	advertise string
	handshake time.Duration
	logger    *slog.Logger
	refused   seldom

	raft *connQueue
	rpc  *connQueue
	ctx  context.Context //nolint:containedctx // of all dials; ends with close
	end  context.CancelFunc

	mu    sync.Mutex
	hosts map[string]int // handshakes going on, by remote host
	busy  int            // all of them
	conns map[net.Conn]struct{}
	done  bool
	wg    sync.WaitGroup
}

func newPort(identity Identity, peers map[string]Peer, advertise string, t Timing, logger *slog.Logger) *port {
	ctx, end := context.WithCancel(context.Background())
	return &port{
		ctx: ctx, end: end,
		identity: identity, peers: peers, advertise: advertise, handshake: t.Handshake, logger: logger,
		refused: seldom{every: 10 * time.Second},
		raft:    newConnQueue(peerAddr(advertise)),
		rpc:     newConnQueue(peerAddr(advertise)),
		hosts:   map[string]int{},
		conns:   map[net.Conn]struct{}{},
	}
}

// run accepts until close is called, and returns after all handshakes have ended.
func (p *port) run() error {
	defer p.wg.Wait()
	server := p.identity.Server().Clone()
	server.NextProtos = []string{alpnRaft, alpnRPC}
	for delay := time.Duration(0); ; {
		conn, err := p.ln.Accept()
		if err == nil {
			delay = 0
			p.start(conn, server)
			continue
		}
		if errors.Is(err, net.ErrClosed) || p.closed() {
			return nil
		}
		// Out of file descriptors, most likely: it passes.
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		p.logger.Warn("accept on the peer port failed", "err", err, "retry_in", delay)
		select {
		case <-time.After(delay):
		case <-p.ctx.Done():
		}
	}
}

func (p *port) start(conn net.Conn, server *tls.Config) {
	host := hostOf(conn)
	p.mu.Lock()
	full := p.done || p.busy >= maxHandshakes || p.hosts[host] >= maxHandshakesPerHost || len(p.conns) >= maxPeerConns
	if !full {
		p.busy++
		p.hosts[host]++
		p.conns[conn] = struct{}{}
		p.wg.Add(1)
	}
	p.mu.Unlock()
	if full {
		_ = conn.Close()
		if n, ok := p.refused.ok("full"); ok {
			p.logger.Warn("too many connections on the peer port, one was closed", "remote", host, "more_since", n)
		}
		return
	}
	go func() {
		defer p.wg.Done()
		p.admit(conn, host, server)
	}()
}

func (p *port) admit(raw net.Conn, host string, server *tls.Config) {
	conn := tls.Server(raw, server)
	ctx, cancel := context.WithTimeout(context.Background(), p.handshake)
	err := conn.HandshakeContext(ctx)
	cancel()

	p.mu.Lock()
	p.busy--
	if p.hosts[host]--; p.hosts[host] == 0 {
		delete(p.hosts, host)
	}
	delete(p.conns, raw)
	if err == nil && !p.done {
		p.conns[conn] = struct{}{}
	}
	closed := p.done
	p.mu.Unlock()

	if err != nil || closed {
		_ = raw.Close()
		if err != nil && !closed {
			p.logRefused(host, err)
		}
		return
	}
	taken := false
	switch conn.ConnectionState().NegotiatedProtocol {
	case alpnRaft:
		taken = p.raft.push(&closeHook{Conn: conn, hook: func() { p.forget(conn) }})
	case alpnRPC:
		taken = p.rpc.push(conn) // net/http needs the bare TLS connection
	}
	if !taken {
		p.forget(conn)
		_ = conn.Close()
	}
}

func (p *port) logRefused(host string, err error) {
	level, msg := slog.LevelDebug, "a TLS handshake on the peer port failed"
	if errors.Is(err, errNotOfFleet) || strings.Contains(err.Error(), "bad certificate") {
		level, msg = slog.LevelWarn, "a connection was refused: the two ends do not hold the same cluster key"
	}
	if n, ok := p.refused.ok(host); ok {
		p.logger.Log(context.Background(), level, msg, "remote", host, "err", err, "more_since", n)
	}
}

// forget drops a connection from the count of open ones.
func (p *port) forget(conn net.Conn) {
	p.mu.Lock()
	delete(p.conns, conn)
	p.mu.Unlock()
}

func (p *port) closed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// close closes the listener and every connection, also those in a handshake.
func (p *port) close() {
	p.end()
	p.mu.Lock()
	p.done = true
	conns := make([]net.Conn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	p.mu.Unlock()
	if p.ln != nil {
		_ = p.ln.Close()
	}
	_ = p.raft.Close()
	_ = p.rpc.Close()
	for _, c := range conns {
		if t, ok := c.(*tls.Conn); ok {
			c = t.NetConn() // without the farewell, which may block
		}
		_ = c.Close()
	}
}

// dial connects to a peer and shakes hands.
func (p *port) dial(ctx context.Context, id, address, proto string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.handshake)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)() //nolint:contextcheck // net/http dials on after its caller has gone
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	conf := p.identity.Client(id).Clone()
	conf.NextProtos = []string{proto}
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		if errors.Is(err, errNotOfFleet) || strings.Contains(err.Error(), "where node") {
			if n, ok := p.refused.ok("to " + id); ok {
				p.logger.Warn("a peer was refused", "peer", id, "address", address, "err", err, "more_since", n)
			}
		}
		return nil, fmt.Errorf("TLS with peer %s at %s: %w", id, address, err)
	}
	return conn, nil
}

func hostOf(conn net.Conn) string {
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		return conn.RemoteAddr().String()
	}
	return host
}

// connQueue is a net.Listener that is fed.
type connQueue struct {
	addr net.Addr
	ch   chan net.Conn
	once sync.Once
	done chan struct{}
}

func newConnQueue(addr net.Addr) *connQueue {
	return &connQueue{addr: addr, ch: make(chan net.Conn, 64), done: make(chan struct{})}
}

// push hands over a connection; false means that nobody takes it in.
func (q *connQueue) push(c net.Conn) bool {
	select {
	case <-q.done:
		return false
	default:
	}
	select {
	case q.ch <- c:
		return true
	default:
		return false
	}
}

func (q *connQueue) Accept() (net.Conn, error) {
	select {
	case <-q.done:
		return nil, net.ErrClosed
	case c := <-q.ch:
		return c, nil
	}
}

func (q *connQueue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *connQueue) Addr() net.Addr { return q.addr }

// closeHook calls hook once when the connection is closed.
type closeHook struct {
	net.Conn
	once sync.Once
	hook func()
}

func (c *closeHook) Close() error {
	c.once.Do(c.hook)
	return c.Conn.Close()
}

// streamLayer lets raft speak through the port.
type streamLayer struct {
	*connQueue
	port *port
}

var _ raft.StreamLayer = (*streamLayer)(nil)

// peerAddr is the address this node advertises; raft compares it with its configuration.
type peerAddr string

func (peerAddr) Network() string  { return "tcp" }
func (a peerAddr) String() string { return string(a) }

func (s *streamLayer) Addr() net.Addr { return peerAddr(s.port.advertise) }

func (s *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.port.ctx, timeout)
	defer cancel()
	for id, p := range s.port.peers {
		if p.Address != string(address) {
			continue
		}
		conn, err := s.port.dial(ctx, id, p.Address, alpnRaft)
		if err != nil {
			return nil, err
		}
		hooked := &closeHook{Conn: conn, hook: func() { s.port.forget(conn) }}
		s.port.mu.Lock()
		closed := s.port.done
		if !closed {
			s.port.conns[conn] = struct{}{}
		}
		s.port.mu.Unlock()
		if closed {
			_ = conn.Close()
			return nil, net.ErrClosed
		}
		return hooked, nil
	}
	return nil, fmt.Errorf("no peer has the address %s", address)
}
