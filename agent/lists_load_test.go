package agent

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/fsm"
)

// loadBench is a loader on a leader of one, and a server that it loads from.
type loadBench struct {
	*bench

	loader *listLoader
	leader string
	now    time.Time
	server *httptest.Server

	mu      sync.Mutex
	body    []byte
	code    int
	asked   int
	etags   []string // that the loader sent
	query   string   // of the last request
	refused bool     // the next proposal of a part gets no answer
}

func newLoadBench(t *testing.T) *loadBench {
	t.Helper()
	b := &loadBench{bench: newBench(t, 0), leader: "n1", now: time.Unix(1_800_000_000, 0), code: http.StatusOK}
	b.server = httptest.NewServer(http.HandlerFunc(b.serve))
	t.Cleanup(b.server.Close)
	status := func() fsm.Status { return fsm.Status{Node: "n1", Leader: b.leader, Quorum: true, CaughtUp: true} }
	b.loader = newListLoader(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), "n1", b.store, status, b.propose, opened, t.TempDir())
	return b
}

// opened opens what this test has for sealed: the query.
func opened(_ string, s fsm.ListSource) (string, error) {
	return strings.Replace(s.URL, "xxxxx", s.Sealed, 1), nil
}

func (b *loadBench) serve(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	b.etags = append(b.etags, r.Header.Get("If-None-Match"))
	b.query = r.URL.RawQuery
	etag := fmt.Sprintf(`"%x"`, b.body)
	if b.code == http.StatusOK && r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("ETag", etag)
	w.WriteHeader(b.code)
	_, _ = w.Write(b.body)
}

func (b *loadBench) propose(_ context.Context, c fsm.Command) (fsm.Result, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, part := c.Op.(fsm.AddListChunk); part && b.refused {
		b.refused = false
		return fsm.Result{}, fsm.ErrUnknown
	}
	b.index++
	data, err := fsm.MarshalCommand(c)
	if err != nil {
		return fsm.Result{}, err
	}
	r, err := b.store.ApplyBatch([]fsm.Entry{{Index: b.index, Data: data}})
	if err != nil {
		return fsm.Result{}, err
	}
	return r[0], nil
}

// step lets time pass and returns what is on the list.
func (b *loadBench) step(d time.Duration, code int, body string) []string {
	b.t.Helper()
	b.mu.Lock()
	b.code, b.body = code, []byte(body)
	b.mu.Unlock()
	b.now = b.now.Add(d)
	b.loader.step(b.t.Context(), b.now)
	b.loader.loads.Wait()
	_, set, _ := b.store.View().List("feed")
	var out []string
	for p := range set.All() {
		out = append(out, p.String())
	}
	return out
}

func (b *loadBench) source(url string, most uint64) {
	b.t.Helper()
	b.describe(fsm.ListSource{URL: url, Interval: time.Hour, MaxBytes: most})
}

func (b *loadBench) describe(s fsm.ListSource) {
	b.t.Helper()
	b.apply(fsm.DescribeList{Name: "feed", Source: &s})
}

func (b *loadBench) failure() string {
	return b.loader.Statuses()["feed"].Error
}

