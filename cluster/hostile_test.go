package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/pki"
)

// besiege attacks a running fleet and checks what an attack must not do: the fleet goes on to write, the process keeps
// within so many bytes more of heap and stacks while it lasts, and no connection, file or goroutine is left behind.
func (f *fleet) besiege(t *testing.T, most uint64, attack func()) {
	t.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(20)) // what is garbage is not to be counted
	if underRace {
		most *= 2 // the collector is behind
	}
	used := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	runtime.GC()
	before, files, routines := used(), openFiles(t), runtime.NumGoroutine()

	ctx, stop := context.WithCancel(t.Context())
	var peak atomic.Uint64
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for ctx.Err() == nil {
			peak.Store(max(peak.Load(), used()))
			time.Sleep(10 * time.Millisecond)
		}
	}()
	by, wrote := f.leader(), make(chan error, 1)
	go func() {
		n := 0
		for ; ctx.Err() == nil || n < 3; n++ {
			limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			res, err := by.c.Propose(limit, declare("siege", strconv.Itoa(n)))
			cancel()
			if err == nil && res.Err != nil {
				err = res.Err
			}
			if err != nil {
				wrote <- fmt.Errorf("write %d during the attack: %w", n, err)
				return
			}
		}
		wrote <- nil
	}()
	attack()
	stop()
	<-watched
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	if grown := int64(peak.Load()) - int64(before); grown > int64(most) {
		t.Errorf("the process grew by %d MiB, at most %d are allowed", grown>>20, most>>20)
	} else {
		t.Logf("grew by %d KiB of %d", grown>>10, most>>10)
	}
	f.await("files and goroutines to be given back", func() bool {
		return openFiles(t) <= files+8 && runtime.NumGoroutine() <= routines+40
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// from dials from an address of loopback that is no member's.
func from(t *testing.T, host byte, to string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 3, host)}}).DialContext(t.Context(), "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// ends waits until the other end has closed the connection.
func ends(t *testing.T, what string, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(15 * time.Second))
	if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
		t.Errorf("%s: the connection is still open", what)
	}
	_ = conn.Close()
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func (f *fleet) addressOf(n *node) (peer, gossip string) {
	p := n.c.dir.now().all[n.id]
	return p.Address, p.Gossip
}

// quick is a fleet whose handshakes end soon.
func quick(_ string, o *Options) { o.Timing.Handshake = time.Second }

// TestStrangersAtThePeerPort: who has no certificate gets nothing, however many they are and whatever they send.
func TestStrangersAtThePeerPort(t *testing.T) {
	f := realFleet(t, 3, quick).start().ready()
	to, _ := f.addressOf(f.leader())
	hello := []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") // the head of a ClientHello
	f.besiege(t, 32<<20, func() {
		for name, b := range map[string][]byte{
			"random bytes": noise(1 << 16), "clear text": []byte("GET / HTTP/1.1\r\n\r\n"), "half a hello": hello, "a hello of noise": append(hello, noise(505)...),
			"a huge record": []byte("\x16\x03\x01\xff\xff"), "many tiny records": bytes.Repeat([]byte("\x16\x03\x01\x00\x01\x01"), 10_000), "an alert": []byte("\x15\x03\x03\x00\x02\x02\x28"),
		} {
			conn := from(t, 1, to)
			_, _ = conn.Write(b)
			ends(t, name, conn)
		}
	})
	f.besiege(t, 64<<20, func() { // idle ones, of many hosts, more and more of them
		var idle []net.Conn
		dial := func() { idle = append(idle, from(t, byte(len(idle)%200+1), to)) }
		member := inMemory(f.born.creds["n3"], nil)
		for len(idle) < 5000 {
			dial()
			if len(idle)%250 > 0 {
				continue
			}
			// A member that comes back meanwhile is not kept out: strangers have a part of the places only.
			conn, err := tls.Dial("tcp", to, member.client(f.nodes[0].c.dir, f.leader().id, alpnRPC))
			if err == nil {
				_, err = conn.Read(make([]byte, 1))
				_ = conn.Close()
			}
			if err != nil {
				t.Errorf("a member was kept out while %d strangers came: %v", len(idle), err)
			}
		}
		for _, conn := range idle {
			ends(t, "idle", conn)
		}
	})
}

