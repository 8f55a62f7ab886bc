package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
)

// drill runs the commands of a section of docs/recovery.md as they stand there, on the nodes of a fleet.
type drill struct {
	*lab
	t     *testing.T
	fleet string            // id
	home  string            // stands for /root
	said  map[string]string // output of each command, by its text
}

// drillCommands are the lines of the fences below a heading: the node, the command, and what its comment says.
func drillCommands(t *testing.T, heading string) [][3]string {
	t.Helper()
	b, err := os.ReadFile("../docs/recovery.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(b), "\n### "+heading+"\n")
	if !ok {
		t.Fatalf("there is no drill %q", heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	text, _, _ = strings.Cut(text, "\n### ")
	line := regexp.MustCompile(`^(node-\d)# (.*?)(?:\s+# (.*))?$`)
	var out [][3]string
	for _, fence := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(text, -1) {
		for l := range strings.Lines(fence[1]) {
			m := line.FindStringSubmatch(strings.TrimSuffix(l, "\n"))
			if m == nil {
				t.Fatalf("in %q: what is %q?", heading, l)
			}
			out = append(out, [3]string{m[1], m[2], m[3]})
		}
	}
	if len(out) == 0 {
		t.Fatalf("drill %q has no commands", heading)
	}
	return out
}

// newDrill brings up a fleet of its own: a drill leaves it as no other test wants it.
func newDrill(t *testing.T, prefix string) *drill {
	t.Helper()
	d := &drill{lab: newLab(t, fleet.Options{Prefix: prefix}), t: t, said: map[string]string{}}
	d.home = filepath.Join(d.Dir(), "root")
	if err := os.MkdirAll(d.home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.home, "backup.pass"), []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range d.Nodes() {
		if err := d.stub(n); err != nil {
			t.Fatal(err)
		}
	}
	out, err := d.Exec(t.Context(), "node-1", d.bin("node-1")+"/palisade", "-o", "json", "ca", "show")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`"id": "([0-9a-f]{16})"`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("ca show: %s", out)
	}
	d.fleet = string(m[1])
	return d
}

func (d *drill) bin(node string) string { return filepath.Join(d.Dir(), node, "bin") }

// stub makes a palisade that finds this fleet's files where the guide has them in their usual places.
func (d *drill) stub(n fleet.Node) error {
	script := fmt.Sprintf("#!/bin/sh\nexport PALISADE_SOCKET=%q\ncase \"$1\" in recover|restore|join) exec %q \"$@\" --config %q;; esac\nexec %q \"$@\"\n",
		n.Socket, d.Binary(n.Name), filepath.Join(n.Dir, "agent.toml"), d.Binary(n.Name))
	if err := os.MkdirAll(d.bin(n.Name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.bin(n.Name), "palisade"), []byte(script), 0o755)
}

// run runs a drill as it stands; before a command at a node whose agent runs, that agent is ready.
func (d *drill) run(heading string) {
	d.t.Helper()
	for _, c := range drillCommands(d.t, heading) {
		node, command, comment := c[0], c[1], c[2]
		out, err := d.do(node, command)
		d.said[command] = out
		switch refused := strings.HasPrefix(comment, "refused"); {
		case refused && err == nil:
			d.t.Fatalf("%s# %s: it was to be refused:\n%s", node, command, out)
		case !refused && err != nil:
			d.t.Fatalf("%s# %s: %v\n%s", node, command, err, out)
		}
	}
}

func (d *drill) do(node, command string) (string, error) {
	ctx, cancel := context.WithTimeout(d.t.Context(), 2*time.Minute)
	defer cancel()
	switch command {
	case "systemctl stop palisade":
		return "", d.KillAgent(ctx, node, syscall.SIGTERM)
	case "systemctl start palisade":
		return "", d.StartAgent(ctx, node)
	}
	n, err := d.Node(node)
	if err != nil {
		return "", err
	}
	if n.Agent.Alive() && !strings.HasPrefix(command, "palisade join ") { // which is what makes it ready
		d.ready(node)
	}
	for from, to := range map[string]string{"$MEMBER": d.Nodes()[0].PeerAddress(), "/var/lib/palisade": filepath.Join(n.Dir, "data"), "/root/": d.home + "/", "$FLEET": d.fleet} {
		command = strings.ReplaceAll(command, from, to)
	}
	cmd, err := d.Command(ctx, node, "sh", "-c", command)
	if err != nil {
		return "", err
	}
	cmd.Env = append(os.Environ(), "PATH="+d.bin(node)+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// ready waits until a node takes part in the fleet and enforces.
func (d *drill) ready(node string) {
	d.t.Helper()
	d.Eventually(d.t, node+" is ready", func() error {
		return d.Call(d.t.Context(), node, "GET", "/readyz", nil, nil)
	})
}

func (d *drill) saw(command, what string) {
	d.t.Helper()
	out, ran := d.said[command]
	if !ran {
		d.t.Fatalf("the drill has no command %q", command)
	}
	if !regexp.MustCompile(what).MatchString(out) {
		d.t.Errorf("%s does not say %q:\n%s", command, what, out)
	}
}

// enforced says whether a node's kernel holds an element.
func (d *drill) enforced(node, address string) bool {
	d.t.Helper()
	out, err := d.Exec(d.t.Context(), node, "nft", "list", "ruleset")
	if err != nil {
		d.t.Fatal(err)
	}
	return strings.Contains(string(out), address)
}

func (d *drill) blocked(node string) (out []string) {
	d.t.Helper()
	for b, err := range d.Clients[node].Blocks(d.t.Context(), client.BlockFilter{}) {
		if err != nil {
			d.t.Fatal(err)
		}
		out = append(out, b.Target.String())
	}
	return out
}

func TestDrillDamagedStore(t *testing.T) {
	d := newDrill(t, "palda")
	d.run("Drill: a store is cut off")
	d.saw("palisade node show node-3", "a store was set aside at .*damaged")
	d.saw("ls -d /var/lib/palisade/raft.aside-*", "raft.aside-2")
	d.ready("node-3")
	if out, err := d.do("node-3", "palisade node show node-3"); err != nil || strings.Contains(out, "set aside") {
		t.Errorf("after it was removed: %v\n%s", err, out)
	}
}

// TestDrillEndedCertificate: the certificates of this fleet last for seconds, and a node is away for longer.
func TestDrillEndedCertificate(t *testing.T) {
	d := newDrill(t, "palec")
	for _, n := range d.Nodes() {
		b, err := os.ReadFile(d.config(n.Name))
		if err == nil {
			err = os.WriteFile(d.config(n.Name), []byte(strings.Replace(string(b), "[cluster]\n", "[cluster]\ncertificate_lifetime = \"15s\"\n", 1)), 0o600)
		}
		if err = errors.Join(err, d.KillAgent(t.Context(), n.Name, syscall.SIGTERM), d.StartAgent(t.Context(), n.Name), d.AwaitReady(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	g, err := d.Guest("guest5")
	if err != nil {
		t.Fatal(err)
	}
	d.Block(t, "node-1", client.Target{VM: "guest5"})
	d.on(t, "node-1", "", 0, "ca", "rotate", "--wait", "60s") // so that all have certificates that end soon
	d.kill(t, "node-3")
	ended := func() (at time.Time) {
		var n client.Node
		if err := d.Call(t.Context(), "node-1", "GET", "/v1/nodes/node-3", nil, &n); err != nil {
			t.Fatal(err)
		}
		return n.Certificate.NotAfter
	}()
	if left := time.Until(ended); left > time.Minute {
		t.Fatalf("the certificate of node-3 lasts until %s", ended)
	}
	missed, _ := d.Block(t, "node-2", client.Target{VM: "guest1"})
	d.Eventually(t, "the certificate of node-3 has ended", func() error {
		if left := time.Until(ended); left > 0 {
			return fmt.Errorf("it lasts for %s more", left)
		}
		return nil
	})
	if err := d.StartAgent(t.Context(), "node-3"); err != nil {
		t.Fatal(err)
	}
	d.Eventually(t, "node-3 says what to do", func() error {
		out, err := d.refused("node-3", "palisade status")
		if err != nil || !strings.Contains(out, "palisade join-token create --node node-3 --again") {
			return errors.Join(fmt.Errorf("it says %q", out), err)
		}
		return nil
	})
	if !d.enforced("node-3", g.Addresses[0]) {
		t.Error("a node whose certificate has ended has let go of what it enforced")
	}
	d.kill(t, "node-3")
	began := time.Now()
	d.run("Drill: a node comes back after its certificate has ended")
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the node took %s to come back: it did not look for its certificate", took)
	}
	const join = "palisade join $MEMBER --token-file /root/node-3.join"
	d.saw("palisade join-token ls", `open +node-3 \(again\)`)
	d.saw(join, "a new certificate for the key that this node has")
	d.saw(join, "in force in the kernel")
	d.saw("palisade audit ls --action join_token", `join_token.create +[0-9a-f]{16} +done`)
	d.ready("node-3")
	if g1, _ := d.Guest("guest1"); !d.enforced("node-3", g1.Addresses[0]) {
		t.Errorf("node-3 does not hold %s, which it missed", missed.ID)
	}
	if _, err := os.Stat(filepath.Join(d.Dir(), "node-3", "data", "raft", "raft.db")); err != nil {
		t.Error(err)
	}
	if aside, _ := filepath.Glob(filepath.Join(d.Dir(), "node-3", "data", "raft.aside-*")); len(aside) > 0 {
		t.Errorf("its store was set aside: %v", aside)
	}
}

func TestDrillLeaving(t *testing.T) {
	d := newDrill(t, "palle")
	g, err := d.Guest("guest5")
	if err != nil || g.Node != "node-3" {
		t.Fatalf("guest5 is on %s: %v", g.Node, err)
	}
	d.Block(t, "node-1", client.Target{VM: "guest5"})
	d.run("Drill: a node leaves")
	d.saw("palisade node drain node-3", `2 VMs there`)
	d.saw("palisade node retire node-3", `guest5 +lost`)
	d.saw("palisade status", `6 VMs \(2 LOST with retired nodes\)`)
	for _, n := range []string{"node-1", "node-2"} {
		if !d.enforced(n, g.Addresses[0]) {
			t.Errorf("%s has let a lost VM go", n)
		}
	}
	// It is told, takes no part, and goes on enforcing; also after a restart.
	outside := func() error {
		out, err := d.refused("node-3", "palisade status")
		if err != nil || !strings.Contains(out, "was retired") {
			return errors.Join(fmt.Errorf("it says %q", out), err)
		}
		return nil
	}
	d.Eventually(t, "the retired node knows it", outside)
	if !d.enforced("node-3", g.Addresses[0]) {
		t.Error("the retired node has let go of what it enforced")
	}
	if err := errors.Join(d.KillAgent(t.Context(), "node-3", syscall.SIGKILL), d.StartAgent(t.Context(), "node-3")); err != nil {
		t.Fatal(err)
	}
	d.Eventually(t, "the retired node knows it after a restart", outside)
	d.Block(t, "node-2", client.Target{VM: "guest1"})
	if g1, _ := d.Guest("guest1"); d.enforced("node-3", g1.Addresses[0]) {
		t.Error("the retired node is still told of blocks")
	}
}

// refused runs a command that must fail, on a node that need not be ready, and returns what it says.
func (d *drill) refused(node, command string) (string, error) {
	d.t.Helper()
	cmd, err := d.Command(d.t.Context(), node, "sh", "-c", command)
	if err != nil {
		return "", err
	}
	cmd.Env = append(os.Environ(), "PATH="+d.bin(node)+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return string(out), errors.New("it was not refused")
	}
	return string(out), nil
}

func TestDrillLostQuorum(t *testing.T) {
	d := newDrill(t, "pallo")
	before, _ := d.Block(t, "node-1", client.Target{VM: "guest3"})
	g1, err := d.Guest("guest1")
	if err != nil {
		t.Fatal(err)
	}
	d.run("Drill: make a backup and look at it")
	d.saw("palisade backup show /root/fleet.age --passphrase-file /root/backup.pass", "1 active block")
	d.run("Drill: two of three nodes are lost")
	d.saw("palisade recover </dev/null", "becomes the only voter, under epoch 2")
	d.saw("palisade recover --yes-lose-quorum $FLEET", "goes on from node-3 under epoch 2")
	d.saw("ls -d /var/lib/palisade/raft.aside-*", "raft.aside-2")
	for _, n := range []string{"node-1", "node-2", "node-3"} {
		d.ready(n)
		if got := d.blocked(n); len(got) != 2 {
			t.Errorf("%s holds %v", n, got)
		}
		if !d.enforced(n, g1.Addresses[0]) {
			t.Errorf("%s does not enforce what was blocked while it was away", n)
		}
	}
	// It is a fleet like any other again: any one node may go.
	d.Eventually(t, "three voters", func() error {
		voters := 0
		for n, err := range d.Clients["node-1"].Nodes(t.Context()) {
			if err != nil {
				return err
			}
			if n.Voter {
				voters++
			}
		}
		if voters != 3 {
			return fmt.Errorf("%d voters", voters)
		}
		return nil
	})
	if err := d.KillAgent(t.Context(), "node-3", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.Lift(t, "node-2", before.ID)
}

func TestDrillRestore(t *testing.T) {
	d := newDrill(t, "palre")
	g2, err := d.Guest("guest2")
	if err != nil {
		t.Fatal(err)
	}
	d.Block(t, "node-1", client.Target{VM: "guest3"})
	d.run("Drill: a stale backup is restored")
	const restore = "palisade restore /root/fleet.age --passphrase-file /root/backup.pass "
	d.saw(restore+"--dry-run", "UNBLOCK +b2: drop on vm102")
	d.saw(restore+"--dry-run", "LOSE +b3: drop on vm101, reason unpaid, to start at ")
	d.saw(restore+"--yes", "2 things of what is held or agreed now would be lost")
	d.saw(restore+"--yes --keep", "keep +b2: drop on vm102")
	d.saw(restore+"--yes --keep", "keep +b3: drop on vm101")
	for _, n := range []string{"node-1", "node-2", "node-3"} {
		d.ready(n)
		if got := d.blocked(n); len(got) != 2 {
			t.Errorf("%s holds %v", n, got)
		}
		if !d.enforced(n, g2.Addresses[0]) {
			t.Errorf("%s has let go of what the backup did not know", n)
		}
	}
}
