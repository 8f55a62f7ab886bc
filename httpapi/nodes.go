package httpapi

import (
	"context"
	"maps"
	"slices"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type listNodesInput struct {
	ReadInput
	PageInput
}

type listNodesOutput struct {
	ReadHeaders
	Body wire.Page[wire.Node]
}

// listNodes joins the registered nodes with the members: a node that has not registered yet and one
// that left the cluster are both shown.
func (s *Server) listNodes(ctx context.Context, in *listNodesInput) (*listNodesOutput, error) {
	after, err := decodeCursor("node", in.Cursor)
	if err != nil {
		return nil, err
	}
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	replies := s.replies(ctx, "")
	ids := map[string]bool{}
	for n := range v.Nodes() {
		ids[n.ID] = true
	}
	for id := range replies {
		ids[id] = true
	}
	p := page[wire.Node]{kind: "node", limit: in.Limit}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		if id > after && !p.add(id, func() wire.Node { return s.joinNode(v, id, replies[id]) }) {
			break
		}
	}
	return &listNodesOutput{ReadHeaders: h, Body: p.wire()}, nil
}

func (s *Server) joinNode(v *fsm.View, id string, r *reply) wire.Node {
	n, _ := v.Node(id)
	var out wire.Node
	if r == nil {
		out = s.wireNode(n, nil, nil)
	} else {
		out = s.wireNode(n, &r.member, r)
	}
	for range v.VMsOn(id) {
		out.VMs++
	}
	return out
}

// replies asks a member once for its indexes, or all if node is empty.
func (s *Server) replies(ctx context.Context, node string) map[string]*reply {
	out := map[string]*reply{}
	for _, r := range s.ask(ctx, fsm.Query{}, node) {
		out[r.member.ID] = r
	}
	return out
}

type getNodeInput struct {
	ReadInput
	ID string `path:"id" maxLength:"255"`
}

type nodeOutput struct {
	ReadHeaders
	ETag string `header:"ETag"`
	Body wire.Node
}

func (s *Server) getNode(ctx context.Context, in *getNodeInput) (*nodeOutput, error) {
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	r := s.replies(ctx, in.ID)[in.ID]
	n, ok := v.Node(in.ID)
	if !ok && r == nil {
		p := problem(wire.CodeNotFound, "there is no node %q", in.ID)
		p.Errors = []wire.FieldError{{Location: "path.id", Message: "no such node; the list of nodes has their ids", Value: echo(in.ID)}}
		return nil, p
	}
	out := &nodeOutput{ReadHeaders: h, Body: s.joinNode(v, in.ID, r)}
	if n != nil {
		out.ETag = etag(n.Revision)
	}
	return out, nil
}
