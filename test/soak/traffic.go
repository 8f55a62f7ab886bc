package soak

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/internal/probe"
	"github.com/palisade/palisade/test/rig"
)

// port is where all stations hear; guests that are real machines echo what comes to theirs.
const (
	port     = 20100
	echoPort = 7
)

// spot is a place with a station.
type spot struct {
	where  string // for Fleet.Command
	guest  string // id of the VM, if it is one
	v4, v6 netip.Addr
	// suspect says that it is blocked now and then. Other guests are innocent.
	suspect bool
	spoof   []netip.Addr // of a guest that also lies about who it is
}

func (s spot) place(a netip.Addr) place { return place{guest: s.guest, addr: a} }

// traffic are all streams of a storm, and what was heard of them.
type traffic struct {
	stations map[string]*probe.Station // by spot
	tracks   map[uint64]*track
	frames   map[string][]probe.Frame // by place, of guests whose wires are watched

	mu   sync.Mutex
	wg   sync.WaitGroup
	stop context.CancelFunc
	err  error
}

func newTraffic() *traffic {
	return &traffic{stations: map[string]*probe.Station{}, tracks: map[uint64]*track{}, frames: map[string][]probe.Frame{}}
}

// echo adds streams in both families from a spot to the echo service of a guest. Its echoes are heard.
func (t *traffic) echo(from, guest spot) {
	for _, p := range [][2]netip.Addr{{from.v4, guest.v4}, {from.v6, guest.v6}} {
		t.add(from.place(p[0]), guest.place(p[1])).To = netip.AddrPortFrom(p[1], echoPort)
	}
}

// connect adds streams both ways, in both families, between two spots.
func (t *traffic) connect(a, b spot) {
	for _, p := range [][2]netip.Addr{{a.v4, b.v4}, {a.v6, b.v6}} {
		t.add(a.place(p[0]), b.place(p[1]))
		t.add(b.place(p[1]), a.place(p[0]))
	}
}

// lie adds streams both ways between a guest's false addresses and a spot.
func (t *traffic) lie(a, b spot) {
	for i, to := range []netip.Addr{b.v4, b.v6} {
		from := place{guest: a.guest, addr: a.spoof[i], spoofed: true}
		t.add(from, b.place(to))
		t.add(b.place(to), from)
	}
}

func (t *traffic) add(from, to place) *track {
	id := uint64(len(t.tracks) + 1)
	name := fmt.Sprintf("%s > %s", from.addr, to.addr)
	t.tracks[id] = &track{stream: stream{
		Stream: probe.Stream{ID: id, From: from.addr, To: netip.AddrPortFrom(to.addr, port), Rate: rate}, name: name, from: from, to: to,
	}}
	return t.tracks[id]
}

// station starts the probe binary at a place.
func (t *traffic) station(ctx context.Context, r *rig.Rig, name, where string, args []string) error {
	cmd, err := r.Command(context.WithoutCancel(ctx), where, append([]string{r.Probe.Binary}, args...)...)
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	s, err := probe.NewStation(cmd)
	if err == nil {
		t.stations[name] = s
	}
	return err
}

// watch watches the frames of hardware addresses at the outside and the nodes.
func (t *traffic) watch(ctx context.Context, r *rig.Rig, spots []spot, macs []string) error {
	for _, s := range spots {
		if err := t.station(ctx, r, wirePrefix+s.where, s.where, probe.WireArgs(s.where == fleet.Outside, macs...)); err != nil {
			return err
		}
	}
	return nil
}

// wirePrefix begins the names of the stations that watch.
const wirePrefix = "the wires of "

// start starts a station at every spot, and then all streams.
func (t *traffic) start(ctx context.Context, r *rig.Rig, spots []spot) error {
	for _, s := range spots {
		if err := t.station(ctx, r, s.where, s.where, probe.StationArgs(port, append([]netip.Addr{s.v4, s.v6}, s.spoof...)...)); err != nil {
			return err
		}
	}
	for _, s := range spots {
		var o probe.StationOrder
		for _, tr := range t.tracks {
			if tr.From == s.v4 || tr.From == s.v6 || len(s.spoof) > 0 && (tr.From == s.spoof[0] || tr.From == s.spoof[1]) {
				o.Send = append(o.Send, tr.Stream)
			}
		}
		if _, err := t.stations[s.where].Order(o); err != nil {
			return err
		}
	}
	ctx, t.stop = context.WithCancel(ctx)
	t.wg.Go(func() {
		for pause(ctx, time.Second) == nil {
			t.gather(probe.StationOrder{})
		}
	})
	return nil
}

// gather asks every station.
func (t *traffic) gather(o probe.StationOrder) {
	for where, s := range t.stations {
		tally, err := s.Order(o)
		t.mu.Lock()
		if err != nil {
			t.err = errors.Join(t.err, fmt.Errorf("station of %s: %w", where, err))
		}
		for id, n := range tally.Sent {
			t.tracks[id].sent = n
		}
		for _, h := range tally.Heard {
			if tr := t.tracks[h.Stream]; tr != nil {
				tr.heard = append(tr.heard, h)
			}
		}
		if where, is := strings.CutPrefix(where, wirePrefix); is {
			t.frames[where] = append(t.frames[where], tally.Frames...)
		}
		t.mu.Unlock()
	}
}

