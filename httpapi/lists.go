package httpapi

import (
	"bufio"
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

const (
	maxListPatchBytes  = 8 << 20
	defaultSourceBytes = 32 << 20
)

func listRoutes() []route {
	get := func(path, id, summary string) huma.Operation {
		return huma.Operation{Method: http.MethodGet, Path: path, OperationID: id, Summary: summary}
	}
	op := func(method, path, id, summary string, status int) huma.Operation {
		return huma.Operation{Method: method, Path: path, OperationID: id, Summary: summary, DefaultStatus: status}
	}
	notFound := []wire.Code{wire.CodeNotFound}
	changing := []wire.Code{wire.CodeNotFound, wire.CodeConflict, wire.CodeRevision}
	return []route{
		{op: get("/v1/lists", "list-lists", "List the lists"), scope: ScopeViewer, add: do((*Server).listLists)},
		{op: get("/v1/lists/{name}", "get-list", "Show a list"), scope: ScopeViewer, codes: notFound, add: do((*Server).getList)},
		{op: get("/v1/lists/{name}/entries", "list-entries", "Show what is on a list"), scope: ScopeViewer, codes: notFound, add: (*Server).addListEntries},
		{op: op(http.MethodPut, "/v1/lists/{name}", "put-list", "Replace a list, or create it", http.StatusOK), scope: ScopeOperator,
			codes: []wire.Code{wire.CodeConflict, wire.CodeRevision}, add: (*Server).addPutList},
		{op: op(http.MethodPatch, "/v1/lists/{name}", "patch-list", "Add and remove entries, or describe a list", http.StatusOK), scope: ScopeOperator,
			codes: changing, add: func(s *Server, api huma.API, op huma.Operation) {
				op.MaxBodyBytes = maxListPatchBytes
				do((*Server).patchList)(s, api, op)
			}},
		{op: op(http.MethodDelete, "/v1/lists/{name}", "delete-list", "Delete a list that no block holds", http.StatusNoContent), scope: ScopeOperator,
			codes: changing, add: do((*Server).deleteList)},
		{op: op(http.MethodPut, "/v1/lists/{name}/source", "put-list-source", "Have the leader load a list from a file or an URL", http.StatusOK), scope: ScopeAdmin,
			codes: changing, add: do((*Server).putListSource)},
		{op: op(http.MethodDelete, "/v1/lists/{name}/source", "delete-list-source", "Load a list no more; its content stays", http.StatusOK), scope: ScopeAdmin,
			codes: changing, add: do((*Server).deleteListSource)},
	}
}

func wireList(v *fsm.View, l *fsm.List) wire.List {
	out := wire.List{
		Name: l.Name, Owner: l.Owner, Note: l.Note, Origin: l.Origin, Size: l.Size, Hash: l.Hash,
		LoadedAt: l.LoadedAt, Actor: l.Actor, Revision: l.Revision, Blocks: []string{},
	}
	for b := range v.HeldLists() {
		if b.Target.List == l.Name {
			out.Blocks = append(out.Blocks, b.ID)
		}
	}
	if l.Source == (fsm.ListSource{}) {
		return out
	}
	out.Source = &wire.ListSource{URL: l.Source.URL, Interval: l.Source.Interval.String(), MaxBytes: l.Source.MaxBytes}
	return out
}

// loaded adds to lists how it went to load them, which only the leader knows. If it can't be asked, that stays
// unknown.
func (s *Server) loaded(ctx context.Context, lists []wire.List) {
	leader := s.opts.Backend.Status().Leader
	if leader == "" || !slices.ContainsFunc(lists, func(l wire.List) bool { return l.Source != nil }) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.AskTimeout)
	defer cancel()
	r, err := s.opts.Backend.Ask(ctx, leader, fsm.Query{Sources: true})
	if err != nil {
		s.log.Debug("the leader did not say how the loading of lists went", "leader", leader, "err", err)
		return
	}
	for _, l := range lists {
		if st, ok := r.Sources[l.Name]; ok && l.Source != nil {
			l.Source.CheckedAt, l.Source.LastError = st.CheckedAt, st.Error
		}
	}
}

