package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// add posts a block and returns it.
func add(t *testing.T, s *Server, body string) wire.Block {
	t.Helper()
	return decode[wire.Block](t, s.do(t, request{method: "POST", path: "/v1/blocks", body: body}), 201)
}

// refused sends a request that is refused with a code.
func refused(t *testing.T, s *Server, q request, status int, code wire.Code) wire.Problem {
	t.Helper()
	p := decode[wire.Problem](t, s.do(t, q), status)
	if p.Code != code {
		t.Errorf("%s %s: code %s, want %s: %s", q.method, q.path, p.Code, code, p.Detail)
	}
	return p
}

// Every field of a request comes back as it was meant, and reaches the state machine.
func TestFieldsOfABlock(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	s := newServer(t, f)
	start := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	cases := map[string]struct{ body, want string }{
		"limit": {`{"target":{"account":"acct-42"},"kind":"limit","direction":"out","rate":{"bits_per_second":10000000}}`,
			`"target":{"account":"acct-42"},"reason":"manual","note":"","actor":"token:root","kind":"limit","direction":"out","rate":{"bits_per_second":10000000},"state":"active"`},
		"packets": {`{"target":{"vm":"web"},"kind":"limit","rate":{"packets_per_second":5000}}`, `"rate":{"packets_per_second":5000}`},
		"name":    {`{"target":{"vm":"web"}}`, `"target":{"vm":"vm-1"},"vm_name":"web"`},
		"ports, both forms": {`{"target":{"vm":"web"},"kind":"ports","ports":["udp/1000-2000",{"protocol":"tcp","from":25},"icmp",{"protocol":"47"}]}`,
			`"ports":[{"protocol":"icmp"},{"protocol":"tcp","from":25,"to":25},{"protocol":"udp","from":1000,"to":2000},{"protocol":"gre"}]`},
		"redirect": {`{"target":{"vm":"web"},"kind":"redirect","redirect_to":"[::ffff:192.0.2.1]:80"}`, `"redirect_to":"192.0.2.1:80"`},
		"delayed": {fmt.Sprintf(`{"target":{"vm":"web"},"starts_at":%q,"duration":"1d12h","confirm_within":"10m"}`, start.Format(time.RFC3339)),
			fmt.Sprintf(`"starts_at":%q,"ends_at":%q,"confirm_by":%q`, start.Format(time.RFC3339), start.Add(36*time.Hour).Format(time.RFC3339), start.Add(10*time.Minute).Format(time.RFC3339))},
		"zone": {`{"target":{"vm":"web"},"ends_at":"2090-01-01T00:00:00+01:00"}`, `"ends_at":"2089-12-31T23:00:00Z"`},
	}
	for name, c := range cases {
		b, err := json.Marshal(add(t, s, c.body))
		if err != nil || !strings.Contains(string(b), c.want) {
			t.Errorf("%s: %s does not say %s", name, b, c.want)
		}
	}
	if b := add(t, s, cases["delayed"].body); b.State != "pending" || !b.Since.IsZero() {
		t.Errorf("state %s since %s", b.State, b.Since)
	}
	if b := add(t, s, cases["name"].body); !b.Since.Equal(b.CreatedAt) {
		t.Errorf("since %s", b.Since)
	}
}

