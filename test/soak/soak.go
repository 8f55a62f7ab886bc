// Package soak are the storms that the fleet must stand: guests that migrate while blocks come and go, the news of it
// arrive late, twice or not at all, and agents are killed; all under numbered packets that are counted where they arrive.
// "make test" runs small ones of a fixed seed, "make soak" the long ones. See DESIGN.md.
package soak

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/palisade/palisade/test/rig"
)

// Options of a part.
type Options struct {
	Binaries rig.Binaries
	Seed     uint64 // of all that is drawn: the same seed draws the same moves, faults and blocks
	Moves    int    // migrations
	// Progress is told what is being done, one line at a time. May be nil.
	Progress func(string)
}

func (o Options) complete() (Options, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.Moves <= 0 {
		return o, fmt.Errorf("moves: %d, want 1 or more", o.Moves)
	}
	return o, nil
}

// Result is what a part has done, measured and found wrong.
type Result struct {
	Part     string   `json:"part"`
	Seed     uint64   `json:"seed"`
	Seconds  float64  `json:"seconds"`
	Figures  []Figure `json:"figures"`
	Failures []string `json:"failures"` // empty: it stood
}

// Figure is one measured number.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit,omitempty"`
}

func (r *Result) count(name string, n int) {
	r.Figures = append(r.Figures, Figure{Name: name, Value: float64(n)})
}

func (r *Result) millis(name string, d time.Duration) {
	r.Figures = append(r.Figures, Figure{Name: name, Value: float64(d.Microseconds()) / 1e3, Unit: "ms"})
}

func (r *Result) packets(name string, n float64) {
	r.Figures = append(r.Figures, Figure{Name: name, Value: n, Unit: "packets"})
}

// shown is how many failures of one kind are told; their number is always.
const shown = 5

func (r *Result) fail(format string, args ...any) {
	r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
}

// failAll adds the failures of one kind.
func (r *Result) failAll(what string, list []string) {
	if len(list) == 0 {
		return
	}
	r.fail("%s: %d", what, len(list))
	r.Failures = append(r.Failures, list[:min(len(list), shown)]...)
}

// until tries again and again until f gives nil, and gives up with its last error after the limit or when ctx ends.
func until(ctx context.Context, limit, step time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %w", limit, err)
		}
		if perr := pause(ctx, step); perr != nil {
			return errors.Join(perr, err)
		}
	}
}

// pause lets time pass, for the storm to go on.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func median[T int | float64 | time.Duration](list []T) T { return quantile(list, 0.5) }

func quantile[T int | float64 | time.Duration](list []T, q float64) (zero T) {
	if len(list) == 0 {
		return zero
	}
	list = slices.Sorted(slices.Values(list))
	return list[min(len(list)-1, int(q*float64(len(list))))]
}
