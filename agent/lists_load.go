package agent

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/fsm"
)

const (
	loaderPause = time.Second // between two looks at what is due
	loadTimeout = 5 * time.Minute
	// loadRetry is the pause after a failure, if the interval is not shorter.
	loadRetry = 5 * time.Minute
	// maxLoads is how many sources are asked at once: one that is slow must not keep the others waiting, and each
	// list that is being read is held in memory.
	maxLoads = 4
)

// listLoader loads lists that have a source, on the leader alone, a few at once. Whatever goes wrong, the content
// that a list has stays.
type listLoader struct {
	log     *slog.Logger
	node    string
	store   *fsm.Store
	status  func() fsm.Status
	propose proposeFunc
	open    func(list string, s fsm.ListSource) (string, error) // the whole URL of a source
	dir     string                                              // that files may be in
	client  *http.Client
	metrics loaderMetrics

	slots chan struct{} // one token for each load under way
	loads sync.WaitGroup

	mu    sync.Mutex
	lists map[string]*loading // its values are replaced, not changed
	busy  map[string]bool     // lists that are loaded just now, or wait for a slot
}

// loading is what is known of one list's source.
type loading struct {
	source fsm.ListSource
	due    time.Time
	// What the source said of the content of a revision, so that it is not loaded again.
	revision       uint64
	etag, modified string
	note           string // of what was left out of that
	status         fsm.SourceStatus
	failed         bool
}

type loaderMetrics struct {
	loads    prometheus.Counter
	failures prometheus.Counter
}

func newListLoader(log *slog.Logger, reg prometheus.Registerer, node string, store *fsm.Store, status func() fsm.Status, propose proposeFunc, open func(string, fsm.ListSource) (string, error), dir string) *listLoader {
	m := loaderMetrics{
		loads:    prometheus.NewCounter(prometheus.CounterOpts{Name: "palisade_list_loads_total", Help: "Times that this node, as the leader, asked the source of a list."}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "palisade_list_load_failures_total", Help: "Times that a list could not be loaded from its source."}),
	}
	reg.MustRegister(m.loads, m.failures)
	return &listLoader{
		log: log, node: node, store: store, status: status, propose: propose, open: open, dir: dir, metrics: m,
		client: &http.Client{Timeout: loadTimeout, CheckRedirect: sameSafety}, lists: map[string]*loading{},
		slots: make(chan struct{}, maxLoads), busy: map[string]bool{},
	}
}

// sameSafety follows few redirects, none from https to http, and none from another host to what this node
// alone reaches: who runs the server of a list must not have it ask the node's own services.
func sameSafety(req *http.Request, via []*http.Request) error {
	const most = 5
	if len(via) > most {
		return fmt.Errorf("more than %d redirects", most)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errors.New("a redirect from https to " + req.URL.Scheme)
	}
	host := req.URL.Hostname()
	if host == via[0].URL.Hostname() {
		return nil
	}
	found, err := net.DefaultResolver.LookupNetIP(req.Context(), "ip", host)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(found, func(a netip.Addr) bool { return !a.Unmap().IsGlobalUnicast() }) {
		return errors.New("a redirect to a loopback or link-local address")
	}
	return nil
}

// Run loads until ctx ends.
func (l *listLoader) Run(ctx context.Context) error {
	defer l.loads.Wait()
	for {
		l.step(ctx, time.Now())
		if !sleep(ctx, loaderPause) {
			return nil
		}
	}
}

// Statuses says how the loading of each list went that this node has asked for; nil on one that does not lead.
func (l *listLoader) Statuses() map[string]fsm.SourceStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out map[string]fsm.SourceStatus
	for name, s := range l.lists {
		if s.status.CheckedAt.IsZero() {
			continue
		}
		if out == nil {
			out = map[string]fsm.SourceStatus{}
		}
		out[name] = s.status
	}
	return out
}

// Failing is how many lists could not be loaded when they were tried last, and the name of one.
func (l *listLoader) Failing() (n int, of string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, s := range l.lists {
		if s.failed {
			n++
			of = name
		}
	}
	return n, of
}

