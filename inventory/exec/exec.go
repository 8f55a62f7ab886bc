// Package exec is the inventory of hypervisors without a driver of their own: any program that prints their
// VMs, one JSON object a line. See docs/inventories.md for the format.
package exec

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/palisade/palisade/inventory"
	"github.com/palisade/palisade/inventory/output"
	"github.com/palisade/palisade/inventory/poll"
)

// MaxLine bounds one line, in bytes.
const MaxLine = 64 << 10

// Options of a driver.
type Options struct {
	Source output.Source
	// Interval is the pause before a program that has ended runs again. Default 5 s.
	Interval time.Duration
	// Timeout is how long a listing may take, from its first line to its end; the first one of a run from
	// the start. A program that has completed a listing may be silent for ever. Default 30 s.
	Timeout time.Duration
	Hints   <-chan struct{} // make a program that has ended run at once; may be nil
	Watch   []string        // files and directories whose changes are hints
	Logger  *slog.Logger    // default slog.Default
}

// New returns a driver that is not started.
func New(o Options) (*poll.Driver, error) {
	if err := o.Source.Validate(); err != nil {
		return nil, fmt.Errorf("exec inventory: %w", err)
	}
	if o.Timeout < 0 {
		return nil, fmt.Errorf("exec inventory: timeout is %v, want 0 for the default or more", o.Timeout)
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	look := func(ctx context.Context, list func(poll.Listing) error) error {
		return follow(ctx, o.Source, o.Timeout, list)
	}
	return poll.New(poll.Options{Name: "exec", Look: look, Interval: o.Interval, Hints: o.Hints, Watch: o.Watch, Logger: o.Logger})
}

// follow runs the program once. A listing is complete at its end marker, or where the program ends with
// status 0; the latter only if it has VMs, because that is also what a script prints whose list command failed.
func follow(ctx context.Context, s output.Source, timeout time.Duration, list func(poll.Listing) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := fmt.Errorf("a listing was not complete within %v", timeout)
	timer := time.AfterFunc(timeout, func() { cancel(late) })
	defer timer.Stop()
	var open []inventory.Seen
	err := s.Follow(ctx, func(r io.Reader) error {
		var err error
		open, err = read(r, func() { timer.Reset(timeout) }, func(vms []inventory.Seen) error {
			timer.Stop()
			return list(poll.Listing{VMs: vms})
		})
		return err
	})
	switch {
	case errors.Is(context.Cause(ctx), late):
		return errors.Join(late, err)
	case err != nil:
		return err
	case len(open) > 0 && s.Socket != "":
		return errors.New("the listing has no end marker: through a socket it is not seen whether the program did well")
	case len(open) > 0:
		return list(poll.Listing{VMs: open})
	}
	return nil
}

// read reads lines. begun is called with the first line of each listing but the first, and complete at each
// end marker. It returns what follows the last marker.
func read(r io.Reader, begun func(), complete func([]inventory.Seen) error) ([]inventory.Seen, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4<<10), MaxLine)
	var open []inventory.Seen
	idle := false // between listings
	for n := 1; lines.Scan(); n++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		if idle {
			idle = false
			begun()
		}
		if isEnd(line) {
			if err := complete(open); err != nil {
				return nil, fmt.Errorf("the listing that ends in line %d: %w", n, err)
			}
			open, idle = nil, true
			continue
		}
		vm, err := inventory.Parse(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if len(open) == inventory.MaxVMs {
			return nil, fmt.Errorf("line %d: more than %d VMs", n, inventory.MaxVMs)
		}
		open = append(open, inventory.Seen{VM: vm})
	}
	return open, lines.Err()
}

// isEnd says whether a line is the end marker, {"end": true}.
func isEnd(line []byte) bool {
	var mark struct {
		End bool `json:"end"`
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	return dec.Decode(&mark) == nil && mark.End
}
