package fsm

// Observed returns the name and the interfaces of a VM in the form in which ObserveVM stores them. A
// node compares them with the View to see whether it has anything new to say.
func Observed(name string, nics []NIC) (string, []NIC) { return cleanName(name), cleanNICs(nics) }
