package agent

import (
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/cluster"
	"github.com/palisade/palisade/fsm"
)

// From when on something is a problem.
const (
	// quorumPatience is longer than an election takes (1-3 s), so that a failover is none.
	quorumPatience = 5 * time.Second
	// lagMost: an entry reaches all states and kernels in milliseconds, and P8 gives a node that comes back five
	// seconds.
	lagMost = 5 * time.Second
	// listLagMost: a list of a million prefixes takes seconds to load.
	listLagMost = time.Minute
	// clockMost: no block ends early because of one clock, but a node that is cut off starts agreed blocks by its
	// own. With NTP clocks differ by milliseconds.
	clockMost = time.Second
	// storeSlow is a fifth of what ends the process; fdatasync takes milliseconds.
	storeSlow = time.Second
	// gossipLate is memberlist's score (0 to 8): above it this node is too late to answer most probes.
	gossipLate     = 3
	gossipPatience = 30 * time.Second
	// certificateLeft is the part of a certificate's life, the last fifth, in which it should not be in use any
	// more: it is renewed at two thirds.
	certificateLeft = 5
	// networkPatience is longer than an interface that comes or goes takes.
	networkPatience = 3 * time.Second
	silentPatience  = 5 * time.Second // a peer that restarts is back by then
)

// vitals are what the checks look at. None of the functions blocks.
type vitals struct {
	status  func() fsm.Status
	members func() []fsm.Member
	health  func() cluster.Health
	halted  func() error
	offset  func() (time.Duration, bool)
	applied func() uint64                   // log index of the state
	blocks  func() (uint64, string)         // log index of the kernel, and why it is behind
	lists   func() (uint64, string)         // likewise, of lists
	drifts  []*drift                        // of all tables
	passing func() string                   // what passes that is blocked
	blind   func() string                   // why that is not known
	missing func() []fsm.Kind               // kinds of blocks that the kernel lacks
	open    func() string                   // which guests, or interfaces, can't be enforced
	audit   func() string                   // why it is not written
	page    func() string                   // why it is not served
	life    func() (signed, ends time.Time) // of its certificate; zero if it has none
	differs func() string                   // how its state differs from the leader's
	boot    func() string                   // why the rules for the next boot are not saved
	aside   func() string                   // the store that was set aside
	sources func() (failing int, of string) // lists that could not be loaded, and an example
}

// lag measures for how long a number is behind another that grows.
type lag struct {
	target uint64 // that is to be reached; 0: nothing is behind
	since  time.Time
}

// behind is for how long have has not reached what want was then.
func (l *lag) behind(now time.Time, want, have uint64) time.Duration {
	switch {
	case have >= want:
		*l = lag{}
		return 0
	case l.target == 0 || have >= l.target:
		*l = lag{want, now}
	}
	return now.Sub(l.since)
}

// lags are how far this node is behind the fleet, as of the last look.
type lags struct {
	enforced, lists  lag
	current          time.Time // when the state was last as new as the leader's
	seconds, entries *prometheus.GaugeVec
}

func newLags(reg prometheus.Registerer) *lags {
	gauge := func(unit, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "palisade_lag_" + unit, Help: help}, []string{"part"})
	}
	l := &lags{
		seconds: gauge("seconds", "For how long a part of this node has been behind: state behind the leader's log, kernel and lists (the kernel's tables of lists) behind the state."),
		entries: gauge("entries", "By how many log entries a part of this node is behind: state behind the leader's log, kernel and lists behind the state."),
	}
	reg.MustRegister(l.seconds, l.entries)
	return l
}

func (l *lags) set(part string, d time.Duration, entries uint64) {
	l.seconds.WithLabelValues(part).Set(d.Seconds())
	l.entries.WithLabelValues(part).Set(float64(entries))
}

// state is for how long this node's state has not been as new as the leader's, and by how many entries.
func (l *lags) state(now time.Time, st fsm.Status) (time.Duration, uint64) {
	if l.current.IsZero() || st.Quorum && st.CaughtUp {
		l.current = now
	}
	d, entries := now.Sub(l.current), uint64(0)
	if d > 0 && st.CommitIndex > st.Applied {
		entries = st.CommitIndex - st.Applied
	}
	l.set("state", d, entries)
	return d, entries
}

// kernel is for how long the kernel has not had what the state says, and by how many entries.
func (l *lags) kernel(now time.Time, part string, of *lag, applied, enforced uint64) (time.Duration, uint64) {
	d, entries := of.behind(now, applied, enforced), applied-min(applied, enforced)
	l.set(part, d, entries)
	return d, entries
}

