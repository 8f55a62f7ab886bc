package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Up builds a fleet and returns when every agent is ready and knows its guests. It needs root. If it
// fails or ctx ends, what was built stays for Down to remove. ErrUp and ErrHalf say that dir holds one already.
func Up(ctx context.Context, o Options) (*Fleet, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a fleet needs root: it makes network namespaces")
	}
	if missing := Missing(o.Guests); len(missing) > 0 {
		return nil, fmt.Errorf("missing Debian packages: %v (deploy/install-deps.sh %s installs them)", missing, o.Guests)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := private(o.Dir); err != nil {
		return nil, err
	}
	f := &Fleet{dir: o.Dir, progress: o.Progress, children: map[int]chan struct{}{}}
	if err := f.claim(o); err != nil {
		return nil, err
	}
	if err := f.build(ctx, o); err != nil {
		return f, err
	}
	return f, f.update(func(s *state) { s.Ready = true })
}

// private refuses a directory that somebody else could have prepared or can write to: root runs what is
// in it, and it is by default in a place where everyone can make directories.
func private(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	sys, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || sys.Uid != 0 || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("state directory: %s (%v) must be a directory of root that nobody else can write to", dir, info.Mode())
	}
	return nil
}

// claim records that this directory holds a fleet from now on.
func (f *Fleet) claim(o Options) error {
	var taken error
	err := f.update(func(s *state) {
		switch {
		case s.Boot == "":
		case s.Boot != bootID(): // before a reboot: nothing of it exists any more but files
		case s.Ready:
			taken = fmt.Errorf("%w in %s", ErrUp, f.dir)
			return
		default:
			taken = fmt.Errorf("%w in %s: take it down first", ErrHalf, f.dir)
			return
		}
		*s = state{
			Boot: bootID(), Prefix: o.Prefix, Guests: o.Guests, Binary: o.Binary,
			AgentEnv: o.AgentEnv, LogLevel: o.LogLevel, Unmanaged: o.Unmanaged,
		}
	})
	return errors.Join(err, taken)
}

func (f *Fleet) build(ctx context.Context, o Options) error {
	plan := f.plan(ctx, o)
	f.progress(fmt.Sprintf("making %d nodes, each with its own network, mount and UTS namespace", o.Nodes))
	if err := f.files(plan); err != nil {
		return err
	}
	if err := f.outsideNetwork(ctx, o.Prefix+"-n0"); err != nil {
		return err
	}
	for i, n := range plan.Nodes {
		if err := f.nodeNetwork(ctx, n.Netns, o.Prefix+"-n0", i+1); err != nil {
			return err
		}
		if err := f.update(func(s *state) { s.Nodes = append(s.Nodes, n) }); err != nil {
			return err
		}
		if err := f.hold(ctx, n, o); err != nil {
			return err
		}
	}
	if o.Unmanaged {
		if err := f.unmanaged(ctx); err != nil {
			return err
		}
	}
	light := slices.DeleteFunc(slices.Clone(plan.VMs), func(g Guest) bool { return g.Netns == "" })
	if len(light) > 0 {
		f.progress(fmt.Sprintf("starting %d light guests", len(light)))
	}
	for k, g := range light {
		if err := f.addLight(ctx, g); err != nil {
			return fmt.Errorf("guest %s (%d of %d): %w", g.VM, k+1, len(light), err)
		}
	}
	if o.Guests == GuestsQEMU {
		if err := f.startQEMU(ctx, plan); err != nil {
			return err
		}
	}
	if o.NoAgents {
		return nil
	}
	f.progress(fmt.Sprintf("starting %d agents: the first forms the fleet, the others join it", o.Nodes))
	for _, n := range plan.Nodes[:o.Nodes-o.Apart] {
		if err := f.StartAgent(ctx, n.Name); err != nil {
			return err
		}
	}
	if err := f.AwaitReady(ctx); err != nil {
		return err
	}
	return f.AwaitGuests(ctx)
}

// plan names all nodes and guests.
func (f *Fleet) plan(ctx context.Context, o Options) state {
	var s state
	port := firstPort(o.Prefix)
	for i := 1; i <= o.Nodes; i++ {
		dir := filepath.Join(f.dir, nodeName(i))
		n := Node{
			Name: nodeName(i), Netns: fmt.Sprintf("%s-n%d", o.Prefix, i), Dir: dir,
			Socket: filepath.Join(dir, socketName),
		}
		for _, a := range nodeAddrs(i) {
			n.Addresses = append(n.Addresses, a.String())
		}
		port = freePort(ctx, port)
		n.API = "https://127.0.0.1:" + strconv.Itoa(port)
		port++
		s.Nodes = append(s.Nodes, n)
	}
	k := 0
	for i := range o.Nodes {
		for range o.GuestsPerNode {
			k++
			g := Guest{Name: fmt.Sprintf("guest%d", k), Node: nodeName(i + 1), MAC: guestMAC(k)}
			for _, a := range guestAddrs(k) {
				g.Addresses = append(g.Addresses, a.String())
			}
			if o.Guests == GuestsQEMU {
				g.VM = fmt.Sprintf("5a000000-0000-4000-8000-%012d", k)
			} else {
				g.light(o.Prefix, k)
			}
			s.VMs = append(s.VMs, g)
		}
	}
	for r := range o.RoutedGuests {
		k++
		i := r%o.Nodes + 1
		g := Guest{Name: fmt.Sprintf("guest%d", k), Node: nodeName(i), MAC: guestMAC(k), Routed: true}
		for _, a := range routedAddrs(i, r/o.Nodes+1) {
			g.Addresses = append(g.Addresses, a.String())
		}
		g.light(o.Prefix, k)
		s.VMs = append(s.VMs, g)
	}
	return s
}

