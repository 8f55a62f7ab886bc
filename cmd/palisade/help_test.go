package main

import (
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// Every example in a help text must be a command line that parses.
func TestExamplesInHelp(t *testing.T) {
	quoted, between := regexp.MustCompile(`'[^']*'`), regexp.MustCompile(` (?:&&|\|) `)
	parse := func(line string) error {
		c := cli{}
		p, err := newParser(&c, io.Discard, io.Discard)
		if err != nil {
			return err
		}
		_, err = p.Parse(strings.Fields(quoted.ReplaceAllString(line, "x"))[1:])
		return err
	}
	p, err := newParser(&cli{}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	err = kong.Visit(p.Model, func(n kong.Visitable, next kong.Next) error {
		if n, ok := n.(*kong.Node); ok {
			for line := range strings.Lines(n.Detail) {
				for _, command := range between.Split(strings.TrimSpace(line), -1) {
					if !strings.HasPrefix(command, "palisade ") {
						continue
					}
					if err := parse(command); err != nil {
						t.Errorf("%s: %s: %v", n.FullPath(), command, err)
					}
					tried++
				}
			}
		}
		return next(nil)
	})
	if err != nil || tried == 0 {
		t.Errorf("%d examples, %v", tried, err)
	}
}
