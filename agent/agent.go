// Package agent is one peer: the composition root of its rooms, and the loops between them, one loop
// a file.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/palisade/palisade/cluster"
	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/canary"
	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi"
	"github.com/palisade/palisade/internal/logs"
	"github.com/palisade/palisade/web"
)

// Agent is the peer on this node.
type Agent struct {
	cfg     Config
	version string
	log     *slog.Logger
	recent  func() []byte // the newest lines of the log
	passed  []*os.File    // sockets of the API from the service manager
}

// New checks what can be checked without starting anything. version is that of the build.
func New(cfg Config, version string, to *logs.Log) (*Agent, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Agent{cfg: cfg, version: version, log: to.Logger().With("node", cfg.Node.ID), recent: to.Recent}, nil
}

// rooms are the parts of a running agent.
type rooms struct {
	store     *fsm.Store
	kernel    *nft.Kernel
	cluster   *cluster.Cluster
	enforcer  *enforcer
	lists     *listEnforcer
	listTable *nft.Lists
	sources   *sourceEnforcer
	bindings  *nft.Sources
	loader    *listLoader
	links     *linkMonitor // subscribe in wire: it runs with the enforcer
	bridges   *bridges
	binder    *tapBinder
	devices   *devices
	announcer *announcer
	observer  *observer // nil without an inventory
	registrar *registrar
	clock     *fleetClock
	scheduler *scheduler
	renewer   *renewer
	auditor   *auditor
	pager     *pager
	saver     *bootSaver
	incidents *incidents
	canary    *canaryLoop
	watchdog  *watchdog
	agreement *agreement
	sightings *sightings
	api       *httpapi.Server
	tcp       []net.Listener
	socket    net.Listener
	caughtUp  chan struct{}
}

// fatalGrace is how long an orderly stop may take after a fatal error.
const fatalGrace = 3 * time.Second

// errFatal ends Run when going on would risk the log. The kernel goes on enforcing.
var errFatal = errors.New("stopped so that nothing is lost; the kernel goes on enforcing")

