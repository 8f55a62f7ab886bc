package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
)

// tampering is what another program does to the rules of a node.
type tampering struct {
	name   string
	script string // for nft -f
	ours   bool   // it changes our tables: it must be found and undone
}

func tamperings() []tampering {
	return []tampering{
		{"flush ruleset", "flush ruleset", true},
		{"systemctl restart nftables", "flush ruleset\ntable inet filter {\n chain input { type filter hook input priority filter; policy accept; }\n}\n", true},
		{"tables deleted", "delete table bridge palisade\ndelete table inet palisade", true},
		{"chains emptied", "flush chain bridge palisade prerouting\nflush chain bridge palisade postrouting\nflush chain inet palisade prerouting\nflush chain inet palisade postrouting\nflush chain inet palisade output", true},
		{"elements deleted", "flush set bridge palisade taps\nflush set bridge palisade macs\nflush set bridge palisade a4_32\nflush set bridge palisade a6_128\nflush set inet palisade a4_32\nflush set inet palisade a6_128\nflush set inet palisade taps", true},
		{"tables asleep", "add table bridge palisade { flags dormant; }\nadd table inet palisade { flags dormant; }", true},
		{"accept inserted", "insert rule bridge palisade prerouting accept\ninsert rule bridge palisade postrouting accept\ninsert rule inet palisade prerouting accept", true},
		{"accept of others in front", "add table bridge first\nadd chain bridge first pre { type filter hook prerouting priority -1000; policy accept; }\nadd rule bridge first pre accept\n" +
			"add table inet first\nadd chain inet first pre { type filter hook prerouting priority -1000; policy accept; }\nadd rule inet first pre accept", false},
	}
}

