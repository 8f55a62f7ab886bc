package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"

	"github.com/palisade/palisade/fsm"
)

// Read calls yield with the records after the number given, oldest first, until yield returns false. It
// begins with the oldest if that is later. A line is valid until yield returns. A record that is
// damaged is passed on as it is: Verify judges.
func (l *Log) Read(ctx context.Context, after uint64, yield func(line []byte) bool) error {
	files, head := l.snapshot()
	if after >= head.Seq {
		return nil
	}
	// The last file that begins at or before what is wanted.
	i := max(0, sort.Search(len(files), func(i int) bool { return files[i].first > after+1 })-1)
	for ; i < len(files); i++ {
		more := true
		err := files[i].read(func(line []byte) error {
			if before, err := fsm.AuditFrom(line); err == nil && before.Seq < after {
				return nil
			}
			if more = yield(line); !more {
				return errStop
			}
			return ctx.Err()
		})
		switch {
		case errors.Is(err, errStop):
			return nil
		case errors.Is(err, os.ErrNotExist): // it has just become too old
		case err != nil:
			return fmt.Errorf("audit: %w", err)
		}
	}
	return nil
}

var errStop = errors.New("enough")

// read calls each with every line that was in the file when the segment was taken.
func (s *segment) read(each func(line []byte) error) error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	for line, err := range lines(io.LimitReader(f, s.size)) {
		if err != nil {
			return err
		}
		if err := each(line); err != nil {
			return err
		}
	}
	return nil
}

// Summary is what a check of the chain has seen.
type Summary struct {
	Records uint64
	First   uint64 // number of the oldest record, 0 if there is none
	Chain   fsm.AuditChain
	Gaps    []Gap
}

// Gap is a range of records that are not there.
type Gap struct{ First, Last uint64 }

// Verify reads every file and follows the chain. The error wraps fsm.ErrAuditChain and names the record
// if one was changed, is missing or is out of order. A gap that AppendAfterGap has left is no error.
func (l *Log) Verify(ctx context.Context) (Summary, error) {
	files, head := l.snapshot()
	var sum Summary
	for i := range files {
		f := &files[i]
		opens := true
		err := f.read(func(line []byte) error {
			if opens {
				opens = false
				if err := sum.open(line, f.first); err != nil {
					return err
				}
			}
			if err := sum.next(line); err != nil {
				return err
			}
			return ctx.Err()
		})
		switch {
		case errors.Is(err, os.ErrNotExist) && sum.Records == 0: // it has just become too old
		case errors.Is(err, errTorn):
			return sum, fmt.Errorf("%s: %w: the line after record %d has no end", f.path, fsm.ErrAuditChain, sum.Chain.Seq)
		case err != nil:
			return sum, fmt.Errorf("%s: %w", f.path, err)
		case opens:
			return sum, fmt.Errorf("%s: %w: the file is empty", f.path, fsm.ErrAuditChain)
		}
	}
	if sum.Chain != head {
		return sum, fmt.Errorf("%w: the files end with record %d, SHA-256 %x; written was record %d, SHA-256 %x",
			fsm.ErrAuditChain, sum.Chain.Seq, sum.Chain.Head, head.Seq, head.Head)
	}
	return sum, nil
}

// open begins a file, whose name says its first record: what its records follow may be gone.
func (s *Summary) open(line []byte, first uint64) error {
	before, err := fsm.AuditFrom(line)
	switch {
	case err != nil:
		return err
	case before.Seq+1 != first:
		return fmt.Errorf("%w: the file begins with record %d", fsm.ErrAuditChain, before.Seq+1)
	case s.Records == 0:
		s.Chain, s.First = before, first
	case first > s.Chain.Seq+1:
		s.Gaps = append(s.Gaps, Gap{s.Chain.Seq + 1, first - 1})
		s.Chain = before
	}
	return nil
}

func (s *Summary) next(line []byte) error {
	if err := s.Chain.Next(line); err != nil {
		return err
	}
	s.Records++
	return nil
}

// Check follows the chain through exported lines. They may begin at any record. The error is as that of Verify; a gap is
// an error here.
func Check(r io.Reader) (Summary, error) {
	var sum Summary
	for line, err := range lines(r) {
		if err != nil && !errors.Is(err, errTorn) { // the last newline may be missing
			return sum, err
		}
		if sum.Records == 0 {
			before, err := fsm.AuditFrom(line)
			if err != nil {
				return sum, err
			}
			sum.Chain, sum.First = before, before.Seq+1
		}
		if err := sum.next(line); err != nil {
			return sum, err
		}
	}
	return sum, nil
}
