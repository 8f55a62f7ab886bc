// Package canary proves with packets that this node's kernel drops what it is told to drop. It sends
// packets that are blocked, over links of its own and over the loopback, and looks whether they arrive; and others that are
// not blocked, which must arrive, or the proof would be worth nothing. None can leave the node.
package canary

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// Path is a way through the kernel, and what of the packet is blocked there.
type Path string

// The paths. The first four lead from a port into a bridge, as those of a guest.
const (
	BridgeTap  Path = "bridge_tap"
	BridgeMAC  Path = "bridge_mac"
	BridgeIPv4 Path = "bridge_ipv4"
	BridgeIPv6 Path = "bridge_ipv6"
	HostIPv4   Path = "host_ipv4" // from the node itself, over the loopback
)

// Paths are all paths.
func Paths() []Path { return []Path{BridgeTap, BridgeMAC, BridgeIPv4, BridgeIPv6, HostIPv4} }

// The addresses are nobody's: 127/8 and locally administered hardware addresses stay on the node, 100::/64 is for
// discarding (RFC 6666).
func blocked4() netip.Addr { return netip.AddrFrom4([4]byte{127, 112, 97, 108}) }
func free4() netip.Addr    { return netip.AddrFrom4([4]byte{127, 112, 97, 107}) }
func blocked6() netip.Addr { return netip.MustParseAddr("100::7061:6c") }
func free6() netip.Addr    { return netip.MustParseAddr("100::7061:6b") }

func blockedMAC() fsm.MAC { return fsm.MAC{0x02, 'p', 'a', 'l', 0, 1} }
func freeMAC() fsm.MAC    { return fsm.MAC{0x02, 'p', 'a', 'l', 0, 2} }
func nobody() fsm.MAC     { return fsm.MAC{0x02, 'p', 'a', 'l', 0, 3} } // no interface has it

// Elements are what the kernel must drop for the proof. They are always the same.
func Elements() []enforce.Element {
	whole := func(a netip.Addr) enforce.Element { return enforce.Element{Prefix: netip.PrefixFrom(a, a.BitLen())} }
	return []enforce.Element{{Tap: portBlocked}, {MAC: blockedMAC()}, whole(blocked4()), whole(blocked6())}
}

// Options of a Canary. The zero value is useful.
type Options struct {
	Logger *slog.Logger // default: none
	// Wait is how long what must arrive may take. Default 1 s.
	Wait time.Duration
}

// Canary sends the packets. It is used by one goroutine.
type Canary struct {
	opts  Options
	run   uint64
	links *links
	host  *net.UDPConn // sends over the loopback
	sinks [2]*net.UDPConn
}

// New returns a canary that has made nothing yet.
func New(o Options) *Canary {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Wait == 0 {
		o.Wait = time.Second
	}
	return &Canary{opts: o}
}

// settle is how long ports of a bridge that were just made may take to forward.
const settle = 3 * time.Second

// Open makes the links, after removing those of an earlier life, and the sockets, in the network namespace of the
// calling thread. It blocks until the links carry what is not blocked, some seconds at most: if they never do, Fly tells.
func (c *Canary) Open() (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	for i, a := range []netip.Addr{free4(), blocked4()} {
		if c.sinks[i], err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0))); err != nil {
			return fmt.Errorf("listen on the loopback: %w", err)
		}
	}
	if c.host, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		return fmt.Errorf("send from the loopback: %w", err)
	}
	if c.links, err = openLinks(); err != nil {
		return err
	}
	return c.awaitLinks()
}

func (c *Canary) awaitLinks() error {
	for end := time.Now().Add(settle); time.Now().Before(end); {
		for _, from := range []netip.Addr{free4(), free6()} {
			if err := c.links.send(portFree, frame{mac: freeMAC(), from: from}.bytes()); err != nil {
				return err
			}
		}
		if _, _, ok, err := c.links.receive(time.Now().Add(10 * time.Millisecond)); err != nil || ok {
			return err
		}
	}
	return nil
}

