package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/httpapi/wire"
)

// ListCmd groups what is done with lists.
type ListCmd struct {
	Ls     ListLsCmd     `cmd:"" aliases:"list" help:"List the lists."`
	Show   ListShowCmd   `cmd:"" help:"Show a list, or its entries."`
	Put    ListPutCmd    `cmd:"" help:"Replace a list by what is in a file, or create it."`
	Patch  ListPatchCmd  `cmd:"" help:"Add and remove entries, or describe a list."`
	Rm     ListRmCmd     `cmd:"" aliases:"remove" help:"Delete a list that no block holds."`
	Source ListSourceCmd `cmd:"" help:"Have a list loaded from an URL or a file at an interval."`
}

// ListLsCmd lists lists.
type ListLsCmd struct{}

// Run implements the command.
func (c *ListLsCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	head := []string{"NAME", "ENTRIES", "BLOCKS", "LOADED", "FROM", "OWNER"}
	return printList(g, api.Lists(ctx), head, func(l client.List) []string {
		return []string{l.Name, strconv.Itoa(l.Size), some(l.Blocks, 4), optional(l.LoadedAt), listOrigin(&l), l.Owner}
	})
}

func listOrigin(l *client.List) string {
	if l.Source != nil {
		return l.Source.URL
	}
	return l.Origin
}

// ListShowCmd shows one list.
type ListShowCmd struct {
	Name    string `arg:"" help:"List."`
	Entries bool   `help:"Print the entries, one on each line: what put takes."`
	Within  string `placeholder:"PREFIX" help:"Print only the entries that overlap an address or a CIDR."`
}

// Run implements the command.
func (c *ListShowCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	if !c.Entries && c.Within == "" {
		l, err := api.List(ctx, c.Name)
		if err != nil {
			return err
		}
		return g.printOneList(&l)
	}
	if g.JSON() {
		list := wire.ListPrefixesRequest{Prefixes: []string{}}
		for e, err := range api.ListEntries(ctx, c.Name, c.Within) {
			if err != nil {
				return err
			}
			list.Prefixes = append(list.Prefixes, e)
		}
		return g.PrintJSON(list)
	}
	out := bufio.NewWriter(g.Stdout)
	for e, err := range api.ListEntries(ctx, c.Name, c.Within) {
		if err != nil {
			return err
		}
		fmt.Fprintln(out, e)
	}
	return out.Flush()
}

func (g *Globals) printOneList(l *client.List) error {
	if g.JSON() {
		return g.PrintJSON(l)
	}
	g.printf("%s  %s, loaded %s\n", cell(l.Name), listSize(l.Size), local(l.LoadedAt))
	for _, line := range [][2]string{{"owner", l.Owner}, {"note", l.Note}, {"origin", l.Origin}} {
		if line[1] != "" {
			g.printf("  %-8s %s\n", line[0], cell(line[1]))
		}
	}
	g.printf("  blocks   %s\n", cell(some(l.Blocks, 10)))
	if s := l.Source; s != nil {
		g.printf("  source   %s every %s, at most %s\n", cell(s.URL), interval(s.Interval), size(s.MaxBytes))
		if s.CheckedAt.IsZero() {
			g.printf("  checked  not yet, as far as this node knows (the leader loads lists)\n")
		} else {
			g.printf("  checked  %s\n", local(s.CheckedAt))
		}
		if s.LastError != "" {
			g.printf("  error    %s\n", cell(s.LastError))
		}
	}
	return nil
}

// interval is a duration without what is zero at its end.
func interval(s string) string {
	if short, ok := strings.CutSuffix(s, "m0s"); ok {
		s = short + "m"
	}
	if short, ok := strings.CutSuffix(s, "h0m"); ok {
		s = short + "h"
	}
	return s
}

func size(bytes uint64) string {
	if bytes > 0 && bytes%(1<<20) == 0 {
		return fmt.Sprintf("%d MiB", bytes>>20)
	}
	return fmt.Sprintf("%d bytes", bytes)
}

func listSize(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

// ListPutCmd replaces a list.
type ListPutCmd struct {
	Name        string        `arg:"" help:"List."`
	File        string        `arg:"" help:"File with an address or CIDR on each line and comments after #; - for standard input."`
	SkipInvalid bool          `help:"Leave out lines that are no address or CIDR; else nothing is changed if there is one."`
	Force       bool          `help:"Allow that a block which holds the list comes to touch more than the settings allow. Takes the scope admin."`
	DryRun      bool          `help:"Change nothing and say what would happen."`
	IfMatch     uint64        `placeholder:"REVISION" help:"Only if the list has this revision."`
	Wait        bool          `help:"Until every live node has it in its kernel, if a block holds it."`
	Timeout     time.Duration `default:"60s" help:"How long --wait waits, 100ms to 60s."`
}

// Run implements the command.
func (c *ListPutCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	o := client.ListPut{
		Origin: "stdin", IfMatch: c.IfMatch, SkipInvalid: c.SkipInvalid, Force: c.Force, DryRun: c.DryRun, Wait: c.Wait, Timeout: c.Timeout,
	}
	var from io.Reader = os.Stdin
	var size int64
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return usagef("%w", err)
		}
		defer f.Close()
		if st, err := f.Stat(); err == nil {
			size = st.Size()
		}
		from, o.Origin = f, filepath.Base(c.File)
	}
	p := &progress{from: from, size: size, to: g.Stderr, show: isTerminal(g.Stderr)}
	r, err := api.PutList(ctx, c.Name, p, o)
	p.end()
	if err != nil {
		return err
	}
	return g.printListResult(c.Name, &r)
}

