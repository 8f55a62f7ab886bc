// Package probe is the packet oracle of the tests: numbered flows between network namespaces, counted
// at the receiver with the kernel's own receive times. A test asks "what came in after T" and "what
// was lost", and never has to guess how late a process ran.
package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strconv"
	"sync"
	"time"
)

// Packet is one received packet of a flow.
type Packet struct {
	Seq uint64 `json:"s"`
	At  int64  `json:"t"` // the kernel's receive time, nanoseconds since the epoch
}

// Report is what one end of a flow has seen so far.
type Report struct {
	Sent     uint64   `json:"sent,omitempty"`     // packets or records 0 … Sent-1
	Failed   uint64   `json:"failed,omitempty"`   // of those, refused by the sender's own kernel
	Received []Packet `json:"received,omitempty"` // UDP, in order of arrival
	Records  uint64   `json:"records,omitempty"`  // TCP: records received in order
	LastAt   int64    `json:"last_at,omitempty"`  // TCP: when the last came, nanoseconds since the epoch
	Err      string   `json:"err,omitempty"`      // TCP: why the sender ended
}

// End is a place that packets come from or go to.
type End struct {
	Netns string // name of a network namespace, "" for the test's own
	Addr  netip.Addr
}

// Probe runs the probe binary. The zero value is not useful: Binary is a path.
type Probe struct {
	Binary string
	// Stderr gets what the ends complain of.
	Stderr io.Writer
}

// child is one running end.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
	mu  sync.Mutex
}

func (p *Probe) start(ctx context.Context, netns string, args ...string) (*child, error) {
	argv := append([]string{p.Binary}, args...)
	if netns != "" {
		argv = append([]string{"ip", "netns", "exec", netns}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stderr = p.Stderr
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
	c := &child{cmd: cmd, in: in, out: json.NewDecoder(bufio.NewReaderSize(out, 1<<20))}
	var ready Report
	if err := c.out.Decode(&ready); err != nil {
		c.close()
		return nil, fmt.Errorf("probe %v in %q did not start: %w", args, netns, err)
	}
	return c, nil
}

func (c *child) ask(line string) (Report, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var r Report
	if _, err := fmt.Fprintln(c.in, line); err != nil {
		return r, err
	}
	err := c.out.Decode(&r)
	return r, err
}

func (c *child) close() {
	_ = c.in.Close()
	_ = c.cmd.Wait()
}

// Flow is a running flow. Its methods are safe for concurrent use.
type Flow struct {
	Name         string
	source, sink *child // the same for echoes
	once         sync.Once
}

// UDP starts a flow of numbered packets, rate a second. It returns when the first can be received.
func (p *Probe) UDP(ctx context.Context, name string, from, to End, port, rate int) (*Flow, error) {
	return p.flow(ctx, name, "sink", "source", from, to, port, rate)
}

// TCP opens a connection and writes numbered records, rate a second.
func (p *Probe) TCP(ctx context.Context, name string, from, to End, port, rate int) (*Flow, error) {
	return p.flow(ctx, name, "tcpsink", "tcpsource", from, to, port, rate)
}

func (p *Probe) flow(ctx context.Context, name, sinkKind, sourceKind string, from, to End, port, rate int) (*Flow, error) {
	at := netip.AddrPortFrom(to.Addr, uint16(port)).String()
	sink, err := p.start(ctx, to.Netns, sinkKind, at)
	if err != nil {
		return nil, err
	}
	source, err := p.start(ctx, from.Netns, sourceKind, from.Addr.String(), at, strconv.Itoa(rate))
	if err != nil {
		sink.close()
		return nil, err
	}
	return &Flow{Name: name, source: source, sink: sink}, nil
}

// Echo sends numbered packets to an address that echoes them, and records the echoes.
func (p *Probe) Echo(ctx context.Context, name string, from End, to netip.AddrPort, rate int) (*Flow, error) {
	c, err := p.start(ctx, from.Netns, "echo", from.Addr.String(), to.String(), strconv.Itoa(rate))
	if err != nil {
		return nil, err
	}
	return &Flow{Name: name, source: c, sink: c}, nil
}

// Answer echoes UDP and TCP at an address until ctx ends.
func (p *Probe) Answer(ctx context.Context, at End, port int) error {
	_, err := p.start(ctx, at.Netns, "answer", netip.AddrPortFrom(at.Addr, uint16(port)).String())
	return err
}

// Report tells what was sent and what has arrived so far.
func (f *Flow) Report() (Report, error) {
	sent, err := f.source.ask("report")
	if err != nil || f.sink == f.source {
		return sent, err
	}
	got, err := f.sink.ask("report")
	got.Sent, got.Failed, got.Err = sent.Sent, sent.Failed, sent.Err
	return got, err
}

// Stop ends the sending, gives what is under way the time to arrive, and returns the final report.
// The flow is over then.
func (f *Flow) Stop(grace time.Duration) (Report, error) {
	if _, err := f.source.ask("stop"); err != nil {
		return Report{}, err
	}
	deadline := time.Now().Add(grace)
	for {
		r, err := f.Report()
		if err != nil || len(r.Lost()) == 0 && r.Records == 0 || r.Records == r.Sent && r.Records > 0 || time.Now().After(deadline) {
			f.Close()
			return r, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Close ends both ends.
func (f *Flow) Close() {
	f.once.Do(func() {
		f.source.close()
		if f.sink != f.source {
			f.sink.close()
		}
	})
}

// After counts the packets that arrived after t.
func (r Report) After(t time.Time) int { return r.Between(t, time.Unix(1<<40, 0)) }

// Between counts the packets that arrived after from and not after to.
func (r Report) Between(from, to time.Time) int {
	n := 0
	for _, p := range r.Received {
		if p.At > from.UnixNano() && (to.Unix() >= 1<<40 || p.At <= to.UnixNano()) {
			n++
		}
	}
	return n
}

// Lost returns the numbers of the packets that were sent and have not arrived.
func (r Report) Lost() []uint64 {
	got := make([]bool, r.Sent)
	for _, p := range r.Received {
		if p.Seq < r.Sent {
			got[p.Seq] = true
		}
	}
	var lost []uint64
	for seq, ok := range got {
		if !ok {
			lost = append(lost, uint64(seq))
		}
	}
	return lost
}
