package main

import (
	"context"
	"os"
	"strconv"

	"github.com/palisade/palisade/agent"
)

// RestoreCmd brings a fleet back from a backup.
type RestoreCmd struct {
	configFlag
	File string `arg:"" help:"Backup; - for standard input."`
	backupKey
	ConfirmLosses *int   `placeholder:"N" help:"Go on although N things that are held or agreed now are lost; N must be the exact number. Without it, none is given up."`
	Keep          bool   `help:"Carry holds over that the backup does not have, as far as that can be done."`
	Yes           bool   `help:"Do it without asking. It does not stand for --confirm-losses."`
	DryRun        bool   `help:"Only say what would happen."`
	Name          string `help:"Name of this node, for people, if it is new to the fleet."`
	Zone          string `help:"Zone of this node, if it is new to the fleet."`
}

// restoreOutput is what restore prints as JSON.
type restoreOutput struct {
	Fleet string `json:"fleet"`
	Node  string `json:"node"`
	Epoch uint64 `json:"epoch"`
	Index uint64 `json:"index"`
	// Lost is what is held or agreed now and would not be: UNBLOCK and LOSE of the plan for people.
	Lost      []string `json:"lost"`
	Returning []string `json:"returning"`
	Kept      string   `json:"kept,omitempty"`
	Done      bool     `json:"done"`
}

// Run implements the command.
func (c *RestoreCmd) Run(ctx context.Context, g *Globals) error {
	cfg, err := agent.LoadConfig(c.Config)
	if err != nil {
		return err
	}
	content, err := c.read(g, c.File)
	if err != nil {
		return err
	}
	p, err := agent.PlanRestore(ctx, cfg, content, g.quietLogger())
	if err != nil {
		return err
	}
	out := restoreOutput{Fleet: p.Fleet, Node: p.Node, Epoch: p.NewEpoch, Lost: []string{}, Returning: []string{}}
	for _, l := range p.Lost(c.Keep) {
		out.Lost = append(out.Lost, l.String())
	}
	for _, r := range p.Returns {
		out.Returning = append(out.Returning, r.String())
	}
	if !g.JSON() {
		c.printPlan(g, p)
	}
	if c.DryRun {
		if g.JSON() {
			return g.PrintJSON(out)
		}
		return nil
	}
	if err := c.confirm(g, p, len(out.Lost)); err != nil {
		return err
	}
	done, err := p.Do(ctx, "unix:"+strconv.Itoa(os.Getuid()), c.Name, c.Zone, c.Keep)
	if err != nil {
		return err
	}
	out.Epoch, out.Index, out.Kept, out.Done = done.Epoch, done.Index, done.Kept, true
	if g.JSON() {
		return g.PrintJSON(out)
	}
	g.printf("fleet %s goes on from %s under epoch %d, at log index %d\n", done.Fleet, cell(done.Node), done.Epoch, done.Index)
	if done.Kept != "" {
		g.printf("  what was here is kept in %s\n", cell(done.Kept))
	}
	g.printAfterRefound(done.Epoch)
	return nil
}

// confirm goes on only if whoever asks knows what ceases.
func (c *RestoreCmd) confirm(g *Globals, p *agent.RestorePlan, lost int) error {
	switch {
	case c.ConfirmLosses == nil && lost > 0:
		return usagef("%s of what is held or agreed now would be lost; carry over what can be with --keep, or give --confirm-losses %d: nothing was done", count(lost, "thing"), lost)
	case c.ConfirmLosses != nil && *c.ConfirmLosses != lost:
		return usagef("--confirm-losses: %d things would be lost, not %d: nothing was done", lost, *c.ConfirmLosses)
	case c.Yes:
		return nil
	}
	return g.confirmText("", p.Fleet, "", "Type the id of the fleet to go on")
}

func (c *RestoreCmd) printPlan(g *Globals, p *agent.RestorePlan) {
	g.printf("backup    of fleet %s, epoch %d, log index %d, made %s by %s\n", p.Fleet, p.Epoch, p.Index, local(p.At), cell(p.Header.Node))
	how := "a member of it"
	if p.New {
		how = "would become a member of it"
	}
	g.printf("this node %s, %s; its disk ends with log index %d, its kernel holds %s\n", cell(p.Node), how, p.DiskIndex, count(p.Kernel, "element"))
	for _, l := range p.Losses {
		what := "UNBLOCK"
		if l.Agreed {
			what = "LOSE"
		}
		switch {
		case l.Unkept != "":
			g.printf("%-9s %s; can't be kept: %s\n", what, cell(l.String()), cell(l.Unkept))
		case !c.Keep:
			g.printf("%-9s %s\n", what, cell(l.String()))
		default:
			g.printf("keep      %s\n", cell(l.String()))
		}
	}
	for _, r := range p.Returns {
		what := "REBLOCK"
		if r.Block == nil {
			what = "RETURN"
		}
		g.printf("%-9s %s\n", what, cell(r.String()))
	}
	for _, id := range p.Retired {
		g.printf("retired   %s stays retired\n", cell(id))
	}
	g.printf("Tokens, users and settings become those of the backup: what was revoked since must be revoked again.\n\n")
}

// Help implements kong.HelpProvider.
func (*RestoreCmd) Help() string {
	return `The agent of this node must be stopped, or not be a member yet. Examples:

    palisade restore fleet.age --identity key.txt --dry-run
    palisade restore fleet.age --passphrase-file pass --keep
    palisade restore fleet.age --identity key.txt --confirm-losses 3`
}
