package qemu

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/test/rig"
)

// TestAnInnocentGuestMigrates moves a guest while another one is blocked: it loses what the switch-over
// costs, and no kernel ever holds anything of it.
func TestAnInnocentGuestMigrates(t *testing.T) {
	l := sharedLab(t)
	f := l.Flows(t)
	w := l.wires(t, "guest2")
	monitors := map[string]*monitor{}
	for _, n := range l.Nodes() {
		monitors[n.Name] = l.monitor(t, n.Name)
	}
	b, _ := l.Block(t, "node-1", client.Target{VM: "guest1"})
	g1, err := l.Guest("guest1")
	if err != nil {
		t.Fatal(err)
	}
	g2, err := l.Guest("guest2")
	if err != nil {
		t.Fatal(err)
	}
	from, others := l.place(t, "guest2")
	to := others[0]
	if to == g1.Node { // not where the other one is: their taps are told apart by node
		to = others[1]
	}
	moving := append(f.Echo(fleet.Outside, "guest2"), f.Echo(fleet.Unmanaged, "guest2")...)
	clients := append(l.OutsideAddresses(), l.UnmanagedAddresses()...)
	talks := []*talk{l.talks(t, g2.Addresses[0]), l.talks(t, g2.Addresses[1])}
	f.Passing(moving)

	taps := map[string]string{from: l.tap(t, "guest2")}
	var moves []fleet.Migration
	var downtime time.Duration
	for _, node := range []string{to, from} {
		moves = append(moves, l.Move(t, "guest2", node))
		taps[node] = l.tap(t, "guest2")
		downtime += l.downtime(t, "guest2")
		f.Passing(moving)
	}
	var wg sync.WaitGroup
	for i, fl := range moving {
		wg.Go(func() {
			r, err := fl.Stop(3 * time.Second)
			if err != nil {
				t.Error(err)
			}
			lost := rig.Gaps(r)
			t.Logf("%s: lost %d of %d packets, was silent for %v; libvirt counts %v of downtime", fl.Name, len(r.Lost()), r.Sent, silence(lost), downtime)
			// A guest that has little of the machine may itself be silent at any time.
			checkGaps(t, fl.Name, rig.Gaps(w.networks(r, clients[i])), moves)
		})
	}
	wg.Wait()
	for _, k := range talks {
		if lines, err := k.end(); err != nil || lines < 100 {
			t.Errorf("a TCP connection of guest2 did not survive the moves: %d lines, %v", lines, err)
		}
	}
	l.Lift(t, "node-1", b.ID)
	for name, m := range monitors {
		said := m.end(t)
		if !mentions(said, g1.MAC) {
			t.Errorf("the monitor of %s did not see the blocked guest's address; it shows nothing:\n%s", name, said)
		}
		for _, mark := range append([]string{g2.MAC}, g2.Addresses...) {
			if mentions(said, mark) {
				t.Errorf("the kernel of %s held %s of the innocent guest2:\n%s", name, mark, said)
			}
		}
		if tap := taps[name]; tap != "" && name != g1.Node && mentions(said, tap) {
			t.Errorf("the kernel of %s held the tap %s of the innocent guest2:\n%s", name, tap, said)
		}
	}
}

// checkGaps checks that all that was lost was lost within migrations, up to when neighbours noticed.
func checkGaps(t *testing.T, flow string, gaps []rig.Gap, moves []fleet.Migration) {
	t.Helper()
	const (
		slack   = 20 * time.Millisecond
		resolve = 1200 * time.Millisecond // a neighbour is asked again after 1 s
	)
	for _, gap := range gaps {
		during := false
		for _, m := range moves {
			during = during || gap.From.After(m.Incoming.Add(-slack)) && gap.To.Before(m.Gone.Add(resolve))
		}
		if !during {
			t.Errorf("%s lost packets %d to %d outside of a migration: silence from %v to %v; moves %+v", flow, gap.First, gap.Last, gap.From, gap.To, moves)
		}
	}
}

// silence is how long gaps are together.
func silence(gaps []rig.Gap) (sum time.Duration) {
	for _, g := range gaps {
		sum += g.To.Sub(g.From)
	}
	return sum.Round(time.Millisecond)
}

// downtime is how long a guest stood still in its last migration.
func (l *lab) downtime(t *testing.T, guest string) time.Duration {
	t.Helper()
	said := l.virsh(t, l.where(t, guest), "domjobinfo", guest, "--completed", "--keep-completed")
	m := regexp.MustCompile(`Total downtime:\s+(\d+)\s+ms`).FindStringSubmatch(said)
	if m == nil {
		t.Fatalf("libvirt does not tell the downtime:\n%s", said)
	}
	ms, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(ms) * time.Millisecond
}

// monitor notes every element that comes into a node's kernel.
type monitor struct {
	cmd *exec.Cmd
	out syncBuffer
}

func (l *lab) monitor(t *testing.T, node string) *monitor {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(cancel)
	cmd, err := l.Command(ctx, node, "stdbuf", "-oL", "nft", "monitor", "new", "elements")
	if err != nil {
		t.Fatal(err)
	}
	m := &monitor{cmd: cmd}
	cmd.Stdout, cmd.Stderr = &m.out, &m.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// It listens once it says what is added now.
	const ours = "table inet qemutest { set s { type inet_service; }; }"
	run := func(args ...string) {
		if _, err := l.Exec(t.Context(), node, append([]string{"nft"}, args...)...); err != nil {
			t.Fatal(err)
		}
	}
	run("add", ours)
	l.Eventually(t, "nft monitors "+node, func() error {
		run("add element inet qemutest s { 7 }; delete element inet qemutest s { 7 }")
		if m.out.String() == "" {
			return errors.New("it says nothing")
		}
		return nil
	})
	run("delete table inet qemutest")
	return m
}

func (m *monitor) end(t *testing.T) string {
	t.Helper()
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = m.cmd.Wait() // ended by the signal
	return m.out.String()
}

// mentions finds a word in what nft prints.
func mentions(said, word string) bool {
	return regexp.MustCompile(`(^|[\s,"{])` + regexp.QuoteMeta(word) + `([\s,"}]|$)`).MatchString(said)
}

// syncBuffer is a buffer that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
