package fleet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary stand in for palisade: as what light guests run, and as an agent that
// only shows how it was started.
func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) > 2 && os.Args[1] == "demo" && os.Args[2] == "guest":
		err = untilTerminated(func(ctx context.Context) error { return ServeGuest(ctx, os.Args[len(os.Args)-1]) })
	case len(os.Args) > 1 && os.Args[1] == "agent":
		err = mimicAgent()
	case len(os.Args) > 1 && os.Args[1] == "hook": // lets every guest in
	case len(os.Args) > 1 && os.Args[1] == "observe":
		err = untilTerminated(observe)
	case len(os.Args) > 1 && os.Args[1] == "init":
		err = mimicInit(os.Args[slices.Index(os.Args, "--config")+1])
		fmt.Println(`{"token":"plt_mimicked"}`)
	case len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-"):
		err = fmt.Errorf("the test binary does not stand in for palisade %s", os.Args[1])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func untilTerminated(f func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return f(ctx)
}

// mimicInit makes every node of the fleet look like a member: nobody here could admit one.
func mimicInit(config string) error {
	nodes, err := filepath.Glob(filepath.Join(filepath.Dir(config), "..", "node-*"))
	for _, dir := range nodes {
		identity := filepath.Join(dir, "data", "identity")
		err = errors.Join(err, os.MkdirAll(identity, 0o700))
		for _, name := range []string{"ca.pem", "fleet.json"} {
			err = errors.Join(err, os.WriteFile(filepath.Join(identity, name), nil, 0o600))
		}
	}
	return err
}

// mimicAgent answers every connection to the inherited API socket with where it runs.
func mimicAgent() error {
	l, err := net.FileListener(os.NewFile(3, "api"))
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	br0, _ := net.InterfaceByName("br0")
	run, _ := os.ReadDir("/run")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		fmt.Fprintf(c, "%s bridge=%v run=%d fds=%s names=%s pid=%q\n", host, br0 != nil, len(run), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES"), os.Getenv("LISTEN_PID"))
		_ = c.Close()
	}
}