func (g *Globals) printListResult(name string, r *client.ListResult) error {
	unconfirmed := func() error {
		if len(r.Unconfirmed) > 0 {
			return &unconfirmedError{r.Unconfirmed}
		}
		return nil
	}
	if g.JSON() {
		if err := g.PrintJSON(r); err != nil {
			return err
		}
		return unconfirmed()
	}
	if r.DryRun {
		g.printf("dry run: nothing was changed; the list would cover addresses of %s\n", count(r.VMs, "VM"))
	}
	if r.Refused != "" {
		g.printf("it would be refused: %s\n", cell(r.Refused))
	}
	g.printf("%s  %s: %d added, %d removed, %d merged\n", cell(name), listSize(r.Size), r.Added, r.Removed, r.Merged)
	if r.Guarded > 0 {
		g.printf("  %s overlap what can never be blocked; that part has no effect\n", listSize(r.Guarded))
	}
	for _, p := range r.Problems {
		g.printf("  line %d left out: %s\n", p.Line, cell(p.Detail))
	}
	if more := r.Skipped - len(r.Problems); more > 0 {
		g.printf("  and %d more\n", more)
	}
	return unconfirmed()
}

// progress shows on a terminal how much of a file was sent.
type progress struct {
	from io.Reader
	size int64 // 0 if it is not known
	to   io.Writer
	show bool
	sent int64
	last time.Time
}

// Read implements io.Reader.
func (p *progress) Read(b []byte) (int, error) {
	n, err := p.from.Read(b)
	p.sent += int64(n)
	if p.show && time.Since(p.last) > 100*time.Millisecond {
		p.last = time.Now()
		if p.size > 0 {
			fmt.Fprintf(p.to, "\r%3d%% sent", p.sent*100/p.size)
		} else {
			fmt.Fprintf(p.to, "\r%d bytes sent", p.sent)
		}
	}
	return n, err
}

// end clears the line.
func (p *progress) end() {
	if p.show && !p.last.IsZero() {
		fmt.Fprint(p.to, "\r\033[K")
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// ListPatchCmd changes a list.
type ListPatchCmd struct {
	Name        string   `arg:"" help:"List."`
	Add         []string `placeholder:"PREFIX" help:"Address or CIDR to add; may be given more than once."`
	Remove      []string `placeholder:"PREFIX" help:"Address or CIDR to remove; of an entry around it, the rest stays."`
	Owner       *string  `help:"Who is responsible for it."`
	Note        *string  `help:"For people."`
	SkipInvalid bool     `help:"Leave out what is no address or CIDR."`
	Force       bool     `help:"Allow that a block which holds the list comes to touch more than the settings allow. Takes the scope admin."`
	IfMatch     uint64   `placeholder:"REVISION" help:"Only if the list has this revision."`
	Wait        bool     `help:"Until every live node has it in its kernel, if a block holds it."`
	Key         string   `placeholder:"KEY" help:"Idempotency key."`
}

// Run implements the command.
func (c *ListPatchCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	body := client.ListPatchRequest{Add: c.Add, Remove: c.Remove, Owner: c.Owner, Note: c.Note}
	r, err := api.PatchList(ctx, c.Name, body, client.ListPatch{SkipInvalid: c.SkipInvalid, Force: c.Force}, client.Write{Key: c.Key, IfMatch: c.IfMatch, Wait: c.Wait})
	if err != nil {
		return err
	}
	return g.printListResult(c.Name, &r)
}

// ListRmCmd deletes a list.
type ListRmCmd struct {
	Name    string `arg:"" help:"List."`
	IfMatch uint64 `placeholder:"REVISION" help:"Only if the list has this revision."`
	Key     string `placeholder:"KEY" help:"Idempotency key."`
}

// Run implements the command.
func (c *ListRmCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	if err := api.DeleteList(ctx, c.Name, client.Write{Key: c.Key, IfMatch: c.IfMatch}); err != nil {
		return err
	}
	if !g.JSON() {
		g.printf("%s is deleted\n", cell(c.Name))
	}
	return nil
}

// ListSourceCmd sets where a list is loaded from.
type ListSourceCmd struct {
	Name     string `arg:"" help:"List; it is created if there is none."`
	URL      string `arg:"" optional:"" help:"http, https or file URL; one with a password or a key goes into a file, see --url-file."`
	URLFile  string `placeholder:"FILE" help:"File with the URL, which others on the machine could read on the command line; - reads it from standard input."`
	Interval string `default:"1h" help:"How often it is loaded, at least 1m."`
	MaxBytes uint64 `help:"Of the text, unpacked; 32 MiB if not given."`
	None     bool   `help:"Load it no more; what it has stays."`
	Key      string `placeholder:"KEY" help:"Idempotency key."`
}

// Run implements the command.
func (c *ListSourceCmd) Run(ctx context.Context, g *Globals) error {
	given := 0
	for _, is := range []bool{c.URL != "", c.URLFile != "", c.None} {
		if is {
			given++
		}
	}
	if given != 1 {
		return usagef("give one of an URL, --url-file and --none")
	}
	if c.URLFile != "" {
		var err error
		if c.URL, err = g.oneLine("--url-file", c.URLFile, "an URL"); err != nil {
			return err
		}
	}
	api, err := g.Client()
	if err != nil {
		return err
	}
	w := client.Write{Key: c.Key}
	var l client.List
	if c.None {
		l, err = api.DeleteListSource(ctx, c.Name, w)
	} else {
		l, err = api.PutListSource(ctx, c.Name, client.ListSourceRequest{URL: c.URL, Interval: c.Interval, MaxBytes: c.MaxBytes}, w)
	}
	if err != nil {
		return err
	}
	return g.printOneList(&l)
}
