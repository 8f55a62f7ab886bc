package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/internal/probe"
)

// wires listens on every interface of every node and of the outside to the frames from and to one
// hardware address, of any protocol: what comes in there was tried, what goes out there has passed.
type wires struct {
	mac  [6]byte
	stop chan struct{}
	wg   sync.WaitGroup

	mu     sync.Mutex
	frames []frame
	err    error
}

// frame is one frame as one interface saw it.
type frame struct {
	at        time.Time // by the kernel
	where     string    // node or "outside"
	dev       string
	fromGuest bool
	passed    bool   // past the rules of a node
	protocol  uint16 // EtherType
	ping      bool   // an ICMP echo request
	numbered
}

// numbered is what a probe's packet to port 7, or its echo, says of itself; else zero.
type numbered struct {
	client netip.Addr
	seq    uint64
}

func (f frame) String() string {
	dir := "to"
	if f.fromGuest {
		dir = "from"
	}
	return fmt.Sprintf("%s the guest, protocol %04x, on %s of %s at %s", dir, f.protocol, f.dev, f.where, f.at.Format("15:04:05.000"))
}

// wires listens from now on until the test ends.
func (l *lab) wires(t *testing.T, guest string) *wires {
	t.Helper()
	g, err := l.Guest(guest)
	if err != nil {
		t.Fatal(err)
	}
	mac, err := net.ParseMAC(g.MAC)
	if err != nil {
		t.Fatal(err)
	}
	w := &wires{mac: [6]byte(mac), stop: make(chan struct{})}
	t.Cleanup(func() {
		close(w.stop)
		w.wg.Wait()
		if w.err != nil {
			t.Error(w.err)
		}
	})
	outside, _ := l.Ends(t, "outside")
	w.listen(t, "outside", outside.Netns)
	for _, n := range l.Nodes() {
		w.listen(t, n.Name, n.Netns)
	}
	return w
}

func (w *wires) listen(t *testing.T, where, netns string) {
	t.Helper()
	ready := make(chan struct{})
	failed := make(chan error, 1)
	w.wg.Go(func() {
		err := within(netns, func() error {
			fd, err := packetSocket()
			if err != nil {
				return err
			}
			defer func() { _ = unix.Close(fd) }()
			close(ready)
			return w.read(fd, where)
		})
		if err != nil {
			failed <- err
			w.mu.Lock()
			w.err = errors.Join(w.err, fmt.Errorf("listening on %s: %w", where, err))
			w.mu.Unlock()
		}
	})
	select {
	case <-ready:
	case err := <-failed:
		t.Fatal(err)
	}
}

// packetSocket gets every frame of every interface of the namespace, both ways.
func packetSocket() (int, error) {
	var all [2]byte
	binary.BigEndian.PutUint16(all[:], unix.ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16(all[:])))
	if err != nil {
		return -1, err
	}
	wake := unix.NsecToTimeval((50 * time.Millisecond).Nanoseconds())
	if err := errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wake),
	); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// read notes frames until stop is closed. It runs in the namespace.
func (w *wires) read(fd int, where string) error {
	names := map[int]string{}
	b, oob := make([]byte, 128), make([]byte, 128)
	for {
		select {
		case <-w.stop:
			return nil
		default:
		}
		n, oobn, _, from, err := unix.Recvmsg(fd, b, oob, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
			continue
		case err != nil:
			return err
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || n < 14 {
			continue
		}
		source, dest := [6]byte(b[6:12]) == w.mac, [6]byte(b[:6]) == w.mac
		if !source && !dest {
			continue
		}
		if _, known := names[link.Ifindex]; !known {
			names[link.Ifindex] = "an interface that is gone"
			if dev, err := net.InterfaceByIndex(link.Ifindex); err == nil {
				names[link.Ifindex] = dev.Name
			}
		}
		at, err := stamp(oob[:oobn])
		if err != nil {
			return err
		}
		dev, out := names[link.Ifindex], link.Pkttype == unix.PACKET_OUTGOING
		f := frame{at: at, where: where, dev: dev, fromGuest: source, protocol: binary.BigEndian.Uint16(b[12:]), ping: isPing(b[:n]), numbered: number(b[:n])}
		switch {
		case where == "outside":
			f.passed = source && !out && strings.HasPrefix(dev, "up") // came out of a node
		case dev == "br0":
			f.passed = !out // reached the node's own stack; what goes out there comes from it
		default:
			f.passed = out // left by a port of the bridge: to a guest or to the wire
		}
		w.mu.Lock()
		w.frames = append(w.frames, f)
		w.mu.Unlock()
	}
}

// isPing recognises echo requests over IPv4 and IPv6 without options.
func isPing(b []byte) bool {
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_IP:
		return len(b) > 34 && b[23] == unix.IPPROTO_ICMP && b[34] == 8
	case unix.ETH_P_IPV6:
		return len(b) > 54 && b[20] == unix.IPPROTO_ICMPV6 && b[54] == 128
	}
	return false
}

