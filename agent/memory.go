package agent

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// How much garbage the collector lets come together, in per cent of what is alive. A busy agent with a small state would
// collect all the time with Go's 100: an eighth of its CPU. One with a large state would take four times its size with
// 300; 800 with a small one saves nothing. An idle one has some 12 MiB alive, 25 MiB are the program's, and it stays
// below 60 MiB.
const (
	gcPercentBusy  = 300
	gcPercentLeast = 100      // and that of an idle agent
	garbageBytes   = 96 << 20 // about as much as is let come together between the two

	// busyFrom and idleFrom are what an agent allocates in a second that becomes busy, or idle again.
	busyFrom = 8 << 20
	idleFrom = 2 << 20
)

// memory is what the collector was told.
type memory struct {
	busy      bool
	allocated uint64
	percent   int
}

// tuneMemory keeps the collector's goal in proportion to what is alive and to the load, until ctx ends. GOGC in the
// environment overrules it.
func tuneMemory(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		<-ctx.Done()
		return nil
	}
	const every = 3 * time.Second
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
	m := memory{busy: true} // with its start
	for {
		if !sleep(ctx, every) {
			return nil
		}
		metrics.Read(samples)
		changed, idle := m.look(samples[0].Value.Uint64(), samples[1].Value.Uint64(), every)
		if changed {
			debug.SetGCPercent(m.percent)
		}
		if idle {
			debug.FreeOSMemory() // what the start or the load needed is garbage, and nothing would collect it for minutes
		}
	}
}

// look takes the bytes that are alive, and those allocated since the start. It says whether the goal changes, and whether
// the agent has just become idle.
func (m *memory) look(alive, allocated uint64, since time.Duration) (changed, idle bool) {
	rate := float64(allocated-m.allocated) / since.Seconds()
	m.allocated = allocated
	busy, percent := m.busy, m.percent
	m.busy = rate >= busyFrom || m.busy && rate >= idleFrom
	m.percent = gcPercent(alive, m.busy)
	return m.percent != percent, busy && !m.busy
}

// gcPercent is in steps, because each change stops the world.
func gcPercent(alive uint64, busy bool) int {
	const step = 50
	if !busy {
		return gcPercentLeast
	}
	percent := uint64(gcPercentBusy)
	if alive > 0 {
		percent = min(percent, garbageBytes*100/alive)
	}
	return max(gcPercentLeast, int(percent)/step*step)
}
