package httpapi

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// mostDropNodes bounds the nodes of one answer that have series of their own. Those that dropped less are summed.
const mostDropNodes = 16

// maxDropBlocks bounds the blocks of one VM whose series are asked for.
const maxDropBlocks = 100

func dropRoutes() []route {
	get := func(path, id, summary string) huma.Operation {
		return operation(http.MethodGet, path, id, summary, http.StatusOK)
	}
	return []route{
		{op: get("/v1/drops", "drops", "Say what the nodes dropped lately, by reason"), scope: ScopeViewer, codes: []wire.Code{wire.CodeNotFound}, add: do((*Server).drops)},
		{op: get("/v1/blocks/{id}/drops", "block-drops", "Say what the nodes dropped for a block lately"), scope: ScopeViewer, billing: true,
			codes: []wire.Code{wire.CodeNotFound}, add: do((*Server).blockDrops)},
		{op: get("/v1/vms/{id}/drops", "vm-drops", "Say what the nodes dropped lately for the blocks that hold a VM"), scope: ScopeViewer, billing: true,
			codes: []wire.Code{wire.CodeNotFound, wire.CodeAmbiguous}, add: do((*Server).vmDrops)},
	}
}

// SinceInput is how far back a plot goes.
type SinceInput struct {
	Since string `query:"since" maxLength:"32" default:"1h" doc:"How far back, 1m to 24h: in steps of 10 s up to an hour, else of 5 min"`
}

func (in SinceInput) span() (span time.Duration, coarse bool, err error) {
	span, derr := time.ParseDuration(in.Since)
	if derr != nil || span < time.Minute || span > fsm.DropsCoarseSpan {
		return 0, false, fieldProblem("query.since", in.Since, "want a duration from 1m to 24h, for example 1h")
	}
	return span, span > fsm.DropsFineSpan, nil
}

type dropsInput struct {
	SinceInput
	Node string `query:"node" maxLength:"255" doc:"Only this node"`
}

type dropsOutput struct{ Body wire.Drops }

func (s *Server) drops(ctx context.Context, in *dropsInput) (*dropsOutput, error) {
	span, coarse, err := in.span()
	if err != nil {
		return nil, err
	}
	if in.Node != "" && !s.isMember(in.Node) {
		return nil, problem(wire.CodeNotFound, "there is no node %s", echo(in.Node))
	}
	return &dropsOutput{s.plot(ctx, fsm.DropsQuery{Coarse: coarse}, span, in.Node)}, nil
}

type blockDropsInput struct {
	SinceInput
	ID string `path:"id" maxLength:"64" example:"b17"`
}

func (s *Server) blockDrops(ctx context.Context, in *blockDropsInput) (*dropsOutput, error) {
	span, coarse, err := in.span()
	if err != nil {
		return nil, err
	}
	b, err := readBlock(ctx, s.opts.Backend.View(), in.ID)
	if err != nil {
		return nil, err
	}
	return &dropsOutput{s.plot(ctx, fsm.DropsQuery{Blocks: []string{b.ID}, Coarse: coarse}, span, "")}, nil
}

type vmDropsInput struct {
	SinceInput
	ID string `path:"id" maxLength:"255" doc:"VM id, or a name that only one VM has"`
}

func (s *Server) vmDrops(ctx context.Context, in *vmDropsInput) (*dropsOutput, error) {
	span, coarse, err := in.span()
	if err != nil {
		return nil, err
	}
	v := s.opts.Backend.View()
	vm, ferr := v.ResolveVM("id", in.ID)
	if ferr != nil {
		return nil, refusalProblem(ferr, sent{"id": at("path.id", in.ID)})
	}
	q := fsm.DropsQuery{Coarse: coarse}
	for _, b := range v.Holding(vm) {
		if billed(ctx, b) && len(q.Blocks) < maxDropBlocks {
			q.Blocks = append(q.Blocks, b.ID)
		}
	}
	if len(q.Blocks) == 0 { // without any, the members would answer for all
		q.Blocks = []string{""}
	}
	return &dropsOutput{s.plot(ctx, q, span, "")}, nil
}

// plot asks the members, or one of them, what they dropped and lays their steps beside each other.
func (s *Server) plot(ctx context.Context, q fsm.DropsQuery, span time.Duration, node string) wire.Drops {
	step := fsm.DropsFineStep
	if q.Coarse {
		step = fsm.DropsCoarseStep
	}
	end := s.now().UTC().Truncate(step)
	out := wire.Drops{
		Step: int(step / time.Second), Points: int(span / step), From: end.Add(-span.Truncate(step)),
		Series: []wire.DropSeries{}, Known: []wire.KnownDrops{}, Silent: []wire.SilentNode{},
	}
	answers := map[string]*fsm.Drops{}
	for _, r := range s.ask(ctx, fsm.Query{Drops: &q}, node) {
		switch id := r.member.ID; {
		case r.ok && r.report.Drops != nil && r.report.Drops.Step == step:
			answers[id] = r.report.Drops
			d := r.report.Drops
			out.Known = append(out.Known, wire.KnownDrops{Node: id, From: d.End.Add(-time.Duration(d.Steps) * step).UTC()})
		case r.ok:
			out.Silent = append(out.Silent, wire.SilentNode{Node: id, Why: "it is of a version that does not keep it"})
		default:
			out.Silent = append(out.Silent, wire.SilentNode{Node: id, Why: "it " + noAnswer(r.err)})
		}
	}
	lead := leading(answers)
	sums := map[string]*wire.DropSeries{}
	for _, id := range slices.Sorted(maps.Keys(answers)) {
		for _, series := range answers[id].Series {
			name := id
			if !lead[id] {
				name = ""
			}
			key := name + "\x00" + series.Reason + "\x00" + series.Block
			into := sums[key]
			if into == nil {
				into = &wire.DropSeries{Node: name, Reason: series.Reason, Block: series.Block, Packets: make([]*float64, out.Points), Bytes: make([]*float64, out.Points)}
				sums[key] = into
			}
			lay(into, &out, answers[id], series)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(sums)) {
		out.Series = append(out.Series, *sums[key])
	}
	return out
}

// leading are the nodes that dropped most.
func leading(answers map[string]*fsm.Drops) map[string]bool {
	total := map[string]uint64{}
	for id, d := range answers {
		for _, series := range d.Series {
			for _, n := range series.Packets {
				total[id] += n
			}
		}
	}
	ids := slices.SortedFunc(maps.Keys(total), func(a, b string) int { return cmp.Or(cmp.Compare(total[b], total[a]), cmp.Compare(a, b)) })
	lead := map[string]bool{}
	for _, id := range ids[:min(len(ids), mostDropNodes)] {
		lead[id] = true
	}
	return lead
}

// lay adds the steps of a member's series to those of the answer at the same time.
func lay(into *wire.DropSeries, out *wire.Drops, d *fsm.Drops, series fsm.DropSeries) {
	first := int(d.End.Add(-time.Duration(d.Steps)*d.Step).Sub(out.From) / d.Step)
	add := func(at **float64, n uint64) {
		rate := float64(n) / d.Step.Seconds()
		if *at != nil {
			rate += **at
		}
		*at = &rate
	}
	for i := range min(len(series.Packets), len(series.Bytes), d.Steps) {
		if k := first + i; k >= 0 && k < out.Points {
			add(&into.Packets[k], series.Packets[i])
			add(&into.Bytes[k], series.Bytes[i])
		}
	}
}
