package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

const blocksKind = "blocks"

// Blocks is what a kernel holds of blocks.
type Blocks struct {
	Index    uint64 // the log index that it stands for
	Elements map[enforce.Element]struct{}
}

// BlocksFile is what ReadBlocks found.
type BlocksFile struct {
	Blocks
	File string
	// Damaged is not nil if a newer file, or the end of this one, could not be read.
	Damaged error
	// Unknown counts what a newer build wrote and this one can't carry out; it is left out.
	Unknown int
}

// ReadBlocks reads the newest file that is intact, up to the first change in it that is not: what a crash cut off
// in the middle of a write is no damage. The error is ErrNone, a *DamagedError, or that of the disk.
func ReadBlocks(dir string) (BlocksFile, error) {
	var found BlocksFile
	file, damaged, err := newest(dir, blocksKind, func(content []byte) (err error) {
		found, err = parseBlocks(content)
		return err
	})
	if err != nil {
		return BlocksFile{}, err
	}
	found.File = file
	if damaged != nil {
		found.Damaged = errors.Join(damaged, found.Damaged)
	}
	return found, nil
}

func parseBlocks(content []byte) (BlocksFile, error) {
	f := BlocksFile{Blocks: Blocks{Elements: make(map[enforce.Element]struct{})}}
	first := true
	for {
		payload, rest, err := cutFrame(content)
		if first && err != nil {
			return f, errors.Join(errMagic, err)
		}
		if first {
			if len(payload) < len(magic) || string(payload[:len(magic)]) != magic {
				return f, errMagic
			}
			payload = payload[len(magic):]
		}
		switch {
		case errors.Is(err, errEnd), errors.Is(err, errTorn):
			return f, nil
		case err != nil:
			f.Damaged = fmt.Errorf("what came after log index %d: %w", f.Index, err)
			return f, nil
		}
		if err := f.apply(payload); err != nil {
			if first {
				return f, err
			}
			f.Damaged = fmt.Errorf("what came after log index %d: %w", f.Index, err)
			return f, nil
		}
		content, first = rest, false
	}
}

// apply carries out one frame: an index, elements that are added, elements that are removed.
func (f *BlocksFile) apply(payload []byte) error {
	r := reader{b: payload}
	index := r.number()
	var add, remove []enforce.Element
	for _, list := range []*[]enforce.Element{&add, &remove} {
		for n := r.number(); n > 0 && r.err == nil; n-- {
			e := r.element()
			if _, known := e.Treatment.Terms(); !known {
				f.Unknown++
				continue
			}
			*list = append(*list, e)
		}
	}
	if len(r.b) > 0 && r.err == nil {
		r.err = errContent
	}
	if r.err != nil {
		return r.err
	}
	f.Index = index
	for _, e := range add {
		f.Elements[e] = struct{}{}
	}
	for _, e := range remove {
		delete(f.Elements, e)
	}
	return nil
}

// BlocksWriter keeps the file of one kernel. It is used by one goroutine.
type BlocksWriter struct {
	dir  string
	file *os.File
	size int64 // of the file
	base int64 // of its first frame
}

// NewBlocksWriter keeps files in dir, which need not be there yet. It writes nothing.
func NewBlocksWriter(dir string) *BlocksWriter { return &BlocksWriter{dir: dir} }

// Full says that Begin is needed: nothing was begun, or reading back the changes would take longer than reading
// everything.
func (w *BlocksWriter) Full() bool {
	const least = 1 << 20
	return w.file == nil || w.size-w.base > max(least, w.base)
}

// Begin writes everything to a new file. When it returns nil, that is on disk. After an error, the files are as
// they were, and Full.
func (w *BlocksWriter) Begin(b Blocks) error {
	_ = w.Close()
	payload := appendChange([]byte(magic), enforce.Delta{Index: b.Index}, len(b.Elements), maps.Keys(b.Elements))
	content := appendFrame(nil, payload)
	f, err := create(w.dir, blocksKind, content)
	if err != nil {
		return fmt.Errorf("save the ruleset for the next boot: %w", err)
	}
	w.file, w.size, w.base = f, int64(len(content)), int64(len(content))
	return nil
}

