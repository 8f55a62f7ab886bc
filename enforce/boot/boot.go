// Package boot keeps on disk what a node's kernel enforces, so that the same rules stand after a reboot before
// any packet can pass: without daemon, fleet or quorum. It reads and writes files and knows no kernel.
//
// Blocks are in `blocks.N`: everything at one time, then what has changed since, one frame a change. Lists
// are in `lists.N`, whole. N grows with every file that is written anew; the one before is kept, for the case
// that the newest is damaged. See DESIGN.md.
package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/palisade/palisade/internal/files"
)

// ErrNone says that nothing was ever saved.
var ErrNone = errors.New("no ruleset was saved yet")

// DamagedError names files that could not be read, newest first.
type DamagedError struct {
	Files  []string
	Causes []error
}

func (e *DamagedError) Error() string {
	text := make([]string, len(e.Files))
	for i, f := range e.Files {
		text[i] = fmt.Sprintf("%s: %v", f, e.Causes[i])
	}
	return strings.Join(text, "; ")
}

func (e *DamagedError) Unwrap() []error { return e.Causes }

const (
	magic     = "palisade boot 1\n"
	frameHead = 8 // length and checksum
	// mostBytes bounds what is read of a file: two million prefixes of IPv6 have 40 MB.
	mostBytes = 1 << 30
)

// appendFrame adds a payload with its length and checksum.
func appendFrame(b, payload []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli)))
	return append(b, payload...)
}

var (
	errEnd     = errors.New("the end")
	errTorn    = errors.New("it ends in the middle")
	errSum     = errors.New("its checksum is wrong")
	errMagic   = errors.New("it is no file of ours, or of a newer build")
	errTooLong = fmt.Errorf("it has more than %d bytes", mostBytes)
)

// cutFrame takes the first payload. The error is errEnd if nothing is left.
func cutFrame(b []byte) (payload, rest []byte, err error) {
	if len(b) == 0 {
		return nil, nil, errEnd
	}
	if len(b) < frameHead {
		return nil, nil, errTorn
	}
	n := binary.LittleEndian.Uint32(b)
	sum := binary.LittleEndian.Uint32(b[4:])
	if b = b[frameHead:]; uint64(n) > uint64(len(b)) {
		return nil, nil, errTorn
	}
	if payload, rest = b[:n], b[n:]; crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli)) != sum {
		return nil, nil, errSum
	}
	return payload, rest, nil
}

// generations returns the numbers of the files of a kind, newest first. A directory that is not there has none.
func generations(dir, kind string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var list []uint64
	for _, e := range entries {
		number, ours := strings.CutPrefix(e.Name(), kind+".")
		if n, err := strconv.ParseUint(number, 10, 64); ours && err == nil && strconv.FormatUint(n, 10) == number {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	slices.Reverse(list)
	return list, nil
}

func nameOf(dir, kind string, generation uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s.%d", kind, generation))
}

// newest calls read with the newest file of a kind, and with the one before if that is damaged. The error is
// ErrNone if there is no file. If none could be read, it is a *DamagedError; else what was damaged is in damaged.
func newest(dir, kind string, read func(content []byte) error) (file string, damaged *DamagedError, err error) {
	numbers, err := generations(dir, kind)
	if err != nil {
		return "", nil, err
	}
	if len(numbers) == 0 {
		return "", nil, ErrNone
	}
	for _, n := range numbers {
		file := nameOf(dir, kind, n)
		content, err := readFile(file)
		if err == nil {
			err = read(content)
		}
		if err == nil {
			return file, damaged, nil
		}
		if damaged == nil {
			damaged = &DamagedError{}
		}
		damaged.Files, damaged.Causes = append(damaged.Files, file), append(damaged.Causes, err)
	}
	return "", nil, damaged
}

func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > mostBytes {
		return nil, errTooLong
	}
	return os.ReadFile(name)
}

// create writes the next generation of a kind, in a file that appears whole or not at all, and removes all but the
// one before. It returns the file, open at its end.
func create(dir, kind string, content []byte) (_ *os.File, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	numbers, err := generations(dir, kind)
	if err != nil {
		return nil, err
	}
	next := uint64(1)
	if len(numbers) > 0 {
		next = numbers[0] + 1
	}
	draft := filepath.Join(dir, kind+".new")
	f, err := os.OpenFile(draft, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(draft)
		}
	}()
	if _, err := f.Write(content); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := os.Rename(draft, nameOf(dir, kind, next)); err != nil {
		return nil, err
	}
	if err := files.SyncDir(dir); err != nil {
		return nil, err
	}
	for _, n := range numbers[min(1, len(numbers)):] {
		if err := os.Remove(nameOf(dir, kind, n)); err != nil {
			return nil, err
		}
	}
	return f, nil
}
