package httpapi

import (
	"cmp"
	"context"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// guardedSource asks the node of a VM what it is bound to there; nil if it is not to be bound.
func (s *Server) guardedSource(ctx context.Context, v *fsm.View, vm *fsm.VM) *wire.SourceGuard {
	if !v.SourceGuarded(vm) {
		return nil
	}
	out := &wire.SourceGuard{}
	if vm.State != fsm.VMRunning && vm.State != fsm.VMMigrating {
		out.Why = "it does not run"
		return out
	}
	out.Node, out.Why = vm.Node, "its node is not reached"
	for _, r := range s.ask(ctx, fsm.Query{SourceGuard: vm.ID}, vm.Node) {
		switch known := r.report.SourceGuard; {
		case !r.ok:
			out.Why = "its node " + noAnswer(r.err)
		case known == nil:
			out.Why = "its node has not bound it yet"
		default:
			out.MACs, out.Addresses, out.Why = known.MACs, known.Addresses, known.Why
			out.Dropped = wire.Counters{Packets: known.Packets, Bytes: known.Bytes}
		}
	}
	return out
}

// mayBind refuses another source guard of a VM by a caller who may not set that of the fleet. Like mayProtect it compares
// with what this node knows.
func mayBind(c *caller, was fsm.SourceGuard, is string) *wire.Problem {
	set := cmp.Or(string(was), string(fsm.SourceReset))
	if is == "" || is == set || allows(c.scope, ScopeAdmin) {
		return nil
	}
	p := problem(wire.CodeForbidden, "%s has scope %q; to change source_guard needs %q", c.actor, c.scope, ScopeAdmin)
	p.Errors = []wire.FieldError{{Location: "body.source_guard", Message: "only an admin may change it; leave it out", Value: is}}
	return p
}
