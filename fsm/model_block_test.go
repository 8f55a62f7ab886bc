package fsm

import (
	"maps"
	"net/netip"
	"slices"
	"sort"
	"time"
)

// clone copies what a batch can change.
func (m *model) clone() model {
	c := *m
	c.nodes, c.vms, c.guards, c.accounts = maps.Clone(m.nodes), maps.Clone(m.vms), maps.Clone(m.guards), maps.Clone(m.accounts)
	c.access = m.access.clone()
	c.blocks, c.events = slices.Clone(m.blocks), slices.Clone(m.events)
	return c
}

// blockOp is what the ops on blocks do, by scans over all blocks.
func (m *model) blockOp(op Op) Result {
	r := Result{Index: m.index}
	no := func(code Code, field string) Result {
		r.Err = &Error{Code: code, Field: field}
		return r
	}
	find := func(id string) (int, *Result) {
		i := slices.IndexFunc(m.blocks, func(b Block) bool { return b.ID == id })
		switch {
		case i < 0:
			return 0, new(no(CodeNotFound, "id"))
		case m.blocks[i].State.Over():
			return 0, new(no(CodeConflict, "id"))
		}
		return i, nil
	}
	switch op := op.(type) {
	case AddBlock:
		return m.addBlock(op)
	case LiftBlock:
		i, wrong := find(op.ID)
		switch {
		case wrong != nil:
			return *wrong
		case op.IfRevision != 0 && op.IfRevision != m.blocks[i].Revision:
			return no(CodeRevision, "if_revision")
		}
		r.Block = m.end(op.ID, BlockLifted, m.actor, m.time)
	case LiftReason:
		if op.Reason == "" {
			return no(CodeInvalid, "reason")
		}
		target := op.Target
		if target.VM != "" {
			ids := m.resolve(target.VM)
			switch {
			case len(ids) == 0:
				return no(CodeNotFound, "target.vm")
			case len(ids) > 1:
				return no(CodeAmbiguous, "target.vm")
			}
			target.VM = ids[0]
		}
		var ids []string
		for _, state := range []BlockState{BlockActive, BlockPending} {
			for _, b := range m.blocks {
				if b.Target == target && b.Reason == op.Reason && b.State == state {
					ids = append(ids, b.ID)
				}
			}
		}
		if len(ids) == 0 {
			return no(CodeNotFound, "reason")
		}
		for _, id := range ids {
			r.Items = append(r.Items, Result{Index: m.index, Block: m.end(id, BlockLifted, m.actor, m.time)})
		}
	case FireBlock:
		i, wrong := find(op.ID)
		if wrong != nil {
			return *wrong
		}
		b := m.blocks[i]
		switch due := b.Due(); {
		case op.Revision != b.Revision:
			return no(CodeRevision, "revision")
		case due.IsZero() || op.At.Before(due):
			return no(CodeConflict, "at")
		case b.State == BlockActive && b.ConfirmBy.Equal(due):
			r.Block = m.end(b.ID, BlockEnded, ByNoConfirmation, op.At.UTC())
		case b.State == BlockActive:
			r.Block = m.end(b.ID, BlockEnded, ByDueTime, op.At.UTC())
		default:
			b.State, b.StartedAt, b.Index, b.Revision = BlockActive, op.At.UTC(), m.index, m.index
			r.Block = m.change(i, b, EventBlockStarted)
		}
	case PatchBlock:
		i, wrong := find(op.ID)
		if wrong != nil {
			return *wrong
		}
		if op.IfRevision != 0 && op.IfRevision != m.blocks[i].Revision {
			return no(CodeRevision, "if_revision")
		}
		return m.patch(i, op)
	}
	return r
}

