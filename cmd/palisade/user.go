package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/palisade/palisade/httpapi/client"
)

// UserCmd groups what is done with users.
type UserCmd struct {
	Ls     UserLsCmd     `cmd:"" aliases:"list" help:"List the users that log in with a password."`
	Add    UserAddCmd    `cmd:"" help:"Create a user."`
	Passwd UserPasswdCmd `cmd:"" help:"Set a user's password, which ends all sessions of the user."`
	Scope  UserScopeCmd  `cmd:"" help:"Set what a user may do, which ends all sessions of the user."`
	Rm     UserRmCmd     `cmd:"" aliases:"remove" help:"Delete users, and end their sessions."`
}

// UserLsCmd lists users.
type UserLsCmd struct{}

// Run implements the command.
func (c *UserLsCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	return printList(g, api.Users(ctx), []string{"NAME", "SCOPE", "CREATED", "CHANGED BY"}, func(u client.User) []string {
		return []string{u.Name, u.Scope, local(u.CreatedAt), u.Actor}
	})
}

// PasswordFlags say where a password comes from; it is never on the command line, where others on the machine could
// read it.
type PasswordFlags struct {
	PasswordFile string `placeholder:"FILE" help:"File with the password; - reads it from standard input. Without it, it is asked for twice."`
}

// read returns the password.
func (f *PasswordFlags) read(g *Globals, user string) (string, error) {
	if f.PasswordFile == "" {
		return f.ask(g, user)
	}
	return g.oneLine("--password-file", f.PasswordFile, "a password")
}

// ask asks for the password twice, on a terminal that does not show it.
func (f *PasswordFlags) ask(g *Globals, user string) (string, error) {
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return "", usagef("there is no terminal to ask for the password: give --password-file, - for standard input")
	}
	var typed [2][]byte
	for i, prompt := range []string{"Password for " + clean(user) + ": ", "Again: "} {
		fmt.Fprint(g.Stderr, prompt)
		var err error
		typed[i], err = term.ReadPassword(fd)
		fmt.Fprintln(g.Stderr)
		if err != nil {
			return "", err
		}
	}
	if !bytes.Equal(typed[0], typed[1]) {
		return "", usagef("the two passwords are not the same")
	}
	return string(typed[0]), nil
}

// UserAddCmd creates a user.
type UserAddCmd struct {
	Name  string `arg:"" help:"Name: what the user does appears in the audit as user:NAME."`
	Scope string `required:"" enum:"admin,operator,billing,viewer,metrics" help:"What the user may do: admin, operator, billing, viewer or metrics."`
	PasswordFlags
}

// Run implements the command. A user that exists is left alone.
func (c *UserAddCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	var p *client.Problem
	switch _, err := api.User(ctx, c.Name); {
	case err == nil:
		return usagef("there is a user %q; passwd and scope change it", c.Name)
	case !errors.As(err, &p) || p.Status != http.StatusNotFound:
		return err
	}
	password, err := c.read(g, c.Name)
	if err != nil {
		return err
	}
	u, err := api.PutUser(ctx, c.Name, client.UserRequest{Scope: c.Scope, Password: password}, 0)
	if err != nil {
		return err
	}
	return g.printUser(&u)
}

// UserPasswdCmd sets a password.
type UserPasswdCmd struct {
	Name string `arg:"" help:"Name, as user ls shows it."`
	PasswordFlags
}

// Run implements the command.
func (c *UserPasswdCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	was, err := api.User(ctx, c.Name)
	if err != nil {
		return err
	}
	password, err := c.read(g, c.Name)
	if err != nil {
		return err
	}
	u, err := api.PutUser(ctx, c.Name, client.UserRequest{Password: password}, was.Revision)
	if err != nil {
		return err
	}
	return g.printUser(&u)
}

// UserScopeCmd sets a scope.
type UserScopeCmd struct {
	Name  string `arg:"" help:"Name, as user ls shows it."`
	Scope string `arg:"" enum:"admin,operator,billing,viewer,metrics" help:"What the user may do: admin, operator, billing, viewer or metrics."`
}

// Run implements the command.
func (c *UserScopeCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	was, err := api.User(ctx, c.Name)
	if err != nil {
		return err
	}
	u, err := api.PutUser(ctx, c.Name, client.UserRequest{Scope: c.Scope}, was.Revision)
	if err != nil {
		return err
	}
	return g.printUser(&u)
}

func (g *Globals) printUser(u *client.User) error {
	if g.JSON() {
		return g.PrintJSON(u)
	}
	g.printf("%s  scope %s\n", cell(u.Name), cell(u.Scope))
	return nil
}

// UserRmCmd deletes users.
type UserRmCmd struct {
	Names []string `arg:"" name:"name" help:"Names, as user ls shows them."`
}

// Run implements the command.
func (c *UserRmCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	for _, name := range c.Names {
		if err := api.DeleteUser(ctx, name, client.Write{}); err != nil {
			return err
		}
	}
	if !g.JSON() {
		g.printf("deleted %s\n", cell(strings.Join(c.Names, ", ")))
	}
	return nil
}
