package agent

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// tapBinder knows which interface of this node is which guest's, and tells the enforcer. The word of
// the hypervisor counts. It comes late, 75 ms and more after an interface appeared; until then a tap
// is bound to the guest that its hardware address tells: libvirt gives it the guest's with the first
// byte 0xfe. That binding is provisional. It holds while the interface exists with that address,
// exactly one VM of the registry has an interface with the same other five bytes, and the hypervisor
// names the tap for no guest. Where several VMs could be meant nobody is bound: what is blocked is cut
// by its addresses all the same, and nobody else may lose a packet.
//
// An agent that starts while the hypervisor doesn't answer binds what is there in the same way.
type tapBinder struct {
	store *fsm.Store
	set   func(func(*enforce.Local))
	wake  chan struct{}

	news     sync.Mutex // guards arriving, so that the link monitor never waits for more than that
	arriving []linkChange

	mu       sync.Mutex // guards below
	reported map[string][]fsm.NIC
	named    map[string]struct{}             // taps in reported
	taps     map[string]fsm.MAC              // those that exist and whose address tells a guest, by name
	alike    map[fsm.MAC]map[string]struct{} // names in taps, by address
	unsure   map[string]struct{}             // taps for which the registry has several
	bound    map[string]string               // provisionally: VM by tap
	boundTo  map[string]map[string]fsm.MAC   // the same by VM: the guest's hardware address by tap
}

// tapByte is the first byte of the hardware address of a tap that libvirt made. No guest's begins so.
const tapByte = 0xfe

func newTapBinder(store *fsm.Store, links *linkMonitor, set func(func(*enforce.Local))) *tapBinder {
	b := &tapBinder{
		store: store, set: set, wake: make(chan struct{}, 1), named: map[string]struct{}{},
		taps: map[string]fsm.MAC{}, alike: map[fsm.MAC]map[string]struct{}{},
		unsure: map[string]struct{}{}, bound: map[string]string{}, boundTo: map[string]map[string]fsm.MAC{},
	}
	links.Subscribe(b.hear)
	return b
}

// hear takes news of the link monitor.
func (b *tapBinder) hear(changes []linkChange) {
	ours := func(c linkChange) bool {
		return tellsGuest(c.Before) != tellsGuest(c.Now) || tellsGuest(c.Now) && c.Before != c.Now
	}
	if !slices.ContainsFunc(changes, ours) {
		return
	}
	b.news.Lock()
	b.arriving = append(b.arriving, changes...)
	b.news.Unlock()
	signal(b.wake)
}

func tellsGuest(l link) bool { return l.Kind == "tun" && l.MAC[0] == tapByte }

// Run binds until ctx ends.
func (b *tapBinder) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	w := b.store.Watch(b.store.View().Index()) // before anything is compared with the view
	wg.Go(func() { b.followView(ctx, w) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
			b.news.Lock()
			changes := b.arriving
			b.arriving = nil
			b.news.Unlock()
			b.links(changes)
		}
	}
}

// followView looks anew at the taps that a VM of the registry could have, when it changed.
func (b *tapBinder) followView(ctx context.Context, w *fsm.Watcher) {
	for {
		_, events, err := w.Next(ctx)
		switch {
		case errors.Is(err, fsm.ErrCompacted):
			b.change(func() (taps []string, _ []string) {
				for tap := range b.taps {
					taps = append(taps, tap)
				}
				return taps, nil
			})
		case err != nil:
			return
		default:
			b.registered(events)
		}
	}
}

func (b *tapBinder) registered(events []fsm.Event) {
	b.change(func() (taps []string, _ []string) {
		for _, e := range events {
			if e.VM == nil {
				continue
			}
			for tap := range b.unsure {
				taps = append(taps, tap)
			}
			for tap := range b.boundTo[e.VM.ID] {
				taps = append(taps, tap)
			}
			for _, n := range e.VM.NICs {
				for tap := range b.alike[ofTap(n.MAC)] {
					taps = append(taps, tap)
				}
			}
		}
		return taps, nil
	})
}

// ofTap is the hardware address of the tap of a guest's interface.
func ofTap(m fsm.MAC) fsm.MAC {
	m[0] = tapByte
	return m
}

