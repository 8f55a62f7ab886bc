package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/internal/probe"
)

// station sends and receives the packets of many flows. A packet says its stream, its number and when it was sent.
type station struct {
	conns   map[netip.Addr]*net.UDPConn
	stopped chan struct{}
	once    sync.Once
	sending sync.WaitGroup
	sent    map[uint64]*atomic.Uint64

	mu    sync.Mutex
	heard []probe.Heard
}

// runStation obeys orders until standard input ends.
func runStation(args []string) error {
	s := &station{conns: map[netip.Addr]*net.UDPConn{}, stopped: make(chan struct{}), sent: map[uint64]*atomic.Uint64{}}
	for _, a := range args {
		at, err := netip.ParseAddrPort(a)
		if err != nil {
			return err
		}
		if s.conns[at.Addr()], err = listen(at); err != nil {
			return err
		}
		go s.receive(s.conns[at.Addr()])
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(probe.Tally{}); err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var o probe.StationOrder
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			return err
		}
		if err := s.obey(o); err != nil {
			return err
		}
		if err := out.Encode(s.tally()); err != nil {
			return err
		}
	}
	return in.Err()
}

func (s *station) obey(o probe.StationOrder) error {
	for _, st := range o.Send {
		conn := s.conns[st.From]
		if conn == nil || st.Rate <= 0 {
			return fmt.Errorf("stream %d: from %v at %d packets a second", st.ID, st.From, st.Rate)
		}
		n := &atomic.Uint64{}
		s.sent[st.ID] = n
		s.sending.Go(func() { s.send(conn, st, n) })
	}
	if o.Stop {
		s.once.Do(func() { close(s.stopped) })
		s.sending.Wait()
	}
	return nil
}

func (s *station) send(conn *net.UDPConn, st probe.Stream, sent *atomic.Uint64) {
	var b [packetBytes]byte
	binary.BigEndian.PutUint64(b[:], st.ID)
	pace(st.Rate, s.stopped, func(seq uint64) bool {
		binary.BigEndian.PutUint64(b[8:], seq)
		binary.BigEndian.PutUint64(b[16:], uint64(time.Now().UnixNano()))
		_, _ = conn.WriteToUDPAddrPort(b[:], st.To) // a packet that the own kernel refuses is lost
		sent.Store(seq + 1)
		return true
	})
}

func (s *station) receive(conn *net.UDPConn) {
	var b [packetBytes]byte
	oob := make([]byte, 128)
	for {
		n, oobn, _, _, err := conn.ReadMsgUDPAddrPort(b[:], oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != packetBytes {
			continue // an ICMP error, or no packet of a station
		}
		at, err := stamp(oob[:oobn])
		if err != nil {
			fmt.Fprintln(os.Stderr, "probe:", err)
			os.Exit(1)
		}
		s.mu.Lock()
		s.heard = append(s.heard, probe.Heard{
			Stream: binary.BigEndian.Uint64(b[:]), Seq: binary.BigEndian.Uint64(b[8:]), Sent: int64(binary.BigEndian.Uint64(b[16:])), At: at,
		})
		s.mu.Unlock()
	}
}

func (s *station) tally() probe.Tally {
	t := probe.Tally{Sent: map[uint64]uint64{}}
	for id, n := range s.sent {
		t.Sent[id] = n.Load()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.Heard, s.heard = s.heard, nil
	return t
}

// listen opens a socket whose buffers hold what a busy machine reads late, and whose packets are stamped by the kernel.
func listen(at netip.AddrPort) (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) {
		serr = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, receiveBuffer),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		)
	}); err != nil || serr != nil {
		return nil, errors.Join(err, serr)
	}
	return conn, nil
}
