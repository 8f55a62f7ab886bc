package page

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"time"
)

// marker is the header of what was forwarded once: a server that is itself redirected must not send it
// round again.
const marker = "Palisade-Redirected"

type forwardKey struct{}

// forwarded is a request on its way to another server.
type forwarded struct {
	to     netip.AddrPort
	failed error
}

// newProxy returns what hands a request to the server in its context.
func (s *Server) newProxy() http.Handler {
	dialer := &net.Dialer{Timeout: min(3*time.Second, s.opts.Timeout)}
	return &httputil.ReverseProxy{
		Transport: &http.Transport{ // no proxy from the environment
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				f, ok := ctx.Value(forwardKey{}).(*forwarded)
				if !ok {
					return nil, errors.New("page: a connection without a destination")
				}
				return dialer.DialContext(ctx, "tcp", f.to.String())
			},
			// Connections of one hold are not for another, and few requests come.
			DisableKeepAlives:      true,
			ResponseHeaderTimeout:  s.opts.Timeout / 2,
			MaxResponseHeaderBytes: 64 << 10,
		},
		Rewrite: func(p *httputil.ProxyRequest) {
			f, ok := p.In.Context().Value(forwardKey{}).(*forwarded)
			if !ok {
				return
			}
			p.SetURL(&url.URL{Scheme: "http", Host: f.to.String()})
			p.Out.Host = p.In.Host // the server tells the sites apart by it
			p.SetXForwarded()
			p.Out.Header.Set(marker, "1")
		},
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, err error) {
			if f, ok := r.Context().Value(forwardKey{}).(*forwarded); ok {
				f.failed = err
			}
		},
		ErrorLog: slog.NewLogLogger(s.opts.Logger.Handler(), slog.LevelDebug),
	}
}

// forward lets another server answer. It returns false, and has answered nothing, if that can't be.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, hold Hold) bool {
	if r.Header.Get(marker) != "" {
		// Any visitor can send the header: it must not fill the log.
		s.opts.Logger.Debug("refused to redirect a request in a circle", "to", hold.To)
		return false
	}
	if r.Method == http.MethodConnect {
		return false
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.opts.Timeout)
	defer cancel()
	f := &forwarded{to: hold.To}
	out := r.WithContext(context.WithValue(ctx, forwardKey{}, f))
	out.Header = r.Header.Clone()
	out.Header.Del("Upgrade") // a connection of another protocol would outlive every limit
	out.Body = http.MaxBytesReader(w, r.Body, s.opts.MaxBody)
	s.proxy.ServeHTTP(w, out)
	if f.failed != nil && r.Context().Err() == nil {
		if due, more := s.complaints.due(hold.To, time.Now()); due {
			s.opts.Logger.Warn("the server of a redirect does not answer; visitors get the page", "to", hold.To, "err", f.failed, "visitors_since_the_last_warning", more)
		}
	}
	return f.failed == nil
}
