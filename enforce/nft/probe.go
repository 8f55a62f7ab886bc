package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// Missing returns the kinds of blocks that this kernel can't carry out, each with what it answers. It
// asks with transactions that the kernel refuses in any case, so that nothing changes.
func (k *Kernel) Missing(ctx context.Context) (map[fsm.Kind]error, error) {
	w, err := dial(k.opts.NetNS, k.opts.BufferBytes, k.opts.Timeout)
	if err != nil {
		return nil, err
	}
	defer func() { _ = w.close() }()
	missing := make(map[fsm.Kind]error)
	for _, kind := range []fsm.Kind{fsm.Reject, fsm.Limit, fsm.Ports, fsm.Redirect} {
		err := w.try(ctx, k.opts.Table+"_probe", needs(kind))
		if refused := (*refusedError)(nil); errors.As(err, &refused) {
			missing[kind] = err
		} else if err != nil {
			return nil, fmt.Errorf("ask the kernel for %s: %w", kind, err)
		}
		// Refusals beyond the first are still on their way.
		if err := w.close(); err != nil {
			return nil, err
		}
		if w, err = dial(k.opts.NetNS, k.opts.BufferBytes, k.opts.Timeout); err != nil {
			return nil, err
		}
	}
	return missing, nil
}

// choose leaves the tables of an optional family out if this kernel lacks it, and says so. Then what only that family
// sees passes: of arp, that between this node and a guest without a bridge. All else is dropped as before.
func (k *Kernel) choose(ctx context.Context, optional family) error {
	found, err := k.supports(ctx, optional)
	if err != nil {
		return err
	}
	k.families = nodeTables()
	if !found {
		k.families = slices.DeleteFunc(k.families, func(f family) bool { return f == arp })
		k.opts.Logger.WarnContext(ctx, "this kernel has no nf_tables for ARP (CONFIG_NF_TABLES_ARP): held guests without a bridge and this node can exchange ARP")
	}
	return nil
}

// supports says whether the kernel has tables of a family. If it has ours there is nothing to try; else it asks with a
// transaction that the kernel refuses in any case.
func (k *Kernel) supports(ctx context.Context, f family) (bool, error) {
	w, err := k.connected()
	if err != nil {
		return false, err
	}
	if there, err := w.tableExists(ctx, tables{f}, k.opts.Table); err != nil || there {
		return there, err
	}
	// Refusals beyond the first may be on their way afterwards.
	trial, err := dial(k.opts.NetNS, k.opts.BufferBytes, k.opts.Timeout)
	if err != nil {
		return false, err
	}
	defer func() { _ = trial.close() }()
	b := &writer{table: k.opts.Table + "_probe"}
	b.addTable(f)
	b.deleteSet(f, "none")
	err = trial.commit(ctx, &b.batch)
	refused := (*refusedError)(nil)
	switch {
	case err == nil:
		return false, errors.New("the kernel took a transaction that it had to refuse")
	case errors.As(err, &refused) && refused.message == 1:
		return true, nil
	case errors.As(err, &refused) && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)):
		return false, nil
	}
	return false, fmt.Errorf("ask the kernel for tables of family %s: %w", f, err)
}

// need is a rule that a kind is made of, and the chain that it is in.
type need struct {
	chain chain
	rule  []expr.Any
}

func needs(k fsm.Kind) (list []need) {
	first := chain{family: inet, name: "first", sort: "filter", hook: unix.NF_INET_PRE_ROUTING, priority: priorityFirst}
	onBridge := first
	onBridge.family = bridge
	nat := chain{family: inet, name: "nat", sort: "nat", hook: unix.NF_INET_PRE_ROUTING, priority: priorityPage}
	put := func(c chain, rules ...rule) {
		for _, r := range rules {
			list = append(list, need{c, r.exprs(c.family)})
		}
	}
	switch k {
	case fsm.Reject:
		put(first, rule{do: prohibit}, rule{test: isTCP, do: reset})
		put(onBridge, rule{do: address})
	case fsm.Redirect:
		put(onBridge, rule{do: address})
		put(nat, rule{test: toHTTP, do: redirect, port: 1})
	case fsm.Limit:
		put(first, rule{test: notFromBridge, do: drop})
		for _, r := range treatmentRules(bridge, enforce.Terms{Kind: k, Rate: fsm.Rate{Bits: 8}}) {
			list = append(list, need{onBridge, r})
		}
	default:
		for _, r := range treatmentRules(bridge, enforce.Terms{Kind: k, Ports: []fsm.PortRange{{Protocol: 6, First: 1, Last: 2}}}) {
			list = append(list, need{onBridge, r})
		}
	}
	return list
}

// try asks whether the kernel would take rules; a refusedError says that it would not.
func (w *wire) try(ctx context.Context, table string, rules []need) error {
	b := &writer{table: table, families: listTables()}
	var chains []string
	for _, f := range []family{bridge, inet} {
		b.addTable(f)
	}
	for _, n := range rules {
		if id := n.chain.family.String() + n.chain.name; !slices.Contains(chains, id) {
			chains = append(chains, id)
			b.addChain(n.chain)
		}
		if err := b.addRule(n.chain.family, n.chain.name, n.rule); err != nil {
			return err
		}
	}
	// No such set: whatever else the kernel thinks of the transaction, it ends here.
	last := len(b.messages)
	b.deleteSet(inet, "none")
	err := w.commit(ctx, &b.batch)
	refused := (*refusedError)(nil)
	switch {
	case err == nil:
		return errors.New("the kernel took a transaction that it had to refuse")
	case errors.As(err, &refused) && refused.message == last:
		return nil
	}
	return err
}
