package httpapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"testing"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/httpapi/wire"
)

// answered reads an answer of 200.
func answered(t *testing.T, res *http.Response) []byte {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%d %s, %v", res.StatusCode, b, err)
	}
	return b
}

func auditPage(t *testing.T, s *Server, query string) (seqs []uint64, next *string) {
	t.Helper()
	var p wire.Page[wire.AuditRecord]
	if err := json.Unmarshal(answered(t, s.do(t, request{path: "/v1/audit?" + query})), &p); err != nil {
		t.Fatal(err)
	}
	for _, r := range p.Items {
		seqs = append(seqs, r.Seq)
	}
	return seqs, p.Next
}

func TestTheAuditOfARequest(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	s.do(t, request{method: http.MethodPost, path: "/v1/blocks", body: `{"target":{"prefix":"203.0.113.9"},"reason":"abuse"}`})
	s.do(t, request{method: http.MethodPost, path: "/v1/blocks", body: `{"target":{"vm":"nobody"},"note":"why"}`})
	s.do(t, request{method: http.MethodDelete, path: "/v1/blocks/b1"})
	var p wire.Page[wire.AuditRecord]
	if err := json.Unmarshal(answered(t, s.do(t, request{path: "/v1/audit?order=oldest"})), &p); err != nil {
		t.Fatal(err)
	}
	var got []string
	p.Items = slices.DeleteFunc(p.Items, func(r wire.AuditRecord) bool { return r.Action == "token.create" }) // of the fleet
	for _, r := range p.Items {
		got = append(got, fmt.Sprintf("%s %s %s %s from %t", r.Actor, r.Action, r.Object, r.Outcome, r.From != ""))
	}
	want := []string{
		"token:root block.add b1 done from true", "token:root block.add  not_found from true", "token:root block.lift b1 done from true",
	}
	if !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
	var asked struct {
		Target struct{ VM string }
		Note   string
	}
	if err := json.Unmarshal(p.Items[1].Asked, &asked); err != nil || asked.Target.VM != "nobody" || asked.Note != "why" {
		t.Errorf("asked was recorded as %s: %v", p.Items[1].Asked, err)
	}
	if p.Items[2].Before == nil || p.Items[2].After == nil {
		t.Errorf("a lift without before or after: %+v", p.Items[2])
	}
}

func TestPagesOfTheAudit(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	for i := range 25 {
		f.Apply(fsm.PutAccount{ID: fmt.Sprintf("acct-%d", i%5), Note: strconv.Itoa(i)})
	}
	first := f.View().AuditHead().Seq - 25 // newFleet may have done something
	walk := func(query string) (all []uint64) {
		cursor := ""
		for {
			seqs, next := auditPage(t, s, query+cursor)
			all = append(all, seqs...)
			if next == nil {
				return all
			}
			cursor = "&cursor=" + *next
		}
	}
	var want []uint64
	for i := range uint64(25) {
		want = append(want, first+i+1)
	}
	after := fmt.Sprintf("after=%d", first)
	for _, limit := range []int{1, 7, 25, 100} {
		q := fmt.Sprintf("%s&limit=%d", after, limit)
		if got := walk(q + "&order=oldest"); !slices.Equal(got, want) {
			t.Errorf("oldest first by %d: %v", limit, got)
		}
		back := slices.Clone(want)
		slices.Reverse(back)
		if got := walk(q + "&order=newest"); !slices.Equal(got, back) {
			t.Errorf("newest first by %d: %v", limit, got)
		}
	}
	for query, n := range map[string]int{
		"object=acct-3": 5, "object=acct-9": 0, "action=account.put": 25, "action=account": 25, "action=accoun": 0, "outcome=done": 25, "actor=nobody": 0,
	} {
		for _, order := range []string{"newest", "oldest"} {
			if got := walk(after + "&limit=2&order=" + order + "&" + query); len(got) != n {
				t.Errorf("%s, %s first: %v, want %d", query, order, got, n)
			}
		}
	}
	if res := s.do(t, request{path: "/v1/audit?order=newest&cursor=" + encodeCursor("audit-oldest", "3")}); res.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("a cursor of the other order: %d", res.StatusCode)
	}
}

func TestTheExportIsTheChain(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	for i := range 5 {
		f.Apply(fsm.PutAccount{ID: "a", Note: strconv.Itoa(i)})
	}
	head := f.View().AuditHead()
	lines := bytes.Split(bytes.TrimSuffix(answered(t, s.do(t, request{path: "/v1/audit/export"})), []byte("\n")), []byte("\n"))
	var chain fsm.AuditChain
	for _, line := range lines {
		if err := chain.Next(line); err != nil {
			t.Fatal(err)
		}
	}
	if chain != head || sha256.Sum256(lines[len(lines)-1]) != head.Head {
		t.Errorf("the export ends at %d, the state at %d", chain.Seq, head.Seq)
	}
	part := answered(t, s.do(t, request{path: fmt.Sprintf("/v1/audit/export?from=%d&to=%d", head.Seq-3, head.Seq-1)}))
	if want := append(bytes.Join(lines[len(lines)-4:len(lines)-1], []byte("\n")), '\n'); !bytes.Equal(part, want) {
		t.Errorf("a part is\n%s\nwant\n%s", part, want)
	}
	var c wire.AuditCheck
	if err := json.Unmarshal(answered(t, s.do(t, request{path: "/v1/audit/verify"})), &c); err != nil {
		t.Fatal(err)
	}
	if !c.OK || c.Head != hex.EncodeToString(head.Head[:]) || c.Last != head.Seq || c.Node != "n1" {
		t.Errorf("verify: %+v", c)
	}
}

// failingAudit has a broken chain and a broken disk.
type failingAudit struct{ stateAudit }

func (failingAudit) Verify(context.Context) (AuditCheck, error) {
	return AuditCheck{Problem: "record 3 was changed", Gaps: [][2]uint64{{5, 7}}}, nil
}

func (a failingAudit) Read(ctx context.Context, after uint64, yield func([]byte) bool) error {
	return errors.Join(a.stateAudit.Read(ctx, after, yield), errors.New("input/output error"))
}

func TestABrokenAudit(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f, func(o *Options) { o.Audit = failingAudit{stateAudit{f}} })
	f.Apply(fsm.PutAccount{ID: "a", Note: "1"})
	var c wire.AuditCheck
	if err := json.Unmarshal(answered(t, s.do(t, request{path: "/v1/audit/verify"})), &c); err != nil {
		t.Fatal(err)
	}
	if c.OK || c.Problem == "" || len(c.Gaps) != 1 || c.Gaps[0] != (wire.AuditGap{First: 5, Last: 7}) {
		t.Errorf("verify: %+v", c)
	}
	if res := s.do(t, request{path: "/v1/audit"}); res.StatusCode != http.StatusInternalServerError {
		t.Errorf("a page from a broken disk: %d", res.StatusCode)
	}
	// An export that can't be whole is cut, so that nobody takes it for whole.
	web := httptest.NewServer(s.Handler())
	defer web.Close()
	api, err := client.New(client.Options{URL: web.URL, Token: adminToken})
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := api.ExportAudit(t.Context(), 0, 0, &got); err == nil {
		t.Errorf("half of an audit was taken for all of it: %q", got.Bytes())
	}
}
