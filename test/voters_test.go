package test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/httpapi/wire"
)

const (
	// resumed is within what a follower has the next entry after its source died: at once if another voter has
	// room, after an election if the source led. P8 gives it as much.
	resumed = 5 * time.Second
	// replaced is what is set for a dead voter's replacement: the least that may be.
	replaced = fsm.MinReplaceVoterAfter
)

// crew is a fleet of five of which three vote, and who does what in it. Its stages follow one another.
type crew struct {
	*lab
	voters, followers []string
}

// TestFollowersAndVoters: of five nodes three vote. The others take the log as a stream, are written through, count
// for a receipt, and enforce from their own disk without a network; one of them votes in the place of a dead voter.
func TestFollowersAndVoters(t *testing.T) {
	c := &crew{lab: newLab(t, fleet.Options{Prefix: "palvote", Nodes: 5, GuestsPerNode: 1, Unmanaged: true, LogLevel: "debug"})}
	c.Eventually(t, "three vote and two follow", func() (err error) {
		if c.voters, c.followers, err = c.roles(t, "node-1"); err == nil && (len(c.voters) != 3 || len(c.followers) != 2) {
			err = fmt.Errorf("%v vote, %v follow", c.voters, c.followers)
		}
		return err
	})
	for _, stage := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"writes through a follower reach five kernels", c.writesThroughAFollower},
		{"a follower starts without a network", c.followerAlone},
		{"the source of a follower dies", c.sourceDies},
		{"a dead voter is replaced", c.voterDies},
		{"the leader is drained and retired", c.leaderRetires},
	} {
		if !t.Run(stage.name, stage.do) {
			return // what follows would only say so again
		}
	}
}

// roles are the ids of those that vote, and of those that follow, as a node sees it.
func (l *lab) roles(t *testing.T, asked string) (voters, followers []string, err error) {
	t.Helper()
	for n, err := range l.Clients[asked].Nodes(t.Context()) {
		if err != nil {
			return nil, nil, err
		}
		if n.Voter {
			voters = append(voters, n.ID)
		} else {
			followers = append(followers, n.ID)
		}
	}
	return voters, followers, nil
}

// but is every node that runs but some.
func (l *lab) but(none ...string) (out []string) {
	for _, n := range l.Nodes() {
		if n.Agent.Alive() && !slices.Contains(none, n.Name) {
			out = append(out, n.Name)
		}
	}
	return out
}

// guestOn is the guest that a node began with.
func (l *lab) guestOn(t *testing.T, node string) string {
	t.Helper()
	for _, g := range l.Guests() {
		if g.Node == node {
			return g.Name
		}
	}
	t.Fatalf("no guest is on %s", node)
	return ""
}

func (c *crew) leader(t *testing.T, asked string) (leader string) {
	t.Helper()
	c.Eventually(t, "there is a leader", func() error {
		s, err := c.Clients[asked].Status(t.Context())
		if leader = s.Leader; err == nil && leader == "" {
			err = errors.New("none is known")
		}
		return err
	})
	return leader
}