// TestTampering: whatever another program does to the rules of a node, under packets: it is found and undone within a second,
// and nothing passes after that. What passes meanwhile is measured. What leaves our tables alone lets nothing pass at all, though it accepts
// everything in front of them.
func TestTampering(t *testing.T) {
	l := sharedLab(t)
	const node, rounds = "node-1", 3
	seen := l.incidents(t, "node-3")
	w := watch(t, l)
	w.held()
	m := l.machine(t, node)
	file := m.dir("tamper.nft")
	t.Cleanup(func() {
		_ = os.Remove(file)
		_, _ = l.Exec(context.Background(), node, "nft", "delete table inet filter")
	})
	var took, open []time.Duration
	leaked := 0
	for range rounds {
		for _, c := range tamperings() {
			if err := os.WriteFile(file, []byte(c.script+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			before := l.number(t, node, `palisade_kernel_drift_healed_total{tables="blocks"}`)
			begin := time.Now()
			m.exec(t, "nft", "-f", file)
			if !c.ours {
				rest(300 * time.Millisecond)
				w.Silent(w.victims, begin)
				m.exec(t, "nft", "delete table bridge first; delete table inet first")
				continue
			}
			l.Eventually(t, c.name+" is undone", func() error {
				if l.number(t, node, `palisade_kernel_drift_healed_total{tables="blocks"}`) == before {
					return errors.New("not yet")
				}
				return nil
			})
			back := time.Now()
			took = append(took, back.Sub(begin))
			rest(150 * time.Millisecond) // nothing more comes
			n, last := passed(t, w.victims, begin)
			if last.After(back) {
				t.Errorf("%s: a packet passed %s after the rules were back", c.name, last.Sub(back))
			}
			if n > 0 {
				leaked += n
				open = append(open, last.Sub(begin))
			}
			w.since = back
		}
	}
	slices.Sort(took)
	slices.Sort(open)
	worst := took[len(took)-1]
	t.Logf("%d tamperings: undone after %s (median), %s (worst); %d packets passed meanwhile, in %d of them; the last %s (median), %s (worst) after its begin", len(took),
		took[len(took)/2].Round(time.Millisecond), worst.Round(time.Millisecond), leaked, len(open),
		open[len(open)/2].Round(time.Millisecond), open[len(open)-1].Round(time.Millisecond))
	if median := took[len(took)/2]; median > time.Second/2 {
		t.Errorf("undone after %s, in the median", median)
	}
	if len(open) == 0 {
		t.Error("nothing passed at any time: the tamperings show nothing")
	} else if last := open[len(open)-1]; last > time.Second {
		t.Errorf("a packet passed %s after a tampering", last)
	}
	if is := seen(node, "kernel_drift", "another program changed the rules of blocks"); is.Severity != "critical" || is.LastedMS <= 0 {
		t.Errorf("the event says %+v", is)
	}
	if found, healed := l.number(t, node, `palisade_kernel_drift_found_total{tables="blocks"}`), l.number(t, node, `palisade_kernel_drift_healed_total{tables="blocks"}`); found != healed {
		t.Errorf("found %v, undone %v", found, healed)
	}
	w.end()
}

// passed counts the packets that arrived after a time, and says when the last did.
func passed(t *testing.T, flows []*probe.Flow, since time.Time) (n int, last time.Time) {
	t.Helper()
	for _, f := range flows {
		r, err := f.Report()
		if err != nil {
			t.Fatal(err)
		}
		n += r.After(since)
		for _, p := range r.Received {
			if at := time.Unix(0, p.At); at.After(since) && at.After(last) {
				last = at
			}
		}
	}
	return n, last
}

// number is a metric's value.
func (l *lab) number(t *testing.T, node, series string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(l.metric(t, node, series), 64)
	if err != nil {
		t.Fatalf("%s of %s: %v", series, node, err)
	}
	return v
}

// incidents listens to the events of a node, and returns what waits for one that befell another and says a text.
func (l *lab) incidents(t *testing.T, asked string) func(node, code, text string) client.Incident {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	found := make(chan client.Incident, 1000)
	st, err := l.Clients[asked].Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for e, err := range l.Clients[asked].Events(ctx, &st.Index) {
			if err != nil {
				return
			}
			if e.Incident != nil {
				select {
				case found <- *e.Incident:
				default: // more than anybody asks for
				}
			}
		}
	}()
	return func(node, code, text string) client.Incident {
		t.Helper()
		for deadline := time.After(time.Minute); ; {
			select {
			case i := <-found:
				if i.Node == node && i.Code == code && strings.Contains(i.Text, text) {
					return i
				}
			case <-deadline:
				t.Fatalf("%s has no event of %s that befell %s and says %q", asked, code, node, text)
			}
		}
	}
}

// TestATapThatComesBack is the tap of a blocked guest that is deleted and made again, with a guest behind it that has another hardware
// address and another address: nothing of it passes, from its first packet on.
func TestATapThatComesBack(t *testing.T) {
	l := sharedLab(t)
	g, err := l.Guest("guest1")
	if err != nil {
		t.Fatal(err)
	}
	n, err := l.Node(g.Node)
	if err != nil {
		t.Fatal(err)
	}
	l.Block(t, "node-2", client.Target{VM: "guest1"})
	m := l.machine(t, g.Node)
	plug := func(mac string, addresses ...string) {
		t.Helper()
		m.exec(t, "ip", "link", "del", g.Tap)
		add := exec.Command("ip", "-n", n.Netns, "link", "add", g.Tap, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", g.Netns)
		if out, err := add.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		m.exec(t, "ip", "link", "set", g.Tap, "addrgenmode", "none")
		m.exec(t, "ip", "link", "set", g.Tap, "master", "br0", "up")
		for _, args := range addresses {
			if _, err := l.Exec(context.WithoutCancel(t.Context()), "guest1", append([]string{"ip"}, strings.Fields(args)...)...); err != nil {
				t.Error(err)
			}
		}
	}
	was, err := l.Exec(t.Context(), "guest1", "sh", "-c", "ip -o addr show dev eth0 scope global; ip route show default; ip -6 route show default")
	if err != nil {
		t.Fatal(err)
	}
	defer plug(g.MAC, restoreGuest(string(was))...)
	v4, _ := l.Ends(t, "guest1")
	near, _ := l.Ends(t, "guest2")
	v4.Addr = v4.Addr.Next().Next().Next().Next().Next().Next().Next().Next()
	plug("52:54:00:99:99:01", "link set eth0 up", fmt.Sprintf("addr add %s/24 dev eth0", v4.Addr), "route add default dev eth0")
	f := l.Flows(t)
	began := time.Now()
	flow := f.One("guest1", "guest2", v4, near)
	back := f.One("guest2", "guest1", near, v4)
	out := f.One("guest1", fleet.Outside, v4, first(l.Ends(t, fleet.Outside)))
	rest(time.Second)
	f.Silent([]*probe.Flow{flow, back, out}, began)
}

func first[A, B any](a A, _ B) A { return a }

// restoreGuest is what brings a guest's interface back to what `ip` listed.
func restoreGuest(listed string) []string {
	commands := []string{"link set eth0 up"}
	for line := range strings.Lines(listed) {
		f := strings.Fields(line)
		switch {
		case len(f) > 3 && (f[2] == "inet" || f[2] == "inet6"):
			commands = append(commands, "addr add "+f[3]+" dev eth0 nodad")
		case len(f) > 2 && f[0] == "default":
			commands = append(commands, "route replace default via "+f[2])
		}
	}
	return commands
}

// TestTheCanary: each node proves that it drops. What gets packets past the rules (here a chain in front that rewrites them), which read right all the while, is a
// problem that other nodes show, a metric and an event; when it is gone, the problem is.
func TestTheCanary(t *testing.T) {
	l := sharedLab(t)
	const node = "node-1"
	for _, n := range l.Nodes() {
		// After what tests before have done to its rules: what passes on and on is told once.
		since := float64(time.Now().UnixMilli()) / 1000
		l.Eventually(t, n.Name+" has proven that it drops", func() error {
			if proven := l.number(t, n.Name, "palisade_canary_proven_timestamp_seconds"); proven < since {
				return fmt.Errorf("the last proof is %.1f s older than the test", since-proven)
			}
			return nil
		})
	}
	for _, n := range l.Nodes() {
		for _, p := range []string{"bridge_tap", "bridge_mac", "bridge_ipv4", "bridge_ipv6", "host_ipv4"} {
			if v := l.number(t, n.Name, fmt.Sprintf("palisade_canary_passed_total{path=%q}", p)); v != 0 {
				t.Logf("%s: %v passed over %s while its rules were changed by tests before", n.Name, v, p)
			}
		}
	}
	seen := l.incidents(t, "node-3")
	m := l.machine(t, node)
	m.exec(t, "nft", `table netdev around { chain in { type filter hook ingress device "palcan0" priority -500; policy accept;
		ether saddr 02:70:61:6c:00:01 ether saddr set 02:70:61:6c:00:02
		ip6 saddr 100::7061:6c ip6 saddr set 100::7061:6b
	}; }`)
	defer func() { _, _ = l.Exec(context.Background(), node, "nft", "delete table netdev around") }()
	l.shows(t, "node-2", node, "canary_passes", "bridge_mac")
	if is := seen(node, "canary_passes", "bridge_ipv6"); is.Severity != "critical" {
		t.Errorf("the event says %+v", is)
	}
	if v := l.metric(t, node, `palisade_problem{code="canary_passes",severity="critical"}`); v != "1" {
		t.Errorf("the problem's metric is %q", v)
	}
	m.exec(t, "nft", "delete table netdev around")
	l.ended(t, "node-2", node, "canary_passes")
}
