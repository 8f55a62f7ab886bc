package httpapi

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/palisade/palisade/fsm"
)

// vmIndex finds VMs by any part of their texts: all of them stand in one buffer, one record a VM, which is searched as a
// whole. It is made by the first search and from then on follows the feed, at the next search: a VM that has changed gets a new record at
// the end, and the buffer is made anew once half of it is old. For 100,000 VMs it takes some
// 15 MB, half as much again with what is old. It is safe for concurrent use; searches wait for each other.
type vmIndex struct {
	feed func(from uint64) *fsm.Watcher
	now  func() *fsm.View

	mu      sync.Mutex
	watcher *fsm.Watcher // nil before the first search
	view    *fsm.View    // that the index stands for
	slots   map[string]int
	vms     []*fsm.VM // by slot
	spans   []span    // of the VM's record, by slot
	order   []written // records in the order of the buffer, old ones too
	text    []byte
	old     int // bytes of text that are old
}

type span struct{ start, end int }

// written is the beginning of a record, and whose it is or was.
type written struct{ start, slot int }

// find returns the VMs in which all words are found, in no order, and the view that they are of: the current one.
func (x *vmIndex) find(ctx context.Context, s vmSearch) (*fsm.View, []*fsm.VM) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.refresh(ctx)
	if len(s.words) == 0 {
		return x.view, slices.Clone(x.vms)
	}
	// The longest word finds the fewest; the others are looked for only there.
	first := slices.MaxFunc(s.words, func(a, b searchWord) int { return len(a.text) - len(b.text) })
	var found []*fsm.VM
	for _, slot := range x.with(first) {
		if !slices.ContainsFunc(s.words, func(w searchWord) bool { return w != first && !x.has(slot, w) }) {
			found = append(found, x.vms[slot])
		}
	}
	return x.view, found
}

// with returns the slots of the VMs that have the word.
func (x *vmIndex) with(w searchWord) (slots []int) {
	if w.prefix.IsValid() {
		for vm := range x.view.VMsWithin(w.prefix) {
			slots = append(slots, x.slots[vm.ID])
		}
	}
	k := 0
	for at := 0; ; {
		i := bytes.Index(x.text[at:], []byte(w.text))
		if i < 0 {
			break
		}
		for at += i; k+1 < len(x.order) && x.order[k+1].start <= at; {
			k++
		}
		slot := x.order[k].slot
		if x.spans[slot].start == x.order[k].start && (!w.prefix.IsValid() || named(x.vms[slot], w.text)) {
			slots = append(slots, slot)
		}
		if k+1 == len(x.order) {
			break
		}
		at = x.order[k+1].start
	}
	if w.prefix.IsValid() {
		slices.Sort(slots)
		slots = slices.Compact(slots)
	}
	return slots
}

// has says whether a VM has the word.
func (x *vmIndex) has(slot int, w searchWord) bool {
	if w.prefix.IsValid() {
		vm := x.vms[slot]
		return named(vm, w.text) || slices.ContainsFunc(vm.AllAddresses(), w.prefix.Overlaps)
	}
	return bytes.Contains(x.text[x.spans[slot].start:x.spans[slot].end], []byte(w.text))
}

// refresh brings the index to the current view. The caller holds mu.
func (x *vmIndex) refresh(ctx context.Context) {
	if x.watcher == nil {
		x.view = x.now()
		x.watcher = x.feed(x.view.Index())
		x.rebuild()
		return
	}
	over, cancel := context.WithCancel(ctx)
	cancel() // whatever has come is taken, nothing is waited for
	v, events, err := x.watcher.Next(over)
	switch {
	case v == nil:
		return
	case err != nil: // the feed does not reach back so far
		x.view = v
		x.rebuild()
		return
	}
	x.view = v
	for i := range events {
		if events[i].VM == nil {
			continue
		}
		if vm, ok := v.VM(events[i].VM.ID); ok {
			x.put(vm)
		}
	}
	if x.old > len(x.text)/2 {
		x.rebuild()
	}
}

func (x *vmIndex) rebuild() {
	x.slots, x.text, x.old = make(map[string]int, x.view.CountVMs()), x.text[:0], 0
	x.vms, x.spans, x.order = x.vms[:0], x.spans[:0], x.order[:0]
	for vm := range x.view.VMs("") {
		x.put(vm)
	}
}

// put writes the VM's record, unless it is there.
func (x *vmIndex) put(vm *fsm.VM) {
	slot, known := x.slots[vm.ID]
	switch {
	case !known:
		slot = len(x.vms)
		x.slots[vm.ID] = slot
		x.vms, x.spans = append(x.vms, vm), append(x.spans, span{})
	case x.vms[slot] == vm:
		return
	default:
		x.vms[slot] = vm
		x.old += x.spans[slot].end - x.spans[slot].start
	}
	start := len(x.text)
	x.order = append(x.order, written{start, slot})
	x.write(vm)
	x.spans[slot] = span{start, len(x.text)}
}

// write appends the record: each text with a byte behind it that no word has, so that none is found across two of them.
func (x *vmIndex) write(vm *fsm.VM) {
	const end = ' '
	for _, s := range [...]string{vm.ID, vm.Name, vm.Owner} {
		x.text = append(append(x.text, strings.ToLower(s)...), end)
	}
	for i := range vm.NICs {
		x.text = append(append(x.text, vm.NICs[i].MAC.String()...), end)
		for _, a := range vm.NICs[i].Addresses {
			x.text = append(a.AppendTo(x.text), end)
		}
	}
	for _, p := range vm.Declared {
		x.text = append(append(x.text, prefixText(p)...), end)
	}
}
