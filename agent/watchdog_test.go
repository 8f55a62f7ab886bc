package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/cluster"
	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
)

// patient is a node whose vitals a test sets.
type patient struct {
	vitals
	st      fsm.Status
	health  cluster.Health
	ahead   time.Duration
	unknown bool
	index   uint64
	kernel  uint64
	lists   uint64
	problem string
	peers   []fsm.Member
	reg     *prometheus.Registry
	log     bytes.Buffer
	dog     *watchdog
}

// newPatient is a node that is well and leads a fleet of two.
func newPatient(t *testing.T) *patient {
	t.Helper()
	p := &patient{
		reg: prometheus.NewRegistry(), index: 7, kernel: 7, lists: 7,
		peers: []fsm.Member{{ID: "n1", Self: true, Leader: true, Voter: true, Alive: true}, {ID: "n2", Voter: true, Alive: true}},
	}
	p.st = fsm.Status{Quorum: true, CaughtUp: true, LastContact: time.Now(), Applied: 7, CommitIndex: 7}
	p.vitals = vitals{
		status: func() fsm.Status { return p.st }, members: func() []fsm.Member { return p.peers }, health: func() cluster.Health { return p.health },
		halted: func() error { return nil }, offset: func() (time.Duration, bool) { return p.ahead, !p.unknown },
		applied: func() uint64 { return p.index }, blocks: func() (uint64, string) { return p.kernel, p.problem }, lists: func() (uint64, string) { return p.lists, "" },
		drifts: []*drift{newDrift(p.reg, "blocks")}, missing: func() []fsm.Kind { return nil },
		passing: func() string { return "" }, blind: func() string { return "" },
		open: func() string { return "" }, audit: func() string { return "" }, page: func() string { return "" }, sources: func() (int, string) { return 0, "" },
		life:    func() (signed, ends time.Time) { return lasting(5*time.Hour, time.Hour) },
		differs: func() string { return "" }, boot: func() string { return "" }, aside: func() string { return "" },
	}
	p.dog = newWatchdog(slog.New(slog.NewTextHandler(&p.log, nil)), p.reg, p.checks(newLags(p.reg)), func(context.Context) {})
	return p
}

// pass lets time go by, with a look each second.
func (p *patient) pass(d time.Duration) {
	for range d / watchInterval {
		time.Sleep(watchInterval)
		if p.st.Quorum {
			p.st.LastContact = time.Now()
		}
		p.dog.look(context.Background(), time.Now())
	}
}

func (p *patient) codes() []string {
	var out []string
	for _, q := range p.dog.Problems() {
		out = append(out, q.Code)
	}
	return out
}

// gauge is the value of a metric with a label's value.
func gauge(t *testing.T, reg *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, mf := range families {
		for _, m := range mf.GetMetric() {
			for _, l := range m.GetLabel() {
				if mf.GetName() == name && l.GetValue() == label {
					return m.GetGauge().GetValue() + m.GetCounter().GetValue()
				}
			}
		}
	}
	t.Fatalf("no %s with %s", name, label)
	return 0
}

// lasting is the life of a certificate that was signed for a time, of which so much is left.
func lasting(all, left time.Duration) (signed, ends time.Time) {
	ends = time.Now().Add(left)
	return ends.Add(-all), ends
}

