package agent

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"runtime/pprof"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/cluster"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/logs"
)

const (
	bundleFileMost = 8 << 20 // bytes of one file of a bundle; what is more is cut off
	bundlePeerTime = 2 * time.Second
)

// bundler makes debug bundles: a tar of what this node knows of itself. Text goes through the scrubber; what is
// binary is made by the runtime and has no content of variables.
type bundler struct {
	cfg     Config
	version string
	rooms   *rooms
	reg     prometheus.Gatherer
	recent  func() []byte // the newest lines of the log
	scrub   *logs.Scrubber
	now     func() time.Time
}

// bundleFile is one file of a bundle, and what makes it.
type bundleFile struct {
	name string
	raw  bool // not text
	make func(ctx context.Context, w io.Writer) error
}

func (b *bundler) files() []bundleFile {
	return []bundleFile{
		{"about.json", false, b.about},
		{"status.json", false, b.status},
		{"peers.json", false, b.peers},
		{"raft.json", false, b.raft},
		{"config.toml", false, b.config},
		{"metrics.txt", false, b.metrics},
		{"log.txt", false, func(_ context.Context, w io.Writer) error { _, err := w.Write(b.recent()); return err }},
		{"kernel.json", false, b.kernel},
		{"ruleset-blocks.txt", false, func(ctx context.Context, w io.Writer) error { return b.rooms.kernel.Describe(ctx, w) }},
		{"ruleset-lists.txt", false, func(ctx context.Context, w io.Writer) error { return b.rooms.listTable.Describe(ctx, w) }},
		{"goroutines.txt", false, func(_ context.Context, w io.Writer) error { return pprof.Lookup("goroutine").WriteTo(w, 1) }},
		{"heap.pb.gz", true, func(_ context.Context, w io.Writer) error { return pprof.Lookup("heap").WriteTo(w, 0) }},
	}
}

// Write makes a bundle. A part that can't be made says why in its place; an error is the writer's.
func (b *bundler) Write(ctx context.Context, w io.Writer) error { return b.write(ctx, w, b.files()) }

func (b *bundler) write(ctx context.Context, w io.Writer, files []bundleFile) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	for _, f := range files {
		var buf cut
		err := f.make(ctx, &buf)
		text := buf.b.Bytes()
		name := "palisade-debug/" + f.name
		switch {
		case err != nil:
			text, name = fmt.Appendf(nil, "this part could not be made: %v\n", err), name+".error"
		case buf.more > 0 && !f.raw:
			text = fmt.Appendf(text, "\n… and %d bytes more\n", buf.more)
		}
		if !f.raw || err != nil {
			text = b.scrub.Scrub(text)
		}
		h := &tar.Header{Name: name, Mode: 0o600, Size: int64(len(text)), ModTime: b.now()}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(text); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return z.Close()
}

// cut keeps the beginning of what is written to it.
type cut struct {
	b    bytes.Buffer
	more int
}

// Write implements io.Writer.
func (c *cut) Write(p []byte) (int, error) {
	n := min(len(p), bundleFileMost-c.b.Len())
	c.b.Write(p[:n])
	c.more += len(p) - n
	return len(p), nil
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func (b *bundler) about(_ context.Context, w io.Writer) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	return writeJSON(w, map[string]any{
		"made_at": b.now().UTC(), "node": b.cfg.Node.ID, "version": b.version, "go": runtime.Version(), "cpus": runtime.NumCPU(),
		"goroutines": runtime.NumGoroutine(), "pid": os.Getpid(), "uid": os.Geteuid(),
		"kernel": unix.ByteSliceToString(u.Release[:]), "kernel_build": unix.ByteSliceToString(u.Version[:]), "machine": unix.ByteSliceToString(u.Machine[:]),
	})
}

func (b *bundler) status(_ context.Context, w io.Writer) error {
	v := b.rooms.View()
	offset, known := b.rooms.clock.Offset()
	return writeJSON(w, struct {
		Status           fsm.Status
		Health           cluster.Health
		StateHash        string
		Blocks, Active   int
		Pending, VMs     int
		Lists            int
		Problems         []fsm.Problem
		ClockAheadMillis float64
		ClockKnown       bool
	}{
		b.rooms.Status(), b.rooms.cluster.Health(), v.Hash(), v.CountBlocks(), v.CountActive(), v.CountPending(), v.CountVMs(), v.CountLists(),
		b.rooms.watchdog.Problems(), float64(offset.Microseconds()) / 1e3, known,
	})
}

// peers is what gossip sees of every member, and what each answers now.
func (b *bundler) peers(ctx context.Context, w io.Writer) error {
	type peer struct {
		Member fsm.Member
		Report *fsm.Report `json:",omitempty"`
		Error  string      `json:",omitempty"`
	}
	ctx, cancel := context.WithTimeout(ctx, bundlePeerTime)
	defer cancel()
	members := b.rooms.Members()
	out := make([]peer, len(members))
	done := make(chan struct{})
	for i, m := range members {
		go func() {
			defer func() { done <- struct{}{} }()
			out[i].Member = m
			r, err := b.rooms.Ask(ctx, m.ID, fsm.Query{})
			if err != nil {
				out[i].Error = err.Error()
				return
			}
			out[i].Report = &r
		}()
	}
	for range members {
		<-done
	}
	return writeJSON(w, out)
}

func (b *bundler) raft(_ context.Context, w io.Writer) error {
	return writeJSON(w, b.rooms.cluster.Facts())
}

// secretKey is a line of the config that may hold a secret, or the hash of one. Names of files are none.
func secretKey() *regexp.Regexp {
	return regexp.MustCompile(`(?mi)^(\s*['"]?(?:sha256|[a-z0-9_]*(?:secret|password|token|passphrase))['"]?\s*=\s*).*$`)
}

func (b *bundler) config(_ context.Context, w io.Writer) error {
	text, err := toml.Marshal(b.cfg)
	if err != nil {
		return err
	}
	_, err = w.Write(secretKey().ReplaceAll(text, []byte(`$1"…"`)))
	return err
}

func (b *bundler) metrics(_ context.Context, w io.Writer) error {
	families, err := b.reg.Gather()
	if err != nil {
		return err
	}
	e := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range families {
		if err := e.Encode(f); err != nil {
			return err
		}
	}
	return nil
}

// kernel is what this node's kernel lacks, and how it differs from what the agent last brought to it.
func (b *bundler) kernel(ctx context.Context, w io.Writer) error {
	enforced, problem := b.rooms.enforcer.Standing()
	lists, listProblem := b.rooms.lists.Standing()
	d, err := b.rooms.kernel.Check(ctx)
	if err != nil {
		return err
	}
	return writeJSON(w, map[string]any{
		"enforced": enforced, "problem": problem, "lists_enforced": lists, "lists_problem": listProblem,
		"lacks": b.rooms.enforcer.Local().Missing, "differs": differs(d), "drift": b.rooms.enforcer.drift.told(), "lists_drift": b.rooms.lists.drift.told(), "sources_drift": b.rooms.sources.drift.told(),
	})
}
