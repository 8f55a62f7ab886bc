package nft

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/fsm"
)

// TestStrictest puts holds of several kinds on one guest, and on the prefix around it, and wants the
// strictest; and the next when that is lifted.
func TestStrictest(t *testing.T) {
	h := newHolds(t)
	around := targets(h.blocked)["prefix"]
	vm := fsm.Target{VM: h.blocked.name}
	limit := h.commit(blocks(around, fsm.AddBlock{Kind: fsm.Limit, Rate: fsm.Rate{Packets: 50}})...)
	redirect := h.commit(fsm.AddBlock{Target: vm, Kind: fsm.Redirect})
	reject := h.commit(fsm.AddBlock{Target: fsm.Target{Account: "acct-" + h.blocked.name}, Kind: fsm.Reject})
	ports := h.commit(fsm.AddBlock{Target: vm, Kind: fsm.Ports, Ports: []fsm.PortRange{{Protocol: 6, First: 7001, Last: 7001}}})
	drop := h.commit(blocks(around, fsm.AddBlock{})...)
	defer h.servePage()()

	refused := func(port int) bool {
		return errors.Is(connect(h.innocent, h.blocked, false, port), unix.ECONNREFUSED)
	}
	visited := func() bool {
		got, err := get(t.Context(), h.outside, h.blocked, false)
		return err == nil && got == "suspended"
	}
	state := func(what string, wantRefused7001, wantRefused80, wantPage, wantFlows bool) {
		t.Helper()
		verify(t, h.kernel)
		if got := refused(7001); got != wantRefused7001 {
			t.Errorf("%s: port 7001 is refused: %t", what, got)
		}
		if got := refused(80); got != wantRefused80 {
			t.Errorf("%s: port 80 is refused: %t", what, got)
		}
		if got := visited(); got != wantPage {
			t.Errorf("%s: visitors see the page: %t", what, got)
		}
		if !wantFlows {
			h.checkCut(what, towards(h.blocked, fsm.Both))
		}
	}
	state("drop and all others", false, false, false, false)
	h.lift(drop)
	state("ports, reject, redirect and limit", false, true, false, false)
	h.lift(ports)
	state("reject, redirect and limit", true, true, false, false)
	h.lift(reject)
	state("redirect and limit", false, false, true, false)
	h.lift(redirect)
	if err := connect(h.innocent, h.blocked, false, 7001); err != nil {
		t.Errorf("limit alone: %v", err)
	}
	f := h.flow(h.innocent, h.blocked, false)
	start := time.Now()
	f.send(1000)
	if n, most := f.to.received(f.id), 50+int(50*time.Since(start).Seconds())+5; n == 0 || n > most {
		t.Errorf("limit alone: %d packets, want 1 to %d", n, most)
	}
	h.lift(limit)
	h.checkCut("all lifted", func(*flow) bool { return false })
}

// TestTwoLimits: of two limits on one guest, a packet must be within both.
func TestTwoLimits(t *testing.T) {
	h := newHolds(t)
	vm := fsm.Target{VM: h.blocked.name}
	wide := h.commit(fsm.AddBlock{Target: vm, Kind: fsm.Limit, Rate: fsm.Rate{Packets: 400}})
	narrow := h.commit(fsm.AddBlock{Target: fsm.Target{Account: "acct-" + h.blocked.name}, Kind: fsm.Limit, Rate: fsm.Rate{Packets: 50}})
	measure := func(what string, rate int) {
		t.Helper()
		start := time.Now()
		f := h.flow(h.blocked, h.outside, true)
		f.send(2000)
		n, most := f.to.received(f.id), rate+int(float64(rate)*time.Since(start).Seconds())+5
		if n < rate*9/10 || n > most {
			t.Errorf("%s: %d packets, want %d to %d", what, n, rate, most)
		}
	}
	measure("both", 50)
	h.lift(narrow)
	waitFor(t, "the bucket of the other is full again", func() bool {
		f := h.flow(h.blocked, h.outside, true)
		f.send(1)
		time.Sleep(10 * time.Millisecond)
		return f.to.received(f.id) == 1
	})
	time.Sleep(time.Second) // what the narrow limit let through has emptied the wide one by as much
	measure("the wider", 400)
	h.lift(wide)
}

