package fsm

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// TestAgainstModel applies random commands to three replicas and to the model. One replica gets every
// entry alone, one gets them in batches, one is restored from a snapshot now and then. All must give
// the same results and end in the same bytes.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newReplicas()
		t.Repeat(map[string]func(*rapid.T){
			"one":     func(t *rapid.T) { f.propose(t, genOp(f.blocks).Draw(t, "op")) },
			"another": func(t *rapid.T) { f.propose(t, genOp(f.blocks).Draw(t, "op")) },
			"batch": func(t *rapid.T) {
				f.propose(t, Batch{Ops: rapid.SliceOfN(genOp(f.blocks), 1, 12).Draw(t, "ops"), Atomic: rapid.Bool().Draw(t, "atomic")})
			},
			"try": func(t *rapid.T) {
				f.probe = &Command{Time: time.Unix(f.clock, 0), Actor: "token:try", Op: genOp(f.blocks).Draw(t, "op")}
			},
			"gap":     func(*rapid.T) { f.index += 3 },
			"flush":   func(t *rapid.T) { f.flush(t) },
			"restore": func(t *rapid.T) { f.restore(t) },
			"":        func(t *rapid.T) { f.check(t) },
		})
		f.flush(t)
		f.compare(t)
	})
}

type replicas struct {
	model                   *model
	single, batched, copied *Store
	pending                 []Entry
	pendingResults          []Result
	index                   uint64
	clock                   int64
	blocks                  int
	probe                   *Command // to be tried at the next check
}

func newReplicas() *replicas {
	small := limits{results: 6, over: 3, events: 16}
	return &replicas{
		model: newModel(small), single: newStore(small), batched: newStore(small), copied: newStore(small),
		clock: 1_700_000_000,
	}
}

func (f *replicas) propose(t *rapid.T, op Op) {
	f.index++
	f.clock += rapid.Int64Range(-2, 3).Draw(t, "seconds")
	c := Command{
		Time:  time.Unix(f.clock, 0),
		Actor: rapid.SampledFrom([]string{"token:a", "unix:0"}).Draw(t, "actor"),
		Key:   rapid.SampledFrom([]string{"", "", "k1", "k2", "k3", "k4", "k5", "k6"}).Draw(t, "key"),
		Op:    op,
	}
	data, err := MarshalCommand(c)
	if err != nil {
		t.Fatal(err)
	}
	entry := Entry{f.index, data}
	want := f.model.apply(f.index, c)
	f.blocks = f.model.created
	f.pending = append(f.pending, entry)
	f.pendingResults = append(f.pendingResults, want)
	for _, s := range []*Store{f.single, f.copied} {
		got, err := s.ApplyBatch([]Entry{entry})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]Result{want}, got, sameResults()); diff != "" {
			t.Fatalf("%+v (-model +store):\n%s", c, diff)
		}
	}
}

func (f *replicas) flush(t *rapid.T) {
	if len(f.pending) > 1 { // entries that come again are skipped
		f.pending = append(f.pending, f.pending[0])
		f.pendingResults = append(f.pendingResults, Result{Index: f.pending[0].Index})
	}
	got, err := f.batched.ApplyBatch(f.pending)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(f.pendingResults, got, sameResults(), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("batched (-model +store):\n%s", diff)
	}
	f.pending, f.pendingResults = nil, nil
}

func (f *replicas) restore(t *rapid.T) {
	fresh := newStore(f.copied.limits)
	from := f.copied.View()
	var b bytes.Buffer
	if err := from.WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	if err := fresh.Restore(&b); err != nil {
		t.Fatal(err)
	}
	f.copied = fresh
	if fresh.View().Hash() != from.Hash() {
		t.Fatal("the hash changed in a restore")
	}
}

