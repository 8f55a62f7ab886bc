package fsm

import (
	"time"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

func encodeIncident(i *Incident) *fsmpb.Incident {
	return &fsmpb.Incident{
		Node: i.Node, Code: i.Code, Severity: string(i.Severity), Text: i.Text,
		At: toNanos(i.At), Lasted: int64(i.Lasted), Times: i.Times,
	}
}

func (d *decoder) incident(m *fsmpb.Incident) *Incident {
	if m == nil {
		d.fail("has no incident")
		return &Incident{}
	}
	d.known(m)
	return &Incident{
		Node: intern(m.Node), Code: intern(m.Code), Severity: Severity(intern(m.Severity)), Text: m.Text,
		At: fromNanos(max(m.At, 0)), Lasted: time.Duration(m.Lasted), Times: m.Times,
	}
}
