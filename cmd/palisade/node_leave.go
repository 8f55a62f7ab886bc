package main

import (
	"context"

	"github.com/palisade/palisade/httpapi/client"
)

// NodeDrainCmd takes voter duty from a node.
type NodeDrainCmd struct {
	ID  string `arg:"" help:"Id of the node."`
	Key string `placeholder:"KEY" help:"Idempotency key."`
}

// Run implements the command.
func (c *NodeDrainCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	n, err := api.DrainNode(ctx, c.ID, false, client.Write{Key: c.Key})
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(n)
	}
	g.printf("%s is drained: it goes on enforcing, and votes no more once another node has taken its place\n", cell(n.ID))
	if n.VMs == 0 {
		g.printf("no VM is there; to end its membership: palisade node retire %s\n", cell(n.ID))
		return nil
	}
	g.printf("%s there; migrate or stop what should not be lost before you retire it:\n", count(n.VMs, "VM"))
	return g.printVMsOn(ctx, api, n.ID)
}

// printVMsOn lists the VMs of a node.
func (g *Globals) printVMsOn(ctx context.Context, api *client.Client, node string) error {
	return printList(g, api.VMs(ctx, client.VMFilter{Node: node}), []string{"ID", "NAME", "STATE", "OWNER", "ON"}, func(vm client.VM) []string {
		return []string{vm.ID, vm.Name, vm.State, vm.Owner, place(&vm)}
	})
}

// NodeUndrainCmd gives a node its voter duty back.
type NodeUndrainCmd struct {
	ID  string `arg:"" help:"Id of the node."`
	Key string `placeholder:"KEY" help:"Idempotency key."`
}

// Run implements the command.
func (c *NodeUndrainCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	n, err := api.DrainNode(ctx, c.ID, true, client.Write{Key: c.Key})
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(n)
	}
	g.printf("%s may vote again\n", cell(n.ID))
	return nil
}

// NodeRetireCmd ends a node's membership.
type NodeRetireCmd struct {
	ID    string `arg:"" help:"Id of the node. It can never be used again."`
	Force bool   `help:"Also if it was not drained: for a node that is gone for good."`
	Key   string `placeholder:"KEY" help:"Idempotency key."`
}

// Run implements the command.
func (c *NodeRetireCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	n, err := api.RetireNode(ctx, c.ID, c.Force, client.Write{Key: c.Key})
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(n)
	}
	g.printf("%s is retired: no node deals with it any more; if it runs, its kernel goes on enforcing what it holds\n", cell(n.ID))
	if n.VMs == 0 {
		return nil
	}
	g.printf("%s lost with it; what holds them goes on, and each is found again when a node sees it run:\n", count(n.VMs, "VM"))
	return g.printVMsOn(ctx, api, n.ID)
}

// SettleCmd lets nodes let go of what only their kernels hold.
type SettleCmd struct {
	Epoch uint64 `arg:"" help:"The fleet's epoch, as palisade ca show and the problem of the nodes give it."`
	Key   string `placeholder:"KEY" help:"Idempotency key."`
}

// Run implements the command.
func (c *SettleCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	if err := api.SettleEpoch(ctx, c.Epoch, client.Write{Key: c.Key}); err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(map[string]uint64{"settled": c.Epoch})
	}
	g.printf("epoch %d is settled: kernels hold what the state says, and nothing else\n", c.Epoch)
	return nil
}

// Help implements kong.HelpProvider.
func (*NodeRetireCmd) Help() string {
	return `Examples:

    palisade node drain node-3 && palisade node retire node-3
    palisade node retire node-3 --force`
}

// Help implements kong.HelpProvider.
func (*SettleCmd) Help() string {
	return `Look at what nodes hold first, and block what is to stay:

    palisade node ls
    palisade settle 2`
}
