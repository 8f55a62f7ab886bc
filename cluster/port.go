package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/pki"
)

// Bounds on what anyone who reaches the peer port can take.
const (
	maxHandshakes        = 128 // at once
	maxHandshakesPerHost = 32  // at once, so that one host can't keep the others out
	maxOddHandshakes     = 64  // handshakes at once with hosts that are no members', so that many can't either
	maxPeerConns         = 4096
	maxConnsOfMember     = 64 // a member needs a handful, in both directions
	maxDoor              = 8  // joining nodes at once
	maxDoorPerHost       = 2
)

// port owns the peer port: it accepts, shakes hands, and hands each connection to raft, to the peer
// RPC server or to the door for joining nodes, by what ALPN agreed on. Whoever does not belong to the fleet
// gets no further than the handshake, or to the door.
type port struct {
	ln        net.Listener // set before run
	identity  *Identity
	dir       *directory
	mayRaft   func(from string, proven bool) bool
	contacts  *contacts
	refusedBy func(id string) // called when a node has refused to speak raft with this one
	join      func(net.Conn)  // answers one joining node and closes; nil refuses all
	handshake time.Duration
	logger    *slog.Logger
	refused   seldom

	rpc *connQueue
	ctx context.Context //nolint:containedctx // of all dials; ends with close
	end context.CancelFunc

	mu    sync.Mutex
	hosts map[string]int // handshakes going on, by remote host
	busy  int            // all of them
	odd   int            // those with strangers
	doors map[string]int // joining nodes that are answered, by remote host
	conns map[*peerConn]struct{}
	raft  *connQueue // closed while raft does not run
	done  bool
	wg    sync.WaitGroup
}

// peerConn is the TCP connection under a TLS connection. The port knows it while it is open.
type peerConn struct {
	net.Conn
	port   *port
	once   sync.Once
	member pki.Member           // of the other end, guarded by port.mu; zero before the handshake
	life   atomic.Pointer[life] // of the other end, nil before it has said it
	raft   bool                 // it is raft's, guarded by port.mu
}

// Close closes the connection at once, without TLS's farewell, which may block.
func (c *peerConn) Close() error {
	c.once.Do(func() {
		c.port.mu.Lock()
		defer c.port.mu.Unlock()
		delete(c.port.conns, c)
	})
	return c.Conn.Close()
}

func newPort(identity *Identity, dir *directory, t Timing, logger *slog.Logger) *port {
	ctx, end := context.WithCancel(context.Background())
	raftQueue := newConnQueue(peerAddr(dir.self))
	_ = raftQueue.Close()
	return &port{
		ctx: ctx, end: end, raft: raftQueue,
		identity: identity, dir: dir, handshake: t.Handshake, logger: logger,
		refused: seldom{every: 10 * time.Second},
		rpc:     newConnQueue(peerAddr(dir.self)),
		hosts:   map[string]int{},
		doors:   map[string]int{},
		conns:   map[*peerConn]struct{}{},
	}
}

