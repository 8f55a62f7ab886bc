//go:build race

package cluster

// underRace says that the race detector makes everything about ten times slower.
const underRace = true