// What is refused says where and what would be right, and changes nothing.
func TestBadHolds(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	f.Apply(fsm.PutAccount{ID: "acct-42", DoNotBlockUntil: time.Now().Add(time.Hour)})
	s := newServer(t, f)
	hash := f.View().Hash()
	cases := map[string]struct {
		body     string
		status   int
		code     wire.Code
		location string
		says     string
	}{
		"kind":              {`"kind":"melt"`, 422, wire.CodeInvalid, "body.kind", "drop, reject"},
		"direction":         {`"direction":"up"`, 422, wire.CodeInvalid, "body.direction", "both, in, out"},
		"rate missing":      {`"kind":"limit"`, 422, wire.CodeInvalid, "body.rate", "bits or packets"},
		"rate of both":      {`"kind":"limit","rate":{"bits_per_second":1000000,"packets_per_second":5}`, 422, wire.CodeInvalid, "body.rate", "either"},
		"rate negative":     {`"kind":"limit","rate":{"bits_per_second":-1}`, 422, wire.CodeInvalid, "body.rate.bits_per_second", "0"},
		"rate unknown":      {`"kind":"limit","rate":{"mbit":1}`, 422, wire.CodeInvalid, "body.rate.mbit", "unknown field"},
		"ports missing":     {`"kind":"ports"`, 422, wire.CodeInvalid, "body.ports", "tcp/25"},
		"port of no form":   {`"kind":"ports","ports":[25]`, 422, wire.CodeInvalid, "body.ports[0]", "tcp/25"},
		"port short form":   {`"kind":"ports","ports":["tcp:25"]`, 422, wire.CodeInvalid, "body.ports[0]", "udp/1000-2000"},
		"port unknown":      {`"kind":"ports","ports":["tcp/25","carp"]`, 422, wire.CodeInvalid, "body.ports[1]", "sctp"},
		"port too high":     {`"kind":"ports","ports":["tcp/65536"]`, 422, wire.CodeInvalid, "body.ports[0]", "65535"},
		"port backwards":    {`"kind":"ports","ports":[{"protocol":"tcp","from":9,"to":3}]`, 422, wire.CodeInvalid, "body.ports[0]", "not after"},
		"port of icmp":      {`"kind":"ports","ports":["icmp/8"]`, 422, wire.CodeInvalid, "body.ports[0]", "no ports"},
		"too many ports":    {`"kind":"ports","ports":[` + strings.TrimSuffix(strings.Repeat(`"tcp/1",`, 17), ",") + `]`, 422, wire.CodeInvalid, "body.ports", "16"},
		"ports of a drop":   {`"ports":["tcp/25"]`, 422, wire.CodeInvalid, "body.ports", "kind ports"},
		"redirect nowhere":  {`"kind":"redirect","redirect_to":"pay.example"`, 422, wire.CodeInvalid, "body.redirect_to", "192.0.2.1:80"},
		"starts_at":         {`"starts_at":"tomorrow"`, 422, wire.CodeInvalid, "body.starts_at", "3339"},
		"ends in the past":  {`"ends_at":"2001-01-01T00:00:00Z"`, 422, wire.CodeInvalid, "body.ends_at", "not after the start"},
		"ends too late":     {`"ends_at":"2400-01-01T00:00:00Z"`, 422, wire.CodeInvalid, "body.ends_at", "2099"},
		"long ago":          {`"starts_at":"1500-01-01T00:00:00Z"`, 422, wire.CodeInvalid, "body.starts_at", "1970"},
		"duration":          {`"duration":"soon"`, 422, wire.CodeInvalid, "body.duration", "7d"},
		"duration negative": {`"duration":"-1h"`, 422, wire.CodeInvalid, "body.duration", "72h"},
		"duration too long": {`"duration":"4000d"`, 422, wire.CodeInvalid, "body.duration", "3650d"},
		"two ends":          {`"duration":"1h","ends_at":"2090-01-01T00:00:00Z"`, 422, wire.CodeInvalid, "body.duration", "one of them"},
		"confirm_within":    {`"confirm_within":"31d"`, 422, wire.CodeInvalid, "body.confirm_within", "30 days"},
	}
	for name, c := range cases {
		p := refused(t, s, request{method: "POST", path: "/v1/blocks", body: `{"target":{"vm":"web"},` + c.body + `}`}, c.status, c.code)
		said := slices.ContainsFunc(p.Errors, func(e wire.FieldError) bool {
			return strings.HasPrefix(e.Location, c.location) && strings.Contains(e.Message, c.says)
		})
		if !said {
			t.Errorf("%s: %+v does not say %q at %s", name, p.Errors, c.says, c.location)
		}
	}
	whole := map[string]struct {
		body   string
		status int
		code   wire.Code
		says   string
	}{
		"too wide without a net":   {`{"target":{"prefix":"198.18.0.0/15"}}`, 409, wire.CodeTooMany, "131072 addresses, at most 65536"},
		"unpaid before its time":   {`{"target":{"account":"acct-42"},"reason":"unpaid"}`, 409, wire.CodeDoNotBlock, "acct-42"},
		"no such list":             {`{"target":{"list":"nope"}}`, 404, wire.CodeNotFound, "nope"},
		"an account and something": {`{"target":{"account":"acct-42","vm":"web"}}`, 422, wire.CodeInvalid, "exactly one"},
	}
	for name, c := range whole {
		if p := refused(t, s, request{method: "POST", path: "/v1/blocks", body: c.body}, c.status, c.code); !strings.Contains(p.Detail, c.says) {
			t.Errorf("%s: %s", name, p.Detail)
		}
	}
	if f.View().CountBlocks() != 0 {
		t.Error("something was blocked")
	}
	if was := f.View().Settings(); was != fsm.DefaultSettings() || hash == "" {
		t.Errorf("settings %+v", was)
	}
}

