package httpapi

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// prefixText writes a single address without its length.
func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// wireBlock shows a block; the view knows its VM's name.
func wireBlock(v *fsm.View, b *fsm.Block) wire.Block {
	out := wire.Block{
		ID: b.ID, Reason: b.Reason, Note: b.Note, Actor: b.Actor,
		Target: wire.Target{VM: b.Target.VM, Account: b.Target.Account, List: b.Target.List},
		Kind:   string(b.Kind), Direction: string(b.Direction), State: string(b.State),
		Index: b.Index, Revision: b.Revision,
		CreatedAt: b.CreatedAt, StartsAt: b.StartsAt, EndsAt: b.EndsAt, ConfirmBy: b.ConfirmBy,
		StartedAt: b.StartedAt, LiftedAt: b.LiftedAt, LiftedBy: b.LiftedBy,
	}
	if b.Target.Prefix.IsValid() {
		out.Target.Prefix = prefixText(b.Target.Prefix)
	}
	if vm, ok := v.VM(b.Target.VM); ok {
		out.VMName = vm.Name
	}
	if b.Rate != (fsm.Rate{}) {
		out.Rate = &wire.Rate{BitsPerSecond: b.Rate.Bits, PacketsPerSecond: b.Rate.Packets}
	}
	for _, p := range b.Ports {
		out.Ports = append(out.Ports, wirePort(p))
	}
	if b.RedirectTo.IsValid() {
		out.RedirectTo = b.RedirectTo.String()
	}
	if begun(b) {
		out.Since = b.Since()
	}
	return out
}

// begun says that the block is or was active: one that was delayed and cancelled never was.
func begun(b *fsm.Block) bool {
	return b.State != fsm.BlockPending && (b.StartsAt.IsZero() || !b.StartedAt.IsZero())
}

