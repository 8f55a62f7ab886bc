// Package httpapi serves the /v1 API of a node. Writes are proposed to the fleet; reads are answered
// from the state that this node has; changes are streamed as they come. Over the Unix socket root is
// admin, over TCP a token says what its holder may do. The node itself is seen only through Backend.
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/palisade/palisade/httpapi/login"
)

// maxConcurrentStreams bounds the requests under way in one HTTP/2 connection.
const maxConcurrentStreams = 128

// Server answers the /v1 API. It is safe for concurrent use.
type Server struct {
	opts    Options
	log     *slog.Logger
	now     func() time.Time
	mux     *chi.Mux
	openapi []byte
	metrics *metrics
	scrape  http.Handler
	memory  memory

	passwords *login.Passwords
	limiter   *login.Limiter
	refusals  *refusals
	uses      uses
	index     vmIndex
	pulse     pulse

	streams atomic.Int64
	conns   *conns
	// closing is closed when Serve's context ends: streams and waits end then.
	closing chan struct{}
	// bundling holds one token while a debug bundle is made.
	bundling chan struct{}
	once     sync.Once
	asks     sync.WaitGroup // calls to members that outlive the request that made them
}

// New wires a server; it starts nothing. It fails on bad options or a registry that already has the
// API's metrics.
func New(o Options) (*Server, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o.setDefaults()
	s := &Server{opts: o, log: o.Logger, now: o.Now, conns: newConns(o.MaxConns, o.MaxConnsPerSource), closing: make(chan struct{}), bundling: make(chan struct{}, 1)}
	var err error
	if s.metrics, err = newMetrics(o.Registry, s); err != nil {
		return nil, fmt.Errorf("httpapi: register metrics: %w", err)
	}
	s.passwords, s.limiter, s.refusals = login.NewPasswords(), login.NewLimiter(o.Now), newRefusals()
	s.index.feed, s.index.now = o.Backend.Watch, o.Backend.View
	s.scrape = promhttp.HandlerFor(o.Registry, promhttp.HandlerOpts{})
	s.mux = chi.NewMux()
	s.mux.NotFound(s.plain(s.serveUI))
	s.mux.MethodNotAllowed(s.plain(s.methodNotAllowed))
	compress, err := newCompression()
	if err != nil {
		return nil, fmt.Errorf("httpapi: %w", err)
	}
	api := huma.NewAPI(s.humaConfig(), &adapter{s, compress})
	for _, rt := range routes() {
		rt.register(s, api)
	}
	if s.openapi, err = document(api.OpenAPI()); err != nil {
		return nil, fmt.Errorf("httpapi: OpenAPI document: %w", err)
	}
	return s, nil
}

// Handler returns the API as a handler. Requests that do not come through Serve have no Unix peer, so
// they need a token.
func (s *Server) Handler() http.Handler { return s.mux }

// Serve answers on all listeners until ctx ends, then refuses new requests, ends event streams, gives
// requests in flight ShutdownTimeout, and returns nil. It owns the listeners and closes them. Callers
// on the Unix listener, which may be nil, are known by their uid; all others need a token. It returns
// early, with an error, if a listener fails. It is called once.
func (s *Server) Serve(ctx context.Context, tcp []net.Listener, unixSocket net.Listener) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := &http.Server{
		Handler:           s.mux,
		ReadHeaderTimeout: s.opts.ReadHeaderTimeout,
		ReadTimeout:       s.opts.ReadTimeout,
		WriteTimeout:      s.opts.WriteTimeout + maxWait,
		IdleTimeout:       s.opts.IdleTimeout,
		MaxHeaderBytes:    s.opts.MaxHeaderBytes,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxConcurrentStreams},
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext:       connContext,
		ConnState:         s.countConn,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	lns := tcp
	if unixSocket != nil {
		lns = append(append([]net.Listener(nil), tcp...), unixSocket)
	}
	failed := make(chan error, len(lns))
	var wg sync.WaitGroup
	wg.Go(func() { s.tellRefusals(base) })
	for _, ln := range lns {
		wg.Go(func() { failed <- srv.Serve(ln) })
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("httpapi: %w", err)
	}
	s.shut()
	grace, stop := context.WithTimeout(base, s.opts.ShutdownTimeout)
	defer stop()
	if serr := srv.Shutdown(grace); serr != nil {
		s.log.Warn("requests were cut off at shutdown", "error", serr)
		cancel()
		if cerr := srv.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}
	cancel()
	wg.Wait()
	s.asks.Wait()
	return err
}

// shut ends streams and waits.
func (s *Server) shut() { s.once.Do(func() { close(s.closing) }) }
