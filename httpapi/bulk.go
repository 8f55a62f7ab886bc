package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

const (
	bulkReadTimeout  = time.Minute     // for the whole body
	bulkWriteTimeout = 2 * time.Minute // until the answer is out
	// One chunk is one entry of the log. Smaller ones let other writes in between.
	chunkOps   = 2_500
	chunkBytes = 4 << 20
	// An atomic request is one entry, whatever its size.
	atomicBytes = 8_000_000
	maxElements = 100_000 // of a request: the answer is held until its end
	maxBulkKey  = 240     // leaves room for the number of a chunk
)

const jsonLines = "application/jsonl"

type bulkInput struct {
	WriteInput
	Atomic      bool   `query:"atomic" doc:"true: all elements or none, in one commit; at most 10,000 elements and 8 MB"`
	ContentType string `header:"Content-Type" doc:"application/jsonl, application/x-ndjson or application/json"`
}

func (s *Server) addBulk(api huma.API, op huma.Operation) {
	op.Description = "The body is one JSON object on each line: {\"add\":{…}} or just the body of POST /v1/blocks, {\"lift\":{\"id\":…}}, " +
		"{\"lift\":{\"target\":{…},\"reason\":…}} or {\"patch\":{\"id\":…,…}}. The answer has a BulkResult on each line, in the same order: " +
		"every element is done or refused by itself, in commits of up to 2,500. With atomic=true all are done, or none and the answer is 409. " +
		"If a commit fails, the elements after it are not tried; the same request with the same Idempotency-Key goes on where it stopped.\n\n" + op.Description
	schemas := api.OpenAPI().Components.Schemas
	element := schemas.Schema(reflect.TypeFor[wire.BulkOp](), true, "BulkOp")
	result := schemas.Schema(reflect.TypeFor[wire.BulkResult](), true, "BulkResult")
	op.Responses["200"] = &huma.Response{Description: "One BulkResult for each element", Content: map[string]*huma.MediaType{jsonLines: {Schema: result}}}
	aborted := op.Responses["409"]
	aborted.Description += "; with atomic=true as a BulkResult for each element"
	aborted.Content[jsonLines] = &huma.MediaType{Schema: result}
	decoder := newBulkDecoder(&op, schemas)
	huma.Register(api, op, func(ctx context.Context, in *bulkInput) (*raw, error) {
		if err := in.check(); err != nil {
			return nil, err
		}
		return &raw{Body: func(c huma.Context) {
			r, w := humachi.Unwrap(c)
			s.bulk(ctx, w, r, in, decoder)
		}}, nil
	})
	// Only now, or huma would read the body.
	api.OpenAPI().Paths[op.Path].Post.RequestBody = &huma.RequestBody{
		Required: true, Content: map[string]*huma.MediaType{jsonLines: {Schema: element}},
	}
}

func (in *bulkInput) check() error {
	if len(in.Key) > maxBulkKey {
		return fieldProblem("header.Idempotency-Key", in.Key, "has %d bytes; of a bulk request at most %d are allowed", len(in.Key), maxBulkKey)
	}
	if p := checkKey(in.Key); p != nil {
		return p
	}
	media, _, err := mime.ParseMediaType(in.ContentType)
	if in.ContentType != "" && (err != nil || !slices.Contains([]string{jsonLines, "application/x-ndjson", "application/json"}, media)) {
		return problem(wire.CodeMediaType, "Content-Type %q is not supported; send application/jsonl", echo(in.ContentType))
	}
	return nil
}

