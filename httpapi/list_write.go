package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

const (
	listReadTimeout  = 5 * time.Minute // for the whole body
	listWriteTimeout = 10 * time.Minute
	// listStepTimeout is how long one part of an upload is tried.
	listStepTimeout = 30 * time.Second
)

type putListInput struct {
	ChangeInput
	ListInput
	DryRun      bool `query:"dry_run" doc:"true: change nothing and answer with what would happen"`
	SkipInvalid bool `query:"skip_invalid" doc:"true: leave out what is no address or CIDR and say so; else nothing is applied"`
	ForceInput
	Origin      string `query:"origin" maxLength:"2048" doc:"Where the content comes from, for people" example:"drop.txt"`
	ContentType string `header:"Content-Type" doc:"text/plain or application/json"`
}

// ForceInput is what a change of a list takes that may make a hold wide.
type ForceInput struct {
	Force bool `query:"force" doc:"true: allow that a block which holds the list comes to touch more than the settings allow; takes the scope admin"`
}

// allowed is the problem of a caller who may not force.
func (in *ForceInput) allowed(ctx context.Context) error {
	c := callerOf(ctx)
	if !in.Force || allows(c.scope, ScopeAdmin) {
		return nil
	}
	p := problem(wire.CodeForbidden, "%s has scope %q; force needs %q", c.actor, c.scope, ScopeAdmin)
	p.Errors = []wire.FieldError{{Location: "query.force", Message: "needs the scope admin", Value: true}}
	return p
}

func (s *Server) addPutList(api huma.API, op huma.Operation) {
	op.Description = "The body has an address or a CIDR on each line, with comments after # or ;, or is JSON: {\"prefixes\":[…]}. Entries that are " +
		"repeated or lie in another are merged. The new content replaces the old at one log index; to put the same content again changes nothing, " +
		"so that a retry needs no Idempotency-Key. Bad lines are told by number, the first 100 of them.\n\n" + op.Description
	schemas := api.OpenAPI().Components.Schemas
	result := schemas.Schema(reflect.TypeFor[wire.ListResult](), true, "ListResult")
	body := schemas.Schema(reflect.TypeFor[wire.ListPrefixesRequest](), true, "ListPrefixesRequest")
	op.Responses["200"] = &huma.Response{Description: http.StatusText(http.StatusOK), Content: map[string]*huma.MediaType{"application/json": {Schema: result}}}
	huma.Register(api, op, func(ctx context.Context, in *putListInput) (*raw, error) {
		return &raw{Body: func(c huma.Context) {
			r, w := humachi.Unwrap(c)
			s.putList(ctx, w, r, in)
		}}, nil
	})
	// Only now, or huma would read the body.
	api.OpenAPI().Paths[op.Path].Put.RequestBody = &huma.RequestBody{
		Required: true, Content: map[string]*huma.MediaType{"text/plain": {}, "application/json": {Schema: body}},
	}
}

