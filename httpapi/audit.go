package httpapi

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
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

// Audit is the audit as this node has it. Its methods are safe for concurrent use.
type Audit interface {
	// Read calls yield with the lines after a number, oldest first, until it returns false. It begins with
	// the oldest that is kept if that is later. A line is valid until yield returns.
	Read(ctx context.Context, after uint64, yield func(line []byte) bool) error
	// Verify follows the chain from the oldest line to the state. A broken chain is no error but a Problem.
	Verify(ctx context.Context) (AuditCheck, error)
}

// AuditCheck is the answer of Verify.
type AuditCheck struct {
	Problem        string
	Records, First uint64
	Written        uint64 // the newest on disk
	Chain          fsm.AuditChain
	Gaps           [][2]uint64
}

// stateAudit is the audit of a node that keeps no more of it than the state does.
type stateAudit struct{ backend Backend }

// Read implements Audit.
func (a stateAudit) Read(_ context.Context, after uint64, yield func(line []byte) bool) error {
	lines, _ := a.backend.View().AuditSince(after)
	for _, line := range lines {
		if !yield(line) {
			break
		}
	}
	return nil
}

// Verify implements Audit.
func (a stateAudit) Verify(context.Context) (AuditCheck, error) {
	view := a.backend.View()
	lines, _ := view.AuditSince(0)
	var out AuditCheck
	for _, line := range lines {
		if out.Records == 0 {
			before, err := fsm.AuditFrom(line)
			if err != nil {
				return out, err
			}
			out.Chain, out.First = before, before.Seq+1
		}
		if err := out.Chain.Next(line); err != nil {
			return out, err
		}
		out.Records++
	}
	return out, nil
}

// Bounds of one answer.
const (
	// auditScan is how many records are looked at for one page; if the filter finds too few, the page is short
	// and its cursor goes on.
	auditScan = 50_000
	// auditWindow is how many records are read at once while going back.
	auditWindow       = 5_000
	auditVerifyWait   = 10 * time.Minute // until the answer is out
	auditExportFlush  = 64 << 10
	auditExportWriter = 30 * time.Second // for one such piece
)

type listAuditInput struct {
	PageInput
	Order   string `query:"order" enum:"newest,oldest" default:"newest" doc:"What comes first"`
	After   uint64 `query:"after" doc:"Only records after this number"`
	Actor   string `query:"actor" maxLength:"255" doc:"Only those of this actor"`
	Object  string `query:"object" maxLength:"255" doc:"Only those of the object with this id"`
	Action  string `query:"action" maxLength:"64" doc:"Only those of this action, or of all that begin with it and a dot" example:"block.add"`
	Outcome string `query:"outcome" maxLength:"64" doc:"Only those with this outcome: done, or the code of a refusal"`
}

type listAuditOutput struct {
	Body wire.Page[wire.AuditRecord]
}

func (s *Server) listAudit(ctx context.Context, in *listAuditInput) (*listAuditOutput, error) {
	last, err := decodeCursor("audit-"+in.Order, in.Cursor)
	if err != nil {
		return nil, err
	}
	var seq uint64
	if last != "" {
		if seq, err = strconv.ParseUint(last, 10, 64); err != nil {
			return nil, fieldProblem("query.cursor", in.Cursor, "not a cursor of this list; send the next of the page before, or none")
		}
	}
	list := auditList{in: in, items: []wire.AuditRecord{}}
	if in.Order == "oldest" {
		err = list.forward(ctx, s.opts.Audit, max(in.After, seq))
	} else {
		end := s.opts.Backend.View().AuditHead().Seq
		if seq != 0 {
			end = min(end, seq-1)
		}
		err = list.back(ctx, s.opts.Audit, end)
	}
	if err != nil {
		return nil, s.auditProblem(err)
	}
	out := &listAuditOutput{Body: wire.Page[wire.AuditRecord]{Items: list.items}}
	if list.more {
		c := encodeCursor("audit-"+in.Order, strconv.FormatUint(list.last, 10))
		out.Body.Next = &c
	}
	return out, nil
}

func (s *Server) auditProblem(err error) error {
	s.log.Error("can't read the audit", "err", err)
	return problem(wire.CodeInternal, "the audit of this node can't be read: %s; another node may have it", firstLine(err))
}

// auditList collects one page.
type auditList struct {
	in    *listAuditInput
	items []wire.AuditRecord
	last  uint64 // number of the last record that was looked at
	more  bool   // others follow
}

func (l *auditList) forward(ctx context.Context, a Audit, after uint64) error {
	scanned := 0
	var broken error
	err := a.Read(ctx, after, func(line []byte) bool {
		if len(l.items) == l.in.Limit || scanned == auditScan {
			l.more = true
			return false
		}
		scanned++
		r, match, err := l.record(line)
		if err != nil {
			broken = err
			return false
		}
		l.last = r.Seq
		if match {
			l.items = append(l.items, r)
		}
		return true
	})
	return errors.Join(err, broken)
}