// TestLimitCountsOnce: what a bridge has counted is not counted on its way through the node again, or
// it would take from what is routed.
func TestLimitCountsOnce(t *testing.T) {
	h := newHolds(t)
	for _, on := range []int{0, 1} {
		h.brNetfilter(on)
		list := as("limit_out_b1_200packets", prefix("10.7.0.2"), prefix("10.8.0.2"))
		apply(t, h.kernel, h.index, list, nil)
		for _, to := range []*endpoint{h.innocent, h.outside, h.host} {
			h.flow(h.blocked, to, false).send(500)
		}
		f := h.flow(h.routed, h.outside, false)
		f.send(150)
		waitFor(t, "the routed guest has all of its own rate", func() bool { return f.lost() == 0 })
		apply(t, h.kernel, h.index, nil, list)
	}
}

// TestLimitInBits measures what passes in bytes of the network layer.
func TestLimitInBits(t *testing.T) {
	h := newHolds(t)
	const rate = 50_000 // bytes a second
	for _, e := range []*endpoint{h.blocked, h.routed} {
		for _, v6 := range []bool{false, true} {
			for _, out := range []bool{true, false} {
				f := h.flow(h.outside, e, v6)
				if out {
					f = h.flow(e, h.outside, v6)
				}
				held := h.commit(fsm.AddBlock{Target: fsm.Target{VM: e.name}, Kind: fsm.Limit, Rate: fsm.Rate{Bits: 8 * rate}})
				size := 20 + 8 + 16
				if v6 {
					size += 20
				}
				start := time.Now()
				f.send(6000)
				took := time.Since(start).Seconds()
				least, most := rate+slackBytes, rate+slackBytes+int(rate*took)+2*size
				if got := f.to.received(f.id) * size; got < least*95/100 || got > most {
					t.Errorf("%v: %d bytes in %.2f s, want %d to %d", f, got, took, least, most)
				}
				h.lift(held)
			}
		}
	}
}

// frame is a UDP datagram to port 7000 in a frame between guests of the bridge, with VLAN tags, IPv6
// extension headers or as a fragment.
func frame(tags int, ip []byte, protocol uint16) []byte {
	dst, src := mac("52:54:00:00:00:03").MAC, mac("52:54:00:00:00:02").MAC
	b := append(append([]byte{}, dst[:]...), src[:]...)
	for range tags {
		b = append(b, 0x81, 0x00, 0x00, 0x05)
	}
	return append(binary.BigEndian.AppendUint16(b, protocol), ip...)
}

func udp(port uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, 4000)
	b = binary.BigEndian.AppendUint16(b, port)
	b = binary.BigEndian.AppendUint16(b, 8+16)
	return append(append(b, 0, 0), "palisade-ports--"...)
}

func ip4(fragment uint16, payload []byte) []byte {
	b := []byte{0x45, 0, 0, byte(20 + len(payload)), 0, 9, byte(fragment >> 8), byte(fragment), 64, 17, 0, 0, 10, 7, 0, 2, 10, 7, 0, 5}
	return append(b, payload...)
}

func ip6(next byte, payload []byte) []byte {
	b := []byte{0x60, 0, 0, 0, 0, byte(len(payload)), next, 64}
	src, dst := prefix("fd07::2").Prefix.Addr().As16(), prefix("fd07::5").Prefix.Addr().As16()
	return slices.Concat(b, src[:], dst[:], payload)
}

