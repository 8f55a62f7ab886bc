package recovery

import (
	"fmt"

	"github.com/palisade/palisade/fsm"
)

// Return is what a state that takes the place of another has and the other no longer has, though it knows of it or would
// know: what somebody took back, or what ended.
type Return struct {
	// Block would hold again, or would start; nil for what What says.
	Block *fsm.Block
	What  string
}

// String names it for people, on one line.
func (r Return) String() string {
	if r.Block == nil {
		return r.What
	}
	return describe(r.Block) + ": it was lifted, or has ended, after the backup was made"
}

// Returns returns what to has and from no longer does: holds that from knows to be over, guards, and times before which
// nobody is to be blocked.
func Returns(from, to *fsm.View) []Return {
	var out []Return
	for b := range to.Blocks("") {
		if !b.State.Over() && !held(from, b) && over(from, b) {
			out = append(out, Return{Block: b})
		}
	}
	for vm := range to.VMs("") {
		was, known := from.VM(vm.ID)
		if known && vm.DoNotBlockUntil.After(was.DoNotBlockUntil) {
			out = append(out, Return{What: fmt.Sprintf("VM %s is not to be blocked for %s before %s", vm.ID, fsm.ReasonUnpaid, stamp(vm.DoNotBlockUntil))})
		}
	}
	for a := range to.Accounts("") {
		if a.DoNotBlockUntil.IsZero() {
			continue
		}
		if was, known := from.Account(a.ID); !known || a.DoNotBlockUntil.After(was.DoNotBlockUntil) {
			out = append(out, Return{What: fmt.Sprintf("account %s is not to be blocked for %s before %s", a.ID, fsm.ReasonUnpaid, stamp(a.DoNotBlockUntil))})
		}
	}
	here := guardsOf(from)
	for g := range to.Guards() {
		if !here[guardKey{g.Prefix, g.VM}] {
			out = append(out, Return{What: guardText(g) + ": it can't be blocked again"})
		}
	}
	return out
}
