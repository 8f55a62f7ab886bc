package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/audit"
	"github.com/palisade/palisade/fsm"
)

// auditFleet is the auditors of some nodes and the log that all of them apply.
type auditFleet struct {
	t     *testing.T
	nodes map[string]*auditor
	index uint64

	mu   sync.Mutex
	down map[string]bool
}

func newAuditFleet(t *testing.T, names ...string) *auditFleet {
	t.Helper()
	f := &auditFleet{t: t, nodes: map[string]*auditor{}, down: map[string]bool{}}
	for _, name := range names {
		f.nodes[name] = f.newNode(name, t.TempDir())
	}
	return f
}

func (f *auditFleet) newNode(name, dir string) *auditor {
	caughtUp := make(chan struct{})
	close(caughtUp)
	a := &auditor{
		log: slog.New(slog.DiscardHandler), opts: audit.Options{Dir: filepath.Join(dir, "audit"), FileBytes: 64 << 10},
		node: name, store: fsm.NewStore(), caughtUp: caughtUp,
		members: f.members, ask: f.ask, metrics: newAuditMetrics(prometheus.NewRegistry()),
		timing: auditTiming{
			settle: time.Millisecond, again: 10 * time.Millisecond, expire: time.Hour, ask: time.Second, patience: time.Hour,
		},
	}
	a.hold()
	return a
}

func (f *auditFleet) members() []fsm.Member {
	var out []fsm.Member
	for name := range f.nodes {
		out = append(out, fsm.Member{ID: name, Alive: true})
	}
	return out
}

func (f *auditFleet) ask(ctx context.Context, node string, q fsm.Query) (fsm.Report, error) {
	f.mu.Lock()
	down := f.down[node]
	f.mu.Unlock()
	if down {
		return fsm.Report{}, errors.New("connection refused")
	}
	lines, err := f.nodes[node].Answer(ctx, q.AuditFrom)
	return fsm.Report{Node: node, Audit: lines}, err
}

func (f *auditFleet) setDown(node string, down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down[node] = down
}

// record makes n audit records on the nodes named.
func (f *auditFleet) record(n int, names ...string) {
	f.t.Helper()
	for n > 0 {
		batch := fsm.Batch{}
		for range min(n, 2000) {
			batch.Ops = append(batch.Ops, fsm.PutAccount{ID: "acct", Note: fmt.Sprint("note ", f.index, len(batch.Ops))})
		}
		n -= len(batch.Ops)
		f.index++
		data, err := fsm.MarshalCommand(fsm.Command{Actor: "token:a", Time: time.Now(), Op: batch})
		if err != nil {
			f.t.Fatal(err)
		}
		for _, name := range names {
			if _, err := f.nodes[name].store.ApplyBatch([]fsm.Entry{{Index: f.index, Data: data}}); err != nil {
				f.t.Fatal(err)
			}
		}
	}
}

// restore gives a node the state of another, as a snapshot does.
func (f *auditFleet) restore(to, from string) {
	f.t.Helper()
	var b bytes.Buffer
	if err := f.nodes[from].store.View().WriteSnapshot(&b); err != nil {
		f.t.Fatal(err)
	}
	if err := f.nodes[to].store.Restore(&b); err != nil {
		f.t.Fatal(err)
	}
}

// run runs a node's auditor until the test ends or stop is called.
func (f *auditFleet) run(name string) (stop func()) {
	ctx, cancel := context.WithCancel(f.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.nodes[name].Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			f.t.Errorf("%s: %v", name, err)
		}
	})
	f.t.Cleanup(stop)
	return stop
}

func (f *auditFleet) eventually(what string, is func() bool) {
	f.t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			for name, a := range f.nodes {
				f.t.Logf("%s: disk at %d, state at %d, %s", name, written(a), a.store.View().AuditHead().Seq, a.Warning())
			}
			f.t.Fatal("never: " + what)
		}
	}
}

func written(a *auditor) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.disk == nil {
		return 0
	}
	return a.disk.Head().Seq
}

// whole says that a node has every record on its disk.
func (f *auditFleet) whole(name string) bool {
	a := f.nodes[name]
	return written(a) == a.store.View().AuditHead().Seq
}

func (f *auditFleet) check(name string, first uint64) {
	f.t.Helper()
	c, err := f.nodes[name].Verify(f.t.Context())
	head := f.nodes[name].store.View().AuditHead()
	if err != nil || c.Problem != "" || c.First != first || c.Chain != head || c.Written != head.Seq {
		f.t.Errorf("%s: %+v, %v; want records %d to %d", name, c, err, first, head.Seq)
	}
}

