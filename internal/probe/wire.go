package probe

import "encoding/json"

// Frame is one frame from or to a watched hardware address, as one interface of a namespace saw it.
type Frame struct {
	Address int  // which of the watched addresses, from 0
	From    bool // from it; else to it
	Passed  bool // past the rules of a node: it came out of one, or reached its own stack
	Tap     bool // seen at a guest's own interface (vnet...)
	// Stream and Seq are of a numbered packet to the echo service of a guest, or of its echo; else Stream is 0.
	Stream, Seq uint64
	At          int64 // by the kernel, nanoseconds since the epoch
}

// WireArgs are the arguments of the probe binary for a station (NewStation) that only watches the frames of these hardware
// addresses, on every interface of its namespace: a node's, or that of the bridge that joins the nodes.
func WireArgs(outside bool, macs ...string) []string {
	where := "node"
	if outside {
		where = "outside"
	}
	return append([]string{"wire", where}, macs...)
}

// MarshalJSON writes the fields as an array of numbers: there are many frames.
func (f Frame) MarshalJSON() ([]byte, error) {
	bits := 0
	for i, is := range []bool{f.From, f.Passed, f.Tap} {
		if is {
			bits |= 1 << i
		}
	}
	return json.Marshal([5]int64{int64(f.Address), int64(bits), int64(f.Stream), int64(f.Seq), f.At})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (f *Frame) UnmarshalJSON(b []byte) error {
	var n [5]int64
	err := json.Unmarshal(b, &n)
	*f = Frame{int(n[0]), n[1]&1 != 0, n[1]&2 != 0, n[1]&4 != 0, uint64(n[2]), uint64(n[3]), n[4]}
	return err
}
