package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/audit"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi"
)

// auditor writes the audit to this node's disk as the state makes it, and fetches from the other nodes
// what this one has missed. Its failures touch nothing else: they are logged, counted, and told in the
// reports of this node, and it tries again.
type auditor struct {
	log      *slog.Logger
	opts     audit.Options
	node     string
	store    *fsm.Store
	caughtUp <-chan struct{}
	members  func() []fsm.Member
	ask      func(ctx context.Context, node string, q fsm.Query) (fsm.Report, error)
	metrics  auditMetrics
	timing   auditTiming

	mu      sync.Mutex
	disk    *audit.Log // nil until it could be opened
	problem error
	// missing is since when lines are missing here that some node may have.
	missing time.Time
}

// auditTiming is how long the auditor waits.
type auditTiming struct {
	settle time.Duration // after a change, for more that go to the disk together with it
	again  time.Duration // after a failure
	expire time.Duration // between looks at what has become too old
	ask    time.Duration // for one answer of a peer
	// patience is how long nodes that do not answer are waited for, when they may have what is missing.
	patience time.Duration
}

func defaultAuditTiming() auditTiming {
	return auditTiming{
		settle: 200 * time.Millisecond, again: 5 * time.Second, expire: time.Hour,
		ask: 10 * time.Second, patience: 10 * time.Minute,
	}
}

type auditMetrics struct {
	written  prometheus.Gauge
	failing  prometheus.Gauge
	failures prometheus.Counter
}

func newAuditMetrics(reg prometheus.Registerer) auditMetrics {
	m := auditMetrics{
		written:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "palisade_audit_written", Help: "Number of the newest audit record on this node's disk."}),
		failing:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "palisade_audit_failing", Help: "1 while this node can't write its audit."}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "palisade_audit_failures_total", Help: "Attempts to write the audit that failed."}),
	}
	reg.MustRegister(m.written, m.failing, m.failures)
	return m
}

// hold opens the disk and keeps in the state what is not there yet. It is called before the first entry
// is applied. A disk that can't be opened is tried again by Run.
func (a *auditor) hold() {
	a.store.HoldAudit(0)
	if _, err := a.open(); err != nil {
		a.report(err)
	}
}

func (a *auditor) open() (*audit.Log, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.disk == nil {
		disk, err := audit.Open(a.opts)
		if err != nil {
			return nil, err
		}
		a.disk = disk
		a.written(disk)
	}
	return a.disk, nil
}

// written lets the state forget what the disk has.
func (a *auditor) written(disk *audit.Log) {
	head := disk.Head().Seq
	a.store.HoldAudit(head)
	a.metrics.written.Set(float64(head))
}

