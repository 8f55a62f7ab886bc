package soak

import (
	"net/netip"
	"testing"
	"time"

	"github.com/palisade/palisade/internal/probe"
)

// at is a moment of these tests, in milliseconds.
func at(ms int64) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }

func nanos(ms int64) int64 { return at(ms).UnixNano() }

// TestTheLedgerHoldsANodeToItsReceipt judges packets of a guest that is blocked, moves and is released.
func TestTheLedgerHoldsANodeToItsReceipt(t *testing.T) {
	v4, v6, lie := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.0.0.99")
	guest, host := func(a netip.Addr) place { return place{guest: "vm1", addr: a} }, place{addr: netip.MustParseAddr("10.0.0.9")}
	l := newLedger()
	l.arrive("vm1", "a", at(0), at(0), at(0))
	l.arrive("vm1", "b", at(500), at(510), time.Time{})
	l.holds = []*hold{
		{id: "whole", guests: []string{"vm1"}, since: map[string]int64{"a": nanos(100), "b": nanos(600)}, until: nanos(900)},
		{id: "address", addr: v4, since: map[string]int64{"a": nanos(950), "b": nanos(950)}},
	}
	for _, c := range []struct {
		name           string
		from, to       place
		sent, received int64
		want           string
	}{
		{"before the receipt", guest(v4), host, 50, 51, ""},
		{"under way when the receipt came", guest(v4), host, 99, 101, ""},
		{"after the receipt", guest(v4), host, 101, 102, "whole"},
		{"after the receipt, to the guest", host, guest(v6), 101, 102, "whole"},
		{"between two others", host, host, 101, 102, ""},
		{"while it moves to where no receipt is from", guest(v4), host, 505, 506, ""},
		{"at the destination before its receipt", guest(v4), host, 550, 551, ""},
		{"at the destination after it", guest(v4), host, 601, 602, "whole"},
		{"from a false address where the wire was bound", place{"vm1", lie, true}, host, 101, 102, "whole"},
		{"from a false address where nobody said so", place{"vm1", lie, true}, host, 601, 602, ""},
		{"arrived after the lift was asked for", guest(v4), host, 899, 901, ""},
		{"from the blocked address", guest(v4), host, 951, 952, "address"},
		{"from the other address", guest(v6), host, 951, 952, ""},
	} {
		if got := l.held(stream{from: c.from, to: c.to}, nanos(c.sent), nanos(c.received)); got != c.want {
			t.Errorf("%s: held by %q, want %q", c.name, got, c.want)
		}
	}
	tr := &track{stream: stream{Stream: probe.Stream{Rate: 100}, from: guest(v4), to: host}, sent: 12}
	for _, seq := range []int64{0, 1, 2, 11} { // sent every 10 ms, from 80 on
		tr.heard = append(tr.heard, probe.Heard{Seq: uint64(seq), Sent: nanos(80 + seq*10), At: nanos(80 + seq*10 + 1)})
	}
	if leaked, stopped := l.leaks(tr); len(leaked) != 2 || stopped != 8 { // 100 and 190; 110 to 180
		t.Errorf("found %d leaked (%v) and %d stopped, want 2 and 8", len(leaked), leaked, stopped)
	}
}

// TestLossIsBlamedOnMoves tells what a move costs from what was lost besides.
func TestLossIsBlamedOnMoves(t *testing.T) {
	guests := []spot{{guest: "suspect", suspect: true}, {guest: "vm1"}}
	tr := &track{stream: stream{Stream: probe.Stream{Rate: 100}, from: place{guest: "vm1"}}, sent: 1000}
	for seq := range int64(1000) {
		if seq == 100 || seq == 101 || seq == 900 { // sent at 1.0, 1.01 and 9.0 s
			continue
		}
		tr.heard = append(tr.heard, probe.Heard{Seq: uint64(seq), Sent: nanos(seq * 10)})
	}
	l := &storm{guests: guests, traffic: &traffic{tracks: map[uint64]*track{1: tr}}}
	got := l.lost([]moved{{move: move{guest: "vm1"}, gap: gap{nanos(1000), nanos(1050)}}, {move: move{guest: "suspect"}, gap: gap{nanos(9000), nanos(9050)}}})
	if got.packets != 3 || len(got.perMove) != 1 || got.perMove[0] != 2 || len(got.outside) != 1 {
		t.Errorf("found %+v, want two packets lost in the move and one besides", got)
	}
}
