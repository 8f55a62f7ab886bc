package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/validation"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

const maxEcho = 256 // bytes of a wrong value that are sent back

// kindOf is the one table of problems: what each code answers. The status of no code is 0.
func kindOf(code wire.Code) (status int, title string) {
	switch code {
	case wire.CodeInvalid:
		return http.StatusUnprocessableEntity, "The request is not valid"
	case wire.CodeTooWide:
		return http.StatusUnprocessableEntity, "The prefix is too wide"
	case wire.CodeKeyUsed:
		return http.StatusUnprocessableEntity, "The Idempotency-Key was used for another request"
	case wire.CodeUnsupported:
		return http.StatusUnprocessableEntity, "The value is not supported by this version"
	case wire.CodeMalformedJSON:
		return http.StatusBadRequest, "The body is not JSON"
	case wire.CodeUnauthorized:
		return http.StatusUnauthorized, "A valid token is needed"
	case wire.CodeLoginRefused:
		return http.StatusUnauthorized, "The login was refused"
	case wire.CodeCrossOrigin:
		return http.StatusForbidden, "The request may come from another site"
	case wire.CodeTooManyLogins:
		return http.StatusTooManyRequests, "Too many logins"
	case wire.CodeForbidden:
		return http.StatusForbidden, "The caller may not do this"
	case wire.CodeNotFound:
		return http.StatusNotFound, "Not found"
	case wire.CodeVMNotFound:
		return http.StatusNotFound, "The VM does not exist"
	case wire.CodeMethod:
		return http.StatusMethodNotAllowed, "Method not allowed"
	case wire.CodeRequestTimeout:
		return http.StatusRequestTimeout, "The body did not arrive in time"
	case wire.CodeAmbiguous:
		return http.StatusConflict, "The name is ambiguous"
	case wire.CodeGuardConflict:
		return http.StatusConflict, "The target must never be blocked"
	case wire.CodeConflict:
		return http.StatusConflict, "The state does not allow this"
	case wire.CodeTooMany:
		return http.StatusConflict, "The block would touch too much without a confirmation"
	case wire.CodeDoNotBlock:
		return http.StatusConflict, "The account or VM must not be blocked yet"
	case wire.CodeUpgrade:
		return http.StatusConflict, "Not every node's build can read this yet"
	case wire.CodeAborted:
		return http.StatusConflict, "Another element of the request was refused"
	case wire.CodePrecondition:
		return http.StatusPreconditionRequired, "If-Match is missing"
	case wire.CodeRevision:
		return http.StatusPreconditionFailed, "The revision does not match"
	case wire.CodeTooLarge:
		return http.StatusRequestEntityTooLarge, "The body is too large"
	case wire.CodeMediaType:
		return http.StatusUnsupportedMediaType, "The media type is not supported"
	case wire.CodeInternal:
		return http.StatusInternalServerError, "Internal error"
	case wire.CodeProvider:
		return http.StatusBadGateway, "The identity provider can't be asked"
	case wire.CodeNoQuorum:
		return http.StatusServiceUnavailable, "No quorum"
	case wire.CodeNotReady:
		return http.StatusServiceUnavailable, "Not ready"
	case wire.CodeTooManyStreams:
		return http.StatusServiceUnavailable, "Too many event streams"
	case wire.CodeShuttingDown:
		return http.StatusServiceUnavailable, "Shutting down"
	case wire.CodeUnknownOutcome:
		return http.StatusGatewayTimeout, "Outcome unknown"
	}
	return 0, ""
}

// codeOf maps the state machine's codes to those of the API. It is false for one that this build does
// not know.
func codeOf(code fsm.Code) (wire.Code, bool) {
	switch code {
	case fsm.CodeInvalid:
		return wire.CodeInvalid, true
	case fsm.CodeTooWide:
		return wire.CodeTooWide, true
	case fsm.CodeNotFound:
		return wire.CodeNotFound, true
	case fsm.CodeAmbiguous:
		return wire.CodeAmbiguous, true
	case fsm.CodeGuardConflict:
		return wire.CodeGuardConflict, true
	case fsm.CodeConflict, fsm.CodeStale, fsm.CodeNodeExists, fsm.CodeNodeRetired,
		fsm.CodeTokenUnknown, fsm.CodeTokenExpired, fsm.CodeTokenUsed, fsm.CodeTokenBound:
		return wire.CodeConflict, true
	case fsm.CodeTooMany:
		return wire.CodeTooMany, true
	case fsm.CodeNotYet:
		return wire.CodeDoNotBlock, true
	case fsm.CodeAborted:
		return wire.CodeAborted, true
	case fsm.CodeRevision:
		return wire.CodeRevision, true
	case fsm.CodeKeyReused:
		return wire.CodeKeyUsed, true
	case fsm.CodeUpgrade:
		return wire.CodeUpgrade, true
	case fsm.CodeUnsupported:
		return wire.CodeUnsupported, true
	}
	return "", false
}

func problem(code wire.Code, format string, args ...any) *wire.Problem {
	status, title := kindOf(code)
	return &wire.Problem{
		Type:   "urn:palisade:problem:" + string(code),
		Title:  title,
		Status: status,
		Detail: fmt.Sprintf(format, args...),
		Code:   code,
	}
}

// fieldProblem is an invalid-request problem about one field.
func fieldProblem(location string, value any, format string, args ...any) *wire.Problem {
	msg := fmt.Sprintf(format, args...)
	p := problem(wire.CodeInvalid, "%s: %s", location, msg)
	p.Errors = []wire.FieldError{{Location: location, Message: msg, Value: echo(value)}}
	return p
}

// sent tells refusalProblem what the caller sent for the fields that the state machine may name:
// field to location and value.
type sent map[string]wire.FieldError

