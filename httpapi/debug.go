package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/palisade/palisade/httpapi/wire"
)

// debugBundleTime is how long making and sending a bundle may take.
const debugBundleTime = time.Minute

func (s *Server) addDebugBundle(api huma.API, op huma.Operation) {
	op.Description = "A gzipped tar of what this node knows of itself: status, config, metrics, recent log, goroutines, heap, rules. " +
		"Secrets are taken out; names and addresses of VMs and nodes are in it.\n\n" + op.Description
	op.Responses["200"] = &huma.Response{Description: "The bundle", Content: map[string]*huma.MediaType{"application/gzip": {}}}
	huma.Register(api, op, func(ctx context.Context, _ *struct{}) (*raw, error) {
		if s.opts.DebugBundle == nil {
			return nil, problem(wire.CodeNotFound, "this node makes no bundles")
		}
		select {
		case s.bundling <- struct{}{}: // one at a time: it costs memory and CPU
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return &raw{Body: func(c huma.Context) {
			defer func() { <-s.bundling }()
			_, w := humachi.Unwrap(c)
			s.debugBundle(ctx, w)
		}}, nil
	})
}

func (s *Server) debugBundle(ctx context.Context, w http.ResponseWriter) {
	ctx, cancel := context.WithTimeout(ctx, debugBundleTime)
	defer cancel()
	// A recorder in a test has no deadlines; a connection always has.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(debugBundleTime))
	w.Header().Set("Content-Type", "application/gzip")
	w.Header().Set("Content-Disposition", `attachment; filename="palisade-debug.tar.gz"`)
	if err := s.opts.DebugBundle(ctx, w); err != nil {
		s.log.Error("the debug bundle was cut off", "err", err)
		panic(http.ErrAbortHandler) //nolint:forbidigo // net/http's own way to cut it, and the middleware passes it on
	}
}