func TestAListIsLoadedFromItsSource(t *testing.T) {
	b := newLoadBench(t)
	b.describe(fsm.ListSource{URL: b.server.URL + "/drop.txt?xxxxx", Sealed: "key=secret", Interval: time.Hour, MaxBytes: 1 << 20})
	b.leader = "n2"
	if got := b.step(0, 200, "192.0.2.0/24"); len(got) > 0 || b.asked > 0 {
		t.Fatalf("a node that does not lead loaded %v", got)
	}
	b.leader, b.refused = "n1", true
	one := []string{"192.0.2.0/24"}
	if got := b.step(0, 200, "192.0.2.0/24 # x\n192.0.2.1\n"); !slices.Equal(got, one) {
		t.Fatalf("loaded %v (%s)", got, b.failure())
	}
	l, _, _ := b.store.View().List("feed")
	if b.query != "key=secret" {
		t.Errorf("the source was asked with the query %q", b.query)
	}
	if l.Origin != b.server.URL+"/drop.txt?xxxxx" || l.Actor != "node:n1" {
		t.Errorf("the list is %+v", l)
	}
	if b.step(time.Minute, 200, "198.51.100.0/24"); b.asked != 1 {
		t.Errorf("asked %d times within the interval", b.asked)
	}
	if got := b.step(time.Hour, 200, "192.0.2.0/24 # x\n192.0.2.1\n"); !slices.Equal(got, one) || b.etags[1] == "" {
		t.Errorf("an unchanged source: %v, asked with %q", got, b.etags)
	}
	index := b.index
	b.step(time.Hour, 200, "192.0.2.0/24\n")
	if b.index != index {
		t.Error("the same content in another text was proposed")
	}

	// Whatever goes wrong, the list stays.
	for what, bad := range map[string]struct {
		code int
		body string
	}{
		"404":   {404, "not found"},
		"empty": {200, "# nothing today\n"},
		"HTML":  {200, "<html>\n<body>\nplease log in\n192.0.2.1\n</body>\n"},
		"large": {200, strings.Repeat("203.0.113.1\n", 100_000)},
		"many":  {200, "10.0.0.0/7\n"},
	} {
		if got := b.step(time.Hour, bad.code, bad.body); !slices.Equal(got, one) || b.failure() == "" {
			t.Errorf("%s: the list has %v, the error is %q", what, got, b.failure())
		}
	}
	asked := b.asked
	b.step(loadRetry, 200, "192.0.2.0/24\n198.51.100.7\nnonsense\n")
	if b.asked != asked+1 || !strings.Contains(b.failure(), "line 3") {
		t.Errorf("after a failure: asked %d times more, note %q", b.asked-asked, b.failure())
	}
	if got := b.step(0, 200, ""); !slices.Equal(got, []string{"192.0.2.0/24", "198.51.100.7/32"}) {
		t.Errorf("the list has %v", got)
	}

	// What somebody else put there is replaced again.
	b.apply(fsm.PatchList{Name: "feed", Remove: fsm.AppendPacked(nil, netip.MustParsePrefix("198.51.100.7/32"))})
	if got := b.step(time.Hour, 200, "192.0.2.0/24\n198.51.100.7\nnonsense\n"); len(got) != 2 {
		t.Errorf("the list has %v", got)
	}
	b.apply(fsm.DescribeList{Name: "feed", Source: &fsm.ListSource{}})
	asked = b.asked
	if got := b.step(2*time.Hour, 200, "203.0.113.0/24"); len(got) != 2 || b.asked != asked {
		t.Error("a list without a source was loaded")
	}
}

// TestASourceDoesNotWidenAHold: what its list would touch is more than the settings allow, so it stays.
func TestASourceDoesNotWidenAHold(t *testing.T) {
	b := newLoadBench(t)
	b.source(b.server.URL+"/drop.txt", 1<<20)
	one := []string{"192.0.2.0/24"}
	if got := b.step(0, 200, "192.0.2.0/24"); !slices.Equal(got, one) {
		t.Fatalf("loaded %v (%s)", got, b.failure())
	}
	b.apply(fsm.AddBlock{Target: fsm.Target{List: "feed"}, Direction: fsm.Out})
	if got := b.step(time.Hour, 200, "192.0.2.0/24\n198.18.0.0/15"); !slices.Equal(got, one) || !strings.Contains(b.failure(), "more than 65536 addresses") {
		t.Errorf("the list has %v, the error is %q", got, b.failure())
	}
	if got := b.step(time.Hour, 200, "192.0.2.0/24\n198.18.0.0/24"); len(got) != 2 || b.failure() != "" {
		t.Errorf("the list has %v, the error is %q", got, b.failure())
	}
}

