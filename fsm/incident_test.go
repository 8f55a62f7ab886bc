package fsm

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// TestAnIncidentIsAnEventAndARecord, and nothing else: told by the node itself, it survives a snapshot in the feed, and is in the
// audit.
func TestAnIncidentIsAnEventAndARecord(t *testing.T) {
	store := NewStore()
	log := newLog(store)
	log.ok(t, PutNode{Node{ID: "n1"}})
	is := Incident{Node: "n1", Code: "kernel_drift", Severity: Critical, Text: "the table is gone", At: time.Unix(1_700_000_000, 5).UTC(), Lasted: 31 * time.Millisecond, Times: 2}
	from := store.View().Index()
	by := func(actor string, i Incident) Result {
		log.actor = actor
		return log.do(t, ReportIncident{i})
	}
	for _, c := range []struct {
		actor string
		code  Code
		field string
		op    func(*Incident)
	}{
		{"node:n2", CodeInvalid, "node", func(*Incident) {}},
		{"node:n9", CodeNotFound, "node", func(i *Incident) { i.Node = "n9" }},
		{"node:n1", CodeInvalid, "severity", func(i *Incident) { i.Severity = "bad" }},
		{"node:n1", CodeInvalid, "times", func(i *Incident) { i.Times = 0 }},
		{"node:n1", CodeInvalid, "times", func(i *Incident) { i.Lasted = -1 }},
		{"node:n1", CodeInvalid, "text", func(i *Incident) { i.Text = strings.Repeat("x", MaxIncidentBytes+1) }},
		{"node:n1", CodeInvalid, "code", func(i *Incident) { i.Code = "a b" }},
	} {
		wrong := is
		c.op(&wrong)
		if r := by(c.actor, wrong); r.Err == nil || r.Err.Code != c.code || r.Err.Field != c.field {
			t.Errorf("%+v by %s: %+v", wrong, c.actor, r.Err)
		}
	}
	if r := by("node:n1", is); r.Err != nil {
		t.Fatal(r.Err)
	}
	var b bytes.Buffer
	if err := store.View().WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	restored := NewStore()
	if err := restored.Restore(&b); err != nil {
		t.Fatal(err)
	}
	for _, v := range []*View{store.View(), restored.View()} {
		events, _ := v.eventsSince(from)
		if len(events) != 1 || events[0].Type != EventIncident || events[0].Incident == nil || *events[0].Incident != is {
			t.Errorf("the feed has %+v", events)
		}
	}
	lines := audited(t, store.View())
	if last := lines[len(lines)-1]; last.Action != "incident.report" || last.Object != "n1" {
		t.Errorf("the audit ends with %+v", last)
	}
}