func (m *model) patch(i int, op PatchBlock) Result {
	r := Result{Index: m.index}
	no := func(code Code, field string) Result {
		r.Err = &Error{Code: code, Field: field}
		return r
	}
	was := m.blocks[i]
	b, event := was, EventBlockChanged
	if op.Note != nil {
		b.Note = *op.Note
	}
	if op.Confirm {
		b.ConfirmBy = time.Time{}
	}
	if op.StartsAt != nil {
		start := op.StartsAt.UTC()
		if start.Before(m.time) {
			start = m.time
		}
		switch {
		case b.State != BlockPending:
			return no(CodeConflict, "starts_at")
		case b.Reason == ReasonUnpaid && start.Before(m.until(b.Target)):
			return no(CodeNotYet, "reason")
		}
		if !b.ConfirmBy.IsZero() {
			b.ConfirmBy = b.ConfirmBy.Add(start.Sub(b.StartsAt))
		}
		if b.StartsAt = start; start.Equal(m.time) {
			b.State, b.StartedAt, b.Index, event = BlockActive, start, m.index, EventBlockStarted
		}
	}
	if op.EndsAt != nil {
		if b.EndsAt = op.EndsAt.UTC(); op.EndsAt.IsZero() {
			b.EndsAt = time.Time{}
		}
	}
	ends := !b.EndsAt.IsZero()
	switch {
	case was.State == BlockPending && ends && !b.EndsAt.After(b.StartsAt):
		return no(CodeInvalid, "ends_at")
	case equalBlocks(&was, &b):
		r.Block = &b
	default:
		b.Revision = m.index
		r.Block = m.change(i, b, event)
	}
	return r
}

func (m *model) addBlock(op AddBlock) Result {
	r := Result{Index: m.index}
	no := func(code Code, field string) Result {
		r.Err = &Error{Code: code, Field: field}
		return r
	}
	target := op.Target
	switch {
	case target.VM != "":
		ids := m.resolve(op.Target.VM)
		switch {
		case len(ids) == 0:
			return no(CodeNotFound, "target.vm")
		case len(ids) > 1:
			return no(CodeAmbiguous, "target.vm")
		}
		target = Target{VM: ids[0]}
		if _, guarded := m.guards[guardName(Guard{VM: target.VM})]; guarded {
			return no(CodeGuardConflict, "target.vm")
		}
	case target.Prefix.IsValid() && m.guarded(op.Target.Prefix):
		return no(CodeGuardConflict, "target.prefix")
	}
	b := Block{
		Target: target, Kind: op.Kind, Direction: op.Direction, Rate: op.Rate, Ports: op.Ports,
		Reason: op.Reason, Note: op.Note, Actor: m.actor, State: BlockActive, CreatedAt: m.time,
		Index: m.index, Revision: m.index,
	}
	if b.Kind == "" {
		b.Kind = Drop
	}
	if b.Direction == "" {
		b.Direction = Both
	}
	start := m.time
	if op.StartsAt.After(m.time) {
		start, b.State, b.StartsAt = op.StartsAt.UTC(), BlockPending, op.StartsAt.UTC()
	}
	switch {
	case op.Duration != 0:
		b.EndsAt = start.Add(op.Duration)
	case !op.EndsAt.IsZero():
		if b.EndsAt = op.EndsAt.UTC(); !b.EndsAt.After(start) {
			return no(CodeInvalid, "ends_at")
		}
	}
	if op.ConfirmWithin != 0 {
		b.ConfirmBy = start.Add(op.ConfirmWithin)
	}
	if b.Reason == ReasonUnpaid && start.Before(m.until(target)) {
		return no(CodeNotYet, "reason")
	}
	if op.ConfirmWithin == 0 && !op.Force && m.tooMany(target) {
		return no(CodeTooMany, "target")
	}
	m.created++
	b.ID = FormatBlockID(uint64(m.created))
	m.blocks = append(m.blocks, b)
	m.emit(Event{Type: EventBlockAdded, Block: &b})
	r.Block = &b
	return r
}

func (m *model) tooMany(t Target) bool {
	var touched uint64
	for id, vm := range m.vms {
		_, guarded := m.guards[guardName(Guard{VM: id})]
		hit := t.Account != "" && vm.Owner == t.Account
		for _, p := range vm.AllAddresses() {
			hit = hit || t.Prefix.IsValid() && t.Prefix.Overlaps(p)
		}
		if hit && !guarded {
			touched++
		}
	}
	size := uint64(1)
	if t.Prefix.IsValid() {
		for bits := t.Prefix.Bits(); bits < 32 || t.Prefix.Addr().Is6() && bits < 64; bits++ {
			size *= 2
		}
	}
	return touched > m.settings.MaxVMs && t.VM == "" || size > m.settings.MaxAddresses && t.Prefix.IsValid()
}

func (m *model) until(t Target) (until time.Time) {
	later := func(at time.Time) {
		if at.After(until) {
			until = at
		}
	}
	if vm, ok := m.vms[t.VM]; ok {
		later(vm.DoNotBlockUntil)
		later(m.accounts[vm.Owner].DoNotBlockUntil)
	}
	if t.Account != "" {
		later(m.accounts[t.Account].DoNotBlockUntil)
		for _, vm := range m.vms {
			if vm.Owner == t.Account {
				later(vm.DoNotBlockUntil)
			}
		}
	}
	return until
}

