package test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
)

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

// TestFollowersAndVoters: of five nodes three vote. The others take the log as a stream, are written through, count
// for a receipt, and enforce from their own disk without a network; one of them votes in the place of a dead voter.
func TestFollowersAndVoters(t *testing.T) {
	l := newLab(t, fleet.Options{Prefix: "palvote", Nodes: 5, GuestsPerNode: -1})
	var voters, followers []string
	l.Eventually(t, "three vote and two follow", func() (err error) {
		if voters, followers, err = l.roles(t, "node-1"); err == nil && (len(voters) != 3 || len(followers) != 2) {
			err = fmt.Errorf("%v vote, %v follow", voters, followers)
		}
		return err
	})

	// A write through a follower is in every kernel when it is answered, and each node gave its receipt.
	begin := time.Now()
	b, _ := l.Block(t, followers[0], client.Target{Prefix: "203.0.113.7"})
	t.Logf("a block through a follower was in all five kernels after %s", time.Since(begin).Round(100*time.Microsecond))
	for _, n := range l.Nodes() {
		if !strings.Contains(l.Ruleset(t, n.Name), "203.0.113.7") {
			t.Errorf("the kernel of %s does not hold it", n.Name)
		}
	}

	if len(b.Receipts) != 5 {
		t.Errorf("%d receipts: %+v", len(b.Receipts), b.Receipts)
	}

	// A follower that reboots without a network: its kernel is empty, its disk has all that is needed.
	alone := followers[1]
	if err := l.CutNode(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	l.kill(t, alone)
	if out, err := l.Exec(t.Context(), alone, "nft", "delete", "table", "bridge", "palisade"); err != nil {
		t.Fatal(err, string(out))
	}
	if out, err := l.Exec(t.Context(), alone, "nft", "delete", "table", "inet", "palisade"); err != nil {
		t.Fatal(err, string(out))
	}
	if err := l.StartAgent(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	l.Eventually(t, alone+" enforces without a network", func() error {
		if rules := l.Ruleset(t, alone); !strings.Contains(rules, "203.0.113.7") {
			return fmt.Errorf("its kernel holds %q", rules)
		}
		return nil
	})
	if s, err := l.Clients[alone].Status(t.Context()); err != nil || s.Quorum || s.CaughtUp {
		t.Errorf("without a network it says %+v, %v", s, err)
	}
	if err := l.HealNode(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	if err := l.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}

	// A voter dies, and is replaced after the time that is set.
	asked := followers[0]
	s, err := l.Clients[asked].Settings(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.ReplaceVoterAfter = "10s"
	if _, err := l.Clients[asked].PutSettings(t.Context(), s.SettingsRequest, client.Write{}); err != nil {
		t.Fatal(err)
	}
	leader, err := l.Clients[asked].Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dead := leader.Leader
	l.kill(t, dead)
	begin = time.Now()
	l.Eventually(t, "another votes in the place of "+dead, func() error {
		now, _, err := l.roles(t, asked)
		if err == nil && (len(now) != 3 || strings.Contains(strings.Join(now, " "), dead)) {
			err = fmt.Errorf("%v vote", now)
		}
		return err
	})
	if took := time.Since(begin); took < 10*time.Second {
		t.Errorf("a dead voter was replaced after %s", took)
	}
	l.start(t, dead)
	_, now, err := l.roles(t, dead)
	if err != nil || !strings.Contains(strings.Join(now, " "), dead) {
		t.Errorf("%s came back, %v follow, %v", dead, now, err)
	}
	l.Lift(t, dead, b.ID)
	for _, n := range l.Nodes() {
		if strings.Contains(l.Ruleset(t, n.Name), "203.0.113.7") {
			t.Errorf("the kernel of %s holds what was lifted", n.Name)
		}
	}
}