// Close removes the links.
func (c *Canary) Close() error {
	var errs []error
	for _, s := range []*net.UDPConn{c.host, c.sinks[0], c.sinks[1]} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	if c.links != nil {
		errs = append(errs, c.links.close())
	}
	c.host, c.sinks, c.links = nil, [2]*net.UDPConn{}, nil
	return errors.Join(errs...)
}

// Flight is what one sending showed.
type Flight struct {
	Passed []Path // a blocked packet arrived
	Blind  []Path // a packet that is not blocked did not: nothing is proven
}

// Fly sends once on every path. It blocks for some milliseconds, or for Options.Wait if something does not arrive that must.
// An error says that it could not be sent.
func (c *Canary) Fly(ctx context.Context) (Flight, error) {
	c.run++
	var f Flight
	if err := c.overBridge(ctx, &f); err != nil {
		return f, err
	}
	return f, c.overLoopback(&f)
}

func (c *Canary) overBridge(ctx context.Context, f *Flight) error {
	frames := []struct {
		path  Path
		port  string
		frame frame
	}{
		{BridgeTap, portBlocked, frame{mac: freeMAC(), from: free4()}},
		{BridgeMAC, portFree, frame{mac: blockedMAC(), from: free4()}},
		{BridgeIPv4, portFree, frame{mac: freeMAC(), from: blocked4()}},
		{BridgeIPv6, portFree, frame{mac: freeMAC(), from: blocked6()}},
		{"", portFree, frame{mac: freeMAC(), from: free4(), free: true}}, // what must arrive comes last
		{"", portFree, frame{mac: freeMAC(), from: free6(), free: true}},
	}
	want := 0
	for i, s := range frames {
		s.frame.run, s.frame.number = c.run, byte(i)
		if err := c.links.send(s.port, s.frame.bytes()); err != nil {
			return err
		}
		if s.frame.free {
			want++
		}
	}
	linger := 5 * time.Millisecond // for what should not come, once all that must is there
	for deadline := time.Now().Add(c.opts.Wait); time.Now().Before(deadline) && ctx.Err() == nil; {
		number, run, ok, err := c.links.receive(deadline)
		switch {
		case err != nil:
			return err
		case !ok || run != c.run || int(number) >= len(frames):
		case frames[number].frame.free:
			if want--; want == 0 {
				deadline = time.Now().Add(linger)
			}
		case !slices.Contains(f.Passed, frames[number].path):
			f.Passed = append(f.Passed, frames[number].path)
		}
	}
	if want > 0 && ctx.Err() == nil {
		f.Blind = append(f.Blind, BridgeTap, BridgeMAC, BridgeIPv4, BridgeIPv6)
	}
	return nil
}

func (c *Canary) overLoopback(f *Flight) error {
	text := fmt.Appendf(nil, "palisade %d", c.run)
	for i := len(c.sinks) - 1; i >= 0; i-- { // the blocked one first
		// A drop in the output hook is an error of sending: it is the sink that judges.
		_, _ = c.host.WriteTo(text, c.sinks[i].LocalAddr())
	}
	arrived := func(s *net.UDPConn, wait time.Duration) (bool, error) {
		b := make([]byte, 64)
		if err := s.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return false, fmt.Errorf("wait on the loopback: %w", err)
		}
		for {
			n, err := s.Read(b)
			if err != nil {
				return false, nil //nolint:nilerr // nothing came
			}
			if string(b[:n]) == string(text) {
				return true, nil
			}
		}
	}
	free, err := arrived(c.sinks[0], c.opts.Wait)
	if err != nil {
		return err
	}
	passed, err := arrived(c.sinks[1], time.Millisecond)
	switch {
	case err != nil:
		return err
	case passed:
		f.Passed = append(f.Passed, HostIPv4)
	case !free:
		f.Blind = append(f.Blind, HostIPv4)
	}
	return nil
}
