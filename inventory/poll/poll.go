// Package poll is the driver of hypervisors that have to be asked, because they tell nothing by themselves:
// it looks again at intervals and after hints.
package poll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/palisade/palisade/inventory"
)

// Listing is everything on this node, as one look shows it.
type Listing struct {
	VMs []inventory.Seen
	// Odd says what could not be understood of single VMs. It is logged when it changes.
	Odd []string
}

// Options of a Driver.
type Options struct {
	Name string // of the inventory, in the log
	// Look calls list with a complete listing, once or, if it follows changes by itself, again and again,
	// and returns when it knows no more, or with an error if it could not look. What list returns is
	// what is wrong with the listing; Look must return it. It ends with ctx and bounds its own time.
	Look func(ctx context.Context, list func(Listing) error) error
	// Interval is the pause between looks. Default 5 s. It is stretched so that looking takes at most
	// half of the time.
	Interval time.Duration
	// Hints make it look at once, and a few times more in the following seconds, because a hypervisor can
	// be late with its list. May be nil.
	Hints <-chan struct{}
	// Watch are directories and files whose changes are hints. They need not exist, but the directory that
	// holds them is only looked for at each look.
	Watch  []string
	Logger *slog.Logger // default slog.Default
}

func (o Options) validate() error {
	switch {
	case o.Look == nil:
		return errors.New("inventory: nothing to look with")
	case o.Interval < 0:
		return fmt.Errorf("inventory: interval is %v, want 0 for the default or more", o.Interval)
	}
	return nil
}

const (
	defaultInterval = 5 * time.Second
	firstBackoff    = 500 * time.Millisecond
	maxBackoff      = 30 * time.Second
	leastPause      = 20 * time.Millisecond
	maxOdd          = 20 // lines in the log for one listing
)

// retries are the looks after a hint, as pauses before each.
func retries() []time.Duration {
	return []time.Duration{0, 100 * time.Millisecond, 400 * time.Millisecond, 1500 * time.Millisecond}
}

// Driver looks. It meets inventory.Driver; Run may be called once.
type Driver struct {
	opt Options
	log *slog.Logger

	// Owned by Run's goroutine.
	tracker inventory.Tracker
	stale   bool // the last look failed: the next listing is news
	problem string
	odd     []string
}

var _ inventory.Driver = (*Driver)(nil)

// New returns a driver that is not started.
func New(o Options) (*Driver, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if o.Interval == 0 {
		o.Interval = defaultInterval
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Driver{opt: o, log: o.Logger.With("inventory", o.Name)}, nil
}

// Run meets inventory.Driver. While a look fails nothing is reported: the last known VMs stay in force.
func (d *Driver) Run(ctx context.Context, report func(inventory.Report)) error {
	watch, err := newWatcher(d.opt.Watch)
	if err != nil {
		return err
	}
	defer watch.close()
	backoff := firstBackoff
	var after []time.Duration // pauses before the looks that follow a hint
	for {
		watch.add()
		begun, listed := time.Now(), false
		err := d.opt.Look(ctx, func(l Listing) error { listed = true; return d.take(l, report) })
		if ctx.Err() != nil {
			return nil
		}
		if err == nil && !listed {
			err = errors.New("it listed nothing")
		}
		least := max(time.Since(begun), leastPause)
		pause := d.opt.Interval
		switch {
		case err != nil:
			d.failed(err)
			pause = backoff
			backoff = min(2*backoff, maxBackoff)
		default:
			backoff = firstBackoff
			if len(after) > 0 {
				pause, after = after[0], after[1:]
			}
		}
		hinted, again := d.wait(ctx, watch, max(pause, least), least)
		if !again {
			return nil
		}
		if hinted {
			after = retries()[1:]
		}
	}
}

// wait sleeps for pause, or until a hint, but not less than least. It says whether a hint came, and whether
// to look again.
func (d *Driver) wait(ctx context.Context, w *watcher, pause, least time.Duration) (hinted, again bool) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	soonest := time.Now().Add(least)
	select {
	case <-ctx.Done():
		return false, false
	case <-timer.C:
		return false, true
	case <-d.opt.Hints:
	case <-w.hints:
	}
	select {
	case <-ctx.Done():
		return true, false
	case <-time.After(time.Until(soonest)):
		return true, true
	}
}

// take reports a listing if it says anything new.
func (d *Driver) take(l Listing, report func(inventory.Report)) error {
	r, news, err := d.tracker.List(l.VMs, d.stale)
	if err != nil {
		return err
	}
	if d.problem != "" {
		d.log.Info("the inventory can be read again", "vms", len(r.VMs))
	}
	d.stale, d.problem = false, ""
	if !slices.Equal(l.Odd, d.odd) {
		d.odd = slices.Clone(l.Odd)
		if len(d.odd) > 0 {
			d.log.Warn("not all of the inventory could be understood", "problems", d.odd[:min(len(d.odd), maxOdd)], "count", len(d.odd))
		}
	}
	if news {
		report(r)
	}
	return nil
}

// failed logs why a look failed, once until that changes.
func (d *Driver) failed(err error) {
	d.stale = true
	if text := err.Error(); text != d.problem {
		d.problem = text
		d.log.Warn("the inventory cannot be read, what was last known stays in force", "error", text)
	}
}
