package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/palisade/palisade/httpapi/client"
)

// The ways in which the news of a migration reach the nodes.
const (
	orderly   = "orderly"        // incoming and the wire bound, the wire moves, running, gone at the source
	slow      = "source late"    // the source says for long that it runs there
	late      = "news late"      // the guest is there, and sends, long before anybody says so
	unsaid    = "incoming lost"  // nobody says that it comes
	reordered = "news reordered" // running before incoming, and before the wire is there
	gone      = "gone first"     // the source forgets it before the destination knows it
	doubled   = "news doubled"   // everything is said twice, also what is no longer true
	unnoticed = "running lost"   // the notification that it runs is lost
	live      = "live"           // libvirt tells them
	aborted   = "aborted"        // it does not come after all
)

// kinds are drawn from: each as often as it stands there.
func kinds() []string {
	return []string{orderly, orderly, orderly, orderly, slow, slow, late, late, unsaid, unsaid, reordered, reordered, gone, gone, doubled, doubled, aborted, aborted, unnoticed}
}

// limits of how soon the registry must be right once both nodes were told, their agents run and a leader is known.
const (
	rightWithin = time.Second
	// rescan is how often the driver of the light guests reads everything, whether it was notified or not.
	rescan = 5 * time.Second
)

// move is one planned migration.
type move struct {
	guest string // VM id
	hop   int    // nodes further, 1 or more
	kind  string
	delay time.Duration // of what is late
}

// plan draws the moves: the same of the same seed. Every guest has its turn before any has the next.
func plan(seed uint64, n, nodes int, guests []spot) []move {
	rnd := rand.New(rand.NewPCG(seed, 1))
	all := kinds()
	var out []move
	for len(out) < n {
		for _, i := range rnd.Perm(len(guests)) {
			out = append(out, move{
				guest: guests[i].guest, hop: 1 + rnd.IntN(nodes-1), kind: all[rnd.IntN(len(all))],
				delay: 100*time.Millisecond + time.Duration(rnd.IntN(700))*time.Millisecond,
			})
		}
	}
	return out[:n]
}

// gap is when a guest's packets may be lost by its move itself.
type gap struct{ from, to int64 }

// moved is what came of a move.
type moved struct {
	move
	gap
	// took is how long the registry was wrong while all agents were well, whole how long in all; 0 if nobody was asked.
	took, whole time.Duration
}

// movers makes moves, several at a time.
type movers struct {
	*storm
	agents bool // somebody must be told, and asked

	mu       sync.Mutex
	busy     map[string]*sync.Mutex // by guest
	done     []moved
	failures []string
}

