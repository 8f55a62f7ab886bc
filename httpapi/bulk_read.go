package httpapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

const maxBulkLine = 64 << 10 // bytes; a request with the longest note has some 30 KiB at most

// element is one line of a bulk request: an op, or why it is none.
type element struct {
	index, line, size int
	op                fsm.Op
	fields            func() sent // of op, for its refusal
	problem           *wire.Problem
}

// bulkReader reads the elements of a bulk request one by one.
type bulkReader struct {
	lines   *bufio.Reader
	decode  *bulkDecoder
	caller  *caller
	find    func(id string) (*fsm.Block, error)
	line    int
	element int
}

// next returns io.EOF after the last element. Any other error is that of the body.
func (r *bulkReader) next() (element, error) {
	for {
		text, long, err := r.readLine()
		if err != nil {
			return element{}, err
		}
		r.line++
		text = bytes.TrimSpace(text)
		if len(text) == 0 && !long {
			continue
		}
		e := element{index: r.element, line: r.line, size: len(text)}
		r.element++
		if long {
			e.problem = problem(wire.CodeTooLarge, "line %d has more than the %d bytes allowed", r.line, maxBulkLine)
			return e, nil
		}
		e.op, e.fields, e.problem = r.decode.element(r.caller, text)
		if e.problem == nil {
			e.problem = r.refusal(e.op)
		}
		return e, nil
	}
}

// refusal is why the caller may not do an op, nil if it may.
func (r *bulkReader) refusal(op fsm.Op) *wire.Problem {
	if err := permit(r.caller, op, r.find); err != nil {
		return problemIn(err)
	}
	return nil
}

// readLine returns a line, valid until the next call, or that it is too long; that one is skipped.
func (r *bulkReader) readLine() (line []byte, long bool, err error) {
	for {
		part, err := r.lines.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			long = true
			continue
		case err == nil, errors.Is(err, io.EOF) && (len(part) > 0 || long):
			return part, long, nil
		}
		return nil, false, err
	}
}

// readFault says why a body could not be read to its end.
func (s *Server) readFault(err error) *wire.Problem {
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return problem(wire.CodeTooLarge, "the body has more than the %d bytes allowed; send it in parts", tooLarge.Limit)
	}
	return problem(wire.CodeRequestTimeout, "the body did not arrive whole within %s", bulkReadTimeout)
}

// bulkDecoder decodes lines as strictly as the bodies of single writes are: by the same schemas.
type bulkDecoder struct {
	op       *huma.Operation
	schemas  huma.Registry
	add      *huma.Schema
	lift     *huma.Schema
	patch    *huma.Schema
	validate sync.Pool // of *check
}

type check struct {
	path   *huma.PathBuffer
	result huma.ValidateResult
}

func newBulkDecoder(op *huma.Operation, schemas huma.Registry) *bulkDecoder {
	d := &bulkDecoder{op: op, schemas: schemas}
	d.add = schemas.Schema(reflect.TypeFor[wire.BlockRequest](), true, "BlockRequest")
	d.lift = schemas.Schema(reflect.TypeFor[wire.BulkLift](), true, "BulkLift")
	d.patch = schemas.Schema(reflect.TypeFor[wire.BulkPatch](), true, "BulkPatch")
	d.validate.New = func() any { return &check{path: huma.NewPathBuffer([]byte{}, 0)} }
	return d
}

// element decodes one line.
func (d *bulkDecoder) element(c *caller, line []byte) (fsm.Op, func() sent, *wire.Problem) {
	var fields map[string]json.RawMessage
	if err := unmarshalJSON(line, &fields); err != nil || fields == nil {
		return nil, nil, problem(wire.CodeMalformedJSON, "the line is not one JSON object")
	}
	verb, body := "add", line // without a verb
	for _, known := range []string{"add", "lift", "patch"} {
		if raw, ok := fields[known]; ok {
			verb, body = known, raw
			if len(fields) != 1 {
				return nil, nil, fieldProblem("body", nil, "want exactly one of add, lift and patch, and nothing beside it")
			}
		}
	}
	switch verb {
	case "lift":
		var in wire.BulkLift
		if p := d.into(d.lift, body, &in); p != nil {
			return nil, nil, p
		}
		return liftElement(&in)
	case "patch":
		var in wire.BulkPatch
		if p := d.into(d.patch, body, &in); p != nil {
			return nil, nil, p
		}
		op, p := patchOp(in.ID, in.Revision, &in.BlockPatch)
		return op, func() sent {
			f := patchFields(in.ID, &in.BlockPatch)
			f["id"], f["if_revision"] = at("body.id", in.ID), at("body.revision", in.Revision)
			return f
		}, p
	}
	var in wire.BlockRequest
	if p := d.into(d.add, body, &in); p != nil {
		return nil, nil, p
	}
	op, p := addOp(c, &in)
	return op, func() sent { return addFields(&in) }, p
}

func liftElement(in *wire.BulkLift) (fsm.Op, func() sent, *wire.Problem) {
	switch {
	case (in.ID == "") == (in.Target == nil):
		return nil, nil, fieldProblem("body", nil, "want either id, or target and reason")
	case in.ID != "" && in.Reason != "":
		return nil, nil, fieldProblem("body.reason", in.Reason, "belongs to a target, not to an id")
	case in.ID != "":
		return fsm.LiftBlock{ID: in.ID, IfRevision: in.Revision}, func() sent {
			return sent{"id": at("body.id", in.ID), "if_revision": at("body.revision", in.Revision)}
		}, nil
	case in.Revision != 0:
		return nil, nil, fieldProblem("body.revision", in.Revision, "belongs to an id, not to a target")
	}
	t, p := targetOf("body.target", *in.Target)
	if p != nil {
		return nil, nil, p
	}
	return fsm.LiftReason{Target: t, Reason: in.Reason}, func() sent {
		f := targetFields("body.target", *in.Target)
		f["reason"] = at("body.reason", in.Reason)
		return f
	}, nil
}

// into decodes a document that its schema allows.
func (d *bulkDecoder) into(schema *huma.Schema, raw []byte, out any) *wire.Problem {
	var doc any
	if err := json.Unmarshal(raw, &doc); err != nil {
		return problem(wire.CodeMalformedJSON, "the line is not one JSON object: %s", err)
	}
	v := d.validate.Get().(*check)
	defer d.validate.Put(v)
	v.path.Reset()
	v.path.Push("body")
	v.result.Reset()
	huma.Validate(d.schemas, schema, v.path, huma.ModeWriteToServer, doc, &v.result)
	if len(v.result.Errors) > 0 {
		details := make([]*huma.ErrorDetail, 0, len(v.result.Errors))
		for _, err := range v.result.Errors {
			if detail, ok := errors.AsType[*huma.ErrorDetail](err); ok {
				details = append(details, detail)
			}
		}
		return invalidProblem(d.op, details)
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return problem(wire.CodeInvalid, "%s", fmt.Sprintf("body: %s", err))
	}
	return nil
}
