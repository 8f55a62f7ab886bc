package agent

import (
	"fmt"
	"slices"
	"strings"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// unsettled says whether a kernel that stands for a log index is from before the fleet's present epoch, and nobody has said
// yet that it may let go of what the state does not know. What was held in the lost time was acknowledged to somebody: no
// state that lacks it may unblock it.
func unsettled(view *fsm.View, index uint64) (*fsm.Fleet, bool) {
	f, ok := view.Fleet()
	return f, ok && index > 0 && index < f.Since.Index && f.Since.Settled < f.Epoch
}

// heldOver are elements that only the kernel knows.
type heldOver map[enforce.Element]struct{}

// keep takes over what of a kernel's leftovers holds something, and returns the rest. Interfaces of guests are left out: the
// host gives their names to others.
func (h heldOver) keep(leftover map[enforce.Element]struct{}) (rest []enforce.Element) {
	for el := range leftover {
		t, known := el.Treatment.Terms()
		helps := known && (t.Kind == enforce.Page || t.Kind == enforce.Bridge || t.Kind == enforce.Here)
		if el.Tap != "" || helps {
			rest = append(rest, el)
			continue
		}
		h[el] = struct{}{}
	}
	return rest
}

// problem says what is held over, empty if nothing is.
func (h heldOver) problem(f *fsm.Fleet) string {
	n := 0
	var some []string
	for el := range h {
		if el == (enforce.Element{Treatment: el.Treatment}) {
			continue // the chain of a treatment, which holds nothing by itself
		}
		n++
		some = append(some, el.String())
	}
	if n == 0 {
		return ""
	}
	const shown = 5
	slices.Sort(some)
	more := ""
	if n > shown {
		some, more = some[:shown], fmt.Sprintf(" and %d more", n-shown)
	}
	return fmt.Sprintf("the kernel holds %d elements from before epoch %d that the state does not know: %s%s; they stay until they are blocked anew or \"palisade settle\" lets them go",
		n, f.Epoch, strings.Join(some, ", "), more)
}
