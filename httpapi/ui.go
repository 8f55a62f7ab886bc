package httpapi

import (
	"net/http"
	"strings"
)

// serveUI answers what no route takes: the web UI, if there is one, else a problem. The UI is static files, which tell
// nothing and need no caller; it sets its own headers on what may be kept and what a page may load. Nothing under /v1 is ever
// a page: a client that got the path wrong must hear so.
func (s *Server) serveUI(w http.ResponseWriter, r *http.Request) {
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	if s.opts.UI == nil || !read || r.URL.Path == "/v1" || strings.HasPrefix(r.URL.Path, "/v1/") {
		s.notFound(w, r)
		return
	}
	s.opts.UI.ServeHTTP(w, r)
}
