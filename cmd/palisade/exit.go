package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/palisade/palisade/agent"
	"github.com/palisade/palisade/httpapi/client"
)

// Exit codes; they are part of the interface.
const (
	exitOK          = 0
	exitOther       = 1
	exitUsage       = 2
	exitRefused     = 3
	exitUnavailable = 4
	exitUnknown     = 5
	exitUnconfirmed = 6
)

// unconfirmedError says that a write is committed, but some live node did not confirm it in time. The
// result was printed.
type unconfirmedError struct{ nodes []string }

func (e *unconfirmedError) Error() string {
	return "committed, but not confirmed in time by every live node: " + strings.Join(e.nodes, ", ")
}

func exitCode(err error) int {
	var (
		usage       usageError
		unconfirmed *unconfirmedError
		unknown     *client.UnknownError
		connect     *client.ConnectError
		problem     *client.Problem
		refused     *agent.RefusedError
		network     *net.OpError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage), errors.Is(err, agent.ErrToken):
		return exitUsage
	case errors.As(err, &refused):
		return exitRefused
	case errors.As(err, &unconfirmed):
		return exitUnconfirmed
	case errors.As(err, &unknown):
		return exitUnknown
	case errors.As(err, &problem):
		switch {
		case problem.Status == http.StatusServiceUnavailable:
			return exitUnavailable
		case problem.Status == http.StatusGatewayTimeout:
			return exitUnknown
		case problem.Status >= 400 && problem.Status < 500:
			return exitRefused
		}
	case errors.As(err, &connect), errors.As(err, &network):
		return exitUnavailable
	}
	return exitOther
}

// fail prints an error in the form asked for and returns the exit code.
func (g *Globals) fail(stderr io.Writer, err error) int {
	code := exitCode(err)
	if g.JSON() {
		if code != exitUnconfirmed { // the document on stdout says it
			enc := json.NewEncoder(stderr)
			enc.SetEscapeHTML(false)
			enc.SetIndent("", "  ")
			_ = enc.Encode(problemFor(err, code))
		}
		return code
	}
	fmt.Fprintln(stderr, "palisade:", clean(message(err)))
	return code
}

// message is what people read: a problem's detail, and what was wrong where the detail does not say.
func message(err error) string {
	var refused *refusedError
	if errors.As(err, &refused) {
		return refused.Error()
	}
	var unknown *client.UnknownError
	if errors.As(err, &unknown) {
		return unknown.Error() + "\nTry again with: --key " + unknown.Key
	}
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	var connect *client.ConnectError
	if errors.As(err, &connect) {
		return err.Error() + "\nIs the agent running there? --socket and --server say which one is called."
	}
	var problem *client.Problem
	if !errors.As(err, &problem) {
		return err.Error()
	}
	var b strings.Builder
	b.WriteString(problem.Detail)
	for _, f := range problem.Errors {
		if !strings.Contains(problem.Detail, f.Message) {
			fmt.Fprintf(&b, "\n  %s: %s", f.Location, f.Message)
		}
	}
	if problem.Code != "" {
		fmt.Fprintf(&b, " [%s]", problem.Code)
	}
	if strings.HasPrefix(problem.Detail, "target.vm: no VM has") {
		b.WriteString("\nAn account is a target with --account, a list with --list.")
	}
	return b.String()
}

// problemFor is the error as a problem document; one that did not come from the API has the status 0.
func problemFor(err error, code int) *client.Problem {
	var unknown *client.UnknownError
	var problem *client.Problem
	switch {
	case errors.As(err, &unknown):
		return &client.Problem{Type: "urn:palisade:problem:outcome_unknown", Title: "Outcome unknown", Code: "outcome_unknown",
			Status: http.StatusGatewayTimeout, Detail: unknown.Error(), Instance: unknown.Key}
	case errors.As(err, &problem):
		return problem
	}
	p := &client.Problem{Type: "about:blank", Title: "Error", Code: "error", Detail: err.Error()}
	switch code {
	case exitUsage:
		p.Title, p.Code = "Wrong usage", "usage"
	case exitUnavailable:
		p.Title, p.Code = "Cannot connect", "cannot_connect"
	}
	return p
}
