package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"strconv"
	"strings"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// Limits of parameters.
const (
	defaultLimit = 100
	maxLimit     = 1000
	defaultWait  = 5 * time.Second
	minWait      = 100 * time.Millisecond
	maxWait      = 60 * time.Second
)

// ReadInput is what every read takes.
type ReadInput struct {
	Consistency string `query:"consistency" enum:"local,strong" default:"local" doc:"strong: answer only with everything that was written before; needs quorum"`
}

// PageInput is what every list takes.
type PageInput struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Items on a page"`
	Cursor string `query:"cursor" maxLength:"1024" doc:"next of the page before"`
}

// ReadHeaders tell how current an answer is.
type ReadHeaders struct {
	Index uint64 `header:"Palisade-Index" doc:"Log index of the state that answered"`
	Age   int64  `header:"Palisade-Age-Ms" doc:"How old that state can be, in milliseconds; -1 if no leader was heard since the start"`
}

// WriteInput is what every write takes.
type WriteInput struct {
	Key    string `header:"Idempotency-Key" maxLength:"255" doc:"Makes a retry have one effect and the same answer. The server makes one for itself if it is missing"`
	DryRun bool   `query:"dry_run" doc:"true: change nothing and answer 200 with what would happen and what it would touch (Preview)"`
}

// MatchInput makes a write conditional.
type MatchInput struct {
	IfMatch string `header:"If-Match" maxLength:"64" doc:"ETag of the state that the write is meant for" example:"\"17\""`
}

// WaitInput lets a write wait until it is in force.
type WaitInput struct {
	Wait    string `query:"wait" enum:"enforced" doc:"Answer when every live node has it in its kernel, with receipts; 202 if one did not confirm in time"`
	Timeout string `query:"timeout" maxLength:"32" default:"5s" doc:"How long to wait, 100ms to 60s"`
}

// ChangeInput is what a change of one object takes.
type ChangeInput struct {
	WaitInput
	MatchInput
}

// change returns how long to wait for it to be in force, and the revision that it is meant for, 0 for any.
func (in *ChangeInput) change() (wait time.Duration, revision uint64, err error) {
	if wait, err = in.wait(); err != nil {
		return 0, 0, err
	}
	revision, err = in.revision()
	return wait, revision, err
}

// WriteHeaders tell of a write.
type WriteHeaders struct {
	ETag     string `header:"ETag" doc:"Revision of the object, for If-Match"`
	Index    uint64 `header:"Palisade-Index" doc:"Log index of the write"`
	Replayed string `header:"Idempotency-Replayed" doc:"true if the key was known: this is the answer of the first time"`
}

// view returns the state to answer from, and what to say of its age.
func (s *Server) view(ctx context.Context, in ReadInput) (*fsm.View, ReadHeaders, error) {
	b := s.opts.Backend
	if in.Consistency == "strong" {
		v, err := s.strongView(ctx)
		if err != nil {
			return nil, ReadHeaders{}, err
		}
		return v, ReadHeaders{Index: v.Index()}, nil
	}
	// The status is read first, so that the view is never older than is said.
	age := s.age(b.Status())
	v := b.View()
	return v, ReadHeaders{Index: v.Index(), Age: age}, nil
}

// strongView returns a view that holds every write answered before the call.
func (s *Server) strongView(ctx context.Context) (*fsm.View, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.ProposeTimeout)
	defer cancel()
	index, err := s.opts.Backend.ReadIndex(ctx)
	if err == nil {
		v := s.opts.Backend.View()
		w := s.opts.Backend.Watch(v.Index())
		for v.Index() < index && ctx.Err() == nil {
			// ErrCompacted comes with a view too; any other error is that of ctx.
			if next, _, _ := w.Next(ctx); next != nil {
				v = next
			}
		}
		if v.Index() >= index {
			return v, nil
		}
		err = ctx.Err()
	}
	return nil, problem(wire.CodeNoQuorum, "a strong read could not be confirmed (%s); without consistency=strong this node answers from what it has", firstLine(err))
}

// age is how old this node's state can be, in milliseconds.
func (s *Server) age(st fsm.Status) int64 {
	if st.LastContact.IsZero() {
		return -1
	}
	return max(0, s.now().Sub(st.LastContact).Milliseconds())
}

