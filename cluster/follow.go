package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/cluster/internal/peerpb"
)

const (
	// searchFirst and searchMost are the pauses between searches for a source.
	searchFirst = 50 * time.Millisecond
	searchMost  = time.Second
	// scoutEvery is how often a follower looks for a place nearer to a voter, and scoutFirst whether its source is
	// as current as others; if nobody is, the pause until it asks again grows to scoutEvery.
	scoutEvery = 30 * time.Second
	scoutFirst = 2 * time.Second
	// maxStrangers is how many peers are asked for a place that are known for nothing.
	maxStrangers = 6
	// beatsPerSilence is how many beats come in the time after which a silent leader is taken for gone.
	beatsPerSilence = 5
	// maxHops bounds how far a question for a proof goes up.
	maxHops = 32
)

// errChosen ends following: this node is to be a member of raft.
var errChosen = errors.New("this node was made a member of raft")

// follower is the life of a node that is no member of raft: it takes the committed log from a source, keeps it
// on its own disk, applies it, and serves it to others.
type follower struct {
	c      *Cluster
	log    *followLog
	know   *knowledge
	source *source
	finder *finder
	logger *slog.Logger
	beat   time.Duration // between beats
	// better is where the scout hands over a source that is to take the place of the present one.
	better chan *link
	// idle says that this node waits for its source and has taken all that it sent.
	idle atomic.Bool
	said seldom
}

func (c *Cluster) newFollower(l *followLog) *follower {
	beat := c.timing.Heartbeat / beatsPerSilence
	return &follower{
		c: c, log: l, know: newKnowledge(c.timing.Heartbeat), source: c.source, logger: c.log, beat: beat,
		finder: &finder{self: c.id, rpc: c.rpc, fresh: c.timing.Heartbeat},
		better: make(chan *link), said: seldom{every: sayAgain},
	}
}

// run follows until ctx ends or this node is chosen, which is errChosen.
func (f *follower) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	f.source.use(f.log.logs, f.log.disk.snaps)
	f.source.publish(func(p *pulse) { *p = pulse{index: f.log.last.Load().index, beat: p.beat + 1, path: []string{f.c.id}} })
	defer f.source.publish(func(p *pulse) { p.attached, p.beat = false, p.beat+1 })
	defer f.log.close()
	wg.Go(func() { f.prove(ctx) })
	wg.Go(func() { f.scout(ctx) })
	wg.Go(func() { f.forgetSeal(ctx) })
	for pause := searchFirst; ; {
		began := time.Now()
		l, err := f.finder.find(ctx, *f.log.last.Load(), f.source.currentRoom(), f.candidates(), "", func(*peerpb.FollowBeat) bool { return true })
		if err == nil {
			err = f.take(ctx, l)
		}
		switch {
		case errors.Is(err, errChosen):
			return err
		case ctx.Err() != nil:
			return nil
		}
		if _, ok := f.said.ok("search"); ok {
			f.logger.Info("looking for another peer to follow", "why", err, "index", f.log.last.Load().index)
		}
		if time.Since(began) > searchMost {
			pause = searchFirst // it followed for a while
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, searchMost)
	}
}

// candidates are whom to ask for a place: those above the last source, who lost a follower with it, then the voters, the
// leader last, then any.
func (f *follower) candidates() []string {
	k := f.know.now()
	var near []string
	for i := len(k.path) - 2; i >= 0; i-- {
		near = append(near, k.path[i])
	}
	voters := shuffled(f.c.voterIDs())
	if i := slices.Index(voters, k.leader); i >= 0 {
		voters = append(slices.Delete(voters, i, i+1), k.leader)
	}
	others := shuffled(f.c.peerIDs())
	all := slices.Concat(near, voters, others[:min(len(others), maxStrangers)])
	live := slices.DeleteFunc(slices.Clone(all), func(id string) bool { return !f.c.aliveNow(id) })
	return append(live, all...)
}

// intake is what comes from one source after the other, as long as there is one.
type intake struct {
	*follower
	link     *link
	silence  *time.Timer
	detached <-chan time.Time  // when the source has been without one of its own for too long
	sink     raft.SnapshotSink // of a snapshot that is coming in, nil if none is
	left     uint64            // bytes of it
}

