package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/palisade/palisade/httpapi/client"
)

// BlockBulkCmd sends a file of JSON lines.
type BlockBulkCmd struct {
	File   string `arg:"" help:"File of JSON lines, - for the standard input. A line is the body of a single block, or {\"add\":…}, {\"lift\":…}, {\"patch\":…}."`
	Atomic bool   `help:"All elements or none; at most 10,000 elements and 8 MB."`
	Key    string `placeholder:"KEY" help:"Idempotency key: the same file with the same key has one effect."`
	DryRun bool   `help:"Change nothing; say what would happen."`
}

// Run implements the command. An element that was refused makes it exit code 3.
func (c *BlockBulkCmd) Run(ctx context.Context, g *Globals) error {
	body, err := readInput(c.File)
	if err != nil {
		return usageError{err}
	}
	api, err := g.Client()
	if err != nil {
		return err
	}
	results, err := api.BulkBlocks(ctx, body, client.Bulk{Key: c.Key, Atomic: c.Atomic, DryRun: c.DryRun})
	var refused []client.BulkResult
	for i := range results {
		if g.JSON() {
			if err := printLine(g.Stdout, &results[i]); err != nil {
				return err
			}
		}
		if results[i].Problem != nil {
			refused = append(refused, results[i])
		}
	}
	if err != nil {
		return err
	}
	if !g.JSON() {
		c.summary(g, results, refused)
	}
	if len(refused) > 0 {
		return &refusedError{refused: len(refused), of: len(results), first: refused[0].Problem}
	}
	return nil
}

func (c *BlockBulkCmd) summary(g *Globals, results, refused []client.BulkResult) {
	const most = 20
	causes := slices.DeleteFunc(slices.Clone(refused), func(r client.BulkResult) bool { return r.Problem.Code == "aborted" })
	for _, r := range causes[:min(len(causes), most)] {
		g.printf("line %d: %s [%s]\n", r.Line, cell(r.Problem.Detail), r.Problem.Code)
	}
	if n := len(causes) - most; n > 0 {
		g.printf("and %d more; -o json shows all\n", n)
	}
	if n := len(refused) - len(causes); n > 0 {
		g.printf("the other %d were not done for that\n", n)
	}
	done := "done"
	if c.DryRun {
		done = "would be done"
	}
	g.printf("%s: %d %s, %d refused\n", count(len(results), "element"), len(results)-len(refused), done, len(refused))
}

// refusedError says that some elements of a bulk request were refused. They were printed.
type refusedError struct {
	refused, of int
	first       *client.Problem
}

// Error implements error.
func (e *refusedError) Error() string {
	return fmt.Sprintf("%d of %s refused", e.refused, count(e.of, "element"))
}

// Unwrap gives the first refusal.
func (e *refusedError) Unwrap() error { return e.first }

func readInput(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(file)
}