// check compares the view with the model in everything that can be asked.
func (f *replicas) check(t *rapid.T) {
	v, m := f.copied.View(), f.model
	if v.Index() != m.index || !v.Time().Equal(m.time) {
		t.Fatalf("at %d %s, want %d %s", v.Index(), v.Time(), m.index, m.time)
	}
	equal := func(what string, want, got any) {
		t.Helper()
		if diff := cmp.Diff(want, got, sameResults(), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%s (-model +view):\n%s", what, diff)
		}
	}
	values := func(blocks []*Block) (out []Block) {
		for _, b := range blocks {
			out = append(out, *b)
		}
		return out
	}
	equal("blocks", m.blocks, values(slices.Collect(v.Blocks(""))))
	active := 0
	var lengths prefixLengths
	for i, b := range m.blocks {
		got, ok := v.Block(b.ID)
		if !ok {
			t.Fatalf("block %s is missing", b.ID)
		}
		equal("block", b, *got)
		equal("blocks after "+b.ID, m.blocks[i+1:], values(slices.Collect(v.Blocks(b.ID))))
		if b.State == BlockActive {
			active++
			if b.Target.Prefix.IsValid() {
				lengths.add(b.Target.Prefix)
			}
		}
		var on []Block
		for _, other := range m.blocks {
			if other.State == BlockActive && other.Target == b.Target {
				on = append(on, other)
			}
		}
		equal("active on "+b.Target.String(), on, values(slices.Collect(v.ActiveOn(b.Target))))
	}
	if v.CountBlocks() != len(m.blocks) || v.CountActive() != active || v.CountVMs() != len(m.vms) {
		t.Fatalf("counts %d %d %d", v.CountBlocks(), v.CountActive(), v.CountVMs())
	}
	if v.lengths != lengths {
		t.Fatalf("prefix lengths in use are %v, want %v", v.lengths, lengths)
	}
	vms := map[string]VM{}
	on := map[string][]string{}
	for vm := range v.VMs("") {
		vms[vm.ID] = *vm
		equal("holding "+vm.ID, m.holding(*vm), values(v.Holding(vm)))
		equal("hold count of "+vm.ID, len(m.holding(*vm)), v.HoldCounts()[vm.ID])
	}
	equal("VMs", m.vms, vms)
	for _, node := range nodeIDs() {
		for vm := range v.VMsOn(node) {
			on[node] = append(on[node], vm.ID)
		}
		var want []string
		for id, vm := range m.vms {
			if vm.Node == node || vm.Destination == node {
				want = append(want, id)
			}
		}
		slices.Sort(want)
		equal("VMs on "+node, want, on[node])
	}
	nodes := map[string]Node{}
	for n := range v.Nodes() {
		nodes[n.ID] = *n
	}
	equal("nodes", m.nodes, nodes)
	guards := map[string]Guard{}
	for g := range v.Guards() {
		guards[guardName(*g)] = *g
	}
	equal("guards", m.guards, guards)
	var guarded []netip.Prefix
	for _, g := range v.GuardedPrefixes() {
		guarded = append(guarded, g.Prefix)
	}
	slices.SortFunc(guarded, comparePrefix)
	equal("guarded prefixes", m.guardedPrefixes(), guarded)
	f.checkHolds(t, v, equal)
	f.checkAccess(t, v, equal)
	equal("events", m.events, v.events)
	if v.eventsAfter != m.after {
		t.Fatalf("the feed begins after %d, want %d", v.eventsAfter, m.after)
	}
	if got := recomputed(v); got != v.sum {
		t.Fatalf("kept hash %x, recomputed %x", v.sum, got)
	}
	if f.single.View().Hash() != v.Hash() {
		t.Fatal("hashes differ")
	}
}

