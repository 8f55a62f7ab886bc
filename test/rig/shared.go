package rig

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/palisade/palisade/deploy/fleet"
)

// Shared is a fleet that the tests of a package use one after the other; each leaves it whole. The binaries are built, and
// it comes up, when the first test asks for them.
type Shared struct {
	options func() fleet.Options
	build   func() (Binaries, error)

	once sync.Once
	rig  *Rig
	err  error
}

// NewShared returns a fleet that is not up.
func NewShared(options func() fleet.Options) *Shared {
	return &Shared{options: options, build: sync.OnceValues(func() (Binaries, error) { return Build(context.Background()) })}
}

// Binaries returns what the package's fleets run.
func (s *Shared) Binaries() (Binaries, error) { return s.build() }

// Get returns the fleet, whole and blocking nothing. After the test, the logs are shown if it failed, and what it left is put
// right.
func (s *Shared) Get(t *testing.T) *Rig {
	t.Helper()
	s.once.Do(func() {
		b, err := s.build()
		if err != nil {
			s.err = err
			return
		}
		s.rig, s.err = Up(context.Background(), b, s.options())
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			s.rig.ShowLogs(t)
		}
		s.rig.Heal(t)
	})
	return s.rig
}

// Main runs the tests of a package, and takes the fleet down. It returns the exit code.
func (s *Shared) Main(m *testing.M) int {
	code := m.Run()
	if s.rig != nil {
		if err := s.rig.Down(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "the shared fleet did not go down:", err)
			code = max(code, 1)
		}
	}
	if b, _ := s.build(); b.Dir != "" {
		_ = os.RemoveAll(b.Dir)
	}
	return code
}
