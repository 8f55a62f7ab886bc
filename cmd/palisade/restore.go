package main

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/palisade/palisade/agent"
)

// RestoreCmd brings a fleet back from a backup.
type RestoreCmd struct {
	configFlag
	File string `arg:"" help:"Backup; - for standard input."`
	backupKey
	ConfirmUnblocks *int   `placeholder:"N" help:"Go on although N holds cease; N must be the exact number. Without it, nothing that is held now is given up."`
	Keep            bool   `help:"Carry holds over that the backup does not have, as far as that can be done."`
	Yes             bool   `help:"Do it without asking. It does not stand for --confirm-unblocks."`
	DryRun          bool   `help:"Only say what would happen."`
	Name            string `help:"Name of this node, for people, if it is new to the fleet."`
	Zone            string `help:"Zone of this node, if it is new to the fleet."`
}

// restoreOutput is what restore prints as JSON.
type restoreOutput struct {
	Fleet     string   `json:"fleet"`
	Node      string   `json:"node"`
	Epoch     uint64   `json:"epoch"`
	Index     uint64   `json:"index"`
	Unblocked []string `json:"unblocked"`
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
	content, err := c.read(c.File)
	if err != nil {
		return err
	}
	p, err := agent.PlanRestore(ctx, cfg, content, g.quietLogger())
	if err != nil {
		return err
	}
	out := restoreOutput{Fleet: p.Fleet, Node: p.Node, Epoch: p.NewEpoch, Unblocked: []string{}, Returning: []string{}}
	for _, l := range p.Unblocked(c.Keep) {
		out.Unblocked = append(out.Unblocked, l.String())
	}
	for _, b := range p.Returns {
		out.Returning = append(out.Returning, fmt.Sprintf("%s: %s, reason %s", b.ID, b.Target, b.Reason))
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
	if err := c.confirm(g, p, len(out.Unblocked)); err != nil {
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
func (c *RestoreCmd) confirm(g *Globals, p *agent.RestorePlan, unblocked int) error {
	switch {
	case c.ConfirmUnblocks == nil && unblocked > 0:
		return usagef("%s would cease; carry over what can be with --keep, or give --confirm-unblocks %d: nothing was done", count(unblocked, "hold"), unblocked)
	case c.ConfirmUnblocks != nil && *c.ConfirmUnblocks != unblocked:
		return usagef("--confirm-unblocks: %d holds would cease, not %d: nothing was done", unblocked, *c.ConfirmUnblocks)
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
		switch {
		case !c.Keep:
			g.printf("UNBLOCK   %s\n", cell(l.String()))
		case l.Unkept != "":
			g.printf("UNBLOCK   %s; can't be kept: %s\n", cell(l.String()), cell(l.Unkept))
		default:
			g.printf("keep      %s\n", cell(l.String()))
		}
	}
	for _, b := range p.Returns {
		g.printf("REBLOCK   %s: %s, reason %s: it was lifted, or has ended, after the backup was made\n", b.ID, cell(b.Target.String()), cell(b.Reason))
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
    palisade restore fleet.age --identity key.txt --confirm-unblocks 3`
}
