package cluster

import (
	"context"
	"errors"
	"fmt"
	"log" //nolint:depguard // memberlist wants one
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/hclogslog"
)

const (
	// directSightings is up to how many peers a sighting is sent to all of them at once, besides
	// being gossiped.
	directSightings = 32
	// rejoinEvery is how often peers that are missing are called again: memberlist alone does not
	// merge two halves that took each other for dead.
	rejoinEvery = 3 * time.Second
	// maxSightings bounds what is queued for OnSighting, and what is remembered to tell old news.
	maxSightings = 1024
	maxGossip    = 1200 // bytes of a message, so that it fits into one packet
)

// gossiper is what the cluster needs of gossip.
type gossiper interface {
	// run gossips until ctx ends.
	run(ctx context.Context) error
	alive(id string) bool
	// health is memberlist's own measure of how late it is: 0 is well, 8 the worst.
	health() int
	// announce spreads a message to all peers.
	announce(msg []byte)
}

// gossip is memberlist, encrypted.
type gossip struct {
	opts  *Options
	dir   *directory
	keys  *keyring
	heard func(id string)
	onMsg func(msg []byte) (news bool)
	log   *slog.Logger

	mu    sync.Mutex
	ml    *memberlist.Memberlist
	up    map[string]*memberlist.Node
	queue *memberlist.TransmitLimitedQueue
}

var (
	_ gossiper                    = (*gossip)(nil)
	_ memberlist.Delegate         = (*gossip)(nil)
	_ memberlist.EventDelegate    = (*gossip)(nil)
	_ memberlist.AliveDelegate    = (*gossip)(nil)
	_ memberlist.PingDelegate     = (*gossip)(nil)
	_ memberlist.ConflictDelegate = (*gossip)(nil)
)

func newGossip(opts *Options, dir *directory, keys *keyring, heard func(string), onMsg func([]byte) bool) *gossip {
	return &gossip{
		opts: opts, dir: dir, keys: keys, heard: heard, onMsg: onMsg, log: opts.Logger.With("part", "gossip"), up: map[string]*memberlist.Node{},
	}
}

// config tunes for a LAN: a dead peer is noticed in three to five seconds.
func (g *gossip) config() (*memberlist.Config, error) {
	bind, err := netip.ParseAddrPort(g.opts.GossipBind)
	if err != nil {
		return nil, err
	}
	conf := memberlist.DefaultLANConfig()
	conf.Name = g.opts.ID
	conf.BindAddr, conf.BindPort = bind.Addr().String(), int(bind.Port())
	conf.AdvertisePort = conf.BindPort
	if p, _ := g.dir.peer(g.opts.ID); p.Gossip != "" {
		adv, err := netip.ParseAddrPort(p.Gossip)
		if err != nil {
			return nil, err
		}
		conf.AdvertiseAddr, conf.AdvertisePort = adv.Addr().String(), int(adv.Port())
	}
	conf.Keyring = g.keys.ring
	conf.GossipVerifyIncoming, conf.GossipVerifyOutgoing = true, true
	conf.ProbeInterval, conf.ProbeTimeout = 700*time.Millisecond, 350*time.Millisecond
	conf.SuspicionMult = 3
	conf.TCPTimeout = 3 * time.Second
	conf.RequireNodeNames = true
	conf.EnableCompression = false // messages are small
	conf.Delegate, conf.Events, conf.Alive, conf.Ping, conf.Conflict = g, g, g, g, g
	conf.LogOutput, conf.Logger = nil, g.logger()
	return conf, nil
}

func (g *gossip) logger() *log.Logger {
	var often seldom
	often.every = 10 * time.Second
	level := func(msg string, l slog.Level) slog.Level {
		l = gossipLevel(msg, l)
		if l < slog.LevelInfo {
			return l
		}
		if _, ok := often.ok(head(msg)); !ok {
			return slog.LevelDebug
		}
		return l
	}
	return hclogslog.NewStandard(g.log, level)
}

// head is what log lines of one kind share.
func head(msg string) string { return msg[:min(len(msg), 24)] }

