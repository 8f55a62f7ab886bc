package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// programSet holds the numbers of the XDP programs that are ours: nothing else tells them from another program's.
const programSet = "programs"

// devices is what a Kernel has for devices whose packets pass neither bridge nor inet: a Kernel of family netdev that
// holds the same elements, base chains that come and go with the devices, and XDP programs.
type devices struct {
	hooks
	kernel *Kernel // nil: no device ever needed it
	behind bool    // the kernel may not hold what it should
	cutter cutter
	ours   map[uint32]bool // XDP programs
	// refused says why the kernel did not take what all devices need; nil: it did. Until SetDevices, Heal or Adopt tries
	// again, nothing is brought to devices.
	refused error
}

// SetDevices says which devices there are now whose packets pass neither a bridge nor this node's own stack, and
// returns when their chains are in the kernel. The first device brings a table of family netdev with all that the
// Kernel holds. Without devices, at the first call after Adopt, a table that was left goes; later it stays for the next.
// A device that has vanished is no error, nor is a kernel that refuses what devices need: what can't be enforced is in
// Unenforced, and is tried again by the next call.
func (k *Kernel) SetDevices(ctx context.Context, list []Device) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.adopted {
		return ErrNotAdopted
	}
	first := k.devices.list == nil
	k.devices.list = append(make([]Device, 0, len(list)), list...)
	if first && len(list) == 0 && k.devices.kernel != nil {
		return k.dropDevices(ctx)
	}
	if len(list) > 0 && k.devices.kernel == nil {
		if err := k.openDevices(); err != nil {
			return fmt.Errorf("enforce on devices: %w", err)
		}
		k.devices.behind = true
	}
	return k.bringDevices(ctx)
}

// Unenforced returns the devices on which something that is held is not in force, and why. All are ours to cut.
func (k *Kernel) Unenforced() map[string]error {
	k.mu.Lock()
	defer k.mu.Unlock()
	loose := maps.Clone(k.devices.loose)
	if k.devices.refused != nil {
		loose = make(map[string]error, len(k.devices.list))
		for _, d := range k.devices.list {
			loose[d.Name] = k.devices.refused
		}
	}
	return loose
}

// tolerate makes a refusal by the kernel a fault of devices alone: guests on bridges must not wait for it. Other errors,
// of the exchange with the kernel, are returned.
func (k *Kernel) tolerate(ctx context.Context, err error) error {
	if !isRefusal(err) {
		return err
	}
	if k.devices.refused == nil {
		k.opts.Logger.ErrorContext(ctx, "the kernel refuses what is held on devices", "devices", len(k.devices.list), "error", err)
	}
	k.devices.refused, k.devices.behind = err, true
	return nil
}

// isRefusal tells what the kernel does not do from what went wrong on the way to it.
func isRefusal(err error) bool {
	refused := (*refusedError)(nil)
	return errors.As(err, &refused) || errors.Is(err, errNotKept)
}

func (k *Kernel) openDevices() error {
	w, err := dial(k.opts.NetNS, k.bufferBytes, k.opts.Timeout)
	if err != nil {
		return err
	}
	k.devices.kernel = &Kernel{opts: k.opts, families: deviceTables(), bufferBytes: k.bufferBytes, wire: w}
	list := k.devices.list
	k.devices.hooks = newHooks(k.opts, Device.hooked)
	k.devices.list = list
	k.devices.cutter = cutter{links: k.devices.links}
	k.devices.ours = make(map[uint32]bool)
	return nil
}

func (k *Kernel) closeDevices() error {
	if k.devices.kernel == nil {
		return nil
	}
	err := errors.Join(k.devices.kernel.Close(), k.devices.close(), k.devices.cutter.close())
	k.devices = devices{}
	return err
}

// dropDevices removes the table that an earlier life needed and this one does not.
func (k *Kernel) dropDevices(ctx context.Context) error {
	dev := k.devices.kernel
	a := appendString(nil, unix.NFTA_TABLE_NAME, k.opts.Table)
	err := k.twice(ctx, func() error {
		w, err := k.connected()
		if err != nil {
			return err
		}
		if exists, err := w.tableExists(ctx, dev.families, k.opts.Table); err != nil || !exists {
			return err
		}
		var b batch
		b.add(unix.NFT_MSG_DELTABLE, 0, netdev, "delete the table of devices", a)
		return w.commit(ctx, &b)
	})
	list := k.devices.list
	err = errors.Join(err, k.closeDevices())
	k.devices.list = list
	return err
}

