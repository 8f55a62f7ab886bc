package main

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/palisade/palisade/httpapi/client"
)

// AccountCmd groups what is done with accounts.
type AccountCmd struct {
	Ls   AccountLsCmd   `cmd:"" aliases:"list" help:"List the accounts for which something is set."`
	Show AccountShowCmd `cmd:"" help:"Show an account."`
	Set  AccountSetCmd  `cmd:"" help:"Set an account's note, or until when it is not blocked for the reason unpaid."`
}

// AccountLsCmd lists accounts.
type AccountLsCmd struct{}

// Run implements the command.
func (c *AccountLsCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	head := []string{"ID", "VMS", "BLOCKED BY", "PROTECTED UNTIL", "BY", "NOTE"}
	return printList(g, api.Accounts(ctx), head, func(a client.Account) []string {
		return []string{a.ID, strconv.Itoa(a.VMs), some(a.Blocks, 4), optional(a.DoNotBlockUntil), a.Actor, a.Note}
	})
}

// AccountShowCmd shows one account.
type AccountShowCmd struct {
	ID string `arg:"" help:"Account."`
}

// Run implements the command.
func (c *AccountShowCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	a, err := api.Account(ctx, c.ID)
	if err != nil {
		return err
	}
	return g.printAccount(&a)
}

func (g *Globals) printAccount(a *client.Account) error {
	if g.JSON() {
		return g.PrintJSON(a)
	}
	g.printf("%s  %s\n", cell(a.ID), count(a.VMs, "VM"))
	if a.Note != "" {
		g.printf("  note     %s\n", cell(a.Note))
	}
	if !a.DoNotBlockUntil.IsZero() {
		g.printf("  protect  not blocked for unpaid before %s\n", local(a.DoNotBlockUntil))
	}
	g.printf("  blocked  %s\n", blockedBy(a.Blocks))
	return nil
}

// AccountSetCmd changes what is set for an account; what is not named stays.
type AccountSetCmd struct {
	ID   string  `arg:"" help:"Account."`
	Note *string `help:"For people."`
	Protection
	Key string `placeholder:"KEY" help:"Idempotency key: the same command with the same key has one effect."`
}

// Protection are the flags that protect from blocks of the reason unpaid.
type Protection struct {
	DoNotBlockUntil moment `xor:"protect" placeholder:"TIME" help:"Refuse blocks of reason unpaid that start before: +7d from now, or a time like 2026-01-31T08:00:00+01:00."`
	NoProtection    bool   `xor:"protect" help:"Allow blocks of reason unpaid again."`
}

// apply changes a time as the flags say.
func (p *Protection) apply(t *time.Time) {
	switch {
	case p.NoProtection:
		*t = time.Time{}
	case !p.DoNotBlockUntil.IsZero():
		*t = p.DoNotBlockUntil.Time
	}
}

// Run implements the command. It reads the account and writes it back on the condition that nobody changed
// it in between.
func (c *AccountSetCmd) Run(ctx context.Context, g *Globals) error {
	if c.Note == nil && c.Protection == (Protection{}) {
		return usagef("nothing to change: see palisade account set --help")
	}
	api, err := g.Client()
	if err != nil {
		return err
	}
	a, err := api.Account(ctx, c.ID)
	var p *client.Problem
	if errors.As(err, &p) && p.Status == http.StatusNotFound {
		a, err = client.Account{}, nil
	}
	if err != nil {
		return err
	}
	body := client.AccountRequest{DoNotBlockUntil: a.DoNotBlockUntil, Note: a.Note}
	if c.Note != nil {
		body.Note = *c.Note
	}
	c.apply(&body.DoNotBlockUntil)
	if a, err = api.PutAccount(ctx, c.ID, body, client.Write{Key: c.Key, IfMatch: a.Revision}); err != nil {
		return err
	}
	return g.printAccount(&a)
}
