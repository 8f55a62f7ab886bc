package enforce

import (
	"slices"

	"github.com/palisade/palisade/fsm"
)

// Needed returns the elements, held now, that treat packets of a VM, known or not: what its own holds, those of its
// account and those of prefixes need, given the interfaces that it is said to have beside those of the view. Holds on lists
// have none; lists says that there are such. It costs lookups by the VM's addresses.
func (c *Compiler) Needed(id string, nics []fsm.NIC) (elements []Element, lists bool) {
	if c.view == nil {
		return nil, false
	}
	vm := fsm.VM{ID: id, NICs: nics}
	if known, ok := c.view.VM(id); ok {
		vm = *known
		vm.NICs = slices.Concat(known.NICs, nics)
	}
	elements = slices.Clone(c.parts[part{target: fsm.Target{VM: id}, vm: id}])
	if vm.Owner != "" {
		elements = append(elements, c.parts[part{target: fsm.Target{Account: vm.Owner}, vm: id}]...)
	}
	for _, b := range c.view.Holding(&vm) {
		if b.Target.Prefix.IsValid() {
			elements = append(elements, c.parts[part{target: b.Target}]...)
		}
		lists = lists || b.Target.List != ""
	}
	for _, n := range vm.NICs { // of another VM that is held, by its hardware address
		for _, t := range []Treatment{"", Treatment(fsm.In), Treatment(fsm.Out)} {
			if e := (Element{MAC: n.MAC, Treatment: t}); n.MAC != (fsm.MAC{}) && c.Holds(e) {
				elements = append(elements, e)
			}
		}
	}
	return compact(elements), lists
}