// TestEachProblemBeginsAndEnds: for every check a node is made ill and well again. Too little, or too short, is
// no problem.
func TestEachProblemBeginsAndEnds(t *testing.T) {
	type illness struct {
		ill    func(p *patient)
		within time.Duration // how long it takes to be told, at most
		less   func(p *patient)
		says   string
	}
	table := map[string]illness{
		"no_quorum":             {ill: func(p *patient) { p.st.Quorum = false }, within: quorumPatience, says: "heard no leader for"},
		"cannot_commit":         {ill: func(p *patient) { p.health.CommitStall = 6 * time.Second }, within: 0, says: "for 6s"},
		"state_behind":          {ill: func(p *patient) { p.st.CaughtUp, p.st.CommitIndex = false, 1007 }, within: lagMost, says: "by 1000 entries"},
		"state_halted":          {ill: func(p *patient) { p.halted = func() error { return errors.New("entry 9") } }, within: 0, says: "entry 9"},
		"state_differs":         {ill: func(p *patient) { p.differs = func() string { return "at log index 7" } }, says: "at log index 7"},
		"kernel_behind":         {ill: func(p *patient) { p.index += 3 }, within: lagMost + watchInterval, says: "by 3 entries"},
		"lists_behind":          {ill: func(p *patient) { p.lists-- }, within: listLagMost + watchInterval, says: "by 1 entries"},
		"network_unenforceable": {ill: func(p *patient) { p.open = func() string { return "VM v1 has an interface" } }, within: networkPatience, says: "VM v1"},
		"kernel_drift":          {ill: func(p *patient) { p.drifts[0].saw("table inet is missing") }, within: 0, says: "table inet is missing"},
		"canary_passes":         {ill: func(p *patient) { p.passing = func() string { return "over bridge_mac" } }, says: "over bridge_mac"},
		"canary_failing":        {ill: func(p *patient) { p.blind = func() string { return "it can't fly" } }, says: "it can't fly"},
		"kernel_lacks":          {ill: func(p *patient) { p.missing = func() []fsm.Kind { return []fsm.Kind{fsm.Redirect} } }, within: 0, says: "redirect"},
		"store_slow":            {ill: func(p *patient) { p.health.StoreSlowest = 2 * time.Second }, within: 0, less: func(p *patient) { p.health.StoreSlowest = time.Second }, says: "took 2s"},
		"clock_offset":          {ill: func(p *patient) { p.ahead = -1100 * time.Millisecond }, within: 10 * time.Second, less: func(p *patient) { p.ahead = time.Second }, says: "1.1s behind"},
		"gossip_late":           {ill: func(p *patient) { p.health.Gossip = 4 }, within: gossipPatience, less: func(p *patient) { p.health.Gossip = 3 }, says: "score 4 of 8"},
		"peers_silent":          {ill: func(p *patient) { p.peers[0].Leader, p.peers[1].Alive = true, false }, within: silentPatience, less: func(p *patient) { p.peers[0].Leader, p.peers[1].Alive = false, false }, says: "n2"},
		"audit_failing":         {ill: func(p *patient) { p.audit = func() string { return "the audit: full" } }, says: "full"},
		"page_failing":          {ill: func(p *patient) { p.page = func() string { return "the page: taken" } }, says: "taken"},
		"boot_ruleset_failing":  {ill: func(p *patient) { p.boot = func() string { return "no room" } }, says: "no room"},
		"store_set_aside":       {ill: func(p *patient) { p.aside = func() string { return "a store was set aside" } }, says: "aside"},
		"certificate_expiring": {ill: func(p *patient) {
			p.life = func() (time.Time, time.Time) { return lasting(5*time.Hour, time.Hour-time.Second) }
		}, less: func(p *patient) {
			p.life = func() (time.Time, time.Time) { return lasting(10*time.Minute, 2*time.Minute) }
		}, says: "ends on 2000-01-01"},
		"list_source_failing": {ill: func(p *patient) { p.sources = func() (int, string) { return 2, "drop" } }, says: "2 lists"},
	}
	docs, err := os.ReadFile("../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	v := &vitals{}
	for _, c := range v.checks(newLags(prometheus.NewRegistry())) {
		i, ok := table[c.code]
		if !ok {
			t.Errorf("%s is in no test", c.code)
			continue
		}
		if line := fmt.Sprintf("\n| `%s` | %s | ", c.code, c.severity); !strings.Contains(string(docs), line) || !strings.Contains(string(docs), "| "+c.advice+" |\n") {
			t.Errorf("docs/monitoring.md does not say %q, or not what to do: %s", line, c.advice)
		}
		t.Run(c.code, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPatient(t)
				p.pass(2 * time.Minute)
				if i.less != nil {
					i.less(p)
					p.pass(2 * time.Minute)
				}
				if codes := p.codes(); len(codes) > 0 || p.log.Len() > 0 {
					t.Fatalf("a node that is well: %v\n%s", codes, &p.log)
				}
				well := p.vitals
				begin := time.Now()
				i.ill(p)
				if i.within > watchInterval {
					p.pass(i.within - watchInterval)
					if codes := p.codes(); len(codes) > 0 {
						t.Errorf("told after %s: %v", time.Since(begin), codes)
					}
				}
				p.pass(3 * watchInterval)
				if codes := p.codes(); !slices.Equal(codes, []string{c.code}) {
					t.Fatalf("after %s: %v", time.Since(begin), codes)
				}
				q := p.dog.Problems()[0]
				if q.Severity != c.severity || !strings.HasSuffix(q.Text, c.advice) || q.Since.Before(begin.Add(-time.Second)) || q.Since.After(time.Now()) {
					t.Errorf("%+v", q)
				}
				if !strings.Contains(fmt.Sprint(p.dog.Problems(), p.log.String()), i.says) {
					t.Errorf("it does not say %q: %s\n%s", i.says, q.Text, &p.log)
				}
				if got := gauge(t, p.reg, "palisade_problem", c.code); got != 1 {
					t.Errorf("the metric is %v", got)
				}
				if n := strings.Count(p.log.String(), "a problem has begun"); n != 1 {
					t.Errorf("its begin was logged %d times", n)
				}
				p.recover(well)
				p.pass(2*driftTold + time.Minute)
				if codes := p.codes(); len(codes) > 0 {
					t.Errorf("after recovery: %v", codes)
				}
				if got := gauge(t, p.reg, "palisade_problem", c.code); got != 0 {
					t.Errorf("the metric is %v after recovery", got)
				}
				if n := strings.Count(p.log.String(), "a problem has ended"); n != 1 {
					t.Errorf("its end was logged %d times", n)
				}
			})
		})
		delete(table, c.code)
	}
	if len(table) > 0 {
		t.Errorf("no such checks: %v", slices.Collect(maps.Keys(table)))
	}
}

