package fsm

import (
	"fmt"
	"time"
)

// MaxIncidentBytes bounds the text of an incident.
const MaxIncidentBytes = 1024

// Incident is something that befell a node and that others should see: in the event stream and in the audit. It is
// not kept in the state; what lasts is a Problem.
type Incident struct {
	Node     string
	Code     string // that of the problem, see docs/monitoring.md
	Severity Severity
	Text     string    // what happened
	At       time.Time // when, by the node's clock
	// Lasted is from finding it to its being undone; 0 if it is not undone.
	Lasted time.Duration
	// Times is how often it happened since the report before, at least 1.
	Times uint64
}

// ReportIncident tells of an incident. It changes no object. Only the node itself may, as "node:ID".
type ReportIncident struct{ Incident Incident }

func (ReportIncident) isOp() {}

func severities() []Severity { return []Severity{Critical, Warning} }

func (a *applier) reportIncident(op *ReportIncident) *Error {
	is := op.Incident
	if refused := first(
		checkID("node", is.Node),
		checkID("code", is.Code),
		checkText("text", is.Text, MaxIncidentBytes),
	); refused != nil {
		return refused
	}
	n, known := a.nodes.get([]byte(is.Node))
	switch {
	case !known || a.fleet != nil && !n.Member():
		return &Error{CodeNotFound, "node", "there is no node " + quote(is.Node)}
	case a.actor != "node:"+is.Node:
		return &Error{CodeInvalid, "node", fmt.Sprintf("is %s, which tells of itself; %s can't", is.Node, quote(a.actor))}
	case !contains(severities, is.Severity):
		return &Error{CodeInvalid, "severity", "there is no severity " + quote(string(is.Severity))}
	case is.Times == 0 || is.Lasted < 0:
		return &Error{CodeInvalid, "times", "it happened at least once, and lasted no negative time"}
	}
	a.emit(Event{Type: EventIncident, Incident: &is})
	return nil
}

func (j *auditJSON) incident(k string, i *Incident) {
	j.open(k, '{')
	j.text("code", i.Code)
	j.text("severity", string(i.Severity))
	j.text("text", i.Text)
	j.time("at", i.At)
	j.duration("lasted", i.Lasted)
	j.number("times", i.Times)
	j.close('}')
}
