package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/test/rig"
)

// QEMU is QEMUOn on a fleet of its own.
func QEMU(ctx context.Context, o Options) (res Result, err error) {
	if o, err = o.complete(); err != nil {
		return res, err
	}
	r, err := rig.Up(ctx, o.Binaries, fleet.Options{Prefix: "palsoakq", Guests: fleet.GuestsQEMU, GuestsPerNode: 1, Progress: o.Progress})
	if r != nil {
		defer func() { err = errors.Join(err, r.Down(context.WithoutCancel(ctx))) }()
	}
	if err != nil {
		return res, err
	}
	res, _, err = liveStorm(ctx, r, o)
	return res, err
}

// QEMUOn migrates the QEMU guests of a fleet, live: first without agents, then the same moves while the first guest is
// blocked and unblocked. It leaves the agents running and the guest quiet. An error is as of Light.
func QEMUOn(ctx context.Context, r *rig.Rig, o Options) (Result, error) {
	res, hush, err := liveStorm(ctx, r, o)
	if hush != nil {
		err = errors.Join(err, hush(context.WithoutCancel(ctx)))
	}
	return res, err
}

// liveStorm is QEMUOn without the end: hush quiets the guest, which is of no use in a fleet that goes down.
func liveStorm(ctx context.Context, r *rig.Rig, o Options) (res Result, hush func(context.Context) error, err error) {
	if o, err = o.complete(); err != nil {
		return res, nil, err
	}
	l := &storm{Options: o, began: time.Now(), rig: r}
	res = Result{Part: "qemu", Seed: o.Seed, Failures: []string{}}
	l.guests, l.hosts, l.outside = spots(r)
	l.guests[0].suspect = true
	// It is told while it is where it was started: a console does not always survive many migrations.
	if hush, err = l.speak(ctx, l.guests[0].guest); err != nil {
		return res, nil, err
	}
	moves := plan(o.Seed, o.Moves, len(l.hosts), l.guests)
	without, err := l.unguarded(ctx, moves)
	if err != nil {
		return res, hush, err
	}
	l.say("the same moves with agents and blocks")
	err = l.live(ctx, &res, moves, without)
	res.Seconds = time.Since(l.began).Seconds()
	return res, hush, err
}

// unguarded makes the moves without agents and their rules, and starts the agents again.
func (l *storm) unguarded(ctx context.Context, moves []move) (without loss, err error) {
	l.say("the moves without Palisade")
	for _, n := range l.hosts {
		if err := l.rig.KillAgent(ctx, n.where, syscall.SIGKILL); err != nil {
			return without, err
		}
		if _, err := l.rig.Exec(ctx, n.where, "nft", "flush", "ruleset"); err != nil {
			return without, err
		}
	}
	err = l.beginEchoes(ctx)
	m := &movers{storm: l}
	for i := 0; i < len(moves) && err == nil; i++ {
		if _, err = m.migrate(ctx, moves[i]); err == nil {
			err = l.passing(ctx, moves[i].guest)
		}
	}
	if err = errors.Join(err, l.traffic.finish(context.WithoutCancel(ctx))); err != nil {
		return without, fmt.Errorf("without Palisade: %w", err)
	}
	without = l.lost(m.done)
	for _, n := range l.hosts {
		if err := l.rig.StartAgent(ctx, n.where); err != nil {
			return without, err
		}
	}
	return without, errors.Join(l.rig.AwaitReady(ctx), l.rig.AwaitGuests(ctx))
}

// beginEchoes starts the traffic and waits until all of it passes: from the outside to every guest and from every host to
// the suspect, echoed; and what the suspect itself sends.
func (l *storm) beginEchoes(ctx context.Context) error {
	l.ledger, l.traffic = newLedger(), newTraffic()
	var macs []string
	for _, g := range l.rig.Guests() {
		l.ledger.arrive(g.VM, g.Node, time.Now(), time.Now(), time.Time{})
		macs = append(macs, g.MAC)
	}
	for _, g := range l.guests {
		l.traffic.echo(l.outside, g)
		if g.suspect {
			for _, h := range l.hosts {
				l.traffic.echo(h, g)
			}
		}
	}
	places := append([]spot{l.outside}, l.hosts...)
	if err := errors.Join(l.traffic.watch(ctx, l.rig, places, macs), l.traffic.start(ctx, l.rig, places)); err != nil {
		return err
	}
	return l.passing(ctx, "")
}

// speak has the suspect send, until hush: pings to the outside over IPv4, for which it needs no neighbour's answer, and
// over IPv6 to a multicast group that nobody is in.
func (l *storm) speak(ctx context.Context, guest string) (hush func(context.Context) error, err error) {
	mac, err := l.rig.Exec(ctx, fleet.Outside, "cat", "/sys/class/net/br0/address")
	if err != nil {
		return nil, err
	}
	to := l.outside.v4.String()
	hush = func(ctx context.Context) error { return l.rig.Type(ctx, guest, "killall ping; arp -d "+to) }
	return hush, l.rig.Type(ctx, guest, fmt.Sprintf("arp -s %s %s; for to in %s ff05::fa11; do ping -q -i 0.04 $to >/dev/null & done", to, bytes.TrimSpace(mac), to))
}

