package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/internal/hclogslog"
)

// world is the disk and the network that a Cluster lives on. Tests put one without either in its
// place, so that the same code runs in virtual time.
type world interface {
	// connect sets the Cluster's rpc and gossip. It starts nothing.
	connect(c *Cluster) error
	// open opens the store.
	open(c *Cluster) (*disk, error)
	// serve begins to answer peers, in goroutines that end when stop is called.
	serve(c *Cluster, spawn func(func(context.Context) error)) error
	// transport is raft's, over what serve has begun. It is closed by raft.
	transport(c *Cluster) (raft.Transport, error)
	// tidy gives up what is kept for nodes that are no members any more, or are reached elsewhere.
	tidy()
	// cut ends raft's connections, while everything else goes on.
	cut()
	// stop ends what serve began and cuts all connections; with grace, answers that are on their
	// way still leave. It can be called more than once.
	stop(grace bool)
}

// farewellTime is how long the RPC server waits for its last answers to leave.
const farewellTime = 300 * time.Millisecond

// realWorld is TCP, TLS and a directory.
type realWorld struct {
	opts Options

	port   *port
	server *http.Server
	peers  *httpPeers
	base   context.Context //nolint:containedctx // of the RPC server's calls
	end    context.CancelFunc
	once   sync.Once
}

var _ world = (*realWorld)(nil)

func (w *realWorld) connect(c *Cluster) error {
	w.port = newPort(w.opts.Identity, c.dir, c.timing, c.log.With("part", "port"))
	w.port.mayRaft, w.port.join = c.mayRaft, c.answerJoin
	c.contacts = newContacts(c.identity, c.dir)
	c.contacts.over = c.finish
	c.contacts.floor = c.generation
	c.contacts.ask = c.lifeOf
	c.contacts.cut = w.port.cut
	c.contacts.spawn = c.beside
	w.port.contacts = c.contacts
	w.port.refusedBy = c.explainRefusal
	w.peers = newHTTPPeers(w.port, c.dir)
	c.rpc = calls{w.peers}
	w.base, w.end = context.WithCancel(context.Background())
	w.server = newRPCServer(w.base, c.handlers(), c.onFollow, c.contacts, c.ears.hear, c.log.With("part", "rpc"))
	w.server.Handler = understood(ownProtocols(), c.version, w.server.Handler)
	w.port.ln = w.opts.Listen
	if w.opts.GossipBind != "" {
		c.gossip = newGossip(&w.opts, c.dir, c.keyring, c.ears.hear, c.sightings.take)
	}
	return nil
}

func (w *realWorld) open(c *Cluster) (*disk, error) {
	guard := func() *guard { return newGuard(w.opts.Dir, c.timing.StuckIO, c.fatal) }
	d, err := openEpoch(w.opts.Dir, c.identity, func() (*disk, error) {
		return openWhole(w.opts.Dir, c.id, c.identity.Epoch(), guard, c.log.With("part", "store"))
	})
	if err == nil {
		c.contacts.mine.Epoch = c.identity.Epoch()
		err = d.markEpoch(c.identity.Epoch())
	}
	aside := listAside(w.opts.Dir)
	c.aside.Store(&aside)
	return d, err
}

func (w *realWorld) serve(c *Cluster, spawn func(func(context.Context) error)) error {
	if w.opts.Listen == nil {
		ln, err := (&net.ListenConfig{}).Listen(w.base, "tcp", w.opts.Bind)
		if err != nil {
			return fmt.Errorf("peer port: %w", err)
		}
		w.port.ln = ln
	}
	spawn(func(context.Context) error { return w.port.run() }) //nolint:contextcheck // ends with close, after the context
	spawn(func(context.Context) error {
		if err := w.server.Serve(w.port.rpc); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("peer RPC: %w", err)
		}
		return nil
	})
	c.log.Info("peer port is open", "address", w.port.ln.Addr())
	return nil
}

func (w *realWorld) transport(c *Cluster) (raft.Transport, error) {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Logger:  hclogslog.New(c.log.With("part", "raft"), raftLevel),
		Stream:  &streamLayer{connQueue: w.port.openRaft(), port: w.port},
		MaxPool: 4,
		Timeout: c.timing.Call,
	}), nil
}

func (w *realWorld) tidy() {
	w.port.cut()
	w.peers.tidy()
}

func (w *realWorld) cut() { w.port.closeRaft() }

func (w *realWorld) stop(grace bool) {
	w.once.Do(func() {
		w.end()
		if grace {
			ctx, cancel := context.WithTimeout(context.Background(), farewellTime)
			_ = w.server.Shutdown(ctx)
			cancel()
		}
		w.port.close()
		_ = w.server.Close()
		w.peers.close()
	})
}
