package main

import (
	"strings"

	"github.com/palisade/palisade/httpapi/client"
)

// printPreview shows what a write would do. A write that would be refused is the error of the refusal.
func (g *Globals) printPreview(p *client.Preview) error {
	if g.JSON() {
		if err := g.PrintJSON(p); err != nil {
			return err
		}
	} else {
		g.printf("dry run: nothing was changed\n")
		for _, b := range p.Would.Blocks {
			g.printf("  would leave  %s %s %s\n", b.ID, cell(targetText(&b)), b.State)
		}
		if b := p.Would.Block; b != nil {
			g.printf("  would leave  %s %s %s, %s\n", b.ID, cell(targetText(b)), cell(what(b)), b.State)
		}
		if p.Impact != nil {
			g.printImpact(p.Impact)
		}
	}
	if p.Would.Problem != nil {
		return p.Would.Problem
	}
	return nil
}

func (g *Globals) printImpact(i *client.Impact) {
	g.printf("  covers       %s on %s: %s\n", count(i.CountVMs, "VM"), count(len(i.Nodes), "node"), cell(some(i.VMs, 10)))
	if i.Addresses > 0 {
		g.printf("  addresses    %d\n", i.Addresses)
	}
	var reasons guardReasons
	for _, w := range i.Guards {
		reasons.add(w.Prefix, w.Why)
	}
	reasons.each(func(guarded, why string) { g.printf("  guarded      %s (%s)\n", cell(guarded), why) })
	if len(i.Overlaps) > 0 {
		ids := make([]string, len(i.Overlaps))
		for k := range i.Overlaps {
			ids[k] = i.Overlaps[k].ID
		}
		g.printf("  also held by %s\n", strings.TrimSpace(some(ids, 10)))
	}
}