// TestWrongCertificatesAtThePeerPort: what is not the present certificate of a member is refused, with a text that says why.
func TestWrongCertificatesAtThePeerPort(t *testing.T) {
	var log lockedLog
	f := realFleet(t, 3, func(_ string, o *Options) { o.Logger = log.logger() }).start().ready()
	here := f.leader()
	to, _ := f.addressOf(here)
	other := bear(t, threePeers())
	mine := f.born.creds["n2"]
	serving, err := f.born.authority.IssueServing(mustRequest(t, mine.key), pki.ServingTerms{Node: "n2", Names: []string{"n2"}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	gone := f.born.issue(mustKey(t), "n9", 1, 0)
	here.propose(fsm.Command{Actor: "test", Op: fsm.CreateJoinToken{ID: "t9", Hash: [32]byte{1}, TTL: time.Hour}})
	if res := here.propose(fsm.Command{Actor: "test", Op: fsm.AdmitNode{Token: "t9", Hash: [32]byte{1}, Node: fsm.Admission{
		ID: "n9", Name: "n9", Address: "127.0.0.1:9", Gossip: "127.0.0.1:9", KeyHash: [32]byte{9}, NotAfter: time.Now().Add(time.Hour),
	}}}); res.Err != nil {
		t.Fatal(res.Err)
	}
	if res := here.propose(fsm.Command{Actor: "test", Op: fsm.RetireNode{ID: "n9", Force: true}}); res.Err != nil {
		t.Fatal(res.Err)
	}
	f.await("the retirement to be known", func() bool { _, member := here.c.dir.peer("n9"); return !member && here.c.dir.now().all["n9"].Retired })
	host := byte(1) // each from its own: of one host only the first refusal in a while is logged
	for name, c := range map[string]struct {
		cert *tls.Certificate
		says string
	}{
		"none":                   {nil, "didn't provide a certificate"},
		"another fleet's":        {&other.creds["n2"].tls, "no authority that is trusted"},
		"expired":                {&f.born.issue(mustKey(t), "n2", 99, -time.Minute).tls, "not valid at this time"},
		"a retired node's":       {&gone.tls, "is retired"},
		"an API's":               {&tls.Certificate{Certificate: f.born.authority.Chain(serving), PrivateKey: mine.key}, "the peer was refused"},
		"without its key":        {&tls.Certificate{Certificate: mine.chain, PrivateKey: mustKey(t)}, ""},
		"another fleet's forged": {&issueBy(t, other.authority, f.born.fleet, mustKey(t), "n2", 99, 0).tls, "no authority that is trusted"},
	} {
		for _, proto := range []string{alpnRPC, alpnRaft} {
			log.reset()
			sayAll(&here.c.world.(*realWorld).port.refused)
			conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}}
			if c.cert != nil {
				conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert, nil }
			}
			host++
			conn := tls.Client(from(t, host, to), conf)
			err := conn.HandshakeContext(t.Context())
			if err == nil {
				_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
				_, err = conn.Read(make([]byte, 1)) // in TLS 1.3 the refusal comes after the client is done
			}
			var alert tls.AlertError
			if err == nil || isTimeout(err) || !errors.As(err, &alert) && !strings.Contains(err.Error(), "remote error") {
				t.Errorf("%s, %s: want an alert, got %v", name, proto, err)
			}
			_ = conn.Close()
			if c.says != "" {
				f.await("the log to say "+c.says, func() bool { return strings.Contains(log.String(), c.says) })
			}
		}
	}
	f.follower().propose(declare("vm", "after"))
}

// TestReplayedJoin: what a joining node sent gives who sends it again nothing that it does not have.
func TestReplayedJoin(t *testing.T) {
	f, base := formed(t)
	token := f.token()
	o := f.joinOptions(base, "n2", f.nodes[0], token)
	tap, recorded := tapped(t, o.Remote)
	direct := o.Remote
	o.Remote = tap
	if _, err := Join(within(t, 30*time.Second), o); err != nil {
		t.Fatal(err)
	}
	// On the wire: TLS does not take what was said in another session.
	conn, err := net.Dial("tcp", direct)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write(<-recorded)
	ends(t, "a replayed session", conn)
	// And with the token read from somewhere, afterwards.
	view := f.nodes[0].store.View()
	o.Remote = direct
	for _, id := range []string{"n2", "n3"} {
		o.Node, o.DataDir = id, base+"/thief-"+id
		var refused *fsm.Error
		if _, err := Join(within(t, 30*time.Second), o); !errors.As(err, &refused) || refused.Code != fsm.CodeTokenUsed {
			t.Errorf("as %s: %v", id, err)
		}
	}
	if now := f.nodes[0].store.View(); now.Index() != view.Index() {
		t.Errorf("refused joins got into the log: %d entries", now.Index()-view.Index())
	}
}