func (b *tapBinder) links(changes []linkChange) {
	b.change(func() (taps []string, _ []string) {
		for _, c := range changes {
			if tellsGuest(c.Before) && b.taps[c.Before.Name] == c.Before.MAC {
				delete(b.taps, c.Before.Name)
				delete(b.alike[c.Before.MAC], c.Before.Name)
				if len(b.alike[c.Before.MAC]) == 0 {
					delete(b.alike, c.Before.MAC)
				}
				taps = append(taps, c.Before.Name)
			}
			if tellsGuest(c.Now) {
				b.taps[c.Now.Name] = c.Now.MAC
				if b.alike[c.Now.MAC] == nil {
					b.alike[c.Now.MAC] = map[string]struct{}{}
				}
				b.alike[c.Now.MAC][c.Now.Name] = struct{}{}
				taps = append(taps, c.Now.Name)
			}
		}
		return taps, nil
	})
}

// Report takes the hypervisor's word: the interfaces of all guests here, which are not to be changed
// afterwards.
func (b *tapBinder) Report(nics map[string][]fsm.NIC) {
	b.change(func() (taps, vms []string) {
		named := make(map[string]struct{}, len(b.named))
		for vm, now := range nics {
			for _, n := range now {
				if n.Tap != "" {
					named[n.Tap] = struct{}{}
				}
			}
			if !fsm.SameNICs(now, b.reported[vm]) {
				vms = append(vms, vm)
			}
		}
		for vm := range b.reported {
			if _, ok := nics[vm]; !ok {
				vms = append(vms, vm)
			}
		}
		for _, pair := range [][2]map[string]struct{}{{named, b.named}, {b.named, named}} {
			for tap := range pair[0] {
				if _, both := pair[1][tap]; !both {
					taps = append(taps, tap)
				}
			}
		}
		b.reported, b.named = nics, named
		return taps, vms
	})
}

// change applies f, looks anew at the taps that it returns, and tells what became of their guests and of
// the guests that it returns.
func (b *tapBinder) change(f func() (taps, vms []string)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	taps, vms := f()
	view := b.store.View()
	for _, tap := range taps {
		vms = append(vms, b.bind(view, tap)...)
	}
	if len(vms) == 0 {
		return
	}
	slices.Sort(vms)
	vms = slices.Compact(vms)
	b.set(func(l *enforce.Local) {
		for _, vm := range vms {
			if nics := b.nics(vm); len(nics) > 0 {
				l.NICs = l.NICs.With(vm, nics)
			} else if _, here := b.reported[vm]; here {
				l.NICs = l.NICs.With(vm, nil)
			} else {
				l.NICs = l.NICs.Without(vm)
			}
		}
	})
}

// bind settles whose a tap is without the hypervisor's word, and returns the VMs for which that is
// another answer than before.
func (b *tapBinder) bind(view *fsm.View, tap string) (changed []string) {
	vm, mac := b.guest(view, tap)
	was := b.bound[tap]
	if was == vm && (vm == "" || b.boundTo[vm][tap] == mac) {
		return nil
	}
	if was != "" {
		delete(b.bound, tap)
		delete(b.boundTo[was], tap)
		if len(b.boundTo[was]) == 0 {
			delete(b.boundTo, was)
		}
		changed = append(changed, was)
	}
	if vm != "" {
		b.bound[tap] = vm
		if b.boundTo[vm] == nil {
			b.boundTo[vm] = map[string]fsm.MAC{}
		}
		b.boundTo[vm][tap] = mac
		changed = append(changed, vm)
	}
	return changed
}

// guest is the one that the hardware address of a tap tells, with its own hardware address; empty if the
// hypervisor names the tap, or if there is not exactly one.
func (b *tapBinder) guest(view *fsm.View, tap string) (vm string, mac fsm.MAC) {
	delete(b.unsure, tap)
	host, exists := b.taps[tap]
	if _, named := b.named[tap]; named || !exists {
		return "", mac
	}
	for known := range view.VMsWithHardware(host) {
		if vm != "" {
			b.unsure[tap] = struct{}{}
			return "", fsm.MAC{}
		}
		for _, n := range known.NICs {
			if ofTap(n.MAC) == host {
				vm, mac = known.ID, n.MAC
			}
		}
	}
	return vm, mac
}

// nics are the interfaces of a guest as they are known now.
func (b *tapBinder) nics(vm string) []fsm.NIC {
	nics := b.reported[vm]
	if len(b.boundTo[vm]) == 0 {
		return nics
	}
	nics = slices.Clone(nics)
	for tap, mac := range b.boundTo[vm] {
		nics = append(nics, fsm.NIC{MAC: mac, Tap: tap})
	}
	slices.SortStableFunc(nics[len(b.reported[vm]):], func(x, y fsm.NIC) int { return cmp.Compare(x.Tap, y.Tap) })
	return nics
}
