package httpapi

import (
	"context"
	"net/http"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

func leaveRoutes() []route {
	post := func(path, id, summary string) route {
		return route{op: operation(http.MethodPost, path, id, summary, http.StatusOK), scope: ScopeAdmin, codes: []wire.Code{wire.CodeNotFound, wire.CodeConflict}}
	}
	drain := post("/v1/nodes/{id}/drain", "drain-node", "Take all voter duty from a node; what runs there stays")
	drain.add = do((*Server).drainNode)
	undrain := post("/v1/nodes/{id}/undrain", "undrain-node", "Let a node be a voter again")
	undrain.add = do((*Server).undrainNode)
	retire := post("/v1/nodes/{id}/retire", "retire-node", "End a node's membership for ever; its VMs become lost")
	retire.add = do((*Server).retireNode)
	settle := post("/v1/fleet/settle", "settle-epoch", "After a recovery: let nodes let go of what only their kernels hold")
	settle.add = do((*Server).settleEpoch)
	return []route{drain, undrain, retire, settle}
}

type leaveInput struct {
	WriteInput
	ID string `path:"id" maxLength:"255"`
}

type leaveOutput struct {
	WriteHeaders
	ETag string `header:"ETag"`
	Body wire.Node
}

func (s *Server) drainNode(ctx context.Context, in *leaveInput) (*leaveOutput, error) {
	return s.leave(ctx, in.WriteInput, in.ID, fsm.DrainNode{ID: in.ID})
}

func (s *Server) undrainNode(ctx context.Context, in *leaveInput) (*leaveOutput, error) {
	return s.leave(ctx, in.WriteInput, in.ID, fsm.DrainNode{ID: in.ID, Undo: true})
}

func (s *Server) leave(ctx context.Context, in WriteInput, id string, op fsm.Op) (*leaveOutput, error) {
	res, err := s.propose(ctx, in, op, sent{"id": at("path.id", id)}.just)
	if err != nil {
		return nil, err
	}
	if res.Node == nil {
		return nil, problem(wire.CodeInternal, "the write was committed at index %d, but its result has no node", res.Index)
	}
	return &leaveOutput{
		WriteHeaders: WriteHeaders{Index: res.Index, Replayed: replayed(res)}, ETag: etag(res.Node.Revision),
		Body: s.joinNode(s.opts.Backend.View(), id, s.replies(ctx, id)[id]),
	}, nil
}

type retireInput struct {
	WriteInput
	ID   string `path:"id" maxLength:"255"`
	Body wire.RetireRequest
}

func (s *Server) retireNode(ctx context.Context, in *retireInput) (*leaveOutput, error) {
	return s.leave(ctx, in.WriteInput, in.ID, fsm.RetireNode{ID: in.ID, Force: in.Body.Force})
}

type settleInput struct {
	WriteInput
	Body wire.SettleRequest
}

type settleOutput struct {
	WriteHeaders
	Body wire.Settled
}

func (s *Server) settleEpoch(ctx context.Context, in *settleInput) (*settleOutput, error) {
	res, err := s.propose(ctx, in.WriteInput, fsm.SettleEpoch{Epoch: in.Body.Epoch}, sent{"epoch": at("body.epoch", in.Body.Epoch)}.just)
	if err != nil {
		return nil, err
	}
	return &settleOutput{WriteHeaders: WriteHeaders{Index: res.Index, Replayed: replayed(res)}, Body: wire.Settled{Epoch: in.Body.Epoch}}, nil
}