// run accepts until close is called, and returns after all handshakes have ended.
func (p *port) run() error {
	defer p.wg.Wait()
	server := p.identity.server(p.dir)
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

func (p *port) start(raw net.Conn, server *tls.Config) {
	host := hostOf(raw)
	conn := &peerConn{Conn: raw, port: p}
	stranger := !p.dir.now().hosts[host]
	p.mu.Lock()
	full := p.done || p.busy >= maxHandshakes || p.hosts[host] >= maxHandshakesPerHost || len(p.conns) >= maxPeerConns ||
		stranger && p.odd >= maxOddHandshakes
	if !full {
		p.busy++
		if stranger {
			p.odd++
		}
		p.hosts[host]++
		p.conns[conn] = struct{}{}
		p.wg.Add(1)
	}
	p.mu.Unlock()
	if full {
		_ = raw.Close()
		if n, ok := p.refused.ok("full"); ok {
			p.logger.Warn("too many connections on the peer port, one was closed", "remote", host, "more_since", n)
		}
		return
	}
	go func() {
		defer p.wg.Done()
		p.admit(conn, host, stranger, server)
	}()
}

func (p *port) admit(raw *peerConn, host string, stranger bool, server *tls.Config) {
	conn := tls.Server(raw, server)
	ctx, cancel := context.WithTimeout(p.ctx, p.handshake)
	defer cancel()
	err := conn.HandshakeContext(ctx)
	proto := conn.ConnectionState().NegotiatedProtocol
	if err == nil && proto != alpnJoin {
		err = p.check(ctx, raw, conn, proto)
	}

	p.mu.Lock()
	p.busy--
	if stranger {
		p.odd--
	}
	if p.hosts[host]--; p.hosts[host] == 0 {
		delete(p.hosts, host)
	}
	p.mu.Unlock()

	if err != nil {
		_ = raw.Close()
		if !p.closed() {
			p.logRefused(host, err)
		}
		return
	}
	taken := false
	switch proto {
	case alpnRaft:
		taken = p.raftQueue().push(conn)
	case alpnRPC:
		taken = p.rpc.push(conn)
	case alpnJoin:
		p.open(conn, host)
		return
	}
	if !taken {
		_ = raw.Close()
	}
}

// check looks at who shook hands, whom TLS has let through, and whether it may speak raft.
func (p *port) check(ctx context.Context, raw *peerConn, conn *tls.Conn, proto string) error {
	cs := conn.ConnectionState()
	member, err := pki.ReadMember(cs.PeerCertificates[0])
	if err != nil {
		return err
	}
	if proto == alpnRaft {
		proven, err := p.identity.readProof(ctx, conn)
		if err != nil {
			return err
		}
		if err := p.meet(ctx, raw, conn, member.Node); err != nil {
			return err
		}
		if !p.mayRaft(member.Node, proven) {
			return fmt.Errorf("%w: node %q is no voter and may not speak raft", errRefused, member.Node)
		}
	}
	return p.enrol(raw, member, proto)
}

// enrol notes who is at the other end of a connection, so that it can be cut; it fails if that is due already.
func (p *port) enrol(raw *peerConn, member pki.Member, proto string) error {
	p.mu.Lock()
	raw.member, raw.raft = member, proto == alpnRaft
	done, of := p.done, 0
	for c := range p.conns {
		if c.member.Node == member.Node {
			of++
		}
	}
	p.mu.Unlock()
	if done {
		return net.ErrClosed
	}
	if of > maxConnsOfMember {
		return fmt.Errorf("%w: node %q has %d connections already", errRefused, member.Node, of-1)
	}
	if p.outlived(raw, member) { // since the handshake
		return fmt.Errorf("%w: node %q has just been retired, has another key, or goes on elsewhere", errRefused, member.Node)
	}
	return nil
}

// outlived says whether a connection must be cut.
func (p *port) outlived(c *peerConn, member pki.Member) bool {
	l := c.life.Load()
	return p.dir.outlived(member) || l != nil && p.contacts.outlived(member.Node, *l)
}

// cut closes the connections to nodes that must have none any more: retired, with a certificate over a key that
// was replaced, or of a life that is over or a copy's.
func (p *port) cut() {
	var gone []*peerConn
	p.mu.Lock()
	for c := range p.conns {
		if c.member.Node != "" && p.outlived(c, c.member) {
			gone = append(gone, c)
		}
	}
	p.mu.Unlock()
	for _, c := range gone {
		p.logger.Info("cut a connection of a node that is not accepted any more", "peer", c.member.Node, "remote", hostOf(c))
		_ = c.Close()
	}
}

// open lets a joining node to the door, unless too many stand there.
func (p *port) open(conn *tls.Conn, host string) {
	p.mu.Lock()
	all := 0
	for _, n := range p.doors {
		all += n
	}
	full := p.done || p.join == nil || all >= maxDoor || p.doors[host] >= maxDoorPerHost
	if !full {
		p.doors[host]++
	}
	p.mu.Unlock()
	defer func() { _ = conn.Close() }()
	if full {
		return
	}
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.doors[host]--; p.doors[host] == 0 {
			delete(p.doors, host)
		}
	}()
	p.join(conn)
}

func (p *port) logRefused(host string, err error) {
	level, msg := slog.LevelDebug, "a TLS handshake on the peer port failed"
	if errors.Is(err, errRefused) || strings.Contains(err.Error(), "bad certificate") {
		level, msg = slog.LevelWarn, "a connection on the peer port was refused"
	}
	if n, ok := p.refused.ok(host); ok {
		p.logger.Log(context.Background(), level, msg, "remote", host, "err", err, "more_since", n)
	}
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
	conns := slices.Collect(maps.Keys(p.conns))
	p.mu.Unlock()
	if p.ln != nil {
		_ = p.ln.Close()
	}
	p.closeRaft()
	_ = p.rpc.Close()
	for _, c := range conns {
		_ = c.Close()
	}
}

