// Package audit keeps the audit of the fleet on this node's own disk: the lines that the state machine
// made, as they are, in files of bounded size, for longer than the state keeps them.
package audit

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/files"
)

// Defaults of Options.
const (
	DefaultFileBytes = 8 << 20
	DefaultKeep      = 400 * 24 * time.Hour
	DefaultMaxBytes  = 4 << 30
)

// Options says where the audit is kept and for how long.
type Options struct {
	Dir string
	// FileBytes is the size at which the next file begins.
	FileBytes int64
	// Keep is how long a record is kept at least, by its own time; MaxBytes is what all files together may
	// have, and goes before Keep. What goes is the oldest file, whole, and never the newest.
	Keep     time.Duration
	MaxBytes int64
	Logger   *slog.Logger
}

func (o *Options) setDefaults() {
	o.FileBytes = cmp.Or(o.FileBytes, DefaultFileBytes)
	o.Keep = cmp.Or(o.Keep, DefaultKeep)
	o.MaxBytes = cmp.Or(o.MaxBytes, DefaultMaxBytes)
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
}

// Log is the audit on disk. Its methods are safe for concurrent use; readers do not hold up Append.
type Log struct {
	opts Options

	mu    sync.Mutex
	files []segment // by first record; the last one is written
	head  fsm.AuditChain
	out   *os.File // the last of files, nil until it is needed
	// doubtful says that a write failed, so that the end of the last file has to be looked at again.
	doubtful bool
}

// Open reads where the audit on disk stands. It makes the directory, cuts off a last line that was not
// written to its end, and follows the chain through the newest file. From the first line of that file that
// does not continue the chain, it is set aside under another name, and the log says so: the lines
// are fetched again, and what was there stays for people to look at.
func Open(o Options) (*Log, error) {
	o.setDefaults()
	l := &Log{opts: o}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if err := l.load(); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return l, nil
}

// load finds the files and the end of the last.
func (l *Log) load() error {
	files, err := findSegments(l.opts.Dir)
	if err != nil {
		return err
	}
	l.files, l.head = files, fsm.AuditChain{}
	for len(l.files) > 0 {
		last := &l.files[len(l.files)-1]
		head, damage, err := last.recover()
		if err != nil {
			return err
		}
		if damage != nil {
			l.opts.Logger.Error("set a damaged part of the audit aside; its records are fetched again",
				"file", last.path, "kept_as", last.path+damagedSuffix, "err", damage)
		}
		if last.size > 0 {
			l.head = head
			return nil
		}
		// Nothing of it is whole: the file before it is the newest.
		if err := os.Remove(last.path); err != nil {
			return err
		}
		l.files = l.files[:len(l.files)-1]
	}
	return nil
}

// Head returns the number and hash of the newest record on disk, zeros if there is none.
func (l *Log) Head() fsm.AuditChain {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// First returns the number of the oldest record on disk, 0 if there is none.
func (l *Log) First() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.files) == 0 {
		return 0
	}
	return l.files[0].first
}

// Append writes the lines that follow the newest record; when it returns nil they are on the disk. Lines
// that are there already are skipped. The first line that does not continue the chain is refused, with
// an error that wraps fsm.ErrAuditChain, and then none is written. After an error of the disk it is
// unknown how many were; Head says so after the next call.
func (l *Log) Append(lines [][]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.append(lines, l.head)
}

// AppendAfterGap is Append for lines whose forerunners are nowhere any more. They begin a new file; the
// gap before it is told by Verify.
func (l *Log) AppendAfterGap(lines [][]byte) error {
	if len(lines) == 0 {
		return nil
	}
	head, err := fsm.AuditFrom(lines[0])
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if head.Seq < l.head.Seq {
		return fmt.Errorf("%w: record %d is no gap after record %d", fsm.ErrAuditChain, head.Seq+1, l.head.Seq)
	}
	if err := l.closeFile(); err != nil {
		return err
	}
	return l.append(lines, head)
}

