package nft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
)

// story is a set of elements of every kind.
func story() []enforce.Element {
	return elements(tap("vnet1"), mac("52:54:00:00:00:02"), prefix("10.7.0.2"), prefix("10.9.0.128/25"),
		prefix("192.0.0.0/9"), prefix("fd07::2"), prefix("fd09::8000/113"), prefix("2001:db8::/32"))
}

// TestGolden compares what nft lists, for people and as JSON, with files.
func TestGolden(t *testing.T) {
	n := newNetNS(t)
	k := adopted(t, n)
	golden(t, "empty.nft", n.run("nft", "list", "ruleset"))
	apply(t, k, 1<<32+7, story(), nil)
	golden(t, "story.nft", n.run("nft", "list", "ruleset"))
	golden(t, "story.json", readable(t, n.run("nft", "-j", "list", "ruleset")))
	// Masked sets go with their last element, and everything else stays.
	apply(t, k, 1<<32+8, nil, story())
	after := n.run("nft", "list", "ruleset")
	golden(t, "empty.nft", markerLine.ReplaceAllString(after, ""))
}

var markerLine = regexp.MustCompile(`(?m)^\t\telements = .*log index.*\n`)

// readable strips what differs between runs, one object a line.
func readable(t *testing.T, ruleset string) string {
	t.Helper()
	var doc struct {
		Nftables []json.RawMessage `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(ruleset), &doc); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, o := range doc.Nftables {
		line := regexp.MustCompile(`"handle": \d+, |, "handle": \d+`).ReplaceAllString(string(o), "")
		if !strings.Contains(line, `"metainfo"`) {
			fmt.Fprintln(&out, line)
		}
	}
	return out.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (UPDATE_GOLDEN=1 accepts it), got:\n%s", name, got)
	}
}

// TestRestart: a new process adopts what the one before left, and writes nothing.
func TestRestart(t *testing.T) {
	n := newNetNS(t)
	first := open(t, n)
	if h := adopt(t, first); h.Intact || h.Index != 0 || len(h.Elements) != 0 {
		t.Errorf("an empty kernel: %+v", h)
	}
	apply(t, first, 41, story(), nil)
	apply(t, first, 42, nil, elements(prefix("192.0.0.0/9")))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	before := n.run("nft", "list", "ruleset")

	second := open(t, n)
	generationBefore := generation(t, second)
	h := adopt(t, second)
	if !h.Intact || h.Index != 42 || len(h.Elements) != len(story())-1 {
		t.Errorf("after a restart: intact %t, index %d, %d elements", h.Intact, h.Index, len(h.Elements))
	}
	for _, e := range story() {
		if _, ok := h.Elements[e]; ok == (e == prefix("192.0.0.0/9")) {
			t.Errorf("%v is held: %t", e, ok)
		}
	}
	// What is so already is not written again, either.
	apply(t, second, 42, story()[:3], elements(prefix("192.0.0.0/9"), prefix("10.1.1.1")))
	if g := generation(t, second); g != generationBefore {
		t.Errorf("%d transactions were written", g-generationBefore)
	}
	if after := n.run("nft", "list", "ruleset"); after != before {
		t.Errorf("the ruleset changed to:\n%s", after)
	}
	verify(t, second)
}

func TestOrderOfUse(t *testing.T) {
	n := newNetNS(t)
	k := open(t, n)
	ctx := t.Context()
	if err := k.Apply(ctx, enforce.Delta{}); !errors.Is(err, ErrNotAdopted) {
		t.Errorf("Apply before Adopt: %v", err)
	}
	if _, err := k.Counters(ctx, nil); !errors.Is(err, ErrNotAdopted) {
		t.Errorf("Counters before Adopt: %v", err)
	}
	if _, err := k.Verify(ctx); !errors.Is(err, ErrNotAdopted) {
		t.Errorf("Verify before Adopt: %v", err)
	}
	if out := n.run("nft", "list", "ruleset"); out != "" {
		t.Errorf("Open wrote: %s", out)
	}
	adopt(t, k)
	apply(t, k, 5, story(), nil)
	if err := k.Apply(ctx, enforce.Delta{Index: 4, Remove: story()}); !errors.Is(err, ErrBackwards) {
		t.Errorf("Apply of an earlier index: %v", err)
	}
	apply(t, k, math.MaxUint64, nil, nil)
	if h := adopt(t, k); h.Index != math.MaxUint64 {
		t.Errorf("index %d", h.Index)
	}
	verify(t, k)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := k.Apply(ended, enforce.Delta{Index: math.MaxUint64, Remove: story()}); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply after the context ended: %v", err)
	}
	apply(t, k, math.MaxUint64, nil, nil) // finishes what was begun
	if h := adopt(t, k); len(h.Elements) != 0 {
		t.Errorf("still held: %v", h.Elements)
	}
}

// TestRefused: an element that could hit others, or that no set can hold, changes nothing.
func TestRefused(t *testing.T) {
	n := newNetNS(t)
	k := adopted(t, n)
	g := generation(t, k)
	for _, e := range []enforce.Element{
		{},
		{Tap: "vnet1", Prefix: prefix("10.0.0.1").Prefix},
		{Tap: "sixteen-letters-"},
		{Prefix: netip.MustParsePrefix("0.0.0.0/0")},
		{Prefix: netip.MustParsePrefix("::/0")},
		{Prefix: netip.MustParsePrefix("10.0.0.1/24")},
		{Prefix: netip.MustParsePrefix("::ffff:10.0.0.1/128")},
	} {
		if err := k.Apply(t.Context(), enforce.Delta{Index: 1, Add: elements(prefix("10.9.9.9"), e)}); err == nil {
			t.Errorf("%+v was accepted", e)
		}
	}
	if generation(t, k) != g {
		t.Error("something was written")
	}
}

// TestTampered: whatever another program did to our tables, Adopt says so and repairs it, and what
// the tables still held is held.
func TestTampered(t *testing.T) {
	for _, c := range []struct {
		name, script string
		lost         []enforce.Element
		index        uint64
	}{
		{name: "a rule deleted", script: `flush chain inet palisade prerouting`},
		{name: "the table of ARP deleted", script: `delete table arp palisade`},
		{name: "a rule of ARP deleted", script: `flush chain arp palisade input`},
		{name: "a tap deleted for ARP", script: `flush set arp palisade taps`},
		{name: "a rule added", script: `insert rule bridge palisade prerouting accept`},
		{name: "a rule turned round", script: "flush chain inet palisade output\nadd rule inet palisade output ip daddr != @a4_32 drop"},
		{name: "a chain deleted", script: "flush chain bridge palisade output\ndelete chain bridge palisade output"},
		{name: "a chain with another hook", script: "flush chain inet palisade output\ndelete chain inet palisade output\nadd chain inet palisade output { type filter hook input priority 0; }"},
		{name: "a chain with a policy", script: "add chain inet palisade output { type filter hook output priority -500; policy drop; }"},
		{name: "a table asleep", script: `add table inet palisade { flags dormant; }`},
		{name: "an element deleted in one table", script: `delete element inet palisade a4_32 { 10.7.0.2 }`},
		{name: "an element deleted in both", script: "delete element inet palisade a4_32 { 10.7.0.2 }\ndelete element bridge palisade a4_32 { 10.7.0.2 }", lost: elements(prefix("10.7.0.2"))},
		{name: "a masked set deleted in one table", script: "flush chain inet palisade prerouting\nflush chain inet palisade output\nflush chain inet palisade postrouting\ndelete set inet palisade a4_25"},
		{name: "a set without counters", script: "flush chain inet palisade prerouting\nflush chain inet palisade output\nflush chain inet palisade postrouting\ndelete set inet palisade a4_32\nadd set inet palisade a4_32 { type ipv4_addr; size 1024; }"},
		{name: "a set with another type", script: "flush chain inet palisade prerouting\nflush chain inet palisade postrouting\ndelete set inet palisade taps\nadd set inet palisade taps { type ipv4_addr; size 1024; }"},
		{name: "an interval set", script: "flush chain inet palisade prerouting\nflush chain inet palisade output\nflush chain inet palisade postrouting\ndelete set inet palisade a6_128\nadd set inet palisade a6_128 { type ipv6_addr; flags interval; }"},
		{name: "leftovers of a growth", script: "add set inet palisade a4_32.2 { type ipv4_addr; size 2048; counter; }\nadd element inet palisade a4_32.2 { 1.2.3.4 }"},
		{name: "an empty masked set", script: "add set bridge palisade a4_12 { type ipv4_addr; size 64; counter; }"},
		{name: "an element that no packet matches", script: "add element bridge palisade a4_25 { 10.0.0.1 }"},
		{name: "the marker's set replaced", script: "delete set inet palisade enforced\nadd set inet palisade enforced { type mark; }", index: 0},
		{name: "one table deleted", script: `delete table bridge palisade`, lost: elements(mac("52:54:00:00:00:02"))},
		{name: "everything deleted", script: `flush ruleset`, lost: story()},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNetNS(t)
			k := adopted(t, n)
			apply(t, k, 9, story(), nil)
			want := n.run("nft", "list", "ruleset")
			n.runInput(c.script, "nft", "-f", "-")
			if d, err := k.Verify(t.Context()); err != nil || d.None() {
				t.Errorf("Verify sees no difference: %v", err)
			}
			// Both the process that wrote it and a new one.
			for _, k := range []*Kernel{open(t, n), k} {
				h := adopt(t, k)
				var lost []enforce.Element
				for _, e := range story() {
					if _, ok := h.Elements[e]; !ok {
						lost = append(lost, e)
					}
				}
				if !slices.Equal(lost, c.lost) {
					t.Errorf("lost %v, want %v", lost, c.lost)
				}
				if len(h.Elements)+len(lost) != len(story()) {
					t.Errorf("held %v", h.Elements)
				}
				if h.Intact && len(c.lost) == 0 && k.index == 9 {
					continue // the second time
				}
			}
			apply(t, k, 9, story(), nil)
			verify(t, k)
			if got := n.run("nft", "list", "ruleset"); normal(got) != normal(want) {
				t.Errorf("not as before:\n%s", got)
			}
		})
	}
}

// normal takes out of a listing what a repair may change: the order of sets and their generation.
func normal(listing string) string {
	lines := strings.Split(regexp.MustCompile(`(a[46]_\d+|taps|macs)\.\d+`).ReplaceAllString(listing, "$1"), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestHealing: a change that finds the tables different restores everything, not only its own part.
func TestHealing(t *testing.T) {
	gone, fresh := prefix("10.7.0.2"), prefix("203.0.113.9")
	for _, c := range []struct {
		name   string
		tamper func(n netNS, k *Kernel)
	}{
		{"everything was flushed", func(n netNS, _ *Kernel) { n.run("nft", "flush", "ruleset") }},
		{"the element to be removed is gone from one table", func(n netNS, _ *Kernel) {
			n.run("nft", "delete element inet palisade a4_32 { 10.7.0.2 }")
		}},
		{"the element to be removed is gone with all others", func(n netNS, _ *Kernel) {
			n.run("nft", "flush set bridge palisade a4_32; flush set inet palisade a4_32; flush set inet palisade a4_25")
		}},
		{"the set is full of others' elements", func(n netNS, _ *Kernel) {
			var list []string
			for _, e := range addresses(1022) {
				list = append(list, e.String())
			}
			n.run("nft", "add element inet palisade a4_32 { "+strings.Join(list, ", ")+" }")
		}},
		{"the marker is gone with its set", func(n netNS, _ *Kernel) { n.run("nft", "delete set inet palisade enforced") }},
		// Only the reading back can see these two.
		{"the added element was lost", func(_ netNS, k *Kernel) { k.shadow[fresh] = struct{}{} }},
		{"the removed element is still there", func(_ netNS, k *Kernel) { delete(k.shadow, gone) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNetNS(t)
			var log strings.Builder
			k := adopted(t, n, func(o *Options) { o.Logger = testLogger(&log) })
			apply(t, k, 1, append(story(), prefix("10.7.0.3")), nil)
			c.tamper(n, k)
			apply(t, k, 2, elements(fresh), elements(gone))
			if !strings.Contains(log.String(), "reading everything again") {
				t.Error("it was not noticed")
			}
			verify(t, k)
			want := append(slices.DeleteFunc(story(), func(e enforce.Element) bool { return e == gone }), prefix("10.7.0.3"), fresh)
			h := adopt(t, open(t, n))
			for _, e := range want {
				if _, ok := h.Elements[e]; !ok {
					t.Errorf("%v is missing", e)
				}
			}
			if len(h.Elements) != len(want) || h.Index != 2 || !h.Intact {
				t.Errorf("%d elements at %d, want %d at 2 (intact: %t)", len(h.Elements), h.Index, len(want), h.Intact)
			}
		})
	}
}

// TestOthersUntouched: tables of other programs stay byte for byte, also one with our name in a
// family that is not ours.
func TestOthersUntouched(t *testing.T) {
	n := newNetNS(t)
	others := `table ip palisade {
	chain prerouting {
		type filter hook prerouting priority -500; policy accept;
		counter packets 0 bytes 0 drop
	}
}
table inet firewall {
	set a4_32 {
		type ipv4_addr
		elements = { 1.2.3.4 }
	}

	chain input {
		type filter hook input priority filter; policy accept;
		ip saddr @a4_32 drop
	}
}
`
	n.runInput(others, "nft", "-f", "-")
	k := adopted(t, n)
	apply(t, k, 1, story(), nil)
	apply(t, k, 2, addresses(2000), story())
	if got := n.run("nft", "list", "table", "ip", "palisade") + n.run("nft", "list", "table", "inet", "firewall"); got != others {
		t.Errorf("changed to:\n%s", got)
	}
}

// TestLoad reads every element of large loads back with another program.
func TestLoad(t *testing.T) {
	for _, count := range []int{5_000, 100_000} {
		t.Run(strconv.Itoa(count), func(t *testing.T) {
			n := newNetNS(t)
			k := adopted(t, n)
			list := addresses(count)
			apply(t, k, 1, list, nil)
			for _, table := range []string{"bridge", "inet"} {
				set := k.sets[setID{map[string]family{"bridge": bridge, "inet": inet}[table], base{kind: kind4, bits: 32}}]
				out := n.run("nft", "-n", "list", "set", table, "palisade", set.name)
				if got := strings.Count(out, "counter packets"); got != count {
					t.Errorf("%s has %d elements, want %d", table, got, count)
				}
			}
			verify(t, k)
			// Removing all but one, too.
			apply(t, k, 2, nil, list[1:])
			verify(t, k)
			if h := adopt(t, k); len(h.Elements) != 1 {
				t.Errorf("%d elements are left, want 1", len(h.Elements))
			}
		})
	}
}

// TestManyPrefixLengths has a masked set for every length there can be.
func TestManyPrefixLengths(t *testing.T) {
	n := newNetNS(t)
	k := adopted(t, n)
	var list []enforce.Element
	for bits := 1; bits <= 128; bits++ {
		list = append(list, enforce.Element{Prefix: netip.PrefixFrom(netip.MustParseAddr("fd00::1"), bits).Masked()})
		if bits <= 32 {
			list = append(list, enforce.Element{Prefix: netip.PrefixFrom(netip.MustParseAddr("200.100.50.1"), bits).Masked()})
		}
	}
	apply(t, k, 1, list, nil)
	verify(t, k)
	apply(t, k, 2, nil, list)
	verify(t, k)
	if got := n.run("nft", "list", "ruleset"); strings.Contains(got, "a4_24") {
		t.Error("an empty masked set is left")
	}
}

// TestTinyBuffers: with buffers that nothing fits, everything still gets in, and completely.
func TestTinyBuffers(t *testing.T) {
	n := newNetNS(t)
	var log strings.Builder
	k := open(t, n, func(o *Options) { o.BufferBytes = 1; o.Logger = testLogger(&log) })
	provoked := func(what string, errno unix.Errno) {
		t.Helper()
		verify(t, k)
		if !strings.Contains(log.String(), errno.Error()) {
			t.Errorf("%s did not provoke %q:\n%s", what, errno.Error(), log.String())
		}
		log.Reset()
		k.bufferBytes = 1
		if err := k.hangUp(); err != nil {
			t.Fatal(err)
		}
	}
	adopt(t, k)
	provoked("Adopt", unix.EMSGSIZE)
	apply(t, k, 1, addresses(20), nil) // the transaction fits, the answers of its reading back do not
	provoked("a small Apply", unix.ENOBUFS)
	apply(t, k, 2, addresses(3000), nil)
	provoked("a growth", unix.ENOBUFS)
	apply(t, k, 3, nil, addresses(3000))
	provoked("a large removal", unix.EMSGSIZE)
	if h := adopt(t, k); len(h.Elements) != 0 || h.Index != 3 {
		t.Errorf("%d elements at index %d", len(h.Elements), h.Index)
	}
}

// TestConnectionLost: the socket is closed under the driver.
func TestConnectionLost(t *testing.T) {
	n := newNetNS(t)
	k := adopted(t, n)
	apply(t, k, 1, story(), nil)
	if err := k.wire.close(); err != nil {
		t.Fatal(err)
	}
	apply(t, k, 2, elements(prefix("203.0.113.9")), nil)
	verify(t, k)
	if err := k.wire.close(); err != nil {
		t.Fatal(err)
	}
	if c, err := k.Counters(t.Context(), story()); err != nil || len(c) != len(story()) {
		t.Errorf("Counters over a closed socket: %d, %v", len(c), err)
	}
}

// TestHighDescriptor: an agent with many clients has descriptors beyond what select can wait for.
func TestHighDescriptor(t *testing.T) {
	n := newNetNS(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 2100 {
		t.Fatalf("limit of descriptors %d: %v", limit.Cur, err)
	}
	for {
		fd, err := unix.Dup(n.fd)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		if fd > 2000 {
			break
		}
	}
	k := adopted(t, n)
	apply(t, k, 1, story(), nil)
	verify(t, k)
}

// TestTableName: another name, of which one table exists already.
func TestTableName(t *testing.T) {
	n := newNetNS(t)
	k := open(t, n, func(o *Options) { o.Table = "palisade_two" })
	n.run("nft", "add", "table", "inet", "palisade_two")
	adopt(t, k)
	if out := n.run("nft", "list", "tables"); !strings.Contains(out, "bridge palisade_two") {
		t.Errorf("tables: %s", out)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{Table: "a b"}, {Table: "1"}, {ChunkElements: -1}, {ExactSize: 1 << 25}, {NetNS: -1}} {
		if _, err := Open(o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"taps", "macs", "a4_32", "a4_1", "a6_128", "a6_64.2", "taps.17"} {
		b, generation, ok := parseName(name)
		if !ok || b.name(generation) != name {
			t.Errorf("%s: %+v %d %t", name, b, generation, ok)
		}
	}
	for _, name := range []string{"", "tap", "a4_", "a4_0", "a4_33", "a4_032", "a6_129", "a4_32.", "a4_32.1", "a4_32.02", "a4_32.x", "a5_3", "enforced"} {
		if b, _, ok := parseName(name); ok {
			t.Errorf("%q is %v", name, b)
		}
	}
}

// TestNoPrivilege: without CAP_NET_ADMIN nothing changes, the error says what is missing, and the
// change comes through once the privilege is back.
func TestNoPrivilege(t *testing.T) {
	n := newNetNS(t)
	k := adopted(t, n)
	apply(t, k, 1, story(), nil)
	before := n.run("nft", "list", "ruleset")
	delta := enforce.Delta{Index: 2, Remove: story()}
	n.do(func() error { // on a thread of its own
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			return err
		}
		err := k.Apply(t.Context(), delta)
		if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Errorf("without privilege: %v", err)
		}
		return nil
	})
	if after := n.run("nft", "list", "ruleset"); after != before {
		t.Errorf("the ruleset changed to:\n%s", after)
	}
	if err := k.Apply(t.Context(), delta); err != nil {
		t.Error(err)
	}
	verify(t, k)
	if h := adopt(t, k); len(h.Elements) != 0 || h.Index != 2 {
		t.Errorf("%d elements at index %d", len(h.Elements), h.Index)
	}
}
