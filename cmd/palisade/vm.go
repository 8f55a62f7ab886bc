package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/palisade/palisade/httpapi/client"
)

// VMCmd groups what is done with VMs.
type VMCmd struct {
	Ls   VMLsCmd   `cmd:"" aliases:"list" help:"List VMs."`
	Show VMShowCmd `cmd:"" help:"Show a VM."`
	Set  VMSetCmd  `cmd:"" help:"Declare a VM's name, owner or addresses."`
}

// VMLsCmd lists VMs.
type VMLsCmd struct {
	Node    string `help:"Only VMs on this node, or in flight to it."`
	Owner   string `help:"Only VMs of this account."`
	Name    string `help:"Only VMs with exactly this name."`
	Blocked bool   `help:"Only VMs that are blocked."`
}

// Run implements the command.
func (c *VMLsCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	f := client.VMFilter{Node: c.Node, Owner: c.Owner, Name: c.Name}
	if c.Blocked {
		f.Blocked = &c.Blocked
	}
	head := []string{"ID", "NAME", "NODE", "STATE", "OWNER", "ADDRESSES", "BLOCKED BY"}
	return printList(g, api.VMs(ctx, f), head, func(v client.VM) []string {
		return []string{v.ID, v.Name, place(&v), v.State, v.Owner, some(v.Addresses, 3), some(v.Blocks, 4)}
	})
}

func place(v *client.VM) string {
	if v.Destination != "" {
		return v.Node + " -> " + v.Destination
	}
	return v.Node
}

// migrationText is a migration in one line: how far it has come, from where to where.
func migrationText(m *client.Migration) string {
	text := m.Phase + ", " + m.From + " -> " + m.To
	if m.Cold {
		text += " (not running)"
	}
	return text
}

// VMShowCmd shows one VM.
type VMShowCmd struct {
	VM string `arg:"" name:"vm" help:"VM id, or a name that only one VM has."`
}

// Run implements the command.
func (c *VMShowCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	v, err := api.VM(ctx, c.VM)
	if err != nil {
		return err
	}
	return g.printVM(&v)
}

// openText warns of an interface that blocks do not hold.
func openText(enforceable bool) string {
	if enforceable {
		return ""
	}
	return "  NOT ENFORCEABLE: its packets do not pass the node's kernel"
}

func (g *Globals) printVM(v *client.VM) error {
	if g.JSON() {
		return g.PrintJSON(v)
	}
	where := "on no node"
	if p := place(v); p != "" {
		where = "on " + cell(p)
	}
	g.printf("%s  %s  %s %s\n", cell(v.ID), cell(v.Name), v.State, where)
	g.printf("  owner      %s\n", cell(v.Owner))
	g.printf("  addresses  %s\n", cell(strings.Join(v.Addresses, ", ")))
	if len(v.Declared) > 0 {
		g.printf("  declared   %s\n", cell(strings.Join(v.Declared, ", ")))
	}
	for _, n := range v.NICs {
		g.printf("  nic        %s  %s  %s  %s%s\n", n.MAC, cell(n.Tap), cell(n.Network), cell(strings.Join(n.Addresses, ", ")), openText(n.Enforceable))
	}
	if m := v.Migration; m != nil {
		g.printf("  migration  %s since %s, begun %s\n", cell(migrationText(m)), local(m.ChangedAt), local(m.StartedAt))
	}
	if s := v.Sighting; s != nil {
		g.printf("  seen       %s on %s, %s (not committed yet)\n", cell(s.Phase), cell(s.Node), local(s.At))
	}
	if !v.DoNotBlockUntil.IsZero() {
		g.printf("  protect    not blocked for unpaid before %s\n", local(v.DoNotBlockUntil))
	}
	if v.SourceGuard != "inherit" || v.GuardedSource != nil {
		g.printf("  source     guard %s%s\n", v.SourceGuard, boundTo(v.GuardedSource))
	}
	g.printf("  blocked    %s\n", blockedBy(v.Blocks))
	return nil
}

// boundTo says what a VM is bound to.
func boundTo(s *client.SourceGuard) string {
	if s == nil {
		return ""
	}
	what := "not bound"
	switch {
	case s.MACs && s.Addresses:
		what = "bound to its hardware addresses and addresses"
	case s.MACs:
		what = "bound to its hardware addresses"
	}
	if s.Node != "" {
		what += " on " + cell(s.Node)
	}
	if s.Why != "" {
		what += ", since " + cell(s.Why)
	}
	return fmt.Sprintf("; %s; dropped %d packets", what, s.Dropped.Packets)
}

// VMSetCmd changes what is declared of a VM; what is not named stays.
type VMSetCmd struct {
	VM          string   `arg:"" name:"vm" help:"VM id, or a name that only one VM has."`
	Name        *string  `help:"New name. On a VM that a hypervisor reports, its next report brings the hypervisor's name back."`
	Owner       *string  `help:"Account that owns it; empty for none."`
	Address     []string `sep:"none" help:"Address or prefix routed to the VM; can be repeated. Replaces those declared before."`
	NoAddresses bool     `help:"Declare no addresses."`
	Create      bool     `help:"Declare a VM that no node has seen yet."`
	SourceGuard *string  `enum:"on,off,inherit" placeholder:"on|off|inherit" help:"Let it use its registered addresses alone, or any, or what the settings say."`
	Protection
	Key string `placeholder:"KEY" help:"Idempotency key: the same command with the same key has one effect."`
}

// Run implements the command. It reads the VM and writes it back on the condition that nobody changed
// it in between.
func (c *VMSetCmd) Run(ctx context.Context, g *Globals) error {
	if c.NoAddresses && len(c.Address) > 0 {
		return usagef("--no-addresses and --address exclude each other")
	}
	if !c.Create && c.Name == nil && c.Owner == nil && len(c.Address) == 0 && !c.NoAddresses && c.SourceGuard == nil && c.Protection == (Protection{}) {
		return usagef("nothing to change: see palisade vm set --help")
	}
	api, err := g.Client()
	if err != nil {
		return err
	}
	v, err := api.VM(ctx, c.VM)
	var p *client.Problem
	if errors.As(err, &p) && p.Status == http.StatusNotFound && c.Create {
		v, err = client.VM{ID: c.VM}, nil
	}
	if err != nil {
		return err
	}
	body := client.VMRequest{Name: v.Name, Owner: v.Owner, Addresses: v.Declared, DoNotBlockUntil: v.DoNotBlockUntil}
	c.apply(&body.DoNotBlockUntil)
	replace(&body.SourceGuard, c.SourceGuard)
	if c.Name != nil {
		body.Name = *c.Name
	}
	if c.Owner != nil {
		body.Owner = *c.Owner
	}
	if c.NoAddresses || len(c.Address) > 0 {
		body.Addresses = c.Address
	}
	if v, err = api.PutVM(ctx, v.ID, body, client.Write{Key: c.Key, IfMatch: v.Revision}); err != nil {
		return err
	}
	return g.printVM(&v)
}
