package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

// ReadIndex returns a log index that is at least that of every write acknowledged anywhere before the
// call, and blocks until this node's own Store has applied it: a View taken afterwards is
// linearizable. It costs a round of the leader to its followers and no disk write. It returns
// fsm.ErrUnavailable if no leader can be reached and proven within Timing.NoLeader, or the context's
// error.
func (c *Cluster) ReadIndex(ctx context.Context) (uint64, error) {
	ctx, cancel := c.withDeadline(ctx)
	defer cancel()
	patience := time.Now().Add(c.patience())
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		index, err := c.readIndex(ctx)
		if err == nil {
			if err := c.applier.wait(ctx, index); err != nil {
				return 0, fmt.Errorf("this node lags behind log index %d: %w", index, err)
			}
			return index, nil
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		if time.Now().After(patience) {
			return 0, fmt.Errorf("%w: %w", fsm.ErrUnavailable, err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		case <-c.stopping:
			return 0, fmt.Errorf("%w: this node stops: %w", fsm.ErrUnavailable, err)
		}
	}
}

func (c *Cluster) readIndex(ctx context.Context) (uint64, error) {
	switch id := c.leader(); id {
	case "":
		return 0, errNoLeader
	case c.id:
		resp, err := c.onReadIndex(ctx, c.id, &peerpb.ReadIndexRequest{})
		return resp.GetIndex(), err
	default:
		resp, err := c.rpc.readIndex(ctx, id, &peerpb.ReadIndexRequest{})
		return resp.GetIndex(), err
	}
}

// onReadIndex answers as the leader. After the barrier of its reign the leader's state holds every
// write that any earlier leader acknowledged, and every write of its own before that is acknowledged;
// the proof that it still leads, begun after the index was read, excludes a newer leader's.
//
// Another node hands the question on, if it may, see relay.
func (c *Cluster) onReadIndex(ctx context.Context, _ string, req *peerpb.ReadIndexRequest) (*peerpb.ReadIndexResponse, error) {
	r := c.running.Load()
	if (r == nil || r.throne.current() == nil) && req.GetHops() > 0 {
		return c.relay.ask(ctx, c.callCtx, func(ctx context.Context) (*peerpb.ReadIndexResponse, error) {
			return c.readIndexAbove(ctx, req.GetHops()-1)
		})
	}
	if r == nil || r.throne.current() == nil {
		return nil, fmt.Errorf("%w: %w", fsm.ErrUnavailable, raft.ErrNotLeader)
	}
	if err := c.store.Halted(); err != nil {
		return nil, fmt.Errorf("%w: this leader's state is halted: %w", fsm.ErrUnavailable, err)
	}
	reign := r.throne.current()
	index := c.store.View().Index()
	if err := c.verifyLeader(ctx, r); err != nil {
		return nil, fmt.Errorf("%w: %w", fsm.ErrUnavailable, err)
	}
	if reign == nil || r.throne.current() != reign {
		return nil, fmt.Errorf("%w: %w", fsm.ErrUnavailable, raft.ErrLeadershipLost)
	}
	return &peerpb.ReadIndexResponse{Index: index, Leader: c.id}, nil
}

// verifyLeader proves by a round to the followers that no other leader has taken over.
func (c *Cluster) verifyLeader(ctx context.Context, r *running) error {
	if !r.inflight.begin() {
		return raft.ErrRaftShutdown
	}
	ended := make(chan error, 1)
	go func() {
		defer r.inflight.end()
		ended <- r.raft.VerifyLeader().Error()
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Ask returns a node's report of its own kernel; this node's own is answered without the network. It
// blocks until the node answers (see fsm.Query) or ctx ends; a ctx without a deadline gets
// Timing.Propose. A peer that can't be reached is an error at once.
func (c *Cluster) Ask(ctx context.Context, nodeID string, q fsm.Query) (fsm.Report, error) {
	if len(q.Blocks) > fsm.MaxQueryBlocks {
		return fsm.Report{}, fmt.Errorf("a query of %d blocks, at most %d are allowed", len(q.Blocks), fsm.MaxQueryBlocks)
	}
	if _, ok := c.dir.peer(nodeID); !ok {
		return fsm.Report{}, fmt.Errorf("no node %q in the fleet", nodeID)
	}
	ctx, cancel := c.withDeadline(ctx)
	defer cancel()
	if nodeID == c.id {
		return c.answer(ctx, q)
	}
	resp, err := c.rpc.ask(ctx, nodeID, &peerpb.AskRequest{WaitIndex: q.WaitIndex, Blocks: q.Blocks, AuditFrom: q.AuditFrom, Explain: encodePacket(q.Explain), Sources: q.Sources, Drops: encodeDropsQuery(q.Drops), SourceGuard: q.SourceGuard})
	if err != nil {
		return fsm.Report{}, err
	}
	return decodeReport(resp), nil
}

func (c *Cluster) onAsk(ctx context.Context, _ string, req *peerpb.AskRequest) (*peerpb.AskResponse, error) {
	if len(req.GetBlocks()) > fsm.MaxQueryBlocks || len(req.GetDrops().GetBlocks()) > fsm.MaxQueryBlocks {
		return nil, errors.New("too many blocks")
	}
	rep, err := c.answer(ctx, fsm.Query{WaitIndex: req.GetWaitIndex(), Blocks: req.GetBlocks(), AuditFrom: req.GetAuditFrom(), Explain: decodePacket(req.GetExplain()), Sources: req.GetSources(), Drops: decodeDropsQuery(req.GetDrops()), SourceGuard: req.GetSourceGuard()})
	if err != nil {
		return nil, err
	}
	return encodeReport(rep), nil
}

func encodeReport(r fsm.Report) *peerpb.AskResponse {
	out := &peerpb.AskResponse{
		Node: r.Node, AtUnixNano: encodeTime(r.At), Applied: r.Applied, Enforced: r.Enforced, EnforcedBlocks: r.EnforcedBlocks,
		Hash: r.Hash, Version: r.Version, Problem: r.Problem, Warning: r.Warning, Audit: r.Audit, Explained: encodeExplanation(r.Explained),
		Drops:       encodeDrops(r.Drops),
		SourceGuard: encodeSourceReport(r.SourceGuard),
	}
	for _, q := range r.Problems {
		out.Problems = append(out.Problems, &peerpb.Problem{Code: q.Code, Severity: string(q.Severity), SinceUnixNano: encodeTime(q.Since), Text: q.Text})
	}
	if r.ClockKnown {
		out.ClockOffsetNano = new(int64(r.ClockOffset))
	}
	if len(r.Blocks) > 0 {
		out.Blocks = make(map[string]*peerpb.BlockReport, len(r.Blocks))
	}
	for id, b := range r.Blocks {
		out.Blocks[id] = &peerpb.BlockReport{
			Enforced: b.Enforced, Index: b.Index, AtUnixNano: encodeTime(b.At), Packets: b.Packets, Bytes: b.Bytes, Open: b.Open,
		}
	}
	if r.Sources != nil {
		out.Sources = make(map[string]*peerpb.SourceStatus, len(r.Sources))
	}
	for name, s := range r.Sources {
		out.Sources[name] = &peerpb.SourceStatus{CheckedAtUnixNano: encodeTime(s.CheckedAt), Error: s.Error}
	}
	return out
}

func decodeReport(p *peerpb.AskResponse) fsm.Report {
	r := fsm.Report{
		Node: p.GetNode(), At: decodeTime(p.GetAtUnixNano()), Applied: p.GetApplied(), Enforced: p.GetEnforced(), EnforcedBlocks: p.GetEnforcedBlocks(),
		Hash: p.GetHash(), Version: p.GetVersion(), Problem: p.GetProblem(), Warning: p.GetWarning(), Audit: p.GetAudit(), Explained: decodeExplanation(p.GetExplained()),
		Drops:       decodeDrops(p.GetDrops()),
		SourceGuard: decodeSourceReport(p.GetSourceGuard()),
	}
	for _, q := range p.GetProblems() {
		r.Problems = append(r.Problems, fsm.Problem{Code: q.GetCode(), Severity: fsm.Severity(q.GetSeverity()), Since: decodeTime(q.GetSinceUnixNano()), Text: q.GetText()})
	}
	r.ClockOffset, r.ClockKnown = time.Duration(p.GetClockOffsetNano()), p.ClockOffsetNano != nil
	if len(p.GetBlocks()) > 0 {
		r.Blocks = make(map[string]fsm.BlockReport, len(p.GetBlocks()))
	}
	for id, b := range p.GetBlocks() {
		r.Blocks[id] = fsm.BlockReport{
			Enforced: b.GetEnforced(), Index: b.GetIndex(), At: decodeTime(b.GetAtUnixNano()),
			Packets: b.GetPackets(), Bytes: b.GetBytes(), Open: b.GetOpen(),
		}
	}
	if len(p.GetSources()) > 0 {
		r.Sources = make(map[string]fsm.SourceStatus, len(p.GetSources()))
	}
	for name, s := range p.GetSources() {
		r.Sources[name] = fsm.SourceStatus{CheckedAt: decodeTime(s.GetCheckedAtUnixNano()), Error: s.GetError()}
	}
	return r
}

func encodeTime(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func decodeTime(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