// Run is the agent's life. It returns when ctx ends or a part fails; the kernel keeps every rule. When the fleet goes on
// without what this node holds, it begins anew; while the fleet refuses this node, it waits.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	manager := newService(a.log.With("room", "service"))
	var telling sync.WaitGroup
	defer telling.Wait()
	defer cancel(nil)
	telling.Go(func() { manager.run(ctx) })
	a.passed = activated() // they are there once, and serve every life
	defer func() {
		for _, f := range a.passed {
			_ = f.Close()
		}
	}()
	for {
		id, err := a.awaitIdentity(ctx, manager)
		if ctx.Err() != nil {
			return nil // it was told to stop before there was anything to do
		}
		if err != nil {
			return err
		}
		err = a.live(ctx, id, manager)
		_, superseded := errors.AsType[*cluster.SupersededError](err)
		refused, out := errors.AsType[*cluster.RefusedError](err)
		switch {
		case superseded:
			a.log.Warn("beginning anew", "why", err)
		case out:
			if err := a.waitOutside(ctx, manager, id, refused.Why); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// live takes part in the fleet. The order of start: what the kernel holds is adopted before raft may vote or apply, the
// enforcer runs before the first entry arrives, and the API answers last. Stop is the reverse.
func (a *Agent) live(ctx context.Context, id *cluster.Identity, manager *service) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r, held, err := a.wire(ctx, id, func(err error) {
		cancel(fmt.Errorf("%w: %w", errFatal, err))
		// Behind a disk that hangs nothing can be stopped in order, and not even a word be written: the
		// log may be there too.
		time.AfterFunc(fatalGrace, func() { os.Exit(1) })
	})
	if err != nil {
		return err
	}
	defer func() { _, _, _ = r.kernel.Close(), r.listTable.Close(), r.bindings.Close() }() // the connections alone: what the kernel holds stays

	// Each group ends before the one started before it.
	groups := [][]part{
		{{"boot ruleset", r.saver.Run}},
		{{"memory", tuneMemory}, {"enforcer", func(ctx context.Context) error { return r.enforcer.Run(ctx, held) }}, {"lists", r.lists.Run}, {"source guard", r.sources.Run}, {"links", r.links.Run}, {"bridges", r.bridges.Run}, {"taps", r.binder.Run}, {"devices", r.devices.Run}},
		{{"cluster", r.cluster.Run}},
		{{"catch-up", func(ctx context.Context) error { return a.catchUp(ctx, r) }}, {"registrar", r.registrar.Run}, {"certificates", r.renewer.Run}, {"announcer", r.announcer.Run}, {"audit", r.auditor.Run}, {"page", r.pager.Run}, {"drops", r.enforcer.series.Run}, {"watchdog", r.watchdog.Run}, {"agreement", r.agreement.Run}, {"incidents", r.incidents.Run}, {"canary", r.canary.Run}, {"scheduler", r.scheduler.Run}, {"list sources", r.loader.Run}},
		{{"api", func(ctx context.Context) error { return r.api.Serve(ctx, r.tcp, r.socket) }}},
	}
	if r.observer != nil {
		groups[3] = append(groups[3], part{"inventory", r.observer.Run})
	}
	manager.set(a.lookAround(r))
	a.log.Info("agent runs", "version", a.version, "fleet", id.Fleet(), "socket", a.cfg.API.Socket)
	err = runGroups(ctx, cancel, groups)
	if cause := context.Cause(ctx); errors.Is(cause, errFatal) {
		return cause
	}
	return err
}

// part is one long-lived function of the agent.
type part struct {
	name string
	run  func(context.Context) error
}

// runGroups starts the groups in order and waits for ctx to end or for any part to return; then it
// stops the groups in reverse order, each entirely before the next.
func runGroups(ctx context.Context, cancel context.CancelCauseFunc, groups [][]part) error {
	failed := make(chan error, 1)
	var stops []func()
	for _, g := range groups {
		gctx, stop := context.WithCancel(context.WithoutCancel(ctx))
		var wg sync.WaitGroup
		for _, p := range g {
			wg.Go(func() {
				err := p.run(gctx)
				if gctx.Err() == nil {
					if err == nil {
						err = errors.New("ended by itself")
					}
					select {
					case failed <- fmt.Errorf("%s: %w", p.name, err):
					default:
					}
				}
			})
		}
		stops = append(stops, func() { stop(); wg.Wait() })
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		cancel(err)
	}
	for i := len(stops) - 1; i >= 0; i-- {
		stops[i]()
	}
	return err
}

func (a *Agent) wire(ctx context.Context, id *cluster.Identity, fatal func(error)) (_ *rooms, held nft.Held, err error) {
	r := &rooms{store: fsm.NewStore(), caughtUp: make(chan struct{}), sightings: newSightings()}
	defer func() {
		if err != nil {
			r.release()
		}
	}()
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	presented, own, err := a.certifier()
	if err != nil {
		return r, held, err
	}
	if r.socket, err = listenSocket(ctx, a.cfg.API.Socket); err != nil {
		return r, held, err
	}
	if r.tcp, err = listenAPI(ctx, a.cfg.API.Listen, tlsOfAPI(presented), a.passed); err != nil {
		return r, held, err
	}
	if _, err := Boot(ctx, a.cfg, a.log.With("room", "boot")); err != nil {
		// The fleet knows what to block; only until this node has caught up, its kernel may not.
		a.log.Error("the saved ruleset is not loaded", "err", err)
	}
	if r.kernel, err = nft.Open(nft.Options{Logger: a.log.With("room", "kernel")}); err != nil {
		return r, held, fmt.Errorf("open nftables: %w", err)
	}
	if held, err = r.kernel.Adopt(ctx); err != nil {
		return r, held, fmt.Errorf("adopt the kernel's rules: %w", err)
	}
	a.log.Info("adopted the kernel's rules", "index", held.Index, "elements", len(held.Elements), "intact", held.Intact)
	r.saver = newBootSaver(a.log.With("room", "boot"), a.cfg.bootDir(), held, r.caughtUp)
	r.enforcer = newEnforcer(a.log.With("room", "enforcer"), reg, r.store, savedKernel{r.kernel, r.saver}, a.cfg.Node.ID, r.caughtUp)
	missing, err := r.kernel.Missing(ctx)
	if err != nil {
		return r, held, fmt.Errorf("ask the kernel what it can do: %w", err)
	}
	r.enforcer.lacks(missing)
	if r.listTable, err = nft.OpenLists(nft.Options{Logger: a.log.With("room", "lists")}); err != nil {
		return r, held, fmt.Errorf("open nftables for lists: %w", err)
	}
	r.lists = newListEnforcer(a.log.With("room", "lists"), reg, r.store, savedLists{r.listTable, r.saver}, r.caughtUp)
	if r.bindings, err = nft.OpenSources(nft.Options{Logger: a.log.With("room", "sources")}); err != nil {
		return r, held, fmt.Errorf("open nftables for sources: %w", err)
	}
	r.sources = newSourceEnforcer(a.log.With("room", "sources"), reg, r.store, r.bindings, r.caughtUp)
	r.enforcer.lists, r.enforcer.sources = r.lists, r.sources
	r.enforcer.clock = r.fleetTime
	r.links = newLinkMonitor(a.log.With("room", "links"))
	r.bridges = newBridges(r.links, r.enforcer.setBridges)
	r.binder = newTapBinder(r.store, r.links, r.enforcer.SetLocal)
	r.devices = newDevices(a.log.With("room", "devices"), r.links, r.kernel, r.lists)
	r.enforcer.loose = r.kernel.Unenforced
	r.announcer = newAnnouncer(a.log.With("room", "announcer"), a.cfg.Node.ID, r.store.View, r.enforcer)
	r.enforcer.freed = r.announcer.Freed
	r.auditor = &auditor{
		log: a.log.With("room", "audit"), opts: a.cfg.audit(a.log.With("room", "audit")), node: a.cfg.Node.ID, store: r.store,
		caughtUp: r.caughtUp, members: r.Members, ask: r.Ask, metrics: newAuditMetrics(reg), timing: defaultAuditTiming(),
	}
	r.auditor.hold()
	r.pager = &pager{log: a.log.With("room", "page"), port: a.cfg.Redirect.Port, store: r.store, enforcer: r.enforcer}
	r.pager.open(ctx)
	r.clock = newFleetClock(r.Members, r.Ask)
	if r.cluster, err = a.newCluster(r, id, held.Index, reg, fatal); err != nil {
		return r, held, err
	}
	r.incidents = newIncidents(a.log.With("room", "incidents"), a.cfg.Node.ID, r.cluster.Propose)
	r.incidents.drifted(r.enforcer.drift)
	r.incidents.drifted(r.lists.drift)
	r.incidents.drifted(r.sources.drift)
	a.wireCanary(r, reg)
	driver, err := a.cfg.Inventory.newDriver(a.log.With("room", "inventory"), r.links.hints)
	if err != nil {
		return r, held, err
	}
	taps := func() map[string]bool { return nil }
	if driver != nil {
		r.observer = newObserver(a.log.With("room", "inventory"), a.cfg.Node.ID, r, driver)
		taps = r.observer.taps
		r.devices.changed = r.observer.relabel
	}
	r.registrar = &registrar{
		log: a.log.With("room", "registrar"), cfg: a.cfg, version: a.version,
		store: r.store, propose: r.cluster.Propose, enforcer: r.enforcer, taps: taps, generation: id.Generation,
	}
	r.renewer = &renewer{
		log: a.log.With("room", "certificates"), store: r.store, cluster: r.cluster, api: own, file: a.cfg.CAFile(),
		names: func() ([]string, []netip.Addr) { return a.apiNames(r.registrar) }, now: time.Now, timing: defaultRenewalTiming(),
	}
	r.scheduler = &scheduler{
		log: a.log.With("room", "scheduler"), node: a.cfg.Node.ID, store: r.store,
		status: r.cluster.Status, clock: r.clock, propose: r.cluster.Propose,
		started: func(ids map[string]struct{}) {
			r.enforcer.SetLocal(func(l *enforce.Local) { l.Started = ids })
		},
		enforced: func() uint64 {
			blocks, _ := r.enforcer.Standing()
			lists, _ := r.lists.Standing() // follow the state by themselves
			return min(blocks, lists)
		},
		metrics: newSchedulerMetrics(reg),
	}
	r.loader = newListLoader(a.log.With("room", "lists"), reg, a.cfg.Node.ID, r.store, r.cluster.Status, r.cluster.Propose, r.cluster.SourceURL, a.cfg.Lists.Dir)
	r.agreement = &agreement{node: a.cfg.Node.ID, store: r.store, status: r.cluster.Status, ask: r.cluster.Ask}
	r.watchdog = r.newWatchdog(a.log.With("room", "watchdog"), reg, a.version)
	provider, err := newOIDC(a.cfg.API.OIDC)
	if err != nil {
		return r, held, err
	}
	bundle := &bundler{cfg: a.cfg, version: a.version, rooms: r, reg: reg, recent: a.recent, scrub: logs.NewScrubber(), now: time.Now}
	r.api, err = httpapi.New(httpapi.Options{
		Backend: r, DebugBundle: bundle.Write, Audit: r.auditor, Backups: &backups{
			node: a.cfg.Node.ID, version: a.version, store: r.store, members: r.Members, sealKey: id.SealKey, now: time.Now,
		}, UI: web.Handler(), OIDC: provider, Registry: reg, LibvirtHook: a.libvirtHook(r.observer),
		Logger: a.log.With("room", "api"), Version: a.version,
	})
	return r, held, err
}

func (a *Agent) wireCanary(r *rooms, reg prometheus.Registerer) {
	log := a.log.With("room", "canary")
	var b bird
	if a.cfg.Canary.Mode == canaryOn {
		b = canary.New(canary.Options{Logger: log})
		r.enforcer.canary = canary.Elements()
	}
	r.canary = newCanaryLoop(log, reg, b)
	r.canary.tell = r.incidents.Tell
	r.canary.ready = func() bool { enforced, _ := r.enforcer.Standing(); return enforced > 0 }
}

func (r *rooms) release() {
	if r.pager != nil {
		closeAll(r.pager.listeners)
	}
	closeAll(r.tcp)
	if r.socket != nil {
		_ = r.socket.Close()
	}
	if r.kernel != nil {
		_ = r.kernel.Close()
	}
	if r.listTable != nil {
		_ = r.listTable.Close()
	}
	if r.bindings != nil {
		_ = r.bindings.Close()
	}
}

// certifier is what gives the API its certificate; own is set if that is of the fleet's authority.
func (a *Agent) certifier() (presented certifier, own *fleetCertificate, err error) {
	if a.cfg.API.TLSCert != "" {
		presented, err = newFileCertificate(a.log.With("room", "api"), a.cfg.API.TLSCert, a.cfg.API.TLSKey, time.Now)
		return presented, nil, err
	}
	own, err = newFleetCertificate(filepath.Join(a.cfg.DataDir, identityDir))
	return own, own, err
}

func (a *Agent) newCluster(r *rooms, id *cluster.Identity, known uint64, reg prometheus.Registerer, fatal func(error)) (*cluster.Cluster, error) {
	return cluster.New(cluster.Options{
		ID: a.cfg.Node.ID, Version: a.version, Dir: filepath.Join(a.cfg.DataDir, "raft"),
		Bind: a.cfg.Cluster.Listen, GossipBind: a.cfg.Cluster.Gossip,
		Identity: id, Lifetime: a.cfg.Cluster.CertificateLifetime.Duration,
		Store: r.store, KnownIndex: known, Clock: r.clock.Stamp,
		Answer:     func(ctx context.Context, q fsm.Query) (fsm.Report, error) { return a.answer(ctx, r, q) },
		OnSighting: func(s fsm.Sighting) { r.sightings.put(r.store.View(), s) },
		Fatal:      fatal, Logger: a.log.With("room", "cluster"), Registry: reg,
	})
}

// catchUp closes r.caughtUp once this node's state is at least as new as everything that was committed
// when it started. From then on the enforcer may remove, and the observer may claim.
func (a *Agent) catchUp(ctx context.Context, r *rooms) error {
	const pause = 200 * time.Millisecond
	for {
		index, err := r.cluster.ReadIndex(ctx)
		if err == nil {
			a.log.Info("caught up with the fleet", "index", index)
			close(r.caughtUp)
			<-ctx.Done()
			return nil
		}
		if !sleep(ctx, pause) {
			return nil
		}
	}
}
