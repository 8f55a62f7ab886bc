package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/palisade/palisade/fsm"
)

const (
	// agreementEvery is how often a node compares its state with the leader's. It costs one call.
	agreementEvery = 30 * time.Second
	// agreementTime is how long a comparison waits for this node to reach the leader's log index.
	agreementTime = 5 * time.Second
)

// agreement finds out whether this node's state is that of the leader at the same log index. It always is, unless a
// build has a bug, memory failed, or the node was fed a false log: then what it enforces can't be relied on, and nothing else
// would tell.
type agreement struct {
	node   string
	store  *fsm.Store
	status func() fsm.Status
	ask    func(ctx context.Context, node string, q fsm.Query) (fsm.Report, error)

	mu      sync.Mutex
	differs string
}

// Run compares until ctx ends.
func (a *agreement) Run(ctx context.Context) error {
	for sleep(ctx, agreementEvery) {
		a.compare(ctx)
	}
	return nil
}

// Warning says how the states differ, "" if they do not as far as is known. A difference stays until a comparison
// shows that it is over.
func (a *agreement) Warning() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.differs
}

// compare compares once, if both nodes are seen at one index: on a fleet that writes without a pause that
// may take some tries.
func (a *agreement) compare(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, agreementTime)
	defer cancel()
	leader := a.status().Leader
	if leader == "" || leader == a.node {
		return
	}
	view := a.store.View()
	feed := a.store.Watch(view.Index())
	rep, err := a.ask(ctx, leader, fsm.Query{})
	if err != nil || rep.Hash == "" {
		return // that it is silent is told elsewhere
	}
	for view.Index() < rep.Applied {
		if view, _, err = feed.Next(ctx); err != nil {
			return
		}
	}
	if view.Index() != rep.Applied {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.differs = ""
	if mine := view.Hash(); mine != rep.Hash {
		a.differs = fmt.Sprintf("at log index %d the state of this node is %.16s, that of the leader %s is %.16s", rep.Applied, mine, leader, rep.Hash)
	}
}
