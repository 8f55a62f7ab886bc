package fsm

import "time"

// What the audit says of each object. The keys are those of the API.

func (j *auditJSON) target(t Target) {
	j.open("target", '{')
	j.text("vm", t.VM)
	j.prefix("prefix", t.Prefix)
	j.text("account", t.Account)
	j.text("list", t.List)
	j.close('}')
}

func (j *auditJSON) treatment(b *Block) {
	j.target(b.Target)
	j.text("kind", string(b.Kind))
	j.text("direction", string(b.Direction))
	if b.Rate != (Rate{}) {
		j.open("rate", '{')
		j.number("bits_per_second", b.Rate.Bits)
		j.number("packets_per_second", b.Rate.Packets)
		j.close('}')
	}
	if len(b.Ports) > 0 {
		j.open("ports", '[')
		for _, p := range b.Ports {
			j.open("", '{')
			j.number("protocol", uint64(p.Protocol))
			j.number("from", uint64(p.First))
			j.number("to", uint64(p.Last))
			j.close('}')
		}
		j.close(']')
	}
	if b.RedirectTo.IsValid() {
		j.text("redirect_to", b.RedirectTo.String())
	}
	j.text("reason", b.Reason)
	j.text("note", b.Note)
	j.time("starts_at", b.StartsAt)
	j.time("ends_at", b.EndsAt)
}

// block writes nothing for nil, as the others do.
func (j *auditJSON) block(k string, b *Block) {
	if b == nil {
		return
	}
	j.open(k, '{')
	j.text("id", b.ID)
	j.treatment(b)
	j.text("actor", b.Actor)
	j.text("state", string(b.State))
	j.time("created_at", b.CreatedAt)
	j.time("confirm_by", b.ConfirmBy)
	j.time("started_at", b.StartedAt)
	j.time("lifted_at", b.LiftedAt)
	j.text("lifted_by", b.LiftedBy)
	j.number("revision", b.Revision)
	j.close('}')
}

// end closes an object that says who changed it last.
func (j *auditJSON) end(actor string, revision uint64) {
	j.text("actor", actor)
	j.number("revision", revision)
	j.close('}')
}

func (j *auditJSON) addBlock(k string, op *AddBlock) {
	j.open(k, '{')
	j.treatment(&Block{
		Target: op.Target, Kind: op.Kind, Direction: op.Direction, Rate: op.Rate, Ports: op.Ports, RedirectTo: op.RedirectTo,
		Reason: op.Reason, Note: op.Note, StartsAt: op.StartsAt, EndsAt: op.EndsAt,
	})
	j.duration("duration", op.Duration)
	j.duration("confirm_within", op.ConfirmWithin)
	j.flag("force", op.Force)
	j.close('}')
}

func (j *auditJSON) patchBlock(k string, op *PatchBlock) {
	set := func(k string, t *time.Time) {
		switch {
		case t == nil:
		case t.IsZero():
			j.key(k)
			j.b = append(j.b, "null"...)
		default:
			j.time(k, *t)
		}
	}
	j.open(k, '{')
	set("starts_at", op.StartsAt)
	set("ends_at", op.EndsAt)
	if op.Note != nil {
		j.key("note")
		j.quote(*op.Note)
	}
	j.flag("confirm", op.Confirm)
	j.number("if_revision", op.IfRevision)
	j.close('}')
}

func (j *auditJSON) duration(k string, d time.Duration) {
	if d != 0 {
		j.text(k, d.String())
	}
}

func (j *auditJSON) vm(k string, vm *VM) {
	if vm == nil {
		return
	}
	j.open(k, '{')
	j.text("id", vm.ID)
	j.text("name", vm.Name)
	j.text("kind", vm.Kind)
	j.text("owner", vm.Owner)
	j.prefixes("declared", vm.Declared)
	j.time("do_not_block_until", vm.DoNotBlockUntil)
	j.text("source_guard", string(vm.SourceGuard))
	if len(vm.NICs) > 0 {
		j.open("nics", '[')
		for i := range vm.NICs {
			n := &vm.NICs[i]
			j.open("", '{')
			if n.MAC != (MAC{}) {
				j.text("mac", n.MAC.String())
			}
			j.text("tap", n.Tap)
			j.text("network", n.Network)
			j.addrs("addresses", n.Addresses)
			j.close('}')
		}
		j.close(']')
	}
	j.text("node", vm.Node)
	j.text("destination", vm.Destination)
	j.text("state", string(vm.State))
	if m := vm.Migration; m != nil {
		j.open("migration", '{')
		j.text("phase", string(m.Phase))
		j.text("from", m.From)
		j.text("to", m.To)
		j.flag("cold", m.Cold)
		j.time("started_at", m.StartedAt)
		j.close('}')
	}
	j.number("epoch", vm.Epoch)
	j.number("revision", vm.Revision)
	j.close('}')
}

func (j *auditJSON) node(k string, n *Node) {
	if n == nil {
		return
	}
	j.open(k, '{')
	j.text("id", n.ID)
	j.text("name", n.Name)
	j.addrs("addresses", n.Addresses)
	j.addrs("gateways", n.Gateways)
	if len(n.MACs) > 0 {
		j.open("macs", '[')
		for _, m := range n.MACs {
			j.text("", m.String())
		}
		j.close(']')
	}
	j.prefixes("guards", n.Guards)
	j.text("version", n.Version)
	if n.Format != 0 {
		j.number("format", uint64(n.Format))
	}
	j.membership(&n.Membership)
	j.number("revision", n.Revision)
	j.close('}')
}

func (j *auditJSON) guard(k string, g *Guard) {
	if g == nil {
		return
	}
	j.open(k, '{')
	j.prefix("prefix", g.Prefix)
	j.text("vm", g.VM)
	j.text("note", g.Note)
	j.end(g.Actor, g.Revision)
}

func (j *auditJSON) account(k string, acc *Account) {
	if acc == nil {
		return
	}
	j.open(k, '{')
	j.text("id", acc.ID)
	j.time("do_not_block_until", acc.DoNotBlockUntil)
	j.text("note", acc.Note)
	j.end(acc.Actor, acc.Revision)
}

func (j *auditJSON) settings(k string, s *Settings) {
	if s == nil {
		return
	}
	j.open(k, '{')
	j.number("max_vms", s.MaxVMs)
	j.number("max_addresses", s.MaxAddresses)
	j.text("redirect_title", s.RedirectTitle)
	j.text("redirect_text", s.RedirectText)
	j.text("redirect_link", s.RedirectLink)
	j.number("voters", uint64(s.Voters))
	j.duration("replace_voter_after", s.ReplaceVoterAfter)
	j.flag("source_guard", s.SourceGuard)
	j.number("revision", s.Revision)
	j.close('}')
}

// list writes what describes a list; its content is in it as size and hash.
func (j *auditJSON) list(k string, l *List) {
	if l == nil {
		return
	}
	j.open(k, '{')
	j.text("name", l.Name)
	j.text("owner", l.Owner)
	j.text("note", l.Note)
	j.text("origin", l.Origin)
	if l.Source != (ListSource{}) {
		j.open("source", '{')
		j.text("url", l.Source.URL)
		j.duration("interval", l.Source.Interval)
		j.number("max_bytes", l.Source.MaxBytes)
		j.close('}')
	}
	j.number("size", uint64(max(l.Size, 0)))
	j.text("hash", l.Hash)
	j.time("loaded_at", l.LoadedAt)
	j.end(l.Actor, l.Revision)
}
