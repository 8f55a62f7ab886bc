package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// guestElements are the tap, hardware address and address of blocked guests.
func guestElements(from, to int) (list []enforce.Element) {
	for i := from; i < to; i++ {
		list = append(list,
			enforce.Element{Tap: fmt.Sprintf("tap%di0", i)},
			enforce.Element{MAC: fsm.MAC{0x52, 0x54, 1, 0, byte(i >> 8), byte(i)}},
			enforce.Element{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 32)})
	}
	return list
}

// summed sets the checksum of an IPv4 header, without which br_netfilter drops the packet.
func summed(packet []byte) []byte {
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(packet[i:]))
	}
	binary.BigEndian.PutUint16(packet[10:], ^uint16(sum+sum>>16))
	return packet
}

// TestAPacketCostsTheSameBesideAThousandGuests sends an innocent guest's frames beside 1, 100 and 1,000
// blocked ones. The best of many parts counts: other programs take time from the machine, never give it
// some.
func TestAPacketCostsTheSameBesideAThousandGuests(t *testing.T) {
	host, from, _ := benchBridge(t)
	k := adopted(t, host)
	var socket int
	from.do(func() (err error) { socket, err = packetSocket("eth0"); return err })
	t.Cleanup(func() { _ = unix.Close(socket) })
	f := frame(0, summed(ip4(0, make([]byte, 64))), 0x0800)
	measure := func() time.Duration {
		const frames = 1_000
		best := time.Hour
		for range 30 {
			begin := time.Now()
			for range frames {
				_, _ = unix.Write(socket, f)
			}
			best = min(best, time.Since(begin)/frames)
		}
		return best
	}
	cost := map[int]time.Duration{}
	have := 0
	for i, guests := range []int{1, 100, 1_000} {
		apply(t, k, uint64(i+1), guestElements(have, guests), nil)
		have = guests
		cost[guests] = measure()
		t.Logf("figure: a frame from guest to guest beside %d blocked guests: %v", guests, cost[guests])
	}
	if cost[1_000] > 2*cost[1] {
		t.Errorf("a frame costs %v beside 1,000 blocked guests, %v beside one", cost[1_000], cost[1])
	}
}

// TestATapThatComesBackIsHeld: sets hold interfaces by name, so one that is deleted and made again is held
// from its first frame, and nobody has to notice.
func TestATapThatComesBackIsHeld(t *testing.T) {
	host, from, to := benchBridge(t)
	k := adopted(t, host)
	var in int
	to.do(func() (err error) { in, err = packetSocket("eth0"); return err })
	t.Cleanup(func() { _ = unix.Close(in) })
	// None of the guest's own addresses is blocked: the tap alone tells.
	f := frame(0, summed(ip4(0, make([]byte, 64))), 0x0800)
	send := func() {
		var out int
		from.do(func() (err error) { out, err = packetSocket("eth0"); return err })
		defer func() { _ = unix.Close(out) }()
		for range 100 {
			_, _ = unix.Write(out, f)
		}
	}
	send()
	if n := countFrames(in, f, 100, patience(true)); n != 100 {
		t.Fatalf("%d of 100 frames arrive before the block", n)
	}
	apply(t, k, 1, elements(tap("vnet1")), nil)
	send()
	for range 3 {
		host.run("ip", "link", "del", "vnet1")
		host.runInput(fmt.Sprintf("link add vnet1 type veth peer name eth0 address 52:54:00:00:00:02 netns %s\nlink set vnet1 master br0 up\n", from.path()), "ip", "-batch", "-")
		from.run("ip", "link", "set", "eth0", "up")
		send()
	}
	if n := countFrames(in, f, 1, patience(false)); n != 0 {
		t.Errorf("%d frames of a tap that came back arrive", n)
	}
	apply(t, k, 2, nil, elements(tap("vnet1")))
	send()
	if n := countFrames(in, f, 100, patience(true)); n != 100 {
		t.Errorf("%d of 100 frames arrive after the block", n)
	}
}