func (s *Server) putList(ctx context.Context, w http.ResponseWriter, r *http.Request, in *putListInput) {
	rc, now := http.NewResponseController(w), time.Now()
	// A recorder in a test has no deadlines; a connection always has.
	_ = errors.Join(rc.SetReadDeadline(now.Add(listReadTimeout)), rc.SetWriteDeadline(now.Add(listWriteTimeout)))
	out, err := s.replaceList(ctx, http.MaxBytesReader(w, r.Body, s.opts.MaxListBytes), in)
	if err != nil {
		writeError(w, err)
		return
	}
	b, err := json.Marshal(out.result)
	if err != nil {
		writeError(w, problem(wire.CodeInternal, "the answer could not be encoded"))
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("ETag", etag(out.result.List.Revision))
	h.Set("Palisade-Index", strconv.FormatUint(out.index, 10))
	status := http.StatusOK
	if len(out.result.Unconfirmed) > 0 {
		status = http.StatusAccepted
	}
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

// listWrite is what came of a write.
type listWrite struct {
	result wire.ListResult
	index  uint64
}

func (s *Server) replaceList(ctx context.Context, body io.Reader, in *putListInput) (*listWrite, error) {
	wait, rev, err := in.change()
	if err != nil {
		return nil, err
	}
	if err := in.allowed(ctx); err != nil {
		return nil, err
	}
	var p fsm.ListParser
	if err := s.readList(&p, body, in.ContentType); err != nil {
		return nil, err
	}
	if p.Bad > 0 && !in.SkipInvalid {
		return nil, badLines(&p)
	}
	set, merged := p.Set()
	if set.Len() > fsm.MaxListPrefixes {
		return nil, fieldProblem("body", nil, "has %d prefixes, a list has at most %d", set.Len(), fsm.MaxListPrefixes)
	}
	v := s.opts.Backend.View()
	if !in.DryRun {
		// What is there decides what is written, so it must not be what this node had before the others.
		if v, err = s.strongView(ctx); err != nil {
			return nil, err
		}
	}
	l, was, known := v.List(in.Name)
	stale := rev != 0 && (!known || rev != l.Revision)
	out := &listWrite{result: s.listResult(v, was, set), index: v.Index()}
	out.result.Merged, out.result.Skipped, out.result.Problems = merged, p.Bad, problemsOf(&p)
	out.result.List.Name = in.Name
	if known {
		out.result.List = wireList(v, l)
	}
	if in.DryRun {
		if stale {
			return nil, problem(wire.CodeRevision, "the list is not at revision %d", rev)
		}
		out.dry(v, in.Name, set, in.Force)
		return out, nil
	}
	if known && l.Hash == set.Hash() && (in.Origin == "" || in.Origin == l.Origin) {
		return out, s.awaitList(ctx, out, in.Name, wait)
	}
	if stale {
		return nil, problem(wire.CodeRevision, "the list is not at revision %d", rev)
	}
	origin := in.Origin
	if origin == "" && known {
		origin = l.Origin
	}
	op, small := fsm.PatchList{}, false
	if known && origin == l.Origin {
		op, small = fsm.PatchFrom(l, was, set)
		op.Force = in.Force
	}
	var res fsm.Result
	if small {
		res, err = s.commit(ctx, "", op)
	}
	if !small || err == nil && res.Err != nil && res.Err.Code == fsm.CodeRevision && rev == 0 {
		// Too much for one op; or somebody was faster, and the patch would not lead to this content.
		res, err = s.uploadList(ctx, in.Name, origin, set, fsm.CommitList{IfRevision: rev, Force: in.Force})
	}
	if err != nil {
		return nil, err
	}
	if res.Err != nil {
		return nil, refusalProblem(res.Err, listPlaces(in.Name, in.IfMatch))
	}
	return out, s.listDone(ctx, out, res, wait)
}

// listDone completes the answer to a write that was committed.
func (s *Server) listDone(ctx context.Context, out *listWrite, res fsm.Result, wait time.Duration) error {
	if res.List == nil {
		return problem(wire.CodeInternal, "the write was committed at index %d, but its result has no list", res.Index)
	}
	out.index = res.Index
	out.result.List = wireList(s.opts.Backend.View(), res.List)
	return s.awaitList(ctx, out, res.List.Name, wait)
}

func (s *Server) readList(p *fsm.ListParser, body io.Reader, contentType string) error {
	media, _, err := mime.ParseMediaType(contentType)
	switch {
	case contentType == "", err == nil && media == "text/plain", err == nil && media == "application/octet-stream":
		err = p.ReadText(body)
	case err == nil && media == "application/json":
		err = readListJSON(p, body)
	default:
		return problem(wire.CodeMediaType, "Content-Type %q is not supported; send text/plain or application/json", echo(contentType))
	}
	if err == nil {
		return nil
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) || errors.Is(err, io.ErrUnexpectedEOF) {
		return s.readFault(err)
	}
	if problem := (*wire.Problem)(nil); errors.As(err, &problem) {
		return problem
	}
	if t := (interface{ Timeout() bool })(nil); errors.As(err, &t) && t.Timeout() {
		return s.readFault(err)
	}
	return fieldProblem("body", nil, "%s", firstLine(err))
}

// readListJSON reads {"prefixes":[…]} as it comes, so that a large body is never in memory as a whole.
func readListJSON(p *fsm.ListParser, body io.Reader) error {
	malformed := func(err error) error {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return err
		}
		return problem(wire.CodeMalformedJSON, "the body is not {\"prefixes\":[…]}: %s", firstLine(err))
	}
	d := json.NewDecoder(body)
	for _, want := range []any{json.Delim('{'), "prefixes", json.Delim('[')} {
		got, err := d.Token()
		if err == nil && got != want {
			err = fmt.Errorf("%v where %v belongs", got, want)
		}
		if err != nil {
			return malformed(err)
		}
	}
	for n := 1; d.More(); n++ {
		var text string
		if err := d.Decode(&text); err != nil {
			return malformed(fmt.Errorf("entry %d: %w", n, err))
		}
		if err := p.Add(n, text); err != nil {
			return err
		}
	}
	for _, want := range []json.Delim{']', '}'} {
		if got, err := d.Token(); err != nil || got != want {
			return malformed(fmt.Errorf("no %q at the end", want))
		}
	}
	return nil
}

func badLines(p *fsm.ListParser) *wire.Problem {
	out := problem(wire.CodeInvalid, "%d lines are no address or CIDR that a list can hold; nothing was changed (skip_invalid=true leaves them out)", p.Bad)
	for _, bad := range p.Problems {
		out.Errors = append(out.Errors, wire.FieldError{Location: fmt.Sprintf("line %d", bad.Line), Message: bad.Detail, Value: echo(bad.Text)})
	}
	return out
}

func problemsOf(p *fsm.ListParser) []wire.ListProblem {
	out := []wire.ListProblem{}
	for _, bad := range p.Problems {
		out = append(out, wire.ListProblem{Line: bad.Line, Text: bad.Text, Detail: bad.Detail})
	}
	return out
}

// listResult compares a new content with the one before, and with what can never be blocked.
func (s *Server) listResult(v *fsm.View, was, set fsm.PrefixSet) wire.ListResult {
	out := wire.ListResult{Size: set.Len(), Problems: []wire.ListProblem{}}
	out.List.Blocks = []string{}
	for _, added := range fsm.Diff(was, set) {
		if added {
			out.Added++
		} else {
			out.Removed++
		}
	}
	guarded := make(map[netip.Prefix]bool)
	for _, g := range v.GuardedPrefixes() {
		if around, ok := set.Covering(g.Prefix); ok {
			guarded[around] = true
			continue
		}
		for p := range set.Within(g.Prefix) {
			guarded[p] = true
		}
	}
	out.Guarded = len(guarded)
	return out
}

// dry completes the answer to a dry run.
func (w *listWrite) dry(v *fsm.View, name string, set fsm.PrefixSet, force bool) {
	w.result.DryRun = true
	if refused := v.Widened(name, set); refused != nil && !force {
		w.result.Refused = refused.Detail
	}
	for range v.VMsListed(set) {
		w.result.VMs++
	}
}

// uploadList puts a content in place, part by part: at most one is on its way to the disks at a time, so
// that heartbeats and other writes go in between. The error is a problem.
func (s *Server) uploadList(ctx context.Context, name, origin string, set fsm.PrefixSet, last fsm.CommitList) (fsm.Result, error) {
	id := newKey()
	last.Upload = id
	for op := range fsm.UploadOps(id, name, origin, set) {
		if res, err := s.listStep(ctx, op); err != nil || res.Err != nil {
			s.abortList(ctx, id)
			return res, err
		}
	}
	res, err := s.commit(ctx, "", last)
	if err == nil && res.Err != nil {
		s.abortList(ctx, id)
	}
	return res, err
}

// listStep proposes an op that can be repeated, until its outcome is known.
func (s *Server) listStep(ctx context.Context, op fsm.Op) (fsm.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, listStepTimeout)
	defer cancel()
	for {
		res, err := s.send(ctx, "", op)
		switch {
		case err == nil:
			return res, nil
		case ctx.Err() != nil || !errors.Is(err, fsm.ErrUnknown) && !errors.Is(err, fsm.ErrUnavailable):
			if errors.Is(err, fsm.ErrUnknown) {
				// Nobody sees an upload that is not committed.
				err = fsm.ErrUnavailable
			}
			return fsm.Result{}, s.outcomeProblem(err, "")
		}
	}
}