// finish stops sending, hears what is under way, and ends the stations.
func (t *traffic) finish(ctx context.Context) error {
	if t.stop != nil {
		t.stop()
	}
	t.wg.Wait()
	t.gather(probe.StationOrder{Stop: true})
	err := pause(ctx, 500*time.Millisecond)
	t.gather(probe.StationOrder{})
	return errors.Join(err, t.err, t.close())
}

// close ends the stations.
func (t *traffic) close() (err error) {
	if t.stop != nil {
		t.stop()
	}
	t.wg.Wait()
	for where, s := range t.stations {
		err = errors.Join(err, s.Close())
		delete(t.stations, where)
	}
	return err
}

// passing says which streams, of a guest or with "" of all, have brought nothing that was sent after a time.
func (t *traffic) passing(since time.Time, guest string) error {
	t.gather(probe.StationOrder{})
	t.mu.Lock()
	defer t.mu.Unlock()
	var silent []string
	for _, tr := range t.tracks {
		if guest != "" && tr.from.guest != guest && tr.to.guest != guest {
			continue
		}
		if n := len(tr.heard); n == 0 || tr.heard[n-1].Sent < since.UnixNano() {
			silent = append(silent, tr.name)
		}
	}
	if len(silent) > 0 {
		return fmt.Errorf("%d flows do not pass, among them %v", len(silent), silent[:min(len(silent), shown)])
	}
	return t.err
}

// watched counts the packets sent and received.
func (t *traffic) watched() (sent, received int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, tr := range t.tracks {
		sent, received = sent+int(tr.sent), received+len(tr.heard)
	}
	return sent, received
}

// missing lists when the packets of a stream that the network lost were sent. Without a look at the wires these are all
// that were not heard. Else what reached a guest's wire and was not echoed is not among them: a guest with little of the machine
// may itself be silent.
func (t *traffic) missing(tr *track) []int64 {
	if len(t.frames) == 0 {
		return tr.lost()
	}
	silent := map[uint64]bool{}
	for _, frames := range t.frames {
		for _, f := range frames {
			if f.Stream == tr.ID && f.Tap && !f.From && f.Passed {
				if _, echoed := silent[f.Seq]; !echoed {
					silent[f.Seq] = true
				}
			}
			if f.Stream == tr.ID && f.Tap && f.From && !f.Passed {
				silent[f.Seq] = false
			}
		}
	}
	rest := &track{stream: tr.stream, sent: tr.sent, heard: slices.Clone(tr.heard)}
	base := tr.base()
	for seq, is := range silent {
		if is {
			rest.heard = append(rest.heard, probe.Heard{Stream: tr.ID, Seq: seq, Sent: base + tr.offset(seq)})
		}
	}
	return rest.lost()
}

// spots are the places of a fleet: guests, the outside and the hosts.
func spots(r *rig.Rig) (guests, hosts []spot, outside spot) {
	for _, g := range r.Guests() {
		guests = append(guests, spot{where: g.VM, guest: g.VM, v4: netip.MustParseAddr(g.Addresses[0]), v6: netip.MustParseAddr(g.Addresses[1])})
	}
	for _, n := range r.Nodes() {
		hosts = append(hosts, spot{where: n.Name, v4: netip.MustParseAddr(n.Addresses[0]), v6: netip.MustParseAddr(n.Addresses[1])})
	}
	o := r.OutsideAddresses()
	return guests, hosts, spot{where: fleet.Outside, v4: o[0], v6: o[1]}
}

// disguise gives a guest a second device behind the same wire, with a hardware address and addresses of its own that
// nobody registered, and tells the outside where they are.
func disguise(ctx context.Context, r *rig.Rig, s *spot, k int) error {
	mac := fmt.Sprintf("52:54:00:5c:00:%02x", k)
	v4, v6 := fmt.Sprintf("10.90.200.%d", k), fmt.Sprintf("fd90::c8:%x", k)
	run := func(where string, args ...string) error {
		_, err := r.Exec(ctx, where, args...)
		return err
	}
	for _, line := range [][]string{
		{"sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2"},
		{"ip", "link", "add", "lie0", "link", "eth0", "address", mac, "type", "macvlan", "mode", "private"},
		{"ip", "link", "set", "lie0", "up"},
		{"ip", "addr", "add", v4 + "/32", "dev", "lie0"},
		{"ip", "addr", "add", v6 + "/128", "dev", "lie0", "nodad"},
		{"ip", "rule", "add", "from", v4, "lookup", "100"},
		{"ip", "-6", "rule", "add", "from", v6, "lookup", "100"},
		{"ip", "route", "add", "default", "dev", "lie0", "table", "100"},
		{"ip", "-6", "route", "add", "default", "dev", "lie0", "table", "100"},
	} {
		if err := run(s.where, line...); err != nil {
			return err
		}
	}
	for _, a := range []string{v4, v6} {
		if err := run(fleet.Outside, "ip", "neigh", "replace", a, "lladdr", mac, "dev", "br0", "nud", "permanent"); err != nil {
			return err
		}
	}
	s.spoof = []netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}
	return nil
}
