package main

import (
	"cmp"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"
	"time"

	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/httpapi/wire"
)

// Globals are the flags of every command, and where it prints.
type Globals struct {
	Output    string        `short:"o" enum:"text,json" default:"text" group:"Of every command:" help:"Form of the output: text or json."`
	Socket    string        `default:"/run/palisade/palisade.sock" env:"PALISADE_SOCKET" placeholder:"PATH" group:"Of every command:" help:"Unix socket of the agent (default ${default})."`
	Server    string        `env:"PALISADE_SERVER" placeholder:"URL" group:"Of every command:" help:"Call a node over TCP instead, for example https://192.0.2.1:8440."`
	TokenFile string        `placeholder:"FILE" group:"Of every command:" help:"File with the token for --server (or $$PALISADE_TOKEN_FILE); of join, with the join token. A token is never an argument: others on the machine could read it."`
	CAFile    string        `name:"ca" aliases:"ca-file" placeholder:"FILE" group:"Of every command:" help:"Certificates (PEM) that verify --server; else those of the system."`
	RetryFor  time.Duration `default:"5s" group:"Of every command:" help:"How long to try again while there is no quorum or no connection."`

	Stdin  io.Reader `kong:"-"`
	Stdout io.Writer `kong:"-"`
	Stderr io.Writer `kong:"-"`
}

// JSON says whether the output is to be JSON.
func (g *Globals) JSON() bool { return g.Output == "json" }

// Client returns a client of the node that the flags name.
func (g *Globals) Client() (*client.Client, error) {
	o := client.Options{RetryFor: g.RetryFor}
	if o.RetryFor == 0 {
		o.RetryFor = -1
	}
	if g.Server == "" {
		o.Socket = g.Socket
		return client.New(o)
	}
	o.URL = g.Server
	token, err := g.token()
	if err != nil {
		return nil, err
	}
	o.Token = token
	if g.CAFile != "" {
		pem, err := os.ReadFile(g.CAFile)
		if err != nil {
			return nil, usagef("--ca: %w", err)
		}
		o.RootCAs = x509.NewCertPool()
		if !o.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usagef("--ca: %s has no certificate in PEM form", g.CAFile)
		}
	}
	c, err := client.New(o)
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// open opens a file for reading; "-" is standard input, which stays open when the caller closes what it got.
func (g *Globals) open(path string) (io.ReadCloser, error) {
	if path == "-" {
		return io.NopCloser(g.Stdin), nil
	}
	return os.Open(path)
}

// oneLine reads what must not be on the command line, where others on the machine could read it, from the file that a flag names.
func (g *Globals) oneLine(flag, path, what string) (string, error) {
	b, err := g.readSecret(path)
	if err != nil {
		return "", usagef("%s: %w", flag, err)
	}
	line := strings.TrimRight(string(b), "\r\n")
	if line == "" || strings.Contains(line, "\n") {
		return "", usagef("%s: %s does not hold one line with %s", flag, path, what)
	}
	return line, nil
}

// tokenFileEnv names the file of the API token. It is no default of the flag: for join the flag means another token,
// and that of the API must not be sent to an address that is given by hand.
const tokenFileEnv = "PALISADE_TOKEN_FILE"

func (g *Globals) token() (string, error) {
	file := cmp.Or(g.TokenFile, os.Getenv(tokenFileEnv))
	if file == "" {
		return "", usagef("--server needs a token: give --token-file or set %s", tokenFileEnv)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", usagef("--token-file: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return "", usagef("--token-file: %s does not hold one token", file)
	}
	return token, nil
}

// PrintJSON prints one document.
func (g *Globals) PrintJSON(v any) error {
	enc := json.NewEncoder(g.Stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printList prints a list of the API: all pages as one document, or as a table.
func printList[T any](g *Globals, items iter.Seq2[T, error], head []string, row func(T) []string) error {
	list := wire.Page[T]{Items: []T{}}
	for item, err := range items {
		if err != nil {
			return err
		}
		list.Items = append(list.Items, item)
	}
	if g.JSON() {
		return g.PrintJSON(list)
	}
	t := newTable(g.Stdout, head...)
	for _, item := range list.Items {
		t.row(row(item)...)
	}
	return t.flush()
}

// notef prints to the error output what is no part of the result.
func (g *Globals) notef(format string, args ...any) { fmt.Fprintf(g.Stderr, format, args...) }

// printf prints text; what comes from elsewhere goes through clean first.
func (g *Globals) printf(format string, args ...any) { fmt.Fprintf(g.Stdout, format, args...) }
