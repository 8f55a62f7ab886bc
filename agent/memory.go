package agent

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// How much garbage the collector lets come together, in per cent of what is alive. A busy agent with a
// small state would collect all the time with Go's 100: an eighth of its CPU. One with a large state
// would take four times its size with 300. An idle one has 10 MiB alive, and stays below 60 MiB.
const (
	gcPercentMost  = 300
	gcPercentLeast = 100
	garbageBytes   = 96 << 20 // about as much as is let come together between the two
)

// tuneMemory keeps the collector's goal in proportion to what is alive, until ctx ends. GOGC in the
// environment overrules it.
func tuneMemory(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		<-ctx.Done()
		return nil
	}
	const every = 15 * time.Second
	alive := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	percent := 0
	for {
		metrics.Read(alive)
		if next := gcPercent(alive[0].Value.Uint64()); next != percent {
			debug.SetGCPercent(next)
			percent = next
		}
		if !sleep(ctx, every) {
			return nil
		}
	}
}

// gcPercent is in steps, because each change stops the world.
func gcPercent(alive uint64) int {
	const step = 50
	percent := uint64(gcPercentMost)
	if alive > 0 {
		percent = min(percent, garbageBytes*100/alive)
	}
	return max(gcPercentLeast, int(percent)/step*step)
}