type listListsInput struct {
	ReadInput
	PageInput
}

type listListsOutput struct {
	ReadHeaders
	Body wire.Page[wire.List]
}

func (s *Server) listLists(ctx context.Context, in *listListsInput) (*listListsOutput, error) {
	after, err := decodeCursor("list", in.Cursor)
	if err != nil {
		return nil, err
	}
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	p := page[wire.List]{kind: "list", limit: in.Limit}
	for l := range v.Lists(after) {
		if !p.add(l.Name, func() wire.List { return wireList(v, l) }) {
			break
		}
	}
	out := &listListsOutput{ReadHeaders: h, Body: p.wire()}
	s.loaded(ctx, out.Body.Items)
	return out, nil
}

// ListInput is what every route of one list takes.
type ListInput struct {
	Name string `path:"name" maxLength:"64" example:"drop"`
}

type getListInput struct {
	ReadInput
	ListInput
}

type getListOutput struct {
	ReadHeaders
	ETag string `header:"ETag" doc:"Revision of the list, for If-Match"`
	Body wire.List
}

func findList(v *fsm.View, name string) (*fsm.List, fsm.PrefixSet, error) {
	l, set, ok := v.List(name)
	if !ok {
		p := problem(wire.CodeNotFound, "there is no list %q", echo(name))
		p.Errors = []wire.FieldError{{Location: "path.name", Message: "names no list", Value: echo(name)}}
		return nil, set, p
	}
	return l, set, nil
}

func (s *Server) getList(ctx context.Context, in *getListInput) (*getListOutput, error) {
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	l, _, err := findList(v, in.Name)
	if err != nil {
		return nil, err
	}
	one := []wire.List{wireList(v, l)}
	s.loaded(ctx, one)
	return &getListOutput{ReadHeaders: h, ETag: etag(l.Revision), Body: one[0]}, nil
}

type listEntriesInput struct {
	ReadInput
	ListInput
	Within string `query:"within" maxLength:"64" doc:"Address or CIDR: only the entries that overlap it" example:"192.0.2.7"`
}

func (s *Server) addListEntries(api huma.API, op huma.Operation) {
	op.Description = "One address or CIDR on each line, IPv4 first, by address: the form in which PUT takes it.\n\n" + op.Description
	op.Responses["200"] = &huma.Response{Description: "The entries", Content: map[string]*huma.MediaType{"text/plain": {}}}
	huma.Register(api, op, func(ctx context.Context, in *listEntriesInput) (*raw, error) {
		v, h, err := s.view(ctx, in.ReadInput)
		if err != nil {
			return nil, err
		}
		l, set, err := findList(v, in.Name)
		if err != nil {
			return nil, err
		}
		entries := set.All()
		if in.Within != "" {
			p, refused := fsm.ParsePrefix("within", in.Within)
			if refused != nil {
				return nil, refusalProblem(refused, sent{"within": at("query.within", in.Within)})
			}
			entries = set.Within(p)
			if around, ok := set.Covering(p); ok {
				entries = slices.Values([]netip.Prefix{around})
			}
		}
		return &raw{Body: func(c huma.Context) {
			_, w := humachi.Unwrap(c)
			head := w.Header()
			head.Set("Content-Type", "text/plain; charset=utf-8")
			head.Set("ETag", etag(l.Revision))
			head.Set("Palisade-Index", strconv.FormatUint(h.Index, 10))
			head.Set("Palisade-Age-Ms", strconv.FormatInt(h.Age, 10))
			out := bufio.NewWriterSize(w, 64<<10)
			var line []byte
			for p := range entries {
				line = append(append(line[:0], prefixText(p)...), '\n')
				if _, err := out.Write(line); err != nil {
					return
				}
			}
			_ = out.Flush() // the caller has gone
		}}, nil
	})
}