// TestPortsCanBeRead: a port is found behind a tag and behind extension headers; what could hide one is
// dropped, and what has another port passes.
func TestPortsCanBeRead(t *testing.T) {
	h := newHolds(t)
	h.brNetfilter(0) // it looks at checksums
	var out, in int
	h.blocked.ns.do(func() (err error) { out, err = packetSocket("eth0"); return err })
	h.innocent.ns.do(func() (err error) { in, err = packetSocket("eth0"); return err })
	t.Cleanup(func() { _ = unix.Close(out); _ = unix.Close(in) })
	const v4, v6 = 0x0800, 0x86dd
	options := []byte{17, 0, 1, 4, 0, 0, 0, 0} // a header of destination options, then UDP
	fragment := func(offset uint16, more byte) []byte {
		return []byte{17, 0, byte(offset >> 8), byte(offset) | more, 0, 0, 0, 9}
	}
	for _, c := range []struct {
		name  string
		frame []byte
		pass  bool
	}{
		{"another port", frame(0, ip4(0, udp(7001)), v4), true},
		{"the port", frame(0, ip4(0, udp(7000)), v4), false},
		{"another port behind a tag", frame(1, ip4(0, udp(7001)), v4), true},
		{"the port behind a tag", frame(1, ip4(0, udp(7000)), v4), false},
		{"another port behind two tags", frame(2, ip4(0, udp(7001)), v4), false},
		{"the port behind two tags", frame(2, ip4(0, udp(7000)), v4), false},
		{"the port in a first fragment", frame(0, ip4(0x2000, udp(7000)), v4), false},
		{"a later fragment", frame(0, ip4(3, udp(7000)), v4), true},
		{"another port over IPv6", frame(0, ip6(17, udp(7001)), v6), true},
		{"the port over IPv6", frame(0, ip6(17, udp(7000)), v6), false},
		{"another port behind options", frame(0, ip6(60, slices.Concat(options, udp(7001))), v6), true},
		{"the port behind options", frame(0, ip6(60, slices.Concat(options, udp(7000))), v6), false},
		{"the port in a first IPv6 fragment", frame(0, ip6(44, slices.Concat(fragment(0, 1), udp(7000))), v6), false},
		{"a later IPv6 fragment", frame(0, ip6(44, slices.Concat(fragment(64, 1), udp(7000))), v6), true},
		{"options cut short", frame(0, ip6(60, options[:4]), v6), false},
		{"options cut short by a fragment", frame(0, ip6(44, slices.Concat([]byte{60, 0, 0, 1, 0, 0, 0, 9}, []byte{17, 4, 1, 4, 0, 0, 0, 0})), v6), false},
		{"no room for ports", frame(0, ip4(0, []byte{1, 2}), v4), false},
		{"another protocol", frame(0, slices.Concat(ip4(0, udp(7000))[:9], []byte{253}, ip4(0, udp(7000))[10:]), v4), true},
	} {
		arrives := func(expected bool) bool {
			_, _ = unix.Write(out, c.frame)
			return countEnding(in, c.frame, 1, patience(expected)) > 0
		}
		if !arrives(true) {
			t.Fatalf("%s: nothing held, and the frame is lost", c.name)
		}
		held := h.commit(fsm.AddBlock{Target: fsm.Target{VM: h.blocked.name}, Kind: fsm.Ports, Direction: fsm.Out, Ports: []fsm.PortRange{{Protocol: 17, First: 7000, Last: 7000}}})
		if got := arrives(c.pass); got != c.pass {
			t.Errorf("%s: passes %t, want %t", c.name, got, c.pass)
		}
		h.lift(held)
	}
}

// countEnding counts frames that end like the one given: a tag may have been taken off.
func countEnding(socket int, frame []byte, most int, late time.Time) (n int) {
	end := frame[max(len(frame)-40, 14):]
	buf := make([]byte, 2048)
	for n < most && time.Now().Before(late) {
		size, err := unix.Read(socket, buf)
		switch {
		case err != nil:
			time.Sleep(time.Millisecond)
		case size >= len(end) && slices.Equal(buf[:6], frame[:6]) && slices.Equal(buf[size-len(end):size], end):
			n++
		}
	}
	return n
}

// TestRedirectCutsConnections: a visitor's connection to the guest itself ends with the redirect, and so
// do those of visitors that the kernel has tracked.
func TestRedirectCutsConnections(t *testing.T) {
	h := newHolds(t)
	h.host.ns.runInput("table inet other { chain c { type filter hook forward priority 0; ct state established accept; }; }", "nft", "-f", "-")
	for _, e := range []*endpoint{h.blocked, h.routed} {
		for name, target := range targets(e) {
			s := newStreamAt(t, h.outside, e, 80)
			waitFor(t, "the connection lives", func() bool { return s.back.Load() > 1000 })
			held := h.commit(blocks(target, fsm.AddBlock{Kind: fsm.Redirect})...)
			there := s.there.Load()
			time.Sleep(700 * time.Millisecond)        // it is sent again after 200 ms, and 400 ms later
			if n := s.there.Load() - there; n > 100 { // at most what was on its way
				t.Errorf("%s held by its %s: %d bytes after the redirect", e.name, name, n)
			}
			h.lift(held)
			s.end()
		}
	}
}

// TestNeighboursOfTheRejected: a rejected and a redirected guest can be found by ARP and by neighbour
// discovery, a dropped one can not.
func TestNeighboursOfTheRejected(t *testing.T) {
	h := newHolds(t)
	found := func() bool {
		for _, a := range []string{h.blocked.v4.String(), h.blocked.v6.String()} {
			h.innocent.ns.run("ip", "neigh", "del", a, "dev", "eth0")
			_ = connect(h.innocent, h.blocked, a == h.blocked.v6.String(), 7002)
			out := h.innocent.ns.run("ip", "neigh", "show", a, "dev", "eth0")
			if !strings.Contains(out, "52:54:00:00:00:02") {
				return false
			}
		}
		return true
	}
	restore := func() {
		for _, a := range []string{h.blocked.v4.String(), h.blocked.v6.String()} {
			h.innocent.ns.run("ip", "neigh", "replace", a, "lladdr", "52:54:00:00:00:02", "dev", "eth0", "nud", "permanent")
		}
	}
	for kind, want := range map[fsm.Kind]bool{fsm.Reject: true, fsm.Redirect: true, fsm.Drop: false} {
		held := h.commit(fsm.AddBlock{Target: fsm.Target{VM: h.blocked.name}, Kind: kind})
		if got := found(); got != want {
			t.Errorf("%s: found by its neighbour: %t", kind, got)
		}
		restore()
		h.lift(held)
	}
}

