package fsm

// HoldCounts returns by how many active blocks each VM is held, as Holding counts them; VMs that none holds are absent. It
// costs a walk over the active blocks and what they hold: for many VMs that is less than to ask Holding for each.
func (v *View) HoldCounts() map[string]int {
	counts := map[string]int{}
	for b := range v.active.all() {
		switch t := b.Target; {
		case t.VM != "":
			if _, ok := v.VM(t.VM); ok {
				counts[t.VM]++
			}
		case t.Account != "":
			for vm := range v.vmsOf(t.Account) {
				counts[vm.ID]++
			}
		case t.Prefix.IsValid():
			for vm := range v.vmsWithin(t.Prefix) {
				counts[vm.ID]++
			}
		case t.List != "":
			set, _ := v.contents.get([]byte(t.List))
			for vm := range v.vmsListed(set) {
				counts[vm.ID]++
			}
		}
	}
	return counts
}
