package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/palisade/palisade/agent"
	"github.com/palisade/palisade/httpapi/client"
)

// configFlag names the config file of the agent on this node.
type configFlag struct {
	Config string `default:"/etc/palisade/palisade.toml" placeholder:"FILE" help:"Config file of the agent on this node (default ${default})."`
}

// InitCmd forms a new fleet.
type InitCmd struct {
	configFlag
	Name string `help:"Name of this node, for people; that of the config file without it."`
	Zone string `help:"Zone of this node: what fails together, for example a room. Voters are spread over zones."`
}

// Run implements the command.
func (c *InitCmd) Run(g *Globals) error {
	cfg, err := agent.LoadConfig(c.Config)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(g.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	f, err := agent.Init(cfg, agent.InitOptions{Name: c.Name, Zone: c.Zone, Actor: "unix:" + strconv.Itoa(os.Getuid())}, log)
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(f)
	}
	g.printf("formed fleet %s with node %s\n", f.Fleet, cell(f.Node))
	g.printf("  CA           SHA-256 %s\n", f.Authority)
	g.printf("  CA file      %s (for --ca on other machines)\n", cell(f.CAFile))
	g.printf("  certificate  until %s, renewed by itself\n", local(f.NotAfter))
	g.printf("  admin token  %s\n", f.Token)
	g.printf("The token is shown once: keep it where only admins read. A lost one is replaced on this node with: palisade token create NAME --scope admin\n")
	g.printf("Next: start the agent if it does not run (systemctl start palisade), then for each further node: palisade join-token create\n")
	return nil
}

// JoinCmd joins this node to a fleet.
type JoinCmd struct {
	configFlag
	Address string        `arg:"" help:"Peer address of any node of the fleet, for example 10.0.0.1:7420."`
	Token   string        `help:"The join token: it can be used once and ends soon, but others on this machine may see it; --token-file - reads it from the input."`
	Name    string        `help:"Name of this node, for people; that of the config file without it."`
	Zone    string        `help:"Zone of this node; that of the token without it."`
	Wait    time.Duration `default:"2m" help:"How long to wait until this node enforces what the fleet does; 0 does not wait."`
}

// Run implements the command.
func (c *JoinCmd) Run(ctx context.Context, g *Globals) error {
	cfg, err := agent.LoadConfig(c.Config)
	if err != nil {
		return err
	}
	token, err := c.token(g)
	if err != nil {
		return err
	}
	began := time.Now()
	say := func(format string, args ...any) {
		if !g.JSON() {
			g.printf("%6.1fs  "+format+"\n", append([]any{time.Since(began).Seconds()}, args...)...)
		}
	}
	say("this node is %s; it asks %s to be admitted", cell(cfg.Node.ID), cell(c.Address))
	out := joinOutput{}
	if out.Joined, err = agent.Join(ctx, cfg, agent.JoinOptions{Remote: c.Address, Token: token, Name: c.Name, Zone: c.Zone}); err != nil {
		return err
	}
	if out.Again {
		say("known to fleet %s as one of %s: a new certificate for the key that this node has", out.Fleet, count(out.Peers, "node"))
	} else {
		say("key made, and admitted to fleet %s at index %d, as one of %s", out.Fleet, out.Index, count(out.Peers, "node"))
	}
	say("certificate until %s, renewed by itself; CA SHA-256 %s", local(out.NotAfter), out.Authority)
	if c.Wait > 0 {
		if err := c.await(ctx, cfg, &out, say); err != nil {
			return err
		}
	}
	if g.JSON() {
		return g.PrintJSON(out)
	}
	return nil
}

// joinOutput is what join prints as JSON.
type joinOutput struct {
	agent.Joined
	Role     string  `json:"role,omitempty"`
	Applied  uint64  `json:"applied_index,omitempty"`
	Enforced uint64  `json:"enforced_index,omitempty"`
	Seconds  float64 `json:"seconds,omitempty"` // until it enforced
}

const maxTokenBytes = 4 << 10

func (c *JoinCmd) token(g *Globals) (string, error) {
	switch {
	case c.Token != "":
		return c.Token, nil
	case g.TokenFile == "":
		return "", usagef("a join token is needed: --token TOKEN, or --token-file FILE; \"palisade join-token create\" on a member makes one")
	}
	in, err := g.open(g.TokenFile)
	if err != nil {
		return "", usagef("--token-file: %w", err)
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, maxTokenBytes))
	return strings.TrimSpace(string(b)), err
}

// agentGrace is how long an agent that was just started may take to open its socket.
const agentGrace = 3 * time.Second

// await waits until the agent on this node has caught up and its kernel stands as the state says.
func (c *JoinCmd) await(ctx context.Context, cfg agent.Config, out *joinOutput, say func(string, ...any)) error {
	api, err := client.New(client.Options{Socket: cfg.API.Socket, RetryFor: -1})
	if err != nil {
		return err
	}
	began := time.Now()
	limit, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	caughtUp := false
	for {
		n, err := api.Node(limit, cfg.Node.ID)
		var connect *client.ConnectError
		if errors.As(err, &connect) && time.Since(began) > agentGrace {
			say("joined; start the agent on this node, for example with: systemctl start palisade")
			return nil
		}
		if err == nil {
			out.Role, out.Applied, out.Enforced, out.Seconds = n.Role, n.AppliedIndex, n.EnforcedIndex, time.Since(began).Seconds()
			if !caughtUp && n.AppliedIndex >= out.Index {
				caughtUp = true
				say("caught up at index %d after %.1f s", n.AppliedIndex, time.Since(began).Seconds())
			}
			if caughtUp && n.Healthy && n.EnforcedIndex >= out.Index {
				say("role %s; in force in the kernel up to index %d", n.Role, n.EnforcedIndex)
				return nil
			}
			err = errors.New("the agent has not caught up yet")
			if n.Problem != "" {
				err = fmt.Errorf("the agent says: %s", n.Problem)
			}
		}
		select {
		case <-limit.Done():
			return fmt.Errorf("joined, but after %v not in force on this node: %w", c.Wait, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