// step begins to load what is due.
func (l *listLoader) step(ctx context.Context, now time.Time) {
	v, st := l.store.View(), l.status()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !st.Quorum || st.Leader != l.node || !st.CaughtUp {
		clear(l.lists)
		return
	}
	for name := range l.lists {
		if list, _, ok := v.List(name); !ok || list.Source != l.lists[name].source {
			delete(l.lists, name)
		}
	}
	for list := range v.Lists("") {
		if list.Source == (fsm.ListSource{}) {
			continue
		}
		if l.lists[list.Name] == nil {
			l.lists[list.Name] = &loading{source: list.Source, due: now}
		}
		if !l.busy[list.Name] && !l.lists[list.Name].due.After(now) {
			l.busy[list.Name] = true
			was := l.lists[list.Name]
			l.loads.Go(func() { l.load(ctx, list.Name, was, now) })
		}
	}
}

// load loads one list and notes how it went, unless its source was changed meanwhile or this node leads no more.
func (l *listLoader) load(ctx context.Context, name string, was *loading, now time.Time) {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.busy, name)
	}()
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return
	}
	s := *was
	l.metrics.loads.Inc()
	err := l.try(ctx, name, &s)
	if ctx.Err() != nil {
		return
	}
	s.due = now.Add(s.source.Interval)
	s.status, s.failed = fsm.SourceStatus{CheckedAt: now, Error: s.note}, err != nil
	if err != nil {
		l.metrics.failures.Inc()
		s.due = now.Add(min(s.source.Interval, loadRetry))
		s.status.Error = err.Error()
		s.revision = 0 // what came is not what the list has
		l.log.Warn("a list could not be loaded; it stays as it is", "list", name, "err", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lists[name] == was {
		l.lists[name] = &s
	}
}

// try brings the list to what its source has.
func (l *listLoader) try(ctx context.Context, name string, s *loading) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	list, was, ok := l.store.View().List(name)
	if !ok {
		return nil
	}
	if list.Revision != s.revision {
		s.etag, s.modified = "", "" // they are of another content
	}
	p, fresh, err := l.fetch(ctx, name, s)
	if err != nil || !fresh {
		return err
	}
	set, _ := p.Set()
	note := ""
	switch {
	case set.Len() == 0:
		return errors.New("it has no entry")
	case p.Bad > set.Len():
		return fmt.Errorf("it is no list: %d lines are no address or CIDR, for example line %d: %s", p.Bad, p.Problems[0].Line, p.Problems[0].Detail)
	case set.Len() > fsm.MaxListPrefixes:
		return fmt.Errorf("it has %d prefixes, a list has at most %d", set.Len(), fsm.MaxListPrefixes)
	case p.Bad > 0:
		note = fmt.Sprintf("%d lines were left out, for example line %d: %s", p.Bad, p.Problems[0].Line, p.Problems[0].Detail)
	}
	revision, err := l.replace(ctx, list, was, set)
	if err != nil {
		return err
	}
	s.revision, s.note = revision, note
	return nil
}

// fetch asks the source. fresh is false if it has what was loaded last.
func (l *listLoader) fetch(ctx context.Context, name string, s *loading) (p *fsm.ListParser, fresh bool, err error) {
	whole, err := l.open(name, s.source)
	if err != nil {
		return nil, false, err
	}
	u, err := url.Parse(whole)
	if err != nil {
		return nil, false, errors.New("the URL can't be read")
	}
	var body io.ReadCloser
	if u.Scheme == "file" {
		body, fresh, err = l.openFile(u.Path, s)
	} else {
		body, fresh, err = l.get(ctx, u, s)
	}
	if err != nil || !fresh {
		return nil, false, err
	}
	defer body.Close()
	text, err := unpacked(body, s.source.MaxBytes)
	if err != nil {
		return nil, false, err
	}
	p = &fsm.ListParser{}
	return p, true, p.ReadText(text)
}