func (g *Guest) light(prefix string, k int) {
	g.VM = fmt.Sprintf("vm%d", 100+k)
	g.Netns = prefix + "-g-" + g.VM
	g.Tap = fmt.Sprintf("tap%di0", 100+k)
}

// files makes the directories.
func (f *Fleet) files(plan state) error {
	for _, n := range plan.Nodes {
		for _, sub := range []string{"data", vmsName} {
			if err := os.MkdirAll(filepath.Join(n.Dir, sub), 0o700); err != nil {
				return err
			}
		}
	}
	return nil
}

// Down ends every process of the fleet in dir and removes its namespaces and files. It touches only
// what an Up made, also one that failed half way. ErrNotUp says that there is nothing.
func Down(ctx context.Context, dir string, progress func(string)) error {
	f, err := load(dir)
	if err != nil {
		return err
	}
	if progress != nil {
		f.progress = progress
	}
	return f.Down(ctx)
}

// Down is the package's Down for this fleet.
func (f *Fleet) Down(ctx context.Context) error {
	if err := f.read2(); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w in %s", ErrNotUp, f.dir)
	} else if err != nil {
		return err
	}
	s := f.snapshot()
	var errs []error
	if s.Boot == bootID() {
		f.progress("ending agents and guests")
		for _, n := range s.Nodes {
			for _, p := range []Process{n.Agent, n.Libvirtd, n.Holder} {
				if err := p.signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) && p.PID > 0 {
					errs = append(errs, err)
				}
			}
		}
		for _, ns := range s.Namespaces {
			errs = append(errs, f.empty(ctx, ns, syscall.SIGTERM))
		}
		for _, n := range s.Nodes {
			for _, p := range []Process{n.Agent, n.Libvirtd, n.Holder} {
				errs = append(errs, f.end(ctx, p, 3*time.Second))
			}
		}
		f.progress("removing namespaces")
		for _, ns := range s.Namespaces {
			errs = append(errs, f.remove(ctx, ns))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err // fleet.json stays, so that Down can be tried again
	}
	return f.erase(s)
}

func (f *Fleet) read2() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read()
}

// empty signals the processes inside a namespace.
func (f *Fleet) empty(ctx context.Context, ns string, sig syscall.Signal) error {
	pids, err := f.inNamespace(ctx, ns)
	for _, pid := range pids {
		if pid == os.Getpid() {
			return fmt.Errorf("this command itself runs in %s", ns)
		}
		if e := syscall.Kill(pid, sig); e != nil && !errors.Is(e, syscall.ESRCH) {
			err = errors.Join(err, fmt.Errorf("end process %d in %s: %w", pid, ns, e))
		}
	}
	return err
}

func (f *Fleet) inNamespace(ctx context.Context, ns string) ([]int, error) {
	if _, err := os.Stat(nsPath(ns)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	out, err := tool(ctx, "", "ip", "netns", "pids", ns)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, field := range splitFields(out) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("ip netns pids %s: %w", ns, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// remove empties a namespace by force and deletes it.
func (f *Fleet) remove(ctx context.Context, ns string) error {
	if _, err := os.Stat(nsPath(ns)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := until(ctx, 10*time.Second, 20*time.Millisecond, func() error {
		pids, err := f.inNamespace(ctx, ns)
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := f.empty(ctx, ns, syscall.SIGKILL); err != nil {
			return err
		}
		return fmt.Errorf("processes %v in %s do not end", pids, ns)
	})
	if err != nil {
		return err
	}
	_, err = tool(ctx, "", "ip", "netns", "del", ns)
	return err
}

// erase removes the files of the fleet, and the directory if nothing else is in it.
func (f *Fleet) erase(s state) error {
	for _, n := range s.Nodes {
		if err := os.RemoveAll(n.Dir); err != nil {
			return err
		}
	}
	// Nodes that were planned but never recorded have directories too.
	more, _ := filepath.Glob(filepath.Join(f.dir, "node-*"))
	more = append(more, filepath.Join(f.dir, guestsDir))
	for _, path := range more {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	for _, name := range []string{stateName, lockName} {
		if err := os.Remove(filepath.Join(f.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(f.dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EBUSY) {
		return err
	}
	return nil
}
