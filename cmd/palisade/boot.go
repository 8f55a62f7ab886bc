package main

import (
	"context"

	"github.com/palisade/palisade/agent"
)

// BootCmd loads what the kernel enforced before the machine was started again.
type BootCmd struct {
	Config string `default:"/etc/palisade/palisade.toml" placeholder:"FILE" help:"Config file of the agent (default ${default})."`
}

// Help implements kong.HelpProvider.
func (*BootCmd) Help() string {
	return `The service palisade-boot runs this once, before the network and libvirt start. It reads the files that the agent keeps in data_dir/boot and asks nobody. A kernel that holds rules of Palisade already is left alone, so that it does no harm at any other time.

Example:

    palisade boot`
}

// bootOutput is the form of -o json.
type bootOutput struct {
	Held     bool   `json:"held"` // the kernel had rules of ours and was left alone
	None     bool   `json:"none"` // nothing was ever saved
	Elements int    `json:"elements"`
	Index    uint64 `json:"index"`
	Lists    int    `json:"list_prefixes"`
}

// Run implements the command.
func (c *BootCmd) Run(ctx context.Context, g *Globals) error {
	cfg, bad := agent.BootConfig(c.Config)
	level, format := cfg.Log.Level, cfg.Log.Format
	to, err := newLog(g.Stderr, level, format)
	if err != nil {
		return err
	}
	log := to.Logger()
	if bad != nil {
		log.Error("the config file can't be read as it is; the ruleset is looked for all the same", "data_dir", cfg.DataDir, "err", bad)
	}
	done, err := agent.Boot(ctx, cfg, log)
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(bootOutput{Held: done.Held, None: done.None, Elements: done.Elements, Index: done.Index, Lists: done.Lists})
	}
	switch {
	case done.Held:
		g.printf("the kernel holds rules of Palisade already; nothing was changed\n")
	case done.None:
		g.printf("no ruleset was saved on this node yet; nothing was loaded\n")
	default:
		g.printf("loaded %d elements of blocks (log index %d) and %d prefixes of lists\n", done.Elements, done.Index, done.Lists)
	}
	return nil
}