type deleteListInput struct {
	WriteInput
	MatchInput
	ListInput
}

type deleteListOutput struct{ WriteHeaders }

func (s *Server) deleteList(ctx context.Context, in *deleteListInput) (*deleteListOutput, error) {
	rev, err := in.revision()
	if err != nil {
		return nil, err
	}
	if l, _, ok := s.opts.Backend.View().List(in.Name); ok && l.Source != (fsm.ListSource{}) && !allows(callerOf(ctx).scope, ScopeAdmin) {
		return nil, problem(wire.CodeForbidden, "%s has scope %q; to delete a list that is loaded from a source needs %q", callerOf(ctx).actor, callerOf(ctx).scope, ScopeAdmin)
	}
	res, err := s.propose(ctx, in.WriteInput, fsm.DeleteList{Name: in.Name, IfRevision: rev}, listPlaces(in.Name, in.IfMatch).just)
	if err != nil {
		return nil, err
	}
	return &deleteListOutput{WriteHeaders{Index: res.Index, Replayed: replayed(res)}}, nil
}

func listPlaces(name, ifMatch string) sent {
	return sent{
		"name": at("path.name", name), "if_revision": at("header.If-Match", ifMatch), "prefixes": at("body", nil),
		"owner": at("body.owner", nil), "note": at("body.note", nil),
		"source.url": at("body.url", nil), "source.interval": at("body.interval", nil), "source.max_bytes": at("body.max_bytes", nil),
	}
}

type putListSourceInput struct {
	WriteInput
	MatchInput
	ListInput
	Body wire.ListSourceRequest
}

type listOutput struct {
	WriteHeaders
	Body wire.List
}

func (s *Server) putListSource(ctx context.Context, in *putListSourceInput) (*listOutput, error) {
	interval, err := wire.ParseDuration(in.Body.Interval)
	if err != nil {
		return nil, fieldProblem("body.interval", in.Body.Interval, "want a duration, for example 1h")
	}
	u, err := url.Parse(in.Body.URL)
	if err != nil || u.Scheme != "file" && u.Host == "" || u.Scheme == "file" && (u.Host != "" || u.Path == "") {
		return nil, fieldProblem("body.url", nil, "want https://HOST/PATH, http://HOST/PATH or file:///PATH")
	}
	most := in.Body.MaxBytes
	if most == 0 {
		most = defaultSourceBytes
	}
	return s.setListSource(ctx, in.WriteInput, in.MatchInput, in.Name, fsm.ListSource{URL: in.Body.URL, Interval: interval, MaxBytes: most})
}

func (s *Server) deleteListSource(ctx context.Context, in *deleteListInput) (*listOutput, error) {
	if _, _, err := findList(s.opts.Backend.View(), in.Name); err != nil {
		return nil, err
	}
	return s.setListSource(ctx, in.WriteInput, in.MatchInput, in.Name, fsm.ListSource{})
}

func (s *Server) setListSource(ctx context.Context, w WriteInput, m MatchInput, name string, src fsm.ListSource) (*listOutput, error) {
	rev, err := m.revision()
	if err != nil {
		return nil, err
	}
	res, err := s.propose(ctx, w, fsm.DescribeList{Name: name, IfRevision: rev, Source: &src}, listPlaces(name, m.IfMatch).just)
	if err != nil {
		return nil, err
	}
	if res.List == nil {
		return nil, problem(wire.CodeInternal, "the write was committed at index %d, but its result has no list", res.Index)
	}
	return &listOutput{
		WriteHeaders: WriteHeaders{ETag: etag(res.List.Revision), Index: res.Index, Replayed: replayed(res)},
		Body:         wireList(s.opts.Backend.View(), res.List),
	}, nil
}
