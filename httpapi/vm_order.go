package httpapi

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/palisade/palisade/fsm"
)

// vmPlace is where a VM stands in an order. Ids break ties, so no two are at one place.
type vmPlace struct {
	text  string
	holds int
	id    string
}

// vmOrder is an order of VMs. The zero value is by id.
type vmOrder struct {
	by    string // id, name, node, owner, state, holds
	desc  bool
	holds *holdCount
	rank  func(*fsm.VM) int // before everything else, the lower first, if not nil
}

func (o *vmOrder) place(vm *fsm.VM) vmPlace {
	p := vmPlace{id: vm.ID}
	if o.rank != nil {
		p.holds = o.rank(vm)
	}
	switch o.by {
	case "name":
		p.text = vm.Name
	case "node":
		p.text = vm.Node
	case "owner":
		p.text = vm.Owner
	case "state":
		p.text = string(vm.State)
	case "holds":
		p.holds = o.holds.of(vm)
	}
	return p
}

func (o *vmOrder) compare(a, b vmPlace) int {
	c := cmp.Or(cmp.Compare(a.holds, b.holds), cmp.Compare(a.text, b.text), cmp.Compare(a.id, b.id))
	if o.desc {
		return -c
	}
	return c
}

// kind is that of the order's cursors: a cursor of one order is refused in another.
func (o *vmOrder) kind() string {
	switch {
	case o.desc:
		return "vm-" + o.by + "-desc"
	case o.by == "id":
		return "vm"
	}
	return "vm-" + o.by
}

func (o *vmOrder) cursor(p vmPlace) string {
	if o.by == "id" {
		return encodeCursor(o.kind(), p.id)
	}
	return encodeCursor(o.kind(), strconv.Itoa(p.holds)+":"+strconv.Itoa(len(p.text))+":"+p.text+p.id)
}

// after reads a cursor; given is false for the empty one.
func (o *vmOrder) after(cursor string) (p vmPlace, given bool, err error) {
	text, err := decodeCursor(o.kind(), cursor)
	if err != nil || text == "" {
		return p, false, err
	}
	if o.by == "id" {
		return vmPlace{id: text}, true, nil
	}
	holds, rest, _ := strings.Cut(text, ":")
	length, rest, _ := strings.Cut(rest, ":")
	n, nerr := strconv.Atoi(length)
	var herr error
	if p.holds, herr = strconv.Atoi(holds); herr != nil || nerr != nil || n < 0 || n > len(rest) {
		return p, false, fieldProblem("query.cursor", cursor, "not a cursor of this list; send the next of the page before, or none")
	}
	p.text, p.id = rest[:n], rest[n:]
	return p, true, nil
}

// vmPage keeps the first VMs of an order, out of any number that come in any order.
type vmPage struct {
	order *vmOrder
	limit int
	from  vmPlace // the page begins after it, if begun
	begun bool
	total int      // of all that were added
	after int      // of those, how many come after from
	items []placed // the first limit, and some that came since they were cut
	bar   vmPlace  // what is not before it is none of the first, once full
	full  bool
}

type placed struct {
	vmPlace
	vm *fsm.VM
}

func (p *vmPage) add(vm *fsm.VM) {
	p.total++
	at := p.order.place(vm)
	if p.begun && p.order.compare(at, p.from) <= 0 {
		return
	}
	p.after++
	if p.full && p.order.compare(at, p.bar) >= 0 {
		return
	}
	if p.items = append(p.items, placed{at, vm}); len(p.items) >= 2*p.limit {
		p.cut()
	}
}

func (p *vmPage) cut() {
	slices.SortFunc(p.items, func(a, b placed) int { return p.order.compare(a.vmPlace, b.vmPlace) })
	if len(p.items) >= p.limit {
		p.items = p.items[:p.limit]
		p.bar, p.full = p.items[p.limit-1].vmPlace, true
	}
}

// holdCount says how many active blocks hold a VM. The first few are asked one by one, then all are counted at once.
type holdCount struct {
	view  *fsm.View
	asked int
	all   map[string]int
}

func (h *holdCount) of(vm *fsm.VM) int {
	const few = 256
	if h.all == nil {
		if h.asked++; h.asked <= few {
			return len(h.view.Holding(vm))
		}
		h.all = h.view.HoldCounts()
	}
	return h.all[vm.ID]
}
