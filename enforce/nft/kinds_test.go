package nft

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
)

// as gives elements a treatment. A treatment with a chain comes with it.
func as(t enforce.Treatment, list ...enforce.Element) []enforce.Element {
	list = slices.Clone(list)
	for i := range list {
		list[i].Treatment = t
	}
	if terms, _ := t.Terms(); terms.Chained() {
		list = append(list, enforce.Element{Treatment: t})
	}
	return list
}

// kindStory is elements of every kind of treatment, two of them on the same tap and address.
func kindStory() []enforce.Element {
	guest := elements(tap("vnet1"), mac("52:54:00:00:00:02"), prefix("10.7.0.2"), prefix("fd07::2"))
	return slices.Concat(
		as("in", guest...),
		as("out", prefix("10.9.0.128/25")),
		as("reject_in", guest...),
		as("reject_out", prefix("2001:db8::/32")),
		as("redirect_in", guest...), as("redirect_out", guest...),
		as("page_8081", prefix("10.7.0.2"), prefix("10.7.0.4/30"), prefix("fd07::2")),
		as("bridge_525400000701", tap("vnet1"), tap("vnet2")),
		as("here", mac("52:54:00:00:00:02"), mac("52:54:00:00:00:03")),
		as("ports_out_b1_6.25_17.53-60_132", guest...),
		as("ports_out_b2_6.465", guest...),
		as("limit_in_b3_8000000bits", tap("vnet1")),
		as("limit_out_b3_8000000bits", tap("vnet1")),
		as("limit_out_b4_100packets", tap("vnet1"), prefix("10.9.0.0/24"), prefix("fd09::/64")),
	)
}

// TestKindsGolden compares what nft lists with a file.
func TestKindsGolden(t *testing.T) {
	n := newNetNS(t)
	k := adopted(t, n)
	empty := n.run("nft", "list", "ruleset")
	apply(t, k, 1, kindStory(), nil)
	golden(t, "kinds.nft", n.run("nft", "list", "ruleset"))
	verify(t, k)
	apply(t, k, 1, nil, kindStory())
	after := n.run("nft", "list", "ruleset")
	if after = markerLine.ReplaceAllString(after, ""); after != empty {
		t.Errorf("the tables are not as they were:\n%s", after)
	}
	verify(t, k)
}

// TestKindsRestart: a new process adopts all kinds, and writes nothing.
func TestKindsRestart(t *testing.T) {
	n := newNetNS(t)
	first := adopted(t, n, func(o *Options) { o.ChunkElements = 3 })
	apply(t, first, 41, slices.Concat(story(), kindStory()), nil)
	apply(t, first, 42, nil, as("ports_out_b1_6.25_17.53-60_132", kindStory()[:4]...))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := open(t, n)
	before := generation(t, second)
	h := adopt(t, second)
	want := len(story()) + len(kindStory()) - 5
	if !h.Intact || h.Index != 42 || len(h.Elements) != want {
		t.Errorf("after a restart: intact %t, index %d, %d elements, want %d", h.Intact, h.Index, len(h.Elements), want)
	}
	apply(t, second, 42, kindStory()[:8], as("ports_out_b1_6.25_17.53-60_132", kindStory()[:4]...))
	if g := generation(t, second); g != before {
		t.Errorf("%d transactions were written", g-before)
	}
	verify(t, second)
	// The first slot is free again, and the second is in use.
	apply(t, second, 43, as("ports_out_b9_6.26", tap("vnet1")), nil)
	apply(t, second, 44, nil, as("ports_out_b2_6.465", kindStory()[:4]...))
	verify(t, second)
	if h := adopt(t, adopted(t, n)); !h.Intact {
		t.Error("not intact")
	}
}

