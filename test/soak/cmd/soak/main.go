// Command soak runs the long storms of package soak, one after the other, and says what was done, measured and found
// wrong. It takes down what it brought up, also when it is interrupted.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/palisade/palisade/test/rig"
	"github.com/palisade/palisade/test/soak"
)

type options struct {
	only  string
	seed  uint64
	light int
	qemu  int
	json  bool
}

func main() {
	o := options{}
	flag.StringVar(&o.only, "only", "", "one part: light or qemu")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().Unix()), "what all moves, faults and blocks are drawn from")
	flag.IntVar(&o.light, "light", 1000, "migrations of light guests")
	flag.IntVar(&o.qemu, "qemu", 100, "live migrations of QEMU guests")
	flag.BoolVar(&o.json, "json", false, "print the results as JSON; progress goes to standard error")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	stood, err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
	}
	if err != nil || !stood {
		stop()
		os.Exit(1) //nolint:gocritic // nothing else is deferred
	}
}

// run says whether everything stood.
func run(ctx context.Context, o options) (stood bool, err error) {
	b, err := rig.Build(ctx)
	defer func() {
		if b.Dir != "" {
			err = errors.Join(err, os.RemoveAll(b.Dir))
		}
	}()
	if err != nil {
		return false, err
	}
	parts := []struct {
		name  string
		moves int
		run   func(context.Context, soak.Options) (soak.Result, error)
	}{
		{"light", o.light, soak.Light},
		{"qemu", o.qemu, soak.QEMU},
	}
	results := []soak.Result{}
	for _, p := range parts {
		if o.only != "" && o.only != p.name {
			continue
		}
		fmt.Fprintf(os.Stderr, "== %s, seed %d\n", p.name, o.seed)
		res, perr := p.run(ctx, soak.Options{
			Binaries: b, Seed: o.seed, Moves: p.moves,
			Progress: func(line string) { fmt.Fprintln(os.Stderr, line) },
		})
		if perr != nil {
			return false, fmt.Errorf("%s, seed %d: %w", p.name, o.seed, perr)
		}
		results = append(results, res)
		if !o.json {
			show(os.Stdout, res)
		}
	}
	if len(results) == 0 {
		return false, fmt.Errorf("there is no part %q", o.only)
	}
	if o.json {
		err = json.NewEncoder(os.Stdout).Encode(results)
	}
	stood = true
	for _, res := range results {
		stood = stood && len(res.Failures) == 0
	}
	return stood, err
}

func show(w io.Writer, res soak.Result) {
	fmt.Fprintf(w, "%s: seed %d, %.0f s\n", res.Part, res.Seed, res.Seconds)
	for _, f := range res.Figures {
		fmt.Fprintf(w, "  %-72s %12.6g %s\n", f.Name, f.Value, f.Unit)
	}
	for _, f := range res.Failures {
		fmt.Fprintln(w, "  FAILED:", f)
	}
	if len(res.Failures) == 0 {
		fmt.Fprintln(w, "  stood")
	}
}
