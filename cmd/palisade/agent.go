package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/palisade/palisade/agent"
)

// AgentCmd runs the peer of this node.
type AgentCmd struct {
	Config string `required:"" placeholder:"FILE" help:"Config file (TOML)."`
}

// Run runs the agent until a signal ends it. The kernel keeps every rule.
func (c *AgentCmd) Run(ctx context.Context) error {
	cfg, err := agent.LoadConfig(c.Config)
	if err != nil {
		return err
	}
	a, err := agent.New(cfg, buildVersion(), newLogger(cfg.Log))
	if err != nil {
		return fmt.Errorf("%s: %w", c.Config, err)
	}
	return a.Run(ctx)
}

func newLogger(cfg agent.LogConfig) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.Level)) // checked by LoadConfig
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}
