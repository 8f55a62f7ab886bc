package probe

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"sync"
)

// Station is a process at one place that sends and receives the packets of many flows: for tests that need more of them
// than processes are cheap. Its methods are safe for concurrent use.
type Station struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
	mu  sync.Mutex
}

// Stream is one flow of numbered packets, from an address of the station to an address of any.
type Stream struct {
	ID   uint64         `json:"id"` // unique among all stations that hear each other
	From netip.Addr     `json:"from"`
	To   netip.AddrPort `json:"to"`
	Rate int            `json:"rate"` // packets a second
}

// Heard is one received packet.
type Heard struct {
	Stream, Seq uint64
	Sent        int64 // by the sender's clock, nanoseconds since the epoch
	At          int64 // the kernel's receive time, nanoseconds since the epoch
}

// Tally is what a station has done: all that it sent, and what it heard since the tally before.
type Tally struct {
	Sent  map[uint64]uint64 `json:"sent,omitempty"` // by stream: packets 0 … Sent-1
	Heard []Heard           `json:"heard,omitempty"`
	// Frames are what a station that watches the wire has seen since the tally before.
	Frames []Frame `json:"frames,omitempty"`
}

// StationOrder is what a station is told; one JSON object a line. The answer is a Tally.
type StationOrder struct {
	Send []Stream `json:"send,omitempty"` // start these
	Stop bool     `json:"stop,omitempty"` // send no more
}

// MarshalJSON writes the four numbers as an array: there are many of them.
func (h Heard) MarshalJSON() ([]byte, error) {
	return json.Marshal([4]int64{int64(h.Stream), int64(h.Seq), h.Sent, h.At})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (h *Heard) UnmarshalJSON(b []byte) error {
	var n [4]int64
	err := json.Unmarshal(b, &n)
	*h = Heard{uint64(n[0]), uint64(n[1]), n[2], n[3]}
	return err
}

// NewStation starts a station with a command that runs the probe binary with the arguments of StationArgs at the place,
// and returns when it hears.
func NewStation(cmd *exec.Cmd) (*Station, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &Station{cmd: cmd, in: in, out: json.NewDecoder(bufio.NewReaderSize(out, 1<<20))}
	var ready Tally
	if err := s.out.Decode(&ready); err != nil {
		return nil, errors.Join(fmt.Errorf("%v did not start: %w", cmd.Args, err), s.Close())
	}
	return s, nil
}

// StationArgs are the arguments of the probe binary for a station that hears at these addresses.
func StationArgs(port uint16, addrs ...netip.Addr) []string {
	args := []string{"station"}
	for _, a := range addrs {
		args = append(args, netip.AddrPortFrom(a, port).String())
	}
	return args
}

// Order tells the station what to do, and returns what it has done since the order before. An empty order only asks.
func (s *Station) Order(o StationOrder) (Tally, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var t Tally
	if err := json.NewEncoder(s.in).Encode(o); err != nil {
		return t, err
	}
	err := s.out.Decode(&t)
	return t, err
}

// Close ends the station.
func (s *Station) Close() error {
	return errors.Join(s.in.Close(), s.cmd.Wait())
}