func TestForceNeedsAdmin(t *testing.T) {
	s := newServer(t, newFleet(t))
	q := request{method: "POST", path: "/v1/blocks", body: `{"target":{"prefix":"198.18.0.0/15"},"force":true}`, token: operatorToken}
	if p := refused(t, s, q, 403, wire.CodeForbidden); !strings.Contains(p.Detail, "confirm_within") {
		t.Error(p.Detail)
	}
	q.token = adminToken
	if res := s.do(t, q); res.StatusCode != http.StatusCreated {
		t.Errorf("an admin got %d", res.StatusCode)
	}
	q.token, q.body = operatorToken, `{"target":{"prefix":"198.20.0.0/15"},"confirm_within":"10m"}`
	if res := s.do(t, q); res.StatusCode != http.StatusCreated {
		t.Errorf("an operator with confirm_within got %d", res.StatusCode)
	}
}

func TestPatch(t *testing.T) {
	f := newFleet(t, "n2")
	s := newServer(t, f)
	b := add(t, s, `{"target":{"prefix":"203.0.113.9"},"starts_at":"2090-01-01T00:00:00Z","ends_at":"2090-02-01T00:00:00Z","note":"old","confirm_within":"1h"}`)
	patch := func(revision uint64, body string) request {
		return request{method: "PATCH", path: "/v1/blocks/" + b.ID, body: body, header: map[string]string{"If-Match": etag(revision)}}
	}
	// Without If-Match it is refused, whatever it says.
	q := patch(b.Revision, `{"note":"new"}`)
	q.header = nil
	if p := refused(t, s, q, 428, wire.CodePrecondition); p.Errors[0].Location != "header.If-Match" {
		t.Errorf("%+v", p)
	}
	refused(t, s, patch(b.Revision+1, `{"note":"new"}`), 412, wire.CodeRevision)
	refused(t, s, patch(b.Revision, `{}`), 422, wire.CodeInvalid)
	refused(t, s, patch(b.Revision, `{"reason":"x"}`), 422, wire.CodeInvalid)
	refused(t, s, patch(b.Revision, `{"ends_at":"2089-01-01T00:00:00Z"}`), 422, wire.CodeInvalid)
	refused(t, s, patch(b.Revision, `{"ends_at":7}`), 422, wire.CodeInvalid)

	// What is absent stays, null clears.
	q = patch(b.Revision, `{"note":null,"ends_at":null}`)
	q.header["Content-Type"] = "application/merge-patch+json"
	res := s.do(t, q)
	tag := res.Header.Get("ETag")
	got := decode[wire.Block](t, res, 200)
	if got.Note != "" || !got.EndsAt.IsZero() || !got.StartsAt.Equal(b.StartsAt) || got.ConfirmBy.IsZero() || tag != etag(got.Revision) {
		t.Errorf("%+v", got)
	}
	got = decode[wire.Block](t, s.do(t, patch(got.Revision, `{"starts_at":"2090-01-02T00:00:00Z","ends_at":"2090-03-01T00:00:00Z","note":"new"}`)), 200)
	if got.Note != "new" || got.StartsAt.Day() != 2 || got.EndsAt.Month() != 3 || !got.ConfirmBy.Equal(got.StartsAt.Add(time.Hour)) {
		t.Errorf("%+v", got)
	}
	got = decode[wire.Block](t, s.do(t, patch(got.Revision, `{"starts_at":null,"confirm":true}`)), 200)
	if got.State != "active" || !got.ConfirmBy.IsZero() || got.Since.IsZero() {
		t.Errorf("%+v", got)
	}
	refused(t, s, patch(got.Revision, `{"starts_at":"2090-01-02T00:00:00Z"}`), 409, wire.CodeConflict)
	got = decode[wire.Block](t, s.do(t, patch(got.Revision, `{"ends_at":"2020-01-01T00:00:00Z"}`)), 200)
	if got.State != "active" || got.EndsAt.Year() != 2020 {
		t.Errorf("an end in the past, which the schedule has to see first: %+v", got)
	}
	f.Apply(fsm.LiftBlock{ID: got.ID})
	refused(t, s, patch(got.Revision, `{"note":"x"}`), 409, wire.CodeConflict)
}

