package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/enforce/boot"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
)

// machine is a node that a test switches off and on.
type machine struct {
	l     *lab
	node  string
	links []string // of its guests, and to the other nodes
}

func (l *lab) machine(t *testing.T, node string) machine {
	t.Helper()
	m := machine{l, node, []string{"eth0"}}
	for _, g := range l.Guests() {
		if g.Node == node && !g.Routed { // with its link, a routed guest would lose its routes
			m.links = append(m.links, g.Tap)
		}
	}
	return m
}

// off kills the agent and takes everything out of the kernel, as a power cut does. Nothing can reach the node or
// its guests, and nothing leaves them.
func (m machine) off(t *testing.T) {
	t.Helper()
	m.l.kill(t, m.node)
	for _, link := range m.links {
		m.exec(t, "ip", "link", "set", link, "down")
	}
	m.exec(t, "nft", "flush", "ruleset")
	if rules := m.l.Ruleset(t, m.node); strings.Contains(rules, "table") {
		t.Fatalf("the kernel is not empty:\n%s", rules)
	}
}

// on brings the links up.
func (m machine) on(t *testing.T) {
	t.Helper()
	for _, link := range m.links {
		m.exec(t, "ip", "link", "set", link, "up")
	}
}

func (m machine) exec(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := m.l.Exec(context.WithoutCancel(t.Context()), m.node, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func (m machine) dir(parts ...string) string {
	return filepath.Join(append([]string{m.l.Dir(), m.node}, parts...)...)
}

// boot is what the unit palisade-boot runs.
func (m machine) boot(t *testing.T) string {
	t.Helper()
	return m.exec(t, m.l.Binary(m.node), "boot", "--config", m.dir("agent.toml"))
}

// saved waits until the files for the next boot hold the addresses of a guest and a list.
func (m machine) saved(t *testing.T, guest, listed string) {
	t.Helper()
	v4, v6 := m.l.Ends(t, guest)
	m.l.Eventually(t, "the ruleset is saved", func() error {
		f, err := boot.ReadBlocks(m.dir("data", "boot"))
		if err != nil {
			return err
		}
		for _, a := range []string{v4.Addr.String(), v6.Addr.String()} {
			if !slices.ContainsFunc(keys(f.Elements), func(s string) bool { return s == a }) {
				return fmt.Errorf("%s is not among %d elements of index %d", a, len(f.Elements), f.Index)
			}
		}
		l, err := boot.ReadLists(m.dir("data", "boot"), nil)
		if err != nil {
			return err
		}
		for e := range l.Lists.All() {
			if e.Prefix.Addr().String() == listed {
				return nil
			}
		}
		return errors.New("the list is not")
	})
}

func keys[K interface {
	comparable
	String() string
}](m map[K]struct{}) (out []string) {
	for k := range m {
		out = append(out, k.String())
	}
	return out
}

// TestBlocksStandBeforeTheNetworkDoes starts a machine again: its kernel is empty, its agent does not run, the fleet
// can't be reached. The saved ruleset cuts from the first packet on, lets innocents pass, and is what the agent then
// finds: it changes nothing that stands.
func TestBlocksStandBeforeTheNetworkDoes(t *testing.T) {
	l := sharedLab(t)
	const node = "node-1"
	var here []string
	for _, g := range l.Guests() {
		if g.Node == node && g.Name != "guest1" && !g.Routed {
			here = append(here, g.Name)
		}
	}
	neighbour := here[0]
	m := l.machine(t, node)
	api := l.Clients["node-2"]
	listed, _ := l.Ends(t, fleet.Unmanaged)
	lines := []string{listed.Addr.String()}
	for i := range 5000 {
		lines = append(lines, fmt.Sprintf("198.18.%d.%d", i/250, i%250+1))
	}
	putList(t, api, lines...)
	hold, err := api.AddBlock(t.Context(), client.BlockRequest{Target: client.Target{List: "feed"}, Force: true}, client.Write{Wait: true})
	if err != nil || !hold.Confirmed {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = api.LiftBlock(context.Background(), hold.Block.ID, client.Write{Wait: true}) })

	f := l.Flows(t)
	var victims []*probe.Flow
	for _, peer := range []string{neighbour, node, fleet.Outside} {
		victims = append(victims, f.UDP("guest1", peer)...)
	}
	onList, _ := l.Ends(t, fleet.Unmanaged)
	to, _ := l.Ends(t, neighbour)
	f.Passing(victims)
	victims = append(victims, f.One(fleet.Unmanaged, neighbour, onList, to), f.One(neighbour, fleet.Unmanaged, to, onList))
	_, since := l.Block(t, "node-2", client.Target{VM: "guest1"})
	m.saved(t, "guest1", listed.Addr.String())

	m.off(t)
	if said := m.boot(t); !strings.Contains(said, "loaded") {
		t.Errorf("boot says %q", said)
	}
	if rules := l.Ruleset(t, node); strings.Contains(rules, "\""+guestTap(l, "guest1")+"\"") {
		t.Error("the tap of the last life is blocked: the next guest to start may be given it")
	}
	loaded := l.Ruleset(t, node)
	if said := m.boot(t); !strings.Contains(said, "already") || l.Ruleset(t, node) != loaded {
		t.Errorf("once more, it says %q", said)
	}
	m.on(t)
	innocents := append(f.UDP(neighbour, fleet.Outside), f.UDP(neighbour, node)...)
	f.Passing(innocents)
	// What was lost before the links were up is no loss of ours.
	innocents = append(f.UDP(neighbour, fleet.Outside), f.UDP(neighbour, "guest2")...)
	f.Passing(innocents)
	rest(time.Second)
	f.Silent(victims, since)

	l.start(t, node)
	if log := m.exec(t, "tail", "-n", "40", l.AgentLog(node)); !strings.Contains(log, "left as they are") || !strings.Contains(log, "intact=true") {
		t.Errorf("the agent did not adopt what was loaded:\n%s", log)
	}
	l.Eventually(t, "the tap is blocked again", func() error {
		if rules := l.Ruleset(t, node); !strings.Contains(rules, "\""+guestTap(l, "guest1")+"\"") {
			return errors.New(rules)
		}
		return nil
	})
	f.Silent(victims, since)
	f.Lossless(innocents)
}

func guestTap(l *lab, name string) string {
	for _, g := range l.Guests() {
		if g.Name == name {
			return g.Tap
		}
	}
	return "none"
}

// TestADamagedRulesetGivesWayToTheOneBefore spoils the newest file: what was saved before it is loaded. An agent whose
// kernel is empty loads it too, if nobody did.
func TestADamagedRulesetGivesWayToTheOneBefore(t *testing.T) {
	l := sharedLab(t)
	m := l.machine(t, "node-1")
	l.Block(t, "node-1", client.Target{Prefix: "203.0.113.77"})
	files := func() []string {
		list, err := filepath.Glob(m.dir("data", "boot", "blocks.*"))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	read := func() boot.BlocksFile {
		var f boot.BlocksFile
		l.Eventually(t, "the block is saved", func() (err error) {
			f, err = boot.ReadBlocks(m.dir("data", "boot"))
			if err == nil && !slices.Contains(keys(f.Elements), "203.0.113.77") {
				err = fmt.Errorf("not at index %d", f.Index)
			}
			return err
		})
		return f
	}
	before := read().File
	l.kill(t, "node-1") // the next life begins another file
	l.start(t, "node-1")
	l.Eventually(t, "there is a newer file", func() error {
		if f := read(); f.File == before {
			return fmt.Errorf("files %v", files())
		}
		return nil
	})
	newest := read().File
	m.off(t)
	if err := os.Truncate(newest, 20); err != nil {
		t.Fatal(err)
	}
	out, err := l.Command(t.Context(), "node-1", l.Binary("node-1"), "boot", "--config", m.dir("agent.toml"))
	if err != nil {
		t.Fatal(err)
	}
	said, err := out.CombinedOutput()
	if err != nil || !strings.Contains(string(said), "damaged") || !strings.Contains(string(said), filepath.Base(newest)) {
		t.Errorf("boot says %v\n%s", err, said)
	}
	if rules := l.Ruleset(t, "node-1"); !strings.Contains(rules, "203.0.113.77") {
		t.Errorf("the file before was not loaded:\n%s", rules)
	}
	m.exec(t, "nft", "flush", "ruleset")
	m.on(t)
	l.start(t, "node-1")
	if log := m.exec(t, "tail", "-n", "60", l.AgentLog("node-1")); !strings.Contains(log, "loaded the saved ruleset") {
		t.Errorf("the agent did not load it either:\n%s", log)
	}
}