// Run writes until ctx ends.
func (a *auditor) Run(ctx context.Context) error {
	watcher := a.store.Watch(0)
	var expired time.Time
	for {
		err := a.write(ctx)
		if err == nil && time.Since(expired) > a.timing.expire {
			expired = time.Now()
			err = a.expire()
		}
		if ctx.Err() != nil {
			break
		}
		a.report(err)
		wait := a.timing.settle
		if err != nil {
			wait = a.timing.again
		} else if view, _, _ := watcher.Next(ctx); view == nil { // any error with a view is no matter here
			break
		}
		if !sleep(ctx, wait) {
			break
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.disk == nil {
		return nil
	}
	return a.disk.Close()
}

// report tells of a failure when it begins, changes or ends.
func (a *auditor) report(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.problem
	a.problem = err
	if err == nil {
		a.metrics.failing.Set(0)
		if was != nil {
			a.log.Info("the audit is written again")
		}
		return
	}
	a.metrics.failing.Set(1)
	a.metrics.failures.Inc()
	if was == nil || was.Error() != err.Error() {
		a.log.Error("can't write the audit; enforcement goes on, and it is tried again", "err", err)
	}
}

// Warning is what is wrong with the audit of this node, empty if nothing is.
func (a *auditor) Warning() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.problem == nil {
		return ""
	}
	return "the audit is not written: " + a.problem.Error()
}

// write brings the disk up to the state.
func (a *auditor) write(ctx context.Context) error {
	disk, err := a.open()
	if err != nil {
		return err
	}
	// A state that is still behind the disk, in the beginning, has nothing to add.
	view := a.store.View()
	if err := a.compare(disk.Head(), view.AuditHead()); err != nil {
		return a.fork(ctx, disk, err)
	}
	lines, complete := view.AuditSince(disk.Head().Seq)
	defer func() { a.written(disk) }()
	if !complete {
		if err := a.fill(ctx, disk, lines); err != nil {
			return err
		}
		lines, complete = view.AuditSince(disk.Head().Seq)
		if !complete {
			return disk.AppendAfterGap(lines)
		}
	}
	a.missing = time.Time{}
	if err := disk.Append(lines); errors.Is(err, fsm.ErrAuditChain) {
		return a.fork(ctx, disk, err) // the state is past the disk, which has another beginning
	} else if err != nil {
		return err
	}
	return nil
}

// compare finds a disk that has another audit than the fleet: that of another fleet, or one from before
// the fleet's state was set back.
func (a *auditor) compare(disk, state fsm.AuditChain) error {
	if disk.Seq == state.Seq && disk != state {
		return fmt.Errorf("%w: record %d on this disk has the SHA-256 %x, in the state it has %x; if the disk is of another fleet, move %s away",
			fsm.ErrAuditChain, disk.Seq, disk.Head, state.Head, a.opts.Dir)
	}
	select {
	case <-a.caughtUp:
	default:
		return nil
	}
	if now := a.store.View().AuditHead(); disk.Seq > now.Seq {
		return fmt.Errorf("%w: this disk has records up to %d, the state of the fleet only up to %d; if the disk is of another fleet, move %s away",
			fsm.ErrAuditChain, disk.Seq, now.Seq, a.opts.Dir)
	}
	return nil
}

// fill fetches from the other nodes what lies between the disk and the lines of the state. If it returns nil,
// all of it is on the disk that any node has. What comes is written only if it continues the chain of this
// disk; that it is the fleet's chain is seen when the state's own lines are to follow.
func (a *auditor) fill(ctx context.Context, disk *audit.Log, state [][]byte) error {
	joint, err := fsm.AuditFrom(state[0])
	if err != nil {
		return err
	}
	if a.missing.IsZero() {
		a.missing = time.Now()
		a.log.Info("fetching audit records that this node has missed", "first", disk.Head().Seq+1, "last", joint.Seq)
	}
	for disk.Head().Seq < joint.Seq {
		got, err := a.fetch(ctx, disk)
		switch {
		case err != nil:
			return err
		case got.next:
			continue
		case got.silent != nil && time.Since(a.missing) < a.timing.patience:
			return fmt.Errorf("records %d to %d are missing here, and a node that may have them does not answer: %w",
				disk.Head().Seq+1, joint.Seq, got.silent)
		case got.oldest == nil || got.before >= joint.Seq:
			a.log.Error("audit records are on no node any more", "first", disk.Head().Seq+1, "last", joint.Seq)
			return nil
		}
		a.log.Error("audit records are on no node any more", "first", disk.Head().Seq+1, "last", got.before)
		if err := disk.AppendAfterGap(got.oldest); err != nil {
			return err
		}
	}
	return nil
}

// fetched is what the other nodes have of what is missing here.
type fetched struct {
	next   bool     // one had what follows on the disk, and it is there now
	oldest [][]byte // else the oldest later lines that any has
	before uint64   // number of the record before those
	silent error    // why one of them gave nothing that can be used
}

// fetch asks the other nodes for what follows on the disk, one after the other, and writes what the first
// that has it gives. The error is that of ctx.
func (a *auditor) fetch(ctx context.Context, disk *audit.Log) (fetched, error) {
	head := disk.Head()
	var out fetched
	members := a.members()
	// First those that answer soon.
	slices.SortStableFunc(members, func(x, y fsm.Member) int { return cmp.Compare(order(x), order(y)) })
	for _, m := range members {
		if m.Self || m.ID == a.node {
			continue
		}
		lines, err := a.askFor(ctx, m.ID, head.Seq+1)
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		var before fsm.AuditChain
		if err == nil && len(lines) > 0 {
			before, err = fsm.AuditFrom(lines[0])
		}
		if err == nil && len(lines) > 0 && before.Seq == head.Seq {
			if err = disk.Append(lines); err == nil {
				out.next = true
				return out, nil
			}
		}
		switch {
		case err != nil:
			out.silent = fmt.Errorf("node %s: %w", m.ID, err)
		case len(lines) > 0 && before.Seq > head.Seq && (out.oldest == nil || before.Seq < out.before):
			out.oldest, out.before = lines, before.Seq
		}
	}
	return out, nil
}

func order(m fsm.Member) int {
	if m.Alive {
		return 0
	}
	return 1
}

func (a *auditor) askFor(ctx context.Context, node string, from uint64) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timing.ask)
	defer cancel()
	rep, err := a.ask(ctx, node, fsm.Query{AuditFrom: from})
	return rep.Audit, err
}

