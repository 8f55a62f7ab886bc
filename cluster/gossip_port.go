package cluster

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Bounds on what anyone who reaches the gossip port by TCP can take. memberlist would read 20 MiB of each of any
// number of connections before it looks whether the key fits.
const (
	maxGossipStreams        = 64 // at once
	maxGossipStreamsPerHost = 8  // at once
	maxGossipStrangers      = 16 // at once, of hosts that are no members'
	// gossipStreamBase and gossipStreamOf a member bound what one connection may send: a description of all members.
	gossipStreamBase = 1 << 20
	gossipStreamOf   = 1 << 10
)

// What memberlist writes: a packet is version, nonce, text and tag; on a connection the kind and the length come first.
// The version is not under the tag, and memberlist 0.7.0 panics if it reads a genuine message, which anyone on the way
// can copy, as one of version 0, which ends in padding; and if a message on a connection has no text.
const (
	gossipVersion    = 1
	gossipEncrypted  = 10
	gossipHead       = 5
	gossipLeastCrypt = 1 + 12 + 16
)

var (
	errGossipTooLong = errors.New("a connection on the gossip port has sent too much")
	errGossipForm    = errors.New("a connection on the gossip port begins with what no member sends")
)

// gossipPort is memberlist's own transport, with bounds.
type gossipPort struct {
	*memberlist.NetTransport
	dir     *directory
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
	wg      sync.WaitGroup

	mu    sync.Mutex
	all   int
	odd   int // with strangers
	hosts map[string]int
}

var _ memberlist.NodeAwareTransport = (*gossipPort)(nil)

// openGossipPort listens, and passes on what comes from then on, until Shutdown.
func openGossipPort(conf *memberlist.Config, dir *directory) (*gossipPort, error) {
	inner, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{conf.BindAddr}, BindPort: conf.BindPort, Logger: conf.Logger,
	})
	if err != nil {
		return nil, err
	}
	p := &gossipPort{NetTransport: inner, dir: dir, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), done: make(chan struct{}), hosts: map[string]int{}}
	p.wg.Go(p.pass)
	p.wg.Go(p.passPackets)
	return p, nil
}

// PacketCh is where memberlist takes packets.
func (p *gossipPort) PacketCh() <-chan *memberlist.Packet { return p.packets }

// DialAddressTimeout connects to a peer; its answer is read with the same care.
func (p *gossipPort) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	conn, err := p.NetTransport.DialAddressTimeout(a, timeout)
	if err != nil {
		return nil, err
	}
	return p.guarded(conn, func() {}), nil
}

// DialTimeout is DialAddressTimeout without a name.
func (p *gossipPort) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return p.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// passPackets passes on what has the form of a member's packet.
func (p *gossipPort) passPackets() {
	for {
		select {
		case packet := <-p.NetTransport.PacketCh():
			if len(packet.Buf) <= gossipLeastCrypt || packet.Buf[0] != gossipVersion {
				continue
			}
			select {
			case p.packets <- packet:
			case <-p.done:
			}
		case <-p.done:
			return
		}
	}
}

// StreamCh is where memberlist takes connections.
func (p *gossipPort) StreamCh() <-chan net.Conn { return p.streams }

// Shutdown closes the port. It can be called more than once.
func (p *gossipPort) Shutdown() (err error) {
	p.once.Do(func() {
		err = p.NetTransport.Shutdown() // blocks until nothing is accepted any more, which pass must take meanwhile
		close(p.done)
		p.wg.Wait()
	})
	return err
}

// pass passes on connections as long as there are few.
func (p *gossipPort) pass() {
	for {
		select {
		case raw := <-p.NetTransport.StreamCh():
			conn, ok := p.admit(raw)
			if !ok {
				_ = raw.Close()
				continue
			}
			select {
			case p.streams <- conn:
			case <-p.done:
				_ = conn.Close()
			}
		case <-p.done:
			return
		}
	}
}

func (p *gossipPort) admit(raw net.Conn) (net.Conn, bool) {
	list, host := p.dir.now(), hostOf(raw)
	odd := 0
	if !list.hosts[host] {
		odd = 1
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all >= maxGossipStreams || p.hosts[host] >= maxGossipStreamsPerHost || odd+p.odd > maxGossipStrangers {
		return nil, false
	}
	p.all++
	p.odd += odd
	p.hosts[host]++
	gone := sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.all--
		p.odd -= odd
		if p.hosts[host]--; p.hosts[host] == 0 {
			delete(p.hosts, host)
		}
	})
	return p.guarded(raw, gone), true
}

func (p *gossipPort) guarded(raw net.Conn, gone func()) *gossipStream {
	return &gossipStream{Conn: raw, most: gossipStreamBase + gossipStreamOf*len(p.dir.now().all), gone: gone}
}

// gossipStream is a connection of which so much is read and no more, and only what has the form of a member's
// message. memberlist reads it from one goroutine, and closes it at its TCPTimeout at the latest.
type gossipStream struct {
	net.Conn
	most int // bytes
	read int
	long uint32 // the length that the message claims
	gone func()
}

func (s *gossipStream) Read(b []byte) (int, error) {
	if s.read >= s.most {
		return 0, errGossipTooLong
	}
	n, err := s.Conn.Read(b[:min(len(b), s.most-s.read)])
	for _, v := range b[:n] {
		if s.read <= gossipHead && !s.head(v) {
			return 0, errGossipForm
		}
		s.read++
	}
	return n, err
}

// head looks at the next byte of the beginning.
func (s *gossipStream) head(v byte) bool {
	switch s.read {
	case 0:
		return v == gossipEncrypted
	case gossipHead:
		return v == gossipVersion
	case gossipHead - 1:
		s.long = s.long<<8 | uint32(v)
		return s.long > gossipLeastCrypt && s.long < uint32(s.most) //nolint:gosec // far below
	default:
		s.long = s.long<<8 | uint32(v)
		return true
	}
}

// Close closes the connection and gives its place back.
func (s *gossipStream) Close() error {
	defer s.gone()
	return s.Conn.Close()
}
