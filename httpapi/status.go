package httpapi

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type statusInput struct{ ReadInput }

type statusOutput struct {
	ReadHeaders
	Body wire.Status
}

func (s *Server) status(ctx context.Context, in *statusInput) (*statusOutput, error) {
	replies := s.replies(ctx, "")
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	st := s.opts.Backend.Status()
	body := wire.Status{
		Node: st.Node, Leader: st.Leader, Quorum: st.Quorum, Term: st.Term,
		Index: v.Index(), CommitIndex: st.CommitIndex, StateHash: v.Hash(),
		AgeMS: h.Age, CaughtUp: st.CaughtUp, Version: s.opts.Version,
		Counts: wire.Counts{VMs: v.CountVMs(), Blocks: v.CountBlocks(), ActiveBlocks: v.CountActive(), PendingBlocks: v.CountPending()},
	}
	for range v.Members() {
		body.Counts.Nodes++
	}
	for range v.Lost() {
		body.Counts.LostVMs++
	}
	for range v.Guards() {
		body.Counts.Guards++
	}
	body.EnforcedIndex = s.lowestEnforced(maps.Keys(replies))
	for id, r := range replies {
		if r.member.Alive || r.member.Self {
			body.Counts.Alive++
		}
		if r.member.Self {
			body.NodeEnforcedIndex = s.memory.of(id).enforced
		}
	}
	body.Problems = problems(replies)
	return &statusOutput{ReadHeaders: h, Body: body}, nil
}

// codePeersSilent is what the leader says of members that it does not hear.
const codePeersSilent = "peers_silent"

// problems are what the members say of themselves, and those that said nothing. The critical come first, then
// by node and code.
func problems(replies map[string]*reply) []wire.NodeProblem {
	out := []wire.NodeProblem{}
	for id, r := range replies {
		if !r.ok {
			out = append(out, silent(r))
		}
		for _, p := range r.report.Problems {
			if p.Code == codePeersSilent {
				continue // each of them is listed
			}
			out = append(out, wire.NodeProblem{Node: id, Code: p.Code, Severity: string(p.Severity), Since: p.Since, Text: p.Text})
		}
	}
	slices.SortFunc(out, func(a, b wire.NodeProblem) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Code, b.Code))
	})
	return out
}

// silent is the problem of a member that did not answer.
func silent(r *reply) wire.NodeProblem {
	p := wire.NodeProblem{Node: r.member.ID, Code: wire.ProblemSilent, Severity: string(fsm.Warning), Since: r.member.LastHeard.UTC()}
	switch {
	case r.refused:
		p.Text = "its agent does not run"
	case !r.member.Alive:
		p.Text = "it is not heard of by gossip"
	default:
		p.Text = "it " + noAnswer(r.err)
	}
	p.Text += ". Its kernel goes on enforcing what it has. Start its agent, or retire the node if it is gone for good."
	return p
}

// lowestEnforced is the lowest log index in any kernel of the members that were ever heard.
func (s *Server) lowestEnforced(members iter.Seq[string]) (index uint64) {
	first := true
	for id := range members {
		if h := s.memory.of(id); !h.at.IsZero() && (first || h.enforced < index) {
			index, first = h.enforced, false
		}
	}
	return index
}

type healthzOutput struct {
	Body struct {
		Status string `json:"status" example:"ok"`
	}
}

func (s *Server) healthz(context.Context, *struct{}) (*healthzOutput, error) {
	var out healthzOutput
	out.Body.Status = "ok"
	return &out, nil
}

type readyzOutput struct {
	Body struct {
		Ready bool `json:"ready"`
	}
}

// readyz asks this node's own kernel for the index of the state: what is not in the kernel is not in
// force. Lists are left out: while one loads, which takes seconds on every node at once, the nodes are of use.
func (s *Server) readyz(ctx context.Context, _ *struct{}) (*readyzOutput, error) {
	b := s.opts.Backend
	st := b.Status()
	var reasons []wire.FieldError
	not := func(what, why string) { reasons = append(reasons, wire.FieldError{Location: what, Message: why}) }
	if !st.Quorum {
		not("quorum", "no contact with a leader that has quorum")
	}
	if !st.CaughtUp {
		not("caught_up", "not everything that the leader committed is applied yet")
	}
	want := b.View().Index()
	actx, cancel := context.WithTimeout(ctx, s.opts.AskTimeout)
	defer cancel()
	switch r, err := b.Ask(actx, st.Node, fsm.Query{WaitIndex: want}); {
	case err != nil:
		not("enforced", "the kernel did not reach the state's index in time")
	case r.Problem != "":
		not("enforced", "the kernel is behind: "+r.Problem)
	case r.EnforcedBlocks < want:
		not("enforced", "the kernel is behind the state")
	}
	if len(reasons) == 0 {
		var out readyzOutput
		out.Body.Ready = true
		return &out, nil
	}
	text := make([]string, len(reasons))
	for i, r := range reasons {
		text[i] = r.Message
	}
	p := problem(wire.CodeNotReady, "%s", strings.Join(text, "; "))
	p.Errors = reasons
	return nil, huma.ErrorWithHeaders(p, http.Header{"Retry-After": {"1"}})
}
