package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/httpapi/wire"
)

// NodeCmd groups what is done with nodes.
type NodeCmd struct {
	Ls      NodeLsCmd      `cmd:"" aliases:"list" help:"List the nodes."`
	Show    NodeShowCmd    `cmd:"" help:"Show a node."`
	Drain   NodeDrainCmd   `cmd:"" help:"Take all voter duty from a node, and show what runs there."`
	Undrain NodeUndrainCmd `cmd:"" help:"Let a node be a voter again."`
	Retire  NodeRetireCmd  `cmd:"" help:"End a node's membership for ever."`
}

// NodeLsCmd lists nodes.
type NodeLsCmd struct{}

// Run implements the command.
func (c *NodeLsCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	head := []string{"ID", "ROLE", "STATE", "HEALTHY", "APPLIED", "ENFORCED", "CLOCK", "CERTIFICATE", "VMS", "VERSION", "ADDRESSES", "PROBLEM"}
	return printList(g, api.Nodes(ctx), head, func(n client.Node) []string {
		role, clock, certificate := n.Role, clockText(n.ClockOffsetMS), certificateText(&n)
		if n.State == "retired" {
			role, clock, certificate = "-", "-", "-"
		}
		return []string{n.ID, role, n.State, yes(n.Healthy), strconv.FormatUint(n.AppliedIndex, 10), strconv.FormatUint(n.EnforcedIndex, 10),
			clock, certificate, strconv.Itoa(n.VMs), n.Version, some(n.Addresses, 2), n.Problem}
	})
}

// NodeShowCmd shows one node.
type NodeShowCmd struct {
	ID string `arg:"" help:"Id of the node."`
}

// Run implements the command.
func (c *NodeShowCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	n, err := api.Node(ctx, c.ID)
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(n)
	}
	g.printf("%s  %s  %s  %s\n", cell(n.ID), cell(n.Name), n.Role, cell(n.Version))
	g.printf("  addresses  %s\n", cell(strings.Join(n.Addresses, ", ")))
	g.printf("  index      applied %d, in the kernel %d\n", n.AppliedIndex, n.EnforcedIndex)
	g.printf("  clock      %s\n", clockText(n.ClockOffsetMS))
	g.printf("  healthy    %s\n", yes(n.Healthy))
	if n.Certificate != nil {
		g.printf("  reached    peers %s, gossip %s, API %s\n", cell(n.Address), cell(n.Gossip), cell(cmp.Or(n.API, "only on the node")))
		g.printf("  member     %s, zone %s, joined %s\n", cell(n.State), cell(cmp.Or(n.Zone, "none")), local(n.JoinedAt))
		g.printf("  certified  %d until %s\n", n.Certificate.Serial, local(n.Certificate.NotAfter))
	}
	if n.Problem != "" {
		g.printf("  problem    %s\n", cell(n.Problem))
	}
	if !n.LastHeard.IsZero() {
		g.printf("  heard      %s\n", local(n.LastHeard))
	}
	return nil
}

// certificateText says how much longer a node's certificate lasts.
func certificateText(n *client.Node) string {
	if n.Certificate == nil {
		return ""
	}
	left := time.Until(n.Certificate.NotAfter)
	switch {
	case left <= 0:
		return "ENDED"
	case left > 48*time.Hour:
		return fmt.Sprintf("%d days", int(left/(24*time.Hour)))
	}
	return left.Round(time.Second).String()
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// StatCmd shows the status of the node that answers.
type StatCmd struct{}

// Run implements the command.
func (c *StatCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	s, err := api.Status(ctx)
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(s)
	}
	leader := cell(s.Leader)
	if s.Leader == "" {
		leader = "unknown"
	}
	quorum := "yes"
	if !s.Quorum {
		quorum = "NO: nothing can be written; everything that is blocked stays blocked"
	}
	g.printf("node      %s (%s)\n", cell(s.Node), cell(s.Version))
	g.printf("quorum    %s\n", quorum)
	g.printf("leader    %s, term %d\n", leader, s.Term)
	g.printf("state     index %d of %d committed, %s; hash %.16s\n", s.Index, s.CommitIndex, age(s.AgeMS), s.StateHash)
	g.printf("kernel    index %d here, %d on the slowest node\n", s.NodeEnforcedIndex, s.EnforcedIndex)
	n := s.Counts
	lost := ""
	if n.LostVMs > 0 {
		lost = fmt.Sprintf(" (%d LOST with retired nodes)", n.LostVMs)
	}
	g.printf("fleet     %s (%d alive), %s%s, %s, %d pending, %s\n", count(n.Nodes, "node"), n.Alive, count(n.VMs, "VM"), lost,
		count(n.ActiveBlocks, "active block"), n.PendingBlocks, count(n.Guards, "guard"))
	g.printProblems(s.Problems)
	return nil
}