// run makes all moves, in about their order.
func (m *movers) run(ctx context.Context, moves []move) error {
	m.busy = map[string]*sync.Mutex{}
	for _, mv := range moves {
		m.busy[mv.guest] = &sync.Mutex{}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	next := make(chan move)
	var wg sync.WaitGroup
	errs := make([]error, 3)
	for i := range errs {
		wg.Go(func() {
			for mv := range next {
				m.busy[mv.guest].Lock()
				err := m.one(ctx, mv)
				m.busy[mv.guest].Unlock()
				if err != nil && errs[i] == nil {
					errs[i] = fmt.Errorf("move of %s (%s): %w", mv.guest, mv.kind, err)
					cancel()
				}
			}
		})
	}
	for i, mv := range moves {
		if i%max(len(moves)/10, 1) == 0 {
			m.progress(i, len(moves))
		}
		select {
		case next <- mv:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}

func (m *movers) progress(i, of int) {
	sent, received := m.traffic.watched()
	line := fmt.Sprintf("%d of %d moves, %d packets sent, %d received", i, of, sent, received)
	if m.agents {
		kills, blocks := m.faults.count(), m.blocks.count()
		line += fmt.Sprintf(", %d agents killed, %d blocks made", kills, blocks)
	}
	m.say("%s", line)
}

// one makes one move and waits until the registry is right.
func (m *movers) one(ctx context.Context, mv move) error {
	g, err := m.rig.Guest(mv.guest)
	if err != nil {
		return err
	}
	var names []string
	for _, n := range m.rig.Nodes() {
		names = append(names, n.Name)
	}
	at := slices.Index(names, g.Node)
	from, to := g.Node, names[(at+mv.hop)%len(names)]
	result := moved{move: mv}
	told, err := m.make(ctx, &result, from, to)
	if err != nil {
		return err
	}
	if mv.kind == aborted {
		to = from
	}
	if m.agents {
		limit := rightWithin
		if mv.kind == unnoticed {
			limit += rescan
		}
		var right time.Time
		if right, err = m.registry(ctx, mv.guest, to); err != nil {
			return err
		}
		result.whole, result.took = right.Sub(told), max(right.Sub(m.faults.well(told)), 0)
		if result.took > limit {
			m.mu.Lock()
			m.failures = append(m.failures, fmt.Sprintf("%s to %s (%s), told at %s: the registry was right after %v", mv.guest, to, mv.kind, clock(told.UnixNano()), result.took.Round(time.Millisecond)))
			m.mu.Unlock()
		}
	}
	m.mu.Lock()
	m.done = append(m.done, result)
	m.mu.Unlock()
	return nil
}

// make does the steps of a move, in the order and at the times of its kind. It returns when the last who must know
// was told.
func (m *movers) make(ctx context.Context, mv *moved, from, to string) (told time.Time, err error) {
	var bound time.Time
	tell := func(node, phase string) func() error {
		return func() error { return m.rig.Tell(mv.guest, node, phase) }
	}
	forget := func(node string) func() error { return func() error { return m.rig.Forget(mv.guest, node) } }
	wait := func() error { return pause(ctx, mv.delay) }
	arm := func() (err error) {
		bound, err = m.arm(ctx, mv.guest, to)
		return err
	}
	wire := func() error {
		detached, attached, err := m.rig.MoveWire(ctx, mv.guest, to)
		mv.gap = gap{detached.UnixNano(), attached.UnixNano()}
		m.ledger.arrive(mv.guest, to, detached, attached, bound)
		return err
	}
	incoming, running := tell(to, "incoming"), tell(to, "running")
	var steps []func() error
	switch mv.kind {
	case orderly:
		steps = append(steps, incoming, arm, wire, running, forget(from))
	case slow:
		steps = append(steps, incoming, arm, wire, running, wait, forget(from))
	case late:
		steps = append(steps, wire, wait, incoming, wait, running, forget(from))
	case unsaid:
		steps = append(steps, wire, running, forget(from))
	case reordered:
		steps = append(steps, running, incoming, wire, running, forget(from))
	case gone:
		steps = append(steps, incoming, forget(from), wire, wait, running)
	case doubled:
		steps = append(steps, incoming, incoming, wire, running, tell(from, "running"), incoming, running, running, forget(from), forget(from))
	case unnoticed:
		quietly := func() error { return m.rig.TellUnnoticed(mv.guest, to, "running") }
		steps = append(steps, incoming, arm, wire, quietly, forget(from))
	case aborted:
		steps = append(steps, incoming, arm, wait, forget(to))
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return told, err
		}
	}
	return time.Now(), nil
}

// arm waits, as a hypervisor with the hook does, until the destination has bound the wire, and returns since when it is
// certain. If the agent does not run, the guest is let in all the same, and the time is zero.
func (m *movers) arm(ctx context.Context, guest, node string) (bound time.Time, err error) {
	if !m.agents {
		return bound, nil
	}
	err = until(ctx, time.Second, 10*time.Millisecond, func() error {
		vm, err := m.ask(ctx, node, guest)
		if err != nil {
			return err
		}
		if vm.Node != node && vm.Destination != node {
			return errors.New("not armed")
		}
		return m.enforced(ctx, node, vm.Revision)
	})
	if err != nil {
		return bound, ctx.Err()
	}
	return time.Now(), nil
}

// ask asks a node once; an agent that is down must not hold up the others.
func (m *movers) ask(ctx context.Context, node, guest string) (client.VM, error) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	return m.rig.Clients[node].VM(ctx, guest)
}

// enforced says whether a node's kernel stands as of an index.
func (m *movers) enforced(ctx context.Context, node string, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	st, err := m.rig.Clients[node].Status(ctx)
	if err == nil && st.NodeEnforcedIndex < index {
		err = fmt.Errorf("%s enforces index %d, not %d", node, st.NodeEnforcedIndex, index)
	}
	return err
}

// registry waits until every node has a guest running on a node and in flight to nowhere, and returns since when.
func (m *movers) registry(ctx context.Context, guest, node string) (right time.Time, err error) {
	var revision uint64
	for _, n := range m.rig.Nodes() {
		err := until(ctx, patience, 20*time.Millisecond, func() error {
			vm, err := m.ask(ctx, n.Name, guest)
			if err == nil && (vm.Node != node || vm.State != "running" || vm.Destination != "") {
				err = fmt.Errorf("%s has %s %s on %s (destination %q), not running on %s", n.Name, guest, vm.State, vm.Node, vm.Destination, node)
			}
			revision = max(revision, vm.Revision)
			return err
		})
		if err != nil {
			return right, err
		}
	}
	right = time.Now()
	if err := until(ctx, patience, 10*time.Millisecond, func() error { return m.enforced(ctx, node, revision) }); err != nil {
		return right, err
	}
	m.ledger.bind(guest, time.Now())
	return right, nil
}