// Append adds one change. When it returns nil, that is on disk. After an error the file is given up: it is Full.
func (w *BlocksWriter) Append(d enforce.Delta) error {
	frame := appendFrame(nil, appendChange(nil, d, len(d.Add), sliceOf(d.Add)))
	_, err := w.file.Write(frame)
	if err == nil {
		err = unix.Fdatasync(int(w.file.Fd()))
	}
	if err != nil {
		_ = w.Close()
		return fmt.Errorf("save a change of the ruleset for the next boot: %w", err)
	}
	w.size += int64(len(frame))
	return nil
}

// Close closes the file. What was written stays.
func (w *BlocksWriter) Close() error {
	if w.file == nil {
		return nil
	}
	f := w.file
	w.file = nil
	return f.Close()
}

func sliceOf(list []enforce.Element) func(func(enforce.Element) bool) {
	return func(yield func(enforce.Element) bool) {
		for _, e := range list {
			if !yield(e) {
				return
			}
		}
	}
}

// appendChange encodes a frame: n elements that are added, and those that the delta removes.
func appendChange(b []byte, d enforce.Delta, n int, add func(func(enforce.Element) bool)) []byte {
	b = binary.AppendUvarint(b, d.Index)
	b = binary.AppendUvarint(b, uint64(n))
	for e := range add {
		b = appendElement(b, e)
	}
	b = binary.AppendUvarint(b, uint64(len(d.Remove)))
	for _, e := range d.Remove {
		b = appendElement(b, e)
	}
	return b
}

// The kinds of elements in a file.
const (
	isChain byte = iota
	isTap
	isMAC
	isPrefix4
	isPrefix6
)

func appendElement(b []byte, e enforce.Element) []byte {
	switch {
	case e.Tap != "":
		b = appendText(append(b, isTap), e.Tap)
	case e.Prefix.IsValid() && e.Prefix.Addr().Is4():
		a := e.Prefix.Addr().As4()
		b = append(append(b, isPrefix4, byte(e.Prefix.Bits())), a[:]...)
	case e.Prefix.IsValid():
		a := e.Prefix.Addr().As16()
		b = append(append(b, isPrefix6, byte(e.Prefix.Bits())), a[:]...)
	case e.MAC != fsm.MAC{}:
		b = append(append(b, isMAC), e.MAC[:]...)
	default:
		b = append(b, isChain)
	}
	return appendText(b, string(e.Treatment))
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

var errContent = errors.New("its content makes no sense")

// reader takes pieces from the front of a payload.
type reader struct {
	b   []byte
	err error
}

func (r *reader) number() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.err, r.b = errContent, nil
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.err, r.b = errContent, nil
		return make([]byte, min(n, 16)) // callers want that many, and no one reads them
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) element() (e enforce.Element) {
	switch kind := r.take(1)[0]; kind {
	case isChain:
	case isTap:
		e.Tap = string(r.take(r.number()))
		if e.Tap == "" {
			r.err = errContent
		}
	case isMAC:
		e.MAC = fsm.MAC(r.take(uint64(len(e.MAC))))
	case isPrefix4:
		bits := int(r.take(1)[0])
		e.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte(r.take(4))), bits)
	case isPrefix6:
		bits := int(r.take(1)[0])
		e.Prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte(r.take(16))), bits)
	default:
		r.err = errContent
	}
	e.Treatment = enforce.Treatment(r.take(r.number()))
	if e.Prefix != (netip.Prefix{}) && (!e.Prefix.IsValid() || e.Prefix != e.Prefix.Masked() || e.Prefix.Addr().Is4In6()) {
		r.err = errContent
	}
	return e
}
