package fsm

import "slices"

// History returns the newest events of a VM at which its node, its destination or its state changed, the oldest first, at
// most as many as asked for. The feed knows them from the log index since on: what was before is not kept. It
// costs a walk over the feed.
func (v *View) History(vm string, most int) (moves []Event, since uint64) {
	var last VM
	for _, e := range v.events {
		if e.VM == nil || e.VM.ID != vm {
			continue
		}
		if now := e.VM; now.Node != last.Node || now.Destination != last.Destination || now.State != last.State || len(moves) == 0 {
			moves = append(moves, e)
			last = *now
		}
	}
	return slices.Clone(moves[max(0, len(moves)-most):]), v.eventsAfter + 1
}