// back walks from a record to older ones, a window at a time.
func (l *auditList) back(ctx context.Context, a Audit, end uint64) error {
	for scanned := 0; end > l.in.After; {
		begin := max(l.in.After, end-min(end, auditWindow))
		window, seen, err := l.window(ctx, a, begin, end)
		if err != nil {
			return err
		}
		if seen == 0 {
			return nil // nothing older is kept
		}
		for _, r := range slices.Backward(window) {
			if len(l.items) == l.in.Limit {
				l.more = true
				return nil
			}
			l.items = append(l.items, r)
			l.last = r.Seq
		}
		end = begin
		if scanned += seen; scanned >= auditScan && end > l.in.After {
			l.last, l.more = end+1, true
			return nil
		}
	}
	return nil
}

// window returns the matching records from begin (not included) to end, and how many there are at all.
func (l *auditList) window(ctx context.Context, a Audit, begin, end uint64) (out []wire.AuditRecord, seen int, err error) {
	var broken error
	err = a.Read(ctx, begin, func(line []byte) bool {
		r, match, err := l.record(line)
		if err != nil {
			broken = err
			return false
		}
		if r.Seq > end {
			return false
		}
		seen++
		if match {
			out = append(out, r)
		}
		return true
	})
	return out, seen, errors.Join(err, broken)
}

func (l *auditList) record(line []byte) (r wire.AuditRecord, match bool, err error) {
	if err := json.Unmarshal(line, &r); err != nil {
		return r, false, err
	}
	is := func(want, have string) bool { return want == "" || want == have }
	group, _, _ := bytes.Cut([]byte(r.Action), []byte("."))
	return r, is(l.in.Actor, r.Actor) && is(l.in.Object, r.Object) && is(l.in.Outcome, r.Outcome) &&
		(is(l.in.Action, r.Action) || l.in.Action == string(group)), nil
}

type exportAuditInput struct {
	From uint64 `query:"from" doc:"First record, the oldest that is kept if that is later"`
	To   uint64 `query:"to" doc:"Last record; 0 for all there are"`
}

func (s *Server) addExportAudit(api huma.API, op huma.Operation) {
	op.Description = "The lines of the chain as they are: each but the first has in prev the SHA-256 of the line before, without its newline. " +
		"`palisade audit verify FILE` checks it.\n\n" + op.Description
	schema := api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[wire.AuditRecord](), true, "AuditRecord")
	op.Responses["200"] = &huma.Response{Description: "One AuditRecord on each line", Content: map[string]*huma.MediaType{jsonLines: {Schema: schema}}}
	huma.Register(api, op, func(ctx context.Context, in *exportAuditInput) (*raw, error) {
		return &raw{Body: func(c huma.Context) {
			_, w := humachi.Unwrap(c)
			s.exportAudit(ctx, w, in)
		}}, nil
	})
}

func (s *Server) exportAudit(ctx context.Context, w http.ResponseWriter, in *exportAuditInput) {
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", jsonLines)
	var buf []byte
	var failed error
	flush := func() bool {
		// A recorder in a test has no deadlines; a connection always has.
		_ = rc.SetWriteDeadline(time.Now().Add(auditExportWriter))
		_, failed = w.Write(buf)
		buf = buf[:0]
		return failed == nil
	}
	err := s.opts.Audit.Read(ctx, max(in.From, 1)-1, func(line []byte) bool {
		before, err := fsm.AuditFrom(line)
		if err == nil && in.To != 0 && before.Seq >= in.To {
			return false
		}
		buf = append(append(buf, line...), '\n')
		return len(buf) < auditExportFlush || flush()
	})
	if err == nil && failed == nil && flush() {
		return
	}
	if err != nil {
		s.log.Error("can't read the audit", "err", err)
	}
	// The caller must not take the answer for whole.
	panic(http.ErrAbortHandler) //nolint:forbidigo // net/http's own way to cut it, and the middleware passes it on
}

func (s *Server) addVerifyAudit(api huma.API, op huma.Operation) {
	schema := api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[wire.AuditCheck](), true, "AuditCheck")
	op.Responses["200"] = &huma.Response{Description: "What was found, also if the chain is broken", Content: map[string]*huma.MediaType{"application/json": {Schema: schema}}}
	huma.Register(api, op, func(ctx context.Context, _ *struct{}) (*raw, error) {
		return &raw{Body: func(c huma.Context) {
			_, w := humachi.Unwrap(c)
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(auditVerifyWait))
			found, err := s.opts.Audit.Verify(ctx)
			if err != nil {
				writeError(w, s.auditProblem(err))
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = marshalJSON(w, s.wireAuditCheck(&found))
		}}, nil
	})
}

func (s *Server) wireAuditCheck(c *AuditCheck) wire.AuditCheck {
	out := wire.AuditCheck{
		Node: s.opts.Backend.Status().Node, OK: c.Problem == "" && len(c.Gaps) == 0, Problem: c.Problem,
		Records: c.Records, First: c.First, Last: c.Chain.Seq, Head: hex.EncodeToString(c.Chain.Head[:]), Written: c.Written,
	}
	for _, g := range c.Gaps {
		out.Gaps = append(out.Gaps, wire.AuditGap{First: g[0], Last: g[1]})
	}
	return out
}
