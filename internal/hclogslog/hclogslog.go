// Package hclogslog lets libraries that log through hclog, or through the standard log package with
// "[LEVEL] component: message" lines, log to slog.
package hclogslog

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log" //nolint:depguard // what this package is there to take over
	"log/slog"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// Level decides at which level a library's message is logged, given the level the library chose. It
// is called for every message and must be safe for concurrent use.
type Level func(msg string, level slog.Level) slog.Level

// New returns an hclog.Logger that logs to logger. A nil level keeps the library's levels. Trace maps
// to four below slog.LevelDebug.
func New(logger *slog.Logger, level Level) hclog.Logger {
	if level == nil {
		level = func(_ string, l slog.Level) slog.Level { return l }
	}
	return &adapter{logger: logger, level: level}
}

// NewStandard returns a standard logger whose lines of the form "[WARN] memberlist: text" go to
// logger at their level, the component cut off. Lines without a level are logged at Info.
func NewStandard(logger *slog.Logger, level Level) *log.Logger {
	a, _ := New(logger, level).(*adapter)
	return log.New(lineWriter{a}, "", 0)
}

type adapter struct {
	logger *slog.Logger
	level  Level
	name   string
	args   []any
}

var _ hclog.Logger = (*adapter)(nil)

func toSlog(l hclog.Level) slog.Level {
	switch l {
	case hclog.Trace:
		return slog.LevelDebug - 4
	case hclog.Debug:
		return slog.LevelDebug
	case hclog.Warn:
		return slog.LevelWarn
	case hclog.Error:
		return slog.LevelError
	default:
		return slog.LevelInfo
	}
}

func (a *adapter) Log(level hclog.Level, msg string, args ...any) { a.emit(toSlog(level), msg, args) }
func (a *adapter) Trace(msg string, args ...any)                  { a.emit(slog.LevelDebug-4, msg, args) }
func (a *adapter) Debug(msg string, args ...any)                  { a.emit(slog.LevelDebug, msg, args) }
func (a *adapter) Info(msg string, args ...any)                   { a.emit(slog.LevelInfo, msg, args) }
func (a *adapter) Warn(msg string, args ...any)                   { a.emit(slog.LevelWarn, msg, args) }
func (a *adapter) Error(msg string, args ...any)                  { a.emit(slog.LevelError, msg, args) }

func (a *adapter) emit(level slog.Level, msg string, args []any) {
	level = a.level(msg, level)
	ctx := context.Background()
	if !a.logger.Enabled(ctx, level) {
		return
	}
	attrs := make([]any, 0, len(args))
	for i, v := range args {
		// hclog.Fmt("%+v", x) arrives as a slice of the format and its operands.
		if f, ok := v.(hclog.Format); ok && len(f) > 0 {
			v = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		} else if s, ok := v.(fmt.Stringer); ok && i%2 == 1 {
			v = s.String()
		}
		attrs = append(attrs, v)
	}
	a.logger.Log(ctx, level, msg, attrs...)
}

func (a *adapter) enabled(l slog.Level) bool {
	return a.logger.Enabled(context.Background(), l)
}

func (a *adapter) IsTrace() bool { return a.enabled(slog.LevelDebug - 4) }
func (a *adapter) IsDebug() bool { return a.enabled(slog.LevelDebug) }
func (a *adapter) IsInfo() bool  { return a.enabled(slog.LevelInfo) }
func (a *adapter) IsWarn() bool  { return a.enabled(slog.LevelWarn) }
func (a *adapter) IsError() bool { return a.enabled(slog.LevelError) }

func (a *adapter) ImpliedArgs() []any { return a.args }
func (a *adapter) Name() string       { return a.name }

func (a *adapter) With(args ...any) hclog.Logger {
	n := *a
	n.args = append(append([]any{}, a.args...), args...)
	n.logger = a.logger.With(args...)
	return &n
}

func (a *adapter) Named(name string) hclog.Logger {
	if a.name != "" {
		name = a.name + "." + name
	}
	return a.ResetNamed(name)
}

func (a *adapter) ResetNamed(name string) hclog.Logger {
	n := *a
	n.name = name
	return &n
}

// SetLevel does nothing: the slog handler decides what is kept.
func (a *adapter) SetLevel(hclog.Level) {}

func (a *adapter) GetLevel() hclog.Level {
	switch {
	case a.IsTrace():
		return hclog.Trace
	case a.IsDebug():
		return hclog.Debug
	case a.IsInfo():
		return hclog.Info
	case a.IsWarn():
		return hclog.Warn
	default:
		return hclog.Error
	}
}

func (a *adapter) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(lineWriter{a}, "", 0)
}

func (a *adapter) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return lineWriter{a} }

// lineWriter reads the level out of lines as the standard logger writes them, one for each Write.
type lineWriter struct{ a *adapter }

func (w lineWriter) Write(p []byte) (int, error) {
	line := string(bytes.TrimRight(p, "\n"))
	level := slog.LevelInfo
	if rest, ok := strings.CutPrefix(line, "["); ok {
		if tag, text, ok := strings.Cut(rest, "]"); ok {
			switch tag {
			case "TRACE", "DEBUG":
				level = slog.LevelDebug
			case "WARN":
				level = slog.LevelWarn
			case "ERR", "ERROR":
				level = slog.LevelError
			}
			line = strings.TrimSpace(text)
		}
	}
	if component, text, ok := strings.Cut(line, ": "); ok && !strings.Contains(component, " ") {
		line = text
	}
	w.a.emit(level, line, nil)
	return len(p), nil
}