// just is for fields that are at hand.
func (f sent) just() sent { return f }

func at(location string, value any) wire.FieldError {
	return wire.FieldError{Location: location, Value: value}
}

// refusalProblem turns a refusal of the state machine into a problem.
func refusalProblem(e *fsm.Error, fields sent) *wire.Problem {
	code, ok := codeOf(e.Code)
	if !ok {
		code = wire.CodeInvalid // still a refusal: nothing changed
	}
	if code == wire.CodeNotFound && strings.HasPrefix(fields[e.Field].Location, "body.") && strings.HasSuffix(fields[e.Field].Location, ".vm") {
		code = wire.CodeVMNotFound
	}
	p := problem(code, "%s", e.Error())
	if e.Field != "" {
		f, ok := fields[e.Field]
		if !ok {
			f.Location = "body." + e.Field
		}
		p.Errors = []wire.FieldError{{Location: f.Location, Message: e.Detail, Value: echo(f.Value)}}
	}
	return p
}

// outcomeProblem turns an error of Propose or ReadIndex into a problem; the error may carry headers.
func (s *Server) outcomeProblem(err error, key string) error {
	switch {
	case errors.Is(err, fsm.ErrUnavailable):
		p := problem(wire.CodeNoQuorum, "%s; nothing was changed and reads still answer", err)
		return huma.ErrorWithHeaders(p, http.Header{"Retry-After": {"1"}})
	case errors.Is(err, fsm.ErrUnknown), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		p := problem(wire.CodeUnknownOutcome,
			"%s; a retry with the same Idempotency-Key (%s) is safe: it has at most one effect and tells the outcome", err, key)
		p.Instance = key
		return huma.ErrorWithHeaders(p, http.Header{"Retry-After": {"1"}})
	}
	s.log.Error("write was refused by this node", "error", err)
	return problem(wire.CodeInternal, "this node could not send the write to the fleet; nothing was changed")
}

// echo prepares a wrong value to be sent back: short, and never a whole document.
func echo(v any) any {
	if s, ok := v.(string); ok {
		if len(s) <= maxEcho {
			return s
		}
		cut := maxEcho
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		return s[:cut] + "…"
	}
	switch v.(type) {
	case bool, float64, int, int64, uint64, nil:
		return v
	}
	b, err := json.Marshal(v)
	if err != nil || len(b) > maxEcho {
		return nil
	}
	return v
}

// writeProblem answers with a problem outside of huma.
func writeProblem(w http.ResponseWriter, p *wire.Problem) {
	b, err := json.Marshal(p)
	if err != nil { // an Errors value that does not encode
		p.Errors = nil
		b, _ = json.Marshal(p)
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(b, '\n'))
}

// rewriteErrors is a huma transformer: it turns the errors that huma makes itself (decoding and
// validation) into problems with a code, and keeps whole bodies out of them.
func (s *Server) rewriteErrors(ctx huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	switch m.Status {
	case http.StatusBadRequest:
		detail := "a JSON body is required"
		if len(m.Errors) > 0 {
			detail = "the body is not one JSON document: " + m.Errors[0].Message
		}
		return problem(wire.CodeMalformedJSON, "%s", detail), nil
	case http.StatusRequestEntityTooLarge:
		return problem(wire.CodeTooLarge, "the body has more than the %d bytes allowed", s.opts.MaxBodyBytes), nil
	case http.StatusUnsupportedMediaType:
		return problem(wire.CodeMediaType, "Content-Type %q is not supported; send application/json", echo(ctx.Header("Content-Type"))), nil
	case http.StatusRequestTimeout:
		return problem(wire.CodeRequestTimeout, "the body did not arrive within %s", s.opts.ReadTimeout), nil
	case http.StatusUnprocessableEntity:
		return invalidProblem(ctx.Operation(), m.Errors), nil
	}
	s.log.Error("request failed", "operation", ctx.Operation().OperationID, "detail", m.Detail, "errors", m.Errors)
	p := problem(wire.CodeInternal, "the request could not be answered")
	p.Status = m.Status // already chosen
	return p, nil
}

func invalidProblem(op *huma.Operation, errs []*huma.ErrorDetail) *wire.Problem {
	const most = 20
	p := problem(wire.CodeInvalid, "the request is not valid")
	rt, _ := op.Metadata[routeKey].(route)
	secret := rt.secret
	var text []string
	for _, e := range errs[:min(len(errs), most)] {
		f := wire.FieldError{Location: e.Location, Message: e.Message, Value: e.Value}
		name := e.Location[strings.LastIndexByte(e.Location, '.')+1:]
		switch e.Message {
		case "unexpected property":
			f.Message = "unknown field"
			if m, ok := e.Value.(map[string]any); ok {
				f.Value = m[name]
			}
		case validation.MsgExpectedMatchExactlyOneSchema:
			f.Message = oneOfMessage(e.Location)
		case "unknown query parameter":
			f.Message = "unknown query parameter; known are: " + knownQuery(op)
		}
		if f.Value = echo(f.Value); secret {
			f.Value = nil
		}
		p.Errors = append(p.Errors, f)
		text = append(text, f.Location+": "+f.Message)
	}
	if len(text) > 0 {
		p.Detail = strings.Join(text[:min(len(text), 3)], "; ")
	}
	return p
}

// oneOfMessage says what is right where a schema has two forms. Only a Port has.
func oneOfMessage(location string) string {
	if strings.Contains(location, "ports[") {
		return `want for example "tcp/25", "udp/1000-2000", "icmp" or {"protocol":"tcp","from":25,"to":25}`
	}
	return validation.MsgExpectedMatchExactlyOneSchema
}

func knownQuery(op *huma.Operation) string {
	var names []string
	for _, p := range op.Parameters {
		if p.In == "query" {
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
