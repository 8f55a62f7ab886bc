package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
)

// nextBuild is a build of the release to come: it reads one command format more, and writes settings in it.
func nextBuild(t *testing.T) string {
	t.Helper()
	b, err := shared.Binaries()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(b.Dir, "palisade-next")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-tags", "hashicorpmetrics,nextformat", "-ldflags", "-X main.version=next", "-o", path, module+"cmd/palisade")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// replace stops a node's agent in order and starts another build of it.
func (l *lab) replace(t *testing.T, node, binary string) {
	t.Helper()
	if err := l.UseBinary(node, binary); err != nil {
		t.Fatal(err)
	}
	if err := l.KillAgent(t.Context(), node, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.start(t, node)
}

// writer blocks and lifts addresses through all nodes that run, in turn, until it is stopped.
type writer struct {
	stop  chan struct{}
	ended sync.WaitGroup
	done  atomic.Int64
}

func (l *lab) write(t *testing.T) *writer {
	t.Helper()
	w := &writer{stop: make(chan struct{})}
	w.ended.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-w.stop:
				return
			default:
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			nodes := slices.DeleteFunc(l.Nodes(), func(n fleet.Node) bool { return !n.Agent.Alive() })
			c := l.Clients[nodes[i%len(nodes)].Name]
			b, err := c.AddBlock(ctx, client.BlockRequest{Target: client.Target{Prefix: fmt.Sprintf("198.51.100.%d", i%250+1)}, Reason: "attack"}, client.Write{})
			if err == nil {
				_, err = c.LiftBlock(ctx, b.Block.ID, client.Write{})
			}
			cancel()
			var down *client.ConnectError
			switch {
			case errors.As(err, &down): // of a node whose agent is just being replaced
			case err != nil:
				t.Errorf("write %d: %v", i, err)
				return
			default:
				w.done.Add(1)
			}
		}
	})
	return w
}

func (w *writer) end(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); w.done.Load() < 10; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("hardly anything was written: the test shows nothing")
			break
		}
	}
	close(w.stop)
	w.ended.Wait()
	t.Logf("%d blocks were made and lifted meanwhile", w.done.Load())
}

// setting asks for something that only the next build can read.
func (l *lab) setting(t *testing.T, node string, maxVMs uint64) error {
	t.Helper()
	_, err := l.Clients[node].PutSettings(t.Context(), client.SettingsRequest{MaxVMs: maxVMs, MaxAddresses: 4096}, client.Write{})
	return err
}

// TestARollingUpgrade replaces one agent after the other by a build that writes what the one before can't read, under
// writes and packets. What is new waits until all nodes read it; nothing leaks, nothing is lost, no write fails.
// Then one node is set back: it stops at the first entry that it can't read, enforces what it has, and says so.
func TestARollingUpgrade(t *testing.T) {
	l := newLab(t, fleet.Options{GuestsPerNode: 2})
	next := nextBuild(t)
	before := l.Binary("node-1")
	w := watch(t, l)
	load := l.write(t)
	follower, leader := l.follower(t)
	third := ""
	for _, n := range l.Nodes() {
		if n.Name != follower && n.Name != leader {
			third = n.Name
		}
	}
	refused := func(asked string, behind ...string) {
		t.Helper()
		err := l.setting(t, asked, 7)
		var p *client.Problem
		if !errors.As(err, &p) || p.Code != "upgrade_pending" || p.Status != 409 {
			t.Fatalf("%s was asked for what not all nodes can read: %v", asked, err)
		}
		for _, n := range l.Nodes() {
			named := strings.Contains(p.Detail, n.Name)
			if want := slices.Contains(behind, n.Name); named != want {
				t.Errorf("%q names %s: %t, want %t", p.Detail, n.Name, named, want)
			}
		}
	}
	l.replace(t, follower, next)
	l.Eventually(t, "the fleet knows what the new build reads", l.reads(t, follower, 2))
	refused(follower, leader, third)
	w.held()
	l.replace(t, third, next)
	l.Eventually(t, "the fleet knows what the new build reads", l.reads(t, third, 2))
	refused(third, leader)
	w.held()
	l.replace(t, leader, next)
	l.Eventually(t, "the fleet knows what the new build reads", l.reads(t, leader, 2))
	if err := l.setting(t, follower, 7); err != nil {
		t.Fatalf("all nodes are upgraded: %v", err)
	}
	load.end(t)
	w.held()

	// One node goes back.
	rules := l.Ruleset(t, third)
	if err := l.UseBinary(third, before); err != nil {
		t.Fatal(err)
	}
	l.kill(t, third)
	if err := l.StartAgent(t.Context(), third); err != nil {
		t.Fatal(err)
	}
	other, _ := l.Block(t, follower, client.Target{Prefix: "203.0.113.60"}) // the others go on
	if len(other.Unconfirmed) == 0 {
		l.Eventually(t, "the node that was set back is told of", func() error {
			b, err := l.Clients[follower].Block(t.Context(), other.ID)
			if err == nil && len(b.Unconfirmed) == 0 {
				err = errors.New("it confirms what it can't know")
			}
			return err
		})
	}
	l.Eventually(t, "it says why it does not go on", func() error {
		n, err := l.Clients[follower].Node(t.Context(), third)
		if err == nil && !strings.Contains(n.Problem, "upgrade this node") {
			err = fmt.Errorf("its problem is %q", n.Problem)
		}
		return err
	})
	if is := l.Ruleset(t, third); strings.Contains(is, "203.0.113.60") || !strings.Contains(is, firstLineOf(rules)) {
		t.Errorf("the kernel of the node that was set back changed:\n%s", is)
	}
	w.held()
	l.replace(t, third, next)
	l.Eventually(t, "it has caught up", func() error {
		if is := l.Ruleset(t, third); !strings.Contains(is, "203.0.113.60") {
			return errors.New("not yet")
		}
		return nil
	})
	w.end()
}

func firstLineOf(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// reads says whether every node knows which command format a node's build reads.
func (l *lab) reads(t *testing.T, node string, format uint32) func() error {
	return func() error {
		for _, n := range l.Nodes() {
			m, err := l.Clients[n.Name].Node(t.Context(), node)
			if err == nil && m.Format != format {
				err = fmt.Errorf("%s has it at %d", n.Name, m.Format)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// TestAnUpgradeFromThePreviousRelease rolls a fleet of the release before to this build. test/run.sh builds that release
// from the commit that test/previous names, and says so aloud while there is none.
func TestAnUpgradeFromThePreviousRelease(t *testing.T) {
	previous := os.Getenv("PALISADE_PREVIOUS")
	if previous == "" {
		t.Log("there is no release yet (test/previous is not there): nothing to upgrade from")
		return
	}
	l := newLab(t, fleet.Options{GuestsPerNode: 2, Binary: previous})
	b, err := shared.Binaries()
	if err != nil {
		t.Fatal(err)
	}
	w := watch(t, l)
	load := l.write(t)
	for _, n := range l.Nodes() {
		l.replace(t, n.Name, b.Palisade)
		w.held()
	}
	load.end(t)
	w.end()
}