// propose commits one op for the caller of ctx, or only tries it. The error is a problem or a *preview. Where
// fields were sent is asked only for a refusal.
func (s *Server) propose(ctx context.Context, in WriteInput, op fsm.Op, fields func() sent) (fsm.Result, error) {
	if err := permit(callerOf(ctx), op, s.finder(ctx)); err != nil {
		return fsm.Result{}, err
	}
	if in.DryRun {
		return fsm.Result{}, s.preview(ctx, op, fields)
	}
	res, err := s.commit(ctx, in.Key, op)
	if err != nil {
		return fsm.Result{}, err
	}
	if res.Err != nil {
		places := fields()
		places["key"] = at("header.Idempotency-Key", in.Key)
		return fsm.Result{}, refusalProblem(res.Err, places)
	}
	return res, nil
}

// command is an op in the name of the caller of ctx.
func command(ctx context.Context, key string, op fsm.Op) fsm.Command {
	c := callerOf(ctx)
	return fsm.Command{Actor: c.actor, From: c.from, Key: key, Op: op}
}

// commit proposes an op and returns its result, which may be a refusal. The error is a problem.
func (s *Server) commit(ctx context.Context, key string, op fsm.Op) (fsm.Result, error) {
	if key == "" {
		// Even without a retry by the caller, the way to the leader may have to be tried twice.
		key = newKey()
	} else if p := checkKey(key); p != nil {
		return fsm.Result{}, p
	}
	res, err := s.send(ctx, key, op)
	if err != nil {
		return fsm.Result{}, s.outcomeProblem(err, key)
	}
	return res, nil
}

// send proposes an op. The error is that of the backend.
func (s *Server) send(ctx context.Context, key string, op fsm.Op) (fsm.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.ProposeTimeout)
	defer cancel()
	return s.opts.Backend.Propose(ctx, command(ctx, key, op))
}

func newKey() string { return "auto-" + rand.Text() }

func checkKey(key string) *wire.Problem {
	if i := strings.IndexFunc(key, func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
		return fieldProblem("header.Idempotency-Key", key, "byte %d is not printable ASCII", i)
	}
	return nil
}

// etag is "" for the revision 0 of what is not set.
func etag(revision uint64) string {
	if revision == 0 {
		return ""
	}
	return `"` + strconv.FormatUint(revision, 10) + `"`
}

func (in MatchInput) revision() (uint64, error) {
	if in.IfMatch == "" {
		return 0, nil
	}
	n := len(in.IfMatch)
	if n > 2 && in.IfMatch[0] == '"' && in.IfMatch[n-1] == '"' {
		if rev, err := strconv.ParseUint(in.IfMatch[1:n-1], 10, 64); err == nil && rev > 0 {
			return rev, nil
		}
	}
	return 0, fieldProblem("header.If-Match", in.IfMatch, `not an ETag of this API; send the ETag of a read, for example "17" with its quotes`)
}

// wait returns how long to wait for receipts, 0 for not at all.
func (in WaitInput) wait() (time.Duration, error) {
	if in.Wait == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(in.Timeout)
	if err != nil || d < minWait || d > maxWait {
		return 0, fieldProblem("query.timeout", in.Timeout, "want a duration from 100ms to 60s, for example 5s")
	}
	return d, nil
}

func replayed(r fsm.Result) string {
	if r.Replayed {
		return "true"
	}
	return ""
}

// encodeCursor makes the cursor of the page after the last id. Cursors are opaque to callers.
func encodeCursor(kind, after string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(kind + ":" + after))
}

// maxCursor bounds what a cursor says: two names, and their lengths.
const maxCursor = 2*fsm.MaxNameBytes + 32

// decodeCursor reads a cursor of the kind of list; an empty cursor is the start.
func decodeCursor(kind, cursor string) (after string, err error) {
	if cursor == "" {
		return "", nil
	}
	b, derr := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if derr == nil && !strings.ContainsAny(cursor, "\r\n") { // which even a strict decoder skips
		if after, ok := strings.CutPrefix(string(b), kind+":"); ok && after != "" && len(after) <= maxCursor {
			return after, nil
		}
	}
	return "", fieldProblem("query.cursor", cursor, "not a cursor of this list; send the next of the page before, or none")
}

// page collects up to limit items of a sequence and the cursor of the next page.
type page[T any] struct {
	kind  string
	limit int
	items []T
	last  string // id of the last item
	next  *string
}

// add takes an item and says whether to go on.
func (p *page[T]) add(id string, item func() T) bool {
	if len(p.items) == p.limit {
		c := encodeCursor(p.kind, p.last)
		p.next = &c
		return false
	}
	p.items = append(p.items, item())
	p.last = id
	return true
}

func (p *page[T]) wire() wire.Page[T] {
	if p.items == nil {
		p.items = []T{}
	}
	return wire.Page[T]{Items: p.items, Next: p.next}
}
