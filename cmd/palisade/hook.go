package main

import (
	"context"
	"errors"
	"io"

	"github.com/palisade/palisade/internal/hook"
)

// HookCmd groups what other programs of the node call.
type HookCmd struct {
	Libvirt HookLibvirtCmd `cmd:"" help:"Called by libvirt: let a guest in only when what applies to it is in this node's kernel."`
}

// HookLibvirtCmd is libvirt's hook for QEMU guests. It takes no other flags than the one: libvirt gives the arguments.
type HookLibvirtCmd struct {
	Config    string `default:"/etc/palisade/palisade.toml" placeholder:"FILE" help:"Config file of the agent (default ${default})."`
	Guest     string `arg:"" help:"Name of the domain."`
	Operation string `arg:"" help:"What libvirt does: prepare, start, started, stopped, release, migrate, restore, reconnect, attach."`
	Sub       string `arg:"" optional:"" help:"begin, end, or -."`
	Extra     string `arg:"" optional:"" help:"Unused."`
}

// Help implements kong.HelpProvider.
func (*HookLibvirtCmd) Help() string {
	return `The package puts a script into /etc/libvirt/hooks/qemu.d/ that calls this, by a small program that starts faster. Of "migrate begin" it asks the agent on its Unix socket, with the domain's XML from standard input, and exits with 0 if the guest may come; with 1 libvirt refuses the migration, and the guest runs on where it is. All other operations end with 0 at once. What happens while the agent gives no answer is set by hook_timeout and hook_strict in [inventory.libvirt] of the config file. Nothing is printed to standard output: libvirt would take it for the domain's new XML.

Example:

    virsh dumpxml web-7 | palisade hook libvirt web-7 migrate begin -`
}

// Run implements the command.
func (c *HookLibvirtCmd) Run(ctx context.Context, g *Globals) error {
	err := hook.Call{Config: c.Config, Guest: c.Guest, Operation: c.Operation, Sub: c.Sub}.Decide(ctx, g.Stdin)
	if err == nil {
		return nil
	}
	return errors.New(err.Error()) // text alone: the exit code is 1, whatever it was
}

// hookFirst runs libvirt's hook without making the command line first, which takes longer than the answer. Anything out of the
// ordinary is left to the command line.
func hookFirst(ctx context.Context, args []string, stdin io.Reader, stderr io.Writer) (code int, done bool) {
	if len(args) < 2 || args[0] != "hook" || args[1] != "libvirt" {
		return 0, false
	}
	call, ok := hook.Parse(args[2:])
	if !ok {
		return 0, false
	}
	return call.Exit(ctx, stdin, stderr), true
}