// TestKindsTampered: what another program did to the tables is found, and repaired to what it was.
func TestKindsTampered(t *testing.T) {
	for _, script := range []string{
		`flush chain inet palisade limit_in_b3_8000000bits`,
		`flush chain bridge palisade ports_out_b1_6.25_17.53-60_132`,
		"flush chain bridge palisade limit_in_b3_8000000bits\nadd rule bridge palisade limit_in_b3_8000000bits limit rate over 9000000 bytes/second burst 131072 bytes counter drop",
		`insert rule bridge palisade prerouting_answer accept`,
		`flush chain bridge palisade page`,
		`flush chain inet palisade page_nat`,
		"flush chain inet palisade page_nat\ndelete chain inet palisade page_nat",
		`delete element inet palisade limit_out_taps { "vnet1" }`,
		"delete element inet palisade limit_out_taps { \"vnet1\" }\nadd element inet palisade limit_out_taps { \"vnet1\" : jump limit_out_b4_100packets }",
		`add chain inet palisade limit_in_b99_8bits`,
		`delete element bridge palisade redirect_in_macs { 52:54:00:00:00:02 }` + "\n" + `add element bridge palisade redirect_in_macs { 52:54:00:00:00:02 }`,
		`delete table inet palisade`,
		`add element bridge palisade ports_out_taps { "other" : drop }`,
	} {
		t.Run(script[:min(len(script), 60)], func(t *testing.T) {
			n := newNetNS(t)
			k := adopted(t, n)
			apply(t, k, 9, kindStory(), nil)
			n.runInput(script, "nft", "-f", "-")
			h := adopt(t, open(t, n))
			for _, e := range kindStory() {
				if _, ok := h.Elements[e]; !ok {
					t.Errorf("lost %v", e)
				}
			}
			delete(h.Elements, enforce.Element{Treatment: "limit_in_b99_8bits"})
			if len(h.Elements) != len(kindStory()) {
				t.Errorf("held %d, want %d", len(h.Elements), len(kindStory()))
			}
			if h := adopt(t, open(t, n)); !h.Intact && h.Index != 0 {
				t.Error("not intact after the repair")
			}
		})
	}
}

// TestMissing: this kernel has all kinds; asking changes nothing, and what is missing is named.
func TestMissing(t *testing.T) {
	n := newNetNS(t)
	k := adopted(t, n)
	before := generation(t, k)
	if missing, err := k.Missing(t.Context()); err != nil || len(missing) > 0 {
		t.Errorf("missing %v, %v", missing, err)
	}
	if generation(t, k) != before {
		t.Error("something was written")
	}
	wrong := chain{family: bridge, name: "first", sort: "nat", hook: unix.NF_INET_PRE_ROUTING} // no bridge has NAT
	err := k.wire.try(t.Context(), "palisade_probe", []need{{wrong, rule{do: drop}.exprs(bridge)}})
	if refused := (*refusedError)(nil); !errors.As(err, &refused) {
		t.Errorf("a chain that the kernel can't have: %v", err)
	}
}

// TestKindsGrow: maps grow with what their elements jump to, and hundreds of chains are in one change.
func TestKindsGrow(t *testing.T) {
	n := newNetNS(t)
	k := adopted(t, n, func(o *Options) { o.TapSize = 4; o.ChunkElements = 100 })
	var all []enforce.Element
	for i := range 300 {
		list := as(enforce.Treatment(fmt.Sprintf("limit_out_b%d_8000bits", i+1)), prefix(fmt.Sprintf("10.1.%d.%d", i/100, i%100)), prefix("10.2.0.0/24"))
		if i > 40 { // so many limits on one prefix
			list = slices.Delete(list, 1, 2)
		}
		all = append(all, list...)
	}
	apply(t, k, 1, all[:9], nil)
	apply(t, k, 2, all, nil)
	verify(t, k)
	if h := adopt(t, open(t, n)); !h.Intact || len(h.Elements) != len(all) {
		t.Errorf("intact %t, %d of %d", h.Intact, len(h.Elements), len(all))
	}
	apply(t, k, 3, nil, all)
	verify(t, k)
	if out := n.run("nft", "list", "ruleset"); strings.Contains(out, "limit") {
		t.Errorf("left over:\n%s", out)
	}
}
