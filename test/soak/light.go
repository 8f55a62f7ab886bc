package soak

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/test/rig"
)

// storm is one storm over a fleet.
type storm struct {
	Options
	rig     *rig.Rig
	traffic *traffic
	ledger  *ledger
	faults  *faults
	blocks  *blocks

	guests, hosts []spot
	outside       spot
	began         time.Time
}

func (l *storm) say(format string, args ...any) {
	l.Progress(fmt.Sprintf("%6.1fs  ", time.Since(l.began).Seconds()) + fmt.Sprintf(format, args...))
}

// perNode is how many guests a node has at first; rate how many packets a second a flow has.
const (
	perNode = 4
	rate    = 20
)

// Light moves light guests between three nodes: first with no agents, then, with the same moves, with agents that are
// killed while every other guest is blocked and unblocked. An error says that the storm could not be made; what did not
// stand it is in the result.
func Light(ctx context.Context, o Options) (res Result, err error) {
	if o, err = o.complete(); err != nil {
		return res, err
	}
	l := &storm{Options: o, began: time.Now()}
	res = Result{Part: "light", Seed: o.Seed, Failures: []string{}}
	l.say("bringing up three nodes with %d guests", 3*perNode)
	l.rig, err = rig.Up(ctx, o.Binaries, fleet.Options{Prefix: "palstorm", GuestsPerNode: perNode, NoAgents: true})
	if l.rig != nil {
		defer func() { err = errors.Join(err, l.rig.Down(context.WithoutCancel(ctx))) }()
	}
	if err != nil {
		return res, err
	}
	l.guests, l.hosts, l.outside = spots(l.rig)
	for k := range l.guests {
		if l.guests[k].suspect = k%2 == 0; l.guests[k].suspect {
			if err := disguise(ctx, l.rig, &l.guests[k], k+1); err != nil {
				return res, err
			}
		}
	}
	moves := plan(o.Seed, o.Moves, len(l.hosts), l.guests)
	l.say("the moves without Palisade")
	without, err := l.calm(ctx, moves)
	if err != nil {
		return res, err
	}
	l.say("starting the agents")
	for _, n := range l.hosts {
		if err := l.rig.StartAgent(ctx, n.where); err != nil {
			return res, err
		}
	}
	if err := errors.Join(l.rig.AwaitReady(ctx), l.rig.Connect(), l.rig.AwaitGuests(ctx)); err != nil {
		return res, err
	}
	l.say("the same moves with agents that are killed, and blocks")
	if err := l.rough(ctx, &res, moves, without); err != nil {
		return res, err
	}
	res.Seconds = time.Since(l.began).Seconds()
	return res, nil
}

// flows adds the streams: to the next guest and the one after it, to the outside and to a host.
func (l *storm) flows() *traffic {
	t := newTraffic()
	n := len(l.guests)
	for k, g := range l.guests {
		t.connect(g, l.guests[(k+1)%n])
		if !g.suspect {
			t.connect(g, l.guests[(k+2)%n])
		}
		t.connect(g, l.outside)
		t.connect(g, l.hosts[k%len(l.hosts)])
		if g.spoof != nil {
			t.lie(g, l.outside)
		}
	}
	return t
}

func (l *storm) spots() []spot {
	return append(append([]spot{l.outside}, l.hosts...), l.guests...)
}

// begin starts the traffic and waits until all of it passes.
func (l *storm) begin(ctx context.Context) error {
	l.ledger = newLedger()
	for _, g := range l.rig.Guests() {
		l.ledger.arrive(g.VM, g.Node, time.Now(), time.Now(), time.Now())
	}
	l.traffic = l.flows()
	if err := l.traffic.start(ctx, l.rig, l.spots()); err != nil {
		return errors.Join(err, l.traffic.close())
	}
	return l.passing(ctx, "")
}

// passing waits until all flows of a guest, or with "" all flows, pass.
func (l *storm) passing(ctx context.Context, guest string) error {
	since := time.Now()
	return until(ctx, 30*time.Second, 200*time.Millisecond, func() error { return l.traffic.passing(since, guest) })
}