func TestConfirm(t *testing.T) {
	f := newFleet(t, "n2")
	s := newServer(t, f)
	b := add(t, s, `{"target":{"prefix":"198.18.0.0/15"},"confirm_within":"10m"}`)
	got := decode[wire.Block](t, s.do(t, request{method: "POST", path: "/v1/blocks/" + b.ID + "/confirm?wait=enforced"}), 200)
	if b.ConfirmBy.IsZero() || !got.ConfirmBy.IsZero() || nodes(got.Receipts) != "n1 n2" {
		t.Errorf("%+v", got)
	}
	refused(t, s, request{method: "POST", path: "/v1/blocks/" + b.ID + "/confirm", header: map[string]string{"If-Match": etag(b.Revision)}}, 412, wire.CodeRevision)
	refused(t, s, request{method: "POST", path: "/v1/blocks/b99/confirm"}, 404, wire.CodeNotFound)
}

func TestLiftReason(t *testing.T) {
	f := newFleet(t, "n2")
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	s := newServer(t, f)
	add(t, s, `{"target":{"vm":"web"},"reason":"unpaid"}`)
	add(t, s, `{"target":{"vm":"web"},"reason":"unpaid","starts_at":"2090-01-01T00:00:00Z"}`)
	add(t, s, `{"target":{"vm":"web"},"reason":"abuse"}`)
	add(t, s, `{"target":{"prefix":"192.0.2.7"},"reason":"unpaid"}`)
	lift := func(query string) request { return request{method: "DELETE", path: "/v1/blocks?" + query} }

	res := s.do(t, lift("vm=web&reason=unpaid&wait=enforced"))
	page := decode[wire.Page[wire.Block]](t, res, 200)
	if len(page.Items) != 2 || page.Next != nil {
		t.Fatalf("%+v", page)
	}
	for _, b := range page.Items {
		if b.State != "lifted" || b.Reason != "unpaid" || nodes(b.Receipts) != "n1 n2" {
			t.Errorf("%+v", b)
		}
	}
	for id, state := range map[string]fsm.BlockState{"b3": fsm.BlockActive, "b4": fsm.BlockActive} {
		if b, _ := f.View().Block(id); b.State != state {
			t.Errorf("%s is %s", id, b.State)
		}
	}
	refused(t, s, lift("vm=web&reason=unpaid"), 404, wire.CodeNotFound)
	refused(t, s, lift("vm=web"), 422, wire.CodeInvalid)
	refused(t, s, lift("reason=abuse"), 422, wire.CodeInvalid)
	refused(t, s, lift("vm=web&prefix=192.0.2.7&reason=abuse"), 422, wire.CodeInvalid)
	f.Set(func() { f.Peers["n2"].Hangs = true })
	decode[wire.Page[wire.Block]](t, s.do(t, lift("prefix=192.0.2.7&reason=unpaid&wait=enforced&timeout=100ms")), 202)
}

func TestBlockFilters(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	s := newServer(t, f)
	add(t, s, `{"target":{"vm":"web"},"reason":"abuse"}`)
	add(t, s, `{"target":{"account":"acct-42"},"kind":"reject"}`)
	add(t, s, `{"target":{"prefix":"203.0.113.9"},"starts_at":"2090-01-01T00:00:00Z"}`)
	f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "203.0.113.10")}, Duration: time.Minute})
	b, _ := f.View().Block("b4")
	f.Apply(fsm.FireBlock{ID: "b4", Revision: b.Revision, At: b.Due()})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "203.0.113.11")}})
	f.Apply(fsm.LiftBlock{ID: "b5"})
	for query, want := range map[string]string{
		"":                        "b1 b2",
		"state=pending":           "b3",
		"state=ended":             "b4",
		"state=lifted":            "b5",
		"state=all":               "b1 b2 b3 b4 b5",
		"account=acct-42":         "b2",
		"account=acct-4":          "",
		"vm=web":                  "b1",
		"kind=reject":             "b2",
		"reason=abuse":            "b1",
		"actor=token:root":        "b1 b2",
		"actor=node:n1&state=all": "b4 b5",
		"list=x":                  "",
	} {
		page := decode[wire.Page[wire.Block]](t, s.do(t, request{method: "GET", path: "/v1/blocks?" + query}), 200)
		var ids []string
		for _, b := range page.Items {
			ids = append(ids, b.ID)
		}
		if got := strings.Join(ids, " "); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
}

