package main

import (
	"context"
	"strconv"
	"strings"

	"github.com/palisade/palisade/httpapi/client"
)

// ExplainCmd says what happens to a packet, or what holds a VM.
type ExplainCmd struct {
	VM    string `help:"Instead of a packet: list all that holds this VM (id or unique name)."`
	Src   string `placeholder:"ADDRESS" help:"Source of the packet."`
	Dst   string `placeholder:"ADDRESS" help:"Destination of the packet."`
	Proto string `help:"tcp, udp, icmp, icmpv6, sctp, or a protocol number; tcp if a port is given."`
	Port  uint16 `help:"Destination port."`
	Sport uint16 `help:"Source port."`
	Node  string `help:"Ask only this node."`
}

// Run implements the command.
func (c *ExplainCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	var e client.Explanation
	switch {
	case c.VM != "" && (c.Src != "" || c.Dst != ""):
		return usagef("give either --vm or a packet (--src, --dst)")
	case c.VM != "":
		e, err = api.ExplainVM(ctx, c.VM)
	case c.Src == "" && c.Dst == "":
		return usagef("give a packet (--src, --dst or both) or --vm")
	default:
		e, err = api.Explain(ctx, client.Packet{Src: c.Src, Dst: c.Dst, Protocol: c.Proto, Port: c.Port, SrcPort: c.Sport, Node: c.Node})
	}
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(e)
	}
	if c.VM != "" {
		return g.printHolds(&e)
	}
	return g.printVerdicts(&e)
}

func (g *Globals) printVerdicts(e *client.Explanation) error {
	verdicts := newTable(g.Stdout, "NODE", "VERDICT", "WHY")
	holds := newTable(g.Stdout, "NODE", "BLOCK", "KIND", "DIRECTION", "BY", "REASON", "SINCE", "DROPPED")
	some := false
	var guards guardReasons
	for _, n := range e.Nodes {
		verdicts.row(n.Node, n.Verdict, n.Why)
		for _, guard := range n.Guards {
			guarded, why, _ := strings.Cut(guard, ": ")
			guards.add(guarded, why)
		}
		for _, h := range n.Holds {
			some = true
			holds.row(append([]string{n.Node}, heldRow(h)...)...)
		}
	}
	for _, s := range e.Silent {
		verdicts.row(s.Node, "unknown", s.Why)
	}
	if err := verdicts.flush(); err != nil {
		return err
	}
	guards.each(func(guarded, why string) { g.printf("guarded: %s (%s)\n", cell(guarded), why) })
	if !some {
		return nil
	}
	g.printf("\n")
	return holds.flush()
}

func (g *Globals) printHolds(e *client.Explanation) error {
	for _, guard := range e.Guards {
		g.printf("guarded: %s\n", cell(strings.TrimRight(guard, ": ")))
	}
	if e.GuardedSource != nil {
		g.printf("source guard%s\n", boundTo(e.GuardedSource))
	}
	if len(e.Holds) == 0 {
		g.printf("nothing holds VM %s\n", cell(e.VM))
		return nil
	}
	t := newTable(g.Stdout, "BLOCK", "KIND", "DIRECTION", "BY", "REASON", "SINCE", "DROPPED")
	for _, h := range e.Holds {
		t.row(heldRow(h)...)
	}
	return t.flush()
}

func heldRow(h client.ExplainedHold) []string {
	by := h.By
	switch {
	case !h.Treats:
		by += " (does not treat it)"
	case h.Started:
		by += " (started here, without quorum)"
	}
	return []string{h.Block, h.Kind, h.Direction, by, h.Reason, local(h.Since), strconv.FormatUint(h.Counters.Packets, 10)}
}
