package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"

	"golang.org/x/sys/unix"
)

// listDevices is what Lists has for devices whose packets pass neither a bridge nor the node's own stack: a Lists of
// family netdev, which follows the first, and base chains of the devices.
//
// The chains have a lock of their own, so that a new device is hooked at once while a load goes on.
type listDevices struct {
	tables *Lists

	mu sync.Mutex // guards below; never waits for that of a Lists
	hooks
	due     bool  // devices came or went so that the tables must be brought
	ready   bool  // the tables have what is held, so that chains of devices may lead there
	held    bool  // something is held
	refused error // why the kernel did not take what all devices need; nil: it did
}

var errListsNotLoaded = errors.New("the lists are not loaded for it yet")

func newListDevices(o Options) *listDevices {
	called := func(Device) (ingress, egress string) { return listIngress, listEgress }
	return &listDevices{tables: newLists(o, deviceTables()), hooks: newHooks(o, called)}
}

func (d *listDevices) close() error {
	if d == nil {
		return nil
	}
	err := d.tables.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(err, d.hooks.close())
}

func (d *listDevices) inUse() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ready
}

// SetDevices says which devices there are now whose packets pass neither a bridge nor this node's own stack. If the
// lists are loaded for devices, it returns when their chains are in the kernel; it does not wait for a load. Else, and
// when the last device has gone, Due is true until Bring has been called, which loads them or removes their table.
func (k *Lists) SetDevices(ctx context.Context, list []Device) error {
	d := k.devices
	d.mu.Lock()
	defer d.mu.Unlock()
	first := d.list == nil
	d.list = append(make([]Device, 0, len(list)), list...)
	d.due = d.due || first || len(list) == 0 && d.ready || len(list) > 0 && !d.ready && d.held || d.refused != nil
	if !d.ready || len(list) == 0 || d.refused != nil {
		return nil
	}
	return d.hook(ctx)
}

// Due says whether devices have come or gone so that Bring has something to do for them.
func (k *Lists) Due() bool {
	d := k.devices
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.due
}

// Unenforced returns the devices on which what is held by lists is not in force, and why.
func (k *Lists) Unenforced() map[string]error {
	d := k.devices
	d.mu.Lock()
	defer d.mu.Unlock()
	why := d.refused
	if why == nil && !d.ready {
		why = errListsNotLoaded
	}
	switch {
	case !d.held:
		return nil
	case why == nil:
		return maps.Clone(d.loose)
	}
	open := make(map[string]error, len(d.list))
	for _, device := range d.list {
		open[device.Name] = why
	}
	return open
}

// hook gives the devices their chains. What the kernel refuses is in Unenforced and tried again by the next Bring.
func (d *listDevices) hook(ctx context.Context) error {
	if err := d.tolerate(ctx, d.bring(ctx)); err != nil {
		return fmt.Errorf("lists on devices: %w", err)
	}
	return nil
}

// tolerate makes a refusal by the kernel a fault of devices alone, as Kernel does.
func (d *listDevices) tolerate(ctx context.Context, err error) error {
	if !isRefusal(err) {
		return err
	}
	if d.refused == nil {
		d.opts.Logger.ErrorContext(ctx, "the kernel refuses what lists hold on devices", "devices", len(d.list), "error", err)
	}
	d.refused = err
	return nil
}

// onDevices returns the Lists of devices, if there are any, or an earlier life had some and this one does not know yet.
func (k *Lists) onDevices(ctx context.Context) (*Lists, error) {
	d := k.devices
	if d == nil {
		return nil, nil //nolint:nilnil // the tables of devices have no others
	}
	d.mu.Lock()
	known, some := d.list != nil, len(d.list) > 0
	d.mu.Unlock()
	if !known {
		var err error
		if some, err = k.wire.tableExists(ctx, d.tables.families, k.opts.Table); err != nil {
			return nil, k.failed(err)
		}
	}
	if !some {
		return nil, nil //nolint:nilnil // none is a valid answer
	}
	return d.tables, nil
}

// bringDevices brings devices to what the first tables have been brought to.
func (k *Lists) bringDevices(ctx context.Context, c ListChange) error {
	d := k.devices
	if d == nil {
		return nil
	}
	d.mu.Lock()
	d.due, d.held = false, !c.Lists.Empty()
	gone := d.list != nil && len(d.list) == 0
	if gone {
		d.ready, d.refused, d.loose = false, nil, nil
	}
	d.mu.Unlock()
	ready := false
	on, err := k.onDevices(ctx)
	switch {
	case err != nil:
	case gone:
		err = k.dropDevices(ctx)
	case on != nil:
		err = on.Bring(ctx, c)
		if isRefusal(err) { // perhaps because another program has changed the table: now it is read again
			err = on.Bring(ctx, c)
		}
		ready = err == nil && on.there()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.refused, d.ready = nil, ready
		// All may have gone meanwhile.
		if d.due = d.due || ready && d.list != nil && len(d.list) == 0; ready && len(d.list) > 0 {
			err = d.bring(ctx)
		}
	}
	if err = d.tolerate(ctx, err); err != nil {
		d.due = true
		return fmt.Errorf("lists on devices: %w", err)
	}
	return nil
}

// there says whether the tables are in the kernel, as they should be.
func (k *Lists) there() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.exists && k.ready
}

// dropDevices removes the table that no device needs any more, with all that it has in memory.
func (k *Lists) dropDevices(ctx context.Context) error {
	exists, err := k.wire.tableExists(ctx, deviceTables(), k.opts.Table)
	if err == nil && exists {
		var b batch
		b.add(unix.NFT_MSG_DELTABLE, 0, netdev, "delete the table of lists on devices", appendString(nil, unix.NFTA_TABLE_NAME, k.opts.Table))
		err = k.wire.commit(ctx, &b)
	}
	if err != nil {
		return k.failed(err)
	}
	return k.devices.tables.Close()
}

// check is Lists.Check for devices.
func (d *listDevices) check(ctx context.Context) error {
	if d == nil {
		return nil
	}
	if err := d.tables.Check(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.ready || d.refused != nil || len(d.list) == 0 {
		return nil
	}
	problems, err := d.hooks.check(ctx)
	if err == nil && len(problems) > 0 {
		err = fmt.Errorf("%w: %q", errTampered, problems)
	}
	return err
}
