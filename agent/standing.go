package agent

import (
	"context"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// standing is up to which log index a kernel stands as the state says, and who waits for more.
type standing struct {
	mu       sync.Mutex
	enforced uint64        // log index that is in the kernel, read back
	problem  string        // why the kernel is behind, "" if it is not
	advanced chan struct{} // closed and replaced when there is more
}

func newStanding() standing { return standing{advanced: make(chan struct{})} }

// reach records that the kernel has the log index. The caller holds mu.
func (s *standing) reach(index uint64, gauge prometheus.Gauge) {
	if index <= s.enforced && s.enforced != 0 {
		return
	}
	s.enforced = index
	gauge.Set(float64(index))
	s.advance()
}

// advance wakes who waits. The caller holds mu.
func (s *standing) advance() {
	close(s.advanced)
	s.advanced = make(chan struct{})
}

func (s *standing) behind(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problem = why
}

// Standing returns the enforced log index and why it is behind ("" if it is not).
func (s *standing) Standing() (enforced uint64, problem string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enforced, s.problem
}

// WaitEnforced blocks until the kernel has the log index, or returns the context's error.
func (s *standing) WaitEnforced(ctx context.Context, index uint64) error {
	return s.wait(ctx, func() bool { return s.enforced >= index })
}

// wait blocks until done, which is called with mu held, or returns the context's error.
func (s *standing) wait(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		done, advanced := done(), s.advanced
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
