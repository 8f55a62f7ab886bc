package cluster

import (
	"bytes"
	"compress/lzw"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

// What memberlist's messages begin with.
const (
	gossipAlive    = 4
	gossipDead     = 5
	gossipPushPull = 6
	gossipCompound = 7
	gossipUser     = 8
	gossipCompress = 9
	gossipEncrypt  = 10
)

// crypt encrypts a gossip message as memberlist does, for a packet or, with a head, for a connection.
func crypt(t *testing.T, key, msg, head []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := noise(gcm.NonceSize())
	return append([]byte{1}, gcm.Seal(nonce, nonce, msg, head)...)
}

func packet(t *testing.T, key, msg []byte) []byte { t.Helper(); return crypt(t, key, msg, nil) }

func stream(t *testing.T, key, msg []byte) []byte {
	t.Helper()
	head := binary.BigEndian.AppendUint32([]byte{gossipEncrypt}, uint32(1+12+len(msg)+16)) //nolint:gosec // small
	return append(head, crypt(t, key, msg, head)...)
}

// pack is a map in msgpack, of names and values in turn.
func pack(fields ...any) []byte {
	b := []byte{0x80 | byte(len(fields)/2)}
	for _, v := range fields {
		switch v := v.(type) {
		case string:
			b = append(append(b, 0xda, byte(len(v)>>8), byte(len(v))), v...)
		case []byte:
			b = append(binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(len(v))), v...) //nolint:gosec // small
		case int:
			b = binary.BigEndian.AppendUint64(append(b, 0xd3), uint64(v)) //nolint:gosec // as it is
		case bool:
			b = append(b, 0xc2)
		}
	}
	return b
}

