package enforce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"go4.org/netipx"

	"github.com/palisade/palisade/fsm"
)

// AppendTo appends the content in a form that ParseLists reads: what a node keeps of it for its next boot.
func (c *Lists) AppendTo(b []byte) []byte {
	const part = 1 << 20
	b = binary.AppendUvarint(b, uint64(len(c.held)))
	for _, l := range c.held {
		b = appendBytes(b, []byte(l.direction))
		b = appendBytes(b, []byte(l.name))
		var packed []byte
		for p := range l.set.Packed(part) {
			packed = append(packed, p...)
		}
		b = appendBytes(b, packed)
	}
	var ranges []netipx.IPRange
	if c.guards != nil {
		ranges = c.guards.ranges
	}
	b = binary.AppendUvarint(b, uint64(len(ranges)))
	for _, r := range ranges {
		b = appendBytes(b, r.From().AsSlice())
		b = appendBytes(b, r.To().AsSlice())
	}
	return b
}

func appendBytes(b, data []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(data))), data...)
}

var errSavedLists = errors.New("damaged content of lists")

// ParseLists reads what AppendTo wrote, without what is in these prefixes: they are guarded as well. The
// result is equal to what was written, also in its Hash, unless a list names some of them.
func ParseLists(b []byte, index uint64, guarded []netip.Prefix) (*Lists, error) {
	r := savedReader{b: b}
	c := &Lists{index: index}
	for n := r.number(); n > 0 && r.err == nil; n-- {
		l := heldList{direction: fsm.Direction(r.bytes()), name: string(r.bytes())}
		switch l.direction {
		case fsm.In, fsm.Out, fsm.Both:
		default:
			return nil, fmt.Errorf("%w: direction %q", errSavedLists, l.direction)
		}
		set, err := fsm.UnpackPrefixes(r.bytes())
		if err != nil {
			return nil, fmt.Errorf("%w: list %s: %w", errSavedLists, l.name, err)
		}
		l.set = set
		c.held = append(c.held, l)
	}
	var ranges netipx.IPSetBuilder
	for n := r.number(); n > 0 && r.err == nil; n-- {
		from, ok := netip.AddrFromSlice(r.bytes())
		to, ok2 := netip.AddrFromSlice(r.bytes())
		if guard := netipx.IPRangeFrom(from, to); ok && ok2 && guard.IsValid() {
			ranges.AddRange(guard)
		} else if r.err == nil {
			return nil, fmt.Errorf("%w: a guard", errSavedLists)
		}
	}
	if r.err != nil || len(r.b) > 0 {
		return nil, fmt.Errorf("%w: its length", errSavedLists)
	}
	for _, p := range guarded {
		if p = plain(p); p.IsValid() {
			ranges.AddPrefix(p)
		}
	}
	if len(c.held) > 0 {
		c.guards = &guards{}
		c.guards.addresses, _ = ranges.IPSet() // the only error is that of a prefix that is not valid
		c.guards.ranges = c.guards.addresses.Ranges()
	}
	return c, nil
}

// savedReader takes pieces from the front of what was saved.
type savedReader struct {
	b   []byte
	err error
}

func (r *savedReader) number() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.err, r.b = errSavedLists, nil
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *savedReader) bytes() []byte {
	n := r.number()
	if n > uint64(len(r.b)) {
		r.err, r.b = errSavedLists, nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}
