package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	stateName  = "fleet.json"
	lockName   = ".lock"
	socketName = "palisade.sock"
)

// Errors of Up and Load that a caller may want to tell apart.
var (
	ErrUp    = errors.New("the fleet is up already")
	ErrNotUp = errors.New("no fleet is up")
	// ErrHalf: an earlier Up did not come to its end; only Down helps.
	ErrHalf = errors.New("a fleet is half built")
)

// Node is one virtualization node of the fleet.
type Node struct {
	Name      string   `json:"name"` // also its id: "node-1"
	Netns     string   `json:"netns"`
	Addresses []string `json:"addresses"`
	API       string   `json:"api"`              // URL, on the machine's own loopback
	Token     string   `json:"token"`            // of the fleet, scope admin; palisade init printed it
	Socket    string   `json:"socket"`           // the agent's, seen from the machine and from the node
	Dir       string   `json:"dir"`              // config, log, data and inventory of the node
	Binary    string   `json:"binary,omitempty"` // that the next start of the agent runs; empty: the fleet's
	Holder    Process  `json:"holder"`           // keeps the namespaces
	Agent     Process  `json:"agent"`
	Libvirtd  Process  `json:"libvirtd"`
}

// Guest is one VM of the fleet.
type Guest struct {
	VM        string   `json:"vm"` // its id
	Name      string   `json:"name"`
	Node      string   `json:"node"`  // where it runs
	Netns     string   `json:"netns"` // of a light guest, else empty
	Tap       string   `json:"tap"`   // of a light guest, else empty
	MAC       string   `json:"mac"`
	Addresses []string `json:"addresses"`
	Routed    bool     `json:"routed,omitempty"`
}

// state is what fleet.json holds. It is written before what it names is made, so that Down finds
// everything even if Up was killed.
type state struct {
	Boot       string   `json:"boot"` // of the kernel: after a reboot nothing of it exists
	Prefix     string   `json:"prefix"`
	Guests     string   `json:"guests_kind"`
	Binary     string   `json:"binary"`
	AgentEnv   []string `json:"agent_env,omitempty"`
	LogLevel   string   `json:"log_level"`
	Ready      bool     `json:"ready"` // Up came to its end
	Unmanaged  bool     `json:"unmanaged,omitempty"`
	Namespaces []string `json:"namespaces"`
	Nodes      []Node   `json:"nodes"`
	VMs        []Guest  `json:"guests"`
}

// Fleet is a fleet that is up. Its methods may be called concurrently, also from several processes.
type Fleet struct {
	dir      string
	progress func(string)

	mu    sync.Mutex
	state state
	// children are the processes that this process started and must reap.
	children map[int]chan struct{}
}

// Load opens a fleet that an earlier Up built in dir. It returns ErrNotUp if there is none, also
// after a reboot of the machine, and ErrHalf if that Up did not come to its end.
func Load(dir string) (*Fleet, error) {
	f, err := load(dir)
	if err != nil {
		return nil, err
	}
	if f.state.Boot != bootID() {
		return nil, fmt.Errorf("%w in %s: the machine was rebooted since", ErrNotUp, f.dir)
	}
	if !f.state.Ready {
		return nil, fmt.Errorf("%w in %s: take it down first", ErrHalf, f.dir)
	}
	return f, nil
}

// load also opens what is half built.
func load(dir string) (*Fleet, error) {
	dir, err := cleanDir(dir)
	if err != nil {
		return nil, err
	}
	f := &Fleet{dir: dir, progress: func(string) {}, children: map[int]chan struct{}{}}
	if err := f.read(); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s", ErrNotUp, dir)
	} else if err != nil {
		return nil, err
	}
	return f, nil
}

func (f *Fleet) read() error {
	path := filepath.Join(f.dir, stateName)
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	f.state = s
	return nil
}

// update changes the state and writes it, as one step also against other processes.
func (f *Fleet) update(change func(*state)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	unlock, err := lock(f.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := f.read(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	change(&f.state)
	b, err := json.MarshalIndent(f.state, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(f.dir, stateName), b)
}

// snapshot is the state as this process knows it.
func (f *Fleet) snapshot() state {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.state
	s.Nodes = append([]Node(nil), s.Nodes...)
	s.VMs = append([]Guest(nil), s.VMs...)
	return s
}

// lock serialises the changes of fleet.json.
func lock(dir string) (func(), error) {
	l, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(l.Fd()), syscall.LOCK_EX); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("lock %s: %w", l.Name(), err)
	}
	return func() { _ = l.Close() }, nil
}

// writeFile replaces a file, readable by root alone, in one step.
func writeFile(path string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*.tmp") // mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	if closing := tmp.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// Dir is where the fleet keeps its files.
func (f *Fleet) Dir() string { return f.dir }

// Nodes lists the nodes in order.
func (f *Fleet) Nodes() []Node { return f.snapshot().Nodes }

// Guests lists the guests, each with the node it is on.
func (f *Fleet) Guests() []Guest { return f.snapshot().VMs }

// Node finds a node by name.
func (f *Fleet) Node(name string) (Node, error) {
	s := f.snapshot()
	for _, n := range s.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return Node{}, fmt.Errorf("no node %q in this fleet (it has %s to %s)", name, nodeName(1), nodeName(len(s.Nodes)))
}

// Binary is the palisade that runs a node's agent.
func (f *Fleet) Binary(node string) string {
	s := f.snapshot()
	if b := s.node(node).Binary; b != "" {
		return b
	}
	return s.Binary
}

// UseBinary has the next start of a node's agent run another build. It must not be below /run.
func (f *Fleet) UseBinary(node, binary string) error {
	if _, err := f.Node(node); err != nil {
		return err
	}
	return f.update(func(s *state) { s.node(node).Binary = binary })
}

// Guest finds a guest by id or name.
func (f *Fleet) Guest(ref string) (Guest, error) {
	for _, g := range f.snapshot().VMs {
		if g.VM == ref || g.Name == ref {
			return g, nil
		}
	}
	return Guest{}, fmt.Errorf("no guest %q in this fleet", ref)
}

func nodeName(i int) string { return fmt.Sprintf("node-%d", i) }

// until calls f every step until it gives nil. It gives up when the limit has passed, when f returns a
// permanent error, or with the context's error when ctx ends.
func until(ctx context.Context, limit, step time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := f()
		var p permanent
		switch {
		case err == nil:
			return nil
		case errors.As(err, &p):
			return p.error
		case time.Now().After(deadline):
			return fmt.Errorf("%w (waited %v)", err, limit)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(step):
		}
	}
}

// permanent is an error that waiting does not mend.
type permanent struct{ error }
