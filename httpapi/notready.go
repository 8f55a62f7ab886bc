package httpapi

import (
	"net/http"

	"github.com/palisade/palisade/httpapi/wire"
)

// NotReady answers every request with a problem: what a node does that can't serve the API yet. It says why.
func NotReady(why string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p := problem(wire.CodeNotReady, "%s", why)
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(p.Status)
		_ = marshalJSON(w, p)
	})
}
