package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
)

// chain makes n lines as the state machine makes them, a day apart.
func chain(tb testing.TB, n int) [][]byte {
	tb.Helper()
	s := fsm.NewStore()
	for i := range n {
		data, err := fsm.MarshalCommand(fsm.Command{
			Actor: "token:a", Time: day(i), Op: fsm.PutAccount{ID: "acct", Note: fmt.Sprint("note ", i)},
		})
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := s.ApplyBatch([]fsm.Entry{{Index: uint64(i + 1), Data: data}}); err != nil {
			tb.Fatal(err)
		}
	}
	lines, complete := s.View().AuditSince(0)
	if len(lines) != n || !complete {
		tb.Fatalf("%d commands made %d lines", n, len(lines))
	}
	return lines
}

func day(n int) time.Time { return time.Date(2026, 1, 1+n, 0, 0, 0, 0, time.UTC) }

// open opens a log with small files: about three records each.
func open(tb testing.TB, dir string) *Log {
	tb.Helper()
	l, err := Open(Options{Dir: dir, FileBytes: 900})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	return l
}

func read(tb testing.TB, l *Log, after uint64) [][]byte {
	tb.Helper()
	var out [][]byte
	if err := l.Read(tb.Context(), after, func(line []byte) bool { out = append(out, slices.Clone(line)); return true }); err != nil {
		tb.Fatal(err)
	}
	return out
}

func verify(tb testing.TB, l *Log, records int) {
	tb.Helper()
	sum, err := l.Verify(tb.Context())
	if err != nil || sum.Records != uint64(records) || sum.Chain != l.Head() || len(sum.Gaps) > 0 {
		tb.Fatalf("verify: %+v, %v; want %d records", sum, err, records)
	}
}

func segments(tb testing.TB, dir string) []string {
	tb.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if err != nil || len(names) == 0 {
		tb.Fatalf("no files: %v", err)
	}
	return names
}

func TestWhatWasAppendedIsReadAgain(t *testing.T) {
	want, dir := chain(t, 20), t.TempDir()
	l := open(t, dir)
	if err := l.Append(want[:1]); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(want[:13]); err != nil { // the first is there already
		t.Fatal(err)
	}
	for _, l := range []*Log{l, open(t, dir)} { // as it is, and started again
		if got := read(t, l, 0); !slices.EqualFunc(got, want[:13], bytes.Equal) {
			t.Errorf("read %d lines, not the 13 that were written", len(got))
		}
		for after := range uint64(15) {
			got := read(t, l, after)
			if n := 13 - min(int(after), 13); len(got) != n || n > 0 && !bytes.Equal(got[0], want[after]) {
				t.Errorf("after %d: %d lines", after, len(got))
			}
		}
		verify(t, l, 13)
	}
	l = open(t, dir)
	if err := l.Append(want[13:]); err != nil {
		t.Fatal(err)
	}
	verify(t, l, 20)
	if n := len(segments(t, dir)); n < 5 || n > 10 {
		t.Errorf("20 records are in %d files", n)
	}
	var whole []byte
	for _, name := range segments(t, dir) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		whole = append(whole, b...)
	}
	if !bytes.Equal(whole, append(bytes.Join(want, []byte("\n")), '\n')) {
		t.Error("the files are not the lines")
	}
}

func TestOnlyWhatContinuesIsAppended(t *testing.T) {
	lines, dir := chain(t, 6), t.TempDir()
	l := open(t, dir)
	if err := l.Append(lines[:2]); err != nil {
		t.Fatal(err)
	}
	forged := slices.Clone(lines[2])
	forged[len(forged)-3] ^= 1
	for name, batch := range map[string][][]byte{
		"a gap": lines[3:], "a changed line": {forged, lines[3]}, "another order": {lines[2], lines[4], lines[3]},
		"no record": {[]byte("{}")}, "two lines in one": {append(append(slices.Clone(lines[2]), '\n'), lines[3]...)},
	} {
		if err := l.Append(batch); !errors.Is(err, fsm.ErrAuditChain) {
			t.Errorf("%s: %v", name, err)
		}
	}
	verify(t, l, 2)
	if err := l.Append(lines[2:]); err != nil {
		t.Fatal(err)
	}
	verify(t, open(t, dir), 6)
}

