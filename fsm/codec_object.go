package fsm

import (
	"errors"
	"fmt"
	"net/netip"
	"unique"

	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

// kinds and the like list every value that this build knows. They are functions because a package
// has no globals.
func kinds() []Kind           { return []Kind{Drop, Reject, Limit, Ports, Redirect} }
func directions() []Direction { return []Direction{Both, In, Out} }
func phases() []Phase         { return []Phase{PhaseRunning, PhaseIncoming, PhaseStopped, PhaseGone} }
func migrationPhases() []MigrationPhase {
	return []MigrationPhase{MigrationArming, MigrationArmed, MigrationLive, MigrationSettled, MigrationAborted}
}
func vmStates() []VMState { return []VMState{VMDeclared, VMRunning, VMMigrating, VMStopped, VMLost} }
func blockStates() []BlockState {
	return []BlockState{BlockPending, BlockActive, BlockLifted, BlockEnded}
}
func eventTypes() []EventType {
	return []EventType{
		EventBlockAdded, EventBlockLifted, EventVMDeclared, EventVMObserved, EventVMMigrating,
		EventVMMoved, EventVMMigration, EventNodeChanged, EventGuardAdded, EventGuardRemoved, EventBlockForgotten,
		EventBlockStarted, EventBlockChanged, EventBlockEnded, EventAccountChanged, EventSettings,
		EventListChanged, EventListRemoved,
		EventFleetFormed, EventCAStarted, EventCAFinished, EventGossipKeyChanged,
		EventNodeAdmitted, EventNodeRenewed, EventNodeDrained, EventNodeUndrained, EventNodeRetired, EventVMLost,
		EventFleetRecovered, EventFleetRestored, EventFleetSettled,
		EventJoinTokenCreated, EventJoinTokenUsed, EventJoinTokenDeleted, EventJoinTokenForgotten,
		EventTokenCreated, EventTokenDeleted, EventUserChanged, EventUserDeleted,
		EventSessionStarted, EventSessionEnded, EventSessionForgotten,
		EventIncident,
	}
}

func contains[T comparable](all func() []T, v T) bool {
	for _, k := range all() {
		if k == v {
			return true
		}
	}
	return false
}

// intern shares the memory of text that many objects repeat.
func intern(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}

// decoder collects the first thing that is wrong. That something is not known to this build outranks
// that it looks malformed: a newer build may have given it a meaning.
type decoder struct {
	version uint32 // of what is decoded
	reads   uint32 // what this build reads
	// stored is set for a snapshot, where only what Apply lets through may stand.
	stored bool
	err    error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
}

func (d *decoder) unsupported(format string, args ...any) {
	if _, already := errors.AsType[*UnsupportedError](d.err); !already {
		d.err = &UnsupportedError{Version: d.version, Reads: d.reads, Detail: fmt.Sprintf(format, args...)}
	}
}

// known refuses fields that this build has no name for.
func (d *decoder) known(m proto.Message) {
	r := m.ProtoReflect()
	if len(r.GetUnknown()) > 0 {
		d.unsupported("%s has a field that is not known here", r.Descriptor().Name())
	}
}

// known turns text into one of the values that this build has.
func known[T ~string](d *decoder, what, s string, all func() []T, optional bool) T {
	for _, k := range all() {
		if string(k) == s {
			return k
		}
	}
	if s != "" {
		d.unsupported("%s %s is not known here", what, quote(s))
	} else if !optional {
		d.fail("has no %s", what)
	}
	return ""
}

func encodeList[A, B any](in []A, encode func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i, v := range in {
		out[i] = encode(v)
	}
	return out
}

func decodeList[A, B any](in []A, decode func(A) B) []B { return encodeList(in, decode) }

func encodeAddr(a netip.Addr) []byte { return a.Unmap().WithZone("").AsSlice() }

func (d *decoder) addr(b []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(b)
	if len(b) == 0 && !d.stored {
		return netip.Addr{} // Apply refuses it by the name of its field
	}
	if !ok || a.Is4In6() {
		d.fail("has an address of %d bytes that is none", len(b))
		return netip.Addr{}
	}
	return a
}

// encodePrefix gives nil for what is no prefix.
func encodePrefix(p netip.Prefix) []byte {
	if !p.IsValid() {
		return nil
	}
	return append(p.Addr().WithZone("").AsSlice(), byte(p.Bits()))
}

func (d *decoder) prefix(b []byte) netip.Prefix {
	if len(b) == 0 && !d.stored {
		return netip.Prefix{}
	}
	if len(b) > 0 {
		a, ok := netip.AddrFromSlice(b[:len(b)-1])
		p := netip.PrefixFrom(a, int(b[len(b)-1]))
		if ok && p.IsValid() && (!d.stored || checkPrefix("", p) == nil) {
			return p
		}
	}
	d.fail("has a prefix of %d bytes that is none", len(b))
	return netip.Prefix{}
}

func encodeMAC(m MAC) []byte { return m[:] }

func (d *decoder) mac(b []byte) MAC {
	if len(b) != len(MAC{}) {
		d.fail("has a MAC of %d bytes", len(b))
		return MAC{}
	}
	return MAC(b)
}

func encodeNIC(n NIC) *fsmpb.NIC {
	return &fsmpb.NIC{Mac: n.MAC[:], Tap: n.Tap, Network: n.Network, Addresses: encodeList(n.Addresses, encodeAddr)}
}

func (d *decoder) nic(m *fsmpb.NIC) NIC {
	d.known(m)
	return NIC{MAC: d.mac(m.Mac), Tap: m.Tap, Network: m.Network, Addresses: decodeList(m.Addresses, d.addr)}
}

func encodeTarget(t Target) *fsmpb.Target {
	return &fsmpb.Target{Vm: t.VM, Prefix: encodePrefix(t.Prefix), Account: t.Account, List: t.List}
}

func (d *decoder) target(m *fsmpb.Target) Target {
	if m == nil {
		return Target{}
	}
	d.known(m)
	t := Target{VM: m.Vm, Account: intern(m.Account), List: intern(m.List)}
	if len(m.Prefix) > 0 {
		t.Prefix = d.prefix(m.Prefix)
	}
	return t
}

func encodeNode(n *Node) *fsmpb.Node {
	return encodeMembership(&fsmpb.Node{
		Id: n.ID, Name: n.Name,
		Addresses: encodeList(n.Addresses, encodeAddr), Gateways: encodeList(n.Gateways, encodeAddr),
		Macs: encodeList(n.MACs, encodeMAC), Guards: encodeList(n.Guards, encodePrefix),
		Version: n.Version, Revision: n.Revision, Format: n.Format,
	}, &n.Membership)
}

func (d *decoder) node(m *fsmpb.Node) *Node {
	if m == nil {
		return &Node{}
	}
	d.known(m)
	return &Node{
		ID: intern(m.Id), Name: m.Name,
		Addresses: decodeList(m.Addresses, d.addr), Gateways: decodeList(m.Gateways, d.addr),
		MACs: decodeList(m.Macs, d.mac), Guards: decodeList(m.Guards, d.prefix),
		Version: intern(m.Version), Revision: m.Revision, Format: m.Format,
		Membership: d.membership(m),
	}
}

func encodeVM(v *VM) *fsmpb.VM {
	return &fsmpb.VM{
		Id: v.ID, Name: v.Name, Kind: v.Kind, Owner: v.Owner,
		Declared: encodeList(v.Declared, encodePrefix), Nics: encodeList(v.NICs, encodeNIC),
		Node: v.Node, Destination: v.Destination, State: string(v.State), Epoch: v.Epoch, Revision: v.Revision,
		DoNotBlockUntil: toNanos(v.DoNotBlockUntil), Migration: encodeMigration(v.Migration), SourceGuard: string(v.SourceGuard),
	}
}

func encodeMigration(m *Migration) *fsmpb.Migration {
	if m == nil {
		return nil
	}
	return &fsmpb.Migration{
		Phase: string(m.Phase), From: m.From, To: m.To, Cold: m.Cold, StartedAt: toNanos(m.StartedAt), ChangedAt: toNanos(m.ChangedAt),
	}
}

func (d *decoder) migration(m *fsmpb.Migration) *Migration {
	if m == nil {
		return nil
	}
	d.known(m)
	return &Migration{
		Phase: known(d, "migration phase", m.Phase, migrationPhases, false), From: intern(m.From), To: intern(m.To), Cold: m.Cold,
		StartedAt: decodeTime(m.StartedAt), ChangedAt: decodeTime(m.ChangedAt),
	}
}

func (d *decoder) vm(m *fsmpb.VM) *VM {
	if m == nil {
		d.fail("has no VM")
		return &VM{}
	}
	d.known(m)
	return &VM{
		ID: m.Id, Name: m.Name, Kind: intern(m.Kind), Owner: intern(m.Owner),
		Declared: decodeList(m.Declared, d.prefix), NICs: decodeList(m.Nics, d.nic),
		Node: intern(m.Node), Destination: intern(m.Destination),
		State: known(d, "state", m.State, vmStates, false), Epoch: m.Epoch, Revision: m.Revision,
		DoNotBlockUntil: decodeTime(m.DoNotBlockUntil), Migration: d.migration(m.Migration), SourceGuard: known(d, "source_guard", m.SourceGuard, sourceGuards, true),
	}
}

func encodeBlock(b *Block) *fsmpb.Block {
	number, _ := ParseBlockID(b.ID)
	return &fsmpb.Block{
		Number: number, Target: encodeTarget(b.Target), Kind: string(b.Kind), Direction: string(b.Direction),
		Reason: b.Reason, Note: b.Note, Actor: b.Actor, State: string(b.State),
		CreatedAt: toNanos(b.CreatedAt), LiftedAt: toNanos(b.LiftedAt), LiftedBy: b.LiftedBy,
		Index: b.Index, Revision: b.Revision,
		StartsAt: toNanos(b.StartsAt), EndsAt: toNanos(b.EndsAt), ConfirmBy: toNanos(b.ConfirmBy),
		StartedAt: toNanos(b.StartedAt), Parameters: encodeParameters(b.Rate, b.Ports, b.RedirectTo),
	}
}

func (d *decoder) block(m *fsmpb.Block) *Block {
	if m == nil {
		d.fail("has no block")
		return &Block{}
	}
	d.known(m)
	b := &Block{
		ID: FormatBlockID(m.Number), Target: d.target(m.Target),
		Kind:      known(d, "kind", m.Kind, kinds, false),
		Direction: known(d, "direction", m.Direction, directions, false),
		Reason:    intern(m.Reason), Note: m.Note, Actor: intern(m.Actor),
		State:     known(d, "state", m.State, blockStates, false),
		CreatedAt: decodeTime(m.CreatedAt), LiftedAt: decodeTime(m.LiftedAt),
		LiftedBy: intern(m.LiftedBy), Index: m.Index, Revision: m.Revision,
		StartsAt: decodeTime(m.StartsAt), EndsAt: decodeTime(m.EndsAt), ConfirmBy: decodeTime(m.ConfirmBy),
		StartedAt: decodeTime(m.StartedAt),
	}
	b.Rate, b.Ports, b.RedirectTo = d.parameters(m.Parameters)
	if m.Number == 0 || b.Target.given() != 1 {
		d.fail("has block %d without one target", m.Number)
	}
	if (b.State == BlockPending) && b.StartsAt.IsZero() {
		d.fail("has pending block %d without a start", m.Number)
	}
	return b
}

func encodeGuard(g *Guard) *fsmpb.Guard {
	return &fsmpb.Guard{Prefix: encodePrefix(g.Prefix), Vm: g.VM, Note: g.Note, Actor: g.Actor, Revision: g.Revision}
}

func (d *decoder) guard(m *fsmpb.Guard) *Guard {
	if m == nil {
		d.fail("has no guard")
		return &Guard{}
	}
	d.known(m)
	g := &Guard{VM: m.Vm, Note: m.Note, Actor: intern(m.Actor), Revision: m.Revision}
	if m.Vm == "" {
		g.Prefix = d.prefix(m.Prefix)
	} else if len(m.Prefix) > 0 {
		d.fail("has a guard of a prefix and a VM")
	}
	return g
}
