package main

import (
	"context"

	"github.com/palisade/palisade/httpapi/client"
)

// SettingsCmd groups what is done with the fleet's settings.
type SettingsCmd struct {
	Show SettingsShowCmd `cmd:"" help:"Show the fleet's settings."`
	Set  SettingsSetCmd  `cmd:"" help:"Change the fleet's settings; what is not named stays."`
}

// SettingsShowCmd shows the settings.
type SettingsShowCmd struct{}

// Run implements the command.
func (c *SettingsShowCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	s, err := api.Settings(ctx)
	if err != nil {
		return err
	}
	return g.printSettings(&s)
}

func (g *Globals) printSettings(s *client.Settings) error {
	if g.JSON() {
		return g.PrintJSON(s)
	}
	g.printf("one block touches at most, without --confirm-within or --force:\n")
	g.printf("  max-vms         %d\n", s.MaxVMs)
	g.printf("  max-addresses   %d (IPv6: /64 networks)\n", s.MaxAddresses)
	g.printf("visitors of a redirected VM see:\n")
	g.printf("  redirect-title  %s\n", cell(s.Redirect.Title))
	g.printf("  redirect-text   %s\n", cell(s.Redirect.Text))
	g.printf("  redirect-link   %s\n", cell(s.Redirect.Link))
	g.printf("the fleet agrees by:\n")
	g.printf("  voters               %d nodes, if there are that many\n", s.Voters)
	g.printf("  replace-voter-after  %s\n", s.ReplaceVoterAfter)
	g.printf("VMs may use their registered addresses alone:\n")
	g.printf("  source-guard         %s, unless a VM says otherwise\n", s.SourceGuard)
	return nil
}

// SettingsSetCmd changes settings.
type SettingsSetCmd struct {
	MaxVMs            *uint64 `name:"max-vms" placeholder:"N" help:"VMs that one block may touch without --confirm-within or --force."`
	MaxAddresses      *uint64 `placeholder:"N" help:"Addresses that one block may touch; IPv6 counts in /64 networks."`
	RedirectTitle     *string `placeholder:"TEXT" help:"Title of the page that visitors of a redirected VM see."`
	RedirectText      *string `placeholder:"TEXT" help:"Text of the page."`
	RedirectLink      *string `placeholder:"URL" help:"Link on the page, for example to pay; empty for none."`
	Voters            *int    `placeholder:"N" help:"How many nodes vote: 1, 3, 5 or 7."`
	ReplaceVoterAfter *span   `placeholder:"TIME" help:"How long a voter is dead before another node takes its place, for example 5m."`
	SourceGuard       *string `enum:"on,off" placeholder:"on|off" help:"Let VMs use their registered addresses alone, unless they say otherwise."`
	Key               string  `placeholder:"KEY" help:"Idempotency key: the same command with the same key has one effect."`
}

// Run implements the command. It reads the settings and writes them back on the condition that nobody changed
// them in between.
func (c *SettingsSetCmd) Run(ctx context.Context, g *Globals) error {
	if *c == (SettingsSetCmd{Key: c.Key}) {
		return usagef("nothing to change: see palisade settings set --help")
	}
	api, err := g.Client()
	if err != nil {
		return err
	}
	s, err := api.Settings(ctx)
	if err != nil {
		return err
	}
	body := s.SettingsRequest
	replace(&body.MaxVMs, c.MaxVMs)
	replace(&body.MaxAddresses, c.MaxAddresses)
	replace(&body.Redirect.Title, c.RedirectTitle)
	replace(&body.Redirect.Text, c.RedirectText)
	replace(&body.Redirect.Link, c.RedirectLink)
	replace(&body.Voters, c.Voters)
	replace(&body.SourceGuard, c.SourceGuard)
	if c.ReplaceVoterAfter != nil {
		body.ReplaceVoterAfter = string(*c.ReplaceVoterAfter)
	}
	if s, err = api.PutSettings(ctx, body, client.Write{Key: c.Key, IfMatch: s.Revision}); err != nil {
		return err
	}
	return g.printSettings(&s)
}

func replace[T any](to, with *T) {
	if with != nil {
		*to = *with
	}
}
