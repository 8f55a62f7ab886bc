package main

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/palisade/palisade/agent"
)

// RecoverCmd makes one surviving node the whole quorum.
type RecoverCmd struct {
	configFlag
	LoseQuorum string `name:"yes-lose-quorum" placeholder:"FLEET" help:"Do it without asking; FLEET must be the fleet's id."`
	Backup     string `placeholder:"FILE" help:"A backup of this fleet, for the key to its secrets, where this node has none because it did not vote."`
	backupKey
}

// Run implements the command.
func (c *RecoverCmd) Run(ctx context.Context, g *Globals) error {
	cfg, err := agent.LoadConfig(c.Config)
	if err != nil {
		return err
	}
	p, err := agent.PlanRecover(cfg, g.quietLogger())
	if err != nil {
		return err
	}
	var seal []byte
	if c.Backup != "" {
		found, err := c.read(g, c.Backup)
		if err != nil {
			return err
		}
		if found.Fleet != p.Fleet {
			return fmt.Errorf("%s is a backup of the fleet %s, this node is of the fleet %s", c.Backup, found.Fleet, p.Fleet)
		}
		seal = found.SealKey
	}
	if !g.JSON() || c.LoseQuorum == "" {
		g.printRecoverPlan(p)
	}
	if err := g.confirmText(c.LoseQuorum, p.Fleet, "--yes-lose-quorum", "Type the id of the fleet to go on"); err != nil {
		return err
	}
	done, err := p.Do(ctx, "unix:"+strconv.Itoa(os.Getuid()), seal)
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(map[string]any{"fleet": done.Fleet, "node": done.Node, "epoch": done.Epoch, "index": done.Index, "kept": done.Kept})
	}
	g.printf("fleet %s goes on from %s under epoch %d, at log index %d\n", done.Fleet, cell(done.Node), done.Epoch, done.Index)
	g.printf("  what was here is kept in %s\n", cell(done.Kept))
	g.printAfterRefound(done.Epoch)
	return nil
}

func (g *Globals) printRecoverPlan(p *agent.RecoverPlan) {
	g.printf("fleet     %s\n", p.Fleet)
	g.printf("this node %s; its disk ends with log index %d: %s, %s\n", cell(p.Node), p.Index, count(p.Blocks, "active block"), count(p.VMs, "VM"))
	g.printf("voters    %s\n", cell(strings.Join(p.Voters, ", ")))
	g.printf("members   %s\n", cell(strings.Join(p.Members, ", ")))
	if p.Gated {
		g.printf("NOTE      this node lost its store once and was not filled since: it may lack what it acknowledged\n")
	}
	g.printf("\nIf a majority of the voters can still be brought back, do that instead: nothing is lost then.\n")
	g.printf("What was written after log index %d, on %s, is given up: blocks and lifts that were acknowledged may be among it.\n", p.Index, cell(some(p.Lost(), 8)))
	g.printf("This node becomes the only voter, under epoch %d. The others set what they hold aside when they hear of it, and rejoin.\n", p.Epoch)
	g.printf("What their kernels block stays blocked until somebody lifts it or settles the epoch.\n\n")
}

func (g *Globals) printAfterRefound(epoch uint64) {
	g.printf("Next: start the agent (systemctl start palisade). The other nodes rejoin by themselves once they reach this one; retire those that are gone:\n")
	g.printf("  palisade node ls\n  palisade node retire ID --force\n")
	g.printf("Then look at what kernels hold that the state does not (PROBLEM in node ls), block what is to stay, and let the rest go:\n  palisade settle %d\n", epoch)
}

func (g *Globals) quietLogger() *slog.Logger {
	return slog.New(slog.NewTextHandler(g.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// confirmText goes on only if what was given with a flag, or else is typed now, is a certain text.
func (g *Globals) confirmText(given, want, flag, question string) error {
	if given != "" {
		if given != want {
			return usagef("%s: %q is not %q: nothing was done", flag, given, want)
		}
		return nil
	}
	g.printf("%s: ", question)
	in := bufio.NewScanner(g.Stdin)
	in.Scan()
	if got := strings.TrimSpace(in.Text()); got != want {
		return usagef("%q is not %q: nothing was done", got, want)
	}
	return nil
}

// Help implements kong.HelpProvider.
func (*RecoverCmd) Help() string {
	return `The agent of this node must be stopped. Examples:

    palisade recover
    palisade recover --yes-lose-quorum 0123456789abcdef`
}
