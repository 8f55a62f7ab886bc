package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/palisade/palisade/agent"
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
	log, err := newLogger(g.Stderr, cfg.Log.Level, cfg.Log.Format)
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

// newLogger writes in the form that the config names.
func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var o slog.HandlerOptions
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	o.Level = l
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, &o)), nil
	}
	return slog.New(slog.NewTextHandler(w, &o)), nil
}