// bomb is a message that unpacks to so many zeros, behind a byte.
func bomb(t *testing.T, kind byte, n int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w := lzw.NewWriter(&b, lzw.LSB, 8)
	_, _ = w.Write([]byte{kind})
	for block := make([]byte, 1<<20); n > 0; n -= int64(len(block)) {
		_, _ = w.Write(block)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append([]byte{gossipCompress}, pack("Algo", 0, "Buf", b.Bytes())...)
}

// toldHints is what the nodes were told by gossip: how often, by node and VM.
type toldHints struct {
	mu   sync.Mutex
	told map[string]map[string]int
}

// listen hears all that the nodes are told, until the fleet is stopped, at the end of the test.
func (f *fleet) listen(t *testing.T) *toldHints {
	e, done := &toldHints{told: map[string]map[string]int{}}, make(chan struct{})
	var wg sync.WaitGroup
	for _, n := range f.nodes {
		told := map[string]int{}
		e.told[n.id] = told
		wg.Go(func() {
			for {
				select {
				case got := <-n.sightings:
					e.mu.Lock()
					told[got.VM]++
					e.mu.Unlock()
				case <-done:
					return
				}
			}
		})
	}
	t.Cleanup(func() {
		f.stop()
		close(done)
		wg.Wait()
	})
	return e
}

func (e *toldHints) count(node, vm string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.told[node][vm]
}

// gossips checks that gossip works: every peer is alive, and a hint reaches all.
func (f *fleet) gossips(t *testing.T, e *toldHints, vm string) {
	t.Helper()
	for _, n := range f.nodes {
		f.await("all peers to be alive", func() bool {
			return !slices.ContainsFunc(n.c.Members(), func(m fsm.Member) bool { return !m.Alive })
		})
	}
	f.nodes[0].c.Announce(fsm.Sighting{VM: vm, Node: "n1", Phase: fsm.PhaseIncoming, At: time.Unix(1, 0)})
	for _, n := range f.nodes[1:] {
		f.await(n.id+" to be told of "+vm, func() bool { return e.count(n.id, vm) > 0 })
	}
}

// TestStrangersAtTheGossipPort: without the key nothing is taken in, little is read and few are served.
func TestStrangersAtTheGossipPort(t *testing.T) {
	f := realFleet(t, 3).start().ready()
	_, to := f.addressOf(f.nodes[1])
	key, foreign := f.born.keys.Keys[0].Key, noise(32)
	e := f.listen(t)
	f.gossips(t, e, "before")
	sighting := hint(t, "strange")
	full := packet(t, key, append([]byte{gossipUser}, sighting...))
	turned := stream(t, key, append([]byte{gossipUser}, sighting...)) // what was said to members, but for the version, which nothing protects
	turned[gossipHead] = 0
	f.besiege(t, 48<<20, func() {
		udp, err := net.Dial("udp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		packets := [][]byte{
			noise(1), noise(64), noise(1400), noise(60_000), append([]byte{gossipUser}, sighting...), {gossipEncrypt}, {12}, {244, 0}, {244, 255, 1}, append([]byte{244, 3}, "abc"...),
			packet(t, foreign, append([]byte{gossipUser}, sighting...)), packet(t, foreign, bomb(t, gossipUser, 32<<20)), bomb(t, gossipUser, 32<<20), full[:len(full)-1], full[:20], full[:1], append([]byte{0}, full[1:]...),
		}
		for range 200 {
			for _, b := range packets {
				_, _ = udp.Write(b) // the system may have no room
			}
		}
		for name, b := range map[string][]byte{
			"noise": noise(1 << 16), "clear text": append([]byte{gossipPushPull}, pack("Nodes", 1<<20, "UserStateLen", 1<<30, "Join", false)...), "a label": {244, 200}, "another version": turned, "4 GiB": {gossipEncrypt, 255, 255, 255, 255},
			"another key": stream(t, foreign, append([]byte{gossipUser}, sighting...)), "half": stream(t, key, append([]byte{gossipUser}, sighting...))[:30], "a bomb": bomb(t, gossipUser, 64<<20),
		} {
			conn := from(t, 4, to)
			_, _ = conn.Write(b)
			ends(t, name, conn)
		}
	})
	// Much on each of many connections: no more is read than a description of all members may have.
	f.besiege(t, 64<<20, func() {
		var open []net.Conn
		block := noise(1 << 20)
		for i := range 60 {
			conn := from(t, byte(i%20+1), to)
			open = append(open, conn)
			go func() {
				_, _ = conn.Write([]byte{gossipEncrypt, 1, 0, 0, 0}) // 16 MiB
				for range 16 {
					if _, err := conn.Write(block); err != nil {
						return
					}
				}
			}()
		}
		for _, conn := range open {
			ends(t, "much", conn)
		}
	})
	f.besiege(t, 32<<20, func() {
		var open []net.Conn
		for i := range 5000 {
			open = append(open, from(t, byte(i%200+1), to))
		}
		f.gossips(t, e, "meanwhile")
		for _, conn := range open {
			ends(t, "idle", conn)
		}
	})
	for _, n := range f.nodes {
		if e.count(n.id, "strange") > 0 {
			t.Errorf("%s was told something by a stranger", n.id)
		}
	}
	f.gossips(t, e, "after")
}

// hint is a sighting as gossip carries it.
func hint(t *testing.T, vm string) []byte {
	t.Helper()
	b, err := proto.Marshal(&peerpb.Sighting{Vm: vm, Node: "n9", Phase: string(fsm.PhaseIncoming)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestStolenGossipKey: with the key one can lie about who is alive and where VMs are, for a while; both are hints. It takes no
// more memory than stated, and no stranger becomes a member.
func TestStolenGossipKey(t *testing.T) {
	f := realFleet(t, 3).start().ready()
	_, to := f.addressOf(f.nodes[1])
	key := f.born.keys.Keys[0].Key
	e := f.listen(t)
	f.gossips(t, e, "before")
	udp, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	send := func(msg []byte) {
		t.Helper()
		if _, err := udp.Write(packet(t, key, msg)); err != nil {
			t.Fatal(err)
		}
	}
	alive := func(node, addr string, incarnation int) []byte {
		ip := net.ParseIP(addr).To4()
		return append([]byte{gossipAlive}, pack("Incarnation", incarnation, "Node", node, "Addr", []byte(ip), "Port", 9, "Meta", bytes.Repeat([]byte("m"), 4000), "Vsn", []byte{1, 5, 2, 0, 0, 0})...)
	}
	var nothing bytes.Buffer
	_ = lzw.NewWriter(&nothing, lzw.LSB, 8).Close()
	empty := append([]byte{gossipCompress}, pack("Algo", 0, "Buf", nothing.Bytes())...)
	bombs := 3
	if underRace {
		bombs = 0 // unpacking them would keep both cores busy for a minute; the suite does it without the detector
	}
	f.besiege(t, 256<<20, func() { // memberlist unpacks 40 MiB at most, one packet at a time; a buffer doubles as it grows
		for range bombs {
			send(bomb(t, gossipUser, 512<<20)[:60_000])
			send(bomb(t, gossipUser, 39<<20))
		}
		for range min(bombs, 2) {
			conn := from(t, 5, to)
			_, _ = conn.Write(stream(t, key, bomb(t, gossipPushPull, 512<<20)))
			ends(t, "a bomb", conn)
		}
	})
	f.besiege(t, 256<<20, func() {
		for name, msg := range map[string][]byte{
			"2^20 nodes":         append([]byte{gossipPushPull}, pack("Nodes", 1<<20, "UserStateLen", 0, "Join", false)...),
			"2^31 nodes":         append([]byte{gossipPushPull}, pack("Nodes", 1<<31, "UserStateLen", 0, "Join", false)...),
			"-1 nodes":           append([]byte{gossipPushPull}, pack("Nodes", -1, "UserStateLen", 0, "Join", false)...),
			"a state of 20 MiB":  append([]byte{gossipPushPull}, pack("Nodes", 0, "UserStateLen", 20<<20, "Join", false)...),
			"a state of -1":      append([]byte{gossipPushPull}, pack("Nodes", 0, "UserStateLen", -1, "Join", false)...),
			"a message of 1 TiB": append([]byte{gossipUser}, pack("UserMsgLen", 1<<40)...),
			"a message of -1":    append([]byte{gossipUser}, pack("UserMsgLen", -1)...),
			"nothing":            {},
			"nothing, packed":    empty,
			"an unknown message": {99},
			"deep":               append([]byte{gossipPushPull}, bytes.Repeat([]byte{0x91}, 1<<19)...),
		} {
			conn := from(t, 5, to)
			_, _ = conn.Write(stream(t, key, msg))
			ends(t, name, conn)
		}
		compound := []byte{gossipCompound, 255}
		for range 255 {
			compound = append(compound, 0xff, 0xff)
		}
		for range 100 {
			send(nil)
			send(empty)
			send(compound)
			send([]byte{gossipCompound})
			send(alive("stranger", "127.0.0.9", 1))
			send(alive(strings.Repeat("s", 5000), "127.0.0.9", 1))
		}
	})
	for _, n := range f.nodes {
		for _, m := range n.c.Members() {
			if m.ID != "n1" && m.ID != "n2" && m.ID != "n3" {
				t.Errorf("%s has a member %q", n.id, m.ID)
			}
		}
	}
	// The same hint again and again is one, and very many are no more than there is room for.
	f.besiege(t, 64<<20, func() {
		again := packet(t, key, append([]byte{gossipUser}, hint(t, "replayed")...))
		for range 1000 {
			_, _ = udp.Write(again)
		}
		for i := range 20_000 {
			send(append([]byte{gossipUser}, hint(t, fmt.Sprintf("vm%d-%s", i, strings.Repeat("x", 1000)))...))
		}
	})
	g := f.nodes[1].c.gossip.(*gossip)
	if n := g.queue.NumQueued(); n > maxSightings {
		t.Errorf("%d hints are queued", n)
	}
	if n := e.count("n2", "replayed"); n != 1 {
		t.Errorf("a replayed hint was told %d times", n)
	}
	// Who is said to be dead says that it is not.
	for _, id := range []string{"n1", "n3"} {
		send(append([]byte{gossipDead}, pack("Incarnation", 1<<20, "Node", id, "From", "n2")...))
	}
	f.gossips(t, e, "after")
}
