package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// CompletionCmd prints a completion script, made from the same grammar that parses the command line.
type CompletionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish. For bash: source <(palisade completion bash)"`
}

// Run implements the command.
func (c *CompletionCmd) Run(g *Globals, parser *kong.Kong) error {
	nodes := completions(parser.Model.Node, "", nil)
	var script strings.Builder
	switch c.Shell {
	case "fish":
		fishCompletion(&script, nodes)
	case "zsh":
		fmt.Fprintln(&script, "#compdef palisade\nautoload -U +X bashcompinit && bashcompinit")
		bashCompletion(&script, nodes)
	default:
		bashCompletion(&script, nodes)
	}
	_, err := io.WriteString(g.Stdout, script.String())
	return err
}

// completion is what can follow one command.
type completion struct {
	path     string // "block add", "" for the program itself
	help     string
	commands []*kong.Node
	flags    []*kong.Flag // its own and those of the commands above
}

func completions(n *kong.Node, path string, above []*kong.Flag) []completion {
	c := completion{path: path, help: n.Help, flags: slices.Clone(above)}
	for _, f := range n.Flags {
		if !f.Hidden {
			c.flags = append(c.flags, f)
		}
	}
	out := []completion{c}
	for _, child := range n.Children {
		if child.Hidden || child.Type != kong.CommandNode {
			continue
		}
		out[0].commands = append(out[0].commands, child)
		out = append(out, completions(child, strings.TrimSpace(path+" "+child.Name), c.flags)...)
	}
	return out
}

// bashCompletion writes a function that finds the command among the words so far, skipping flags and
// their values, and offers what can follow it.
func bashCompletion(w io.Writer, nodes []completion) {
	var paths, next, values strings.Builder
	takesValue := map[string]bool{}
	enums := map[string]string{}
	for _, n := range nodes {
		words := make([]string, 0, len(n.commands)+len(n.flags))
		for _, c := range n.commands {
			words = append(words, c.Name)
			fmt.Fprintf(&paths, "      %q) path=%q ;;\n", strings.TrimSpace(n.path+" "+c.Name), strings.TrimSpace(n.path+" "+c.Name))
		}
		for _, f := range n.flags {
			words = append(words, "--"+f.Name)
			for _, name := range flagNames(f) {
				if !f.IsBool() {
					takesValue[name] = true
				}
				if v := valuesOf(f); len(v) > 0 {
					enums[name] = strings.Join(v, " ")
				}
			}
		}
		fmt.Fprintf(&next, "    %q) words=%q ;;\n", n.path, strings.Join(words, " "))
	}
	for _, name := range slices.Sorted(maps.Keys(enums)) {
		fmt.Fprintf(&values, "    %s) COMPREPLY=($(compgen -W %q -- \"$cur\")); return ;;\n", name, enums[name])
	}
	flags := strings.Join(slices.Sorted(maps.Keys(takesValue)), "|")
	fmt.Fprintf(w, `_palisade() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} path="" words="" i word
  COMPREPLY=()
  case "$prev" in
%s    %s) COMPREPLY=($(compgen -f -- "$cur")); return ;;
  esac
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    case "$word" in
      %s) ((i++)); continue ;;
      -*) continue ;;
    esac
    case "${path:+$path }$word" in
%s    esac
  done
  case "$path" in
%s  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -F _palisade palisade
`, values.String(), flags, flags, paths.String(), next.String())
}

// valuesOf are the values that a flag takes, or some of them that its tag "complete" names.
func valuesOf(f *kong.Flag) []string {
	values := f.EnumSlice()
	if f.Enum == "" {
		values = strings.Fields(f.Tag.Get("complete"))
	}
	return slices.DeleteFunc(values, func(v string) bool { return v == "" })
}

func flagNames(f *kong.Flag) []string {
	names := []string{"--" + f.Name}
	if f.Short != 0 {
		names = append(names, "-"+string(f.Short))
	}
	return names
}

// fishCompletion writes one line for each command and flag.
func fishCompletion(w io.Writer, nodes []completion) {
	fmt.Fprintln(w, "complete -c palisade -f")
	root := map[string]bool{}
	for _, f := range nodes[0].flags {
		root[f.Name] = true
		fmt.Fprintln(w, fishFlag("", f))
	}
	for _, n := range nodes {
		when := "__fish_use_subcommand"
		if n.path != "" {
			parts := strings.Fields(n.path)
			for i, p := range parts {
				parts[i] = "__fish_seen_subcommand_from " + p
			}
			when = strings.Join(parts, "; and ")
		}
		var names []string
		for _, c := range n.commands {
			names = append(names, c.Name)
		}
		for _, c := range n.commands {
			cond := when
			if n.path != "" {
				cond += "; and not __fish_seen_subcommand_from " + strings.Join(names, " ")
			}
			fmt.Fprintf(w, "complete -c palisade -n %s -a %s -d %s\n", fishQuote(cond), c.Name, fishQuote(c.Help))
		}
		for _, f := range n.flags {
			if n.path != "" && !root[f.Name] {
				fmt.Fprintln(w, fishFlag(when, f))
			}
		}
	}
}

func fishFlag(when string, f *kong.Flag) string {
	var b strings.Builder
	b.WriteString("complete -c palisade")
	if when != "" {
		b.WriteString(" -n " + fishQuote(when))
	}
	b.WriteString(" -l " + f.Name)
	if f.Short != 0 {
		b.WriteString(" -s " + string(f.Short))
	}
	switch {
	case len(valuesOf(f)) > 0:
		b.WriteString(" -x -a " + fishQuote(strings.Join(valuesOf(f), " ")))
	case !f.IsBool():
		b.WriteString(" -r -F")
	}
	return b.String() + " -d " + fishQuote(f.Help)
}

func fishQuote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", " ").Replace(s) + "'"
}