// number reads the number in a UDP packet from or to port 7, over IPv4 and IPv6 without options.
func number(b []byte) numbered {
	const ethernet, ports, echo = 14, 4, 7
	ip, size := 20, 4
	addresses := ethernet + 12
	switch protocol := binary.BigEndian.Uint16(b[12:]); {
	case protocol == unix.ETH_P_IP && len(b) >= 50 && b[23] == unix.IPPROTO_UDP:
	case protocol == unix.ETH_P_IPV6 && len(b) >= 70 && b[20] == unix.IPPROTO_UDP:
		ip, size, addresses = 40, 16, ethernet+8
	default:
		return numbered{}
	}
	udp := b[ethernet+ip:]
	from, to := b[addresses:addresses+size], b[addresses+size:addresses+2*size]
	client := from
	if binary.BigEndian.Uint16(udp) == echo {
		client = to
	} else if binary.BigEndian.Uint16(udp[2:ports]) != echo {
		return numbered{}
	}
	addr, _ := netip.AddrFromSlice(client)
	return numbered{addr, binary.BigEndian.Uint64(udp[8:])}
}

func stamp(oob []byte) (time.Time, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Time{}, err
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:]))), nil
		}
	}
	return time.Time{}, errors.New("the kernel gave no receive time")
}

// count counts the frames after a time that match.
func (w *wires) count(since time.Time, match func(frame) bool) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, f := range w.frames {
		if f.at.After(since) && match(f) {
			n++
		}
	}
	return n
}

// silent checks that no frame of the guest passed anywhere after the time.
func (w *wires) silent(t *testing.T, since time.Time) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var leaked []frame
	for _, f := range w.frames {
		if f.at.After(since) && f.passed {
			leaked = append(leaked, f)
		}
	}
	if len(leaked) > 0 {
		t.Errorf("%d frames passed after the block was reported in force; first %v; last %v", len(leaked), leaked[0], leaked[len(leaked)-1])
	}
}

// restored waits until, after a time, a frame goes to the guest by its tap on a node, and returns how long
// that took. How fast the guest, which has little of the machine, answers is not the question.
func (w *wires) restored(t *testing.T, l *lab, node string, since time.Time) (took time.Duration) {
	t.Helper()
	l.Eventually(t, "a frame reaches the guest on "+node, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, f := range w.frames {
			if f.where == node && f.passed && !f.fromGuest && isTap(f.dev) && f.at.After(since) {
				took = f.at.Sub(since)
				return nil
			}
		}
		return errors.New("none did")
	})
	return took
}

// networks gives a flow's report without what the guest itself did not answer: a packet counts as
// received, at the time of its delivery, if it came out of a tap for the guest and its echo, if there
// was one, arrived.
func (w *wires) networks(r probe.Report, client netip.Addr) probe.Report {
	arrived := make(map[uint64]bool, len(r.Received))
	for _, p := range r.Received {
		arrived[p.Seq] = true
	}
	out := probe.Report{Sent: r.Sent}
	delivered, answered := map[uint64]int64{}, map[uint64]bool{}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.frames {
		switch {
		case f.client != client || !isTap(f.dev):
		case f.fromGuest && !f.passed:
			answered[f.seq] = true
		case !f.fromGuest && f.passed:
			delivered[f.seq] = f.at.UnixNano()
		}
	}
	for seq, at := range delivered {
		if arrived[seq] || !answered[seq] {
			out.Received = append(out.Received, probe.Packet{Seq: seq, At: at})
		}
	}
	return out
}

// lossless stops flows with an innocent guest, which began after w, and checks that the network lost
// nothing of them.
func (w *wires) lossless(t *testing.T, flows []*probe.Flow, clients []netip.Addr) {
	t.Helper()
	var wg sync.WaitGroup
	for i, fl := range flows {
		wg.Go(func() {
			r, err := fl.Stop(3 * time.Second)
			if err != nil {
				t.Errorf("%s: %v", fl.Name, err)
			}
			if lost := w.networks(r, clients[i]).Lost(); len(lost) > 0 || r.Sent < 50 {
				t.Errorf("%s, innocent: the network lost %d of %d packets, first %v", fl.Name, len(lost), r.Sent, lost[:min(len(lost), 5)])
			}
		})
	}
	wg.Wait()
}

func isTap(dev string) bool { return strings.HasPrefix(dev, "vnet") }

// tried waits until a node has had to drop some of the flood from the guest and for it, from now on.
func (w *wires) tried(t *testing.T, l *lab, node string) {
	t.Helper()
	began := time.Now()
	l.Eventually(t, "the flood continues on "+node, func() error {
		if from, to := w.tries(began, node); from < 20 || to < 20 {
			return fmt.Errorf("%d frames from the guest, %d for it", from, to)
		}
		return nil
	})
}

// tries counts, for a node and after a time, the frames that its rules had to drop: from the guest on
// its tap, and for the guest from anywhere.
func (w *wires) tries(since time.Time, node string) (from, to int) {
	from = w.count(since, func(f frame) bool { return f.where == node && !f.passed && f.fromGuest && f.dev != "eth0" })
	to = w.count(since, func(f frame) bool { return f.where == node && !f.passed && !f.fromGuest })
	return from, to
}
