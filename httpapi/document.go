package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/palisade/palisade/httpapi/wire"
)

// describe adds to the document what the handler's types do not say: the scope and the problems.
func (rt route) describe(op *huma.Operation, schemas huma.Registry) {
	codes := slices.Clone(rt.codes)
	if rt.scope != scopeOpen {
		codes = append(codes, wire.CodeUnauthorized, wire.CodeForbidden)
		op.Security = []map[string][]string{{"token": {}}}
		op.Description = strings.TrimSpace(op.Description + "\n\nScope: " + string(rt.scope) + ".")
	}
	codes = append(codes, wire.CodeInvalid, wire.CodeInternal)
	switch {
	case op.Method != http.MethodGet:
		codes = append(codes, wire.CodeKeyUsed, wire.CodeNoQuorum, wire.CodeUnknownOutcome)
	case rt.scope == ScopeViewer && !rt.stream: // a strong read
		codes = append(codes, wire.CodeNoQuorum)
	}
	if op.Method == http.MethodPost || op.Method == http.MethodPut {
		codes = append(codes, wire.CodeMalformedJSON, wire.CodeTooLarge, wire.CodeMediaType, wire.CodeRequestTimeout)
	}
	schema := schemas.Schema(reflect.TypeFor[wire.Problem](), true, "Problem")
	byStatus := map[int][]string{}
	for _, c := range codes {
		st, _ := kindOf(c)
		if !slices.Contains(byStatus[st], string(c)) {
			byStatus[st] = append(byStatus[st], string(c))
		}
	}
	op.Responses = map[string]*huma.Response{}
	for st, names := range byStatus {
		slices.Sort(names)
		op.Responses[strconv.Itoa(st)] = &huma.Response{
			Description: http.StatusText(st) + ": code " + strings.Join(names, ", "),
			Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: schema}},
		}
	}
}

// document finishes the OpenAPI document and encodes it.
func document(o *huma.OpenAPI) ([]byte, error) {
	o.Info.Description = "The HTTP API of a Palisade node. Every node answers for the whole fleet. " +
		"Errors are RFC 9457 problems with a stable code."
	o.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {
		Type: "http", Scheme: "bearer",
		Description: "A token from the node's config. Callers on the Unix socket need none.",
	}}
	// huma registers its own error model, which no answer uses.
	delete(o.Components.Schemas.Map(), "ErrorModel")
	delete(o.Components.Schemas.Map(), "ErrorDetail")
	for name, schema := range o.Components.Schemas.Map() {
		// Answers may get more fields; a client that is made from the document must let them pass.
		if !strings.HasSuffix(name, "Request") && name != "Target" {
			schema.AdditionalProperties = nil
		}
	}
	for path, wait := range map[string]string{"/v1/blocks": "post", "/v1/blocks/{id}": "delete"} {
		op := o.Paths[path].Post
		if wait == "delete" {
			op = o.Paths[path].Delete
		}
		done := op.Responses[strconv.Itoa(op.DefaultStatus)]
		accepted := *done
		accepted.Description = "Committed, but with wait=enforced some live node did not confirm in time"
		op.Responses["202"] = &accepted
	}
	b, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// raw is the output of a route that writes its answer itself.
type raw struct{ Body func(huma.Context) }

func (s *Server) addOpenAPI(api huma.API, op huma.Operation) {
	op.Responses["200"] = &huma.Response{Description: "OpenAPI 3.1", Content: map[string]*huma.MediaType{"application/openapi+json": {}}}
	huma.Register(api, op, func(context.Context, *struct{}) (*raw, error) {
		return &raw{Body: func(c huma.Context) {
			c.SetHeader("Content-Type", "application/openapi+json")
			_, _ = c.BodyWriter().Write(s.openapi)
		}}, nil
	})
}

func (s *Server) addMetrics(api huma.API, op huma.Operation) {
	op.Responses["200"] = &huma.Response{Description: "Prometheus text format", Content: map[string]*huma.MediaType{"text/plain": {}}}
	huma.Register(api, op, func(context.Context, *struct{}) (*raw, error) {
		return &raw{Body: func(c huma.Context) {
			r, w := humachi.Unwrap(c)
			s.scrape.ServeHTTP(w, r)
		}}, nil
	})
}
