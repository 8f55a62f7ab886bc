package httpapi

import (
	"context"
	"net/http"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// preview is the answer to a write with dry_run. It travels as an error, so that no handler goes on as if
// something had been written, and every write has dry_run without a line of its own.
type preview struct{ wire.Preview }

// Error implements error.
func (p *preview) Error() string { return "this was a dry run" }

// GetStatus implements huma.StatusError.
func (p *preview) GetStatus() int { return http.StatusOK }

// preview tries an op on the state that this node has.
func (s *Server) preview(ctx context.Context, op fsm.Op, fields func() sent) error {
	v := s.opts.Backend.View()
	c := command(ctx, "", op)
	c.Time = s.now()
	res, _ := v.Try(c)
	out := &preview{wire.Preview{Would: s.outcome(v, op, res, fields)}}
	if t, ok := targetOfOp(v, op); ok {
		out.Impact = wireImpact(v, t, subject(op))
		showBilling(callerOf(ctx), out.Impact)
	}
	return out
}

// outcome shows the result of an op as the request made alone would be answered.
func (s *Server) outcome(v *fsm.View, op fsm.Op, res fsm.Result, fields func() sent) wire.Outcome {
	if res.Err != nil {
		p := refusalProblem(res.Err, fields())
		return wire.Outcome{Status: p.Status, Problem: p}
	}
	out := wire.Outcome{Status: http.StatusOK}
	switch op.(type) {
	case fsm.AddBlock, fsm.PutGuard:
		out.Status = http.StatusCreated
	case fsm.DeleteGuard, fsm.DeleteList:
		out.Status = http.StatusNoContent
	}
	if res.Block != nil {
		b := wireBlock(v, res.Block)
		out.Block = &b
	}
	for i := range res.Items {
		if b := res.Items[i].Block; b != nil {
			out.Blocks = append(out.Blocks, wireBlock(v, b))
		}
	}
	if res.VM != nil {
		vm := s.wireVM(v, res.VM)
		out.VM = &vm
	}
	if res.Guard != nil {
		g := wireGuard(res.Guard)
		out.Guard = &g
	}
	if res.Account != nil {
		a := wireAccount(v, res.Account)
		out.Account = &a
	}
	if res.List != nil {
		l := wireList(v, res.List)
		out.List = &l
	}
	if res.Settings != nil {
		st := wireSettings(res.Settings)
		out.Settings = &st
	}
	return out
}

// targetOfOp is what an op is about. It is false for one that is about no target.
func targetOfOp(v *fsm.View, op fsm.Op) (fsm.Target, bool) {
	switch op := op.(type) {
	case fsm.AddBlock:
		return op.Target, true
	case fsm.LiftReason:
		return op.Target, true
	case fsm.LiftBlock, fsm.PatchBlock:
		if b, ok := v.Block(subject(op)); ok {
			return b.Target, true
		}
	case fsm.PutGuard:
		return fsm.Target{VM: op.VM, Prefix: op.Prefix}, true
	case fsm.DeleteGuard:
		return fsm.Target{VM: op.VM, Prefix: op.Prefix}, true
	case fsm.DeclareVM:
		return fsm.Target{VM: op.ID}, true
	case fsm.PutAccount:
		return fsm.Target{Account: op.ID}, true
	case fsm.DeleteList:
		return fsm.Target{List: op.Name}, true
	case fsm.DescribeList:
		return fsm.Target{List: op.Name}, true
	}
	return fsm.Target{}, false
}

// subject is the id of the block that an op changes, "" if it changes none.
func subject(op fsm.Op) string {
	switch op := op.(type) {
	case fsm.LiftBlock:
		return op.ID
	case fsm.PatchBlock:
		return op.ID
	}
	return ""
}

// wireImpact shows what a target covers, nil if the target can't be resolved. The block given is not counted
// as an overlap.
func wireImpact(v *fsm.View, t fsm.Target, block string) *wire.Impact {
	i, refused := v.Impact(t)
	if refused != nil {
		return nil
	}
	out := &wire.Impact{
		VMs: append([]string{}, i.VMs...), CountVMs: i.CountVMs, Nodes: append([]string{}, i.Nodes...), Addresses: i.Addresses,
		Guards: []wire.Guarded{}, Overlaps: []wire.Block{},
	}
	for _, g := range i.Guards {
		out.Guards = append(out.Guards, wire.Guarded{Prefix: prefixText(g.Prefix), Why: g.Why})
	}
	for _, b := range i.Overlaps {
		if b.ID != block {
			out.Overlaps = append(out.Overlaps, wireBlock(v, b))
		}
	}
	return out
}
