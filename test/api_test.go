package test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/httpapi/client"
)

// TestARetryHasOneEffect sends one request twice with the same key, through two nodes.
func TestARetryHasOneEffect(t *testing.T) {
	l := sharedLab(t)
	const body = `{"target":{"prefix":"203.0.113.77"},"reason":"unpaid","note":"invoice 17"}`
	first := l.raw(t, "node-1", http.MethodPost, "/v1/blocks", body, "Idempotency-Key", "retry-1")
	again := l.raw(t, "node-3", http.MethodPost, "/v1/blocks", body, "Idempotency-Key", "retry-1")
	if first.status != http.StatusCreated || again.status != http.StatusCreated || string(first.body) != string(again.body) {
		t.Errorf("first %d %s\nagain %d %s", first.status, first.body, again.status, again.body)
	}
	if again.header.Get("Idempotency-Replayed") != "true" {
		t.Error("the replay is not marked")
	}
	other := l.raw(t, "node-2", http.MethodPost, "/v1/blocks", strings.Replace(body, "77", "78", 1), "Idempotency-Key", "retry-1")
	if other.status != http.StatusUnprocessableEntity || other.problem(t).Code != "idempotency_key_used" {
		t.Errorf("the key of another request: %d %s", other.status, other.body)
	}
	n := 0
	for b, err := range l.Clients["node-2"].Blocks(t.Context(), client.BlockFilter{Reason: "unpaid"}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		if b.Note != "invoice 17" || b.Actor != "token:init" {
			t.Errorf("block %+v", b)
		}
	}
	if n != 1 {
		t.Errorf("%d blocks from one request sent twice", n)
	}
}

// TestBadInputChangesNothing sends what must be refused: each answer is a problem that names the field
// and the cure, and neither the state nor a kernel changes.
func TestBadInputChangesNothing(t *testing.T) {
	l := sharedLab(t)
	// Two VMs of one name.
	for _, id := range []string{"twin-a", "twin-b"} {
		if _, err := l.Clients["node-1"].PutVM(t.Context(), id, client.VMRequest{Name: "twin"}, client.Write{}); err != nil {
			t.Fatal(err)
		}
	}
	target := func(kind, v string) string { return fmt.Sprintf(`{"target":{%q:%q}}`, kind, v) }
	node := l.Nodes()[1]
	tests := map[string]struct {
		body     string
		status   int
		code     string
		location string
		says     string
		header   []string
	}{
		"unknown VM":          {body: target("vm", "nosuch"), status: 404, code: "vm_not_found", location: "body.target.vm", says: "nosuch"},
		"ambiguous name":      {body: target("vm", "twin"), status: 409, code: "ambiguous_name", location: "body.target.vm", says: "twin-b"},
		"malformed prefix":    {body: target("prefix", "10.0.0.300"), status: 422, code: "invalid", location: "body.target.prefix", says: "10.0.0.300"},
		"host bits":           {body: target("prefix", "10.1.2.3/24"), status: 422, code: "invalid", location: "body.target.prefix", says: "10.1.2.0/24"},
		"all of IPv4":         {body: target("prefix", "0.0.0.0/0"), status: 422, code: "prefix_too_wide", location: "body.target.prefix", says: "/8"},
		"all of IPv6":         {body: target("prefix", "::/0"), status: 422, code: "prefix_too_wide", location: "body.target.prefix", says: "/16"},
		"a node's address":    {body: target("prefix", node.Addresses[0]), status: 409, code: "guard_conflict", location: "body.target.prefix", says: node.Name},
		"a node's IPv6":       {body: target("prefix", node.Addresses[1]), status: 409, code: "guard_conflict", location: "body.target.prefix", says: node.Name},
		"around the gateway":  {body: target("prefix", "10.90.0.0/16"), status: 409, code: "guard_conflict", location: "body.target.prefix", says: "10.90.0."},
		"loopback":            {body: target("prefix", "127.0.0.1"), status: 409, code: "guard_conflict", location: "body.target.prefix", says: "loopback"},
		"no target":           {body: `{"target":{}}`, status: 422, code: "invalid", location: "body.target", says: "exactly one"},
		"two targets":         {body: `{"target":{"vm":"guest1","prefix":"203.0.113.1"}}`, status: 422, code: "invalid", location: "body.target", says: "exactly one"},
		"unknown field":       {body: `{"target":{"prefix":"203.0.113.1"},"color":"red"}`, status: 422, code: "invalid", location: "body.color", says: ""},
		"unknown inner field": {body: `{"target":{"prefix":"203.0.113.1","zone":"x"}}`, status: 422, code: "invalid", location: "body.target.zone", says: ""},
		"malformed JSON":      {body: `{"target":`, status: 400, says: ""},
		"bad reason":          {body: `{"target":{"prefix":"203.0.113.1"},"reason":"Not Paid!"}`, status: 422, code: "invalid", location: "body.reason", says: ""},
		"too large":           {body: `{"target":{"prefix":"203.0.113.1"},"note":"` + strings.Repeat("x", 2<<20) + `"}`, status: 413, says: ""},
		"wrong token":         {body: target("prefix", "203.0.113.1"), status: 401, header: []string{"Authorization", "Bearer wrong-wrong-wrong"}, says: ""},
		"no token":            {body: target("prefix", "203.0.113.1"), status: 401, header: []string{"Authorization", ""}, says: ""},
	}
	blocks := func() (n int) {
		for _, err := range l.Clients["node-1"].Blocks(t.Context(), client.BlockFilter{State: "all"}) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	rules, had := l.Rulesets(t), blocks()
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			res := l.raw(t, "node-3", http.MethodPost, "/v1/blocks", tt.body, tt.header...)
			p := res.problem(t)
			if res.status != tt.status || p.Status != tt.status || !strings.HasPrefix(res.header.Get("Content-Type"), "application/problem+json") {
				t.Errorf("status %d (%s), want %d: %s", res.status, res.header.Get("Content-Type"), tt.status, res.body)
			}
			if p.Code == "" || tt.code != "" && string(p.Code) != tt.code {
				t.Errorf("code %q, want %q", p.Code, tt.code)
			}
			text := string(res.body)
			if tt.location != "" && (len(p.Errors) == 0 || p.Errors[0].Location != tt.location) {
				t.Errorf("the problem does not name %s: %s", tt.location, text)
			}
			if !strings.Contains(text, tt.says) || strings.Contains(text, "wrong-wrong") {
				t.Errorf("the problem says %s, want it to say %q and no token", text, tt.says)
			}
		})
	}
	l.unchanged(t, rules, false)
	if n := blocks(); n != had {
		t.Errorf("%d blocks before, %d after nothing but refusals", had, n)
	}
}

