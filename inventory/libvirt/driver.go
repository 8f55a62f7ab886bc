// Package libvirt watches the domains of a libvirt daemon over its Unix socket.
package libvirt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

// DefaultSocket is where libvirtd (or virtqemud by its compatible name) listens.
const DefaultSocket = "/run/libvirt/libvirt-sock"

// Options of a Driver. The zero value watches the local system daemon.
type Options struct {
	Socket string // default DefaultSocket
	URI    string // default "qemu:///system"
	// Rescan is how often everything is listed again in case an event was lost. Default 30 s.
	Rescan time.Duration
	// Timeout is how long libvirt may take for one answer before the connection is given up and made
	// anew. Default 10 s.
	Timeout time.Duration
	// MaxBackoff bounds the pause between attempts to connect, which starts at 100 ms. Default 5 s.
	MaxBackoff time.Duration
	Logger     *slog.Logger // default slog.Default
}

func (o Options) validate() error {
	for name, v := range map[string]time.Duration{"rescan": o.Rescan, "timeout": o.Timeout, "max backoff": o.MaxBackoff} {
		if v < 0 {
			return fmt.Errorf("libvirt inventory: %s is %v, want 0 for the default or more", name, v)
		}
	}
	return nil
}

func (o Options) withDefaults() Options {
	or := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	or(&o.Rescan, 30*time.Second)
	or(&o.Timeout, 10*time.Second)
	or(&o.MaxBackoff, 5*time.Second)
	if o.Socket == "" {
		o.Socket = DefaultSocket
	}
	if o.URI == "" {
		o.URI = "qemu:///system"
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// Driver watches one libvirt daemon. It meets inventory.Driver; Run may be called once.
type Driver struct {
	opt   Options
	log   *slog.Logger
	watch func() *links // watchLinks, but in tests

	// Owned by Run's goroutine. They outlive a connection, so that its loss makes nothing disappear.
	known    map[string]domain
	odd      map[string]string // what was logged as odd of a domain, so that it is logged once
	reported []inventory.VM
	begun    bool
}

var _ inventory.Driver = (*Driver)(nil)

// New returns a driver that is not started.
func New(o Options) (*Driver, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	return &Driver{opt: o, watch: watchLinks, log: o.Logger.With("socket", o.Socket), known: map[string]domain{}, odd: map[string]string{}}, nil
}

// Run meets inventory.Driver.
func (d *Driver) Run(ctx context.Context, report func(inventory.Report)) error {
	const first = 100 * time.Millisecond
	backoff, quiet := first, false
	for {
		listed, err := d.session(ctx, report)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the session ended because it was told to
		}
		if listed {
			backoff, quiet = first, false
		}
		if !quiet {
			quiet = true
			d.log.Warn("no connection to libvirt, the last known inventory stays in force", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, d.opt.MaxBackoff)
	}
}

// session connects, lists everything and follows the events until the connection is lost (an error)
// or ctx ends. listed says that there was a complete list.
func (d *Driver) session(ctx context.Context, report func(inventory.Report)) (listed bool, err error) {
	c, err := dial(ctx, d.opt)
	if err != nil {
		return false, err
	}
	defer c.close()
	links := d.watch()
	defer links.close()

	// Subscribed before listing: what happens after the list was taken is an event, what happened
	// before is in the list.
	if err := c.subscribe(); err != nil {
		return false, err
	}
	if err := d.list(c); err != nil {
		return false, err
	}
	d.log.Info("connected to libvirt", "domains", len(d.known))
	d.publish(report, true)

	rescan := time.NewTicker(d.opt.Rescan)
	defer rescan.Stop()
	alive := time.NewTicker(d.opt.Timeout / 2)
	defer alive.Stop()
	retry := newRetries()
	defer retry.stop()
	var looked time.Time // for newcomers
	for {
		select {
		case <-ctx.Done():
			return true, nil
		case <-c.lost:
			return true, errors.New("the connection was closed")
		case ref := <-c.events:
			err = d.refresh(c, c.drain(ref))
		case <-links.changed:
			// A thousand guests that start together make several thousand hints, and each look lists them all.
			if time.Since(looked) >= retryAfter {
				err = d.newcomers(c)
				looked = time.Now()
			}
			retry.begin()
		case <-retry.next():
			err = d.newcomers(c)
			retry.spent()
		case <-alive.C:
			err = c.ping()
		case <-rescan.C:
			err = d.list(c)
		}
		if err != nil {
			return true, err
		}
		d.publish(report, false)
	}
}

// publish reports what is known if it differs from the report before. After a new connection every VM
// that is here is news: libvirt has just vouched for it.
func (d *Driver) publish(report func(inventory.Report), fresh bool) {
	vms := make([]inventory.VM, 0, len(d.known))
	for _, dom := range d.known {
		vms = append(vms, dom.vm)
	}
	inventory.Sort(vms)
	before := d.reported
	if fresh {
		before = nil
	}
	news := inventory.Arrivals(before, vms)
	for id, dom := range d.known {
		if dom.returned {
			news = append(news, id)
			dom.returned = false
			d.known[id] = dom
		}
	}
	slices.Sort(news)
	arrived := slices.DeleteFunc(slices.Compact(news), func(id string) bool { return d.known[id].leaving })
	found := fresh && d.begun
	if d.begun && !found && len(arrived) == 0 && inventory.Equal(d.reported, vms) {
		return
	}
	d.reported, d.begun = vms, true
	report(inventory.Report{VMs: vms, Arrived: arrived, Found: found})
}

// list looks at every domain, and trusts nothing that was known before.
func (d *Driver) list(c *connection) error {
	refs, err := c.domains(false)
	if err != nil {
		return err
	}
	present := make(map[string]bool, len(refs))
	for _, ref := range refs {
		present[ref.id] = true
		if err := d.look(c, ref, true); err != nil {
			return err
		}
	}
	for id := range d.known {
		if !present[id] {
			d.forget(id)
		}
	}
	return nil
}

// refresh looks at the domains of some events. What the events said is not used: they may be late.
func (d *Driver) refresh(c *connection, refs []ref) error {
	for _, r := range refs {
		if err := d.look(c, r, false); err != nil {
			return err
		}
	}
	return nil
}

// newcomers looks at the active domains that are not yet known to run. A network interface came up:
// libvirt makes the tap of an arriving guest about 0.3 s before it sends the first event about it.
func (d *Driver) newcomers(c *connection) error {
	refs, err := c.domains(true)
	if err != nil {
		return err
	}
	for _, r := range refs {
		if d.known[r.id].vm.Phase == fsm.PhaseRunning {
			continue
		}
		if err := d.look(c, r, false); err != nil {
			return err
		}
	}
	return nil
}

// look asks libvirt for one domain. Its error is the connection's; a domain that can't be read keeps
// what was known of it (fail closed: what is blocked stays so). fresh asks for the direction of a
// migration also of a domain that was seen to run.
func (d *Driver) look(c *connection, r ref, fresh bool) error {
	before, known := d.known[r.id]
	ran := known && before.vm.Phase == fsm.PhaseRunning
	s, err := c.state(r, func(s state) bool {
		// Asking for the job is slow on a domain that is leaving, and needless if we saw it run.
		return s.ambiguous() && (fresh || !ran)
	})
	var text string
	p, leaving := s.phase()
	if err == nil && p != fsm.PhaseGone {
		text, err = c.xml(r)
	}
	switch {
	case errors.Is(err, errNoDomain) || err == nil && p == fsm.PhaseGone:
		d.forget(r.id)
		return nil
	case errors.Is(err, errConnection):
		return err
	case err != nil:
		d.complain(r, err.Error())
		return nil
	}
	vm, odd, err := read(text, p)
	if err != nil {
		d.complain(r, err.Error())
		return nil
	}
	vm.ID = r.id
	d.complain(r, odd...)
	d.known[r.id] = domain{vm: vm, leaving: leaving, returned: before.leaving && !leaving && vm.Here()}
	return nil
}

func (d *Driver) forget(id string) {
	delete(d.known, id)
	delete(d.odd, id)
}

// complain logs what is odd about a domain, once until it changes.
func (d *Driver) complain(r ref, problems ...string) {
	said := fmt.Sprint(problems)
	if len(problems) == 0 {
		delete(d.odd, r.id)
		return
	}
	if d.odd[r.id] != said {
		d.odd[r.id] = said
		d.log.Warn("a domain can't be read in full", "domain", r.name, "id", r.id, "problems", problems)
	}
}
