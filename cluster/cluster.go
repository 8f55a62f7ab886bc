// Package cluster is how the nodes of a fleet agree: one replicated log (hashicorp/raft over
// raft-boltdb), one port on which peers speak raft and call each other, and encrypted gossip
// (memberlist) that tells who is alive and spreads sightings. DESIGN.md says why it is as it is.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/fsm"
)

// Cluster is this node's part in the fleet. All methods are safe for concurrent use; before Run has
// brought raft up, and after it ended, they behave as if there were no leader.
type Cluster struct {
	id         string
	version    string
	identity   *Identity // nil in tests without a network
	dir        *directory
	keyring    *keyring // nil without gossip, or without an identity
	lifetime   time.Duration
	timing     Timing
	store      *fsm.Store
	knownIndex uint64
	clock      func(context.Context) (time.Time, error)
	answer     func(context.Context, fsm.Query) (fsm.Report, error)
	onFatal    func(error)
	log        *slog.Logger

	metrics   *metrics
	ears      *ears
	sightings *sightings
	world     world
	seams     seams

	rpc     calls
	gossip  gossiper // nil without gossip
	forward *forwarders

	started  time.Time
	ready    chan struct{}
	stopping chan struct{} // closed when the cluster begins to stop
	stopOnce sync.Once
	ran      atomic.Bool
	opened   atomic.Pointer[disk]
	running  atomic.Pointer[running]
	hint     atomic.Pointer[string] // who leads, by another member's word
	aside    atomic.Pointer[[]fsm.SetAside]
	contacts *contacts     // nil in tests without a network
	over     chan struct{} // closed when this node's part has ended for good, by overErr
	overErr  error
	overOnce sync.Once
	convoy   *convoy
	applier  *applier
	members  *membership
	relay    relay
	source   *source                  // of the followers of this node
	follows  atomic.Pointer[follower] // nil while raft runs
	calls    sync.WaitGroup           // of forwarders
	callCtx  context.Context          //nolint:containedctx // ends the calls that this node has under way
	endCalls context.CancelFunc
}

// running is what exists while raft runs.
type running struct {
	raft   *raft.Raft
	tap    *tap
	throne *throne
	nudger *nudger
	disk   *disk
	logs   raft.LogStore // with the cache
	began  time.Time
	// inflight counts the calls to raft that must end before it is shut down.
	inflight *tally
	// changing is full while raft's members are being changed, or must not be, see holdMembers.
	changing chan struct{}
	formats  *formats
	// handed is set once this process has tried to hand over its leadership: raft can get stuck when that is
	// repeated.
	handed atomic.Bool
	// bare is a log index up to which the store holds all that concerns it, though it may be
	// beyond the store's last entry.
	bare atomic.Uint64
}

// errAbrupt as the cause of Run's context makes it end as if the process were killed: nothing is
// handed over and nobody is told. For tests.
var errAbrupt = errors.New("killed")

// New checks the options and wires a Cluster. It starts nothing and opens nothing.
func New(o Options) (*Cluster, error) {
	if err := errors.Join(o.validate(), o.validateReal()); err != nil {
		return nil, fmt.Errorf("cluster options: %w", err)
	}
	return newCluster(o, &realWorld{opts: o})
}

func newCluster(o Options, w world) (*Cluster, error) {
	c := &Cluster{
		id: o.ID, version: o.Version, identity: o.Identity, lifetime: o.Lifetime, timing: o.Timing.withDefaults(),
		store: o.Store, knownIndex: o.KnownIndex, clock: o.Clock, answer: o.Answer, onFatal: o.Fatal,
		log: o.Logger.With("part", "cluster"), world: w, seams: o.seams,
		ready: make(chan struct{}), stopping: make(chan struct{}), over: make(chan struct{}), convoy: &convoy{max: maxRounds, large: largeRound, wait: gather},
		started: time.Now(),
	}
	c.members = newMembership()
	c.applier = newApplier(o.Store, c.members)
	c.source = newSource(o.ID, c.timing.Heartbeat/beatsPerSilence, c.mayServe)
	if c.clock == nil {
		c.clock = func(context.Context) (time.Time, error) { return time.Now().UTC(), nil }
	}
	var err error
	if c.dir, err = o.directory(); err != nil {
		return nil, err
	}
	if c.identity != nil && o.GossipBind != "" {
		if c.keyring, err = loadKeyring(c.identity.file(keyringFile)); err != nil {
			return nil, err
		}
	}
	c.ears = newEars(c.dir)
	c.sightings = newSightings(o.ID, o.OnSighting)
	c.callCtx, c.endCalls = context.WithCancel(context.Background())
	if c.metrics, err = newMetrics(c, o.Registry); err != nil {
		return nil, err
	}
	if err := w.connect(c); err != nil {
		return nil, err
	}
	c.forward = &forwarders{dir: c.dir, known: map[string]*forwarder{}, make: func(id string) *forwarder {
		return &forwarder{peer: id, propose: c.rpc.propose, ctx: c.callCtx, running: &c.calls}
	}}
	return c, nil
}

// Ready is closed once this node has been up to date with a leader for the first time.
func (c *Cluster) Ready() <-chan struct{} { return c.ready }

// Announce tells all peers of a sighting, by gossip and at once. It does not wait and may reach
// nobody.
func (c *Cluster) Announce(s fsm.Sighting) {
	msg, err := c.sightings.encode(s)
	if err != nil {
		c.log.Warn("a sighting can't be announced", "vm", s.VM, "err", err)
		return
	}
	if c.gossip != nil {
		c.gossip.announce(msg)
	}
}

// fatal ends the process through Options.Fatal. The kernel keeps enforcing.
func (c *Cluster) fatal(err error) {
	// The log may be on the disk that hangs: it must not hold up the end.
	go c.log.Error("ending the process, the kernel keeps enforcing", "err", err)
	c.onFatal(err)
}
