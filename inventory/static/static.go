// Package static reads the inventory of a node from a directory of small JSON files, one for each VM.
// It serves hypervisors without a driver of their own (a hook or a cron job writes the files) and the
// light guests of the demo fleet.
package static

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/palisade/palisade/inventory"
)

// Limits on what a directory may hold.
const (
	MaxFiles     = 10_000
	MaxFileBytes = 64 << 10
)

// Options of a Driver.
type Options struct {
	// Dir holds the files, "*.json". Other names, dotfiles and "*.tmp" are ignored, so that a writer
	// can write beside a file and rename over it; that is the way to write, because a file that is
	// read half written is a bad file until it is complete.
	Dir string
	// Rescan is how often the whole directory is read again in case a notification was lost.
	// Default 5 s.
	Rescan time.Duration
	Logger *slog.Logger // default slog.Default
}

func (o Options) validate() error {
	switch {
	case o.Dir == "":
		return errors.New("static inventory: dir is empty")
	case o.Rescan < 0:
		return fmt.Errorf("static inventory: rescan is %v, want 0 for the default or more", o.Rescan)
	}
	return nil
}

// Driver watches one directory. It meets inventory.Driver; Run may be called once.
type Driver struct {
	dir    string
	rescan time.Duration
	log    *slog.Logger

	files    map[string]file // by name, those in force and those that are bad
	overfull bool            // said that there are more than MaxFiles
	reported []inventory.VM
	begun    bool // the first report was given
}

var _ inventory.Driver = (*Driver)(nil)

// file is what is known of one file. A bad file keeps its last good content in force: a typing error
// must not make a VM disappear.
type file struct {
	stamp   stamp
	vm      inventory.VM // zero ID: never was good
	problem string       // "" if the last content was good; logged when it changes
	doubled string       // the other file with the same id, "" if there is none
}

// stamp tells whether a file may have changed since it was read.
type stamp struct {
	modified time.Time
	size     int64
	inode    uint64
}

// New returns a driver that is not started.
func New(o Options) (*Driver, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if o.Rescan == 0 {
		o.Rescan = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Driver{dir: filepath.Clean(o.Dir), rescan: o.Rescan, log: o.Logger, files: map[string]file{}}, nil
}

// Run meets inventory.Driver. A directory that does not exist (yet, or no longer) is waited for; its
// absence is no evidence that the VMs are gone, so nothing is reported meanwhile.
func (d *Driver) Run(ctx context.Context, report func(inventory.Report)) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("static inventory: watch %s: %w", d.dir, err)
	}
	defer func() { _ = watcher.Close() }()

	ticker := time.NewTicker(d.rescan)
	defer ticker.Stop()
	absent := false
	for {
		// Watching an already watched directory is free, and needed again after it was replaced. It
		// stands before the scan, so that what is written after the scan is notified.
		err := watcher.Add(d.dir)
		if err == nil {
			err = d.scan()
		}
		switch {
		case err == nil:
			absent = false
			d.publish(report)
		case !absent:
			absent = true
			d.log.Warn("static inventory cannot be read, its last content stays in force", "dir", d.dir, "error", err)
		}
		if again := d.follow(ctx, watcher, ticker.C, report); !again {
			return nil
		}
	}
}

// follow applies notifications until the whole directory must be read again (true) or ctx ends.
func (d *Driver) follow(ctx context.Context, w *fsnotify.Watcher, tick <-chan time.Time, report func(inventory.Report)) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-tick:
			return true
		case _, ok := <-w.Errors: // among them a queue that overflowed
			return ok
		case e, ok := <-w.Events:
			if !ok {
				return false
			}
			if filepath.Clean(e.Name) == d.dir {
				return true // the directory itself was removed or renamed
			}
			changed := false
			for more := true; more; {
				changed = d.look(filepath.Base(e.Name)) || changed
				select {
				case e, more = <-w.Events:
				default:
					more = false
				}
			}
			if changed && d.begun {
				d.publish(report)
			}
		}
	}
}

// publish reports what is in force if it differs from the report before.
func (d *Driver) publish(report func(inventory.Report)) {
	vms := make([]inventory.VM, 0, len(d.files))
	holder := make(map[string]string, len(d.files)) // VM id to file name
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		f := d.files[name]
		if f.vm.ID == "" {
			continue
		}
		other, taken := holder[f.vm.ID]
		if f.doubled != other {
			f.doubled = other
			d.files[name] = f
			if taken {
				d.log.Error("file in the static inventory is ignored, its id is already that of another", "dir", d.dir, "file", name, "field", "id", "id", f.vm.ID, "other", other)
			}
		}
		if taken {
			continue
		}
		holder[f.vm.ID] = name
		vms = append(vms, f.vm)
	}
	inventory.Sort(vms)
	if d.begun && inventory.Equal(d.reported, vms) {
		return
	}
	arrived := inventory.Arrivals(d.reported, vms)
	d.reported, d.begun = vms, true
	report(inventory.Report{VMs: vms, Arrived: arrived})
}

// scan reads the whole directory.
func (d *Driver) scan() error {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return err
	}
	present := make(map[string]bool, len(entries))
	for _, e := range entries {
		if relevant(e.Name()) {
			present[e.Name()] = true
		}
	}
	for name := range d.files {
		if !present[name] {
			delete(d.files, name)
		}
	}
	d.overfull = d.overfull && len(present) > MaxFiles
	for _, name := range slices.Sorted(maps.Keys(present)) {
		d.look(name)
	}
	return nil
}

// relevant says whether a file of this name describes a VM.
func relevant(name string) bool {
	return strings.HasSuffix(name, ".json") && !strings.HasPrefix(name, ".")
}

// look reads one file again and says whether what is in force may have changed.
func (d *Driver) look(name string) bool {
	if !relevant(name) {
		return false
	}
	before, known := d.files[name]
	if !known && len(d.files) >= MaxFiles {
		if !d.overfull {
			d.overfull = true
			d.log.Error("static inventory holds too many files, the rest is ignored", "dir", d.dir, "max", MaxFiles, "first_ignored", name)
		}
		return false
	}
	data, st, err := read(filepath.Join(d.dir, name), before.stamp)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		delete(d.files, name)
		return known
	case errors.Is(err, errUnchanged):
		return false
	}
	if err == nil {
		var vm inventory.VM
		if vm, err = inventory.Parse(data); err == nil {
			d.files[name] = file{stamp: st, vm: vm, doubled: before.doubled}
			return true
		}
	}
	before.stamp = st
	d.files[name] = before
	d.complain(name, err.Error())
	return false
}

// complain logs a bad file once for each thing that is wrong with it.
func (d *Driver) complain(name, problem string) {
	f := d.files[name]
	if f.problem == problem {
		return
	}
	f.problem = problem
	d.files[name] = f
	d.log.Error("bad file in the static inventory, its last good content stays in force", "dir", d.dir, "file", name, "error", problem)
}
