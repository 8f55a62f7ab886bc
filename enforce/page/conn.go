package page

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// listener hands out only connections that the kernel has redirected, and not too many.
type listener struct {
	net.Listener
	server *Server
}

// conn is a connection with the address that its visitor wanted.
type conn struct {
	net.Conn
	wanted netip.AddrPort
	done   func()
}

// Accept implements net.Listener. It closes what was not redirected without an answer: somebody who calls the
// port itself learns nothing.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		wanted, err := l.server.opts.wanted(c)
		if err != nil {
			l.server.opts.Logger.Debug("closed a connection that was not redirected", "from", c.RemoteAddr(), "err", err)
			_ = c.Close()
			continue
		}
		done, ok := l.server.slots.take(remote(c))
		if !ok {
			_ = c.Close()
			continue
		}
		return &conn{Conn: c, wanted: wanted, done: sync.OnceFunc(done)}, nil
	}
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.done()
	return c.Conn.Close()
}

func remote(c net.Conn) netip.Addr {
	a, _ := netip.ParseAddrPort(c.RemoteAddr().String()) // what has no address shares one slot
	return a.Addr().Unmap()
}

// slots bound the connections, and those of one visitor.
type slots struct {
	mu           sync.Mutex
	free         int
	mostPerGuest int
	taken        map[netip.Addr]int
}

func newSlots(most, perGuest int) *slots {
	return &slots{free: most, mostPerGuest: perGuest, taken: map[netip.Addr]int{}}
}

func (s *slots) take(guest netip.Addr) (done func(), ok bool) {
	if guest.Is6() {
		p, _ := guest.Prefix(64) // never out of range
		guest = p.Addr()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free == 0 || s.taken[guest] >= s.mostPerGuest {
		return nil, false
	}
	s.free--
	s.taken[guest]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.free++
		if s.taken[guest]--; s.taken[guest] == 0 {
			delete(s.taken, guest)
		}
	}, true
}

// errNotRedirected is the error of a connection that came for this port itself.
var errNotRedirected = errors.New("it was not redirected")

// originalDestination asks the kernel's connection tracking for which address a redirected connection was.
func originalDestination(c net.Conn) (netip.AddrPort, error) {
	sc, ok := c.(syscall.Conn)
	local, isTCP := c.LocalAddr().(*net.TCPAddr)
	if !ok || !isTCP {
		return netip.AddrPort{}, fmt.Errorf("%T is no TCP connection", c)
	}
	here := netip.AddrPortFrom(local.AddrPort().Addr().Unmap(), local.AddrPort().Port())
	raw, err := sc.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var wanted netip.AddrPort
	var failed error
	if err := raw.Control(func(fd uintptr) { wanted, failed = askKernel(int(fd), here.Addr().Is4()) }); err != nil {
		return netip.AddrPort{}, err
	}
	switch {
	case failed != nil:
		return netip.AddrPort{}, fmt.Errorf("ask for the original destination: %w", failed)
	case wanted == here:
		return netip.AddrPort{}, errNotRedirected
	}
	return wanted, nil
}

// askKernel reads a sockaddr_in or sockaddr_in6. Package unix has no function for this option, but two that read
// enough bytes.
func askKernel(fd int, v4 bool) (netip.AddrPort, error) {
	if v4 {
		m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, unix.SO_ORIGINAL_DST)
		if err != nil {
			return netip.AddrPort{}, err
		}
		b := m.Multiaddr // family, port, address
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4])), nil
	}
	const ip6tOriginalDst = 80 // IP6T_SO_ORIGINAL_DST
	info, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, ip6tOriginalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	// The port is in network order.
	port := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, info.Addr.Port))
	return netip.AddrPortFrom(netip.AddrFrom16(info.Addr.Addr), port), nil
}
