package audit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/files"
)

// segment is one file: lines that follow each other, from the record that its name says.
type segment struct {
	path   string
	first  uint64
	begins time.Time // time of the first record
	size   int64
}

const (
	segmentSuffix = ".jsonl"
	damagedSuffix = ".damaged"
)

func segmentPath(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d%s", first, segmentSuffix))
}

// findSegments lists the files of a directory, by first record. Files of other names are not ours.
func findSegments(dir string) ([]segment, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, err
	}
	var out []segment
	for _, e := range entries {
		name, ours := strings.CutSuffix(e.Name(), segmentSuffix)
		first, err := strconv.ParseUint(name, 10, 64)
		if !ours || err != nil || len(name) != 20 {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		s := segment{path: filepath.Join(dir, e.Name()), first: first, size: info.Size()}
		if s.begins, err = s.readBegins(); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// readBegins reads the time of the first record; now if the file has none that can be read, so that it is
// kept until somebody has looked at it.
func (s *segment) readBegins() (time.Time, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	for line, err := range lines(f) {
		if t, bad := recordTime(line); err == nil && bad == nil {
			return t, nil
		}
		break
	}
	return time.Now(), nil
}

func recordTime(line []byte) (time.Time, error) {
	var r struct{ Time time.Time }
	err := json.Unmarshal(line, &r)
	return r.Time, err
}

// recover follows the chain through the file, cuts off a torn last line, and sets the file aside from
// the first line that does not continue the chain. damage says why it did.
func (s *segment) recover() (head fsm.AuditChain, damage, err error) {
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return head, nil, err
	}
	defer f.Close()
	var good int64
	for line, err := range lines(f) {
		if errors.Is(err, errTorn) {
			break // it was never said to be written
		}
		if err != nil {
			return head, nil, err
		}
		if good == 0 {
			if head, damage = fsm.AuditFrom(line); damage == nil && head.Seq+1 != s.first {
				damage = fmt.Errorf("%w: the file begins with record %d", fsm.ErrAuditChain, head.Seq+1)
			}
		}
		if damage == nil {
			damage = head.Next(line)
		}
		if damage != nil {
			break
		}
		good += int64(len(line)) + 1
	}
	if good == s.size {
		return head, nil, nil
	}
	if damage != nil {
		if err := copyFile(s.path, s.path+damagedSuffix); err != nil {
			return head, damage, err
		}
	}
	s.size = good
	if err := f.Truncate(good); err != nil {
		return head, damage, err
	}
	return head, damage, f.Sync()
}

// copyFile copies to a file that must be on the disk before the original is changed.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close(), files.SyncDir(filepath.Dir(to)))
}

// errTorn is what lines gives for a last line without its newline.
var errTorn = errors.New("the last line has no end")

// lines walks the lines of a reader, without their newlines; each is valid until the next. An error ends it.
func lines(r io.Reader) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		in := bufio.NewReaderSize(r, fsm.MaxAuditLine+1)
		for {
			line, err := in.ReadSlice('\n')
			switch {
			case err == nil:
				if !yield(line[:len(line)-1], nil) {
					return
				}
				continue
			case errors.Is(err, io.EOF) && len(line) == 0:
			case errors.Is(err, io.EOF):
				yield(line, errTorn)
			case errors.Is(err, bufio.ErrBufferFull):
				yield(nil, fmt.Errorf("%w: a line is longer than any record", fsm.ErrAuditChain))
			default:
				yield(nil, err)
			}
			return
		}
	}
}

// snapshot returns the files as they are now. Expire may remove the first of them while they are read.
func (l *Log) snapshot() ([]segment, fsm.AuditChain) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.files), l.head
}