// adoptDevices reads a table of devices if there is one. Whatever either side holds is in force and is to be on both.
func (k *Kernel) adoptDevices(ctx context.Context) (intact bool, err error) {
	if k.devices.kernel == nil {
		w, err := k.connected()
		if err != nil {
			return false, err
		}
		if exists, err := w.tableExists(ctx, deviceTables(), k.opts.Table); err != nil || !exists {
			return err == nil, err
		}
		if err := k.openDevices(); err != nil {
			return false, err
		}
	}
	held, err := k.devices.kernel.Adopt(ctx)
	if err != nil {
		return false, k.tolerate(ctx, err)
	}
	var more []enforce.Element
	for e := range held.Elements {
		if _, ok := k.shadow[e]; !ok {
			more = append(more, e)
		}
	}
	if len(more) > 0 || held.Index > k.index {
		if err := k.change(ctx, max(k.index, held.Index), more, nil); err != nil {
			return false, err
		}
	}
	same := len(more) == 0 && len(held.Elements) == len(k.shadow) && held.Index == k.index
	if !same {
		k.devices.behind = true
	}
	return held.Intact && same, k.bringDevices(ctx)
}

// follow brings a delta that the Kernel holds now to the devices.
func (k *Kernel) follow(ctx context.Context, d enforce.Delta) error {
	if k.devices.refused != nil {
		return nil //nolint:nilerr // all is brought when it is tried again
	}
	return k.tolerate(ctx, k.followDelta(ctx, d))
}

// bringDevices is followAll for a kernel that may refuse it, and may have before.
func (k *Kernel) bringDevices(ctx context.Context) error {
	err := k.followAll(ctx)
	if err == nil {
		k.devices.refused = nil
	}
	return k.tolerate(ctx, err)
}

func (k *Kernel) followDelta(ctx context.Context, d enforce.Delta) error {
	switch dev := k.devices.kernel; {
	case dev == nil:
		return nil
	case k.devices.behind:
		return k.followAll(ctx)
	default:
		if err := dev.Apply(ctx, d); err != nil {
			k.devices.behind = true
			return fmt.Errorf("on devices: %w", err)
		}
	}
	if isTap := func(e enforce.Element) bool { return e.Tap != "" }; slices.ContainsFunc(d.Add, isTap) || slices.ContainsFunc(d.Remove, isTap) {
		return k.cut(ctx)
	}
	return nil
}

// followAll brings all that the Kernel holds to the devices, and their chains.
func (k *Kernel) followAll(ctx context.Context) error {
	dev := k.devices.kernel
	if dev == nil {
		return nil
	}
	if k.devices.behind || !dev.adopted {
		if _, err := dev.Adopt(ctx); err != nil {
			return fmt.Errorf("on devices: %w", err)
		}
		d := enforce.Delta{Index: max(k.index, dev.index)}
		for e := range k.shadow {
			if _, ok := dev.shadow[e]; !ok {
				d.Add = append(d.Add, e)
			}
		}
		for e := range dev.shadow {
			if _, ok := k.shadow[e]; !ok {
				d.Remove = append(d.Remove, e)
			}
		}
		if err := dev.Apply(ctx, d); err != nil {
			return fmt.Errorf("on devices: %w", err)
		}
		if err := k.recordPrograms(ctx); err != nil { // they may have gone with the table
			return fmt.Errorf("on devices: %w", err)
		}
		k.devices.behind = false
	}
	if k.devices.list == nil {
		return nil
	}
	if err := k.devices.bring(ctx); err != nil {
		return fmt.Errorf("on devices: %w", err)
	}
	return k.cut(ctx)
}

// cuts are the taps that must send nothing: of what is read from a packet socket nothing less can be stopped.
func (k *Kernel) cuts() map[string]bool {
	cut := make(map[string]bool)
	for e := range k.shadow {
		if e.Tap == "" {
			continue
		}
		t, ok := e.Treatment.Terms()
		holds := t.Kind != enforce.Page && t.Kind != enforce.Bridge && t.Kind != enforce.Here
		if ok && holds && t.Direction != fsm.In {
			cut[e.Tap] = true
		}
	}
	return cut
}