// bulk reads, commits and answers. Chunks are committed while the body is read; the answer is sent after
// its end.
func (s *Server) bulk(ctx context.Context, w http.ResponseWriter, r *http.Request, in *bulkInput, d *bulkDecoder) {
	rc, now := http.NewResponseController(w), time.Now()
	// A recorder in a test has no deadlines; a connection always has.
	_ = errors.Join(rc.SetReadDeadline(now.Add(bulkReadTimeout)), rc.SetWriteDeadline(now.Add(bulkWriteTimeout)))
	limit := s.opts.MaxBulkBytes
	if in.Atomic {
		limit = min(limit, atomicBytes)
	}
	if r.ContentLength > limit {
		writeError(w, s.readFault(&http.MaxBytesError{Limit: limit}))
		return
	}
	b := &bulkRun{s: s, ctx: ctx, in: in, key: in.Key, status: http.StatusOK, replayed: true}
	if b.key == "" {
		b.key = newKey()
	}
	b.lines = json.NewEncoder(&b.out)
	b.lines.SetEscapeHTML(false)
	reader := bulkReader{lines: bufio.NewReaderSize(http.MaxBytesReader(w, r.Body, limit), maxBulkLine), decode: d, caller: callerOf(ctx), find: s.finder(ctx)}
	if err := b.read(&reader); err != nil {
		writeError(w, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", jsonLines)
	h.Set("Palisade-Index", strconv.FormatUint(b.index, 10))
	if b.replayed && b.index != 0 {
		h.Set("Idempotency-Replayed", "true")
	}
	w.WriteHeader(b.status)
	_, _ = w.Write(b.out.Bytes())
}

// bulkRun is one bulk request.
type bulkRun struct {
	s   *Server
	ctx context.Context
	in  *bulkInput
	key string // of the request

	pending []element // read and not answered
	size    int       // of pending, in bytes
	chunks  int       // committed or tried
	stopped bool      // a commit failed: nothing more is tried

	out      bytes.Buffer // the answer so far
	lines    *json.Encoder
	status   int
	index    uint64 // of the last commit
	replayed bool   // every commit was
}

// read walks the body. An error is the problem that answers the whole request.
func (b *bulkRun) read(r *bulkReader) error {
	for {
		e, err := r.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return b.cut(b.s.readFault(err), r.element, r.line+1)
		}
		if b.in.Atomic && len(b.pending) == fsm.MaxBatchOps {
			return problem(wire.CodeTooLarge, "an atomic request has at most %d elements; send it in parts, or without atomic", fsm.MaxBatchOps)
		}
		if e.index == maxElements {
			return b.cut(problem(wire.CodeTooLarge, "a request has at most %d elements; send it in parts", maxElements), e.index, e.line)
		}
		b.pending, b.size = append(b.pending, e), b.size+e.size
		if !b.in.Atomic && (len(b.pending) == chunkOps || b.size >= chunkBytes) {
			if err := b.flush(); err != nil {
				return err
			}
		}
	}
	if r.element == 0 {
		return problem(wire.CodeInvalid, "the body has no element; send one JSON object on each line")
	}
	return b.flush()
}

// cut ends a request before the element that is named. What was committed stays and is told; what was read
// after it is not tried.
func (b *bulkRun) cut(p *wire.Problem, index, line int) error {
	if b.index == 0 {
		return p
	}
	for _, e := range b.pending {
		b.answer(e, wire.Outcome{Status: p.Status, Problem: p}, nil)
	}
	b.answer(element{index: index, line: line}, wire.Outcome{Status: p.Status, Problem: p}, nil)
	return nil
}

// flush commits what is pending and answers it. An error is the problem that answers the whole request: its first
// commit failed.
func (b *bulkRun) flush() error {
	var ops []fsm.Op
	for _, e := range b.pending {
		if e.problem == nil {
			ops = append(ops, e.op)
		}
	}
	defer func() { b.pending, b.size = b.pending[:0], 0 }()
	refused := len(ops) < len(b.pending)
	switch {
	case b.in.Atomic && refused:
		b.status = http.StatusConflict
		b.refuse(abortedProblem("another element of this atomic request is not valid; nothing was changed"))
		return nil
	case b.stopped:
		b.refuse(abortedProblem("not tried, because an earlier commit of this request failed; send the same request again with the same Idempotency-Key"))
		return nil
	case len(ops) == 0:
		b.refuse(nil)
		return nil
	}
	view := b.s.opts.Backend.View()
	res, err := b.commit(view, fsm.Batch{Ops: ops, Atomic: b.in.Atomic})
	if err != nil {
		if b.index == 0 {
			return err
		}
		b.stopped = true
		b.refuse(problemIn(err))
		return nil
	}
	if !b.in.DryRun {
		view = b.s.opts.Backend.View()
	}
	b.results(view, res)
	return nil
}

// commit commits or tries one chunk. The error is a problem, also if the chunk as a whole is refused.
func (b *bulkRun) commit(v *fsm.View, batch fsm.Batch) (fsm.Result, error) {
	key := b.key + "#" + strconv.Itoa(b.chunks)
	b.chunks++
	var res fsm.Result
	if b.in.DryRun {
		c := command(b.ctx, "", batch)
		c.Time = b.s.now()
		res, _ = v.Try(c)
	} else {
		var err error
		if res, err = b.s.send(b.ctx, key, batch); err != nil {
			return res, b.s.outcomeProblem(err, b.key)
		}
	}
	if res.Err != nil {
		return res, refusalProblem(res.Err, sent{"key": at("header.Idempotency-Key", b.in.Key)})
	}
	if !b.in.DryRun {
		b.index = res.Index
		b.replayed = b.replayed && res.Replayed
	}
	return res, nil
}

// results answers the pending elements with what their ops gave.
func (b *bulkRun) results(v *fsm.View, res fsm.Result) {
	next := 0
	for _, e := range b.pending {
		if e.problem != nil {
			b.answer(e, wire.Outcome{Status: e.problem.Status, Problem: e.problem}, nil)
			continue
		}
		item := res.Items[next]
		next++
		out := b.s.outcome(v, e.op, item, e.fields)
		if b.in.Atomic && item.Err != nil {
			b.status = http.StatusConflict
		}
		var impact *wire.Impact
		if op, ok := e.op.(fsm.AddBlock); ok && b.in.DryRun {
			impact = wireImpact(v, op.Target, "")
			showBilling(callerOf(b.ctx), impact)
			shorten(impact)
		}
		b.answer(e, out, impact)
	}
}

// shorten bounds the impact of one element among thousands.
func shorten(i *wire.Impact) {
	const most = 10
	if i != nil {
		i.VMs, i.Overlaps = i.VMs[:min(len(i.VMs), most)], i.Overlaps[:min(len(i.Overlaps), most)]
	}
}

// refuse answers the pending elements without a commit: each with its own problem, or the one given.
func (b *bulkRun) refuse(p *wire.Problem) {
	for _, e := range b.pending {
		own := e.problem
		if own == nil {
			own = p
		}
		b.answer(e, wire.Outcome{Status: own.Status, Problem: own}, nil)
	}
}

func (b *bulkRun) answer(e element, out wire.Outcome, impact *wire.Impact) {
	// The documents of the API encode; a value in a problem that does not is left out.
	if b.lines.Encode(wire.BulkResult{Index: e.index, Line: e.line, Impact: impact, Outcome: out}) != nil {
		out.Problem.Errors = nil
		_ = b.lines.Encode(wire.BulkResult{Index: e.index, Line: e.line, Impact: impact, Outcome: out})
	}
}

func abortedProblem(why string) *wire.Problem { return problem(wire.CodeAborted, "%s", why) }

// problemIn is the problem in an error of commit.
func problemIn(err error) *wire.Problem {
	if p, ok := errors.AsType[*wire.Problem](err); ok {
		return p
	}
	return problem(wire.CodeInternal, "the write failed")
}

// writeError answers outside of huma with a problem and its headers.
func writeError(w http.ResponseWriter, err error) {
	if he, ok := errors.AsType[huma.HeadersError](err); ok {
		for name, values := range he.GetHeaders() {
			w.Header()[name] = values
		}
	}
	writeProblem(w, problemIn(err))
}
