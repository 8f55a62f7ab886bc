package recovery

import (
	"errors"

	"github.com/palisade/palisade/fsm"
)

// Keep returns the ops that carry over what can be.
func Keep(losses []Loss) []fsm.Op {
	var out []fsm.Op
	for _, l := range losses {
		out = append(out, l.ops...)
	}
	return out
}

// Try finds out which losses can't be carried over because to would refuse it, and says so in them. to stays as it is.
func Try(to *fsm.View, losses []Loss) error {
	state, err := to.Clone()
	if err != nil {
		return err
	}
	for i := range losses {
		for _, op := range losses[i].ops {
			refused, err := try(state, op)
			if err != nil {
				return err
			}
			if refused != nil {
				losses[i].Unkept, losses[i].ops = refused.Error(), nil
				break
			}
		}
	}
	return nil
}

func try(state *fsm.Store, op fsm.Op) (*fsm.Error, error) {
	v := state.View()
	data, err := fsm.MarshalCommand(fsm.Command{Time: v.Time(), Actor: "restore", Op: op})
	if refused, ok := errors.AsType[*fsm.Error](err); ok {
		return refused, nil
	}
	if err != nil {
		return nil, err
	}
	res, err := state.ApplyBatch([]fsm.Entry{{Index: v.Index() + 1, Data: data}})
	if err != nil {
		return nil, err
	}
	return res[0].Err, nil
}
