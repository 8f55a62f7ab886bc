package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/palisade/palisade/agent"
	"github.com/palisade/palisade/internal/logs"
)

// AgentCmd runs the agent until it is told to stop.
type AgentCmd struct {
	Config string `default:"/etc/palisade/palisade.toml" placeholder:"FILE" help:"Config file, TOML (default ${default})."`
	Check  bool   `help:"Only check the config file."`
}

// Run implements the command. It ends without an error on SIGINT or SIGTERM; the kernel goes on
// enforcing.
func (c *AgentCmd) Run(ctx context.Context, g *Globals) error {
	cfg, err := agent.LoadConfig(c.Config)
	if err != nil {
		return err
	}
	log, err := newLog(g.Stderr, cfg.Log.Level, cfg.Log.Format)
	if err != nil {
		return err
	}
	a, err := agent.New(cfg, buildVersion(), log)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Config, err)
	}
	if c.Check {
		g.printf("%s is valid\n", c.Config)
		return nil
	}
	return a.Run(ctx)
}

// newLog writes in the form that the config names; to the journal, if systemd has connected w to it, with priorities.
func newLog(w io.Writer, level, format string) (*logs.Log, error) {
	o := logs.Options{Writer: w, JSON: format == "json"}
	if err := o.Level.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	if f, ok := w.(*os.File); ok {
		o.Journal = logs.ToJournal(f, os.Getenv("JOURNAL_STREAM"))
	}
	return logs.New(o), nil
}