// checkHolds compares what is due, accounts, settings, and who is where.
func (f *replicas) checkHolds(t *rapid.T, v *View, equal func(what string, want, got any)) {
	m := f.model
	var due []Block
	for b := range v.Due() {
		due = append(due, *b)
	}
	equal("due", m.due(), due)
	pending := 0
	for _, b := range m.blocks {
		if b.State == BlockPending {
			pending++
		}
	}
	if v.CountPending() != pending || v.CountDue() != len(due) {
		t.Fatalf("%d pending, %d due, want %d and %d", v.CountPending(), v.CountDue(), pending, len(due))
	}
	accounts := map[string]Account{}
	for a := range v.Accounts("") {
		accounts[a.ID] = *a
	}
	equal("accounts", m.accounts, accounts)
	equal("settings", m.settings, v.Settings())
	for _, owner := range []string{"o", "p"} {
		var want, got []string
		for id, vm := range m.vms {
			if vm.Owner == owner {
				want = append(want, id)
			}
		}
		slices.Sort(want)
		for vm := range v.VMsOf(owner) {
			got = append(got, vm.ID)
		}
		equal("VMs of "+owner, want, got)
	}
	for _, p := range []string{"10.0.0.0/8", "10.1.2.0/24", "10.1.2.3/32", "2001:db8::/32"} {
		var got []string
		for vm := range v.VMsWithin(netip.MustParsePrefix(p)) {
			got = append(got, vm.ID)
		}
		slices.Sort(got)
		equal("VMs within "+p, m.vmsWithin(netip.MustParsePrefix(p)), got)
	}
	if f.probe != nil { // what Try says is what Apply does, and nothing comes of it
		hash := v.Hash()
		got, _ := v.Try(*f.probe)
		if v.Hash() != hash {
			t.Fatal("a trial changed the view")
		}
		copied := m.clone()
		copied.results, copied.keys = nil, nil
		c := *f.probe
		c.Key = ""
		equal("trial", copied.apply(v.Index()+1, c), got)
		f.probe = nil
	}
}

func (f *replicas) compare(t *rapid.T) {
	want, hash := new(bytes.Buffer), f.single.View().Hash()
	if err := f.single.View().WriteSnapshot(want); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*Store{"batched": f.batched, "copied": f.copied} {
		var got bytes.Buffer
		if err := s.View().WriteSnapshot(&got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want.Bytes()) || s.View().Hash() != hash {
			t.Fatalf("the %s replica differs", name)
		}
	}
}

// recomputed is the state hash from nothing but the objects.
func recomputed(v *View) multisetHash {
	var a applier
	for n := range v.nodes.all() {
		a.sum.add(a.digest(nodeRecord(n)))
	}
	for vm := range v.vms.all() {
		a.sum.add(a.digest(vmRecord(vm)))
	}
	for b := range v.blocks.all() {
		a.sum.add(a.digest(blockRecord(b)))
	}
	for g := range v.guards.all() {
		a.sum.add(a.digest(guardRecord(g)))
	}
	for acct := range v.accounts.all() {
		a.sum.add(a.digest(accountRecord(acct)))
	}
	for l := range v.lists.all() {
		a.sum.add(a.digest(listRecord(l)))
	}
	for u := range v.uploads.all() {
		a.sum.add(a.digest(uploadRecord(u)))
	}
	if v.fleet != nil {
		a.sum.add(a.digest(fleetRecord(v.fleet)))
	}
	for t := range v.joinTokens.all() {
		a.sum.add(a.digest(joinTokenRecord(t)))
	}
	for t := range v.access.tokens.all() {
		a.sum.add(a.digest(tokenRecord(t)))
	}
	for u := range v.access.users.all() {
		a.sum.add(a.digest(userRecord(u)))
	}
	for s := range v.access.sessions.all() {
		a.sum.add(a.digest(sessionRecord(s)))
	}
	for _, m := range v.order {
		a.hashResult(m, a.sum.add)
	}
	for i := range v.events {
		a.sum.add(a.digest(eventRecord(v.firstEvent()+uint64(i), &v.events[i])))
	}
	return a.sum
}

// sameResults compares refusals by code and field: the wording is for people.
func sameResults() cmp.Option {
	return cmp.Options{
		cmpopts.IgnoreFields(Error{}, "Detail"), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{}),
	}
}

func nodeIDs() []string { return []string{"n1", "n2", "n3"} }

func genPrefix() *rapid.Generator[netip.Prefix] {
	return rapid.Map(rapid.SampledFrom([]string{
		"10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.1.2.4/32", "10.1.3.0/24",
		"2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::1/128", "127.0.0.1/32", "fe80::1/128",
	}), netip.MustParsePrefix)
}

func genAddrs() *rapid.Generator[[]netip.Addr] {
	return rapid.Map(rapid.SliceOfN(genPrefix(), 0, 2), func(in []netip.Prefix) []netip.Addr {
		var out []netip.Addr
		for _, p := range in {
			out = append(out, p.Addr())
		}
		return sortedSet(out, netip.Addr.Compare)
	})
}

