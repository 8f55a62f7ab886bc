package fsm

import (
	"net/netip"
	"slices"
	"sort"
	"time"
)

// model is the state machine as plain maps and scans: slow, and too simple to be wrong in the ways
// in which the real one could be.
type model struct {
	limits   limits
	index    uint64
	time     time.Time
	actor    string
	nodes    map[string]Node
	vms      map[string]VM
	guards   map[string]Guard // by guardName
	accounts map[string]Account
	settings Settings
	access   modelAccess
	blocks   []Block // by number; forgotten ones are gone
	created  int
	events   []Event
	after    uint64
	results  map[[2]string]modelResult
	keys     [][2]string // oldest first
}

type modelResult struct {
	op     string // encoded
	result Result
}

func newModel(l limits) *model {
	return &model{
		limits: l, nodes: map[string]Node{}, vms: map[string]VM{}, guards: map[string]Guard{}, accounts: map[string]Account{}, settings: DefaultSettings(), access: newModelAccess(),
		results: map[[2]string]modelResult{},
	}
}

func (m *model) apply(index uint64, c Command) Result {
	m.index, m.actor = index, c.Actor
	if c.Time.After(m.time) {
		m.time = c.Time.UTC()
	}
	if c.Key == "" {
		return m.op(c.Op)
	}
	encoded, err := MarshalCommand(Command{Op: c.Op})
	if err != nil {
		panic(err)
	}
	id := [2]string{c.Actor, c.Key}
	if known, ok := m.results[id]; ok {
		if known.op != string(encoded) {
			return Result{Index: index, Err: &Error{Code: CodeKeyReused, Field: "key"}}
		}
		r := known.result
		r.Replayed = true
		return r
	}
	r := m.op(c.Op)
	m.results[id] = modelResult{string(encoded), r}
	m.keys = append(m.keys, id)
	if len(m.keys) > m.limits.results {
		delete(m.results, m.keys[0])
		m.keys = m.keys[1:]
	}
	return r
}

