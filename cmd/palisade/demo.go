package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
)

// DemoCmd groups the demo fleet: nodes, agents and guests on this one machine.
type DemoCmd struct {
	Up      demoUpCmd      `cmd:"" help:"Build the fleet, and show on one guest that it blocks. Needs root."`
	Status  demoStatusCmd  `cmd:"" help:"Show nodes and guests."`
	Migrate demoMigrateCmd `cmd:"" help:"Move a running guest to another node."`
	Down    demoDownCmd    `cmd:"" help:"Remove everything that the demo made."`
	Guest   demoGuestCmd   `cmd:"" hidden:"" help:"What a light guest runs: echo on port 7, HTTP on port 80."`
}

// demoState is the flag that all demo commands share.
type demoState struct {
	State string `default:"/var/tmp/palisade-demo" env:"PALISADE_DEMO" placeholder:"DIR" help:"Directory of the demo (default ${default})."`
}

func (s demoState) load() (*fleet.Fleet, error) {
	f, err := fleet.Load(s.State)
	switch {
	case errors.Is(err, fleet.ErrNotUp):
		return nil, fmt.Errorf("%w (start it with: palisade demo up --state %s)", err, s.State)
	case errors.Is(err, fleet.ErrHalf):
		return nil, fmt.Errorf("%w: palisade demo down --state %s", err, s.State)
	}
	return f, err
}

type demoUpCmd struct {
	demoState
	Nodes         int    `default:"3" help:"How many nodes, 1 to 32."`
	GuestsPerNode int    `default:"2" help:"How many guests on each node."`
	Guests        string `default:"netns" enum:"netns,qemu" help:"Light guests (netns), or real QEMU machines under libvirt (qemu)."`
	Prefix        string `default:"pal" help:"First part of the names of the network namespaces."`
}

// demoUpOutput is what up prints as JSON: the status, and what the proof did.
type demoUpOutput struct {
	fleet.Status
	Proof []fleet.Step `json:"proof"`
}

// Run implements the command.
func (c *demoUpCmd) Run(ctx context.Context, g *Globals) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	began := time.Now()
	say := func(line string) { fmt.Fprintf(g.Stderr, "%6.1fs  %s\n", time.Since(began).Seconds(), line) }
	guests := c.GuestsPerNode
	if guests == 0 {
		guests = -1 // 0 would be the default
	}
	f, err := fleet.Up(ctx, fleet.Options{
		Dir: c.State, Binary: self, Prefix: c.Prefix, Nodes: c.Nodes, GuestsPerNode: guests, Guests: c.Guests, Progress: say,
	})
	down := "palisade demo down --state " + c.State
	switch {
	case errors.Is(err, fleet.ErrUp):
		return fmt.Errorf("%w (palisade demo status --state %s shows it; %s removes it)", err, c.State, down)
	case errors.Is(err, fleet.ErrHalf):
		return fmt.Errorf("%w: %s", err, down)
	case err != nil && f != nil:
		fmt.Fprintf(g.Stderr, "What was built stays for a look; remove it with: %s\n", down)
		return err
	case err != nil:
		return err
	}
	out := demoUpOutput{Status: f.Status(), Proof: []fleet.Step{}}
	say("the fleet is up; now it proves itself")
	err = f.Prove(ctx, func(s fleet.Step) {
		say(fmt.Sprintf("%s (%v)", s.What, s.Took.Round(100*time.Microsecond)))
		out.Proof = append(out.Proof, s)
	})
	if err != nil {
		return fmt.Errorf("the fleet is up, but did not prove itself: %w", err)
	}
	if g.JSON() {
		return g.PrintJSON(out)
	}
	g.printf("\n")
	if err := g.printDemo(out.Status); err != nil {
		return err
	}
	g.printPage(self, out.Status)
	g.printTries(self, c.State, out.Status)
	g.printf("Remove the demo with \"%s demo down --state %s\".\n", self, c.State)
	return nil
}