func (m *model) postpone(t Target) {
	until := m.until(t)
	for i, b := range m.blocks {
		if b.Target != t || b.State != BlockPending || b.Reason != ReasonUnpaid || !b.StartsAt.Before(until) {
			continue
		}
		if !b.ConfirmBy.IsZero() {
			b.ConfirmBy = until.Add(b.ConfirmBy.Sub(b.StartsAt))
		}
		if !b.EndsAt.IsZero() && !b.EndsAt.After(until) {
			b.EndsAt = until.Add(b.EndsAt.Sub(b.StartsAt))
		}
		b.StartsAt, b.Revision = until, m.index
		m.change(i, b, EventBlockChanged)
	}
}

func (m *model) putAccount(op PutAccount) Result {
	r := Result{Index: m.index}
	was, known := m.accounts[op.ID]
	if op.IfRevision != 0 && op.IfRevision != was.Revision {
		r.Err = &Error{Code: CodeRevision, Field: "if_revision"}
		return r
	}
	is := Account{ID: op.ID, DoNotBlockUntil: op.DoNotBlockUntil.UTC(), Note: op.Note, Actor: m.actor, Revision: m.index}
	if op.DoNotBlockUntil.IsZero() {
		is.DoNotBlockUntil = time.Time{}
	}
	nothing := is.DoNotBlockUntil.IsZero() && is.Note == ""
	switch {
	case known && was.Note == is.Note && was.DoNotBlockUntil.Equal(is.DoNotBlockUntil):
		r.Account = &was
		return r
	case nothing && !known:
		r.Account = &Account{ID: op.ID}
		return r
	case nothing:
		is = Account{ID: op.ID}
		delete(m.accounts, op.ID)
	default:
		m.accounts[op.ID] = is
	}
	r.Account = &is
	m.emit(Event{Type: EventAccountChanged, Account: &is})
	m.postpone(Target{Account: op.ID})
	for _, id := range slices.Sorted(maps.Keys(m.vms)) {
		if m.vms[id].Owner == op.ID {
			m.postpone(Target{VM: id})
		}
	}
	return r
}

func (m *model) change(i int, b Block, event EventType) *Block {
	m.blocks[i] = b
	m.emit(Event{Type: event, Block: &b})
	return &b
}

func (m *model) end(id string, state BlockState, by string, at time.Time) *Block {
	i := slices.IndexFunc(m.blocks, func(b Block) bool { return b.ID == id })
	b := m.blocks[i]
	b.State, b.LiftedAt, b.LiftedBy, b.Index, b.Revision = state, at, by, m.index, m.index
	event := EventBlockLifted
	if state == BlockEnded {
		event = EventBlockEnded
	}
	ended := m.change(i, b, event)
	m.forget()
	return ended
}

func (m *model) forget() {
	var over []Block
	for _, b := range m.blocks {
		if b.State.Over() {
			over = append(over, b)
		}
	}
	if len(over) <= m.limits.over {
		return
	}
	sort.SliceStable(over, func(i, j int) bool { return over[i].Index < over[j].Index })
	oldest := over[0]
	m.blocks = slices.DeleteFunc(m.blocks, func(b Block) bool { return b.ID == oldest.ID })
	m.emit(Event{Type: EventBlockForgotten, Block: &oldest})
}

func (m *model) holding(vm VM) []Block {
	var out []Block
	for _, b := range m.blocks {
		if b.State != BlockActive {
			continue
		}
		holds := b.Target.VM == vm.ID || vm.Owner != "" && b.Target.Account == vm.Owner
		for _, p := range vm.AllAddresses() {
			holds = holds || b.Target.Prefix.IsValid() && b.Target.Prefix.Overlaps(p)
		}
		if holds {
			out = append(out, b)
		}
	}
	return out
}

func (m *model) due() []Block {
	var out []Block
	for _, b := range m.blocks {
		if !b.Due().IsZero() {
			out = append(out, b)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Due().Before(out[j].Due()) })
	return out
}

func (m *model) vmsWithin(p netip.Prefix) []string {
	var ids []string
	for id, vm := range m.vms {
		if slices.ContainsFunc(vm.AllAddresses(), p.Overlaps) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
