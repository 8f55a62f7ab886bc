package cluster

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/palisade/palisade/fsm"
)

// formats keeps admissions and the first entry of a new command format apart. The leader asks its state who reads an entry
// before it appends it (View.Readable); a node of an older build that is admitted between the two would get what it can't read. So
// no admission is under way while the first entry of a format is, and the other way round: each ends with its outcome, when
// the state knows of it. Once an entry of a format was applied, the state machine itself refuses nodes that don't read it. A
// reign begins after its barrier, so nothing of the one before is under way.
type formats struct {
	mu      sync.Mutex
	admits  int           // under way
	raises  bool          // a first entry is under way
	changed chan struct{} // closed with every end
}

// errFormatFirst is of an admission that came together with the first entry of a format. The entry goes first.
var errFormatFirst = errors.New("the log needs a new command format just now")

func newFormats() *formats { return &formats{changed: make(chan struct{})} }

// enter waits until commands may be appended, or ctx ends; raises says whether one needs a format that the log has not needed yet.
// leave is to be called once their outcome is known. It waits for nothing if there is neither an admission nor such a command.
func (f *formats) enter(ctx context.Context, admits bool, raises func() bool) (leave func(), err error) {
	for {
		first := raises() // at most once: a format that was needed stays so
		if !admits && !first {
			return func() {}, nil
		}
		f.mu.Lock()
		if !f.raises && (!first || f.admits == 0) {
			if first {
				f.raises = true
			} else {
				f.admits++
			}
			f.mu.Unlock()
			return func() { f.leave(first) }, nil
		}
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *formats) leave(first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if first {
		f.raises = false
	} else {
		f.admits--
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

func admits(cmd fsm.Command) bool { _, is := cmd.Op.(fsm.AdmitNode); return is }

// raisesFormat says whether a command needs a format that the log has not needed yet.
func raisesFormat(v *fsm.View, cmds []fsm.Command) bool {
	return slices.ContainsFunc(cmds, func(cmd fsm.Command) bool { return fsm.FormatOf(cmd.Op) > v.Format() })
}
