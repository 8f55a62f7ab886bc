package nft

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/enforce"
)

// TestCheckAndHeal: whatever another program does to our tables, Check finds it, with few elements and
// with many, and Heal makes it undone.
func TestCheckAndHeal(t *testing.T) {
	many := addresses(wholeCheck + 700)
	for _, c := range []struct {
		name, script string
		few          bool // found among few elements only
	}{
		{name: "everything flushed", script: `flush ruleset`},
		{name: "a table deleted", script: `delete table inet palisade`},
		{name: "a table asleep", script: `add table inet palisade { flags dormant; }`},
		{name: "a rule deleted", script: `flush chain inet palisade prerouting`},
		{name: "a rule of ARP deleted", script: `flush chain arp palisade output`},
		{name: "a rule added", script: `insert rule bridge palisade prerouting accept`},
		{name: "a chain with a policy", script: "add chain inet palisade output { type filter hook output priority -500; policy drop; }"},
		{name: "the chain of a limit emptied", script: `flush chain inet palisade limit_in_b3_8000000bits`},
		{name: "a set emptied", script: "flush set bridge palisade a4_32"},
		{name: "an element deleted in one table", script: `delete element inet palisade a4_32 { 10.7.0.2 }`},
		{name: "an element deleted in both", script: "delete element inet palisade a4_32 { 10.7.0.2 }\ndelete element bridge palisade a4_32 { 10.7.0.2 }"},
		{name: "a jump turned round", script: "delete element inet palisade limit_out_taps { \"vnet1\" }\nadd element inet palisade limit_out_taps { \"vnet1\" : jump limit_out_b4_100packets }"},
		{name: "a set of another type", script: "flush chain inet palisade prerouting\nflush chain inet palisade postrouting\ndelete set inet palisade taps\nadd set inet palisade taps { type ipv4_addr; size 1024; }"},
		{name: "a set more", script: "add set inet palisade a4_32.2 { type ipv4_addr; size 2048; counter; }"},
		{name: "the log index deleted", script: `flush set inet palisade enforced`},
		{name: "an innocent added", script: `add element inet palisade a4_32 { 192.0.2.77 }`, few: true},
	} {
		for _, size := range []int{0, len(many)} {
			if c.few && size > 0 {
				continue
			}
			t.Run(fmt.Sprintf("%s among %d", c.name, size), func(t *testing.T) {
				n := newNetNS(t)
				k := adopted(t, n, func(o *Options) { o.ExactSize = 4096 })
				held := slices.Concat(story(), kindStory(), many[:size])
				apply(t, k, 9, held, nil)
				check(t, k, true)
				n.runInput(c.script, "nft", "-f", "-")
				k.watch.rest = time.Time{}
				check(t, k, false)
				if err := k.Heal(t.Context()); err != nil {
					t.Fatal(err)
				}
				verify(t, k)
				check(t, k, true)
				if h := adopt(t, open(t, n)); len(h.Elements) != len(k.shadow) || h.Index != 9 {
					t.Errorf("%d elements at %d after healing, want %d at 9", len(h.Elements), h.Index, len(k.shadow))
				}
			})
		}
	}
}

func check(t *testing.T, k *Kernel, none bool) {
	t.Helper()
	d, err := k.Check(t.Context())
	if err != nil || d.None() != none {
		t.Fatalf("Check: %v, missing %d, unexpected %d, index %d, want %d, %q", err, len(d.Missing), len(d.Unexpected), d.Index, d.WantIndex, d.Problems)
	}
}

// TestCheckOfAQuietKernel: while nobody changes anything one number is asked for, and what others do
// elsewhere, and what this program does itself, is no difference.
func TestCheckOfAQuietKernel(t *testing.T) {
	n := newNetNS(t)
	k := adopted(t, n)
	many := addresses(2 * wholeCheck)
	apply(t, k, 1, slices.Concat(story(), kindStory(), many), nil)
	check(t, k, true)
	if k.watch.right != generation(t, k) {
		t.Error("the next look would compare everything again")
	}
	n.run("nft", "add", "table", "inet", "other")
	apply(t, k, 2, nil, many[:500])
	check(t, k, true)
	if k.watch.right == generation(t, k) {
		t.Error("elements were asked for again without a rest")
	}
	k.watch.rest = time.Time{}
	check(t, k, true)
	if k.watch.right != generation(t, k) {
		t.Error("the elements were not asked for after the rest")
	}
}

// TestCheckBesideChanges: elements that come and go while Check asks for them are no difference.
func TestCheckBesideChanges(t *testing.T) {
	n := newNetNS(t)
	k := adopted(t, n)
	many := addresses(4 * wholeCheck)
	apply(t, k, 1, many, nil)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		var err error
		for i := uint64(2); ctx.Err() == nil && err == nil; i += 2 {
			chunk := many[(i*37)%3900:][:50]
			err = k.Apply(context.WithoutCancel(ctx), enforce.Delta{Index: i, Remove: chunk})
			if err == nil {
				err = k.Apply(context.WithoutCancel(ctx), enforce.Delta{Index: i + 1, Add: chunk})
			}
		}
		failed <- err
	}()
	for range 10 {
		k.mu.Lock()
		k.watch.rest = time.Time{}
		k.mu.Unlock()
		check(t, k, true)
	}
	cancel()
	if err := <-failed; err != nil {
		t.Error(err)
	}
	verify(t, k)
}

// TestHealAfterAFailure: when healing itself fails it is done again, also after the marker was lost.
func TestHealAfterAFailure(t *testing.T) {
	n := newNetNS(t)
	k := adopted(t, n)
	apply(t, k, 7, story(), nil)
	n.run("nft", "flush", "ruleset")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := k.Heal(ctx); err == nil {
		t.Fatal("healed with a context that had ended")
	}
	check(t, k, true) // what failed is not found again
	if err := k.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	verify(t, k)
	if h := adopt(t, open(t, n)); h.Index != 7 || len(h.Elements) != len(story()) {
		t.Errorf("%d elements at %d", len(h.Elements), h.Index)
	}
}

// TestDescribe: what is in our tables, and what is not, is told.
func TestDescribe(t *testing.T) {
	n := newNetNS(t)
	k := adopted(t, n)
	apply(t, k, 9, slices.Concat(story(), kindStory(), addresses(describedElements)), nil)
	describe := func() string {
		var out strings.Builder
		if err := k.Describe(t.Context(), &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	text := describe()
	for _, want := range []string{
		"table bridge palisade, flags 0x0\n", "  chain prerouting, filter, hook 0, priority -500, policy 1: ", "  chain limit_in_b3_8000000bits: ",
		"  set a4_25: room for 64, ", " elements at log index 9\n", "\n  10.0.0.1\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if lines := strings.Count(text, "\n"); lines > describedElements+200 {
		t.Errorf("%d lines", lines)
	}
	n.run("nft", "delete", "table", "inet", "palisade")
	if text := describe(); !strings.Contains(text, "table inet palisade is missing\n") {
		t.Errorf("a table that is gone:\n%.300s", text)
	}
}