// migrate makes one live migration, notes it, and returns when libvirt was done.
func (m *movers) migrate(ctx context.Context, mv move) (told time.Time, err error) {
	g, err := m.rig.Guest(mv.guest)
	if err != nil {
		return told, err
	}
	at := slices.IndexFunc(m.hosts, func(h spot) bool { return h.where == g.Node })
	to := m.hosts[(at+mv.hop)%len(m.hosts)].where
	done, err := m.rig.Migrate(ctx, mv.guest, to)
	if err != nil {
		return told, err
	}
	m.ledger.arrive(mv.guest, to, done.Incoming, done.Gone, time.Time{})
	mv.kind = live
	m.done = append(m.done, moved{move: mv, gap: gap{done.Incoming.UnixNano(), done.Gone.UnixNano()}})
	m.say("%d moves: %s went from %s to %s in %v", len(m.done), g.Name, g.Node, to, done.Gone.Sub(done.Incoming).Round(time.Millisecond))
	// The next move begins when this one's losses are over, so that none is taken for the other's.
	return done.Gone, pause(ctx, resolve)
}

// live makes the moves with agents while the suspect is blocked and unblocked, and judges.
func (l *storm) live(ctx context.Context, res *Result, moves []move, without loss) error {
	m := &movers{storm: l, agents: true}
	err := l.beginEchoes(ctx)
	l.blocks = newBlocks(l.rig, l.ledger, l.guests)
	if err == nil {
		err = l.alternate(ctx, m, moves)
	}
	if err == nil {
		if perr := l.passing(ctx, ""); perr != nil {
			res.fail("after all blocks were lifted: %v", perr)
		}
	}
	if err = errors.Join(err, l.traffic.finish(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	return l.judge(ctx, res, m, without)
}

// alternate makes the moves, the suspect mostly blocked while it moves, and ends with nothing blocked.
func (l *storm) alternate(ctx context.Context, m *movers, moves []move) error {
	rnd := rand.New(rand.NewPCG(l.Seed, 4))
	var held *hold
	for _, mv := range moves {
		if held == nil && rnd.IntN(4) > 0 {
			held = &hold{guests: []string{l.guests[0].guest}}
			req := client.BlockRequest{Reason: "storm", Target: client.Target{VM: l.guests[0].guest}}
			if err := l.blocks.add(ctx, l.blocks.pick(rnd), req, held); err != nil {
				return err
			}
		}
		right, err := l.follow(ctx, m, mv)
		if err != nil {
			return err
		}
		last := &m.done[len(m.done)-1]
		if last.took, last.whole = right, right; right > rightWithin {
			m.failures = append(m.failures, fmt.Sprintf("%s (migrated live): the registry was right after %v", mv.guest, right.Round(time.Millisecond)))
		}
		if held == nil || !slices.Contains(held.guests, mv.guest) {
			if perr := l.passing(ctx, mv.guest); perr != nil {
				return fmt.Errorf("nothing blocks %s: %w", mv.guest, perr)
			}
		}
		if held != nil && rnd.IntN(3) == 0 {
			if err := l.blocks.lift(ctx, l.blocks.pick(rnd), held); err != nil {
				return err
			}
			held = nil
		}
	}
	if held != nil {
		return l.blocks.lift(ctx, l.blocks.nodes[0], held)
	}
	return nil
}

// follow makes one migration, and meanwhile waits until the registry has it. It returns how long after libvirt was done the
// registry was right.
func (l *storm) follow(ctx context.Context, m *movers, mv move) (time.Duration, error) {
	g, err := l.rig.Guest(mv.guest)
	if err != nil {
		return 0, err
	}
	at := slices.IndexFunc(l.hosts, func(h spot) bool { return h.where == g.Node })
	to := l.hosts[(at+mv.hop)%len(l.hosts)].where
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		at  time.Time
		err error
	}
	right := make(chan answer, 1)
	go func() {
		at, err := m.registry(ctx, mv.guest, to)
		right <- answer{at, err}
	}()
	told, err := m.migrate(ctx, mv)
	if err != nil {
		cancel()
		<-right
		return 0, err
	}
	a := <-right
	return max(a.at.Sub(told), 0), a.err
}

// watchedLeaks lists the frames of suspects that passed a node that had promised to drop them, and counts those that the
// suspects tried and that were dropped.
func (l *storm) watchedLeaks() (leaked []string, tried int) {
	for where, frames := range l.traffic.frames {
		for _, f := range frames {
			g := l.guests[f.Address]
			if !g.suspect {
				continue
			}
			var id string
			if where == fleet.Outside {
				id = l.ledger.held(stream{from: place{guest: g.guest}}, f.At, f.At)
			} else {
				id = l.ledger.heldOn(g.guest, where, f.At)
			}
			switch {
			case id == "":
			case f.Passed:
				leaked = append(leaked, fmt.Sprintf("a frame of %s (from it: %v) passed on %s at %s although %s was in force", g.guest, f.From, where, clock(f.At), id))
			default:
				tried++
			}
		}
	}
	return leaked, tried
}
