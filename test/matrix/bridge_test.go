package matrix_test

import (
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
)

// TestBridgeSpeaks: what a bridge itself says to its ports, past the hook that what it passes on has to meet,
// does not reach a held guest.
func TestBridgeSpeaks(t *testing.T) {
	b := newBed(t)
	f := newFleet(t, b)
	f.hold(hold{by: byVM, kind: fsm.Drop, direction: fsm.Both}, b.topologies, f.nodes)
	p := b.topologies[0]
	said := map[string]func(frame []byte) bool{
		"a spanning tree frame": func(frame []byte) bool { return [6]byte(frame) == mac{1, 0x80, 0xc2, 0, 0, 0} },
		"an IGMP query":         func(frame []byte) bool { return [6]byte(frame) == mac{1, 0, 0x5e, 0, 0, 1} },
		"an MLD query":          func(frame []byte) bool { return [6]byte(frame) == mac{0x33, 0x33, 0, 0, 0, 1} },
	}
	count := func(e *end) map[string]int {
		n := make(map[string]int)
		err := e.packets.each(b.buf, func(frame []byte) {
			for what, is := range said {
				if len(frame) > 14 && is(frame) {
					n[what]++
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	count(p.held)
	b.n1.ip("link set br0 type bridge stp_state 1 mcast_snooping 1 mcast_querier 1 mcast_startup_query_interval 10")
	got := make(map[string]int)
	for end := time.Now().Add(20 * time.Second); len(got) < len(said); time.Sleep(10 * time.Millisecond) {
		for what, n := range count(p.free) {
			got[what] += n
		}
		if time.Now().After(end) {
			t.Fatalf("the innocent guest has got only %v", got)
		}
	}
	for what, n := range count(p.held) {
		t.Errorf("LEAKED: the held guest has got %d times %s", n, what)
	}
}
