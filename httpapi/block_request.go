package httpapi

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// Bounds of times, far from where state time ends.
const longestBlock = 3650 * 24 * time.Hour

func latestTime() time.Time { return time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC) }

// protocolNames are the IP protocols that a Port can name.
func protocolNames() map[string]uint8 {
	return map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "icmpv6": 58, "sctp": 132}
}

// targetOf reads a target; location is where it was sent: "body.target", or "query" for parameters.
func targetOf(location string, t wire.Target) (fsm.Target, *wire.Problem) {
	given := 0
	for _, f := range []string{t.VM, t.Prefix, t.Account, t.List} {
		if f != "" {
			given++
		}
	}
	if given != 1 {
		return fsm.Target{}, fieldProblem(location, t, "want exactly one of vm, prefix, account and list")
	}
	out := fsm.Target{VM: t.VM, Account: t.Account, List: t.List}
	if t.Prefix != "" {
		p, ferr := fsm.ParsePrefix("target.prefix", t.Prefix)
		if ferr != nil {
			return fsm.Target{}, refusalProblem(ferr, targetFields(location, t))
		}
		out.Prefix = p
	}
	return out, nil
}

// targetFields are the places of a target for refusals.
func targetFields(location string, t wire.Target) sent {
	return sent{
		"target.vm":      at(location+".vm", t.VM),
		"target.prefix":  at(location+".prefix", t.Prefix),
		"target.account": at(location+".account", t.Account),
		"target.list":    at(location+".list", t.List),
		"target":         at(location, t.String()),
	}
}

// addFields are the places of a request for refusals.
func addFields(b *wire.BlockRequest) sent {
	out := targetFields("body.target", b.Target)
	for name, value := range map[string]any{
		"kind": b.Kind, "direction": b.Direction, "rate": b.Rate, "ports": nil, "redirect_to": b.RedirectTo, "reason": b.Reason,
		"note": nil, "starts_at": b.StartsAt, "ends_at": b.EndsAt, "duration": b.Duration, "confirm_within": b.ConfirmWithin,
	} {
		out[name] = at("body."+name, value)
	}
	for i, p := range b.Ports {
		field := "ports[" + strconv.Itoa(i) + "]"
		out[field] = at("body."+field, p.String())
	}
	return out
}

// addOp reads a request of a caller.
func addOp(c *caller, b *wire.BlockRequest) (op fsm.AddBlock, p *wire.Problem) {
	if b.Force && !allows(c.scope, ScopeAdmin) {
		p := problem(wire.CodeForbidden, "%s has scope %q; force needs %q, confirm_within does not", c.actor, c.scope, ScopeAdmin)
		p.Errors = []wire.FieldError{{Location: "body.force", Message: "needs the scope admin", Value: true}}
		return op, p
	}
	op = fsm.AddBlock{
		Kind: fsm.Kind(b.Kind), Direction: fsm.Direction(b.Direction), Reason: b.Reason, Note: b.Note,
		StartsAt: b.StartsAt, EndsAt: b.EndsAt, Force: b.Force,
	}
	if op.Target, p = targetOf("body.target", b.Target); p != nil {
		return op, p
	}
	if b.Rate != nil {
		op.Rate = fsm.Rate{Bits: b.Rate.BitsPerSecond, Packets: b.Rate.PacketsPerSecond}
	}
	for i, port := range b.Ports {
		r, err := portRange(port)
		if err != nil {
			return op, fieldProblem("body.ports["+strconv.Itoa(i)+"]", port.String(), "%s", err)
		}
		op.Ports = append(op.Ports, r)
	}
	if b.RedirectTo != "" {
		to, err := netip.ParseAddrPort(b.RedirectTo)
		if err != nil {
			return op, fieldProblem("body.redirect_to", b.RedirectTo, `not the address and port of an HTTP server: want for example "192.0.2.1:80" or "[2001:db8::1]:80"`)
		}
		op.RedirectTo = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	}
	if p = checkTime("body.starts_at", b.StartsAt); p != nil {
		return op, p
	}
	if p = checkTime("body.ends_at", b.EndsAt); p != nil {
		return op, p
	}
	if op.Duration, p = duration("body.duration", b.Duration); p != nil {
		return op, p
	}
	op.ConfirmWithin, p = duration("body.confirm_within", b.ConfirmWithin)
	return op, p
}

func duration(location, text string) (time.Duration, *wire.Problem) {
	if text == "" {
		return 0, nil
	}
	d, err := wire.ParseDuration(text)
	if err != nil {
		return 0, fieldProblem(location, text, "%s", err)
	}
	if d > longestBlock {
		return 0, fieldProblem(location, text, "at most 3650d is possible; a block without an end is lifted by hand")
	}
	return d, nil
}

func checkTime(location string, t time.Time) *wire.Problem {
	if !t.IsZero() && (t.Year() < 1970 || t.After(latestTime())) {
		return fieldProblem(location, t.Format(time.RFC3339), "want a time from 1970 to 2099")
	}
	return nil
}

func portRange(p wire.Port) (fsm.PortRange, error) {
	number, ok := protocolNames()[p.Protocol]
	if !ok {
		n, err := strconv.ParseUint(p.Protocol, 10, 8)
		if err != nil || n == 0 {
			return fsm.PortRange{}, fmt.Errorf("the protocol %q is none of tcp, udp, sctp, icmp, icmpv6, gre, esp, and no number from 1 to 255", p.Protocol)
		}
		number = uint8(n)
	}
	if p.To == 0 {
		p.To = p.From
	}
	const most = 65_535
	if p.From < 0 || p.To < p.From || p.To > most || p.From == 0 && p.To != 0 {
		return fsm.PortRange{}, fmt.Errorf("%s: want ports from 1 to %d, the first not after the last", p, most)
	}
	return fsm.PortRange{Protocol: number, First: uint16(p.From), Last: uint16(p.To)}, nil
}

func wirePort(r fsm.PortRange) wire.Port {
	p := wire.Port{Protocol: strconv.Itoa(int(r.Protocol)), From: int(r.First), To: int(r.Last)}
	for name, number := range protocolNames() {
		if number == r.Protocol {
			p.Protocol = name
		}
	}
	return p
}

// patchOp reads a merge patch.
func patchOp(id string, revision uint64, b *wire.BlockPatch) (fsm.PatchBlock, *wire.Problem) {
	op := fsm.PatchBlock{ID: id, IfRevision: revision, Confirm: b.Confirm}
	if b.StartsAt.Set {
		op.StartsAt = &b.StartsAt.Value
	}
	if b.EndsAt.Set {
		op.EndsAt = &b.EndsAt.Value
	}
	if b.Note.Set {
		op.Note = &b.Note.Value
	}
	if p := checkTime("body.starts_at", b.StartsAt.Value); p != nil {
		return op, p
	}
	if p := checkTime("body.ends_at", b.EndsAt.Value); p != nil {
		return op, p
	}
	if op.StartsAt == nil && op.EndsAt == nil && op.Note == nil && !op.Confirm {
		return op, fieldProblem("body", nil, "nothing to change: give starts_at, ends_at, note or confirm")
	}
	return op, nil
}

// patchFields are the places of a patch for refusals.
func patchFields(id string, b *wire.BlockPatch) sent {
	return sent{
		"id":        at("path.id", id),
		"starts_at": at("body.starts_at", b.StartsAt.Value),
		"ends_at":   at("body.ends_at", b.EndsAt.Value),
		"note":      at("body.note", nil),
	}
}
