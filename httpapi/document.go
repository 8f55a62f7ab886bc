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
		op.Security = []map[string][]string{{"token": {}}, {"session": {}}}
		op.Description = strings.TrimSpace(op.Description + "\n\nScope: " + rt.scopeText() + ".")
	}
	codes = append(codes, wire.CodeInvalid, wire.CodeInternal)
	switch {
	case op.Method != http.MethodGet:
		codes = append(codes, wire.CodeKeyUsed, wire.CodeNoQuorum, wire.CodeUnknownOutcome)
	case rt.scope == ScopeViewer && !rt.stream: // a strong read
		codes = append(codes, wire.CodeNoQuorum)
	}
	if op.Method == http.MethodPost || op.Method == http.MethodPut || op.Method == http.MethodPatch {
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

// scopeText names who may use the route.
func (rt route) scopeText() string {
	switch {
	case rt.scope == scopeAny:
		return "any"
	case rt.scope == scopeLocal:
		return "none; only root on the node itself, by the agent's Unix socket"
	case rt.billing:
		return string(rt.scope) + "; billing for blocks of the reason unpaid on VMs and accounts"
	}
	return string(rt.scope)
}

// document finishes the OpenAPI document and encodes it.
func document(o *huma.OpenAPI) ([]byte, error) {
	o.Info.Description = "The HTTP API of a Palisade node. Every node answers for the whole fleet. " +
		"Errors are RFC 9457 problems with a stable code."
	o.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {
		Type: "http", Scheme: "bearer",
		Description: "An API token. Callers on the Unix socket need none.",
	}, "session": {
		Type: "apiKey", In: "cookie", Name: sessionCookie,
		Description: "Set by a login. With it, whatever is no GET needs the header " + csrfHeader + ": 1.",
	}}
	// huma registers its own error model, which no answer uses.
	delete(o.Components.Schemas.Map(), "ErrorModel")
	delete(o.Components.Schemas.Map(), "ErrorDetail")
	refine(o.Components.Schemas)
	preview := o.Components.Schemas.Schema(reflect.TypeFor[wire.Preview](), true, "Preview")
	for _, path := range o.Paths {
		for _, op := range []*huma.Operation{path.Post, path.Put, path.Patch, path.Delete} {
			if op != nil {
				describeWrite(op, preview)
			}
		}
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

// describeWrite adds the answers that wait and dry_run can have.
func describeWrite(op *huma.Operation, preview *huma.Schema) {
	has := func(name string) bool {
		return slices.ContainsFunc(op.Parameters, func(p *huma.Param) bool { return p.In == "query" && p.Name == name })
	}
	if has("wait") {
		accepted := *op.Responses[strconv.Itoa(op.DefaultStatus)]
		accepted.Description = "Committed, but with wait=enforced some live node did not confirm in time"
		op.Responses["202"] = &accepted
	}
	if !has("dry_run") {
		return
	}
	done := op.Responses["200"]
	if done == nil {
		op.Responses["200"] = &huma.Response{
			Description: "With dry_run=true",
			Content:     map[string]*huma.MediaType{"application/json": {Schema: preview}},
		}
		return
	}
	if media := done.Content["application/json"]; media != nil {
		done.Content = map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{OneOf: []*huma.Schema{media.Schema, preview}}}}
		done.Description += "; with dry_run=true a Preview"
	}
}

// refine corrects what the types of package wire do not say: which documents are strict, and the forms of
// what decodes itself. Requests are checked by the same schemas.
func refine(schemas huma.Registry) {
	all := schemas.Map()
	strict := []string{"Target", "Rate", "Port", "RedirectPage", "BlockPatch", "BulkOp", "BulkLift", "BulkPatch"}
	for name, schema := range all {
		// Answers may get more fields; a client that is made from the document must let them pass.
		if !strings.HasSuffix(name, "Request") && !slices.Contains(strict, name) {
			schema.AdditionalProperties = nil
		}
	}
	short := &huma.Schema{Type: huma.TypeString, Pattern: wire.PortPattern, Description: "Short form, for example tcp/25"}
	short.PrecomputeMessages()
	ports := all["BlockRequest"].Properties["ports"]
	ports.Items = &huma.Schema{OneOf: []*huma.Schema{short, ports.Items}}
	for _, name := range []string{"BlockPatch", "BulkPatch"} {
		for field, format := range map[string]string{"starts_at": "date-time", "ends_at": "date-time", "note": ""} {
			old := all[name].Properties[field]
			is := &huma.Schema{Type: huma.TypeString, Nullable: true, Format: format, Description: old.Description, MaxLength: old.MaxLength}
			is.PrecomputeMessages()
			all[name].Properties[field] = is
		}
	}
	for name := range all {
		if strings.HasPrefix(name, "Optional") {
			delete(all, name)
		}
	}
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
