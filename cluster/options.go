package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/fsm"
)

// Options configures a Cluster.
type Options struct {
	ID      string // of this node
	Version string // of this build, shown to peers
	Dir     string // of the store; made if it is missing. Must not be on a tmpfs.

	// Listen is the listener of the peer port; the Cluster closes it. If nil, Bind (host:port) is
	// listened on by Run.
	Listen net.Listener
	Bind   string
	// GossipBind is the ip:port gossip listens on (UDP and TCP). Empty means no gossip: sightings
	// go nowhere, and a peer counts as alive while raft hears from it.
	GossipBind string

	// Identity proves to peers that this node belongs to the fleet, and checks theirs. Beside it lies what
	// was last known of the others, for the start.
	Identity *Identity
	// Lifetime of the certificates that this node issues as the leader; zero is pki.LeafLifetime.
	Lifetime time.Duration

	Store *fsm.Store
	// KnownIndex is a log index that this node is known to have applied in an earlier life, from
	// elsewhere than Dir (the kernel). A store that holds less was rolled back or wiped: the node
	// does not vote until the leader has brought it up to date.
	KnownIndex uint64

	// Clock gives the time with which this node, as the leader, stamps a command; nil is this node's own
	// clock. It is called concurrently, before the command is appended; an error makes that certain.
	Clock func(ctx context.Context) (time.Time, error)

	// Answer gives this node's own report. It may block until ctx ends (Query.WaitIndex) and is
	// called concurrently.
	Answer func(ctx context.Context, q fsm.Query) (fsm.Report, error)
	// OnSighting is called with every new sighting of another node, one at a time. It should return
	// soon: while it blocks, further sightings are queued and then dropped.
	OnSighting func(fsm.Sighting)
	// Fatal is called when going on would risk the log: the store failed or hangs, or this node
	// leads without being able to commit. It must end the process and not return. In tests it may
	// return; the Cluster then accepts nothing more.
	Fatal func(error)

	Logger   *slog.Logger
	Registry prometheus.Registerer // nil registers nothing

	Timing Timing

	seams seams
}

// seams are what tests change.
type seams struct {
	raft    func(*raft.Config)
	roster  Roster // in the place of what is beside the Identity
	voters  int    // how many there should be; 0: as usual
	noNudge bool
	fanOut  int // instead of the constant
}

// Timing holds the cluster's times. The zero value of a field means its default.
type Timing struct {
	Heartbeat time.Duration // a follower without a word from the leader for this long stands for election; 1.25 s
	Election  time.Duration // a candidate that has not won by then tries again; 1.25 s
	Lease     time.Duration // a leader that hears from no majority for this long steps down; 500 ms
	Propose   time.Duration // deadline of a proposal whose context has none; 10 s
	NoLeader  time.Duration // how long a proposal waits for a leader before ErrUnavailable; 3 s
	StuckIO   time.Duration // a store call that takes longer ends the process; 5 s
	StuckLead time.Duration // a leader that commits nothing for this long ends the process; 10 s
	Handshake time.Duration // of a TLS connection; 5 s
	Call      time.Duration // of a raft call to a peer, without the transfer of a snapshot; 3 s
}

func (t Timing) withDefaults() Timing {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&t.Heartbeat, 1250 * time.Millisecond},
		{&t.Election, 1250 * time.Millisecond},
		{&t.Lease, 500 * time.Millisecond},
		{&t.Propose, 10 * time.Second},
		{&t.NoLeader, 3 * time.Second},
		{&t.StuckIO, 5 * time.Second},
		{&t.StuckLead, 10 * time.Second},
		{&t.Handshake, 5 * time.Second},
		{&t.Call, 3 * time.Second},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	return t
}

func (o *Options) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.ID == "" {
		bad("ID is missing")
	}
	if o.Store == nil {
		bad("Store is missing")
	}
	if o.Answer == nil {
		bad("Answer is missing")
	}
	if o.Fatal == nil {
		bad("Fatal is missing")
	}
	if o.Logger == nil {
		bad("Logger is missing")
	}
	if o.GossipBind != "" {
		if _, err := netip.ParseAddrPort(o.GossipBind); err != nil {
			bad("GossipBind %q is not ip:port", o.GossipBind)
		}
	}
	t := o.Timing.withDefaults()
	if t.Lease > t.Heartbeat || t.Election < t.Heartbeat {
		bad("Timing: want Lease <= Heartbeat <= Election")
	}
	return errors.Join(errs...)
}

// validateReal checks what only a cluster on a real network and disk needs.
func (o *Options) validateReal() error {
	var errs []error
	if o.Dir == "" {
		errs = append(errs, errors.New("option Dir is missing"))
	}
	switch {
	case o.Identity == nil:
		errs = append(errs, errors.New("Identity is missing"))
	case o.Identity.Node() != o.ID:
		errs = append(errs, fmt.Errorf("the identity is of node %q, this is node %q", o.Identity.Node(), o.ID))
	}
	if o.Listen == nil && o.Bind == "" {
		errs = append(errs, errors.New("one of Listen and Bind is needed"))
	}
	return errors.Join(errs...)
}

// directory opens what was last known of the others.
func (o *Options) directory() (*directory, error) {
	if o.Identity == nil || o.Identity.dir == "" {
		return newDirectory(o.ID, "", o.seams.roster)
	}
	file := filepath.Join(o.Identity.dir, rosterFile)
	r, err := loadRoster(file)
	if err != nil {
		return nil, err
	}
	return newDirectory(o.ID, file, r)
}
