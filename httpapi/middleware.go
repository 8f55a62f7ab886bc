package httpapi

import (
	"context"
	"errors"
	"net/http"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"

	"github.com/palisade/palisade/httpapi/wire"
)

// jsonContext answers in JSON whatever the caller accepts: there is no other form, and a caller that
// accepts problems too must not get everything as one.
type jsonContext struct{ humaContext }

type humaContext = huma.Context // embedded under another name: the interface has a method Context

func newContext(op *huma.Operation, w http.ResponseWriter, r *http.Request) huma.Context {
	return jsonContext{humachi.NewContext(op, r, w)}
}

// Header implements huma.Context.
func (c jsonContext) Header(name string) string {
	if name == "Accept" {
		return ""
	}
	return c.humaContext.Header(name)
}

// Unwrap lets humachi reach the request and the response.
func (c jsonContext) Unwrap() huma.Context { return c.humaContext }

// recorder notes the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// guarded admits only callers that the route is for, counts the request, and answers a panic.
func (s *Server) guarded(rt *route, rm *routeMetrics, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &recorder{ResponseWriter: w}
		defer s.finish(rec, r, rm, start)
		h := rec.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		c, p := s.authorize(r, rt)
		if p != nil {
			if p.Code == wire.CodeUnauthorized {
				h.Set("WWW-Authenticate", `Bearer realm="palisade"`)
			}
			writeProblem(rec, p)
			return
		}
		if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
			// A small body could become a large one, past every limit.
			writeProblem(rec, problem(wire.CodeMediaType, "Content-Encoding %q is not supported; send the body as it is", echo(e)))
			return
		}
		if !utf8.ValidString(r.URL.Path) {
			// What the path names goes into commands, which hold only text.
			writeProblem(rec, fieldProblem("path", nil, "the path is not valid UTF-8"))
			return
		}
		ctx := context.WithValue(r.Context(), callerKey{}, &c)
		next(rec, r.WithContext(ctx))
	}
}

func (s *Server) finish(rec *recorder, r *http.Request, rm *routeMetrics, start time.Time) {
	v := recover()
	cause, _ := v.(error)
	if v != nil && !errors.Is(cause, http.ErrAbortHandler) {
		s.log.Error("request panicked", "method", r.Method, "route", rm.route, "panic", v, "stack", string(debug.Stack()))
		if rec.status == 0 {
			writeProblem(rec, problem(wire.CodeInternal, "the request could not be answered"))
			v = nil
		}
	}
	code := rec.status
	if code == 0 {
		code = http.StatusOK
	}
	rm.observe(code, time.Since(start))
	if v != nil {
		// The answer is cut: the caller must not take it for whole.
		panic(http.ErrAbortHandler) //nolint:forbidigo // net/http's own way to cut it, and it recovers
	}
}

// plain wraps the handlers of requests that no route takes. They need no caller: they tell nothing.
func (s *Server) plain(next http.HandlerFunc) http.HandlerFunc {
	return s.guarded(&route{scope: scopeOpen}, s.metrics.route("none", "any", true), next)
}

func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	writeProblem(w, problem(wire.CodeNotFound, "there is no %s; /openapi.json lists what there is", echo(r.URL.Path)))
}

func (s *Server) methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	path := r.URL.RawPath
	if path == "" {
		path = r.URL.Path
	}
	var allowed []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		if s.mux.Match(chi.NewRouteContext(), m, path) {
			allowed = append(allowed, m)
		}
	}
	list := strings.Join(allowed, ", ")
	w.Header().Set("Allow", list)
	writeProblem(w, problem(wire.CodeMethod, "%s is not allowed here; allowed: %s", echo(r.Method), list))
}
