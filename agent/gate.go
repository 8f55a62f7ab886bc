package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

// gate tells whether all that applies to a guest is in this node's kernel. It asks the kernel itself, for a state that is as new
// as everything that was committed before the question.
type gate struct {
	store    *fsm.Store
	enforcer *enforcer
	lists    *listEnforcer
	// readIndex is cluster.ReadIndex: an index at or past everything that was committed before the call.
	readIndex func(ctx context.Context) (uint64, error)
}

// errNotReady says that this node can't know: it has not caught up with the fleet, or does not reach a majority of it.
var errNotReady = errors.New("this node can't tell whether it knows all that is blocked")

// current waits until the kernel has what is committed now, and what the enforcer was told of this node.
func (g *gate) current(ctx context.Context) error {
	select {
	case <-g.enforcer.caughtUp:
	default:
		return fmt.Errorf("%w: it has not caught up with the fleet since its start", errNotReady)
	}
	index, err := g.readIndex(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotReady, err)
	}
	if err := g.enforcer.waitTold(ctx, index); err != nil {
		at, why := g.enforcer.Standing()
		return fmt.Errorf("the kernel stands at log index %d, wanted is %d (%s): %w", at, index, why, err)
	}
	return nil
}

// confirm returns nil once the kernel holds all that applies to a guest, else why not when ctx ends.
func (g *gate) confirm(ctx context.Context, vm *inventory.VM) error {
	if err := g.current(ctx); err != nil {
		return err
	}
	for {
		// What the state has come to hold meanwhile is not in the kernel yet.
		err := g.verify(ctx, vm)
		if err == nil || !sleep(ctx, confirmAgain) {
			return err
		}
	}
}

// confirmAgain is the pause before what applies to a guest is read back once more.
const confirmAgain = 5 * time.Millisecond

// verify reads back what applies to a guest.
func (g *gate) verify(ctx context.Context, vm *inventory.VM) error {
	elements, lists := g.enforcer.needed(vm)
	if len(elements) > 0 {
		found, err := g.enforcer.kernel.Counters(ctx, elements)
		if err != nil {
			return err
		}
		for _, e := range elements {
			if _, ok := found[e]; !ok {
				return fmt.Errorf("the kernel does not hold %v", e)
			}
		}
	}
	if lists {
		if err := g.lists.WaitEnforced(ctx, g.store.View().Index()); err != nil {
			return fmt.Errorf("a list that names an address of the guest is not in the kernel as it should be: %w", err)
		}
	}
	return nil
}

// needed are the elements that treat a guest's packets, and whether lists do.
func (e *enforcer) needed(vm *inventory.VM) ([]enforce.Element, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.compiler.Needed(vm.ID, vm.NICs)
}

// waitTold blocks until the kernel has the log index, and what SetLocal was told before the call.
func (e *enforcer) waitTold(ctx context.Context, index uint64) error {
	e.mu.Lock()
	told := e.told.told
	e.mu.Unlock()
	return e.wait(ctx, func() bool { return e.enforced >= index && e.told.enforced >= told })
}
