package cluster

import (
	"log/slog"
	"strings"
	"sync"
	"time"
)

// raftLevel lowers what raft says again and again while a peer is away: the cluster says it once.
func raftLevel(msg string, level slog.Level) slog.Level {
	for _, often := range []string{
		"failed to heartbeat to",
		"failed to appendEntries to",
		"failed to make requestVote RPC",
		"failed to contact", // a follower, of which a leader may miss some
		"failed to get previous log",
		"failed to start pipeline replication to",
		"failed to pipeline appendEntries",
		"failed to decode incoming command",
		"failed to accept connection", // the port accepts, and says so
		"failed to flush response",
		"skipping application of old log",
		"rejecting vote request",
		"rejecting pre-vote request",
		"appendEntries rejected, sending older logs",
		"Election timeout reached, restarting election",
		"pre-vote campaign failed",
		"entering candidate state",
		"heartbeat timeout reached, starting election",
		"pipelining replication",
		"aborting pipeline replication",
	} {
		if strings.HasPrefix(msg, often) && msg != "failed to contact quorum of nodes, stepping down" {
			return slog.LevelDebug
		}
	}
	return level
}

// gossipLevel lowers what memberlist says about peers that are away or slow; the cluster says it
// once. Gossip under another key is worth a warning.
func gossipLevel(msg string, level slog.Level) slog.Level {
	switch {
	case strings.Contains(strings.ToLower(msg), "decrypt"):
		return slog.LevelWarn
	case level == slog.LevelError:
		return slog.LevelDebug
	default:
		return min(level, slog.LevelInfo)
	}
}

// seldom lets a message through at most once per interval for each key and counts the others.
type seldom struct {
	every time.Duration

	mu   sync.Mutex
	last map[string]time.Time
	held map[string]int
}

// maxSeldomKeys bounds the memory that strangers can take.
const maxSeldomKeys = 256

// ok tells whether to log now, and how many were held back since the last time.
func (s *seldom) ok(key string) (held int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil || len(s.last) > maxSeldomKeys {
		s.last, s.held = map[string]time.Time{}, map[string]int{}
	}
	now := time.Now()
	if t, seen := s.last[key]; seen && now.Sub(t) < s.every {
		s.held[key]++
		return 0, false
	}
	held = s.held[key]
	s.last[key], s.held[key] = now, 0
	return held, true
}
