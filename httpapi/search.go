package httpapi

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type searchInput struct {
	ReadInput
	Query string `query:"q" required:"true" minLength:"1" maxLength:"255" doc:"Any part of a name, an id or an address" example:"192.0.2.7"`
	Limit int    `query:"limit" minimum:"1" maximum:"50" default:"10" doc:"Of each sort"`
}

type searchOutput struct {
	ReadHeaders
	Body wire.Found
}

// search looks for what a person may mean, for the box of the UI and the target of a block.
func (s *Server) search(ctx context.Context, in *searchInput) (*searchOutput, error) {
	_, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	v, vms := s.index.find(ctx, newVMSearch(in.Query))
	h.Index = v.Index()
	text := strings.ToLower(strings.TrimSpace(in.Query))
	out := &searchOutput{ReadHeaders: h, Body: wire.Found{
		VMs: s.bestVMs(v, vms, text, in.Limit), Accounts: findAccounts(ctx, v, vms, text, in.Limit),
		Addresses: []wire.FoundAddress{}, Nodes: []wire.FoundNode{}, Lists: []wire.FoundList{}, Blocks: []wire.Block{},
	}}
	if b, ok := v.Block(text); ok && billed(ctx, b) {
		out.Body.Blocks = append(out.Body.Blocks, wireBlock(v, b))
	}
	if callerOf(ctx).scope == ScopeBilling {
		return out, nil // it may read VMs and accounts
	}
	out.Body.Addresses = findAddresses(v, text, in.Limit)
	for n := range v.Nodes() {
		if len(out.Body.Nodes) < in.Limit && n.Member() && (containsFold(n.ID, text) || containsFold(n.Name, text)) {
			out.Body.Nodes = append(out.Body.Nodes, wire.FoundNode{ID: n.ID, Name: n.Name})
		}
	}
	for l := range v.Lists("") {
		if len(out.Body.Lists) < in.Limit && (containsFold(l.Name, text) || containsFold(l.Note, text)) {
			out.Body.Lists = append(out.Body.Lists, wire.FoundList{Name: l.Name, Size: l.Size, Note: l.Note})
		}
	}
	return out, nil
}

// bestVMs puts what is exactly the text first, then what begins with it.
func (s *Server) bestVMs(v *fsm.View, found []*fsm.VM, text string, limit int) []wire.VM {
	asked := searchPrefix(text)
	rank := func(vm *fsm.VM) int {
		id, name := strings.ToLower(vm.ID), strings.ToLower(vm.Name)
		switch {
		case id == text, name == text, asked.IsValid() && slices.Contains(vm.AllAddresses(), asked):
			return 0
		case strings.HasPrefix(name, text), strings.HasPrefix(id, text):
			return 1
		}
		return 2
	}
	p := vmPage{order: &vmOrder{by: "name", rank: rank}, limit: limit}
	for _, vm := range found {
		p.add(vm)
	}
	p.cut()
	out := make([]wire.VM, 0, len(p.items))
	for _, at := range p.items {
		out = append(out, s.wireVM(v, at.vm))
	}
	return out
}

// findAccounts looks among the owners of the VMs that were found, and the accounts for which something is set.
func findAccounts(ctx context.Context, v *fsm.View, vms []*fsm.VM, text string, limit int) []wire.FoundAccount {
	ids := map[string]bool{}
	take := func(id string) {
		if id != "" && containsFold(id, text) {
			ids[id] = true
		}
	}
	for _, vm := range vms {
		take(vm.Owner)
	}
	for a := range v.Accounts("") {
		take(a.ID)
	}
	sorted := slices.SortedFunc(maps.Keys(ids), func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	out := []wire.FoundAccount{}
	for _, id := range sorted[:min(len(sorted), limit)] {
		a := wire.FoundAccount{ID: id, Blocks: []string{}}
		for range v.VMsOf(id) {
			a.VMs++
		}
		for b := range v.ActiveOn(fsm.Target{Account: id}) {
			if billed(ctx, b) {
				a.Blocks = append(a.Blocks, b.ID)
			}
		}
		out = append(out, a)
	}
	return out
}

// findAddresses gives the address or prefix that the text is, and those that begin with it on which blocks are.
func findAddresses(v *fsm.View, text string, limit int) []wire.FoundAddress {
	out := []wire.FoundAddress{}
	asked := searchPrefix(text)
	if asked.IsValid() {
		out = append(out, foundAddress(v, asked))
	}
	if strings.Trim(text, "0123456789abcdef.:/") != "" {
		return out
	}
	seen := map[netip.Prefix]bool{asked: true}
	for b := range v.Blocks("") {
		p := b.Target.Prefix
		if len(out) >= limit {
			break
		}
		if p.IsValid() && !b.State.Over() && !seen[p] && strings.HasPrefix(p.String(), text) {
			seen[p] = true
			out = append(out, foundAddress(v, p))
		}
	}
	return out
}

func foundAddress(v *fsm.View, p netip.Prefix) wire.FoundAddress {
	const most = 10
	out := wire.FoundAddress{Prefix: prefixText(p), VMs: []string{}, Blocks: []string{}}
	for vm := range v.VMsWithin(p) {
		if out.VMs = append(out.VMs, vm.ID); len(out.VMs) == most {
			break
		}
	}
	for b := range v.OpenOn(fsm.Target{Prefix: p}) {
		out.Blocks = append(out.Blocks, b.ID)
	}
	for bits := p.Bits() - 1; bits > 0; bits-- {
		for b := range v.ActiveOn(fsm.Target{Prefix: netip.PrefixFrom(p.Addr(), bits).Masked()}) {
			out.Blocks = append(out.Blocks, b.ID)
		}
	}
	return out
}
