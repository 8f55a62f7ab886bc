package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// DebugCmd groups what helps to find out what is wrong.
type DebugCmd struct {
	Bundle DebugBundleCmd `cmd:"" help:"Write a bundle of what a node knows of itself, without secrets."`
}

// DebugBundleCmd writes a bundle.
type DebugBundleCmd struct {
	Out string `placeholder:"FILE" help:"File to write, which must not exist; else palisade-debug-TIME.tar.gz in this directory."`
}

// Help implements kong.HelpProvider.
func (*DebugBundleCmd) Help() string {
	return `The bundle is a gzipped tar: status, problems and peers, config, metrics, the newest lines of the log, goroutines, heap, and the rules in the kernel. Tokens, keys, passwords and the queries of URLs are taken out. Names and addresses of nodes and VMs are in it.

Examples:
  palisade debug bundle
  palisade debug bundle --out /tmp/node-1.tar.gz`
}

// Run implements the command.
func (c *DebugBundleCmd) Run(ctx context.Context, g *Globals) (err error) {
	api, err := g.Client()
	if err != nil {
		return err
	}
	if c.Out == "" {
		c.Out = "palisade-debug-" + time.Now().UTC().Format("20060102-150405") + ".tar.gz"
	}
	f, err := os.OpenFile(c.Out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return usagef("--out: %s exists already", c.Out)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil { // a part of a bundle is none
			err = errors.Join(err, os.Remove(c.Out))
		}
	}()
	if err := errors.Join(api.DebugBundle(ctx, f), f.Close()); err != nil {
		return err
	}
	st, err := os.Stat(c.Out)
	if err != nil {
		return fmt.Errorf("the bundle: %w", err)
	}
	if g.JSON() {
		return g.PrintJSON(map[string]any{"file": c.Out, "bytes": st.Size()})
	}
	g.printf("%s: %d bytes; look through it before you give it to somebody\n", c.Out, st.Size())
	return nil
}