// openRaft begins to take raft's connections.
func (p *port) openRaft() *connQueue {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.raft = newConnQueue(peerAddr(p.dir.self))
	if p.done {
		_ = p.raft.Close()
	}
	return p.raft
}

// raftQueue is where raft accepts; it may be closed.
func (p *port) raftQueue() *connQueue {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.raft
}

// closeRaft ends raft's connections and takes no more, until openRaft.
func (p *port) closeRaft() {
	p.mu.Lock()
	_ = p.raft.Close()
	var conns []*peerConn
	for c := range p.conns {
		if c.raft {
			conns = append(conns, c)
		}
	}
	p.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// dial connects to a peer and shakes hands.
func (p *port) dial(ctx context.Context, id, address, proto string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.handshake)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)() //nolint:contextcheck // net/http dials on after its caller has gone
	var d net.Dialer
	tcp, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	raw := &peerConn{Conn: tcp, port: p}
	p.mu.Lock()
	p.conns[raw] = struct{}{}
	p.mu.Unlock()
	conn, err := p.greet(ctx, raw, id, proto)
	if err != nil {
		_ = raw.Close()
		if errors.Is(err, errRefused) {
			if n, ok := p.refused.ok("to " + id); ok {
				p.logger.Warn("a peer was refused", "peer", id, "address", address, "err", err, "more_since", n)
			}
		}
		return nil, fmt.Errorf("TLS with peer %s at %s: %w", id, address, err)
	}
	return conn, nil
}

func (p *port) greet(ctx context.Context, raw *peerConn, id, proto string) (*tls.Conn, error) {
	conn := tls.Client(raw, p.identity.client(p.dir, id, proto))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	member, err := pki.ReadMember(conn.ConnectionState().PeerCertificates[0])
	if err != nil {
		return nil, err
	}
	if proto == alpnRaft {
		if err := p.identity.sendProof(ctx, conn); err != nil {
			return nil, err
		}
		if err := p.introduce(ctx, conn, id); err != nil {
			return nil, err
		}
	}
	return conn, p.enrol(raw, member, proto)
}

// introduce says who this node is before raft speaks, and reads whether the other end will have it.
func (p *port) introduce(ctx context.Context, conn *tls.Conn, id string) error {
	defer context.AfterFunc(ctx, func() { _ = conn.NetConn().Close() })()
	if _, err := conn.Write(p.contacts.mine.bytes()); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	if answer[0] != 0 {
		p.refusedBy(id)
		return fmt.Errorf("%w: node %q refuses to speak raft with this node", errRefused, id)
	}
	return nil
}

// meet is the other end of introduce.
func (p *port) meet(ctx context.Context, raw *peerConn, conn *tls.Conn, from string) error {
	defer context.AfterFunc(ctx, func() { _ = conn.NetConn().Close() })()
	b := make([]byte, saidBytes)
	if _, err := io.ReadFull(conn, b); err != nil {
		return err
	}
	s := readSaid(b)
	met := p.contacts.meet(ctx, from, s, nil, "")
	raw.life.Store(&s.life)
	answer := []byte{0}
	if met != nil {
		answer[0] = 1
		p.refusedBy(from) // if it is at a higher epoch, it can prove that
		met = fmt.Errorf("%w: node %q: %w", errRefused, from, met)
	}
	_, err := conn.Write(answer)
	return errors.Join(met, err)
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

// streamLayer lets raft speak through the port.
type streamLayer struct {
	*connQueue
	port *port
}

var _ raft.StreamLayer = (*streamLayer)(nil)

// peerAddr is a node id in the place of an address: that is how raft knows its members, so that nothing in its
// log changes when a node moves to another address.
type peerAddr string

func (peerAddr) Network() string  { return "palisade" }
func (a peerAddr) String() string { return string(a) }

func (s *streamLayer) Addr() net.Addr { return peerAddr(s.port.dir.self) }

func (s *streamLayer) Dial(id raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	peer, ok := s.port.dir.peer(string(id))
	if !ok {
		return nil, fmt.Errorf("no node %q is known here", id)
	}
	ctx, cancel := context.WithTimeout(s.port.ctx, timeout)
	defer cancel()
	return s.port.dial(ctx, peer.ID, peer.Address, alpnRaft)
}