// checks is the table of what can go wrong with a node. docs/monitoring.md has a line for each.
func (v *vitals) checks(l *lags) []check {
	return []check{
		{"no_quorum", fsm.Critical, quorumPatience, "Nothing can be written; what is blocked stays blocked. Bring nodes back until a majority of the voters runs and reaches each other.", v.noQuorum},
		{"cannot_commit", fsm.Critical, 0, "The leader ends itself after 10 s so that another can lead. Look at the disks and the network of the other voters.", v.cannotCommit},
		{"state_behind", fsm.Critical, 0, "Its reads are old, and blocks reach its kernel late. Look at its CPU, its disk and the network to the leader.", func(now time.Time) string { return v.stateBehind(now, l) }},
		{"state_halted", fsm.Critical, 0, "It goes on enforcing what it knows. Install the newer version.", v.stateHalted},
		{"state_differs", fsm.Critical, 0, "Its rules may be wrong. Stop its agent, move data_dir/raft away and start it: it takes the state from the others. Keep what you moved for a bug report.", func(time.Time) string { return v.differs() }},
		{"kernel_behind", fsm.Critical, 0, "What was changed since is not in force on this node. The agent tries again; see its log.", func(now time.Time) string { return v.kernelBehind(now, l) }},
		{"lists_behind", fsm.Critical, 0, "Lists that changed are not in force on this node as they are now. The agent tries again; see its log.", func(now time.Time) string { return v.listsBehind(now, l) }},
		{"kernel_drift", fsm.Critical, 0, "Find out what flushes nftables (a firewall service, a script) and keep it from tables named palisade: what was blocked may have passed for a tenth of a second.", v.kernelDrift},
		{"canary_passes", fsm.Critical, 0, "Something on this node takes packets past the rules (an XDP or tc program, a flowtable, a netdev chain that forwards), or the rules do not work. Look at tc filter, ip link and nft list ruleset, and stop guests by other means meanwhile.", func(time.Time) string { return v.passing() }},
		{"canary_failing", fsm.Warning, 0, "What is blocked may well be dropped: it is only not proven by packets. See the agent's log; a firewall that drops all frames of bridges, or an interface named palcanary or palcan0 of another program are usual reasons.", func(time.Time) string { return v.blind() }},
		{"kernel_lacks", fsm.Warning, 0, "Such blocks drop everything on this node. Install a kernel that has what is missing, or do not use these kinds.", v.kernelLacks},
		{"network_unenforceable", fsm.Warning, networkPatience, "What is blocked there is not in force on this node, see palisade vm show. Connect the guest by a bridge, macvtap or Open vSwitch; for an interface, see the log.", func(time.Time) string { return v.open() }},
		{"store_slow", fsm.Warning, 0, "At 5 s the process ends itself. Look at the disk of data_dir.", v.storeSlow},
		{"clock_offset", fsm.Warning, 10 * time.Second, "Set the clock by NTP (chronyc tracking, timedatectl). While cut off, this node would start agreed blocks at the wrong time.", v.clockOffset},
		{"gossip_late", fsm.Warning, gossipPatience, "It is slow to see who is alive, and may be taken for dead. Look at its CPU and at loss on the gossip port.", v.gossipLate},
		{"peers_silent", fsm.Warning, silentPatience, "Their kernels go on enforcing what they have. Start their agents, or retire nodes that are gone for good.", v.peersSilent},
		{"audit_failing", fsm.Warning, 0, "Changes are kept by the other nodes meanwhile. Look at the disk of data_dir/audit.", func(time.Time) string { return v.audit() }},
		{"page_failing", fsm.Warning, 0, "Free the port that redirect.port names.", func(time.Time) string { return v.page() }},
		{"boot_ruleset_failing", fsm.Warning, 0, "After a reboot this node would start with older rules. Look at the disk of data_dir.", func(time.Time) string { return v.boot() }},
		{"store_set_aside", fsm.Warning, 0, "The node has rejoined by itself. Look at what it says and at the disk, then remove it.", func(time.Time) string { return v.aside() }},
		{"certificate_expiring", fsm.Critical, 0, "Then no peer talks to this node, though its kernel goes on enforcing. It should have been renewed long ago: look at its log for why the leader refuses.", v.certificateExpiring},
		{"list_source_failing", fsm.Warning, 0, "The list stays as it is. See palisade list show.", v.listSources},
	}
}

func (v *vitals) noQuorum(now time.Time) string {
	st := v.status()
	switch {
	case st.Quorum:
		return ""
	case st.LastContact.IsZero():
		return "this node has heard no leader since its start"
	}
	return "this node has heard no leader for " + short(now.Sub(st.LastContact))
}