// TestEventsResume reads the stream on one node, breaks off, and resumes on another by log index.
func TestEventsResume(t *testing.T) {
	l := sharedLab(t)
	st, err := l.Clients["node-1"].Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	from := st.Index
	for i := range 5 {
		l.Block(t, "node-1", client.Target{Prefix: fmt.Sprintf("203.0.113.%d", 100+i)})
	}
	first := l.stream(t, "node-1", from, 3)
	second := l.stream(t, "node-2", first[len(first)-1].index, 2)
	seen := map[string]bool{}
	for _, e := range append(first, second...) {
		if e.kind != "block.added" || seen[e.data] {
			t.Errorf("event %+v is doubled or of another kind", e)
		}
		seen[e.data] = true
	}
	for i := range 5 {
		want := fmt.Sprintf(`"203.0.113.%d"`, 100+i)
		found := false
		for data := range seen {
			found = found || strings.Contains(data, want)
		}
		if !found {
			t.Errorf("the event of %s was missed", want)
		}
	}
}

type sse struct {
	index uint64
	kind  string
	data  string
}

// stream reads n events that come after a log index.
func (l *lab) stream(t *testing.T, node string, after uint64, n int) (out []sse) {
	t.Helper()
	nd, err := l.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, nd.API+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+nd.Token)
	req.Header.Set("Last-Event-ID", strconv.FormatUint(after, 10))
	hc := http.Client{Transport: l.transport(t)}
	res, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var e sse
	for in := bufio.NewScanner(res.Body); len(out) < n && in.Scan(); {
		field, value, _ := strings.Cut(in.Text(), ": ")
		switch field {
		case "id":
			if _, err := fmt.Sscan(value, &e.index); err != nil {
				t.Fatal(err)
			}
		case "event":
			e.kind = value
		case "data":
			e.data = value
		case "":
			if e.data != "" {
				out = append(out, e)
			}
			e = sse{}
		}
	}
	if len(out) < n {
		t.Fatalf("%d events from %s after %d, want %d", len(out), node, after, n)
	}
	return out
}

// TestTheCommandLine uses the binary as an operator does, over the Unix socket.
func TestTheCommandLine(t *testing.T) {
	l := sharedLab(t)
	n := l.Nodes()[2]
	b, err := shared.Binaries()
	if err != nil {
		t.Fatal(err)
	}
	palisade := func(wantCode int, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), b.Palisade, append([]string{"--socket", n.Socket}, args...)...)
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != wantCode {
			t.Fatalf("palisade %v: exit %d (%v), want %d\n%s", args, code, err, wantCode, out)
		}
		return string(out)
	}
	out := palisade(0, "block", "add", "guest1", "--reason", "unpaid", "--note", "invoice 17", "--wait")
	for _, want := range []string{"guest1", "unpaid", "in force on", "node-1", "node-2", "node-3"} {
		said := strings.Contains(out, want) || want == "guest1" && strings.Contains(out, "vm101")
		if !said {
			t.Errorf("block add does not say %q:\n%s", want, out)
		}
	}
	id, _, _ := strings.Cut(out, " ")
	if out := palisade(0, "block", "ls"); !strings.Contains(out, id) || !strings.Contains(out, "3/3") {
		t.Errorf("block ls:\n%s", out)
	}
	if out := palisade(0, "-o", "json", "vm", "show", "guest1"); !strings.Contains(out, `"blocked": true`) && !strings.Contains(out, `"blocked":true`) {
		t.Errorf("vm show:\n%s", out)
	}
	palisade(0, "block", "lift", id, "--wait")
	palisade(3, "block", "add", "nosuchvm")
	palisade(3, "block", "add", "0.0.0.0/0")
	palisade(2, "block", "add")
	if out := palisade(0, "node", "ls"); strings.Count(out, "yes") < 3 {
		t.Errorf("node ls:\n%s", out)
	}
	palisade(0, "status")
	palisade(0, "version")
}