func (g *Globals) printProblems(list []client.NodeProblem) {
	if len(list) == 0 {
		g.printf("problems  none\n")
		return
	}
	g.printf("problems  %d\n", len(list))
	for _, p := range list {
		since := ""
		if !p.Since.IsZero() {
			since = " since " + local(p.Since)
		}
		g.printf("  %s  %s  %s%s\n      %s\n", p.Severity, cell(p.Node), p.Code, since, cell(p.Text))
	}
}

// clockText is by how much a node's clock is ahead.
func clockText(ms *float64) string {
	if ms == nil {
		return "unknown"
	}
	return fmt.Sprintf("%+.1f ms", math.Round(*ms*10)/10+0) // adding zero takes the minus from it
}

func age(ms int64) string {
	if ms < 0 {
		return "of unknown age: no leader was heard since the start"
	}
	return (time.Duration(ms) * time.Millisecond).String() + " old"
}

// EventCmd follows the changes.
type EventCmd struct {
	From *uint64 `placeholder:"N" help:"Start after this log index; without it, with what happens from now on."`
}

// Run implements the command. It ends when it is interrupted.
func (c *EventCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	for e, err := range api.Events(ctx, c.From) {
		switch {
		case err != nil && ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if err := g.printEvent(&e); err != nil {
			return err
		}
	}
	return nil
}

func (g *Globals) printEvent(e *client.Event) error {
	if g.JSON() {
		return printLine(g.Stdout, e)
	}
	_, err := fmt.Fprintf(g.Stdout, "%s  %6d  %-15s  %s\n", local(e.At), e.Index, cell(e.Type), eventText(e))
	return err
}

func eventText(e *client.Event) string {
	by := ""
	if e.Actor != "" {
		by = " by " + cell(e.Actor)
	}
	switch {
	case e.Block != nil:
		return fmt.Sprintf("%s %s %s reason %s%s", e.Block.ID, cell(targetText(e.Block)), cell(what(e.Block)), cell(e.Block.Reason), by)
	case e.VM != nil:
		migration := ""
		if m := e.VM.Migration; m != nil && m.ChangedAt.Equal(e.At) {
			migration = ", migration " + cell(migrationText(m))
		}
		return fmt.Sprintf("%s (%s) %s on %s%s%s", cell(e.VM.ID), cell(e.VM.Name), e.VM.State, cell(place(e.VM)), migration, by)
	case e.Node != nil:
		return fmt.Sprintf("%s %s", cell(e.Node.ID), cell(strings.Join(e.Node.Addresses, ", ")))
	case e.Incident != nil:
		return fmt.Sprintf("%s %s: %s", cell(e.Incident.Node), cell(e.Incident.Code), cell(e.Incident.Text))
	case e.Guard != nil:
		return cell(guardText(e.Guard)) + by
	case e.Account != nil:
		return cell(e.Account.ID) + by
	case e.List != nil:
		return fmt.Sprintf("%s with %s%s", cell(e.List.Name), count(e.List.Size, "entry"), by)
	case e.Fleet != nil:
		return cell(e.Fleet.ID) + by
	case e.JoinToken != nil:
		used := ""
		if e.JoinToken.UsedBy != "" {
			used = " used by " + cell(e.JoinToken.UsedBy)
		}
		return cell(e.JoinToken.ID) + used + by
	case e.Type == wire.EventReset:
		return "older events are gone: read everything again"
	}
	return by
}
