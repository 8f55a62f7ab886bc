package main

import (
	"context"
	"iter"
	"slices"
	"strings"

	"github.com/palisade/palisade/httpapi/client"
)

// GuardCmd groups what is done with guards.
type GuardCmd struct {
	Ls  GuardLsCmd  `cmd:"" aliases:"list" help:"List what can never be blocked."`
	Add GuardAddCmd `cmd:"" help:"Make a prefix or a VM unblockable. A wider block keeps standing around it."`
	Rm  GuardRmCmd  `cmd:"" aliases:"remove" help:"Remove a guard that was added."`
}

// GuardLsCmd lists guards.
type GuardLsCmd struct {
	All bool `help:"Also those that are built in or come from nodes, with who says so."`
}

// Run implements the command.
func (c *GuardLsCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	if c.All && !g.JSON() {
		return g.printAllGuards(api.Guards(ctx, true))
	}
	return printList(g, api.Guards(ctx, c.All), []string{"GUARDED", "BY", "NOTE"}, func(w client.Guard) []string {
		return []string{guardText(&w), w.Actor, w.Note}
	})
}

func (g *Globals) printAllGuards(guards iter.Seq2[client.Guard, error]) error {
	var reasons guardReasons
	for w, err := range guards {
		if err != nil {
			return err
		}
		reasons.add(guardText(&w), w.Why)
	}
	t := newTable(g.Stdout, "GUARDED", "WHY")
	reasons.each(func(guarded, why string) { t.row(guarded, why) })
	return t.flush()
}

func guardText(w *client.Guard) string {
	if w.VM != "" {
		return "VM " + w.VM
	}
	return w.Prefix
}

// guardReasons gathers, by what is guarded, who guards it: the nodes of a fleet guard much of the same.
type guardReasons struct {
	order []string
	by    map[string][]string
}

func (r *guardReasons) add(guarded, why string) {
	if r.by == nil {
		r.by = map[string][]string{}
	}
	if _, known := r.by[guarded]; !known {
		r.order = append(r.order, guarded)
	}
	if !slices.Contains(r.by[guarded], why) {
		r.by[guarded] = append(r.by[guarded], why)
	}
}

// each calls f once for each that is guarded, in the order in which they came.
func (r *guardReasons) each(f func(guarded, why string)) {
	for _, guarded := range r.order {
		f(guarded, cell(strings.TrimRight(some(r.by[guarded], 2), ": "))) // a guard may have no note
	}
}

// GuardAddCmd adds a guard.
type GuardAddCmd struct {
	Target string `arg:"" help:"Address or CIDR; with --vm a VM id, or a name that only one VM has."`
	VM     bool   `name:"vm" help:"TARGET is a VM."`
	Note   string `help:"Why, for people."`
	Key    string `placeholder:"KEY" help:"Idempotency key."`
}

// Run implements the command.
func (c *GuardAddCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	req := client.GuardRequest{Prefix: c.Target, Note: c.Note}
	if c.VM {
		req.Prefix, req.VM = "", c.Target
	}
	w, err := api.AddGuard(ctx, req, client.Write{Key: c.Key})
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(w)
	}
	g.printf("%s guarded\n", cell(guardText(&w)))
	return nil
}

// GuardRmCmd removes a guard.
type GuardRmCmd struct {
	Target string `arg:"" help:"Address, CIDR or, with --vm, VM, as guard ls shows it."`
	VM     bool   `name:"vm" help:"TARGET is a VM."`
	Key    string `placeholder:"KEY" help:"Idempotency key."`
}

// Run implements the command.
func (c *GuardRmCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	remove := api.RemoveGuard
	if c.VM {
		remove = api.RemoveVMGuard
	}
	if err := remove(ctx, c.Target, client.Write{Key: c.Key}); err != nil {
		return err
	}
	if !g.JSON() {
		g.printf("%s is no longer guarded\n", cell(c.Target))
	}
	return nil
}
