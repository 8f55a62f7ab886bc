package nft

import (
	"fmt"
	"regexp"

	"github.com/palisade/palisade/fsm"
)

// Path is how the packets of a guest pass a device.
type Path uint8

// The paths that need chains of their own.
const (
	// Macvtap is a macvtap: what leaves it was sent by its guest.
	Macvtap Path = iota + 1
	// Switched is a port of Open vSwitch's kernel datapath: what comes in was sent by its guest.
	Switched
	// Read is a device whose frames a program reads from a packet socket, before any hook of nftables: Open
	// vSwitch's userspace datapath. What its guest sends can only be stopped by XDP, all of it; what the program
	// sends passes the hooks of the device that it leaves by.
	Read
)

// Device is a network device whose packets reach neither a bridge nor this node's own stack.
type Device struct {
	Name  string
	Index int // of the interface; tells a device from a later one of the same name
	Path  Path
}

// The hooks of family netdev (enum nf_dev_hooks).
const (
	hookIngress = 0
	hookEgress  = 1
)

// deviceChains are those of deviceTables that base chains of single devices call.
func deviceChains() []chain {
	addresses := []match{source, dest}
	frames := append([]match{sourceMAC, destMAC}, addresses...)
	with := func(m match, more []match) []match { return append([]match{m}, more...) }
	list := []chain{
		{name: "sent", hook: hookEgress, matches: with(sentTap, frames), limits: with(sentTap, frames)},
		{name: "got", matches: with(gotTap, frames), limits: with(gotTap, frames)},
		// A switched packet is counted where it comes in, but by the tap of its receiver.
		{name: "enter", matches: with(inTap, frames), limits: with(inTap, frames)},
		{name: "leave", hook: hookEgress, matches: with(outTap, frames), limits: []match{outTap}},
		// One that is read counts where it leaves: nothing else of the way is ours.
		{name: "read", matches: with(inTap, frames)},
		{name: "deliver", hook: hookEgress, matches: with(outTap, frames), limits: with(outTap, frames)},
		{name: "tagged", hook: hookEgress, matches: addresses, limits: addresses, depth: pastTags},
		{name: "tagged_in", matches: addresses, limits: addresses, depth: behindTag},
	}
	for i := range list {
		list[i].family, list[i].list, list[i].needed = netdev, chain.onDevice, always
	}
	return list
}

// onDevice are the rules of a chain of deviceChains. Nobody is answered there: a reject and a redirect are drops.
func (c chain) onDevice(s setList) []rule {
	var rules []rule
	for _, k := range []fsm.Kind{fsm.Drop, fsm.Reject, fsm.Redirect} {
		rules = append(rules, c.look(s, k, rule{do: drop}, c.matches...)...)
	}
	rules = append(rules, c.look(s, fsm.Ports, rule{do: toChain}, c.matches...)...)
	if c.depth == outer {
		to := "tagged" // what comes in has lost its first tag already
		if c.hook == hookIngress {
			to = "tagged_in"
		}
		rules = append(rules, rule{test: isTagged, do: jump, chain: to}, rule{test: isServiceTagged, do: jump, chain: to})
	}
	return append(rules, c.look(s, fsm.Limit, rule{do: toChain}, c.limits...)...)
}

// hooked are the chains of the table of blocks that those of a device call.
func (d Device) hooked() (ingress, egress string) {
	switch d.Path {
	case Macvtap:
		return "got", "sent"
	case Switched:
		return "enter", "leave"
	default:
		return "read", "deliver"
	}
}

// deviceChain names a base chain: with the index of the interface, whose name could be anything.
func deviceChain(hook uint32, index int) string {
	if hook == hookEgress {
		return fmt.Sprintf("egress_%d", index)
	}
	return fmt.Sprintf("ingress_%d", index)
}

var deviceChainName = regexp.MustCompile(`^(?:in|e)gress_\d+$`)