func TestTheAuditIsWrittenAsItIsMade(t *testing.T) {
	f := newAuditFleet(t, "n1")
	stop := f.run("n1")
	for range 3 {
		f.record(5, "n1")
		f.eventually("written", func() bool { return f.whole("n1") })
	}
	stop()
	f.record(4, "n1")
	// What is not written yet is read all the same.
	n := 0
	if err := f.nodes["n1"].Read(t.Context(), 0, func([]byte) bool { n++; return true }); err != nil || n != 19 {
		t.Errorf("read %d records, %v", n, err)
	}
	if c, err := f.nodes["n1"].Verify(t.Context()); err != nil || c.Problem != "" || c.Records != 19 || c.Written != 15 {
		t.Errorf("%+v, %v", c, err)
	}
	// After a restart the log is applied again; the records that are on the disk are not written again.
	again := f.newNode("n1", filepath.Dir(f.nodes["n1"].opts.Dir))
	old := f.nodes["n1"]
	f.nodes["n1"] = again
	f.run("n1")
	var b bytes.Buffer
	if err := old.store.View().WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	if err := again.store.Restore(&b); err != nil {
		t.Fatal(err)
	}
	f.eventually("written after the restart", func() bool { return f.whole("n1") })
	f.check("n1", 1)
}

// TestNoRecordIsLostByCompaction keeps a node away until the state has forgotten what it has missed, and
// lets it come back by a snapshot.
func TestNoRecordIsLostByCompaction(t *testing.T) {
	f := newAuditFleet(t, "n1", "n2", "n3")
	f.record(10, "n1", "n2", "n3")
	stop := f.run("n3")
	f.eventually("written on n3", func() bool { return f.whole("n3") })
	stop()
	f.run("n1")
	f.record(fsm.RetainedAudit+5000, "n1", "n2")
	f.eventually("written on n1", func() bool { return f.whole("n1") })
	f.restore("n3", "n1")
	if _, complete := f.nodes["n3"].store.View().AuditSince(10); complete {
		t.Fatal("the snapshot has all records; this test proves nothing")
	}
	// n2 has not written any, but still holds them.
	f.setDown("n1", true)
	f.run("n3")
	f.eventually("fetched", func() bool { return f.whole("n3") })
	f.check("n3", 1)
	// A new node gets all of it too.
	f.nodes["n4"] = f.newNode("n4", t.TempDir())
	f.setDown("n1", false)
	f.restore("n4", "n1")
	f.run("n4")
	f.eventually("fetched by a new node", func() bool { return f.whole("n4") })
	f.check("n4", 1)
}

func TestANodeThatMayHaveRecordsIsWaitedFor(t *testing.T) {
	f := newAuditFleet(t, "n1", "n2")
	f.run("n1")
	f.record(fsm.RetainedAudit+10, "n1")
	f.eventually("written on n1", func() bool { return f.whole("n1") })
	f.restore("n2", "n1")
	f.setDown("n1", true)
	f.run("n2")
	f.eventually("it says what is wrong", func() bool { return strings.Contains(f.nodes["n2"].Warning(), "node n1: connection refused") })
	if n := written(f.nodes["n2"]); n != 0 {
		t.Errorf("%d records were written over a gap", n)
	}
	f.setDown("n1", false)
	f.eventually("fetched", func() bool { return f.whole("n2") })
	f.check("n2", 1)
	f.eventually("nothing is wrong", func() bool { return f.nodes["n2"].Warning() == "" })
}

func TestWhatNoNodeHasLeavesAGap(t *testing.T) {
	f := newAuditFleet(t, "n1", "n2")
	stop := f.run("n2")
	f.record(10, "n1", "n2")
	f.eventually("written on n2", func() bool { return f.whole("n2") })
	stop()
	// n1 has no memory of what it has not written, as after a restart from its snapshot.
	f.nodes["n1"].store.HoldAudit(1 << 60)
	f.record(fsm.RetainedAudit+100, "n1")
	f.restore("n2", "n1")
	f.run("n2")
	f.eventually("written after the gap", func() bool { return f.whole("n2") })
	c, err := f.nodes["n2"].Verify(t.Context())
	if err != nil || len(c.Gaps) != 1 || c.Gaps[0] != [2]uint64{11, 110} || c.Records != fsm.RetainedAudit+10 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestADiskThatFailsIsTriedAgain(t *testing.T) {
	f := newAuditFleet(t)
	dir := t.TempDir()
	inTheWay := filepath.Join(dir, "audit")
	if err := os.WriteFile(inTheWay, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.nodes["n1"] = f.newNode("n1", dir)
	f.run("n1")
	f.record(fsm.RetainedAudit+2000, "n1")
	f.eventually("it says what is wrong", func() bool { return f.nodes["n1"].Warning() != "" })
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	f.eventually("written", func() bool { return f.whole("n1") })
	f.eventually("nothing is wrong", func() bool { return f.nodes["n1"].Warning() == "" })
	f.check("n1", 1)
}

func TestADiskOfAnotherFleetIsNotWritten(t *testing.T) {
	f, other := newAuditFleet(t, "n1"), newAuditFleet(t, "n1")
	stop := f.run("n1")
	f.record(20, "n1")
	f.eventually("written", func() bool { return f.whole("n1") })
	stop()
	for _, records := range []int{10, 20, 30} { // fewer than on the disk, as many, more
		other.nodes["n1"] = other.newNode("n1", filepath.Dir(f.nodes["n1"].opts.Dir))
		other.index++
		other.record(records, "n1")
		stop := other.run("n1")
		other.eventually("it says what is wrong", func() bool { return strings.Contains(other.nodes["n1"].Warning(), "chain is broken") })
		stop()
	}
	f.check("n1", 1)
}