func (g *gossip) run(ctx context.Context) error {
	if !g.keys.await(ctx) {
		return nil
	}
	conf, err := g.config()
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	queue := &memberlist.TransmitLimitedQueue{RetransmitMult: conf.RetransmitMult}
	g.mu.Lock()
	g.queue = queue
	queue.NumNodes = func() int { return len(g.dir.now().active) }
	g.mu.Unlock()
	port, err := openGossipPort(conf, g.dir)
	if err != nil {
		return fmt.Errorf("gossip on %s: %w", g.opts.GossipBind, err)
	}
	conf.Transport = port
	ml, err := memberlist.Create(conf)
	if err != nil {
		return errors.Join(fmt.Errorf("gossip on %s: %w", g.opts.GossipBind, err), port.Shutdown())
	}
	g.mu.Lock()
	g.ml = ml
	g.mu.Unlock()
	defer func() {
		if err := ml.Shutdown(); err != nil {
			g.log.Debug("gossip shutdown", "err", err)
		}
	}()
	tick := time.NewTicker(rejoinEvery)
	defer tick.Stop()
	for {
		list := g.dir.now()
		g.rejoin(ctx, ml, list)
		select {
		case <-tick.C:
		case <-list.superseded:
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), errAbrupt) {
				_ = ml.Leave(200 * time.Millisecond) // nobody may be left to hear it
			}
			return nil
		}
	}
}

// rejoin calls peers that are not seen.
func (g *gossip) rejoin(ctx context.Context, ml *memberlist.Memberlist, list *listing) {
	for _, id := range list.others(g.opts.ID) {
		if ctx.Err() != nil {
			return
		}
		if p := list.all[id]; p.Gossip != "" && !g.alive(id) {
			_, _ = ml.Join([]string{id + "/" + p.Gossip}) // tried again soon
		}
	}
}

func (g *gossip) alive(id string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, up := g.up[id]
	return up
}

func (g *gossip) health() int {
	g.mu.Lock()
	ml := g.ml
	g.mu.Unlock()
	if ml == nil {
		return 0
	}
	return ml.GetHealthScore()
}

func (g *gossip) announce(msg []byte) {
	g.mu.Lock()
	ml, queue := g.ml, g.queue
	nodes := make([]*memberlist.Node, 0, len(g.up))
	for id, n := range g.up {
		if _, member := g.dir.peer(id); member && id != g.opts.ID {
			nodes = append(nodes, n)
		}
	}
	g.mu.Unlock()
	if ml == nil {
		return
	}
	queueHint(queue, msg)
	if len(nodes) > directSightings {
		return
	}
	for _, n := range nodes {
		_ = ml.SendBestEffort(n, msg) // gossip comes after it
	}
}

// queueHint queues a message. The queue empties slowly: what a peer sends in excess takes the place of older hints.
func queueHint(queue *memberlist.TransmitLimitedQueue, msg []byte) {
	queue.QueueBroadcast(broadcast(msg))
	queue.Prune(maxSightings)
}

type broadcast []byte

func (broadcast) Invalidates(memberlist.Broadcast) bool { return false }
func (b broadcast) Message() []byte                     { return b }
func (broadcast) Finished()                             {}

// NodeMeta says who this node is.
func (g *gossip) NodeMeta(limit int) []byte {
	meta := &peerpb.NodeMeta{Id: g.opts.ID, Version: g.opts.Version}
	b, err := proto.Marshal(meta)
	if err != nil || len(b) > limit {
		return nil
	}
	return b
}

// NotifyMsg takes a message of a peer. News is gossiped on; memberlist reuses the buffer.
func (g *gossip) NotifyMsg(b []byte) {
	msg := append([]byte(nil), b...)
	if len(msg) > maxGossip || !g.onMsg(msg) {
		return
	}
	g.mu.Lock()
	queue := g.queue
	g.mu.Unlock()
	queueHint(queue, msg)
}

// GetBroadcasts gives memberlist what is to be sent on.
func (g *gossip) GetBroadcasts(overhead, limit int) [][]byte {
	g.mu.Lock()
	queue := g.queue
	g.mu.Unlock()
	return queue.GetBroadcasts(overhead, limit)
}

// LocalState and MergeRemoteState carry nothing: sightings are hints, and raft has the truth.
func (g *gossip) LocalState(bool) []byte { return nil }

// MergeRemoteState ignores what a peer sends along with its view of the members.
func (g *gossip) MergeRemoteState([]byte, bool) {}

// NotifyAlive refuses nodes that this node does not know as members, or knows as retired: to have the gossip
// key is not enough. One that has just been admitted is called once the state knows it, see rejoin.
func (g *gossip) NotifyAlive(n *memberlist.Node) error {
	if n.Name == g.opts.ID {
		return nil // memberlist panics when it leaves without being there
	}
	if _, ok := g.dir.peer(n.Name); !ok {
		return fmt.Errorf("node %q is no member of the fleet", n.Name)
	}
	return nil
}