// take follows a source until it is lost.
func (f *follower) take(ctx context.Context, l *link) error {
	in := &intake{follower: f, silence: time.NewTimer(f.c.timing.Heartbeat)}
	in.adopt(l)
	defer in.end()
	tick := time.NewTicker(snapshotInterval)
	defer tick.Stop()
	var compacted <-chan snapped
	for {
		chosen, changed := f.chosen()
		if chosen {
			return errChosen
		}
		var err error
		f.idle.Store(len(in.link.frames) == 0)
		select {
		case <-changed:
		case <-tick.C:
			compacted = f.log.compact()
		case done := <-compacted:
			compacted = nil
			err = f.log.compacted(done)
		case <-in.silence.C:
			if len(in.link.frames) == 0 { // else it was this node that took its time
				err = fmt.Errorf("%s is silent", in.link.id)
			}
		case <-in.detached:
			err = fmt.Errorf("%s has lost its own source", in.link.id)
		case <-ctx.Done():
			err = ctx.Err()
		case next := <-f.better:
			in.change(next)
		case m, open := <-in.link.frames:
			f.idle.Store(false)
			err = in.message(m, open)
		}
		if err != nil {
			return err
		}
	}
}

// adopt begins with a source.
func (in *intake) adopt(l *link) {
	in.link, in.detached = l, nil
	in.silence.Reset(in.c.timing.Heartbeat)
	l.reader.Go(func() {
		room := in.source.currentRoom() // it may have changed since the stream was opened
		for {
			_ = l.conn.say(&peerpb.FollowUp{Room: room}) // the reader sees the end of the stream
			select {
			case room = <-in.source.rooms:
			case <-l.done:
				return
			}
		}
	})
	_ = in.hear(l.first) // the finder has looked at the path
	in.logger.Debug("following", "source", l.id, "path", l.first.GetPath(), "index", in.log.last.Load().index)
}

// change goes over to a better source.
func (in *intake) change(to *link) {
	if in.sink != nil {
		to.close()
		return
	}
	in.logger.Info("following a better source", "was", in.link.id, "source", to.id, "depth", len(to.first.GetPath()))
	in.link.close()
	in.adopt(to)
}

func (in *intake) end() {
	in.silence.Stop()
	in.link.close()
	if in.sink != nil {
		if err := in.sink.Cancel(); err != nil {
			in.logger.Warn("what came of a snapshot could not be removed", "err", err)
		}
	}
	in.know.detach()
	in.source.publish(func(p *pulse) { p.attached, p.beat = false, p.beat+1 })
}

// message takes one message of the source.
func (in *intake) message(m *peerpb.FollowDown, open bool) error {
	if !open {
		return fmt.Errorf("%s: %w", in.link.id, in.link.err)
	}
	in.silence.Reset(in.c.timing.Heartbeat)
	switch what := m.GetWhat().(type) {
	case *peerpb.FollowDown_Beat:
		if what.Beat.GetAttached() {
			in.detached = nil
		} else if in.detached == nil {
			in.detached = time.After(in.patience())
		}
		return in.hear(what.Beat)
	case *peerpb.FollowDown_Entries:
		if in.sink != nil {
			return errors.New("entries came inside of a snapshot")
		}
		return in.entries(what.Entries.GetEntries())
	case *peerpb.FollowDown_Snapshot:
		return in.begin(what.Snapshot)
	case *peerpb.FollowDown_Chunk:
		return in.chunk(what.Chunk)
	default:
		return fmt.Errorf("%s said %T", in.link.id, what)
	}
}

// begin takes the description of a snapshot.
func (in *intake) begin(m *peerpb.FollowSnapshot) (err error) {
	if in.sink != nil {
		return errors.New("a snapshot came inside of another")
	}
	in.logger.Info("receiving a snapshot", "source", in.link.id, "index", m.GetIndex(), "bytes", m.GetSize())
	in.left = m.GetSize()
	in.sink, err = in.log.receive(m)
	return err
}

// chunk takes a part of a snapshot, and with the last puts it in the place of the log.
func (in *intake) chunk(data []byte) error {
	if in.sink == nil || uint64(len(data)) > in.left {
		return errors.New("a part of a snapshot came that belongs to none")
	}
	if _, err := in.sink.Write(data); err != nil {
		return err
	}
	if in.left -= uint64(len(data)); in.left > 0 {
		return nil
	}
	whole := in.sink
	in.sink = nil
	if err := in.log.install(whole); err != nil {
		return err
	}
	in.stored(in.log.last.Load().index)
	return nil
}

