package httpapi

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
	"github.com/klauspost/compress/gzhttp"

	"github.com/palisade/palisade/httpapi/wire"
)

// route is one row of the table of routes.
type route struct {
	op    huma.Operation
	scope Scope
	// billing routes are also for callers with that scope; what they may do there is up to permit and billed.
	billing bool
	// secret routes take what no problem may repeat.
	secret bool
	// codes are the problems that are particular to the route, for the document; what every route of
	// its kind can answer is added.
	codes []wire.Code
	// stream routes answer until the caller goes.
	stream bool
	add    func(s *Server, api huma.API, op huma.Operation)
}

// do makes a handler method a row's add.
func do[I, O any](h func(*Server, context.Context, *I) (*O, error)) func(*Server, huma.API, huma.Operation) {
	return func(s *Server, api huma.API, op huma.Operation) {
		huma.Register(api, op, func(ctx context.Context, in *I) (*O, error) { return h(s, ctx, in) })
	}
}

func operation(method, path, id, summary string, status int) huma.Operation {
	return huma.Operation{Method: method, Path: path, OperationID: id, Summary: summary, DefaultStatus: status}
}

// routes is the table of everything the API answers and who may ask for it.
func routes() []route {
	get := func(path, id, summary string) huma.Operation {
		return huma.Operation{Method: http.MethodGet, Path: path, OperationID: id, Summary: summary}
	}
	op := operation
	notFound := []wire.Code{wire.CodeNotFound}
	named := []wire.Code{wire.CodeNotFound, wire.CodeAmbiguous}
	adding := []wire.Code{wire.CodeNotFound, wire.CodeVMNotFound, wire.CodeAmbiguous, wire.CodeGuardConflict, wire.CodeTooWide, wire.CodeTooMany, wire.CodeDoNotBlock}
	changing := []wire.Code{wire.CodeNotFound, wire.CodeConflict, wire.CodeRevision}
	return append(slices.Concat(listRoutes(), tokenRoutes(), loginRoutes(), oidcRoutes(), sessionRoutes(), userRoutes(), fleetRoutes(), backupRoutes(), leaveRoutes(), dropRoutes(), localRoutes()), []route{
		{op: get("/v1/blocks", "list-blocks", "List blocks"), scope: ScopeViewer, billing: true, codes: named, add: do((*Server).listBlocks)},
		{op: op(http.MethodPost, "/v1/blocks", "add-block", "Block a VM, a prefix, an account or a list, now or later", http.StatusCreated), scope: ScopeOperator, billing: true,
			codes: adding, add: do((*Server).addBlock)},
		{op: op(http.MethodDelete, "/v1/blocks", "lift-reason", "Lift what one reason holds on one target", http.StatusOK), scope: ScopeOperator, billing: true,
			codes: named, add: do((*Server).liftReason)},
		{op: op(http.MethodPost, "/v1/blocks/bulk", "bulk-blocks", "Add, lift and change thousands of blocks", http.StatusOK), scope: ScopeOperator, billing: true,
			codes: []wire.Code{wire.CodeAborted}, add: (*Server).addBulk},
		{op: get("/v1/blocks/{id}", "get-block", "Show a block, where it is in force and what it dropped"), scope: ScopeViewer, billing: true, codes: notFound, add: do((*Server).getBlock)},
		{op: op(http.MethodPatch, "/v1/blocks/{id}", "patch-block", "Change the times or the note of a block, or confirm it (JSON merge patch)", http.StatusOK), scope: ScopeOperator, billing: true,
			codes: append(changing, wire.CodePrecondition, wire.CodeDoNotBlock), add: do((*Server).patchBlock)},
		{op: op(http.MethodPost, "/v1/blocks/{id}/confirm", "confirm-block", "Confirm a block, so that it stays", http.StatusOK), scope: ScopeOperator, billing: true,
			codes: changing, add: do((*Server).confirmBlock)},
		{op: op(http.MethodDelete, "/v1/blocks/{id}", "lift-block", "Lift a block, or cancel one that is pending", http.StatusOK), scope: ScopeOperator, billing: true,
			codes: changing, add: do((*Server).liftBlock)},
		{op: get("/v1/blocks/{id}/receipts", "block-receipts", "Say where a block is in force, and wait for it"), scope: ScopeViewer, billing: true, codes: notFound, add: do((*Server).blockReceipts)},
		{op: get("/v1/schedule", "schedule", "List what starts and ends by itself, soonest first"), scope: ScopeViewer, add: do((*Server).schedule)},

		{op: get("/v1/search", "search", "Find VMs, addresses, nodes, lists, accounts and blocks by any part of their names"), scope: ScopeViewer, billing: true, add: do((*Server).search)},
		{op: get("/v1/overview", "overview", "Count the VMs of each node"), scope: ScopeViewer, add: do((*Server).overview)},
		{op: get("/v1/vms", "list-vms", "List VMs"), scope: ScopeViewer, billing: true, add: do((*Server).listVMs)},
		{op: get("/v1/vms/{id}", "get-vm", "Show a VM, by id or by a name that only one has"), scope: ScopeViewer, billing: true, codes: named, add: do((*Server).getVM)},
		{op: op(http.MethodPut, "/v1/vms/{id}", "put-vm", "Declare a VM's name, owner and addresses", http.StatusOK), scope: ScopeOperator,
			codes: []wire.Code{wire.CodeRevision, wire.CodeTooWide, wire.CodeGuardConflict}, add: do((*Server).putVM)},

		{op: get("/v1/accounts", "list-accounts", "List the accounts for which something is set"), scope: ScopeViewer, billing: true, add: do((*Server).listAccounts)},
		{op: get("/v1/accounts/{id}", "get-account", "Show an account"), scope: ScopeViewer, billing: true, codes: notFound, add: do((*Server).getAccount)},
		{op: op(http.MethodPut, "/v1/accounts/{id}", "put-account", "Set an account's note and until when it is not blocked for unpaid", http.StatusOK), scope: ScopeOperator,
			codes: []wire.Code{wire.CodeRevision}, add: do((*Server).putAccount)},

		{op: get("/v1/nodes", "list-nodes", "List nodes"), scope: ScopeViewer, add: do((*Server).listNodes)},
		{op: get("/v1/nodes/{id}", "get-node", "Show a node"), scope: ScopeViewer, codes: notFound, add: do((*Server).getNode)},

		{op: get("/v1/guards", "list-guards", "List what can never be blocked"), scope: ScopeViewer, add: do((*Server).listGuards)},
		{op: op(http.MethodPost, "/v1/guards", "add-guard", "Guard a prefix or a VM", http.StatusCreated), scope: ScopeAdmin,
			codes: []wire.Code{wire.CodeConflict, wire.CodeVMNotFound, wire.CodeAmbiguous}, add: do((*Server).addGuard)},
		{op: op(http.MethodDelete, "/v1/guards/vm/{vm}", "remove-vm-guard", "Remove the guard of a VM", http.StatusNoContent), scope: ScopeAdmin,
			codes: named, add: do((*Server).removeVMGuard)},
		{op: op(http.MethodDelete, "/v1/guards/{prefix}", "remove-guard", "Remove an operator's guard; the prefix is in the path as it is, with its slash", http.StatusNoContent), scope: ScopeAdmin,
			codes: notFound, add: do((*Server).removeGuard)},

		{op: get("/v1/settings", "get-settings", "Show the fleet's settings"), scope: ScopeViewer, add: do((*Server).getSettings)},
		{op: op(http.MethodPut, "/v1/settings", "put-settings", "Replace the fleet's settings", http.StatusOK), scope: ScopeAdmin, codes: []wire.Code{wire.CodeRevision}, add: do((*Server).putSettings)},

		{op: get("/v1/explain", "explain", "Say what happens to a packet on which node and why, or what holds a VM"), scope: ScopeViewer, codes: named, add: do((*Server).explain)},

		{op: get("/v1/audit", "list-audit", "List the records of the audit"), scope: ScopeAdmin, add: do((*Server).listAudit)},
		{op: get("/v1/audit/export", "export-audit", "Export the audit as JSON lines"), scope: ScopeAdmin, stream: true, add: (*Server).addExportAudit},
		{op: get("/v1/audit/verify", "verify-audit", "Check this node's copy of the audit"), scope: ScopeAdmin, stream: true, add: (*Server).addVerifyAudit},

		{op: get("/v1/events", "events", "Follow all changes (server-sent events)"), scope: ScopeViewer, stream: true, codes: []wire.Code{wire.CodeTooManyStreams}, add: (*Server).addEvents},
		{op: get("/v1/status", "status", "Show this node's standing and its picture of the fleet"), scope: ScopeViewer, add: do((*Server).status)},

		{op: get("/openapi.json", "openapi", "This document"), scope: scopeOpen, add: (*Server).addOpenAPI},
		{op: get("/healthz", "healthz", "Says that the process is alive"), scope: scopeOpen, add: do((*Server).healthz)},
		{op: get("/readyz", "readyz", "Says that this node has quorum contact, is caught up and enforces"), scope: scopeOpen, codes: []wire.Code{wire.CodeNotReady}, add: do((*Server).readyz)},
		{op: get("/v1/debug/bundle", "debug-bundle", "Make a bundle for finding out what is wrong"), scope: ScopeAdmin, stream: true, add: (*Server).addDebugBundle},
		{op: get("/metrics", "metrics", "Prometheus metrics"), scope: ScopeMetrics, add: (*Server).addMetrics},
	}...)
}