func genNICs() *rapid.Generator[[]NIC] {
	return rapid.Custom(func(t *rapid.T) []NIC {
		var out []NIC
		for i := range rapid.IntRange(0, 2).Draw(t, "nics") {
			out = append(out, NIC{
				MAC: MAC{2, 0, 0, 0, byte(i), rapid.Byte().Draw(t, "mac") % 2}, Tap: fmt.Sprintf("vnet%d", i),
				Addresses: genAddrs().Draw(t, "addresses"),
			})
		}
		return out
	})
}

func genOp(blocks int) *rapid.Generator[Op] {
	vmID := rapid.SampledFrom([]string{"v1", "v2", "v3"})
	name := rapid.SampledFrom([]string{"", "web", "db", "v1"})
	revision := rapid.SampledFrom([]uint64{0, 0, 0, 1, 5})
	return rapid.Custom(func(t *rapid.T) Op {
		switch rapid.IntRange(0, 19).Draw(t, "kind") {
		case 0:
			return AddBlock{Target: Target{Prefix: genPrefix().Draw(t, "prefix")}, Reason: "abuse", Force: true}
		case 1:
			ref := rapid.SampledFrom([]string{"v1", "v2", "v3", "web", "db", "none"})
			return AddBlock{Target: Target{VM: ref.Draw(t, "vm")}, Reason: "unpaid", Note: "a\nb"}
		case 10, 11:
			return genHold().Draw(t, "hold")
		case 12:
			return LiftReason{Target: genTarget().Draw(t, "target"), Reason: rapid.SampledFrom([]string{"unpaid", "abuse", ""}).Draw(t, "reason")}
		case 13:
			op := PatchBlock{ID: FormatBlockID(uint64(rapid.IntRange(1, blocks+1).Draw(t, "block"))), IfRevision: revision.Draw(t, "revision")}
			if rapid.Bool().Draw(t, "start") {
				op.StartsAt = new(genTime().Draw(t, "start"))
			}
			if rapid.Bool().Draw(t, "end") {
				op.EndsAt = new(genTime().Draw(t, "end"))
			}
			if rapid.Bool().Draw(t, "note") {
				op.Note = new("changed")
			}
			op.Confirm = rapid.Bool().Draw(t, "confirm")
			return op
		case 14:
			return FireBlock{
				ID:       FormatBlockID(uint64(rapid.IntRange(1, blocks+1).Draw(t, "block"))),
				Revision: rapid.Uint64Range(1, 20).Draw(t, "revision"), At: genTime().Draw(t, "at"),
			}
		case 15:
			return PutAccount{
				ID: rapid.SampledFrom([]string{"o", "p"}).Draw(t, "account"), DoNotBlockUntil: genTime().Draw(t, "until"),
				Note: name.Draw(t, "note"), IfRevision: revision.Draw(t, "revision"),
			}
		case 16:
			if rapid.Bool().Draw(t, "settings") {
				s := DefaultSettings()
				s.MaxVMs, s.MaxAddresses = rapid.Uint64Range(0, 2).Draw(t, "VMs"), rapid.SampledFrom([]uint64{0, 1, 256, 1 << 24}).Draw(t, "addresses")
				s.Voters = rapid.SampledFrom([]uint32{0, 1, 2, 5, 9}).Draw(t, "voters")
				s.ReplaceVoterAfter = rapid.SampledFrom([]time.Duration{0, time.Second, time.Hour, 1 << 62}).Draw(t, "replace after")
				s.SourceGuard = rapid.Bool().Draw(t, "source guard")
				return PutSettings{Settings: s, IfRevision: revision.Draw(t, "revision")}
			}
			vm := rapid.SampledFrom([]string{"v1", "v2", "web"}).Draw(t, "vm")
			if rapid.Bool().Draw(t, "put") {
				return PutGuard{VM: vm, Note: name.Draw(t, "note")}
			}
			return DeleteGuard{VM: vm}
		case 17, 18, 19:
			return genAccess().Draw(t, "access")
		case 2, 3:
			id := FormatBlockID(uint64(rapid.IntRange(1, blocks+1).Draw(t, "block")))
			return LiftBlock{ID: id, IfRevision: revision.Draw(t, "revision")}
		case 4:
			return DeclareVM{
				ID: vmID.Draw(t, "vm"), Name: name.Draw(t, "name"),
				Owner: rapid.SampledFrom([]string{"", "o", "p"}).Draw(t, "owner"), DoNotBlockUntil: genTime().Draw(t, "until"),
				Addresses:   rapid.SliceOfN(genPrefix(), 0, 3).Draw(t, "addresses"),
				SourceGuard: rapid.SampledFrom(sourceGuards()).Draw(t, "source guard"),
				IfRevision:  revision.Draw(t, "revision"),
			}
		case 5, 6:
			return ObserveVM{
				ID: vmID.Draw(t, "vm"), Name: name.Draw(t, "name"), Kind: "kvm",
				Node:  rapid.SampledFrom(nodeIDs()).Draw(t, "node"),
				Phase: rapid.SampledFrom(phases()).Draw(t, "phase"),
				NICs:  genNICs().Draw(t, "nics"), Epoch: rapid.Uint64Range(0, 4).Draw(t, "epoch"),
				Migration: rapid.SampledFrom([]MigrationPhase{"", "", MigrationArmed, MigrationSettled, MigrationLive}).Draw(t, "migration"),
			}
		case 7:
			return PutNode{Node{
				ID: rapid.SampledFrom(nodeIDs()).Draw(t, "node"), Name: name.Draw(t, "name"),
				Addresses: genAddrs().Draw(t, "addresses"), Gateways: genAddrs().Draw(t, "gateways"),
				MACs: []MAC{{2, 1}},
			}}
		case 8:
			return PutGuard{Prefix: genPrefix().Draw(t, "prefix"), Note: name.Draw(t, "note")}
		default:
			return DeleteGuard{Prefix: genPrefix().Draw(t, "prefix")}
		}
	})
}

