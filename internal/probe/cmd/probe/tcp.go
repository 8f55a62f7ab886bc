package main

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/palisade/palisade/internal/probe"
)

const recordBytes = 8

// tcpSink accepts one connection and counts the records that it brings.
type tcpSink struct {
	ln      net.Listener
	records atomic.Uint64
	last    atomic.Int64
}

func newTCPSink(at netip.AddrPort) (*tcpSink, error) {
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	s := &tcpSink{ln: ln}
	go s.receive()
	return s, nil
}

func (s *tcpSink) receive() {
	c, err := s.ln.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	var b [recordBytes]byte
	for {
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return
		}
		s.records.Store(binary.BigEndian.Uint64(b[:]) + 1)
		s.last.Store(time.Now().UnixNano())
	}
}

func (s *tcpSink) stop() { _ = s.ln.Close() }

func (s *tcpSink) report() probe.Report {
	return probe.Report{Records: s.records.Load(), LastAt: s.last.Load()}
}

// tcpSource writes numbered records to one connection.
type tcpSource struct {
	conn    net.Conn
	sent    atomic.Uint64
	stopped chan struct{}
	once    sync.Once
	err     atomic.Pointer[string]
}

func newTCPSource(from netip.Addr, to netip.AddrPort, rate int) (*tcpSource, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: 5 * time.Second}
	conn, err := d.DialContext(context.Background(), "tcp", to.String())
	if err != nil {
		return nil, err
	}
	s := &tcpSource{conn: conn, stopped: make(chan struct{})}
	go func() {
		var b [recordBytes]byte
		pace(rate, s.stopped, func(seq uint64) bool {
			binary.BigEndian.PutUint64(b[:], seq)
			if _, err := conn.Write(b[:]); err != nil {
				text := err.Error()
				s.err.Store(&text)
				return false
			}
			s.sent.Store(seq + 1)
			return true
		})
	}()
	return s, nil
}

func (s *tcpSource) stop() { s.once.Do(func() { close(s.stopped) }) }

func (s *tcpSource) report() probe.Report {
	r := probe.Report{Sent: s.sent.Load()}
	if text := s.err.Load(); text != nil {
		r.Err = *text
	}
	return r
}

// answer echoes UDP and TCP on one port.
type answer struct {
	ln   net.Listener
	conn *net.UDPConn
}

func newAnswer(at netip.AddrPort) (*answer, error) {
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	return &answer{ln: ln, conn: conn}, nil
}

func (a *answer) stop() {
	_ = a.ln.Close()
	_ = a.conn.Close()
}

func (a *answer) report() probe.Report { return probe.Report{} }
