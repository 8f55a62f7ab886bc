// Command palisade is the agent of a virtualization node and the command line of the fleet.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"
)

// version is set by -ldflags "-X main.version=…"; without it the module's version is shown.
var version string

func buildVersion() string {
	if version != "" {
		return version
	}
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := bi.Main.Version
	for _, s := range bi.Settings {
		if s.Key == "vcs.revision" && (v == "" || v == "(devel)") {
			v = s.Value[:min(len(s.Value), 12)]
		}
	}
	return v
}

// cli is the grammar of the command line.
type cli struct {
	Globals

	Agent    AgentCmd    `cmd:"" help:"Run the peer of this node."`
	Boot     BootCmd     `cmd:"" help:"Load this node's last ruleset into an empty kernel, before the network starts."`
	Block    BlockCmd    `cmd:"" help:"Block VMs, addresses, accounts and lists, now or later; list and lift blocks."`
	Schedule ScheduleCmd `cmd:"" help:"List what starts and ends by itself, soonest first."`
	VM       VMCmd       `cmd:"" name:"vm" help:"Show and declare VMs."`
	Account  AccountCmd  `cmd:"" help:"Show and set accounts."`
	List     ListCmd     `cmd:"" help:"Show, put and change lists of prefixes."`
	Guard    GuardCmd    `cmd:"" help:"Show and set what can never be blocked."`
	Settings SettingsCmd `cmd:"" help:"Show and set the fleet's settings."`
	Token    TokenCmd    `cmd:"" help:"Show, create and delete API tokens."`
	User     UserCmd     `cmd:"" help:"Show, create, change and delete the users that log in with a password."`
	Session  SessionCmd  `cmd:"" help:"Show and end logins."`
	Node     NodeCmd     `cmd:"" help:"Show the nodes of the fleet."`
	Explain  ExplainCmd  `cmd:"" help:"Say what happens to a packet and why, or what holds a VM."`
	Audit    AuditCmd    `cmd:"" help:"Show, export and verify the record of every change."`
	Events   EventCmd    `cmd:"" help:"Follow all changes as they happen."`
	Status   StatCmd     `cmd:"" help:"Show this node's standing and its picture of the fleet."`
	Debug    DebugCmd    `cmd:"" help:"Find out what is wrong with a node."`

	Init      InitCmd      `cmd:"" help:"Form a new fleet, with this node as its first."`
	Join      JoinCmd      `cmd:"" help:"Join this node to a fleet."`
	JoinToken JoinTokenCmd `cmd:"" help:"Show, create and delete tokens that admit nodes."`
	CA        CACmd        `cmd:"" name:"ca" help:"Show and rotate the fleet's certificate authority."`
	GossipKey GossipKeyCmd `cmd:"" help:"Rotate the key of the gossip."`

	Backup  BackupCmd  `cmd:"" help:"Make and check backups."`
	Restore RestoreCmd `cmd:"" help:"Bring a fleet back from a backup, on this node."`
	Recover RecoverCmd `cmd:"" help:"Go on from this node alone, after the quorum was lost for good."`
	Settle  SettleCmd  `cmd:"" help:"After a recovery: let nodes let go of what only their kernels hold."`

	Hook HookCmd `cmd:"" help:"What other programs of this node call."`

	Demo DemoCmd `cmd:"" help:"A fleet on this one machine: nodes, agents and guests."`

	Version    VersionCmd    `cmd:"" help:"Print the version."`
	Completion CompletionCmd `cmd:"" help:"Print a script that completes commands in a shell."`
	Man        ManCmd        `cmd:"" help:"Print the manual page."`
}

const description = `Palisade blocks VMs and addresses on every node of a fleet, in the kernel.

Exit codes: 0 done; 1 another error; 2 wrong usage; 3 refused by the fleet; 4 no quorum, or the node cannot be reached; 5 outcome unknown (a retry with the same --key is safe); 6 committed, but not confirmed on every live node in time.`

func main() { os.Exit(mainCode()) }

func mainCode() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if code, done := hookFirst(ctx, os.Args[1:], os.Stdin, os.Stderr); done {
		return code
	}
	return run(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

// exit is how kong ends the program after it printed help.
type exit int

// run parses and runs one command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (code int) {
	defer func() {
		if r := recover(); r != nil {
			e, ok := r.(exit)
			if !ok {
				panic(r) //nolint:forbidigo // it was none of ours
			}
			code = int(e)
		}
	}()
	var c cli
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, stdout, stderr
	parser, err := newParser(&c, stdout, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "palisade:", err)
		return exitOther
	}
	kctx, err := parser.Parse(args)
	if err != nil {
		return c.fail(stderr, usageOf(err))
	}
	kctx.BindTo(ctx, (*context.Context)(nil))
	kctx.Bind(&c.Globals, parser)
	if err := kctx.Run(); err != nil {
		return c.fail(stderr, err)
	}
	return exitOK
}

func newParser(c *cli, stdout, stderr io.Writer) (*kong.Kong, error) {
	return kong.New(c,
		kong.Name("palisade"),
		kong.Description(description),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { panic(exit(code)) }), //nolint:forbidigo // kong goes on if this returns; run recovers it
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
	)
}

// usageError is a command line that does not parse or does not fit together.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// aliases are what kong writes behind the name of a command.
var aliases = regexp.MustCompile(` \([^)]*\)`)

func usageOf(err error) error {
	var parse *kong.ParseError
	if errors.As(err, &parse) && parse.Context != nil {
		path := "palisade"
		if n := parse.Context.Selected(); n != nil {
			path = aliases.ReplaceAllString(n.FullPath(), "")
		}
		return usagef("%w (see %s --help)", err, path)
	}
	return usageError{err}
}