// entries takes entries, together with those that have come in after them: they share a disk write.
func (in *intake) entries(got []*peerpb.FollowEntry) error {
	for len(got) < maxAppendEntries {
		select {
		case m, open := <-in.link.frames:
			if e := m.GetEntries().GetEntries(); open && e != nil {
				got = append(slices.Clip(got), e...)
				continue
			}
			if err := in.log.append(got, in.stored); err != nil {
				return err
			}
			return in.message(m, open)
		default:
			return in.log.append(got, in.stored)
		}
	}
	return in.log.append(got, in.stored)
}

// patience is how long a source that has lost its own may take to find another: its followers stay together.
// They don't all leave at the same moment.
func (f *follower) patience() time.Duration { return 4*f.beat + rand.N(4*f.beat) }

// chosen says whether this node is to be a member of raft: the log says so, and there is nothing newer that
// says otherwise. Else it returns what to wait for.
func (f *follower) chosen() (bool, <-chan struct{}) {
	wait := f.c.members.change()
	if is, _ := f.c.members.has(f.c.id); is == follows {
		return false, wait
	}
	k := f.know.now()
	return k.covers(f.log.last.Load().index), k.changed
}

// hear takes a beat and passes it on.
func (f *follower) hear(b *peerpb.FollowBeat) error {
	if slices.Contains(b.GetPath(), f.c.id) {
		return errors.New("the source follows this node")
	}
	f.know.hear(b)
	k := f.know.now()
	f.source.publish(func(p *pulse) {
		p.beat++
		p.leader, p.term, p.commit, p.contact = k.leader, k.term, k.commit, k.contact
		p.path, p.attached = k.relayPath(f.c.id), k.attached
	})
	return nil
}

// stored tells the followers of this node how far its log is.
func (f *follower) stored(index uint64) {
	f.source.publish(func(p *pulse) { p.index = index })
}

// scout looks for a better source: one that hears the leader, or has what the leader has proven, if the present one does
// not, else one nearer to a voter. The stream to it is open before the present one is given up, so nothing is missed.
func (f *follower) scout(ctx context.Context) {
	far := time.Now().Add(scoutEvery/2 + rand.N(scoutEvery)) // when to look for a nearer one
	again := time.Now()                                      // when to look for a more current one, at the earliest
	rest, owed := scoutFirst, uint64(0)
	for {
		select {
		case <-time.After(scoutFirst/2 + rand.N(scoutFirst)):
		case <-ctx.Done():
			return
		}
		k, index := f.know.now(), f.log.last.Load().index
		if !k.attached {
			continue
		}
		// The source owes what was committed a while ago, unless it is this node that has not taken it yet.
		slow := f.idle.Load() && index < owed
		stale := time.Since(k.contact) > 2*f.c.timing.Heartbeat
		owed = max(k.proof, k.commit)
		accept := func(b *peerpb.FollowBeat) bool { return len(b.GetPath()) < len(k.path) }
		var ask []string
		switch now := time.Now(); {
		case (stale || slow) && now.After(again):
			accept = func(b *peerpb.FollowBeat) bool { return stale || b.GetIndex() >= owed }
			ask = f.candidates()
			again, rest = now.Add(rest), min(2*rest, scoutEvery) // nobody may have better
		case stale || slow:
		case now.After(far):
			far, rest = now.Add(scoutEvery/2+rand.N(scoutEvery)), scoutFirst
			if len(k.path) > 1 {
				ask = f.nearer(ctx, len(k.path))
			}
		}
		if len(ask) == 0 {
			continue
		}
		l, err := f.finder.find(ctx, *f.log.last.Load(), f.source.currentRoom(), ask, k.source(), accept)
		if err != nil {
			continue
		}
		select {
		case f.better <- l:
		case <-time.After(openTime): // the present one was lost in the meantime
			l.close()
		case <-ctx.Done():
			l.close()
			return
		}
	}
}

// nearer is a voter below which there is a place nearer than at this depth.
func (f *follower) nearer(ctx context.Context, depth int) []string {
	for _, id := range shuffled(f.c.voterIDs()) {
		if resp, err := f.c.helloTo(ctx, id); err == nil && int(resp.GetRoom())+1 < depth {
			return []string{id}
		}
	}
	return nil
}