// TestElsewhere: requests for a guest of another node, and the answers of that node, pass by; the guest
// itself does not.
func TestElsewhere(t *testing.T) {
	h := newHolds(t)
	h.brNetfilter(0)
	target := targets(h.blocked)["address"]
	here := h.local.NICs
	h.local.NICs = here.Without(h.blocked.name)
	defer serveText(h.blocked, 80, "served there")()
	held := h.commit(blocks(target, fsm.AddBlock{Kind: fsm.Redirect})...)
	// The bridge has the other node behind the port: a request is answered by whoever is there.
	if got, err := get(t.Context(), h.innocent, h.blocked, false); err != nil || got != "served there" {
		t.Errorf("a guest elsewhere: %q, %v", got, err)
	}
	h.brNetfilter(1) // the routing hooks see frames that pass by, too
	if got, err := get(t.Context(), h.innocent, h.blocked, false); err != nil || got != "served there" {
		t.Errorf("a guest elsewhere, with br_netfilter: %q", got)
	}
	h.brNetfilter(0)
	h.checkCut("a guest elsewhere", towards(h.blocked, fsm.Both))
	h.local.NICs = here // it has arrived
	h.commit(fsm.DeclareVM{ID: "tick"})
	if got, err := get(t.Context(), h.innocent, h.blocked, false); err == nil {
		t.Errorf("a guest that is here answers %q", got)
	}
	var out, in int
	h.blocked.ns.do(func() (err error) { out, err = packetSocket("eth0"); return err })
	h.innocent.ns.do(func() (err error) { in, err = packetSocket("eth0"); return err })
	t.Cleanup(func() { _ = unix.Close(out); _ = unix.Close(in) })
	answer := append([]byte{0, 80, 16, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0}, "from the guest"...)
	packet := ip4(0, answer)
	packet[9] = 6 // TCP
	_, _ = unix.Write(out, frame(0, packet, 0x0800))
	if countEnding(in, frame(0, packet, 0x0800), 1, patience(false)) > 0 {
		t.Error("an answer of a guest that is here passes")
	}
	h.lift(held)
}

// TestGuardedVM: a guarded VM loses nothing to holds on its account and on the network around it, nor
// when another claims its hardware address.
func TestGuardedVM(t *testing.T) {
	h := newHolds(t)
	h.commit(fsm.DeclareVM{ID: h.innocent.name, Owner: "acct-" + h.blocked.name})
	for _, kind := range []fsm.Kind{fsm.Drop, fsm.Reject, fsm.Redirect} {
		var ops []fsm.Op
		for _, target := range []fsm.Target{
			{Account: "acct-" + h.blocked.name},
			{Prefix: prefix("10.7.0.4/30").Prefix},
			{Prefix: prefix("fd07::4/126").Prefix},
		} {
			ops = append(ops, fsm.AddBlock{Target: target, Kind: kind, Force: true})
		}
		held := h.commit(ops...)
		h.commit(fsm.PutGuard{VM: h.innocent.name})
		h.checkCut("a guarded VM among those held: "+string(kind), towards(h.blocked, fsm.Both))
		h.lift(held)
		h.commit(fsm.DeleteGuard{VM: h.innocent.name})
	}
	h.commit(fsm.PutGuard{VM: h.innocent.name})
	h.local.NICs = h.local.NICs.With("thief", h.local.NICs.Get(h.innocent.name))
	thief := h.commit(fsm.DeclareVM{ID: "thief"}, fsm.AddBlock{Target: fsm.Target{VM: "thief"}})
	h.checkCut("a thief of its name held", func(*flow) bool { return false })
	h.lift(thief)
	h.local.NICs = h.local.NICs.Without("thief")
	h.commit(fsm.DeleteGuard{VM: h.innocent.name})
	held := h.commit(fsm.AddBlock{Target: fsm.Target{Account: "acct-" + h.blocked.name}})
	h.checkCut("not guarded any more", func(f *flow) bool {
		return towards(h.blocked, fsm.Both)(f) || towards(h.innocent, fsm.Both)(f)
	})
	h.lift(held)
}
