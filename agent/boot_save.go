package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/boot"
	"github.com/palisade/palisade/enforce/nft"
)

// bootSaver keeps on disk what the kernel enforces, for Boot. It stands between the loops and their kernels, sees
// every change that was read back, and writes in its own time: a write never waits for it.
//
// It begins when the state has caught up with the fleet. Before that the files of the earlier life are better than a kernel
// that may have lost everything.
type bootSaver struct {
	log      *slog.Logger
	dir      string
	caughtUp <-chan struct{}
	timing   bootTiming

	mu      sync.Mutex
	changed map[enforce.Element]bool // since the last write: there, or gone
	index   uint64                   // that the kernel stands for
	lists   *enforce.Lists           // that are in the kernel; nil before any were brought
	listsAt uint64                   // and the log index that they stand for
	problem map[string]error         // by what could not be written
	wake    chan struct{}
	wakeful chan struct{} // likewise for lists

	// Of the goroutine that writes blocks.
	held    map[enforce.Element]struct{}
	written uint64 // log index on disk
	writer  *boot.BlocksWriter
}

// bootTiming says how much of the disk's time saving may take.
type bootTiming struct {
	pause time.Duration // at least, between two writes
	share int           // and so many times what the last one took
	again time.Duration // after a failure
}

// defaultBootTiming loses at most 0.2 s of changes in a power cut, for at most five small writes a second.
func defaultBootTiming() bootTiming {
	return bootTiming{pause: 200 * time.Millisecond, share: 20, again: 10 * time.Second}
}

func newBootSaver(log *slog.Logger, dir string, held nft.Held, caughtUp <-chan struct{}) *bootSaver {
	s := &bootSaver{
		log: log, dir: dir, caughtUp: caughtUp, timing: defaultBootTiming(), changed: map[enforce.Element]bool{}, index: held.Index,
		problem: map[string]error{}, wake: make(chan struct{}, 1), wakeful: make(chan struct{}, 1),
		held: make(map[enforce.Element]struct{}, len(held.Elements)), writer: boot.NewBlocksWriter(dir),
	}
	for e := range held.Elements {
		s.held[e] = struct{}{}
	}
	return s
}

// savedKernel tells a bootSaver of every change.
type savedKernel struct {
	kernel
	saver *bootSaver
}

// Apply is that of the kernel.
func (k savedKernel) Apply(ctx context.Context, d enforce.Delta) error {
	err := k.kernel.Apply(ctx, d)
	if err == nil {
		k.saver.applied(d)
	}
	return err
}

// savedLists tells a bootSaver of every content.
type savedLists struct {
	listKernel
	saver *bootSaver
}

// Bring is that of the kernel.
func (k savedLists) Bring(ctx context.Context, c nft.ListChange) error {
	err := k.listKernel.Bring(ctx, c)
	if err == nil && c.Remove { // else there is more in the kernel than this
		k.saver.brought(c)
	}
	return err
}

func (s *bootSaver) applied(d enforce.Delta) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index = d.Index
	for _, e := range d.Remove {
		s.changed[e] = false
	}
	for _, e := range d.Add {
		s.changed[e] = true
	}
	if len(s.changed) > 0 {
		signal(s.wake)
	}
}

func (s *bootSaver) brought(c nft.ListChange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists, s.listsAt = c.Lists, c.Index
	signal(s.wakeful)
}

// Run writes until ctx ends, and then what is left.
func (s *bootSaver) Run(ctx context.Context) error {
	select {
	case <-s.caughtUp:
	case <-ctx.Done():
		return nil
	}
	var wg sync.WaitGroup
	wg.Go(func() { s.pace(ctx, "blocks", s.wake, s.saveBlocks) })
	var hash [32]byte
	wg.Go(func() { s.pace(ctx, "lists", s.wakeful, func(bool) error { return s.saveLists(&hash) }) })
	wg.Wait()
	return s.writer.Close()
}

// pace saves at once, then whenever there is something to save, with pauses.
func (s *bootSaver) pace(ctx context.Context, what string, wake <-chan struct{}, save func(last bool) error) {
	for {
		begin, last := time.Now(), ctx.Err() != nil
		err := save(last)
		s.report(what, err)
		if last {
			return
		}
		pause := max(s.timing.pause, time.Duration(s.timing.share)*time.Since(begin))
		if err != nil {
			pause = max(pause, s.timing.again)
		} else {
			select {
			case <-wake:
			case <-ctx.Done():
			}
		}
		sleep(ctx, pause)
	}
}

func (s *bootSaver) saveBlocks(last bool) error {
	s.mu.Lock()
	changed, index := s.changed, s.index
	s.changed = make(map[enforce.Element]bool)
	s.mu.Unlock()
	d := enforce.Delta{Index: index}
	for e, there := range changed {
		if _, known := s.held[e]; there == known {
			continue
		}
		if there {
			s.held[e] = struct{}{}
			d.Add = append(d.Add, e)
		} else {
			delete(s.held, e)
			d.Remove = append(d.Remove, e)
		}
	}
	var err error
	switch {
	case s.writer.Full():
		err = s.writer.Begin(boot.Blocks{Index: index, Elements: s.held})
	case len(d.Add)+len(d.Remove) > 0, last && index != s.written:
		// A log index without a change of elements is worth no write: the kernel was the same before it.
		err = s.writer.Append(d)
	default:
		return nil
	}
	if err == nil {
		s.written = index
	}
	return err
}

// saveLists writes the content if it is not the one with that hash.
func (s *bootSaver) saveLists(hash *[32]byte) error {
	s.mu.Lock()
	lists, index := s.lists, s.listsAt
	s.mu.Unlock()
	if lists == nil || lists.Hash() == *hash {
		return nil
	}
	if *hash == [32]byte{} { // the first look: what an earlier life wrote may be the same
		if f, err := boot.ReadLists(s.dir, nil); err == nil && f.Damaged == nil && f.Lists.Hash() == lists.Hash() || errors.Is(err, boot.ErrNone) && lists.Empty() {
			*hash = lists.Hash()
			return nil
		}
	}
	if err := boot.WriteLists(s.dir, lists, index); err != nil {
		return err
	}
	*hash = lists.Hash()
	return nil
}

// report tells of a failure when it begins, changes or ends.
func (s *bootSaver) report(what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.problem[what]
	switch {
	case err != nil && (was == nil || was.Error() != err.Error()):
		s.log.Error("can't save the ruleset for the next boot; enforcement goes on, and it is tried again", "of", what, "err", err)
	case err == nil && was != nil:
		s.log.Info("the ruleset for the next boot is saved again", "of", what)
	}
	s.problem[what] = err
}

// Warning is why the next boot would not find what is in force now, empty if it would.
func (s *bootSaver) Warning() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, what := range []string{"blocks", "lists"} {
		if err := s.problem[what]; err != nil {
			return "the ruleset for the next boot is not saved: " + err.Error()
		}
	}
	return ""
}
