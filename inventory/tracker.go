package inventory

import (
	"fmt"
	"slices"

	"github.com/palisade/palisade/fsm"
)

// MaxVMs is how many VMs one listing may hold.
const MaxVMs = 10_000

// Seen is one VM as a listing shows it.
type Seen struct {
	VM
	// Moving says that the VM migrates, and that the listing doesn't say in which direction. Phase is
	// then PhaseRunning; Tracker finds the direction in what was seen before.
	Moving bool
}

// Tracker turns complete listings into reports. Its zero value has seen nothing. It is for one goroutine.
type Tracker struct {
	begun    bool
	reported []VM
	moving   map[string]bool // ids that are reported as running and about to leave, or perhaps so
}

// List returns the report of a complete listing, and whether it says anything new; without that it must not
// be given. fresh is for the first listing after a time in which the hypervisor could not be asked: every VM
// that is here is then news. List takes seen over. Its error is that of a listing that can't be trusted, and
// changes nothing.
//
// A VM that is Moving leaves if it was seen to run, arrives if it was not here before, and runs without being
// news where nothing is known of before: only a VM that certainly is here or comes here may be taken from the
// node that holds it.
func (t *Tracker) List(seen []Seen, fresh bool) (Report, bool, error) {
	if len(seen) > MaxVMs {
		return Report{}, false, fmt.Errorf("more than %d VMs", MaxVMs)
	}
	fresh = fresh || !t.begun
	before := make(map[string]fsm.Phase, len(t.reported))
	for _, v := range t.reported {
		before[v.ID] = v.Phase
	}
	vms := make([]VM, 0, len(seen))
	moving, doubled := make(map[string]bool), make(map[string]bool, len(seen))
	var back []string
	for _, s := range seen {
		if doubled[s.ID] {
			return Report{}, false, fmt.Errorf("VM %s is listed twice", s.ID)
		}
		doubled[s.ID] = true
		switch {
		case s.Moving && !fresh && before[s.ID] != fsm.PhaseRunning:
			s.Phase = fsm.PhaseIncoming
		case s.Moving:
			moving[s.ID] = true
		case t.moving[s.ID] && s.Phase == fsm.PhaseRunning:
			back = append(back, s.ID)
		}
		vms = append(vms, s.VM)
	}
	Sort(vms)
	prev := t.reported
	if fresh {
		prev = nil
	}
	arrived := append(Arrivals(prev, vms), back...)
	slices.Sort(arrived)
	arrived = slices.DeleteFunc(slices.Compact(arrived), func(id string) bool { return moving[id] })
	same := t.begun && len(arrived) == 0 && Equal(t.reported, vms)
	t.begun, t.reported, t.moving = true, vms, moving
	return Report{VMs: vms, Arrived: arrived}, !same, nil
}
