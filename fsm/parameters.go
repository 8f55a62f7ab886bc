package fsm

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// MaxConfirmWithin is the longest time that a block waits for its confirmation.
const MaxConfirmWithin = 30 * 24 * time.Hour

// The least and most that a block of kind Limit lets pass in a second. Below the least, not even one
// full packet a second would pass.
const (
	MinRateBits    = 8_000
	MaxRateBits    = 1_000_000_000_000
	MaxRatePackets = 1_000_000_000
)

// checkParameters refuses a kind without what it needs and parameters that another kind has. It returns
// the ports in their one form.
func checkParameters(b *Block, ports []PortRange) ([]PortRange, *Error) {
	wrong := func(field string, belongs Kind) *Error {
		return &Error{CodeInvalid, field, fmt.Sprintf("belongs to kind %s, the block is of kind %s", belongs, b.Kind)}
	}
	switch {
	case b.Target.List != "" && b.Kind != Drop:
		return nil, &Error{CodeInvalid, "kind", "a list can only be dropped; other kinds hold a VM, a prefix or an account"}
	case b.Kind != Limit && b.Rate != Rate{}:
		return nil, wrong("rate", Limit)
	case b.Kind != Ports && len(ports) > 0:
		return nil, wrong("ports", Ports)
	case b.Kind != Redirect && b.RedirectTo.IsValid():
		return nil, wrong("redirect_to", Redirect)
	case b.Kind == Redirect && b.Direction != Both:
		return nil, &Error{CodeInvalid, "direction", "a redirect is of both directions"}
	case b.Kind == Redirect && b.RedirectTo.IsValid() && !serverAddress(b.RedirectTo):
		return nil, &Error{CodeInvalid, "redirect_to", `is no address and port of an HTTP server, which looks like "192.0.2.1:80"`}
	case b.Kind == Limit:
		return nil, checkRate(b.Rate)
	case b.Kind == Ports:
		return checkPorts(ports)
	}
	return nil, nil
}

// serverAddress says whether a redirect may go to an address: not to what each node reaches for itself alone,
// like its own loopback or a metadata service. Whoever may block would open that to all visitors.
func serverAddress(to netip.AddrPort) bool {
	a := to.Addr()
	return to.Port() != 0 && a.Zone() == "" && a.Unmap().IsGlobalUnicast()
}

func checkRate(r Rate) *Error {
	switch {
	case (r.Bits == 0) == (r.Packets == 0):
		return &Error{CodeInvalid, "rate", "give either bits or packets a second"}
	case r.Bits != 0 && (r.Bits < MinRateBits || r.Bits > MaxRateBits):
		return &Error{CodeInvalid, "rate", fmt.Sprintf("is %d bit/s; from %d to %d is possible", r.Bits, MinRateBits, uint64(MaxRateBits))}
	case r.Packets > MaxRatePackets:
		return &Error{CodeInvalid, "rate", fmt.Sprintf("is %d packets/s; at most %d is possible", r.Packets, MaxRatePackets)}
	}
	return nil
}

func checkPorts(ports []PortRange) ([]PortRange, *Error) {
	if len(ports) == 0 {
		return nil, &Error{CodeInvalid, "ports", `is missing; kind ports needs at least one, for example "tcp/25"`}
	}
	if refused := checkCount("ports", len(ports), MaxPortRanges); refused != nil {
		return nil, refused
	}
	for i, p := range ports {
		field := fmt.Sprintf("ports[%d]", i)
		switch {
		case p.Protocol == 0:
			return nil, &Error{CodeInvalid, field, "has no protocol"}
		case p.First > p.Last:
			return nil, &Error{CodeInvalid, field, fmt.Sprintf("begins at %d, after its end %d", p.First, p.Last)}
		case p.Last != 0 && !HasPorts(p.Protocol):
			return nil, &Error{CodeInvalid, field, fmt.Sprintf("protocol %d has no ports", p.Protocol)}
		case p.First == 0 && p.Last != 0:
			return nil, &Error{CodeInvalid, field, "begins at port 0, which does not exist"}
		}
	}
	return sortedSet(ports, comparePorts), nil
}

// HasPorts says whether packets of the IP protocol carry ports that a PortRange can name.
func HasPorts(protocol uint8) bool {
	return slices.Contains([]uint8{6, 17, 132}, protocol)
}

func comparePorts(a, b PortRange) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
}
