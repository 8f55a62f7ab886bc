package main

import (
	"context"
	"strings"

	"github.com/palisade/palisade/httpapi/client"
)

// TokenCmd groups what is done with API tokens.
type TokenCmd struct {
	Ls     TokenLsCmd     `cmd:"" aliases:"list" help:"List the API tokens."`
	Create TokenCreateCmd `cmd:"" help:"Create an API token; its secret is printed once."`
	Rm     TokenRmCmd     `cmd:"" aliases:"remove" help:"Delete API tokens, on every node at once."`
}

// TokenLsCmd lists tokens.
type TokenLsCmd struct{}

// Run implements the command.
func (c *TokenLsCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	return printList(g, api.Tokens(ctx), []string{"NAME", "SCOPE", "EXPIRES", "CREATED", "BY"}, func(t client.Token) []string {
		end := optional(t.ExpiresAt)
		if t.Expired {
			end = "expired"
		}
		return []string{t.Name, t.Scope, end, local(t.CreatedAt), t.Actor}
	})
}

// TokenCreateCmd creates a token. The secret is alone on stdout, so that it can go into a file unseen.
type TokenCreateCmd struct {
	Name    string `arg:"" help:"Name: what the token does appears in the audit as token:NAME."`
	Scope   string `required:"" enum:"admin,operator,billing,viewer,metrics" help:"What it may do: admin, operator, billing, viewer or metrics."`
	Expires moment `placeholder:"TIME" help:"When it ends: +90d from now, or a time like 2026-01-31T08:00:00+01:00. Without it, never."`
}

// Run implements the command.
func (c *TokenCreateCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	t, err := api.CreateToken(ctx, client.TokenRequest{Name: c.Name, Scope: c.Scope, ExpiresAt: c.Expires.Time})
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(t)
	}
	g.printf("%s\n", cell(t.Secret))
	return nil
}

// TokenRmCmd deletes tokens.
type TokenRmCmd struct {
	Names []string `arg:"" name:"name" help:"Names, as token ls shows them."`
}

// Run implements the command.
func (c *TokenRmCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	for _, name := range c.Names {
		if err := api.DeleteToken(ctx, name, client.Write{}); err != nil {
			return err
		}
	}
	if !g.JSON() {
		g.printf("deleted %s\n", cell(strings.Join(c.Names, ", ")))
	}
	return nil
}
