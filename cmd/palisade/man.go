package main

import (
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/alecthomas/kong"
)

// ManCmd prints the manual page, made from the same grammar that parses the command line.
type ManCmd struct{}

// Help implements kong.HelpProvider.
func (*ManCmd) Help() string {
	return `Example:

    palisade man`
}

// Run implements the command.
func (c *ManCmd) Run(g *Globals, parser *kong.Kong) error {
	var page strings.Builder
	manPage(&page, parser.Model.Node)
	_, err := io.WriteString(g.Stdout, page.String())
	return err
}

func manPage(w io.Writer, root *kong.Node) {
	about, codes, _ := strings.Cut(description, "\n\n")
	fmt.Fprintf(w, ".TH PALISADE 1 \"\" %s \"User Commands\"\n", manQuote("palisade "+buildVersion()))
	fmt.Fprintf(w, ".SH NAME\npalisade \\- blocks virtual machines and addresses on every node of a fleet\n")
	fmt.Fprintf(w, ".SH SYNOPSIS\n.B palisade\n.I COMMAND\n[\\fIFLAGS\\fR]\n")
	fmt.Fprintf(w, ".SH DESCRIPTION\n%s\n", manText(about))
	fmt.Fprintf(w, ".SH FLAGS OF EVERY COMMAND\n")
	manFlags(w, root.Flags)
	fmt.Fprintf(w, ".SH COMMANDS\n")
	for _, n := range root.Children {
		manCommand(w, n)
	}
	fmt.Fprintf(w, ".SH EXIT STATUS\n%s\n", manText(codes))
	fmt.Fprintf(w, ".SH FILES\n")
	for _, f := range [][2]string{
		{"/etc/palisade/palisade.toml", "The agent's config; its comments say what each key does."},
		{"/var/lib/palisade", "Identity, log, audit, and the ruleset for the next boot. It belongs to the user palisade."},
		{"/run/palisade/palisade.sock", "Where the commands reach the agent; for root alone."},
	} {
		fmt.Fprintf(w, ".TP\n.I %s\n%s\n", manText(f[0]), manText(f[1]))
	}
	fmt.Fprintf(w, ".SH SEE ALSO\n.BR nft (8),\n.BR systemctl (1),\n.BR journalctl (1)\n")
}

func manCommand(w io.Writer, n *kong.Node) {
	if n.Hidden || n.Type != kong.CommandNode {
		return
	}
	fmt.Fprintf(w, ".SS %s\n%s\n", manQuote(strings.TrimPrefix(n.Path(), "palisade ")), manText(n.Help))
	if n.Leaf() {
		fmt.Fprintf(w, ".PP\n.RS\n.B %s\n.RE\n", manText(n.Summary()))
	}
	for _, p := range n.Positional {
		fmt.Fprintf(w, ".TP\n.I %s\n%s\n", manText(p.Summary()), manText(p.Help))
	}
	manFlags(w, n.Flags)
	if n.Detail != "" {
		manDetail(w, n.Detail)
	}
	for _, child := range n.Children {
		manCommand(w, child)
	}
}

func manFlags(w io.Writer, flags []*kong.Flag) {
	for _, f := range flags {
		if f.Hidden {
			continue
		}
		name := "--" + f.Name
		if f.Short != 0 {
			name = "-" + string(f.Short) + ", " + name
		}
		if !f.IsBool() {
			name += "=" + f.FormatPlaceHolder()
		}
		help := f.Help
		if len(f.Envs) > 0 {
			help += " Environment: " + strings.Join(f.Envs, ", ") + "."
		}
		fmt.Fprintf(w, ".TP\n.B %s\n%s\n", manText(name), manText(help))
	}
}

// manDetail writes paragraphs; what is indented stays as it is.
func manDetail(w io.Writer, detail string) {
	open := false
	for _, line := range strings.Split(detail, "\n") {
		if indented := strings.HasPrefix(line, "    "); indented != open && line != "" {
			open = indented
			if open {
				fmt.Fprintln(w, ".PP\n.nf\n.RS")
			} else {
				fmt.Fprintln(w, ".RE\n.fi\n.PP")
			}
		}
		switch {
		case line != "":
			fmt.Fprintln(w, manText(strings.TrimPrefix(line, "    ")))
		case !open:
			fmt.Fprintln(w, ".PP")
		}
	}
	if open {
		fmt.Fprintln(w, ".RE\n.fi")
	}
}

var manSpecial = regexp.MustCompile(`(?m)^[.']`)

// manText is text in which nothing is a request or an escape.
func manText(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	return manSpecial.ReplaceAllString(s, `\&$0`)
}

func manQuote(s string) string { return `"` + strings.ReplaceAll(manText(s), `"`, `\(dq`) + `"` }