// up builds a fleet for a test and takes it down after it.
func up(t *testing.T, o Options) *Fleet {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o.Binary = self
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "fleet")
	}
	if o.Prefix == "" {
		o.Prefix = fmt.Sprintf("t%dx%d", os.Getpid()%100000, time.Now().UnixNano()%100000)
	}
	o.Progress = func(s string) { t.Log(s) }
	t.Cleanup(func() {
		if err := Down(context.Background(), o.Dir, nil); err != nil && !errors.Is(err, ErrNotUp) {
			t.Errorf("down: %v", err)
		}
		left, err := filepath.Glob("/run/netns/" + o.Prefix + "-*")
		if err != nil || len(left) != 0 {
			t.Errorf("namespaces left: %v %v", left, err)
		}
	})
	f, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *Fleet) must(t *testing.T, where string, argv ...string) string {
	t.Helper()
	out, err := f.Exec(t.Context(), where, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestEveryoneReachesEveryone(t *testing.T) {
	f := up(t, Options{NoAgents: true, Nodes: 2, GuestsPerNode: 1, RoutedGuests: 2, Unmanaged: true})
	places := map[string][]string{Outside: {}, Unmanaged: {}}
	for _, a := range f.OutsideAddresses() {
		places[Outside] = append(places[Outside], a.String())
	}
	for _, a := range f.UnmanagedAddresses() {
		places[Unmanaged] = append(places[Unmanaged], a.String())
	}
	for _, n := range f.Nodes() {
		places[n.Name] = n.Addresses
	}
	for _, g := range f.Guests() {
		places[g.VM] = g.Addresses
	}
	for from := range places {
		for to, addrs := range places {
			for _, a := range addrs {
				if from != to {
					f.must(t, from, "ping", "-q", "-c", "1", "-W", "2", a)
				}
			}
		}
	}
	for _, a := range f.Guests()[0].Addresses {
		out := f.must(t, Outside, "sh", "-c", "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -N "+a+" 80")
		if !strings.Contains(out, "hello from vm101") {
			t.Errorf("http on %s said %q", a, out)
		}
		out = f.must(t, Outside, "sh", "-c", "echo marco | nc -u -W 1 -w 2 "+a+" 7")
		if out != "marco\n" {
			t.Errorf("UDP echo on %s said %q", a, out)
		}
	}
	if got := f.must(t, "node-2", "hostname"); got != "node-2\n" {
		t.Errorf("host name %q", got)
	}
	if _, err := os.Stat(filepath.Join(f.Nodes()[0].Dir, vmsName, "vm101.json")); err != nil {
		t.Error(err)
	}
}

// conversation is a TCP connection from the outside to a guest's echo.
type conversation struct {
	in  *os.File
	out *bufio.Reader
}

func (f *Fleet) converse(t *testing.T, addr string) *conversation {
	t.Helper()
	cmd, err := f.Command(t.Context(), Outside, "nc", addr, "7")
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return &conversation{w, bufio.NewReader(out)}
}

func (c *conversation) say(t *testing.T, text string) time.Duration {
	t.Helper()
	began := time.Now()
	fmt.Fprintln(c.in, text)
	got, err := c.out.ReadString('\n')
	if err != nil || got != text+"\n" {
		t.Fatalf("echo %q: %v", got, err)
	}
	return time.Since(began)
}

func TestMigrationKeepsConnections(t *testing.T) {
	f := up(t, Options{NoAgents: true, Nodes: 2, GuestsPerNode: 1})
	g := f.Guests()[0]
	var talks []*conversation
	for _, a := range g.Addresses {
		c := f.converse(t, a)
		c.say(t, "before")
		talks = append(talks, c)
	}
	for i := range 4 {
		to := f.Nodes()[(i+1)%2].Name
		m, err := f.Migrate(t.Context(), g.Name, to)
		if err != nil {
			t.Fatal(err)
		}
		learned := f.must(t, Outside, "bridge", "fdb", "show", "br", "br0")
		t.Logf("%s to %s: detached for %v, first words after %v", g.Name, to, m.Attached.Sub(m.Detached), talks[0].say(t, "after"))
		// The bridge outside learned the new place before the guest itself had a word to say.
		want := g.MAC + " dev up" + strings.TrimPrefix(to, "node-") + " "
		if table := learned; !strings.Contains(table, want) {
			t.Errorf("%q is not in the table of the bridge:\n%s", want, table)
		}
		for _, c := range talks {
			c.say(t, fmt.Sprint("migration ", i))
		}
		for _, n := range f.Nodes() {
			_, err := os.Stat(inventoryFile(n, g))
			if here := n.Name == to; here != (err == nil) {
				t.Errorf("inventory file on %s: %v", n.Name, err)
			}
		}
	}
	if _, err := f.Migrate(t.Context(), g.VM, "node-1"); err == nil {
		t.Error("a guest migrated to where it is")
	}
	if _, err := f.Migrate(t.Context(), g.VM, "node-9"); err == nil {
		t.Error("a guest migrated to a node that does not exist")
	}
}

func TestAgentsRunInTheirNodeAndAnswerOutsideOfIt(t *testing.T) {
	f := up(t, Options{NoAgents: true, Nodes: 2, GuestsPerNode: -1})
	for _, n := range f.Nodes() { // what stands for the agent here can't join
		if err := errors.Join(os.MkdirAll(n.identity(), 0o700), writeFile(filepath.Join(n.identity(), "fleet.json"), []byte("{}"))); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(n Node) string {
		c, err := net.Dial("tcp", strings.TrimPrefix(n.API, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			t.Fatalf("%v; %s", err, tail(f.AgentLog(n.Name), 5))
		}
		return line
	}
	for round := range 2 { // the second time on the same ports
		for _, n := range f.Nodes() {
			if err := f.StartAgent(t.Context(), n.Name); err != nil {
				t.Fatal(err)
			}
			want := n.Name + " bridge=true run=1 fds=1 names=api pid=\"\"\n"
			if got := ask(n); got != want {
				t.Errorf("round %d: %q, want %q", round, got, want)
			}
			if err := f.StartAgent(t.Context(), n.Name); err == nil {
				t.Error("a second agent was started")
			}
			if f.Status().Nodes[0].PID == 0 {
				t.Error("status has no agent")
			}
		}
		for _, n := range f.Nodes() {
			if err := f.KillAgent(t.Context(), n.Name, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if _, err := net.Dial("tcp", strings.TrimPrefix(n.API, "https://")); err == nil {
				t.Error("a dead agent's port is open")
			}
		}
	}
	config, err := os.ReadFile(filepath.Join(f.Nodes()[0].Dir, "agent.toml"))
	if err != nil || strings.Contains(string(config), "token") {
		t.Errorf("config: %v; it must not hold a token", err)
	}
	info, err := os.Stat(filepath.Join(f.Nodes()[0].Dir, "agent.toml"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the config: %v %v", info.Mode(), err)
	}
}

func TestCutAndHeal(t *testing.T) {
	f := up(t, Options{NoAgents: true, Nodes: 2, GuestsPerNode: -1})
	ctx := t.Context()
	listener, err := f.Command(ctx, "node-1", "nc", "-lk", "10.90.0.1", "7420")
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Process.Kill(); _ = listener.Wait() }()
	reach := func() error {
		_, err := f.Exec(ctx, "node-2", "nc", "-z", "-w", "1", "10.90.0.1", "7420")
		return err
	}
	if err := until(t.Context(), 5*time.Second, 20*time.Millisecond, reach); err != nil {
		t.Fatal(err)
	}
	for range 2 { // cutting twice is one cut
		if err := f.CutNode(ctx, "node-2"); err != nil {
			t.Fatal(err)
		}
	}
	if reach() == nil {
		t.Error("a peer is reached over the cut")
	}
	f.must(t, "node-2", "ping", "-q", "-c", "1", "-W", "2", "10.90.0.1")
	for range 2 {
		if err := f.HealNode(ctx, "node-2"); err != nil {
			t.Fatal(err)
		}
	}
	if err := reach(); err != nil {
		t.Error(err)
	}
}

func TestTwoFleetsAndASecondUp(t *testing.T) {
	a := up(t, Options{NoAgents: true, Nodes: 1, GuestsPerNode: 1})
	b := up(t, Options{NoAgents: true, Nodes: 1, GuestsPerNode: 1})
	for _, f := range []*Fleet{a, b} {
		f.must(t, Outside, "ping", "-q", "-c", "1", "-W", "2", "10.90.1.1")
	}
	for _, f := range []*Fleet{a, b} {
		if err := f.StartAgent(t.Context(), "node-1"); err != nil {
			t.Fatal(err)
		}
	}
	if a.Nodes()[0].Token != "plt_mimicked" {
		t.Errorf("the token that init printed is kept as %q", a.Nodes()[0].Token)
	}
	if a.Nodes()[0].API == b.Nodes()[0].API {
		t.Error("both fleets have the same API port")
	}
	again := Options{Dir: a.Dir(), Binary: a.snapshot().Binary, Prefix: "other", NoAgents: true}
	if _, err := Up(t.Context(), again); !errors.Is(err, ErrUp) {
		t.Errorf("second up: %v", err)
	}
	same := Options{Dir: filepath.Join(t.TempDir(), "x"), Binary: a.snapshot().Binary, Prefix: a.snapshot().Prefix, NoAgents: true}
	_, err := Up(t.Context(), same)
	if err == nil || !strings.Contains(err.Error(), "not ours") {
		t.Errorf("up with a prefix in use: %v", err)
	}
	if err := Down(t.Context(), same.Dir, nil); err != nil {
		t.Errorf("down of the failed one: %v", err)
	}
	a.must(t, Outside, "ping", "-q", "-c", "1", "-W", "2", "10.90.1.1") // not touched by it
	loaded, err := Load(a.Dir())
	if err != nil || len(loaded.Guests()) != 1 || loaded.Guests()[0].VM != "vm101" {
		t.Errorf("load: %v %+v", err, loaded)
	}
}

// Whenever Up is interrupted, Down finds what was made and nothing else.
func TestDownAfterAnInterruptedUp(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, after := range []int{1, 2} { // progress lines
		o := Options{Dir: filepath.Join(t.TempDir(), "fleet"), Binary: self, NoAgents: true, Nodes: 2, GuestsPerNode: 1, Prefix: fmt.Sprintf("h%dx%d", os.Getpid()%100000, after)}
		ctx, cancel := context.WithCancel(t.Context())
		lines := 0
		o.Progress = func(string) {
			if lines++; lines == after {
				cancel()
			}
		}
		if _, err := Up(ctx, o); !errors.Is(err, context.Canceled) {
			t.Fatalf("up after %d lines: %v", after, err)
		}
		if _, err := Load(o.Dir); !errors.Is(err, ErrHalf) {
			t.Errorf("load of half a fleet: %v", err)
		}
		if _, err := Up(t.Context(), o); !errors.Is(err, ErrHalf) {
			t.Errorf("up over half a fleet: %v", err)
		}
		if err := Down(t.Context(), o.Dir, nil); err != nil {
			t.Fatal(err)
		}
		left, _ := filepath.Glob("/run/netns/" + o.Prefix + "-*")
		if len(left) != 0 {
			t.Errorf("left: %v", left)
		}
		if _, err := os.Stat(o.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the directory is left: %v", err)
		}
		if err := Down(t.Context(), o.Dir, nil); !errors.Is(err, ErrNotUp) {
			t.Errorf("second down: %v", err)
		}
	}
}

// A number that passed to another process is not ours.
func TestProcessIdentity(t *testing.T) {
	f := &Fleet{children: map[int]chan struct{}{}}
	p, err := f.launch([]string{"sleep", "60"}, nil, filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.end(t.Context(), p, time.Second) }()
	if !p.Alive() {
		t.Error("not alive")
	}
	other := Process{PID: p.PID, Start: p.Start + 1}
	if other.Alive() {
		t.Error("a process with another start time is taken for ours")
	}
	if err := other.signal(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal: %v", err)
	}
	if err := f.end(t.Context(), other, time.Second); err != nil || !p.Alive() {
		t.Errorf("end of another: %v, alive %v", err, p.Alive())
	}
	if err := f.end(t.Context(), p, time.Second); err != nil || p.Alive() {
		t.Errorf("end: %v, alive %v", err, p.Alive())
	}
}

func TestDirectoryOfSomebodyElse(t *testing.T) {
	self, _ := os.Executable()
	for name, spoil := range map[string]func(string) error{
		"theirs":   func(dir string) error { return os.Chown(dir, 65534, 65534) },
		"writable": func(dir string) error { return os.Chmod(dir, 0o777) },
	} {
		dir := filepath.Join(t.TempDir(), "fleet")
		if err := errors.Join(os.Mkdir(dir, 0o700), spoil(dir)); err != nil {
			t.Fatal(err)
		}
		if _, err := Up(t.Context(), Options{Dir: dir, Binary: self, NoAgents: true}); err == nil || !strings.Contains(err.Error(), "must be a directory of root") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	self, _ := os.Executable()
	good := Options{Dir: "/var/tmp/x", Binary: self}
	for name, change := range map[string]func(*Options){
		"prefix":    func(o *Options) { o.Prefix = "../x" },
		"nodes":     func(o *Options) { o.Nodes = 33 },
		"guests":    func(o *Options) { o.Guests = "docker" },
		"no dir":    func(o *Options) { o.Dir = "" },
		"run":       func(o *Options) { o.Dir = "/run/x" },
		"long":      func(o *Options) { o.Dir = "/var/tmp/" + strings.Repeat("x", 90) },
		"quote":     func(o *Options) { o.Dir = "/var/tmp/x\"y" },
		"no binary": func(o *Options) { o.Binary = "/nonexistent" },
		"too many":  func(o *Options) { o.GuestsPerNode = 1000 },
	} {
		o := good
		change(&o)
		if _, err := o.complete(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	o, err := good.complete()
	if err != nil || o.Nodes != 3 || o.GuestsPerNode != 2 || o.Guests != GuestsNetns || o.Prefix != "pal" {
		t.Errorf("defaults: %+v %v", o, err)
	}
	if !slices.Equal(guestAddrs(251), guestAddrs(251)) || guestAddrs(251)[0].String() != "10.90.2.1" || guestAddrs(1)[1].String() != "fd90::1:1" {
		t.Errorf("addresses: %v %v", guestAddrs(251), guestAddrs(1))
	}
}