func (l *Log) append(lines [][]byte, head fsm.AuditChain) error {
	if l.doubtful {
		_ = l.closeFile() // what it may say was said when the write failed
		if err := l.load(); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		l.doubtful = false
		head = l.head
	}
	lines = skip(lines, head.Seq)
	after := head
	for _, line := range lines {
		if err := after.Next(line); err != nil {
			return err
		}
	}
	for len(lines) > 0 {
		n, err := l.write(lines, head.Seq+1)
		if err != nil {
			l.doubtful = true
			return fmt.Errorf("audit: %w", err)
		}
		for _, line := range lines[:n] {
			_ = head.Next(line) // it was seen to continue
		}
		l.head = head
		lines = lines[n:]
	}
	return nil
}

// skip leaves out the lines up to a number.
func skip(lines [][]byte, upTo uint64) [][]byte {
	for len(lines) > 0 {
		before, err := fsm.AuditFrom(lines[0])
		if err != nil || before.Seq >= upTo {
			break // the chain says what is wrong with it
		}
		lines = lines[1:]
	}
	return lines
}

// write puts as many of the lines as fit into one file, and on the disk. first is the number of the first.
func (l *Log) write(lines [][]byte, first uint64) (int, error) {
	if l.out == nil || l.files[len(l.files)-1].size >= l.opts.FileBytes {
		if err := l.nextFile(first, lines[0]); err != nil {
			return 0, err
		}
	}
	file := &l.files[len(l.files)-1]
	var buf []byte
	n := 0
	for n < len(lines) && (n == 0 || file.size+int64(len(buf)) < l.opts.FileBytes) {
		buf = append(append(buf, lines[n]...), '\n')
		n++
	}
	if _, err := l.out.Write(buf); err != nil {
		return 0, err
	}
	if err := l.out.Sync(); err != nil {
		return 0, err
	}
	file.size += int64(len(buf))
	return n, nil
}

// nextFile goes on in the newest file if that has room and the records follow it, else in a new one.
func (l *Log) nextFile(first uint64, line []byte) error {
	if err := l.closeFile(); err != nil {
		return err
	}
	flags := os.O_WRONLY | os.O_APPEND
	n := len(l.files)
	if n == 0 || l.files[n-1].size >= l.opts.FileBytes || l.head.Seq+1 != first {
		begins, err := recordTime(line)
		if err != nil {
			return err
		}
		l.files = append(l.files, segment{path: segmentPath(l.opts.Dir, first), first: first, begins: begins})
		flags |= os.O_CREATE | os.O_EXCL
		n++
	}
	out, err := os.OpenFile(l.files[n-1].path, flags, 0o600)
	if err != nil {
		return err
	}
	l.out = out
	if flags&os.O_CREATE == 0 {
		return nil
	}
	return files.SyncDir(l.opts.Dir)
}

func (l *Log) closeFile() error {
	if l.out == nil {
		return nil
	}
	out := l.out
	l.out = nil
	return out.Close()
}

// Close closes the file that is written. Append opens it again.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closeFile()
}

// Expire removes the oldest files, while they are more than may be or hold nothing that is young enough
// to be kept. It returns how many it removed.
func (l *Log) Expire(now time.Time) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var total int64
	for i := range l.files {
		total += l.files[i].size
	}
	removed := 0
	for len(l.files) > 1 {
		// All records of a file are older than the first of the next.
		old := now.Sub(l.files[1].begins) > l.opts.Keep
		if !old && total <= l.opts.MaxBytes {
			break
		}
		if err := os.Remove(l.files[0].path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return removed, fmt.Errorf("audit: %w", err)
		}
		total -= l.files[0].size
		l.files = slices.Delete(l.files, 0, 1)
		removed++
	}
	if removed == 0 {
		return 0, nil
	}
	return removed, files.SyncDir(l.opts.Dir)
}
