package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/page"
	"github.com/palisade/palisade/fsm"
)

// pager serves the page of redirected targets. Only while it does, the kernel sends visitors to it:
// without it, Redirect drops everything, as a hold must not be open because it can't be kind.
type pager struct {
	log      *slog.Logger
	port     uint16
	store    *fsm.Store
	enforcer *enforcer
	// listeners are open and not served yet.
	listeners []net.Listener

	mu      sync.Mutex
	known   map[netip.Addr]lookedUp
	problem error
}

// lookedUp is what was found for an address a moment ago: finding it costs much more than answering.
type lookedUp struct {
	hold page.Hold
	ok   bool
	at   time.Time
}

const (
	pageRetry  = 5 * time.Second
	lookupKeep = time.Second
	maxLookups = 4096
)

// open takes the port, if it can be had. It is called before the enforcer runs, so that an agent that is
// started again finds its kernel as it wants it; who comes meanwhile waits.
func (p *pager) open(ctx context.Context) {
	listeners, err := p.listen(ctx)
	p.report(err)
	if err != nil {
		return
	}
	p.listeners = listeners
	p.enforcer.SetLocal(func(l *enforce.Local) { l.PagePort = p.port })
}

// Run serves until ctx ends; a port that can't be had is tried again.
func (p *pager) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if p.listeners == nil {
			p.open(ctx)
		}
		if p.listeners != nil {
			p.report(p.serve(ctx))
		}
		if ctx.Err() == nil {
			p.enforcer.SetLocal(func(l *enforce.Local) { l.PagePort = 0 })
			sleep(ctx, pageRetry)
		}
	}
	return nil
}

func (p *pager) serve(ctx context.Context) error {
	listeners := p.listeners
	p.listeners = nil // the server closes them
	server, err := page.New(page.Options{Lookup: p.lookup, Logger: p.log})
	if err != nil {
		closeAll(listeners)
		return err
	}
	return server.Serve(ctx, listeners...)
}

// listen listens for each family by itself, so that a node without IPv6 serves IPv4.
func (p *pager) listen(ctx context.Context) ([]net.Listener, error) {
	var out []net.Listener
	for _, network := range []string{"tcp4", "tcp6"} {
		l, err := new(net.ListenConfig).Listen(ctx, network, ":"+strconv.Itoa(int(p.port)))
		switch {
		case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EADDRNOTAVAIL):
			p.log.Info("this node does not have the network of a page", "network", network)
		case err != nil:
			closeAll(out)
			return nil, err
		default:
			out = append(out, l)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("port %d: neither IPv4 nor IPv6", p.port)
	}
	return out, nil
}

func (p *pager) report(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && (p.problem == nil || p.problem.Error() != err.Error()) {
		p.log.Error("can't serve the page of redirects: they drop everything", "err", err)
	}
	p.problem = err
}

// Warning is why there is no page, empty if there is.
func (p *pager) Warning() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.problem == nil {
		return ""
	}
	return "redirects drop everything, there is no page: " + p.problem.Error()
}

// lookup finds the hold that redirects visitors of an address, as the kernel decided when it sent one.
func (p *pager) lookup(wanted netip.Addr) (page.Hold, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if known, ok := p.known[wanted]; ok && now.Sub(known.at) < lookupKeep {
		return known.hold, known.ok
	}
	if p.known == nil || len(p.known) >= maxLookups {
		p.known = map[netip.Addr]lookedUp{}
	}
	found := lookedUp{at: now}
	found.hold, found.ok = redirectOf(p.store.View(), p.enforcer.Local(), wanted)
	p.known[wanted] = found
	return found.hold, found.ok
}

func redirectOf(view *fsm.View, local enforce.Local, wanted netip.Addr) (page.Hold, bool) {
	const tcp, http = 6, 80
	// Where it came from could make it stricter; then it would not have come here.
	e := enforce.Explain(view, local, fsm.Packet{Dst: wanted, Protocol: tcp, DstPort: http})
	if e.Verdict != fsm.VerdictRedirect {
		return page.Hold{}, false
	}
	b, ok := view.Block(e.Holds[0].Block)
	if !ok {
		return page.Hold{}, false
	}
	s := view.Settings()
	return page.Hold{To: b.RedirectTo, Title: s.RedirectTitle, Text: s.RedirectText, Link: s.RedirectLink}, true
}