// Answer returns the lines from a number on for a peer, as many as go into one report.
func (a *auditor) Answer(ctx context.Context, from uint64) ([][]byte, error) {
	var out [][]byte
	size := 0
	err := a.Read(ctx, max(from, 1)-1, func(line []byte) bool {
		if size += len(line); size > fsm.MaxReportAuditBytes && len(out) > 0 {
			return false
		}
		out = append(out, slices.Clone(line))
		return true
	})
	return out, err
}

func (a *auditor) expire() error {
	disk, err := a.open()
	if err != nil {
		return err
	}
	removed, err := disk.Expire(time.Now())
	if removed > 0 {
		a.log.Info("removed audit files that are older than is kept, or beyond the size that is", "files", removed, "first", disk.First())
	}
	return err
}

var _ httpapi.Audit = (*auditor)(nil)

// Read implements httpapi.Audit: what is on the disk, and then what the state has beyond that.
func (a *auditor) Read(ctx context.Context, after uint64, yield func(line []byte) bool) error {
	disk, err := a.open()
	if err != nil {
		return err
	}
	more := true
	err = disk.Read(ctx, after, func(line []byte) bool {
		if before, err := fsm.AuditFrom(line); err == nil {
			after = before.Seq + 1
		}
		more = yield(line)
		return more
	})
	if err != nil || !more {
		return err
	}
	lines, _ := a.store.View().AuditSince(after)
	for _, line := range lines {
		if !yield(line) {
			break
		}
	}
	return nil
}

// Verify implements httpapi.Audit: it follows the chain through the files of this node and on to the state.
func (a *auditor) Verify(ctx context.Context) (httpapi.AuditCheck, error) {
	disk, err := a.open()
	if err != nil {
		return httpapi.AuditCheck{}, err
	}
	sum, err := disk.Verify(ctx)
	out := httpapi.AuditCheck{Records: sum.Records, First: sum.First, Written: sum.Chain.Seq, Chain: sum.Chain}
	for _, g := range sum.Gaps {
		out.Gaps = append(out.Gaps, [2]uint64{g.First, g.Last})
	}
	if err == nil {
		err = a.verifyState(&out)
	}
	if errors.Is(err, fsm.ErrAuditChain) {
		out.Problem = err.Error()
		return out, nil
	}
	return out, err
}

// verifyState goes on where the disk ends.
func (a *auditor) verifyState(out *httpapi.AuditCheck) error {
	view := a.store.View()
	lines, complete := view.AuditSince(out.Chain.Seq)
	if !complete {
		return fmt.Errorf("%w: the disk ends with record %d, and the state begins later", fsm.ErrAuditChain, out.Chain.Seq)
	}
	for _, line := range lines {
		if err := out.Chain.Next(line); err != nil {
			return err
		}
		if out.First == 0 {
			out.First = out.Chain.Seq
		}
		out.Records++
	}
	if head := view.AuditHead(); out.Chain != head {
		return fmt.Errorf("%w: the disk ends with record %d, SHA-256 %x; the state with record %d, SHA-256 %x",
			fsm.ErrAuditChain, out.Chain.Seq, out.Chain.Head, head.Seq, head.Head)
	}
	return nil
}