func TestSchedule(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	add(t, s, `{"target":{"prefix":"203.0.113.1"}}`)
	add(t, s, `{"target":{"prefix":"203.0.113.2"},"ends_at":"2090-01-03T00:00:00Z"}`)
	add(t, s, `{"target":{"prefix":"203.0.113.3"},"starts_at":"2090-01-02T00:00:00Z","ends_at":"2090-01-05T00:00:00Z"}`)
	add(t, s, `{"target":{"prefix":"203.0.113.4"},"confirm_within":"10m","ends_at":"2090-01-04T00:00:00Z"}`)
	add(t, s, `{"target":{"prefix":"203.0.113.5"},"starts_at":"2090-01-02T00:00:00Z"}`) // at the same time as b3
	want := []string{"b4 unconfirmed", "b3 start", "b5 start", "b2 end"}
	for _, limit := range []int{1, 2, 100} {
		var got []string
		for next := ""; ; {
			path := fmt.Sprintf("/v1/schedule?limit=%d&cursor=%s", limit, next)
			page := decode[wire.Page[wire.Due]](t, s.do(t, request{method: "GET", path: path}), 200)
			for _, d := range page.Items {
				got = append(got, d.Block.ID+" "+d.What)
				if d.What == wire.DueEnd && !d.At.Equal(d.Block.EndsAt) || d.What == wire.DueStart && !d.At.Equal(d.Block.StartsAt) {
					t.Errorf("%s at %s", d.Block.ID, d.At)
				}
			}
			if page.Next == nil {
				break
			}
			next = *page.Next
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: %v, want %v", limit, got, want)
		}
	}
	for _, cursor := range []string{encodeCursor("due", "b1"), encodeCursor("due", "5 nope"), encodeCursor("block", "b1")} {
		refused(t, s, request{method: "GET", path: "/v1/schedule?cursor=" + cursor}, 422, wire.CodeInvalid)
	}
}

// The audit learns from where a request came.
func TestCommandsSayFromWhere(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	add(t, s, `{"target":{"prefix":"203.0.113.9"}}`)
	if c := f.Proposals()[0]; c.From != "192.0.2.1" || c.Actor != "token:root" { // httptest's RemoteAddr
		t.Errorf("from %q by %q", c.From, c.Actor)
	}
}

func TestEventsOfHolds(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	f.Apply(fsm.PutAccount{ID: "acct-42", Note: "x"})
	f.Apply(fsm.PutAccount{ID: "acct-42"})
	st := fsm.DefaultSettings()
	st.MaxVMs = 7
	f.Apply(fsm.PutSettings{Settings: st})
	f.Apply(fsm.AddBlock{Target: fsm.Target{Account: "acct-42"}, StartsAt: time.Now().Add(time.Hour)})
	b, _ := f.View().Block("b1")
	f.Apply(fsm.FireBlock{ID: "b1", Revision: b.Revision, At: b.Due()})
	v, events, err := f.Watch(1).Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i := range events {
		e := s.wireEvent(v, &events[i])
		text := e.Type
		switch {
		case e.Account != nil:
			text += fmt.Sprint(" ", e.Account.ID, " ", e.Account.Revision)
		case e.Settings != nil:
			text += fmt.Sprint(" ", e.Settings.MaxVMs)
		case e.Block != nil:
			text += " " + e.Block.ID + " " + e.Block.State
		}
		got = append(got, text)
	}
	want := "account.changed acct-42 2, account.changed acct-42 0, settings.changed 7, block.added b1 pending, block.started b1 active"
	if strings.Join(got, ", ") != want {
		t.Errorf("%s\nwant\n%s", strings.Join(got, ", "), want)
	}
}