const routeKey = "route" // in huma.Operation.Metadata

func (rt route) register(s *Server, api huma.API) {
	op := rt.op
	op.Metadata = map[string]any{routeKey: rt}
	op.MaxBodyBytes = s.opts.MaxBodyBytes + 1 // huma refuses a body of exactly the limit
	op.BodyReadTimeout = s.opts.ReadTimeout
	rt.describe(&op, api.OpenAPI().Components.Schemas)
	rt.add(s, api, op)
}

type callerKey struct{}

// callerOf returns who sent the request of a handler's context.
func callerOf(ctx context.Context) *caller { return ctx.Value(callerKey{}).(*caller) }

// newCompression compresses JSON that is worth it, for who accepts that: the answers for the first page of 2,900 VMs have 630 KB, or 40. It is for
// answers to reads, which have no secrets; their lengths are blurred all the same (the attack BREACH).
func newCompression() (func(http.Handler) http.HandlerFunc, error) {
	return gzhttp.NewWrapper(gzhttp.MinSize(4<<10), gzhttp.CompressionLevel(gzip.BestSpeed),
		gzhttp.ContentTypes([]string{"application/json"}), gzhttp.RandomJitter(32, 0, false))
}

// humaConfig leaves out everything that huma would serve by itself: only the table adds routes.
func (s *Server) humaConfig() huma.Config {
	cfg := huma.DefaultConfig("Palisade", "v1")
	cfg.OpenAPIPath, cfg.DocsPath, cfg.SchemasPath = "", "", ""
	cfg.CreateHooks = nil
	cfg.RejectUnknownQueryParameters = true
	cfg.Transformers = []huma.Transformer{s.rewriteErrors}
	cfg.Formats = map[string]huma.Format{
		"application/json":         {Marshal: marshalJSON, Unmarshal: unmarshalJSON},
		"json":                     {Unmarshal: unmarshalJSON}, // of application/merge-patch+json
		"application/problem+json": {Marshal: marshalJSON},
	}
	return cfg
}

// marshalJSON writes one document and a newline.
func marshalJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// adapter mounts huma's operations on the router, each behind its scope.
type adapter struct {
	s        *Server
	compress func(http.Handler) http.HandlerFunc
}

// Handle implements huma.Adapter.
func (a *adapter) Handle(op *huma.Operation, h func(huma.Context)) {
	rt := op.Metadata[routeKey].(route)
	path := op.Path
	tail := strings.HasSuffix(path, "/{prefix}") // a prefix has a slash in it
	if tail {
		path = strings.TrimSuffix(path, "{prefix}") + "*"
	}
	rm := a.s.metrics.route(op.Path, op.Method, rt.stream)
	next := func(w http.ResponseWriter, r *http.Request) {
		if tail {
			r.SetPathValue("prefix", chi.URLParam(r, "*"))
		}
		h(newContext(op, w, r))
	}
	if op.Method == http.MethodGet && !rt.stream {
		next = a.compress(http.HandlerFunc(next))
	}
	a.s.mux.MethodFunc(op.Method, path, a.s.guarded(&rt, rm, next))
}

// ServeHTTP implements huma.Adapter.
func (a *adapter) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.s.mux.ServeHTTP(w, r) }