// wrongCuts returns the devices whose XDP program is not as it should be, with what they have.
func (k *Kernel) wrongCuts() (map[Device]link, error) {
	var read []Device
	for _, d := range k.devices.list {
		if d.Path == Read {
			read = append(read, d)
		}
	}
	if len(read) == 0 {
		return nil, nil //nolint:nilnil // none is a valid answer
	}
	wrong := make(map[Device]link)
	cut := k.cuts()
	for _, d := range read {
		l, found, err := k.devices.links.look(d.Index)
		if err != nil {
			return nil, err
		}
		if found && l.name == d.Name && cut[d.Name] != k.devices.ours[l.xdp] {
			wrong[d] = l
		}
	}
	return wrong, nil
}

// cut brings the XDP programs to what is held, and reads back that they are there.
func (k *Kernel) cut(ctx context.Context) error {
	if k.devices.list == nil {
		return nil
	}
	if len(k.devices.ours) == 0 && slices.ContainsFunc(k.devices.list, func(d Device) bool { return d.Path == Read }) {
		if err := k.readPrograms(ctx); err != nil {
			return err
		}
	}
	wrong, err := k.wrongCuts()
	if err != nil {
		return fmt.Errorf("on devices: %w", err)
	}
	for d, l := range wrong {
		delete(k.devices.loose, d.Name)
		if err := k.cutOne(ctx, d, l); err != nil {
			k.devices.loose[d.Name] = err
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	wrong, err = k.wrongCuts()
	for d := range wrong {
		if k.devices.loose[d.Name] == nil {
			k.devices.loose[d.Name] = errors.New("the XDP program is not as it was set")
		}
	}
	return err
}

func (k *Kernel) cutOne(ctx context.Context, d Device, l link) error {
	switch {
	case k.devices.ours[l.xdp]:
		return k.devices.cutter.detach(d.Index)
	case l.xdp != 0:
		return errors.New("another program's XDP is on it")
	}
	if err := k.devices.cutter.load(); err != nil {
		return err
	}
	if id := k.devices.cutter.id; !k.devices.ours[id] {
		k.devices.ours[id] = true
		if err := k.recordPrograms(ctx); err != nil {
			delete(k.devices.ours, id)
			return err
		}
	}
	return k.devices.cutter.attach(d.Index)
}

// recordPrograms writes down which programs are ours, before they are on any device.
func (k *Kernel) recordPrograms(ctx context.Context) error {
	if len(k.devices.ours) == 0 {
		return nil
	}
	dev := k.devices.kernel
	w, err := dev.connected()
	if err != nil {
		return err
	}
	b := dev.writer()
	a := b.setHeader(programSet, nftables.TypeMark.GetNFTMagic(), 4, 0)
	b.add(unix.NFT_MSG_NEWSET, netlink.Create, netdev, "add the set of XDP programs", a)
	var list []element
	for id := range k.devices.ours {
		var e element
		binary.NativeEndian.PutUint32(e.key[:], id)
		list = append(list, e)
	}
	b.addElements(netdev, programSet, 4, list)
	if err := w.commit(ctx, &b.batch); err != nil {
		return dev.failed(err)
	}
	return nil
}

// readPrograms reads which XDP programs are ours.
func (k *Kernel) readPrograms(ctx context.Context) error {
	dev := k.devices.kernel
	w, err := dev.connected()
	if err != nil {
		return err
	}
	err = w.dump(ctx, unix.NFT_MSG_GETSETELEM, netdev, appendElementList(nil, k.opts.Table, programSet), func(b []byte) {
		eachElement(b, func(e element) { k.devices.ours[binary.NativeEndian.Uint32(e.key[:])] = true })
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return dev.failed(err)
	}
	if err != nil {
		return dev.hangUp()
	}
	return nil
}

// checkDevices is Check for devices.
func (k *Kernel) checkDevices(ctx context.Context) (d Difference, err error) {
	dev := k.devices.kernel
	if dev == nil || !dev.adopted || k.devices.behind {
		return d, nil
	}
	if d, err = dev.Check(ctx); err == nil {
		d.Problems, err = k.checkHooks(ctx, d.Problems)
	}
	return d, err
}

// checkHooks appends what is wrong with chains and XDP programs of devices that are there.
func (k *Kernel) checkHooks(ctx context.Context, problems []string) ([]string, error) {
	chains, err := k.devices.check(ctx)
	if err != nil {
		return problems, fmt.Errorf("check devices: %w", err)
	}
	problems = append(problems, chains...)
	wrong, err := k.wrongCuts()
	if err != nil {
		return problems, fmt.Errorf("check devices: %w", err)
	}
	for device := range wrong {
		if k.devices.loose[device.Name] == nil {
			problems = append(problems, "the XDP program of device "+device.Name+" is not as it should be")
		}
	}
	slices.Sort(problems)
	return problems, nil
}