func (m *model) op(op Op) Result {
	r := Result{Index: m.index}
	no := func(code Code, field string) Result {
		r.Err = &Error{Code: code, Field: field}
		return r
	}
	switch op := op.(type) {
	case Batch:
		before := m.clone()
		for i, item := range op.Ops {
			r.Items = append(r.Items, m.op(item))
			if !op.Atomic || r.Items[i].Err == nil {
				continue
			}
			failed := r.Items[i]
			*m = before
			r.Items = make([]Result, len(op.Ops))
			for k := range r.Items {
				r.Items[k] = Result{Index: m.index, Err: &Error{Code: CodeAborted}}
			}
			r.Items[i] = failed
			break
		}
	case AddBlock, LiftBlock, LiftReason, PatchBlock, FireBlock:
		return m.blockOp(op)
	case PutAccount:
		return m.putAccount(op)
	case CreateToken, DeleteToken, PutUser, DeleteUser, CreateSession, TouchSession, EndSessions, RefusedLogins:
		return m.accessOp(op)
	case PutSettings:
		if op.IfRevision != 0 && op.IfRevision != m.settings.Revision {
			return no(CodeRevision, "if_revision")
		}
		if !slices.Contains([]int{1, 3, 5, 7}, op.Settings.WantedVoters()) {
			return no(CodeInvalid, "voters")
		}
		if d := op.Settings.ReplaceVoterAfter; d != 0 && (d < 10*time.Second || d > 720*time.Hour) {
			return no(CodeInvalid, "replace_voter_after")
		}
		is := op.Settings
		if is.Revision = m.settings.Revision; is != m.settings {
			is.Revision = m.index
			m.settings = is
			m.emit(Event{Type: EventSettings, Settings: &is})
		}
		r.Settings = &is
	case DeclareVM:
		for _, p := range op.Addresses {
			if slices.ContainsFunc(m.fixedGuards(), p.Overlaps) && !isLinkLocal(p) {
				return no(CodeGuardConflict, "addresses")
			}
		}
		was, known := m.vms[op.ID]
		if op.IfRevision != 0 && op.IfRevision != was.Revision {
			return no(CodeRevision, "if_revision")
		}
		vm := was
		if !known {
			vm = VM{ID: op.ID, State: VMDeclared}
		}
		if op.Name != "" {
			vm.Name = op.Name
		}
		vm.Owner, vm.Declared = op.Owner, sortedSet(op.Addresses, comparePrefix)
		vm.DoNotBlockUntil = op.DoNotBlockUntil.UTC()
		if op.DoNotBlockUntil.IsZero() {
			vm.DoNotBlockUntil = time.Time{}
		}
		if op.SourceGuard != "" {
			vm.SourceGuard = map[SourceGuard]SourceGuard{"on": "on", "off": "off"}[op.SourceGuard]
		}
		if _, guarded := m.guards[guardName(Guard{VM: op.ID})]; guarded {
			for _, b := range m.blocks {
				for _, p := range vm.Declared {
					if !b.State.Over() && inside(b.Target.Prefix, p) && !slices.Contains(was.Declared, p) {
						return no(CodeGuardConflict, "addresses")
					}
				}
			}
		}
		r.VM = m.putVM(was, vm, known, EventVMDeclared)
		if r.VM.Revision == m.index && (!known || !equalVMs(&was, r.VM)) {
			m.postpone(Target{VM: vm.ID})
			if vm.Owner != "" {
				m.postpone(Target{Account: vm.Owner})
			}
		}
	case ObserveVM:
		return m.observe(op)
	case PutNode:
		n := op.Node
		n.Revision = m.nodes[n.ID].Revision
		was, known := m.nodes[n.ID]
		if !known || !equalNodes(&was, &n) {
			n.Revision = m.index
			m.nodes[n.ID] = n
			m.emit(Event{Type: EventNodeChanged, Node: &n})
		}
		r.Node = &n
	case PutGuard:
		id := op.VM
		if id != "" {
			if _, known := m.guards[guardName(Guard{VM: id})]; !known {
				ids := m.resolve(id)
				switch {
				case len(ids) == 0:
					return no(CodeNotFound, "vm")
				case len(ids) > 1:
					return no(CodeAmbiguous, "vm")
				}
				id = ids[0]
			}
		}
		is := Guard{Prefix: op.Prefix, VM: id, Note: op.Note, Actor: m.actor, Revision: m.index}
		for _, b := range m.blocks {
			field := "prefix"
			held := inside(b.Target.Prefix, op.Prefix)
			if id != "" {
				vm := m.vms[id]
				field, held = "vm", b.Target.VM == id
				for _, p := range vm.AllAddresses() {
					held = held || inside(b.Target.Prefix, p)
				}
			}
			if held && !b.State.Over() {
				return no(CodeConflict, field)
			}
		}
		g, known := m.guards[guardName(is)]
		if !known || g.Note != op.Note {
			g = is
			m.guards[guardName(is)] = g
			m.emit(Event{Type: EventGuardAdded, Guard: &g})
		}
		r.Guard = &g
	case DeleteGuard:
		name, field := guardName(Guard{Prefix: op.Prefix, VM: op.VM}), "prefix"
		g, known := m.guards[name]
		if op.VM != "" && !known {
			field = "vm"
			ids := m.resolve(op.VM)
			switch {
			case len(ids) == 0:
				return no(CodeNotFound, "vm")
			case len(ids) > 1:
				return no(CodeAmbiguous, "vm")
			}
			name = guardName(Guard{VM: ids[0]})
			g, known = m.guards[name]
		}
		if !known {
			return no(CodeNotFound, field)
		}
		delete(m.guards, name)
		m.emit(Event{Type: EventGuardRemoved, Guard: &g})
		r.Guard = &g
	}
	return r
}

func guardName(g Guard) string {
	if g.VM != "" {
		return "vm " + g.VM
	}
	return g.Prefix.String()
}

