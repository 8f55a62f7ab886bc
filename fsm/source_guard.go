package fsm

import "net/netip"

// SourceGuard says whether a VM may send from its registered hardware addresses and addresses alone, or from any.
type SourceGuard string

// The values of SourceGuard.
const (
	SourceInherit SourceGuard = "" // as Settings say
	SourceOn      SourceGuard = "on"
	SourceOff     SourceGuard = "off"
	// SourceReset is what DeclareVM says to go back to SourceInherit; no VM has it.
	SourceReset SourceGuard = "inherit"
)

func sourceGuards() []SourceGuard {
	return []SourceGuard{SourceInherit, SourceOn, SourceOff, SourceReset}
}

func checkSourceGuard(s SourceGuard) *Error {
	if contains(sourceGuards, s) {
		return nil
	}
	return &Error{CodeInvalid, "source_guard", quote(string(s)) + ` is none of "on", "off" and "inherit"`}
}

// SourceGuarded says whether a VM may use its registered addresses alone. What an operator made sure is never blocked is
// not covered by the settings: it may be a router, and only its own declaration can say that it is not.
func (v *View) SourceGuarded(vm *VM) bool {
	if vm.SourceGuard != SourceInherit {
		return vm.SourceGuard == SourceOn
	}
	if !v.Settings().SourceGuard {
		return false
	}
	_, guarded := v.GuardedVMs()[vm.ID]
	return !guarded
}

// isLinkLocal says whether a prefix is one of IPv6 link-local addresses.
func isLinkLocal(p netip.Prefix) bool {
	return p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() && p.Bits() >= 10
}