// TestASlowSourceDoesNotDelayOthers, and is not asked twice.
func TestASlowSourceDoesNotDelayOthers(t *testing.T) {
	b := newLoadBench(t)
	hold := make(chan struct{})
	asked := make(chan struct{}, 10)
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-hold:
			_, _ = w.Write([]byte("198.51.100.0/24"))
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(slow.Close)
	for i := range maxLoads - 1 {
		b.apply(fsm.DescribeList{Name: fmt.Sprint("a", i), Source: &fsm.ListSource{URL: slow.URL, Interval: time.Hour, MaxBytes: 1 << 20}})
	}
	b.loader.step(t.Context(), b.now)
	for range maxLoads - 1 {
		<-asked
	}
	b.body = []byte("192.0.2.0/24")
	b.source(b.server.URL, 1<<20) // the last by name
	b.loader.step(t.Context(), b.now)
	b.eventually("the other list is loaded", func() bool { l, _, _ := b.store.View().List("feed"); return l.Size == 1 })
	b.loader.step(t.Context(), b.now.Add(24*time.Hour))
	close(hold)
	b.loader.loads.Wait()
	for name, s := range b.loader.Statuses() {
		if l, _, _ := b.store.View().List(name); l.Size != 1 || s.Error != "" || s.CheckedAt.IsZero() {
			t.Errorf("%s has %d entries: %+v", name, l.Size, s)
		}
	}
	if n := len(b.loader.Statuses()); n != maxLoads || len(asked) != 0 {
		t.Errorf("%d lists were loaded, the slow ones asked %d times more", n, len(asked))
	}
}

func TestAPackedSourceIsBounded(t *testing.T) {
	b := newLoadBench(t)
	b.source(b.server.URL, 10_000)
	pack := func(text string) string {
		var buf bytes.Buffer
		z := gzip.NewWriter(&buf)
		_, _ = z.Write([]byte(text))
		_ = z.Close()
		return buf.String()
	}
	if got := b.step(0, 200, pack("192.0.2.0/24\n")); len(got) != 1 {
		t.Errorf("packed: %v (%s)", got, b.failure())
	}
	if got := b.step(time.Hour, 200, pack(strings.Repeat("203.0.113.1 # x\n", 1_000_000))); len(got) != 1 || !strings.Contains(b.failure(), "larger") {
		t.Errorf("a bomb: %v (%s)", got, b.failure())
	}
}

func TestFilesOfListsAreInOneDirectory(t *testing.T) {
	b := newLoadBench(t)
	dir, outside := b.loader.dir, filepath.Join(t.TempDir(), "secret")
	for path, text := range map[string]string{filepath.Join(dir, "drop.txt"): "192.0.2.0/24\n", outside: "198.51.100.0/24\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{outside, filepath.Join(dir, "link"), dir + "/../x", dir, filepath.Join(dir, "none")} {
		b.source("file://"+path, 1000)
		if got := b.step(time.Hour, 200, ""); len(got) > 0 || b.failure() == "" {
			t.Errorf("%s: the list has %v, the error is %q", path, got, b.failure())
		}
	}
	b.source("file://"+dir+"/drop.txt", 1000)
	if got := b.step(time.Hour, 200, ""); len(got) != 1 {
		t.Errorf("the list has %v (%s)", got, b.failure())
	}
	if err := os.WriteFile(filepath.Join(dir, "drop.txt"), []byte("192.0.2.0/24\n203.0.113.9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := b.step(time.Hour, 200, ""); len(got) != 2 {
		t.Errorf("after a change the list has %v (%s)", got, b.failure())
	}
}

// TestASourceDoesNotLeadToTheNode: the server of a list can't have a node ask its own services.
func TestASourceDoesNotLeadToTheNode(t *testing.T) {
	inner := 0
	own := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		inner++
		_, _ = w.Write([]byte("192.0.2.1\n"))
	}))
	defer own.Close()
	_, port, err := net.SplitHostPort(own.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"http://localhost:" + port, "http://127.0.0.2:" + port, "http://[::ffff:127.0.0.3]:" + port, "http://169.254.169.254/latest"} {
		b := newLoadBench(t)
		b.server.Config.Handler = http.RedirectHandler(to, http.StatusFound)
		b.source(b.server.URL+"/drop.txt", 1<<20)
		if got := b.step(0, 200, ""); len(got) > 0 || !strings.Contains(b.failure(), "loopback or link-local") {
			t.Errorf("%s: loaded %v (%s)", to, got, b.failure())
		}
	}
	if inner > 0 {
		t.Errorf("the node's own service was asked %d times", inner)
	}
}
