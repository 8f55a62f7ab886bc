package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
)

// setting reads a number from the environment: the long run of a test has larger ones.
func setting(t *testing.T, name string, normal int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return normal
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q, want a number", name, s)
	}
	return n
}

// TestRestartsUnderLoad kills a node's agent again and again, in every moment of its start, while packets of a blocked guest and of innocents
// pass the node. Nothing leaks and no innocent packet is lost, counted by number. PALISADE_RESTARTS is how often (25; the issue's
// number is 500), PALISADE_RESTART_PPS how many packets a second all flows send together (6,000).
func TestRestartsUnderLoad(t *testing.T) {
	l := sharedLab(t)
	const node = "node-1"
	restarts, pps := setting(t, "PALISADE_RESTARTS", 25), setting(t, "PALISADE_RESTART_PPS", 6000)
	var near string
	for _, g := range l.Guests() {
		if g.Node == node && g.Name != "guest1" && !g.Routed {
			near = g.Name
		}
	}
	pairs := [][2]string{{"guest1", near}, {"guest1", fleet.Outside}, {near, node}, {near, fleet.Outside}}
	rate, port := pps/(4*len(pairs)), 30000
	var victims, innocents []*probe.Flow
	for i, p := range pairs {
		a4, a6 := l.Ends(t, p[0])
		b4, b6 := l.Ends(t, p[1])
		for _, e := range [][2]probe.End{{a4, b4}, {b4, a4}, {a6, b6}, {b6, a6}} {
			port++
			f, err := l.Probe.UDP(t.Context(), fmt.Sprintf("%s-%s %s>%s", p[0], p[1], e[0].Addr, e[1].Addr), e[0], e[1], port, rate)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(f.Close)
			if i < 2 {
				victims = append(victims, f)
			} else {
				innocents = append(innocents, f)
			}
		}
	}
	f := l.Flows(t)
	f.Passing(append(append([]*probe.Flow{}, victims...), innocents...))
	_, since := l.Block(t, "node-2", client.Target{VM: "guest1"})
	random := rand.New(rand.NewPCG(6, 5)) // the moments of the kills
	begin := time.Now()
	l.kill(t, node)
	for range restarts {
		if err := l.LaunchAgent(t.Context(), node); err != nil {
			t.Fatal(err)
		}
		rest(time.Duration(random.IntN(500)) * time.Millisecond)
		if err := l.KillAgent(t.Context(), node, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(begin)
	l.start(t, node)
	f.Silent(victims, since)
	var tried, passed uint64
	for _, v := range victims {
		r, err := v.Report()
		if err != nil {
			t.Fatal(err)
		}
		tried += r.Sent
	}
	for _, i := range innocents {
		r, err := i.Report()
		if err != nil {
			t.Fatal(err)
		}
		passed += r.Sent
	}
	f.Lossless(innocents)
	t.Logf("%d restarts in %s, %d packets of the blocked and %d of innocents: %.0f packets/s", restarts, took.Round(time.Second),
		tried, passed, float64(tried+passed)/time.Since(begin).Seconds())
}
