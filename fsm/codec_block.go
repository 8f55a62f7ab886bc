package fsm

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

func decodeTime(n int64) time.Time { return fromNanos(max(n, 0)) }

// encodeParameters gives nil for a kind that has none, so that such a block is written as it always was.
func encodeParameters(r Rate, ports []PortRange, to netip.AddrPort) *fsmpb.Parameters {
	if r == (Rate{}) && len(ports) == 0 && to == (netip.AddrPort{}) {
		return nil
	}
	m := &fsmpb.Parameters{Bits: r.Bits, Packets: r.Packets, Ports: encodeList(ports, encodePorts)}
	if to.IsValid() {
		m.RedirectTo = binary.BigEndian.AppendUint16(encodeAddr(to.Addr()), to.Port())
	}
	return m
}

func encodePorts(p PortRange) *fsmpb.PortRange {
	return &fsmpb.PortRange{Protocol: uint32(p.Protocol), First: uint32(p.First), Last: uint32(p.Last)}
}

func (d *decoder) parameters(m *fsmpb.Parameters) (r Rate, ports []PortRange, to netip.AddrPort) {
	if m == nil {
		return r, nil, to
	}
	d.known(m)
	r = Rate{Bits: m.Bits, Packets: m.Packets}
	ports = decodeList(m.Ports, d.ports)
	if n := len(m.RedirectTo); n == 4+2 || n == 16+2 {
		to = netip.AddrPortFrom(d.addr(m.RedirectTo[:n-2]), binary.BigEndian.Uint16(m.RedirectTo[n-2:]))
	} else if n != 0 {
		d.fail("has an address with a port of %d bytes", n)
	}
	return r, ports, to
}

func (d *decoder) ports(m *fsmpb.PortRange) PortRange {
	d.known(m)
	if m.Protocol > math.MaxUint8 || m.First > math.MaxUint16 || m.Last > math.MaxUint16 {
		d.fail("has a protocol or port that does not exist")
		return PortRange{}
	}
	return PortRange{Protocol: uint8(m.Protocol), First: uint16(m.First), Last: uint16(m.Last)}
}

func encodeAddBlock(op AddBlock) (*fsmpb.Op, *Error) {
	if op.Kind != "" && !contains(kinds, op.Kind) {
		return nil, &Error{CodeUnsupported, "kind", "there is no kind " + quote(string(op.Kind)) + "; there are drop, reject, limit, ports and redirect"}
	}
	if op.Direction != "" && !contains(directions, op.Direction) {
		return nil, &Error{CodeUnsupported, "direction", "there is no direction " + quote(string(op.Direction)) + "; there are in, out and both"}
	}
	return &fsmpb.Op{Op: &fsmpb.Op_AddBlock{AddBlock: &fsmpb.AddBlock{
		Target: encodeTarget(op.Target), Kind: string(op.Kind), Direction: string(op.Direction),
		Reason: op.Reason, Note: op.Note, StartsAt: toNanos(op.StartsAt), EndsAt: toNanos(op.EndsAt),
		Duration: int64(op.Duration), ConfirmWithin: int64(op.ConfirmWithin), Force: op.Force,
		Parameters: encodeParameters(op.Rate, op.Ports, op.RedirectTo),
	}}}, nil
}

func (d *decoder) addBlock(op *fsmpb.AddBlock) Op {
	d.known(op)
	add := AddBlock{
		Target:    d.target(op.Target),
		Kind:      known(d, "kind", op.Kind, kinds, true),
		Direction: known(d, "direction", op.Direction, directions, true),
		Reason:    intern(op.Reason), Note: op.Note,
		StartsAt: decodeTime(op.StartsAt), EndsAt: decodeTime(op.EndsAt),
		Duration: time.Duration(op.Duration), ConfirmWithin: time.Duration(op.ConfirmWithin), Force: op.Force,
	}
	add.Rate, add.Ports, add.RedirectTo = d.parameters(op.Parameters)
	return add
}

func encodePatchBlock(op PatchBlock) *fsmpb.Op {
	m := &fsmpb.PatchBlock{Id: op.ID, IfRevision: op.IfRevision, Note: op.Note, Confirm: op.Confirm}
	nanos := func(t *time.Time) *int64 {
		if t == nil {
			return nil
		}
		return new(toNanos(*t))
	}
	m.StartsAt, m.EndsAt = nanos(op.StartsAt), nanos(op.EndsAt)
	return &fsmpb.Op{Op: &fsmpb.Op_PatchBlock{PatchBlock: m}}
}

func (d *decoder) patchBlock(m *fsmpb.PatchBlock) Op {
	d.known(m)
	at := func(n *int64) *time.Time {
		if n == nil {
			return nil
		}
		return new(decodeTime(*n))
	}
	return PatchBlock{
		ID: m.Id, IfRevision: m.IfRevision, Note: m.Note, Confirm: m.Confirm, StartsAt: at(m.StartsAt), EndsAt: at(m.EndsAt),
	}
}

func encodeAccount(a *Account) *fsmpb.Account {
	return &fsmpb.Account{
		Id: a.ID, DoNotBlockUntil: toNanos(a.DoNotBlockUntil), Note: a.Note, Actor: a.Actor, Revision: a.Revision,
	}
}

func (d *decoder) account(m *fsmpb.Account) *Account {
	if m == nil {
		d.fail("has no account")
		return &Account{}
	}
	d.known(m)
	return &Account{
		ID: intern(m.Id), DoNotBlockUntil: decodeTime(m.DoNotBlockUntil), Note: m.Note, Actor: intern(m.Actor), Revision: m.Revision,
	}
}

func encodeSettings(s *Settings) *fsmpb.Settings {
	return &fsmpb.Settings{
		MaxVms: s.MaxVMs, MaxAddresses: s.MaxAddresses, RedirectTitle: s.RedirectTitle,
		RedirectText: s.RedirectText, RedirectLink: s.RedirectLink, Revision: s.Revision,
		Voters: s.Voters, ReplaceVoterAfter: int64(s.ReplaceVoterAfter), SourceGuard: s.SourceGuard,
	}
}

func (d *decoder) settings(m *fsmpb.Settings) *Settings {
	if m == nil {
		return &Settings{}
	}
	d.known(m)
	return &Settings{
		MaxVMs: m.MaxVms, MaxAddresses: m.MaxAddresses, RedirectTitle: m.RedirectTitle,
		RedirectText: m.RedirectText, RedirectLink: m.RedirectLink, Revision: m.Revision,
		Voters: m.Voters, ReplaceVoterAfter: time.Duration(m.ReplaceVoterAfter), SourceGuard: m.SourceGuard,
	}
}
