package httpapi

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

func TestAccounts(t *testing.T) {
	f := newFleet(t)
	f.Apply(fsm.DeclareVM{ID: "vm-1", Owner: "acct-42"})
	s := newServer(t, f)
	put := func(body string, header ...string) request {
		q := request{method: "PUT", path: "/v1/accounts/acct-42", body: body, header: map[string]string{}}
		for i := 0; i < len(header); i += 2 {
			q.header[header[i]] = header[i+1]
		}
		return q
	}
	get := request{method: "GET", path: "/v1/accounts/acct-42"}
	if a := decode[wire.Account](t, s.do(t, get), 200); a.VMs != 1 || a.Revision != 0 || a.Blocks == nil {
		t.Errorf("%+v", a)
	}
	refused(t, s, request{method: "GET", path: "/v1/accounts/acct-7"}, 404, wire.CodeNotFound)
	a := decode[wire.Account](t, s.do(t, put(`{"do_not_block_until":"2090-01-01T00:00:00+01:00","note":"pays on Friday"}`)), 200)
	if a.Note != "pays on Friday" || a.DoNotBlockUntil.Format(time.RFC3339) != "2089-12-31T23:00:00Z" || a.Actor != "token:root" {
		t.Errorf("%+v", a)
	}
	refused(t, s, put(`{"note":"x"}`, "If-Match", etag(a.Revision-1)), 412, wire.CodeRevision)
	refused(t, s, put(`{"do_not_block_until":"2400-01-01T00:00:00Z"}`), 422, wire.CodeInvalid)
	refused(t, s, request{method: "POST", path: "/v1/blocks", body: `{"target":{"vm":"vm-1"},"reason":"unpaid"}`}, 409, wire.CodeDoNotBlock)

	// An operator may write the note, and only that.
	as := func(q request) request { q.token = operatorToken; return q }
	refused(t, s, as(put(`{"note":"x"}`)), 403, wire.CodeForbidden)
	decode[wire.Account](t, s.do(t, as(put(`{"note":"x","do_not_block_until":"2089-12-31T23:00:00Z"}`))), 200)
	refused(t, s, as(request{method: "PUT", path: "/v1/vms/vm-1", body: `{"do_not_block_until":"2090-01-01T00:00:00Z"}`}), 403, wire.CodeForbidden)
	decode[wire.VM](t, s.do(t, request{method: "PUT", path: "/v1/vms/vm-1", body: `{"do_not_block_until":"2090-01-01T00:00:00Z"}`}), 200)
	refused(t, s, as(request{method: "PUT", path: "/v1/vms/vm-1", body: `{"owner":"bob"}`}), 403, wire.CodeForbidden)

	if page := decode[wire.Page[wire.Account]](t, s.do(t, request{method: "GET", path: "/v1/accounts"}), 200); len(page.Items) != 1 {
		t.Errorf("%+v", page)
	}
	if a := decode[wire.Account](t, s.do(t, put(`{}`)), 200); a.Revision != 0 {
		t.Errorf("%+v", a)
	}
	if page := decode[wire.Page[wire.Account]](t, s.do(t, request{method: "GET", path: "/v1/accounts"}), 200); len(page.Items) != 0 {
		t.Errorf("%+v", page)
	}
}

func TestSettings(t *testing.T) {
	s := newServer(t, newFleet(t))
	get := request{method: "GET", path: "/v1/settings"}
	res := s.do(t, get)
	if st := decode[wire.Settings](t, res, 200); st.MaxVMs != 100 || st.MaxAddresses != 65536 || st.Revision != 0 || res.Header.Get("ETag") != "" {
		t.Errorf("%+v", st)
	}
	put := request{method: "PUT", path: "/v1/settings", body: `{"max_vms":5,"max_addresses":256,"redirect":{"title":"Hold","text":"a\nb","link":"https://pay.example/"}}`}
	st := decode[wire.Settings](t, s.do(t, put), 200)
	if got := decode[wire.Settings](t, s.do(t, get), 200); got != st || got.Redirect.Text != "a\nb" || got.MaxVMs != 5 {
		t.Errorf("%+v", got)
	}
	for body, location := range map[string]string{
		`{"max_vms":5}`: "body",
		`{"max_vms":-5,"max_addresses":256,"redirect":{"title":"","text":"","link":""}}`:            "body.max_vms",
		`{"max_vms":5,"max_addresses":256,"redirect":{"title":"","text":"","link":"javascript:x"}}`: "body.redirect.link",
		`{"max_vms":5,"max_addresses":256,"redirect":{"title":"","text":"","link":"","css":""}}`:    "body.redirect.css",
	} {
		put.body = body
		if p := refused(t, s, put, 422, wire.CodeInvalid); !strings.HasPrefix(p.Errors[0].Location, location) {
			t.Errorf("%s: %+v", body, p.Errors)
		}
	}
	refused(t, s, request{method: "POST", path: "/v1/blocks", body: `{"target":{"prefix":"198.51.0.0/16"}}`}, 409, wire.CodeTooMany)
}