func (v *vitals) cannotCommit(time.Time) string {
	if d := v.health().CommitStall; d > 0 {
		return "this node leads and has committed nothing for " + short(d)
	}
	return ""
}

func (v *vitals) stateBehind(now time.Time, l *lags) string {
	st := v.status()
	d, entries := l.state(now, st)
	if d < lagMost || !st.Quorum && now.Sub(st.LastContact) >= quorumPatience { // then that is the problem, see noQuorum
		return ""
	}
	return fmt.Sprintf("this node's state has been behind the leader's for %s, by %d entries", short(d), entries)
}

func (v *vitals) stateHalted(time.Time) string {
	if err := v.halted(); err != nil {
		return "the state does not go on: " + err.Error()
	}
	return ""
}

func (v *vitals) kernelBehind(now time.Time, l *lags) string {
	enforced, problem := v.blocks()
	d, entries := l.kernel(now, "kernel", &l.enforced, v.applied(), enforced)
	switch {
	case problem != "":
		return "the kernel is behind the state: " + problem
	case d >= lagMost && enforced > 0: // else the node has not caught up since its start, see stateBehind
		return fmt.Sprintf("the kernel has been behind the state for %s, by %d entries", short(d), entries)
	}
	return ""
}

func (v *vitals) listsBehind(now time.Time, l *lags) string {
	enforced, problem := v.lists()
	d, entries := l.kernel(now, "lists", &l.lists, v.applied(), enforced)
	switch {
	case problem != "":
		return "lists in the kernel are behind the state: " + problem
	case d >= listLagMost && enforced > 0:
		return fmt.Sprintf("lists in the kernel have been behind the state for %s, by %d entries", short(d), entries)
	}
	return ""
}

func (v *vitals) kernelDrift(time.Time) string {
	for _, d := range v.drifts {
		if s := d.told(); s != "" {
			return s
		}
	}
	return ""
}

func (v *vitals) kernelLacks(time.Time) string {
	missing := v.missing()
	if len(missing) == 0 {
		return ""
	}
	names := make([]string, len(missing))
	for i, k := range missing {
		names[i] = string(k)
	}
	return "this kernel can't carry out blocks of kind " + strings.Join(names, ", ")
}

func (v *vitals) storeSlow(time.Time) string {
	if d := v.health().StoreSlowest; d > storeSlow {
		return "a call to the store took " + short(d)
	}
	return ""
}

func (v *vitals) clockOffset(time.Time) string {
	d, known := v.offset()
	switch {
	case !known || d.Abs() <= clockMost:
		return ""
	case d > 0:
		return fmt.Sprintf("this node's clock is %s ahead of the fleet's", short(d))
	}
	return fmt.Sprintf("this node's clock is %s behind the fleet's", short(-d))
}

func (v *vitals) gossipLate(time.Time) string {
	if score := v.health().Gossip; score > gossipLate {
		return fmt.Sprintf("this node is late to answer gossip (score %d of 8)", score)
	}
	return ""
}

// peersSilent is told by the leader alone: one node of the fleet is enough.
func (v *vitals) peersSilent(time.Time) string {
	var silent []string
	leads := false
	for _, m := range v.members() {
		leads = leads || m.Self && m.Leader
		if !m.Alive && !m.Self {
			silent = append(silent, m.ID)
		}
	}
	if !leads || len(silent) == 0 {
		return ""
	}
	const most = 5
	more := ""
	if n := len(silent) - most; n > 0 {
		silent, more = silent[:most], fmt.Sprintf(" and %d more", n)
	}
	return "not heard of by gossip: " + strings.Join(silent, ", ") + more
}

func (v *vitals) certificateExpiring(now time.Time) string {
	switch signed, end := v.life(); {
	case end.IsZero() || end.Sub(now) >= end.Sub(signed)/certificateLeft:
		return ""
	case end.Before(now):
		return "this node's certificate ended on " + end.UTC().Format(time.RFC3339)
	default:
		return "this node's certificate ends on " + end.UTC().Format(time.RFC3339)
	}
}

func (v *vitals) listSources(time.Time) string {
	n, of := v.sources()
	switch n {
	case 0:
		return ""
	case 1:
		return "a list can't be loaded from its source: " + of
	}
	return fmt.Sprintf("%d lists can't be loaded from their sources, for example %s", n, of)
}

// short writes a duration for people.
func short(d time.Duration) string {
	if d >= 10*time.Second {
		return d.Round(time.Second).String()
	}
	return d.Round(100 * time.Millisecond).String()
}
