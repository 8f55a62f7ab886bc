// Package web is the user interface that every node serves: the built page, embedded.
package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed dist
var dist embed.FS

// policy lets the page load and ask for nothing but what this node serves, and run no inline code or style.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; " +
	"base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// Cache-Control of what is named by its content's hash, and of the rest.
const (
	forever   = "public, max-age=31536000, immutable"
	askFirst  = "no-cache"
	indexFile = "index.html"
)

// file is one file of the build, ready to be sent.
type file struct {
	kind    string
	cache   string
	tag     string // ETag
	plain   []byte
	gzipped []byte // nil if that is not smaller
}

// Handler answers GET and HEAD with the page and its assets. Every path that has no file and does not look like
// one is a place inside of the page. It needs no login: what is in it is the same for everybody, and public.
func Handler() http.Handler {
	files, err := load(dist)
	if err != nil {
		panic("web: " + err.Error()) //nolint:forbidigo // the files are part of the binary: a build that is broken, found by the first test
	}
	return handler(files)
}

type handler map[string]*file

// ServeHTTP implements http.Handler.
func (files handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	f, ok := files[strings.TrimPrefix(path.Clean("/"+r.URL.Path), "/")]
	switch {
	case ok:
	case strings.HasPrefix(r.URL.Path, "/assets/"):
		// An asset of another build: the page must learn that it is gone, not get HTML for a script.
		h.Set("Cache-Control", askFirst)
		http.Error(w, "no such file", http.StatusNotFound)
		return
	default:
		f = files[indexFile] // a VM may have any name, also one that looks like a file's
	}
	h.Set("Content-Type", f.kind)
	h.Set("Cache-Control", f.cache)
	h.Set("ETag", f.tag)
	h.Set("Vary", "Accept-Encoding")
	body := f.plain
	if f.gzipped != nil && acceptsGzip(r.Header.Get("Accept-Encoding")) {
		h.Set("Content-Encoding", "gzip")
		h.Set("ETag", strings.TrimSuffix(f.tag, `"`)+`-gzip"`)
		body = f.gzipped
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// acceptsGzip reads an Accept-Encoding; who gives weights and refuses gzip gets it plain.
func acceptsGzip(accept string) bool {
	for part := range strings.SplitSeq(accept, ",") {
		name, weight, _ := strings.Cut(strings.TrimSpace(part), ";")
		if strings.TrimSpace(name) == "gzip" {
			q := strings.ReplaceAll(weight, " ", "")
			return q != "q=0" && !strings.HasPrefix(q, "q=0.0")
		}
	}
	return false
}

// load reads and compresses the build. It takes some 20 ms, once.
func load(fsys fs.FS) (map[string]*file, error) {
	files := map[string]*file{}
	err := fs.WalkDir(fsys, "dist", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		f := &file{kind: kindOf(name), cache: askFirst, tag: `"` + hex.EncodeToString(sum[:8]) + `"`, plain: b}
		name = strings.TrimPrefix(name, "dist/")
		if strings.HasPrefix(name, "assets/") {
			f.cache = forever
		}
		var z bytes.Buffer
		zw, err := gzip.NewWriterLevel(&z, gzip.BestCompression)
		if err != nil {
			return err
		}
		if _, err := zw.Write(b); err != nil {
			return err
		}
		if err := zw.Close(); err != nil {
			return err
		}
		if z.Len() < len(b) {
			f.gzipped = z.Bytes()
		}
		files[name] = f
		return nil
	})
	if err != nil {
		return nil, err
	}
	if files[indexFile] == nil {
		return nil, fs.ErrNotExist
	}
	return files, nil
}

// kindOf is the type of a file by its name. The system's table is not asked: it differs from node to node.
func kindOf(name string) string {
	switch path.Ext(name) {
	case ".html":
		return "text/html; charset=utf-8"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	return "application/octet-stream"
}