func TestVMGuards(t *testing.T) {
	f := newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	s := newServer(t, f)
	g := decode[wire.Guard](t, s.do(t, request{method: "POST", path: "/v1/guards", body: `{"vm":"web","note":"shop"}`}), 201)
	if g.VM != "vm-1" || g.Prefix != "" {
		t.Errorf("%+v", g)
	}
	add(t, s, `{"target":{"prefix":"203.0.113.9"}}`)
	refused(t, s, request{method: "POST", path: "/v1/blocks", body: `{"target":{"vm":"web"}}`}, 409, wire.CodeGuardConflict)
	refused(t, s, request{method: "POST", path: "/v1/guards", body: `{"vm":"nope"}`}, 404, wire.CodeVMNotFound)
	refused(t, s, request{method: "POST", path: "/v1/guards", body: `{}`}, 422, wire.CodeInvalid)
	refused(t, s, request{method: "POST", path: "/v1/guards", body: `{"vm":"web","prefix":"10.0.0.1"}`}, 422, wire.CodeInvalid)
	// What a guarded VM has can't be blocked: its addresses are for an admin to choose.
	declare := request{method: "PUT", path: "/v1/vms/vm-1", body: `{"name":"web","addresses":["10.0.0.0/8"]}`, token: operatorToken}
	if p := refused(t, s, declare, 403, wire.CodeForbidden); p.Errors[0].Location != "body.addresses" {
		t.Errorf("%+v", p)
	}
	declare.token = ""
	decode[wire.VM](t, s.do(t, declare), 200)
	refused(t, s, request{method: "PUT", path: "/v1/vms/vm-1", body: `{"name":"web"}`, token: operatorToken}, 403, wire.CodeForbidden)
	decode[wire.VM](t, s.do(t, request{method: "PUT", path: "/v1/vms/vm-1", body: `{"name":"shop","addresses":["10.0.0.0/8"]}`, token: operatorToken}), 200)
	declare.body = `{"name":"web","addresses":["203.0.113.0/24"]}`
	refused(t, s, declare, 409, wire.CodeGuardConflict)
	decode[wire.VM](t, s.do(t, request{method: "PUT", path: "/v1/vms/vm-1", body: `{"name":"web"}`}), 200)
	f.Apply(fsm.PutGuard{Prefix: mustPrefix(t, "198.51.100.0/24")})
	for _, all := range []string{"", "&all=true"} {
		var got []string
		for next := ""; ; {
			page := decode[wire.Page[wire.Guard]](t, s.do(t, request{method: "GET", path: "/v1/guards?limit=1" + all + "&cursor=" + next}), 200)
			for _, g := range page.Items {
				got = append(got, g.Prefix+g.VM)
			}
			if page.Next == nil {
				break
			}
			next = *page.Next
		}
		if !slices.Contains(got, "vm-1") || !slices.Contains(got, "198.51.100.0/24") || len(got) != len(slices.Compact(slices.Sorted(slices.Values(got)))) {
			t.Errorf("%q: %v", all, got)
		}
	}
	if res := s.do(t, request{method: "DELETE", path: "/v1/guards/vm/web"}); res.StatusCode != http.StatusNoContent {
		t.Errorf("%d", res.StatusCode)
	}
	refused(t, s, request{method: "DELETE", path: "/v1/guards/vm/web"}, 404, wire.CodeNotFound)
}
