package httpapi

import (
	"context"
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

type eventsInput struct {
	LastEventID string `header:"Last-Event-ID" maxLength:"20" doc:"Goes on after this log index; wins over from"`
	From        string `query:"from" maxLength:"20" doc:"Starts after this log index; without it, with what happens from now on"`
	Live        bool   `query:"live" doc:"true: say also how the nodes stand, see standing"`
}

// after reads where a stream starts.
func (in *eventsInput) after() (index uint64, given bool, err error) {
	location, value := "header.Last-Event-ID", in.LastEventID
	if value == "" {
		location, value = "query.from", in.From
	}
	if value == "" {
		return 0, false, nil
	}
	index, perr := strconv.ParseUint(value, 10, 64)
	if perr != nil {
		return 0, false, fieldProblem(location, value, "want a log index: the id of an event, for example 17")
	}
	return index, true, nil
}

func (s *Server) addEvents(api huma.API, op huma.Operation) {
	op.Description = "The id of an event is its log index; of several events with one index only the last has an id, so that " +
		"resuming after it loses none. The event \"reset\" says that the feed no longer reaches back to where the client was: " +
		"read everything again. Comments keep the connection alive. With live=true there is the event \"standing\" too, at the start, when " +
		"something in it changes, and every 3 s: a client that hears nothing for longer is cut off. It has no id.\n\n" + op.Description
	standing := api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[wire.Standing](), true, "Standing")
	schema := api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[wire.Event](), true, "Event")
	op.Responses["200"] = &huma.Response{
		Description: "Server-sent events; the data of each is an Event, of \"standing\" a Standing",
		Content:     map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{OneOf: []*huma.Schema{schema, standing}}}},
	}
	huma.Register(api, op, func(ctx context.Context, in *eventsInput) (*raw, error) {
		after, given, err := in.after()
		if err != nil {
			return nil, err
		}
		if err := s.openStream(); err != nil {
			return nil, err
		}
		return &raw{Body: func(c huma.Context) {
			defer s.streams.Add(-1)
			_, w := humachi.Unwrap(c)
			s.stream(ctx, w, after, given, in.Live)
		}}, nil
	})
}

// openStream takes a place for one stream.
func (s *Server) openStream() error {
	select {
	case <-s.closing:
		return problem(wire.CodeShuttingDown, "this node is shutting down; another one answers")
	default:
	}
	if s.streams.Add(1) > int64(s.opts.MaxStreams) {
		s.streams.Add(-1)
		p := problem(wire.CodeTooManyStreams, "%d event streams are open, and no more are allowed", s.opts.MaxStreams)
		return huma.ErrorWithHeaders(p, http.Header{"Retry-After": {"5"}})
	}
	return nil
}

// stream sends events until the caller or the server goes. A slow caller holds up nothing but its own
// goroutine: the feed is shared and immutable, and a write that takes too long ends the stream.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, after uint64, given, live bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the stream
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no")
	out := sseWriter{w: w, rc: http.NewResponseController(w), limit: s.opts.StreamWriteTimeout}
	view := s.opts.Backend.View()
	if !given {
		after = view.Index()
	}
	// The id tells a client that is cut off before the first event where to go on.
	if out.send("retry: 1000\nid: "+strconv.FormatUint(after, 10)+"\n\n") != nil {
		return
	}
	watcher := s.opts.Backend.Watch(after)
	tell := teller{s: s}
	for quiet := time.Now(); ; {
		wait := s.opts.Heartbeat - time.Since(quiet)
		if live {
			if tell.tell(ctx, &out) != nil {
				return
			}
			wait = min(wait, tell.due())
		}
		beat, done := context.WithTimeout(ctx, wait)
		v, events, err := watcher.Next(beat)
		done()
		if !s.stillValid(callerOf(ctx)) {
			return
		}
		over := v != nil || time.Since(quiet) >= s.opts.Heartbeat
		if over {
			quiet = time.Now()
		}
		switch {
		case err == nil:
			err = s.sendEvents(&out, v, visible(events, callerOf(ctx).scope))
		case errors.Is(err, fsm.ErrCompacted):
			err = out.reset(v)
		case ctx.Err() != nil:
			return
		case !over: // it is time to tell
			err = nil
		case s.opts.Backend.View().Index() < after:
			// The caller was ahead of this node's state, and still is after a heartbeat: it has seen
			// another fleet, or a state that this node lost.
			v = s.opts.Backend.View()
			watcher = s.opts.Backend.Watch(v.Index())
			err = out.reset(v)
		default:
			err = out.send(": alive\n\n")
		}
		if err != nil {
			return
		}
		if v != nil {
			after = v.Index()
		}
	}
}