// TestATornEndIsWrittenAgain cuts the newest file in many places, as a power failure does.
func TestATornEndIsWrittenAgain(t *testing.T) {
	lines, dir := chain(t, 5), t.TempDir()
	l := open(t, dir)
	if err := l.Append(lines); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	names := segments(t, dir)
	last := names[len(names)-1]
	whole, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(whole); n += 1 + len(whole)/60 {
		for _, rest := range []int{0, 700} { // and blocks that were given to the file but not written
			if err := os.WriteFile(last, append(whole[:n:n], make([]byte, rest)...), 0o600); err != nil {
				t.Fatal(err)
			}
			l := open(t, dir)
			if l.Head().Seq >= 5 {
				t.Fatalf("cut at %d of %d: the head is %d", n, len(whole), l.Head().Seq)
			}
			if err := l.Append(lines); err != nil {
				t.Fatalf("cut at %d: %v", n, err)
			}
			verify(t, l, 5)
			_ = l.Close()
		}
	}
	if _, err := os.Stat(last + damagedSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a torn end was taken for damage: %v", err)
	}
}

func TestTamperingIsFound(t *testing.T) {
	lines := chain(t, 12)
	change := func(name string, f func([]byte) []byte) func(tb testing.TB) {
		return func(tb testing.TB) {
			tb.Helper()
			b, err := os.ReadFile(name)
			if err != nil {
				tb.Fatal(err)
			}
			if err := os.WriteFile(name, f(b), 0o600); err != nil {
				tb.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		file int // from the first
		edit func([]byte) []byte
		says string
	}{
		"a byte":             {0, func(b []byte) []byte { return bytes.Replace(b, []byte("note 1"), []byte("note 7"), 1) }, "record 2 was changed"},
		"a byte at the end":  {-1, func(b []byte) []byte { return bytes.Replace(b, []byte("note 11"), []byte("note 99"), 1) }, "written was record 12"},
		"a line is gone":     {1, func(b []byte) []byte { return b[bytes.IndexByte(b, '\n')+1:] }, "the file begins with record"},
		"the end is gone":    {1, func(b []byte) []byte { return b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1] }, ""},
		"a line is repeated": {0, func(b []byte) []byte { return append(b[:bytes.IndexByte(b, '\n')+1:bytes.IndexByte(b, '\n')+1], b...) }, "record 1 follows record 1"},
		"emptied":            {1, func([]byte) []byte { return nil }, "the file is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, dir)
			if err := l.Append(lines); err != nil {
				t.Fatal(err)
			}
			names := segments(t, dir)
			change(names[(c.file+len(names))%len(names)], c.edit)(t)
			sum, err := l.Verify(t.Context())
			if c.says == "" { // what is missing between two files may never have been there
				if err == nil && len(sum.Gaps) != 1 {
					t.Errorf("%+v, want a gap", sum)
				}
				return
			}
			if !errors.Is(err, fsm.ErrAuditChain) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

func TestDamageInTheNewestFileIsSetAside(t *testing.T) {
	lines, dir := chain(t, 6), t.TempDir()
	l := open(t, dir)
	if err := l.Append(lines); err != nil {
		t.Fatal(err)
	}
	names := segments(t, dir)
	last := names[len(names)-1]
	was, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	was[len(was)/3] ^= 1
	if err := os.WriteFile(last, was, 0o600); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir)
	if again.Head().Seq >= 6 {
		t.Fatalf("the head is %d", again.Head().Seq)
	}
	if kept, err := os.ReadFile(last + damagedSuffix); err != nil || !bytes.Equal(kept, was) {
		t.Errorf("what was damaged is not kept: %v", err)
	}
	if err := again.Append(lines); err != nil {
		t.Fatal(err)
	}
	verify(t, again, 6)
}

func TestAnErrorOfTheDiskLosesNothing(t *testing.T) {
	lines, dir := chain(t, 6), t.TempDir()
	l := open(t, dir)
	if err := l.Append(lines[:2]); err != nil {
		t.Fatal(err)
	}
	// Half of a line reaches the disk, then it fails.
	if _, err := l.out.Write(lines[2][:40]); err != nil {
		t.Fatal(err)
	}
	_ = l.out.Close()
	if err := l.Append(lines[2:4]); err == nil {
		t.Fatal("a write to a closed file succeeded")
	}
	if err := l.Append(lines[2:]); err != nil {
		t.Fatal(err)
	}
	verify(t, l, 6)
	verify(t, open(t, dir), 6)
}

func TestOldFilesGoWhole(t *testing.T) {
	lines := chain(t, 30)
	size := int64(len(bytes.Join(lines, nil)) + len(lines))
	for name, c := range map[string]struct {
		opts       Options
		now        time.Time
		atMost     uint64 // first record that is left
		atLeast    uint64
		everything bool
	}{
		"young":      {opts: Options{Keep: 31 * 24 * time.Hour}, now: day(30), everything: true},
		"old":        {opts: Options{Keep: 10 * 24 * time.Hour}, now: day(30), atLeast: 17, atMost: 20},
		"all old":    {opts: Options{Keep: time.Hour}, now: day(300), atLeast: 27, atMost: 30},
		"large":      {opts: Options{MaxBytes: size / 2}, now: day(30), atLeast: 15, atMost: 19},
		"very large": {opts: Options{MaxBytes: 1}, now: day(30), atLeast: 27, atMost: 30},
	} {
		t.Run(name, func(t *testing.T) {
			c.opts.Dir, c.opts.FileBytes = t.TempDir(), 900
			l, err := Open(c.opts)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			if err := l.Append(lines); err != nil {
				t.Fatal(err)
			}
			removed, err := l.Expire(c.now)
			first := l.First()
			if c.everything {
				if removed != 0 || first != 1 {
					t.Errorf("removed %d files, the first record is %d: %v", removed, first, err)
				}
				return
			}
			if err != nil || removed == 0 || first < c.atLeast || first > c.atMost {
				t.Errorf("removed %d files, the first record is %d, want %d to %d: %v", removed, first, c.atLeast, c.atMost, err)
			}
			verify(t, l, 31-int(first))
			if got := read(t, l, 0); !bytes.Equal(got[0], lines[first-1]) {
				t.Errorf("reading begins with %s", got[0])
			}
		})
	}
}

func TestAGapIsTold(t *testing.T) {
	lines, dir := chain(t, 20), t.TempDir()
	l := open(t, dir)
	if err := l.Append(lines[:4]); err != nil {
		t.Fatal(err)
	}
	if err := l.AppendAfterGap(lines[10:12]); err != nil {
		t.Fatal(err)
	}
	if err := l.AppendAfterGap(lines[1:2]); !errors.Is(err, fsm.ErrAuditChain) {
		t.Errorf("a gap backwards: %v", err)
	}
	if err := l.Append(lines[12:]); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*Log{l, open(t, dir)} {
		sum, err := l.Verify(t.Context())
		if err != nil || sum.Records != 14 || !slices.Equal(sum.Gaps, []Gap{{5, 10}}) || sum.Chain.Seq != 20 {
			t.Errorf("%+v, %v", sum, err)
		}
		if got := read(t, l, 3); len(got) != 11 || !bytes.Equal(got[1], lines[10]) {
			t.Errorf("reading over the gap gives %d lines", len(got))
		}
	}
}

func TestCheckFollowsAnExport(t *testing.T) {
	lines := chain(t, 8)
	export := func(lines [][]byte) *bytes.Reader { return bytes.NewReader(bytes.Join(lines, []byte("\n"))) }
	sum, err := Check(export(lines[2:]))
	if err != nil || sum.First != 3 || sum.Records != 6 || sum.Chain.Seq != 8 {
		t.Errorf("%+v, %v", sum, err)
	}
	if _, err := Check(export(slices.Concat(lines[:3], lines[4:]))); err == nil || !strings.Contains(err.Error(), "record 5 follows record 3") {
		t.Errorf("a missing line: %v", err)
	}
	if _, err := Check(strings.NewReader(strings.Repeat("x", fsm.MaxAuditLine+2))); !errors.Is(err, fsm.ErrAuditChain) {
		t.Errorf("an endless line: %v", err)
	}
	if sum, err := Check(strings.NewReader("")); err != nil || sum.Records != 0 {
		t.Errorf("nothing: %+v, %v", sum, err)
	}
}