// wireVM shows a VM with the blocks that hold it in the view.
func (s *Server) wireVM(v *fsm.View, vm *fsm.VM) wire.VM {
	out := wire.VM{
		ID: vm.ID, Name: vm.Name, Kind: vm.Kind, Node: vm.Node, Destination: vm.Destination,
		Owner: vm.Owner, DoNotBlockUntil: vm.DoNotBlockUntil, SourceGuard: cmp.Or(string(vm.SourceGuard), string(fsm.SourceReset)), State: string(vm.State), Epoch: vm.Epoch, Revision: vm.Revision,
		NICs:     make([]wire.NIC, 0, len(vm.NICs)),
		Declared: make([]string, 0, len(vm.Declared)),
		Blocks:   []string{},
	}
	if m := vm.Migration; m != nil {
		out.Migration = &wire.Migration{Phase: string(m.Phase), From: m.From, To: m.To, Cold: m.Cold, StartedAt: m.StartedAt, ChangedAt: m.ChangedAt}
	}
	all := slices.Clone(vm.Declared)
	for _, p := range vm.Declared {
		out.Declared = append(out.Declared, prefixText(p))
	}
	for _, n := range vm.NICs {
		nic := wire.NIC{MAC: n.MAC.String(), Tap: n.Tap, Network: n.Network, Enforceable: n.Enforceable(), Addresses: make([]string, 0, len(n.Addresses))}
		for _, a := range n.Addresses {
			nic.Addresses = append(nic.Addresses, a.String())
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
		}
		out.NICs = append(out.NICs, nic)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	all = slices.Compact(all)
	out.Addresses = make([]string, 0, len(all))
	for _, p := range all {
		out.Addresses = append(out.Addresses, prefixText(p))
	}
	for _, b := range v.Holding(vm) {
		out.Blocks = append(out.Blocks, b.ID)
	}
	out.Blocked = len(out.Blocks) > 0
	if st, ok := s.opts.Backend.Sighting(vm.ID); ok && st.Epoch > vm.Epoch && st.Node != vm.Node {
		out.Sighting = &wire.Sighting{Node: st.Node, Phase: string(st.Phase), Epoch: st.Epoch, At: st.At}
	}
	return out
}

func wireGuard(g *fsm.Guard) wire.Guard {
	out := wire.Guard{VM: g.VM, Note: g.Note, Actor: g.Actor, Revision: g.Revision}
	if g.VM == "" {
		out.Prefix = prefixText(g.Prefix)
	}
	return out
}

func wireAccount(v *fsm.View, a *fsm.Account) wire.Account {
	out := wire.Account{
		ID: a.ID, DoNotBlockUntil: a.DoNotBlockUntil, Note: a.Note, Actor: a.Actor, Revision: a.Revision, Blocks: []string{},
	}
	for range v.VMsOf(a.ID) {
		out.VMs++
	}
	for b := range v.ActiveOn(fsm.Target{Account: a.ID}) {
		out.Blocks = append(out.Blocks, b.ID)
	}
	return out
}

func onOff(on bool) string {
	if on {
		return string(fsm.SourceOn)
	}
	return string(fsm.SourceOff)
}

func wireSettings(s *fsm.Settings) wire.Settings {
	return wire.Settings{
		SettingsRequest: wire.SettingsRequest{
			MaxVMs: s.MaxVMs, MaxAddresses: s.MaxAddresses,
			Redirect: wire.RedirectPage{Title: s.RedirectTitle, Text: s.RedirectText, Link: s.RedirectLink},
			Voters:   s.WantedVoters(), ReplaceVoterAfter: s.VoterPatience().String(), SourceGuard: onOff(s.SourceGuard),
		},
		Revision: s.Revision,
	}
}

// wireNode joins what a node registered (nil if it never did), what the cluster sees of it (nil if it
// is no member) and what it answered.
func (s *Server) wireNode(n *fsm.Node, m *fsm.Member, r *reply) wire.Node {
	out := wire.Node{Role: "follower", Addresses: []string{}}
	if n != nil {
		out.ID, out.Name, out.Version, out.Format, out.Revision = n.ID, n.Name, n.Version, n.Format, n.Revision
		for _, a := range n.Addresses {
			out.Addresses = append(out.Addresses, a.String())
		}
		out.Membership = wire.Membership{
			Address: n.Address, Gossip: n.Gossip, API: n.API, Zone: n.Zone, State: string(n.State), JoinedAt: n.JoinedAt,
		}
		if n.Serial != 0 {
			out.Certificate = &wire.Certificate{Serial: n.Serial, NotAfter: n.NotAfter, Confirmed: n.Confirmed == n.Serial}
		}
	}
	if n != nil && !n.Member() {
		out.Problem = "retired"
		return out
	}
	if m == nil {
		out.Problem = "not a member of the cluster"
		return out
	}
	out.ID = m.ID
	if out.Name == "" {
		out.Name = m.Name
	}
	out.Voter, out.Leader, out.LastHeard = m.Voter, m.Leader, m.LastHeard
	switch {
	case m.Leader:
		out.Role = "leader"
	case m.Voter:
		out.Role = "voter"
	}
	if r == nil { // nobody asked: an event
		return out
	}
	known := s.memory.of(m.ID)
	out.AppliedIndex, out.EnforcedIndex = known.applied, known.enforced
	switch {
	case r.ok:
		out.Version = r.report.Version
		out.Problem = cmp.Or(r.report.Problem, r.report.Warning)
		out.Healthy = r.report.Problem == "" && (m.Alive || m.Self)
		if r.report.ClockKnown {
			out.ClockOffsetMS = new(float64(r.report.ClockOffset.Microseconds()) / 1e3)
		}
	case !m.Alive:
		out.Problem = "not heard of by gossip"
	default:
		out.Problem = noAnswer(r.err)
	}
	return out
}

// noAnswer says in plain words that a member did not answer; a nil err is that time was up.
func noAnswer(err error) string {
	var call *url.Error // its text is that of a request that nobody has made
	switch {
	case err == nil || errors.Is(err, context.DeadlineExceeded):
		return "did not answer in time"
	case errors.As(err, &call):
		err = call.Err
	}
	return "did not answer: " + firstLine(err)
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