// abortList drops an upload; if that fails, newer ones will.
func (s *Server) abortList(ctx context.Context, id string) {
	_, _ = s.send(context.WithoutCancel(ctx), "", fsm.AbortList{Upload: id})
}

// awaitList waits until the nodes that are up have the list in their kernels, if a block holds it.
func (s *Server) awaitList(ctx context.Context, out *listWrite, name string, wait time.Duration) error {
	if wait == 0 {
		return nil
	}
	v := s.opts.Backend.View()
	var ids []string
	for b := range v.HeldLists() {
		if b.Target.List == name && b.State == fsm.BlockActive && len(ids) < fsm.MaxQueryBlocks {
			ids = append(ids, b.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	in := func(r *fsm.Report) bool {
		return !slices.ContainsFunc(ids, func(id string) bool { b := r.Blocks[id]; return !b.Enforced || b.Index < out.index })
	}
	for _, r := range s.gather(ctx, fsm.Query{WaitIndex: out.index, Blocks: ids}, wait, true, in) {
		if r.live() && (!r.ok || !in(&r.report)) {
			out.result.Unconfirmed = append(out.result.Unconfirmed, r.member.ID)
		}
	}
	return nil
}

type patchListInput struct {
	WriteInput
	ChangeInput
	ListInput
	ForceInput
	SkipInvalid bool `query:"skip_invalid" doc:"true: leave out what is no address or CIDR and say so; else nothing is applied"`
	Body        wire.ListPatchRequest
}

type patchListOutput struct {
	Status int
	WriteHeaders
	Body wire.ListResult
}

func (s *Server) patchList(ctx context.Context, in *patchListInput) (*patchListOutput, error) {
	wait, rev, err := in.change()
	if err != nil {
		return nil, err
	}
	if err := in.allowed(ctx); err != nil {
		return nil, err
	}
	v := s.opts.Backend.View()
	l, was, err := findList(v, in.Name)
	if err != nil {
		return nil, err
	}
	add, remove, skipped, err := in.entries()
	if err != nil {
		return nil, err
	}
	set := was.Patch(add.set, remove.set)
	out := &listWrite{result: s.listResult(v, was, set), index: v.Index()}
	out.result.List, out.result.Merged = wireList(v, l), add.merged+remove.merged
	out.result.Skipped, out.result.Problems = add.Bad+remove.Bad, skipped
	if in.DryRun {
		out.dry(v, in.Name, set, in.Force)
		return &patchListOutput{Status: http.StatusOK, WriteHeaders: WriteHeaders{ETag: etag(l.Revision), Index: v.Index()}, Body: out.result}, nil
	}
	ops := []fsm.Op{}
	if add.set.Len()+remove.set.Len() > 0 {
		ops = append(ops, fsm.PatchList{Name: in.Name, IfRevision: rev, Add: add.set.Pack(), Remove: remove.set.Pack(), Force: in.Force})
	}
	if in.Body.Owner != nil || in.Body.Note != nil {
		describe := fsm.DescribeList{Name: in.Name, Owner: in.Body.Owner, Note: in.Body.Note}
		if len(ops) == 0 {
			describe.IfRevision = rev
		}
		ops = append(ops, describe)
	}
	var op fsm.Op = fsm.Batch{Ops: ops, Atomic: true}
	switch len(ops) {
	case 0:
		return nil, fieldProblem("body", nil, "changes nothing; give add, remove, owner or note")
	case 1:
		op = ops[0]
	}
	res, err := s.propose(ctx, in.WriteInput, op, listPlaces(in.Name, in.IfMatch).just)
	if err != nil {
		return nil, err
	}
	for _, item := range res.Items {
		if item.Err != nil && item.Err.Code != fsm.CodeAborted {
			return nil, refusalProblem(item.Err, listPlaces(in.Name, in.IfMatch))
		}
		res.List = item.List
	}
	if err := s.listDone(ctx, out, res, wait); err != nil {
		return nil, err
	}
	status := http.StatusOK
	if len(out.result.Unconfirmed) > 0 {
		status = http.StatusAccepted
	}
	return &patchListOutput{
		Status:       status,
		WriteHeaders: WriteHeaders{ETag: etag(out.result.List.Revision), Index: res.Index, Replayed: replayed(res)},
		Body:         out.result,
	}, nil
}

// listEntries are the entries of a patch, read.
type listEntries struct {
	fsm.ListParser

	set    fsm.PrefixSet
	merged int
}

func (in *patchListInput) entries() (add, remove listEntries, skipped []wire.ListProblem, err error) {
	skipped = []wire.ListProblem{}
	var bad []wire.FieldError
	for _, part := range []struct {
		name string
		from []string
		to   *listEntries
	}{{"add", in.Body.Add, &add}, {"remove", in.Body.Remove, &remove}} {
		for i, text := range part.from {
			if err := part.to.Add(i+1, strings.TrimSpace(text)); err != nil {
				return add, remove, skipped, fieldProblem("body."+part.name, nil, "%s", firstLine(err))
			}
		}
		part.to.set, part.to.merged = part.to.Set()
		for _, p := range part.to.Problems {
			bad = append(bad, wire.FieldError{Location: fmt.Sprintf("body.%s[%d]", part.name, p.Line-1), Message: p.Detail, Value: echo(p.Text)})
		}
		skipped = append(skipped, problemsOf(&part.to.ListParser)...)
	}
	if len(bad) > 0 && !in.SkipInvalid {
		p := problem(wire.CodeInvalid, "%d entries are no address or CIDR that a list can hold; nothing was changed (skip_invalid=true leaves them out)", add.Bad+remove.Bad)
		p.Errors = bad
		return add, remove, skipped, p
	}
	return add, remove, skipped, nil
}