type demoStatusCmd struct{ demoState }

// Run implements the command.
func (c *demoStatusCmd) Run(g *Globals) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(f.Status())
	}
	return g.printDemo(f.Status())
}

type demoMigrateCmd struct {
	demoState
	VM   string `arg:"" name:"vm" help:"Id or name of the guest."`
	Node string `arg:"" help:"Where to."`
}

// Run implements the command.
func (c *demoMigrateCmd) Run(ctx context.Context, g *Globals) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	m, err := f.Migrate(ctx, c.VM, c.Node)
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(m)
	}
	g.printf("%s moved from %s to %s in %v\n", m.VM, m.From, m.To, m.Gone.Sub(m.Incoming).Round(time.Millisecond))
	return nil
}

type demoDownCmd struct{ demoState }

// Run implements the command.
func (c *demoDownCmd) Run(ctx context.Context, g *Globals) error {
	err := fleet.Down(ctx, c.State, func(line string) { fmt.Fprintln(g.Stderr, line) })
	switch {
	case errors.Is(err, fleet.ErrNotUp):
		fmt.Fprintln(g.Stderr, err) // what was wanted is so
	case err != nil:
		return err
	}
	if g.JSON() {
		return g.PrintJSON(struct {
			Down bool `json:"down"`
		}{true})
	}
	g.printf("the demo is down\n")
	return nil
}

type demoGuestCmd struct {
	Name string `default:"guest" help:"What the HTTP answer says."`
}

// Run implements the command.
func (c *demoGuestCmd) Run(ctx context.Context) error { return fleet.ServeGuest(ctx, c.Name) }

func (g *Globals) printDemo(s fleet.Status) error {
	t := newTable(g.Stdout, "NODE", "NAMESPACE", "AGENT", "API", "TOKEN")
	for _, n := range s.Nodes {
		agent := "down"
		if n.PID != 0 {
			agent = fmt.Sprint("pid ", n.PID)
		}
		t.row(n.Name, n.Netns, agent, n.API, n.Token)
	}
	if err := t.flush(); err != nil {
		return err
	}
	g.printf("\n")
	t = newTable(g.Stdout, "GUEST", "NAME", "NODE", "NAMESPACE", "ADDRESSES")
	for _, v := range s.Guests {
		t.row(v.VM, v.Name, v.Node, v.Netns, strings.Join(v.Addresses, " "))
	}
	return t.flush()
}

// printPage prints where the web page is, and how to get in.
func (g *Globals) printPage(self string, s fleet.Status) {
	n := s.Nodes[0]
	g.printf("\nThe web page is at %s/, as on every node; the certificate is of the demo's own authority. A user for it:\n", n.API)
	g.printf("  PALISADE_SOCKET=%s %s user add admin --scope admin\n", n.Socket, self)
}

// printTries prints commands to try, which work one after the other as they stand.
func (g *Globals) printTries(self, state string, s fleet.Status) {
	if len(s.Guests) == 0 {
		return
	}
	guest, here := s.Guests[0], s.Nodes[len(s.Nodes)-1]
	there := here.Name
	if guest.Node == there {
		there = s.Nodes[0].Name
	}
	base := strings.TrimSuffix(s.Nodes[0].Netns, "1")
	g.printf("\nTry, as root:\n")
	for _, line := range []string{
		fmt.Sprintf("export PALISADE_DEMO=%s PALISADE_SOCKET=%s", state, here.Socket),
		fmt.Sprintf("%s block add %s --reason abuse --wait", self, guest.Name),
		fmt.Sprintf("ip netns exec %s0 ping -c 3 %s", base, guest.Addresses[0]),
		fmt.Sprintf("%s demo migrate %s %s", self, guest.Name, there),
		fmt.Sprintf("%s explain --vm %s", self, guest.Name),
		fmt.Sprintf("%s block lift %s --reason abuse --wait", self, guest.Name),
		self + " events",
	} {
		g.printf("  %s\n", line)
	}
}
