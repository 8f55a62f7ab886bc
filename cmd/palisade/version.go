package main

import (
	"encoding/json"
	"io"
	"runtime"
)

// VersionCmd prints the version of this program.
type VersionCmd struct{}

// Run implements the command.
func (c *VersionCmd) Run(g *Globals) error {
	if g.JSON() {
		return g.PrintJSON(map[string]string{"version": buildVersion(), "go": runtime.Version()})
	}
	g.printf("palisade %s (%s)\n", buildVersion(), runtime.Version())
	return nil
}

// printLine prints a document on one line, for streams.
func printLine(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
