package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/bits"

	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

// multisetHash is the sum of the SHA-256 digests of all records, as four 64-bit lanes that wrap. A
// record is added and taken out again without looking at the others, and the order does not matter.
// It finds differences between honest nodes; it is no defence against who can choose the records.
type multisetHash [4]uint64

func (h *multisetHash) add(digest [32]byte) {
	for i := range h {
		h[i] += binary.LittleEndian.Uint64(digest[i*8:])
	}
}

func (h *multisetHash) subtract(digest [32]byte) {
	for i := range h {
		h[i], _ = bits.Sub64(h[i], binary.LittleEndian.Uint64(digest[i*8:]), 0)
	}
}

// digest hashes the canonical encoding of one record.
func (a *applier) digest(r *fsmpb.Record) [32]byte {
	a.buf = appendCanonical(a.buf[:0], r)
	return sha256.Sum256(a.buf)
}

// appendCanonical encodes messages of ours, which hold valid UTF-8 and no maps: it can't fail.
func appendCanonical(buf []byte, m proto.Message) []byte {
	out, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(buf, m)
	if err != nil {
		panic("fsm: encoding own state: " + err.Error()) //nolint:forbidigo // no input gets here; a hash of half a record would be worse
	}
	return out
}

// hash closes the sum over the counters, which are no records.
func (s *state) hash() [32]byte {
	b := appendCanonical(nil, headerRecord(s))
	for _, lane := range s.sum {
		b = binary.LittleEndian.AppendUint64(b, lane)
	}
	return sha256.Sum256(b)
}

// Hash is the state hash in hex: equal on every node at the same index. It covers every object and
// all retained results and events. It is kept incrementally and costs about a microsecond to read.
func (v *View) Hash() string {
	h := v.hash()
	return hex.EncodeToString(h[:])
}
