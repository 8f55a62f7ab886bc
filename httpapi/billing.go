package httpapi

import (
	"context"
	"slices"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// A caller with the scope billing writes blocks of the reason unpaid on VMs and accounts, and reads those. Which
// routes it may use is in their table; what it may do there is decided here, for each op.

// billable says whether a block is one that billing may see and change.
func billable(b *fsm.Block) bool {
	return b.Reason == fsm.ReasonUnpaid && (b.Target.VM != "" || b.Target.Account != "")
}

// billed is billable for callers with the scope billing, and true for all others.
func billed(ctx context.Context, b *fsm.Block) bool {
	return callerOf(ctx).scope != ScopeBilling || billable(b)
}

// notBillable is the refusal; location says where in the request the reason stands, if that is in one place.
func notBillable(c *caller, location string, value any) *wire.Problem {
	p := problem(wire.CodeForbidden, "%s has scope %q, which is for blocks of the reason unpaid on a VM or an account", c.actor, c.scope)
	if location == "" {
		return p
	}
	p.Errors = []wire.FieldError{{Location: location, Message: "is not for the scope billing", Value: echo(value)}}
	return p
}

// permit returns why the caller may not do an op, nil if it may. A block's reason and target never change, and its id is
// never used again: what is read here holds when the op is applied. find looks up a block.
func permit(c *caller, op fsm.Op, find func(id string) (*fsm.Block, error)) error {
	if c.scope != ScopeBilling {
		return nil
	}
	one := func(id string) error {
		b, err := find(id)
		if err != nil {
			return err
		}
		if !billable(b) {
			return notBillable(c, "", nil)
		}
		return nil
	}
	switch op := op.(type) {
	case fsm.AddBlock:
		switch {
		case op.Target.VM == "" && op.Target.Account == "":
			return notBillable(c, "body.target", op.Target.String())
		case op.Reason != fsm.ReasonUnpaid:
			return notBillable(c, "body.reason", op.Reason)
		case op.RedirectTo.IsValid():
			// It would send a customer's visitors to whatever server the caller names.
			return notBillable(c, "body.redirect_to", op.RedirectTo.String())
		case op.Force:
			return notBillable(c, "body.force", true)
		}
		return nil
	case fsm.LiftReason:
		switch {
		case op.Target.VM == "" && op.Target.Account == "":
			return notBillable(c, "", nil)
		case op.Reason != fsm.ReasonUnpaid:
			return notBillable(c, "", nil)
		}
		return nil
	case fsm.LiftBlock:
		return one(op.ID)
	case fsm.PatchBlock:
		return one(op.ID)
	}
	return notBillable(c, "", nil) // fail closed: also for ops that are yet to come
}

// finder looks up blocks for permit. A block that this node does not know may have been made on another one just now:
// that is looked at once for each request.
func (s *Server) finder(ctx context.Context) func(id string) (*fsm.Block, error) {
	v, strong := s.opts.Backend.View(), false
	return func(id string) (*fsm.Block, error) {
		if _, known := v.Block(id); !known && !strong {
			now, err := s.strongView(ctx)
			if err != nil {
				return nil, err
			}
			v, strong = now, true
		}
		return findBlock(v, id)
	}
}

// showBilling leaves out of an impact what the caller may not read.
func showBilling(c *caller, i *wire.Impact) {
	if i == nil || c.scope != ScopeBilling {
		return
	}
	i.Overlaps = slices.DeleteFunc(i.Overlaps, func(b wire.Block) bool {
		return b.Reason != fsm.ReasonUnpaid || b.Target.VM == "" && b.Target.Account == ""
	})
}