// observe is the table of what a report of a VM means. Only what it says of the place is modelled;
// taps and NICs are those of the report while the VM runs.
func (m *model) observe(op ObserveVM) Result {
	r := Result{Index: m.index}
	no := func(code Code, field string) Result {
		r.Err = &Error{Code: code, Field: field}
		return r
	}
	was, known := m.vms[op.ID]
	here, there := op.Node == was.Node, op.Node == was.Destination
	ends := op.Phase == PhaseGone || op.Phase == PhaseStopped
	alive := was.State == VMRunning || was.State == VMMigrating
	flying := was.State == VMMigrating
	claim := op.Epoch > was.Epoch
	switch {
	case op.Epoch == 0:
		return no(CodeInvalid, "epoch")
	case op.Migration == MigrationArmed && op.Phase != PhaseIncoming, op.Migration == MigrationSettled && !ends,
		op.Migration != "" && op.Migration != MigrationArmed && op.Migration != MigrationSettled:
		return no(CodeInvalid, "migration")
	case !known && op.Phase == PhaseGone:
		return no(CodeNotFound, "id")
	case op.Migration == MigrationSettled:
		if was.Migration == nil || was.Migration.Phase != MigrationLive || was.Migration.From != op.Node || claim || op.Epoch != was.Epoch {
			return no(CodeStale, "migration")
		}
		vm := was
		vm.Migration = &Migration{Phase: MigrationSettled, From: was.Migration.From, To: was.Migration.To, StartedAt: was.Migration.StartedAt, ChangedAt: m.time}
		r.VM = m.putVM(was, vm, known, EventVMMigration)
		return r
	case op.Epoch < was.Epoch, !claim && !here && !there, ends && alive && !here && !there:
		return no(CodeStale, "epoch")
	}
	vm := was
	if !known {
		vm = VM{ID: op.ID, State: VMDeclared}
	}
	if op.Name != "" {
		vm.Name = op.Name
	}
	vm.Kind, vm.Epoch = op.Kind, op.Epoch
	event := EventVMObserved
	switch {
	case op.Phase == PhaseRunning && flying && here && !claim:
		vm.NICs = op.NICs
	case op.Phase == PhaseRunning:
		vm.NICs, vm.Node, vm.Destination, vm.State = op.NICs, op.Node, "", VMRunning
		if was.Node != "" && !here {
			event = EventVMMoved
		}
	case op.Phase == PhaseIncoming:
		for _, n := range op.NICs {
			if !slices.ContainsFunc(was.NICs, func(k NIC) bool { return k.MAC == n.MAC }) {
				n.Tap = ""
				vm.NICs = append(slices.Clone(vm.NICs), n)
			}
		}
		sort.Slice(vm.NICs, func(i, j int) bool { return compareNIC(vm.NICs[i], vm.NICs[j]) < 0 })
		if !here {
			vm.Destination, vm.State = op.Node, VMMigrating
			if !there {
				event = EventVMMigrating
			}
		}
	case flying && there && op.Phase == PhaseStopped && was.Migration.Cold:
		vm.Node, vm.Destination, vm.State, event = op.Node, "", VMStopped, EventVMMoved
		vm.NICs = landed(vm.NICs, op.NICs)
	case flying && there && was.Node == "":
		vm.Destination, vm.State = "", VMDeclared
	case flying && there && was.Migration.Cold:
		vm.Destination, vm.State = "", VMStopped
	case flying && there:
		vm.Destination, vm.State = "", VMRunning
	case flying && here && !claim:
	case op.Phase == PhaseGone && !here:
	default:
		vm.NICs = landed(vm.NICs, op.NICs)
		vm.Node, vm.Destination, vm.State = op.Node, "", VMStopped
		if was.Node != "" && !here {
			event = EventVMMoved
		}
	}
	// What a phase follows from has a table of its own, in migration_test.go.
	if vm.Migration = migrate(&was, &vm, op, m.time); event == EventVMObserved && !sameMigration(was.Migration, vm.Migration) {
		event = EventVMMigration
	}
	r.VM = m.putVM(was, vm, known, event)
	return r
}

// landed are the interfaces of a VM that does not run.
func landed(known, said []NIC) []NIC {
	if len(said) > 0 {
		known = said
	}
	known = slices.Clone(known)
	for i := range known {
		known[i].Tap = ""
	}
	return known
}

func (m *model) putVM(was, vm VM, known bool, event EventType) *VM {
	if !known || !equalVMs(&was, &vm) {
		vm.Revision = m.index
		m.vms[vm.ID] = vm
		m.emit(Event{Type: event, VM: &vm})
	}
	return &vm
}

func (m *model) emit(e Event) {
	e.Index, e.Time, e.Actor = m.index, m.time, m.actor
	m.events = append(m.events, e)
	if len(m.events) > m.limits.events {
		m.after = m.events[0].Index
		m.events = m.events[1:]
	}
}

func (m *model) resolve(ref string) []string {
	if _, ok := m.vms[ref]; ok {
		return []string{ref}
	}
	var ids []string
	for id, vm := range m.vms {
		if vm.Name == ref {
			ids = append(ids, id)
		}
	}
	return ids
}

func (m *model) fixedGuards() []netip.Prefix {
	var all []netip.Prefix
	for _, g := range BuiltinGuards() {
		all = append(all, g.Prefix)
	}
	for _, n := range m.nodes {
		for _, a := range append(slices.Clone(n.Addresses), n.Gateways...) {
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
		}
		all = append(all, n.Guards...)
	}
	for _, g := range m.guards {
		if g.VM == "" {
			all = append(all, g.Prefix)
		}
	}
	return all
}

func (m *model) guardedPrefixes() []netip.Prefix {
	all := m.fixedGuards()
	for _, g := range m.guards {
		if vm, ok := m.vms[g.VM]; ok {
			all = append(all, vm.AllAddresses()...)
		}
	}
	slices.SortFunc(all, comparePrefix)
	return all
}

func (m *model) guarded(p netip.Prefix) bool {
	return slices.ContainsFunc(m.guardedPrefixes(), p.Overlaps)
}

func inside(p, of netip.Prefix) bool {
	return p.IsValid() && of.Contains(p.Addr()) && p.Bits() >= of.Bits()
}
