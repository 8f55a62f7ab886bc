package nft

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/fsm"
)

// sparsePrefixes returns n prefixes of 8 lengths in 20.0.0.0 to 40.0.0.0, none in another.
func sparsePrefixes(n int) []netip.Prefix {
	lengths := []int{32, 24, 31, 28, 30, 26, 29, 25}
	list := make([]netip.Prefix, 0, n)
	at := uint64(20 << 24)
	for i := range n {
		size := uint64(1) << (32 - lengths[i%len(lengths)])
		at = (at + size - 1) / size * size
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(at >> 24), byte(at >> 16), byte(at >> 8), byte(at)}), lengths[i%len(lengths)]))
		at += 2 * size
	}
	return list
}

// BenchmarkListPacket is the delivery of a frame from one guest to another over a bridge, from addresses that are
// on no list, with lists of 8 lengths. Compare with the one without.
func BenchmarkListPacket(b *testing.B) {
	for _, n := range []int{0, 10_000, 100_000, 1_000_000} {
		for _, d := range []fsm.Direction{fsm.Out, fsm.Both} {
			if n == 0 && d == fsm.Both {
				continue
			}
			b.Run(fmt.Sprintf("%d_%s", n, d), func(b *testing.B) {
				host, from, _ := benchBridge(b)
				if n > 0 {
					s := newListState(b)
					s.put("feed", sparsePrefixes(n))
					s.hold("feed", d)
					k := openLists(b, host)
					if err := k.Bring(b.Context(), s.change()); err != nil {
						b.Fatal(err)
					}
				}
				sendFrames(b, from)
			})
		}
	}
}

// benchBridge is a bridge with two guests; the frames of sendFrames come from one and go to the other.
func benchBridge(b testing.TB) (host, from, to netNS) {
	b.Helper()
	host, from, to = newNetNS(b), newNetNS(b), newNetNS(b)
	host.runInput(fmt.Sprintf(`link add br0 type bridge mcast_snooping 0
link set br0 up
link add vnet1 type veth peer name eth0 address 52:54:00:00:00:02 netns %s
link add vnet2 type veth peer name eth0 address 52:54:00:00:00:03 netns %s
link set vnet1 master br0 up
link set vnet2 master br0 up
`, from.path(), to.path()), "ip", "-batch", "-")
	from.run("ip", "link", "set", "eth0", "up")
	to.run("ip", "link", "set", "eth0", "up")
	to.run("ip", "addr", "add", "10.7.0.5/24", "dev", "eth0")
	return host, from, to
}

// BenchmarkListHit is a frame that a list drops, from one of 4,096 addresses, each counted by itself.
func BenchmarkListHit(b *testing.B) {
	host, from, _ := benchBridge(b)
	s := newListState(b)
	var list []netip.Prefix
	for i := range 100 {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(50 + i)}), 8))
	}
	s.put("feed", list)
	s.hold("feed", fsm.Out)
	if err := openLists(b, host).Bring(b.Context(), s.change()); err != nil {
		b.Fatal(err)
	}
	sendFrames(b, from)
}

// sendFrames sends b.N datagrams from many addresses as frames, and reports the best time of ten parts: other
// programs take time from the machine, never give it some.
func sendFrames(b *testing.B, from netNS) {
	b.Helper()
	var socket int
	from.do(func() (err error) {
		if socket, err = packetSocket("eth0"); err == nil {
			err = unix.SetsockoptInt(socket, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
		}
		return err
	})
	defer func() { _ = unix.Close(socket) }()
	var frames [4096][]byte
	for i := range frames {
		f := make([]byte, 14+20+8+18)
		copy(f, []byte{0x52, 0x54, 0, 0, 0, 3, 0x52, 0x54, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, byte(len(f) - 14), 0, 0, 0, 0, 64, 17})
		binary.BigEndian.PutUint32(f[26:], 50<<24+rand.Uint32N(100<<24))
		copy(f[30:], []byte{10, 7, 0, 5, 0x1b, 0x58, 0x1b, 0x58, 0, 26})
		var sum uint32
		for k := 14; k < 34; k += 2 {
			sum += uint32(binary.BigEndian.Uint16(f[k:]))
		}
		binary.BigEndian.PutUint16(f[24:], ^uint16(sum+sum>>16))
		frames[i] = f
	}
	const parts = 10
	best := time.Duration(1 << 62)
	b.ResetTimer()
	for range parts {
		begin := time.Now()
		count := max(b.N/parts, 1)
		for i := range count {
			if _, err := unix.Write(socket, frames[i%len(frames)]); err != nil {
				b.Fatal(err)
			}
		}
		best = min(best, time.Since(begin)/time.Duration(count))
	}
	b.ReportMetric(float64(best.Nanoseconds()), "best-ns/packet")
}