// tapped passes one connection on to an address, and tells what the client has sent.
func tapped(t *testing.T, to string) (addr string, recorded <-chan []byte) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	out := make(chan []byte, 1)
	go func() {
		in, err := ln.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("tcp", to)
		if err != nil {
			_ = in.Close()
			return
		}
		go func() { _, _ = io.Copy(in, up); _ = in.Close() }()
		var said bytes.Buffer
		_, _ = io.Copy(io.MultiWriter(up, &said), in)
		_ = up.Close()
		out <- said.Bytes()
	}()
	return ln.Addr().String(), out
}

// stolen connects as the node n3, with all that is on its disk.
func (f *fleet) stolen(t *testing.T, to, proto string) *tls.Conn {
	t.Helper()
	id := inMemory(f.born.creds["n3"], f.born.seal)
	conn := tls.Client(from(t, 3, to), id.client(f.nodes[0].c.dir, f.leader().id, proto))
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestStolenNode: who has all of a member's keys may say anything, to one fleet.
func TestStolenNode(t *testing.T) {
	f := realFleet(t, 3, quick).start().ready()
	t.Run("nonsense", f.nonsense)
	t.Run("floods of HTTP/2", f.floods)
	t.Run("bodies", f.bodies)
	t.Run("follow streams", f.nonsenseOnFollowStreams)
}

// nonsense: a member may say anything after the handshake: it costs its own connection.
func (f *fleet) nonsense(t *testing.T) {
	here := f.leader()
	to, _ := f.addressOf(here)
	var mine bytes.Buffer
	mine.Write(f.nodes[2].c.contacts.mine.bytes())
	huge := append([]byte{0}, 0x81, 0xa7, 'E', 'n', 't', 'r', 'i', 'e', 's', 0xdd, 0xff, 0xff, 0xff, 0xff) // AppendEntries with 2^32-1 entries
	long := append([]byte{0}, 0x81, 0xa6, 'L', 'e', 'a', 'd', 'e', 'r', 0xc6, 0xff, 0xff, 0xff, 0xff)      // a leader's name of 4 GiB
	f.besiege(t, 96<<20, func() {
		for name, b := range map[string][]byte{
			"noise": noise(1 << 16), "huge": huge, "long": long, "an unknown call": {99}, "half a call": {0, 0x81, 0xa7, 'E'}, "deep": append([]byte{0}, bytes.Repeat([]byte{0x91}, 1<<20)...),
		} {
			// Raft has no deadline for who has said who it is: the connection is closed when raft can't read it, or with us.
			conn := f.stolen(t, to, alpnRaft)
			id := inMemory(f.born.creds["n3"], f.born.seal)
			if err := id.sendProof(t.Context(), conn); err != nil {
				t.Fatal(name, err)
			}
			_, _ = conn.Write(mine.Bytes())
			_, _ = conn.Write(b)
			_ = conn.CloseWrite()
			ends(t, "raft: "+name, conn)

			conn = f.stolen(t, to, alpnRPC)
			_, _ = conn.Write(b)
			_ = conn.CloseWrite()
			ends(t, "calls: "+name, conn)
			conn = f.stolen(t, to, alpnRPC)
			_, _ = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
			_, _ = conn.Write(b)
			_ = conn.CloseWrite()
			ends(t, "after the preface: "+name, conn)
		}
		half := f.stolen(t, to, alpnRaft) // and then no proof
		ends(t, "raft: no proof", half)
	})
	// It can't take all the places either.
	f.besiege(t, 32<<20, func() {
		var open []*tls.Conn
		refused := 0
		for range maxConnsOfMember + 20 {
			conn := f.stolen(t, to, alpnRPC)
			_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			if _, err := io.ReadFull(conn, make([]byte, 9)); err != nil && !isTimeout(err) { // a SETTINGS frame comes first
				refused++
			}
			open = append(open, conn)
		}
		if refused < 10 {
			t.Errorf("of %d connections of one member %d were refused", len(open), refused)
		}
		for _, conn := range open {
			_ = conn.Close()
		}
	})
}

// lockedLog keeps what is logged.
type lockedLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lockedLog) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Reset()
}

func (l *lockedLog) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// sayAll makes the next line of each kind come at once.
func sayAll(s *seldom) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = nil
}