// calm makes the moves without agents, and returns what each flow of innocents lost in each move.
func (l *storm) calm(ctx context.Context, moves []move) (loss, error) {
	if err := l.begin(ctx); err != nil {
		return loss{}, errors.Join(err, l.traffic.close())
	}
	m := &movers{storm: l}
	err := m.run(ctx, moves)
	if err = errors.Join(err, l.traffic.finish(context.WithoutCancel(ctx))); err != nil {
		return loss{}, err
	}
	return l.lost(m.done), nil
}

// rough makes the moves with everything that goes wrong, and judges.
func (l *storm) rough(ctx context.Context, res *Result, moves []move, without loss) error {
	m := &movers{storm: l, agents: true}
	if err := l.blow(ctx, m, moves); err != nil {
		return errors.Join(err, l.traffic.close())
	}
	list, err := l.blocks.all(ctx)
	if err != nil {
		return errors.Join(err, l.traffic.close())
	}
	l.say("all suspects are blocked")
	err = pause(ctx, time.Second)
	for k, h := range list {
		err = errors.Join(err, l.blocks.lift(ctx, l.hosts[k%len(l.hosts)].where, h))
	}
	l.say("all blocks are lifted")
	if err != nil {
		return errors.Join(err, l.traffic.close())
	}
	if perr := l.passing(ctx, ""); perr != nil {
		res.fail("after all blocks were lifted: %v", perr)
	}
	if err := l.traffic.finish(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	l.say("judging %d flows", len(l.traffic.tracks))
	return l.judge(ctx, res, m, without)
}

// blow makes the moves while agents are killed and blocks come and go.
func (l *storm) blow(ctx context.Context, m *movers, moves []move) error {
	if err := l.begin(ctx); err != nil {
		return err
	}
	l.faults, l.blocks = newFaults(l.rig, l.Seed), newBlocks(l.rig, l.ledger, l.guests)
	if err := l.blocks.declare(ctx); err != nil {
		return err
	}
	weather, still := context.WithCancel(ctx)
	defer still()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs error
	blowing := func(f func(context.Context) error) {
		wg.Go(func() {
			if err := f(weather); err != nil {
				mu.Lock()
				errs = errors.Join(errs, err)
				mu.Unlock()
			}
		})
	}
	blowing(l.faults.run)
	for i := range uint64(4) {
		blowing(func(ctx context.Context) error { return l.blocks.run(ctx, l.Seed+i) })
	}
	err := m.run(ctx, moves)
	still()
	wg.Wait()
	return errors.Join(err, errs)
}

// agreed checks that all nodes have the same state, with nothing of anybody left in a kernel.
func (l *storm) agreed(ctx context.Context) error {
	err := until(ctx, patience, 50*time.Millisecond, func() error {
		hashes := map[string]bool{}
		indexes := map[uint64]bool{}
		for _, n := range l.hosts {
			st, err := l.rig.Clients[n.where].Status(ctx)
			if err != nil {
				return err
			}
			hashes[st.StateHash], indexes[st.Index] = true, true
		}
		if len(indexes) != 1 {
			return fmt.Errorf("the nodes are at different indexes: %v", indexes)
		}
		if len(hashes) != 1 {
			return fmt.Errorf("different states at index %v: %v", indexes, hashes)
		}
		return nil
	})
	for _, n := range l.hosts {
		out, xerr := l.rig.Exec(ctx, n.where, "nft", "-s", "list", "ruleset")
		err = errors.Join(err, xerr)
		for _, g := range l.rig.Guests() {
			for _, mark := range append([]string{g.MAC, `"` + g.Tap + `"`}, g.Addresses...) {
				if mark != `""` && (strings.Contains(string(out), mark+" ") || strings.Contains(string(out), mark+",")) {
					err = errors.Join(err, fmt.Errorf("the kernel of %s still holds %s of %s", n.where, mark, g.VM))
				}
			}
		}
	}
	return err
}