// NotifyJoin notes that a peer is alive.
func (g *gossip) NotifyJoin(n *memberlist.Node) {
	node := *n
	g.mu.Lock()
	g.up[n.Name] = &node
	g.mu.Unlock()
	g.heard(n.Name)
	if n.Name == g.opts.ID {
		return
	}
	meta := &peerpb.NodeMeta{}
	if err := proto.Unmarshal(n.Meta, meta); err != nil {
		g.log.Warn("a peer's description can't be read", "peer", n.Name, "err", err)
	}
	g.log.Info("peer is alive", "peer", n.Name, "gossip", n.Address(), "version", meta.GetVersion())
}

// NotifyLeave notes that a peer left or is taken for dead.
func (g *gossip) NotifyLeave(n *memberlist.Node) {
	g.mu.Lock()
	delete(g.up, n.Name)
	g.mu.Unlock()
	if n.Name != g.opts.ID {
		g.log.Warn("peer is gone", "peer", n.Name)
	}
}

// NotifyUpdate keeps a peer's changed address.
func (g *gossip) NotifyUpdate(n *memberlist.Node) {
	node := *n
	g.mu.Lock()
	g.up[n.Name] = &node
	g.mu.Unlock()
}

// NotifyConflict tells of two nodes with one id.
func (g *gossip) NotifyConflict(existing, other *memberlist.Node) {
	g.log.Error("two nodes have the same id: stop one of them", "id", existing.Name, "one", existing.Address(), "other", other.Address())
}

// AckPayload is not used.
func (g *gossip) AckPayload() []byte { return nil }

// NotifyPingComplete notes that a peer answered.
func (g *gossip) NotifyPingComplete(n *memberlist.Node, _ time.Duration, _ []byte) { g.heard(n.Name) }

// sightings turns messages into sightings: each is told once, one at a time.
type sightings struct {
	self  string
	tell  func(fsm.Sighting)
	queue chan fsm.Sighting

	mu   sync.Mutex
	seen map[string]struct{}
	old  []string // keys of seen, oldest first
}

func newSightings(self string, tell func(fsm.Sighting)) *sightings {
	if tell == nil {
		tell = func(fsm.Sighting) {}
	}
	return &sightings{self: self, tell: tell, queue: make(chan fsm.Sighting, maxSightings), seen: map[string]struct{}{}}
}

func (s *sightings) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case v := <-s.queue:
			s.tell(v)
		}
	}
}

// take reads a message and says whether it was news.
func (s *sightings) take(msg []byte) bool {
	p := &peerpb.Sighting{}
	if err := proto.Unmarshal(msg, p); err != nil || p.GetVm() == "" || p.GetNode() == "" {
		return false
	}
	if !s.first(p) || p.GetNode() == s.self {
		return false
	}
	select {
	case s.queue <- fsm.Sighting{
		VM: p.GetVm(), Name: p.GetName(), Node: p.GetNode(), Phase: fsm.Phase(p.GetPhase()),
		Epoch: p.GetEpoch(), At: decodeTime(p.GetAtUnixNano()),
	}:
	default: // a hint too many; the commit follows
	}
	return true
}

// first tells whether this was not seen before, and remembers it.
func (s *sightings) first(p *peerpb.Sighting) bool {
	key := fmt.Sprintf("%s\x00%s\x00%s\x00%d\x00%d", p.GetVm(), p.GetNode(), p.GetPhase(), p.GetEpoch(), p.GetAtUnixNano())
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.seen[key]; known {
		return false
	}
	if len(s.old) >= maxSightings {
		delete(s.seen, s.old[0])
		s.old = s.old[1:]
	}
	s.seen[key] = struct{}{}
	s.old = append(s.old, key)
	return true
}

func (s *sightings) encode(v fsm.Sighting) ([]byte, error) {
	p := &peerpb.Sighting{
		Vm: v.VM, Name: v.Name, Node: v.Node, Phase: string(v.Phase), Epoch: v.Epoch, AtUnixNano: encodeTime(v.At),
	}
	s.first(p) // so that it is not told to ourselves
	msg, err := proto.Marshal(p)
	if err == nil && len(msg) > maxGossip {
		err = fmt.Errorf("it has %d bytes, at most %d fit into a packet", len(msg), maxGossip)
	}
	return msg, err
}
