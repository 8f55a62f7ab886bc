// Package hook decides for libvirt whether a guest may come to this node: it asks the node's agent. It is what the package's
// small program libvirt-hook and "palisade hook libvirt" do; it imports little, since libvirt waits for the process to start.
package hook

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/palisade/palisade/httpapi/wire"
)

// Call is what libvirt calls its hook for QEMU guests with.
type Call struct {
	Config    string // path of the agent's config file
	Guest     string // name of the domain
	Operation string // prepare, start, started, stopped, release, migrate, restore, reconnect, attach
	Sub       string // begin, end or -
}

// given is how many arguments libvirt gives: guest, operation, sub-operation, extra.
const given = 4

// Parse reads a command line: libvirt's four arguments, and before them perhaps --config FILE. A guest may have any name, also one
// that looks like a flag.
func Parse(args []string) (Call, bool) {
	c := Call{Config: DefaultConfig}
	switch {
	case len(args) == given+2 && args[0] == "--config":
		c.Config, args = args[1], args[2:]
	case len(args) == given:
	default:
		return Call{}, false
	}
	c.Guest, c.Operation, c.Sub = args[0], args[1], args[2]
	return c, true
}

// Exit runs the call and returns the code that the process ends with; what libvirt logs goes to stderr, and nothing to standard
// output: libvirt would take it for the domain's new XML.
func (c Call) Exit(ctx context.Context, stdin io.Reader, stderr io.Writer) int {
	if err := c.Decide(ctx, stdin); err != nil {
		fmt.Fprintln(stderr, "palisade:", strings.Map(printable, err.Error()))
		return 1
	}
	return 0
}

// printable keeps what a guest's owner may have chosen from talking to a terminal.
func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return ' '
}

const (
	// maxXML bounds what is read of a domain.
	maxXML = 800 << 10
	// releaseTimeout bounds the hint that a guest has gone, for which libvirt waits.
	releaseTimeout = 100 * time.Millisecond
)

// Decide returns an error if the guest must not come. libvirt is never called: it waits for the hook. Of all operations but the
// begin of a migration to here it returns nil, whatever goes wrong: libvirt ends a guest whose hook fails when it starts or is
// found again.
func (c Call) Decide(ctx context.Context, stdin io.Reader) error {
	begins := c.Operation == "migrate" && c.Sub == "begin"
	if !begins && c.Operation != "release" {
		return nil
	}
	xml, err := io.ReadAll(io.LimitReader(stdin, maxXML+1))
	cfg, bad := LoadConfig(c.Config)
	if !begins {
		ctx, cancel := context.WithTimeout(ctx, min(cfg.Timeout, releaseTimeout))
		defer cancel()
		_, _ = c.ask(ctx, cfg.Socket, xml) // a hint: the agent finds out by itself, too
		return nil
	}
	switch {
	case err != nil:
		return fmt.Errorf("can't read the domain's XML: %w", err)
	case len(xml) > maxXML:
		return fmt.Errorf("the domain's XML is larger than %d bytes", maxXML)
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	answer, err := c.ask(ctx, cfg.Socket, xml)
	switch {
	case err == nil && answer.Allow:
		return nil
	case err == nil:
		return fmt.Errorf("refused to let %s in: %s", c.Guest, answer.Reason)
	case cfg.Absent, !cfg.Strict:
		// Open on purpose: the kernel holds what was known last, loaded before libvirt started.
		return nil
	}
	return fmt.Errorf("refused to let %s in: the agent of this node gave no answer, and hook_strict is set: %w", c.Guest, errors.Join(err, bad))
}

// ask asks the agent, with one request on one connection.
func (c Call) ask(ctx context.Context, socket string, xml []byte) (answer wire.LibvirtAnswer, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return answer, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(wire.LibvirtHook{Guest: c.Guest, Operation: c.Operation, XML: string(xml)}); err != nil {
		return answer, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent/v1/local/libvirt", &body)
	if err != nil {
		return answer, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Close = true
	if err := req.Write(conn); err != nil {
		return answer, err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return answer, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return answer, fmt.Errorf("the agent answered %s", res.Status)
	}
	const most = 64 << 10
	err = json.NewDecoder(io.LimitReader(res.Body, most)).Decode(&answer)
	return answer, err
}
