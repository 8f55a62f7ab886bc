package matrix_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
)

// stream is a TCP connection over which both ends send, and count what they get.
type stream struct {
	cell
	v6      bool
	subject *end
	sides   [2]net.Conn // of the guest, of the other
	got     [2]atomic.Int64
	sent    [2]int64
}

func (s *stream) String() string {
	return fmt.Sprintf("%s, with %s, IPv6 %t", s.topology.name, s.role, s.v6)
}

// connect makes a stream of each path, of the held guests and of their twins.
func connect(t *testing.T, b *bed) (held, free []*stream) {
	t.Helper()
	for _, p := range b.topologies {
		if p.device {
			continue // its guests have no stack, and no connection is tracked
		}
		for _, r := range roles() {
			for _, v6 := range []bool{false, true} {
				held = append(held, newStream(t, cell{topology: p, role: r}, p.held, v6))
				free = append(free, newStream(t, cell{topology: p, role: r}, p.free, v6))
			}
		}
	}
	return held, free
}

func newStream(t *testing.T, c cell, subject *end, v6 bool) *stream {
	t.Helper()
	s := &stream{cell: c, v6: v6, subject: subject}
	other := c.topology.peer(subject, c.role)
	at := other.v4
	if v6 {
		at = other.v6
	}
	var l net.Listener
	other.ns.do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", netip.AddrPortFrom(at, 0).String())
		return err
	})
	defer l.Close()
	subject.ns.do(func() (err error) {
		s.sides[0], err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(t.Context(), "tcp", l.Addr().String())
		return err
	})
	var err error
	if s.sides[1], err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{}, 2)
	for i, side := range s.sides {
		go func() {
			_, _ = io.Copy(counter{&s.got[i]}, side)
			done <- struct{}{}
		}()
	}
	t.Cleanup(func() {
		for _, side := range s.sides {
			_ = side.Close()
		}
		<-done
		<-done
	})
	return s
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

func say(t *testing.T, streams []*stream) {
	t.Helper()
	for _, s := range streams {
		for i, side := range s.sides {
			n, err := side.Write(make([]byte, 100))
			if err != nil {
				t.Fatalf("%v: %v", s, err)
			}
			s.sent[i] += int64(n)
		}
	}
}

// heard waits until all that was sent has arrived.
func heard(t *testing.T, what string, streams []*stream) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for _, s := range streams {
		for i := range s.sides {
			for s.got[1-i].Load() < s.sent[i] {
				if time.Now().After(end) {
					t.Errorf("%s: %v: %d of %d bytes arrived", what, s, s.got[1-i].Load(), s.sent[i])
					return
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
}

// TestEstablished: connections of before end with a hold, although the node's firewall lets pass what is
// established; those of the twins go on. After it is lifted all go on.
func TestEstablished(t *testing.T) {
	b := newBed(t)
	f := newFleet(t, b)
	for _, bridged := range []bool{false, true} {
		b.set(environment{bridged: bridged, tracked: true})
		held, free := connect(t, b)
		say(t, held)
		say(t, free)
		heard(t, "before", held)
		for _, h := range []hold{{by: byVM, kind: fsm.Drop, direction: fsm.Both}, {by: byList, kind: fsm.Drop, direction: fsm.Both}, {by: byPrefix, kind: fsm.Drop, direction: fsm.Both}} {
			blocks := f.hold(h, b.topologies, f.nodes)
			var was [][2]int64
			for _, s := range held {
				was = append(was, [2]int64{s.got[0].Load(), s.got[1].Load()})
			}
			say(t, held)
			say(t, free)
			heard(t, h.String(), free)
			for i, s := range held {
				for side := range s.got {
					if n := s.got[side].Load() - was[i][side]; n > 0 {
						t.Errorf("br_netfilter %t, %v: LEAKED %v: %d bytes", bridged, h, s, n)
					}
				}
			}
			f.lift(blocks)
			heard(t, "after "+h.String(), held)
		}
	}
}