func (c *crew) log(t *testing.T, node string) string {
	t.Helper()
	b, err := os.ReadFile(c.AgentLog(node))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var sourceLine = regexp.MustCompile(`msg="?following(?: a better source)?"? .*\bsource=(\S+)`)

// source is whom a follower follows.
func (c *crew) source(t *testing.T, node string) string {
	t.Helper()
	all := sourceLine.FindAllStringSubmatch(c.log(t, node), -1)
	if len(all) == 0 {
		t.Fatalf("%s never said whom it follows", node)
	}
	return all[len(all)-1][1]
}

// writesThroughAFollower: each write waits for all kernels, and every node gave its receipt.
func (c *crew) writesThroughAFollower(t *testing.T) {
	took := map[bool][]time.Duration{} // by whether the node votes
	for i := range 20 {
		begin := time.Now()
		b, _ := c.Block(t, c.followers[i%2], client.Target{Prefix: fmt.Sprintf("203.0.113.%d", i+1)})
		var from []string
		for _, r := range b.Receipts {
			from = append(from, r.Node)
			votes := slices.Contains(c.voters, r.Node)
			took[votes] = append(took[votes], r.At.Sub(begin)) // all nodes have the clock of one machine
		}
		slices.Sort(from)
		if want := []string{"node-1", "node-2", "node-3", "node-4", "node-5"}; !slices.Equal(from, want) || len(b.Unconfirmed) > 0 {
			t.Fatalf("receipts of %v, not of %v: %+v", from, b.Unconfirmed, b)
		}
	}
	for _, n := range c.Nodes() {
		if rules := c.Ruleset(t, n.Name); !strings.Contains(rules, "203.0.113.20") {
			t.Errorf("the kernel of %s does not hold what it gave a receipt for", n.Name)
		}
	}
	for _, of := range took {
		slices.Sort(of)
	}
	median := func(of []time.Duration) time.Duration { return of[len(of)/2].Round(100 * time.Microsecond) }
	t.Logf("from a request through a follower to a kernel, median of %d: %s in those of voters, %s in those of followers",
		len(took[true])/3, median(took[true]), median(took[false]))
	if median(took[false]) > time.Second {
		t.Error("that is too long for followers")
	}
	pass := t.TempDir() + "/pass"
	if err := os.WriteFile(pass, []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// What only a voter can do is refused with who can.
	out := c.on(t, c.followers[0], "", 3, "backup", "--out", t.TempDir()+"/fleet.age", "--passphrase-file", pass)
	for _, want := range append([]string{"does not vote", "no key to the fleet's secrets", "make the backup on one of"}, c.voters...) {
		if !strings.Contains(out, want) {
			t.Errorf("a backup on a follower does not say %q:\n%s", want, out)
		}
	}
}

// followerAlone: a follower that reboots while it is cut off has an empty kernel and all that is needed on its disk.
// It is honest to who asks it, and starts what was agreed. When it is back, a copy of its disk is refused.
func (c *crew) followerAlone(t *testing.T) {
	alone := c.followers[1]
	guest := c.guestOn(t, alone)
	starts := time.Now().Add(12 * time.Second)
	delayed, err := c.Clients[alone].AddBlock(t.Context(), client.BlockRequest{Target: client.Target{VM: guest}, Reason: "abuse", StartsAt: starts},
		client.Write{Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	was, err := c.Clients[alone].Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CutNode(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	before := c.Rulesets(t)
	c.kill(t, alone)
	c.unchanged(t, map[string]string{alone: before[alone]}, true)
	second := c.copyOf(t, alone)
	for _, table := range []string{"bridge", "inet"} {
		if out, err := c.Exec(t.Context(), alone, "nft", "delete", "table", table, "palisade"); err != nil {
			t.Fatal(err, string(out))
		}
	}
	if err := c.StartAgent(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	c.Eventually(t, alone+" enforces without a network", func() error {
		rules := c.Ruleset(t, alone)
		for i := range 20 {
			if element := fmt.Sprintf("203.0.113.%d", i+1); !regexp.MustCompile(regexp.QuoteMeta(element) + `\b`).MatchString(rules) {
				return fmt.Errorf("its kernel lacks %s", element)
			}
		}
		return nil
	})
	f := c.Flows(t)
	victims := f.UDP(guest, fleet.Outside)
	f.Passing(victims)

	// It can be read, and says that nobody knows how old that is; it can't be written.
	s, err := c.Clients[alone].Status(t.Context())
	if err != nil || s.Quorum || s.CaughtUp || s.Leader != "" || s.AgeMS != -1 || s.Index < was.Index {
		t.Errorf("without a network it says %+v, %v; it was at index %d", s, err, was.Index)
	}
	if got := c.raw(t, alone, "GET", "/v1/blocks/"+delayed.Block.ID, ""); got.status != http.StatusOK || got.header.Get("Palisade-Age-Ms") != "-1" {
		t.Errorf("a read: %d, %v", got.status, got.header)
	}
	got := c.raw(t, alone, "POST", "/v1/blocks", `{"target":{"prefix":"203.0.113.99"},"reason":"abuse"}`)
	if p := got.problem(t); got.status != http.StatusServiceUnavailable || p.Code != wire.CodeNoQuorum {
		t.Errorf("a write: %d, %+v", got.status, p)
	}
	if b := c.state(t, alone, delayed.Block.ID); b.State != "pending" || !time.Now().Before(starts) {
		t.Fatalf("%s before its start: %+v; there was no time to see it", time.Until(starts), b)
	}
	passed := time.Now()
	time.Sleep(time.Until(starts.Add(onTime + time.Second)))
	if n := arrived(t, victims, passed, starts); n == 0 {
		t.Error("nothing passed before the start of the delayed block")
	}
	if n := arrived(t, victims, starts.Add(onTime), time.Now()); n != 0 {
		t.Errorf("%d packets passed a delayed block that was to start %s before", n, onTime)
	}

	// Back in the network it goes on where it was.
	mark := len(c.log(t, alone))
	if err := c.HealNode(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := c.await(t, alone, delayed.Block.ID, "active")
	if late := b.StartedAt.Sub(starts); late < 0 || late > onTime {
		t.Errorf("the fleet started it %v after its time", late)
	}
	said := c.log(t, alone)[mark:]
	if strings.Contains(said, "receiving a snapshot") || !sourceLine.MatchString(said) {
		t.Errorf("it did not go on with the next entry:\n%s", said)
	}
	c.refusedCopy(t, alone, second)
	f.Silent(victims, starts.Add(onTime))
	c.Lift(t, alone, delayed.Block.ID)
	f.Passing(victims)
}

// secondLife is a copy of a node's disk on another machine.
type secondLife struct{ dir, config, socket string }

// copyOf copies the data of a node whose agent does not run, with a config under which an agent can run beside it.
func (c *crew) copyOf(t *testing.T, node string) secondLife {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir+"/data", os.DirFS(c.Dir()+"/"+node+"/data")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(c.config(node))
	if err != nil {
		t.Fatal(err)
	}
	n, err := c.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	s := secondLife{dir: dir, config: dir + "/agent.toml", socket: c.Dir() + "/copy.sock"}
	moved := strings.NewReplacer(c.Dir()+"/"+node+"/data", dir+"/data", n.Socket, s.socket, n.Addresses[0], c.UnmanagedAddresses()[0].String())
	if err := os.WriteFile(s.config, []byte(moved.Replace(string(text))), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// refusedCopy starts an agent on a copy of a node that runs: the others refuse it, and it says so. The original goes on.
func (c *crew) refusedCopy(t *testing.T, node string, s secondLife) {
	t.Helper()
	cmd, err := c.Command(t.Context(), fleet.Unmanaged, "unshare", "-m", "sh", "-c", `mount -t tmpfs none /run && exec "$@"`, "sh",
		c.Binary(node), "agent", "--config", s.config)
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	status := func() string {
		ask, err := c.Command(t.Context(), fleet.Unmanaged, c.Binary(node), "--socket", s.socket, "--retry-for", "0s", "status")
		if err != nil {
			t.Fatal(err)
		}
		out, _ := ask.CombinedOutput() // what it says counts
		return string(out)
	}
	c.Eventually(t, "the copy is refused and says so", func() error {
		if out := status(); !strings.Contains(out, "copy of node "+node) || !strings.Contains(out, "join under a new id") {
			return fmt.Errorf("it says %q", out)
		}
		return nil
	})
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Errorf("the copy's agent: %v\n%s", err, said.String())
	}
}

// sourceDies: the flows of a blocked guest see nothing of it, and the next block comes from elsewhere.
func (c *crew) sourceDies(t *testing.T) {
	follower, other := c.followers[0], c.voters[0]
	guest := c.guestOn(t, follower)
	f := c.Flows(t)
	victims := append(f.UDP(guest, fleet.Outside), f.UDP(guest, c.guestOn(t, other))...)
	innocents := f.UDP(c.guestOn(t, other), fleet.Outside)
	f.Passing(slices.Concat(victims, innocents))
	b, since := c.Block(t, other, client.Target{VM: guest})
	dead := c.source(t, follower)
	asked := c.but(dead, follower)[0]
	c.kill(t, dead)
	killed := time.Now()
	next, _ := c.Block(t, asked, client.Target{Prefix: "198.51.100.1"})
	at := slices.IndexFunc(next.Receipts, func(r wire.Receipt) bool { return r.Node == follower })
	if at < 0 {
		t.Fatalf("%s gave no receipt: %+v", follower, next.Receipts)
	}
	took := next.Receipts[at].At.Sub(killed)
	t.Logf("%s had the next block %s after its source %s was killed", follower, took.Round(time.Millisecond), dead)
	if took > resumed {
		t.Errorf("that is more than %s", resumed)
	}
	rest(time.Second)
	f.Silent(victims, since)
	c.start(t, dead)
	f.Silent(victims, since)
	c.Lift(t, asked, b.ID)
	f.Passing(victims)
	f.Lossless(innocents)
}

// voterDies: after the time that is set another votes in its place, and what is acknowledged then is still there when
// a second of the first voters dies.
func (c *crew) voterDies(t *testing.T) {
	asked := c.followers[0]
	s, err := c.Clients[asked].Settings(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.ReplaceVoterAfter = replaced.String()
	if _, err := c.Clients[asked].PutSettings(t.Context(), s.SettingsRequest, client.Write{}); err != nil {
		t.Fatal(err)
	}
	dead := c.leader(t, asked)
	c.kill(t, dead)
	begin := time.Now()
	var now []string
	c.Eventually(t, "another votes in the place of "+dead, func() (err error) {
		if now, _, err = c.roles(t, asked); err == nil && (len(now) != 3 || slices.Contains(now, dead)) {
			err = fmt.Errorf("%v vote", now)
		}
		return err
	})
	if took := time.Since(begin); took < replaced {
		t.Errorf("a dead voter was replaced after %s", took)
	}
	promoted := slices.DeleteFunc(slices.Clone(now), func(id string) bool { return slices.Contains(c.voters, id) })
	if len(promoted) != 1 {
		t.Fatalf("%v vote, it were %v", now, c.voters)
	}
	if out := c.on(t, asked, "", 0, "node", "ls"); !regexp.MustCompile(promoted[0]+`\s.*\b(voter|leader)\b`).MatchString(out) || !regexp.MustCompile(dead+`\s.*\bfollower\b`).MatchString(out) {
		t.Errorf("node ls does not say that %s votes for %s:\n%s", promoted[0], dead, out)
	}
	if out := c.on(t, asked, "", 0, "status"); !regexp.MustCompile(dead + `\s+node_silent`).MatchString(out) {
		t.Errorf("status does not say that %s is gone:\n%s", dead, out)
	}

	// A majority of those that vote now has it: one of them is new.
	b, _ := c.Block(t, asked, client.Target{Prefix: "198.51.100.2"})
	second := slices.DeleteFunc(slices.Clone(now), func(id string) bool { return !slices.Contains(c.voters, id) || id == asked })[0]
	c.kill(t, second)
	ask := c.but(asked)[0]
	if _, err := c.Clients[ask].AddBlock(t.Context(), client.BlockRequest{Target: client.Target{Prefix: "198.51.100.3"}, Reason: "abuse"}, client.Write{}); err != nil {
		t.Errorf("with %s and %s dead: %v", dead, second, err)
	}
	for _, n := range c.but() {
		if got := c.state(t, n, b.ID); got.State != "active" || !strings.Contains(c.Ruleset(t, n), "198.51.100.2") {
			t.Errorf("%s has lost an acknowledged block: %+v", n, got)
		}
	}
	c.start(t, dead, second)
	c.Eventually(t, dead+" has no key to the fleet's secrets any more", func() error {
		if _, err := os.Stat(c.Dir() + "/" + dead + "/data/seal.key"); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
	c.Lift(t, dead, b.ID)
	for _, n := range c.Nodes() {
		if strings.Contains(c.Ruleset(t, n.Name), "198.51.100.2") {
			t.Errorf("the kernel of %s holds what was lifted", n.Name)
		}
	}
}

// leaderRetires: no write fails while the leader is drained and retired. Its VMs are lost, it knows that it is out, and
// its kernel lets nothing go.
func (c *crew) leaderRetires(t *testing.T) {
	leader := c.leader(t, c.but()[0])
	others := c.but(leader)
	guest := c.guestOn(t, leader)
	f := c.Flows(t)
	victims := append(f.UDP(guest, fleet.Outside), f.UDP(guest, c.guestOn(t, others[0]))...)
	innocents := f.UDP(c.guestOn(t, others[0]), c.guestOn(t, others[1]))
	f.Passing(slices.Concat(victims, innocents))
	held, since := c.Block(t, others[0], client.Target{VM: guest})
	var writes []*writing
	for _, n := range others[:3] {
		writes = append(writes, c.writing(t, n))
	}
	if out := c.on(t, others[0], "", 0, "node", "drain", leader); !strings.Contains(out, "1 VM") {
		t.Errorf("drain does not say what still runs there:\n%s", out)
	}
	c.Eventually(t, "others vote", func() error {
		now, _, err := c.roles(t, others[0])
		if err == nil && (len(now) != 3 || slices.Contains(now, leader)) {
			err = fmt.Errorf("%v vote", now)
		}
		return err
	})
	if out := c.on(t, others[0], "", 0, "node", "retire", leader, "--force"); !strings.Contains(out, "lost") {
		t.Errorf("retire does not say what is lost:\n%s", out)
	}
	c.Eventually(t, "its VM is lost", func() error {
		vm, err := c.Clients[others[1]].VM(t.Context(), guest)
		if err == nil && (vm.State != "lost" || vm.Node != leader || !vm.Blocked) {
			err = fmt.Errorf("%+v", vm)
		}
		return err
	})
	c.Eventually(t, "the retired node knows it", func() error {
		ask, err := c.Command(t.Context(), leader, c.Binary(leader), "--socket", c.socket(t, leader), "--retry-for", "0s", "status")
		if err != nil {
			return err
		}
		if out, _ := ask.CombinedOutput(); !strings.Contains(string(out), "was retired") {
			return fmt.Errorf("it says %q", out)
		}
		return nil
	})
	for _, w := range writes {
		w.end(t)
	}
	c.Block(t, others[2], client.Target{Prefix: "198.51.100.250"})
	if strings.Contains(c.Ruleset(t, leader), "198.51.100.250") {
		t.Error("the retired node is still told of blocks")
	}
	for _, n := range others {
		if b := c.state(t, n, held.ID); b.State != "active" {
			t.Errorf("%s: %+v", n, b)
		}
	}
	rest(time.Second)
	f.Silent(victims, since)
	f.Lossless(innocents)
}

func (l *lab) socket(t *testing.T, node string) string {
	t.Helper()
	n, err := l.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	return n.Socket
}