// recover makes the node well; its functions are those from before.
func (p *patient) recover(well vitals) {
	p.st.Quorum, p.st.CaughtUp, p.st.LastContact = true, true, time.Now()
	p.health, p.ahead, p.vitals = cluster.Health{}, 0, well
	p.kernel, p.lists = p.index, p.index
	p.peers[1].Alive = true
	p.drifts[0].undone()
}

// TestAFlappingProblemIsNoFlood: what comes back at once is told again only after it has lasted.
func TestAFlappingProblemIsNoFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t)
		for range 100 {
			p.ahead = 2 * time.Second
			p.pass(5 * time.Second)
			p.ahead = 0
			p.pass(2 * time.Second)
		}
		if p.log.Len() > 0 {
			t.Errorf("logged: %s", &p.log)
		}
	})
}

// TestLagIsThatOfTheOldestEntry, so that a kernel that keeps up under load has none, and one that stands still
// has more and more.
func TestLagIsThatOfTheOldestEntry(t *testing.T) {
	var l lag
	now := time.Now()
	for i := range uint64(100) { // always one behind, each second
		if d := l.behind(now.Add(time.Duration(i)*time.Second), i+1, i); d > time.Second {
			t.Fatalf("a kernel that keeps up is said to be behind for %s", d)
		}
	}
	begin := now.Add(time.Hour)
	for i := range 10 {
		if d := l.behind(begin.Add(time.Duration(i)*time.Second), uint64(200+i), 150); d != time.Duration(i)*time.Second {
			t.Fatalf("after %d s: %s", i, d)
		}
	}
	if d := l.behind(begin.Add(time.Minute), 300, 300); d != 0 {
		t.Errorf("a kernel that has everything: %s", d)
	}
}

// TestTheClockOfANodeIsComparedWithTheMedian: whose clock is off sees it, the others do not.
func TestTheClockOfANodeIsComparedWithTheMedian(t *testing.T) {
	bubble(t, func(t *testing.T, f *clockFleet, ctx context.Context) {
		f.set(func() { f.offsets["n3"] = -7 * time.Second })
		for node, want := range map[string]time.Duration{"n1": 0, "n2": 0, "n3": -7 * time.Second} {
			c := f.clock(node)
			if d, known := c.Offset(); known {
				t.Errorf("%s knows %s before it asked", node, d)
			}
			if !c.Measure(ctx, time.Time{}) {
				t.Fatal("no majority")
			}
			if d, known := c.Offset(); !known || (d-want).Abs() > 10*time.Millisecond {
				t.Errorf("%s: its clock is %s ahead (known: %t), want %s", node, d, known, want)
			}
			time.Sleep(trustOffset + time.Second)
			if d, known := c.Offset(); known {
				t.Errorf("%s still tells %s", node, d)
			}
		}
	})
}

// TestDriftIsUndone: the enforcer brings back what another program changed, tries again when that fails, and says
// meanwhile that its kernel is not as the state says.
func TestDriftIsUndone(t *testing.T) {
	b := newBench(t, 0)
	b.enforcer.interval = 5 * time.Millisecond
	close(b.caughtUp)
	b.run()
	d := b.enforcer.drift
	set := func(drift nft.Difference, healing error) {
		b.kernel.mu.Lock()
		defer b.kernel.mu.Unlock()
		b.kernel.drift, b.kernel.healing = drift, healing
	}
	set(nft.Difference{Problems: []string{"table inet is missing", "b", "c", "d"}, Missing: make([]enforce.Element, 3)}, errors.New("no memory"))
	b.eventually("it is told that healing fails", func() bool { return strings.Contains(d.unsolved(), "no memory") })
	if s := d.unsolved(); !strings.Contains(s, "table inet is missing, b, c, and 1 more, 3 elements missing") {
		t.Errorf("it says %q", s)
	}
	set(nft.Difference{Missing: make([]enforce.Element, 3)}, nil)
	b.eventually("it is undone", func() bool { return d.unsolved() == "" })
	if s := d.told(); !strings.Contains(s, "once") || !strings.Contains(s, "it was undone") {
		t.Errorf("it says %q", s)
	}
	set(nft.Difference{Missing: make([]enforce.Element, 1)}, nil)
	b.eventually("it is found again", func() bool { return strings.Contains(d.told(), "2 times") && d.unsolved() == "" })
}

// TestBehindIsNotLostFromSight: a node that is behind and hears the leader now and then is behind all the time, and not
// without a leader.
func TestBehindIsNotLostFromSight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t)
		p.st.CaughtUp, p.st.CommitIndex = false, 1007
		p.pass(lagMost + watchInterval)
		for i := range 60 {
			p.st.Quorum = i%3 == 0
			p.pass(watchInterval)
			if codes := p.codes(); !slices.Equal(codes, []string{"state_behind"}) {
				t.Fatalf("after %d looks: %v", i, codes)
			}
		}
		if n := strings.Count(p.log.String(), "a problem has"); n != 1 {
			t.Errorf("logged:\n%s", &p.log)
		}
	})
}
