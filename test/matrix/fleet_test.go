package matrix_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
)

// fleet is the replicated state, and what each node makes of it in its kernel.
type fleet struct {
	t     testing.TB
	store *fsm.Store
	index uint64
	nodes []*enforcer
}

// enforcer is a node without the rest of its agent.
type enforcer struct {
	local    enforce.Local
	compiler *enforce.Compiler
	kernel   *nft.Kernel
	lists    *nft.Lists
}

func newFleet(t testing.TB, b *bed) *fleet {
	t.Helper()
	f := &fleet{t: t, store: fsm.NewStore()}
	var ops []fsm.Op
	for i, ns := range []netNS{b.n1, b.n2} {
		o := nft.Options{NetNS: ns.fd, ExactSize: 1024, MaskedSize: 64, TapSize: 64}
		k, err := nft.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Close() })
		lists, err := nft.OpenLists(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = lists.Close() })
		id := []string{"n1", "n2"}[i]
		n := &enforcer{local: enforce.Local{Node: id, PagePort: 8081}, compiler: enforce.NewCompiler(), kernel: k, lists: lists}
		registered := fsm.Node{ID: id}
		for _, p := range b.topologies {
			vms := map[string]*end{"held": p.held, "free": p.free, "near": p.others[near]}
			if i == 1 {
				vms = map[string]*end{"far": p.others[far]}
			}
			for role, e := range vms {
				vm, nics := vmID(p, role), []fsm.NIC{p.nic(e)}
				n.local.NICs = n.local.NICs.With(vm, nics)
				ops = append(ops, fsm.DeclareVM{ID: vm, Owner: "acct-" + vm},
					fsm.ObserveVM{ID: vm, Name: vm, Kind: "netns", Node: id, Phase: fsm.PhaseRunning, Epoch: 1, NICs: nics})
			}
			if host := p.nodeAt[p.held]; i == 0 && p.switched[near] && !p.device {
				for _, e := range vms {
					n.local.Bridges = n.local.Bridges.With(e.tap, fsm.MAC(host.mac))
				}
			}
			for _, host := range p.nodeAt {
				if i == 0 {
					registered.Addresses = append(registered.Addresses, host.v4, host.v6)
					registered.MACs = append(registered.MACs, fsm.MAC(host.mac))
				}
			}
		}
		ops = append([]fsm.Op{fsm.PutNode{Node: registered}}, ops...)
		f.nodes = append(f.nodes, n)
		if _, err := k.Adopt(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, at := range []interface {
			SetDevices(ctx context.Context, list []nft.Device) error
		}{k, lists} {
			if err := at.SetDevices(t.Context(), b.devices(ns)); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.commit(f.nodes, ops...)
	return f
}

func vmID(p *topology, role string) string {
	return strings.NewReplacer(" ", "-", ",", "").Replace(p.name) + ":" + role
}

// commit applies ops as one log entry, and brings them to the kernels of some nodes. It returns the blocks
// among the results.
func (f *fleet) commit(on []*enforcer, ops ...fsm.Op) []*fsm.Block {
	f.t.Helper()
	f.index++
	data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(int64(f.index), 0), Actor: "test", Op: fsm.Batch{Ops: ops}})
	if err != nil {
		f.t.Fatal(err)
	}
	results, err := f.store.ApplyBatch([]fsm.Entry{{Index: f.index, Data: data}})
	if err != nil {
		f.t.Fatal(err)
	}
	var blocks []*fsm.Block
	for _, r := range results[0].Items {
		if r.Err != nil {
			f.t.Fatal(r.Err)
		}
		if r.Block != nil {
			blocks = append(blocks, r.Block)
		}
	}
	f.bring(on)
	return blocks
}

func (f *fleet) bring(on []*enforcer) {
	f.t.Helper()
	for _, n := range on {
		view := f.store.View()
		if err := n.kernel.Apply(f.t.Context(), n.compiler.Reset(view, n.local)); err != nil {
			f.t.Fatal(err)
		}
		if err := n.lists.Bring(f.t.Context(), nft.ListChange{Lists: enforce.CompileLists(view, n.local), Index: f.index, Remove: true}); err != nil {
			f.t.Fatal(err)
		}
	}
}

// hold blocks the held guest of each topology, in one way.
func (f *fleet) hold(h hold, topologies []*topology, on []*enforcer) []*fsm.Block {
	f.t.Helper()
	var ops []fsm.Op
	var listed []netip.Prefix
	block := func(target fsm.Target) {
		ops = append(ops, fsm.AddBlock{Target: target, Kind: h.kind, Direction: h.direction, Force: true})
	}
	for _, p := range topologies {
		around := func(bits4, bits6 int) []netip.Prefix {
			p4, _ := p.held.v4.Prefix(bits4)
			p6, _ := p.held.v6.Prefix(bits6)
			return []netip.Prefix{p4, p6}
		}
		switch h.by {
		case byNothing:
		case byVM:
			block(fsm.Target{VM: vmID(p, "held")})
		case byAddress:
			for _, a := range around(32, 128) {
				block(fsm.Target{Prefix: a})
			}
		case byPrefix:
			for _, a := range around(31, 127) {
				block(fsm.Target{Prefix: a})
			}
		case byList:
			listed = append(listed, around(32, 128)...)
		case byListPrefix:
			listed = append(listed, around(31, 127)...)
		}
	}
	if len(listed) > 0 {
		f.list("held", listed)
		block(fsm.Target{List: "held"})
	}
	return f.commit(on, ops...)
}

func (f *fleet) lift(blocks []*fsm.Block) {
	f.t.Helper()
	var ops []fsm.Op
	for _, b := range blocks {
		ops = append(ops, fsm.LiftBlock{ID: b.ID})
	}
	f.commit(f.nodes, ops...)
}

func (f *fleet) list(name string, prefixes []netip.Prefix) {
	f.t.Helper()
	var b fsm.PrefixSetBuilder
	for _, p := range prefixes {
		b.Add(p)
	}
	set, _ := b.Set()
	ops := []fsm.Op{fsm.BeginList{Upload: "upload", Name: name}}
	seq := uint32(0)
	for part := range set.Packed(1 << 20) {
		ops = append(ops, fsm.AddListChunk{Upload: "upload", Sequence: seq, Prefixes: part})
		seq++
	}
	f.commit(nil, append(ops, fsm.CommitList{Upload: "upload", Force: true})...)
}
