//go:build !nextformat

package fsm

// Format is the highest command format that this build applies. It grows by one with every release that adds an
// op, a field or a value to the log, or changes what one does.
const Format = 1

// newerThan1 returns the lowest format that can apply an op, if format 1 can't.
func newerThan1(Op) (uint32, bool) { return 0, false }