// openFile opens a file in the directory for lists. A link out of it is not followed.
func (l *listLoader) openFile(path string, s *loading) (io.ReadCloser, bool, error) {
	rel, err := filepath.Rel(l.dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return nil, false, fmt.Errorf("%s is not in %s, where files of lists have to be on every node", path, l.dir)
	}
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = root.Close() }()
	st, err := root.Stat(rel)
	if err != nil {
		return nil, false, err
	}
	if !st.Mode().IsRegular() {
		return nil, false, fmt.Errorf("%s is no regular file", path)
	}
	version := fmt.Sprintf("%d %d", st.Size(), st.ModTime().UnixNano())
	if version == s.modified {
		return nil, false, nil
	}
	f, err := root.Open(rel)
	if err != nil {
		return nil, false, err
	}
	s.modified = version
	return f, true, nil
}

func (l *listLoader) get(ctx context.Context, u *url.URL, s *loading) (io.ReadCloser, bool, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return nil, false, errors.New("the URL can't be asked for")
	}
	if s.etag != "" {
		req.Header.Set("If-None-Match", s.etag)
	} else if s.modified != "" {
		req.Header.Set("If-Modified-Since", s.modified)
	}
	res, err := l.client.Do(req)
	if err != nil {
		if inner := (*url.Error)(nil); errors.As(err, &inner) {
			err = inner.Err // without the URL, which may have a password
		}
		return nil, false, err
	}
	switch res.StatusCode {
	case http.StatusOK:
		s.etag, s.modified = res.Header.Get("ETag"), res.Header.Get("Last-Modified")
		return res.Body, true, nil
	case http.StatusNotModified:
		return nil, false, res.Body.Close()
	}
	_ = res.Body.Close()
	return nil, false, errors.New("the server answered " + res.Status)
}

// unpacked reads what may be packed by gzip, up to a number of bytes after unpacking.
func unpacked(r io.Reader, most uint64) (io.Reader, error) {
	b := bufio.NewReader(r)
	var text io.Reader = b
	if magic, err := b.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("unpack: %w", err)
		}
		text = z
	}
	return &bounded{from: text, left: int64(min(most, fsm.MaxListBytes))}, nil
}

// bounded fails when there is more than it may read.
type bounded struct {
	from io.Reader
	left int64
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errors.New("it is larger than the source may be")
	}
	return n, err
}

// replace puts the content in place, unless somebody changed the list meanwhile. It returns the revision that the
// list then has.
func (l *listLoader) replace(ctx context.Context, list *fsm.List, was, set fsm.PrefixSet) (uint64, error) {
	origin := list.Source.URL
	if list.Hash == set.Hash() {
		return list.Revision, nil
	}
	if op, small := fsm.PatchFrom(list, was, set); small && list.Origin == origin {
		return l.commit(ctx, op)
	}
	id := rand.Text()
	for op := range fsm.UploadOps(id, list.Name, origin, set) {
		if err := l.part(ctx, op); err != nil {
			return 0, err
		}
	}
	return l.commit(ctx, fsm.CommitList{Upload: id, IfRevision: list.Revision})
}

func (l *listLoader) command(key string, op fsm.Op) fsm.Command {
	return fsm.Command{Actor: "node:" + l.node, From: "source", Key: key, Op: op}
}

// part proposes a part of an upload, which can be repeated. What is left of an upload that fails is dropped for
// newer ones.
func (l *listLoader) part(ctx context.Context, op fsm.Op) error {
	for {
		res, err := l.propose(ctx, l.command("", op))
		switch {
		case err == nil && res.Err != nil:
			return res.Err
		case err == nil:
			return nil
		case !errors.Is(err, fsm.ErrUnknown) || ctx.Err() != nil:
			return err
		}
	}
}

func (l *listLoader) commit(ctx context.Context, op fsm.Op) (uint64, error) {
	res, err := l.propose(ctx, l.command(rand.Text(), op))
	if err != nil {
		return 0, err
	}
	if res.Err != nil {
		return 0, res.Err
	}
	if res.List == nil {
		return 0, fmt.Errorf("the write at index %d has no list in its result", res.Index)
	}
	l.log.Info("a list was loaded from its source", "list", res.List.Name, "entries", res.List.Size, "index", res.Index)
	return res.List.Revision, nil
}
