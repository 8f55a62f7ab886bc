package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/internal/probe"
)

const (
	packetBytes = 64
	// receiveBuffer holds a second of the fastest flow, so that a busy machine loses nothing here.
	receiveBuffer = 64 << 20
)

// udp sends numbered packets if it has a rate, and records the numbered packets that come in.
type udp struct {
	conn    *net.UDPConn
	sent    atomic.Uint64
	failed  atomic.Uint64 // refused by this namespace's own kernel
	stopped chan struct{}
	once    sync.Once
	sending sync.WaitGroup

	mu       sync.Mutex
	received []probe.Packet
}

func newUDP(at, to netip.AddrPort, rate int) (*udp, error) {
	conn, err := listen(at)
	if err != nil {
		return nil, err
	}
	u := &udp{conn: conn, stopped: make(chan struct{})}
	go u.receive()
	if rate > 0 {
		u.sending.Go(func() { u.send(to, rate) })
	}
	return u, nil
}

func (u *udp) send(to netip.AddrPort, rate int) {
	var b [packetBytes]byte
	pace(rate, u.stopped, func(seq uint64) bool {
		binary.BigEndian.PutUint64(b[:], seq)
		// A drop in the own kernel's output is an error here; it counts as sent and lost.
		if _, err := u.conn.WriteToUDPAddrPort(b[:], to); err != nil {
			u.failed.Add(1)
		}
		u.sent.Store(seq + 1)
		return true
	})
}

func (u *udp) receive() {
	var b [packetBytes]byte
	oob := make([]byte, 128)
	for {
		n, oobn, _, _, err := u.conn.ReadMsgUDPAddrPort(b[:], oob)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error
		}
		if n != packetBytes {
			continue
		}
		at, err := stamp(oob[:oobn])
		if err != nil {
			fmt.Fprintln(os.Stderr, "probe:", err)
			os.Exit(1)
		}
		u.mu.Lock()
		u.received = append(u.received, probe.Packet{Seq: binary.BigEndian.Uint64(b[:]), At: at})
		u.mu.Unlock()
	}
}

func stamp(oob []byte) (int64, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, err
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
			return int64(binary.NativeEndian.Uint64(m.Data))*int64(time.Second) + int64(binary.NativeEndian.Uint64(m.Data[8:])), nil
		}
	}
	return 0, errors.New("the kernel gave no receive time")
}

func (u *udp) stop() {
	u.once.Do(func() { close(u.stopped) })
	u.sending.Wait()
}

func (u *udp) report() probe.Report {
	u.mu.Lock()
	defer u.mu.Unlock()
	return probe.Report{Sent: u.sent.Load(), Failed: u.failed.Load(), Received: slices.Clone(u.received)}
}
