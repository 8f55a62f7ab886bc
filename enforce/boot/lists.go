package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/palisade/palisade/enforce"
)

const listsKind = "lists"

// ListsFile is what ReadLists found.
type ListsFile struct {
	Lists   *enforce.Lists // as of the log index that the kernel stands for
	File    string
	Damaged error // not nil if a newer file could not be read
}

// ReadLists reads the newest file that is intact. What is in the prefixes is left out: they are guarded. The error
// is ErrNone, a *DamagedError, or that of the disk.
func ReadLists(dir string, guarded []netip.Prefix) (ListsFile, error) {
	var found ListsFile
	file, damaged, err := newest(dir, listsKind, func(content []byte) error {
		payload, rest, err := cutFrame(content)
		if err != nil {
			return errors.Join(errMagic, err)
		}
		if len(rest) > 0 || len(payload) < len(magic) || string(payload[:len(magic)]) != magic {
			return errMagic
		}
		r := reader{b: payload[len(magic):]}
		index := r.number()
		found.Lists, err = enforce.ParseLists(r.b, index, guarded)
		return err
	})
	if err != nil {
		return ListsFile{}, err
	}
	found.File = file
	if damaged != nil {
		found.Damaged = damaged
	}
	return found, nil
}

// WriteLists writes a content, and the log index that the kernel stands for, to a new file. When it returns nil,
// that is on disk.
func WriteLists(dir string, l *enforce.Lists, index uint64) error {
	payload := l.AppendTo(binary.AppendUvarint([]byte(magic), index))
	f, err := create(dir, listsKind, appendFrame(nil, payload))
	if err != nil {
		return fmt.Errorf("save the lists for the next boot: %w", err)
	}
	return f.Close()
}