// genTime is around the time in which the tests run, or none.
func genTime() *rapid.Generator[time.Time] {
	return rapid.Custom(func(t *rapid.T) time.Time {
		seconds := rapid.Int64Range(-1, 30).Draw(t, "seconds")
		if seconds < 0 {
			return time.Time{}
		}
		return time.Unix(1_700_000_000+seconds, 0)
	})
}

func genTarget() *rapid.Generator[Target] {
	return rapid.Custom(func(t *rapid.T) Target {
		switch rapid.IntRange(0, 2).Draw(t, "target") {
		case 0:
			return Target{VM: rapid.SampledFrom([]string{"v1", "v2", "web"}).Draw(t, "vm")}
		case 1:
			return Target{Account: rapid.SampledFrom([]string{"o", "p"}).Draw(t, "account")}
		}
		return Target{Prefix: genPrefix().Draw(t, "prefix")}
	})
}

// genHold is a block with times and a kind.
func genHold() *rapid.Generator[AddBlock] {
	return rapid.Custom(func(t *rapid.T) AddBlock {
		op := AddBlock{
			Target: genTarget().Draw(t, "target"), Reason: rapid.SampledFrom([]string{"unpaid", "abuse"}).Draw(t, "reason"),
			StartsAt: genTime().Draw(t, "start"), Force: rapid.Bool().Draw(t, "force"),
			Direction:     rapid.SampledFrom([]Direction{"", In, Out}).Draw(t, "direction"),
			ConfirmWithin: time.Duration(rapid.Int64Range(0, 5).Draw(t, "confirm")) * time.Second,
		}
		if rapid.Bool().Draw(t, "until") {
			op.EndsAt = genTime().Draw(t, "end")
		} else {
			op.Duration = time.Duration(rapid.Int64Range(0, 9).Draw(t, "duration")) * time.Second
		}
		switch rapid.IntRange(0, 2).Draw(t, "parameters") {
		case 0:
			op.Kind, op.Rate = Limit, Rate{Bits: 1_000_000}
		case 1:
			op.Kind, op.Ports = Ports, []PortRange{{Protocol: 6, First: 25, Last: 25}}
		}
		return op
	})
}
