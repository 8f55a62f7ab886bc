// Package logs is where the log of a process goes: as text, as JSON, or to the journal with priorities. It takes out
// what looks like a secret, whoever logged it, and keeps the newest lines for a debug bundle.
package logs

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Options of a Log. Writer is required.
type Options struct {
	Writer io.Writer
	Level  slog.Level
	JSON   bool
	// Journal says that what is written goes to systemd's journal: each line begins with its priority, as
	// sd-daemon(3) says, and has no time of its own.
	Journal bool
	// KeepBytes of the newest lines are kept in memory. Default 1 MiB.
	KeepBytes int
}

// Log is the end of a process's log. It is safe for concurrent use.
type Log struct {
	logger *slog.Logger
	out    io.Writer
	mark   bool // lines begin with a priority
	scrub  *Scrubber

	mu       sync.Mutex
	priority int
	kept     [][]byte
	size     int
	most     int
}

// New returns a log; nothing of it needs closing.
func New(o Options) *Log {
	l := &Log{out: o.Writer, mark: o.Journal, scrub: NewScrubber(), most: o.KeepBytes}
	if l.most == 0 {
		l.most = 1 << 20
	}
	opts := &slog.HandlerOptions{Level: o.Level}
	if o.Journal {
		opts.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{} // the journal has it
			}
			return a
		}
	}
	var h slog.Handler = slog.NewTextHandler((*sink)(l), opts)
	if o.JSON {
		h = slog.NewJSONHandler((*sink)(l), opts)
	}
	l.logger = slog.New(&handler{h, l})
	return l
}

// Logger writes to the log.
func (l *Log) Logger() *slog.Logger { return l.logger }

// Recent returns the newest lines, oldest first.
func (l *Log) Recent() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]byte, 0, l.size)
	for _, line := range l.kept {
		out = append(out, line...)
	}
	return out
}

// handler tells the log the level of the record whose line comes next.
type handler struct {
	slog.Handler
	log *Log
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	h.log.mu.Lock()
	defer h.log.mu.Unlock()
	h.log.priority = priority(r.Level)
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.Handler.WithAttrs(attrs), h.log}
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.Handler.WithGroup(name), h.log}
}

// priority is that of syslog(3).
func priority(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}

// sink takes one line for each record. The log's mu is held.
type sink Log

// Write implements io.Writer.
func (s *sink) Write(line []byte) (int, error) {
	clean := s.scrub.Scrub(line)
	s.keep(clean)
	out := clean
	if s.mark {
		out = append([]byte("<"+strconv.Itoa(s.priority)+">"), clean...)
	}
	if _, err := s.out.Write(out); err != nil {
		return 0, err
	}
	return len(line), nil
}

func (s *sink) keep(line []byte) {
	if len(line) > s.most {
		return
	}
	s.kept = append(s.kept, append([]byte(nil), line...))
	s.size += len(line)
	for s.size > s.most {
		s.size -= len(s.kept[0])
		s.kept = s.kept[1:]
	}
}

// ToJournal says whether a file is what the environment variable JOURNAL_STREAM names: systemd sets it to the
// device and inode of the stream that it connected to the journal.
func ToJournal(f *os.File, stream string) bool {
	dev, ino, ok := strings.Cut(stream, ":")
	if !ok {
		return false
	}
	st, err := f.Stat()
	if err != nil {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && dev == strconv.FormatUint(sys.Dev, 10) && ino == strconv.FormatUint(sys.Ino, 10)
}
