// Package page answers the visitors of redirected targets: with the page that says so, or with what
// another HTTP server says. The kernel sends their connections here, whatever address they were for.
package page

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Hold is what a visitor of a redirected address gets.
type Hold struct {
	// To is the HTTP server that answers; if it is not valid, or does not answer, it is the page.
	To netip.AddrPort
	// Of the page. Text is plain, with line breaks; Link is an http or https URL or empty.
	Title, Text, Link string
}

// Options of a Server.
type Options struct {
	// Lookup returns the hold on the address that a visitor wanted; false for one that is not
	// redirected (any more). It is called for every request, concurrently.
	Lookup func(wanted netip.Addr) (Hold, bool)
	Logger *slog.Logger

	// Zero takes the defaults named.
	MaxConns    int           // at the same time, 1024
	MaxPerGuest int           // of them from one visitor (IPv6: a /64), 32
	Timeout     time.Duration // for the whole of one request and its answer, 30 s
	MaxBody     int64         // of a request that goes on to another server, 1 MiB

	// wanted replaces what the kernel says in tests.
	wanted func(net.Conn) (netip.AddrPort, error)
}

const (
	headerTimeout  = 5 * time.Second
	maxHeaderBytes = 16 << 10
	retryAfter     = "600" // seconds
)

// Server answers visitors. It keeps no connection open after an answer.
type Server struct {
	opts  Options
	http  *http.Server
	proxy http.Handler

	complaints complaints
	slots      *slots
	document   *template.Template
	policy     string
}

// New returns a server that does not listen yet.
func New(o Options) (*Server, error) {
	if o.Lookup == nil {
		return nil, errors.New("page: Options.Lookup is missing")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.wanted == nil {
		o.wanted = originalDestination
	}
	o.MaxConns, o.MaxPerGuest = max(o.MaxConns, 0), max(o.MaxPerGuest, 0)
	if o.MaxConns == 0 {
		o.MaxConns = 1024
	}
	if o.MaxPerGuest == 0 {
		o.MaxPerGuest = 32
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.MaxBody == 0 {
		o.MaxBody = 1 << 20
	}
	document, err := template.New("page").Parse(source)
	if err != nil {
		return nil, err
	}
	s := &Server{opts: o, slots: newSlots(o.MaxConns, o.MaxPerGuest), document: document, policy: stylePolicy()}
	s.proxy = s.newProxy()
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: min(headerTimeout, o.Timeout), ReadTimeout: o.Timeout, WriteTimeout: o.Timeout,
		MaxHeaderBytes: maxHeaderBytes,
		// Whoever sends no HTTP is no news.
		ErrorLog:    slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, wantedKey{}, c) },
	}
	// A connection for each request: the hold may be another by the next, and idle ones cost.
	s.http.SetKeepAlivesEnabled(false)
	return s, nil
}

// Serve answers on the listeners until ctx ends or one fails; it closes them. It may be called once.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	var wg sync.WaitGroup
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		wg.Go(func() { failed <- s.http.Serve(&listener{Listener: l, server: s}) })
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	// Visitors need no orderly end.
	err = errors.Join(err, s.http.Close())
	wg.Wait()
	return err
}

type wantedKey struct{}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, ok := r.Context().Value(wantedKey{}).(*conn)
	var hold Hold
	if ok {
		hold, ok = s.opts.Lookup(c.wanted.Addr())
	}
	if !ok {
		// The hold was lifted a moment ago: the next connection goes to the real server.
		panic(http.ErrAbortHandler) //nolint:forbidigo // net/http's own way to close without an answer
	}
	if hold.To.IsValid() && s.forward(w, r, hold) {
		return
	}
	s.page(w, r, &hold)
}

//go:embed page.html
var source string

//go:embed page.css
var style string

// page answers with the page, whatever was asked for.
func (s *Server) page(w http.ResponseWriter, r *http.Request, hold *Hold) {
	var b strings.Builder
	if err := s.document.Execute(&b, map[string]any{"Hold": hold, "Style": template.CSS(style)}); err != nil {
		s.opts.Logger.Error("can't make the page", "err", err)
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Retry-After", retryAfter)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Robots-Tag", "noindex")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", s.policy)
	w.WriteHeader(http.StatusServiceUnavailable)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(b.String())) // a visitor that is gone needs no answer
	}
}

// stylePolicy allows nothing but the page's own style.
func stylePolicy() string {
	sum := sha256.Sum256([]byte(style))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}
