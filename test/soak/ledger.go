package soak

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/palisade/palisade/internal/probe"
)

// place is what a stream begins or ends at.
type place struct {
	guest   string // id of the VM; empty for hosts and the outside
	addr    netip.Addr
	spoofed bool // neither the hardware address nor this address is registered for the guest
}

// stream is one flow of numbered packets.
type stream struct {
	probe.Stream
	name     string
	from, to place
}

func (s stream) ends() [2]place { return [2]place{s.from, s.to} }

// stay is a time that a guest's wire spent on a node. Stays overlap while the wire is being moved.
type stay struct {
	node     string
	from, to int64 // nanoseconds since the epoch; to is 0 while it lasts
	// bound is when the node's kernel had bound the wire to the guest for certain; 0: not known to be.
	bound int64
}

// hold is one block, as far as packets are concerned.
type hold struct {
	id     string
	guests []string         // wholly held
	addr   netip.Addr       // or this address alone
	since  map[string]int64 // by node: when its receipt was known
	until  int64            // when the lift was asked for, or the agreed end; 0 while it holds
}

func (h *hold) covers(p place) bool {
	return slices.Contains(h.guests, p.guest) || h.addr.IsValid() && h.addr == p.addr
}

// ledger is what was promised when: where each guest was, and what was in force there. Its methods are safe for
// concurrent use.
type ledger struct {
	mu    sync.Mutex
	stays map[string][]*stay // by guest, in order
	holds []*hold
}

func newLedger() *ledger { return &ledger{stays: map[string][]*stay{}} }

// arrive notes that a guest's wire went to a node between two times, and since when it is bound there, if it is.
func (l *ledger) arrive(guest, node string, detached, attached, bound time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.stays[guest]); n > 0 {
		l.stays[guest][n-1].to = attached.UnixNano()
	}
	s := &stay{node: node, from: detached.UnixNano()}
	if !bound.IsZero() {
		s.bound = bound.UnixNano()
	}
	l.stays[guest] = append(l.stays[guest], s)
}

// bind says that the wire of a guest is bound where it is, at the latest now.
func (l *ledger) bind(guest string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.stays[guest]; len(s) > 0 && s[len(s)-1].bound == 0 {
		s[len(s)-1].bound = at.UnixNano()
	}
}

func (l *ledger) add(h *hold) *hold {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.since = map[string]int64{}
	l.holds = append(l.holds, h)
	return h
}

// inForce notes a node's receipt, known now. It returns how many nodes have given one.
func (l *ledger) inForce(h *hold, node string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.since[node] == 0 {
		h.since[node] = time.Now().UnixNano()
	}
	return len(h.since)
}

// lift ends what is promised of a hold.
func (l *ledger) lift(h *hold, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.until == 0 || h.until > at.UnixNano() {
		h.until = at.UnixNano()
	}
}

// held names the hold that promised that no packet of a stream, sent and received at these times, passes; empty if
// none did. Its times are taken generously for the system: the hold must have been known to be in force on every node
// where the guest could have been, before the packet was sent, and still when it arrived.
func (l *ledger) held(s stream, sent, received int64) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range s.ends() {
		if p.guest == "" {
			continue
		}
		var on []*stay
		for _, st := range l.stays[p.guest] {
			if st.from <= received && (st.to == 0 || st.to >= sent) {
				on = append(on, st)
			}
		}
		if len(on) == 0 || p.spoofed && slices.ContainsFunc(on, func(st *stay) bool { return st.bound == 0 || st.bound > sent }) {
			continue
		}
		for _, h := range l.holds {
			if !h.covers(p) || h.until != 0 && h.until <= received {
				continue
			}
			if !slices.ContainsFunc(on, func(st *stay) bool { return h.since[st.node] == 0 || h.since[st.node] > sent }) {
				return h.id
			}
		}
	}
	return ""
}

// heldOn names the hold that promised that no frame of a guest passes a node at a time; empty if none did.
func (l *ledger) heldOn(guest, node string, at int64) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.holds {
		if slices.Contains(h.guests, guest) && h.since[node] != 0 && h.since[node] <= at && (h.until == 0 || h.until > at) {
			return h.id
		}
	}
	return ""
}

// track is what was sent and received of one stream.
type track struct {
	stream
	sent  uint64
	heard []probe.Heard
}

// base estimates when packet 0 was sent: senders keep their rate and never run ahead of it.
func (t *track) base() int64 {
	base := int64(0)
	for i, h := range t.heard {
		if b := h.Sent - t.offset(h.Seq); i == 0 || b < base {
			base = b
		}
	}
	return base
}

func (t *track) offset(seq uint64) int64 { return int64(seq) * int64(time.Second) / int64(t.Rate) }

// lost lists when the packets that never arrived were sent, at the earliest.
func (t *track) lost() []int64 {
	got := make([]bool, t.sent)
	for _, h := range t.heard {
		if h.Seq < t.sent {
			got[h.Seq] = true
		}
	}
	var out []int64
	base := t.base()
	for seq, ok := range got {
		if !ok {
			out = append(out, base+t.offset(uint64(seq)))
		}
	}
	return out
}

// leaks lists the packets that passed although it was promised that they do not, and counts those that were stopped.
func (l *ledger) leaks(t *track) (leaked []string, stopped int) {
	for _, h := range t.heard {
		if id := l.held(t.stream, h.Sent, h.At); id != "" {
			leaked = append(leaked, fmt.Sprintf("%s: packet %d passed at %s although %s was in force", t.name, h.Seq, clock(h.At), id))
		}
	}
	for _, at := range t.lost() {
		if l.held(t.stream, at, at) != "" {
			stopped++
		}
	}
	return leaked, stopped
}

func clock(at int64) string { return time.Unix(0, at).Format("15:04:05.000") }
