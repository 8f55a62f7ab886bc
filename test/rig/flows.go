package rig

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/palisade/palisade/internal/probe"
)

// Packets, or records of TCP, a second in one flow.
const (
	rateUDP  = 200
	rateTCP  = 50
	rateEcho = 20 // with a QEMU guest, that runs without hardware acceleration
)

const echoPort = 7

// Flows holds running flows, and ends them with the test.
type Flows struct {
	t    *testing.T
	rig  *Rig
	port int
	all  []*probe.Flow
}

// Flows returns no flows yet.
func (r *Rig) Flows(t *testing.T) *Flows {
	f := &Flows{t: t, rig: r, port: 20000}
	t.Cleanup(func() {
		for _, fl := range f.all {
			fl.Close()
		}
	})
	return f
}

// UDP starts flows between two places, both ways, in both families.
func (f *Flows) UDP(a, b string) []*probe.Flow {
	f.t.Helper()
	a4, a6 := f.rig.Ends(f.t, a)
	b4, b6 := f.rig.Ends(f.t, b)
	var out []*probe.Flow
	for _, p := range [][2]probe.End{{a4, b4}, {b4, a4}, {a6, b6}, {b6, a6}} {
		out = append(out, f.One(a, b, p[0], p[1]))
	}
	return out
}

// One starts one flow of numbered packets.
func (f *Flows) One(a, b string, from, to probe.End) *probe.Flow {
	f.t.Helper()
	f.port++
	return f.keep(f.rig.Probe.UDP(f.t.Context(), fmt.Sprintf("%s-%s %s>%s", a, b, from.Addr, to.Addr), from, to, f.port, rateUDP))
}

// Echo starts flows from a place to what a guest echoes, in both families. The echoes are counted.
func (f *Flows) Echo(a, guest string) []*probe.Flow {
	f.t.Helper()
	a4, a6 := f.rig.Ends(f.t, a)
	g4, g6 := f.rig.Ends(f.t, guest)
	var out []*probe.Flow
	for _, p := range [][2]probe.End{{a4, g4}, {a6, g6}} {
		name := fmt.Sprintf("%s-%s echo %s>%s", a, guest, p[0].Addr, p[1].Addr)
		out = append(out, f.keep(f.rig.Probe.Echo(f.t.Context(), name, p[0], netip.AddrPortFrom(p[1].Addr, echoPort), rateEcho)))
	}
	return out
}

// TCP opens a connection that brings numbered records.
func (f *Flows) TCP(a, b string, from, to probe.End) *probe.Flow {
	f.t.Helper()
	f.port++
	return f.keep(f.rig.Probe.TCP(f.t.Context(), fmt.Sprintf("%s-%s tcp %s>%s", a, b, from.Addr, to.Addr), from, to, f.port, rateTCP))
}

func (f *Flows) keep(fl *probe.Flow, err error) *probe.Flow {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
	f.all = append(f.all, fl)
	return fl
}

// Passing waits until packets sent from now on arrive in every flow.
func (f *Flows) Passing(list []*probe.Flow) {
	f.t.Helper()
	from := time.Now()
	for _, fl := range list {
		f.rig.Eventually(f.t, fl.Name+" passes", func() error {
			r, err := fl.Report()
			if err != nil {
				return err
			}
			if n := r.After(from); n < 5 && r.Records == 0 {
				return fmt.Errorf("%d of %d packets arrived", n, r.Sent)
			}
			return nil
		})
	}
}

// Restored waits until every flow brings a packet again after the time, and returns how long the
// slowest took.
func (f *Flows) Restored(list []*probe.Flow, since time.Time) (slowest time.Duration) {
	f.t.Helper()
	for _, fl := range list {
		f.rig.Eventually(f.t, fl.Name+" passes again", func() error {
			r, err := fl.Report()
			if err != nil {
				return err
			}
			for _, p := range r.Received {
				if took := time.Unix(0, p.At).Sub(since); took > 0 {
					slowest = max(slowest, took)
					return nil
				}
			}
			return fmt.Errorf("none of %d packets arrived", r.Sent)
		})
	}
	return slowest
}

// Silent waits until every sender has tried, and checks that nothing arrived after the time.
func (f *Flows) Silent(list []*probe.Flow, since time.Time) {
	f.t.Helper()
	for _, fl := range list {
		var r probe.Report
		f.rig.Eventually(f.t, fl.Name+" sends what could leak", func() (err error) {
			if r, err = fl.Report(); err == nil && r.Sent == uint64(len(r.Received)) {
				err = fmt.Errorf("all %d packets arrived", r.Sent)
			}
			return err
		})
		if n := r.After(since); n != 0 {
			f.t.Errorf("%s: %d packets arrived after the block was reported in force, the last %v later", fl.Name, n,
				time.Unix(0, r.Received[len(r.Received)-1].At).Sub(since))
		}
	}
}

// Lossless stops the flows and checks that every packet arrived.
func (f *Flows) Lossless(list []*probe.Flow) {
	f.t.Helper()
	var wg sync.WaitGroup
	for _, fl := range list {
		wg.Go(func() {
			r, err := fl.Stop(3 * time.Second)
			switch lost := r.Lost(); {
			case err != nil:
				f.t.Errorf("%s: %v", fl.Name, err)
			case len(lost) != 0:
				f.t.Errorf("%s, innocent: lost %d of %d packets (%d refused by the own kernel), first %v", fl.Name, len(lost), r.Sent, r.Failed, lost[:min(len(lost), 5)])
			case r.Sent < rateUDP/2:
				f.t.Errorf("%s: only %d packets were sent; the test shows nothing", fl.Name, r.Sent)
			}
		})
	}
	wg.Wait()
}

// Gap is a run of lost packets, and the silence around it.
type Gap struct {
	First, Last uint64
	From, To    time.Time // arrival of the packets before and after; zero if there is none before, now if none after
}

// Gaps returns the runs of lost packets in a report.
func Gaps(r probe.Report) []Gap {
	at := make(map[uint64]int64, len(r.Received))
	for _, p := range r.Received {
		at[p.Seq] = p.At
	}
	var out []Gap
	for _, seq := range r.Lost() {
		if n := len(out); n > 0 && out[n-1].Last+1 == seq {
			out[n-1].Last = seq
			continue
		}
		out = append(out, Gap{First: seq, Last: seq})
	}
	for i := range out {
		if out[i].First > 0 {
			out[i].From = time.Unix(0, at[out[i].First-1])
		}
		if t, ok := at[out[i].Last+1]; ok {
			out[i].To = time.Unix(0, t)
		} else {
			out[i].To = time.Now()
		}
	}
	return out
}