// visible leaves out the events of access for all but admins. The array of the feed is shared and stays as it is.
func visible(events []fsm.Event, scope Scope) []fsm.Event {
	ofAccess := func(e fsm.Event) bool {
		return e.Token != nil || e.User != nil || e.Session != nil || e.Fleet != nil || e.JoinToken != nil
	}
	if allows(scope, ScopeAdmin) || !slices.ContainsFunc(events, ofAccess) {
		return events
	}
	return slices.DeleteFunc(slices.Clone(events), ofAccess)
}

// sendEvents writes the events in one go. Events of one index come together; only the last of them
// has an id.
func (s *Server) sendEvents(out *sseWriter, v *fsm.View, events []fsm.Event) error {
	out.buf = out.buf[:0]
	for i := range events {
		e := &events[i]
		id := uint64(0)
		if i+1 == len(events) || events[i+1].Index != e.Index {
			id = e.Index
		}
		if err := out.event(id, s.wireEvent(v, e)); err != nil {
			return err
		}
		if len(out.buf) > 64<<10 {
			if err := out.flush(); err != nil {
				return err
			}
		}
	}
	return out.flush()
}

func (s *Server) wireEvent(v *fsm.View, e *fsm.Event) wire.Event {
	out := wire.Event{Index: e.Index, At: e.Time, Type: string(e.Type), Actor: e.Actor}
	switch {
	case e.Block != nil:
		b := wireBlock(v, e.Block)
		out.Block = &b
	case e.VM != nil:
		vm := s.wireVM(v, e.VM)
		out.VM = &vm
	case e.Node != nil:
		var member *fsm.Member
		for _, m := range s.opts.Backend.Members() {
			if m.ID == e.Node.ID {
				member = &m
			}
		}
		n := s.wireNode(e.Node, member, nil)
		out.Node = &n
	case e.Guard != nil:
		g := wireGuard(e.Guard)
		out.Guard = &g
	case e.Incident != nil:
		i := wireIncident(e.Incident)
		out.Incident = &i
	case e.Account != nil:
		a := wireAccount(v, e.Account)
		out.Account = &a
	case e.Settings != nil:
		st := wireSettings(e.Settings)
		out.Settings = &st
	case e.List != nil:
		l := wireList(v, e.List)
		out.List = &l
	case e.Fleet != nil:
		f := wireFleet(v, e.Fleet)
		out.Fleet = &f
	case e.JoinToken != nil:
		t := wireJoinToken(e.JoinToken, s.clock())
		out.JoinToken = &t
	case e.Token != nil:
		t := wireToken(e.Token, s.clock())
		out.Token = &t
	case e.User != nil:
		u := wireUser(e.User)
		out.User = &u
	case e.Session != nil:
		se := wireSession(e.Session, s.clock())
		out.Session = &se
	}
	return out
}

func wireIncident(i *fsm.Incident) wire.Incident {
	return wire.Incident{
		Node: i.Node, Code: i.Code, Severity: string(i.Severity), Text: i.Text, At: i.At,
		LastedMS: float64(i.Lasted) / float64(time.Millisecond), Times: i.Times,
	}
}

// sseWriter writes server-sent events, each write with a deadline.
type sseWriter struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	limit time.Duration
	buf   []byte
}

// event adds one event; an id of 0 is left out.
func (o *sseWriter) event(id uint64, e wire.Event) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if id != 0 {
		o.buf = append(o.buf, "id: "...)
		o.buf = strconv.AppendUint(o.buf, id, 10)
		o.buf = append(o.buf, '\n')
	}
	o.buf = append(o.buf, "event: "...)
	o.buf = append(o.buf, e.Type...)
	o.buf = append(o.buf, "\ndata: "...)
	o.buf = append(o.buf, data...) // JSON has no line breaks
	o.buf = append(o.buf, "\n\n"...)
	return nil
}

// reset tells the client to read everything again and goes on after the view.
func (o *sseWriter) reset(v *fsm.View) error {
	o.buf = o.buf[:0]
	if err := o.event(v.Index(), wire.Event{Index: v.Index(), At: v.Time(), Type: wire.EventReset}); err != nil {
		return err
	}
	return o.flush()
}

func (o *sseWriter) send(text string) error {
	o.buf = append(o.buf[:0], text...)
	return o.flush()
}

func (o *sseWriter) flush() error {
	if len(o.buf) == 0 {
		return nil
	}
	// A recorder in a test has no deadlines; a connection always has.
	if err := o.rc.SetWriteDeadline(time.Now().Add(o.limit)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := o.w.Write(o.buf); err != nil {
		return err
	}
	o.buf = o.buf[:0]
	if err := o.rc.Flush(); err != nil {
		return err
	}
	// In HTTP/2 a deadline that passes ends the stream even while nothing is written.
	if err := o.rc.SetWriteDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}
