package nft

import (
	"fmt"
	"testing"
	"time"

	"github.com/palisade/palisade/enforce"
)

// TestUnderLoad changes everything around a block while packets of the blocked guest and of innocents
// flow on all kinds of path: none of the former may pass, none of the latter may be lost.
func TestUnderLoad(t *testing.T) {
	b := newTestbed(t)
	k := adopted(t, b.host.ns, func(o *Options) { o.ExactSize = 16; o.MaskedSize = 2 })
	block := elements(prefix("10.7.0.2"), prefix("fd07::2"))
	apply(t, k, 1, block, nil)
	index := uint64(1)
	change := func(add, remove []enforce.Element) {
		t.Helper()
		index++
		apply(t, k, index, add, remove)
	}
	count := func() uint64 {
		t.Helper()
		counters, err := k.Counters(t.Context(), block)
		if err != nil {
			t.Fatal(err)
		}
		return counters[block[0]].Packets + counters[block[1]].Packets
	}

	for _, c := range []struct {
		name string
		do   func()
	}{
		{"other blocks come and go", func() {
			for range 300 {
				change(vmBlock(), nil)
				change(nil, vmBlock())
			}
		}},
		{"the set grows eleven times, and more is loaded", func() {
			list := addresses(30_000)
			for i := 0; i < len(list); {
				n := max(20, i)
				change(list[i:min(i+n, len(list))], nil)
				i += n
			}
			change(nil, list)
		}},
		{"prefix lengths come and go", func() {
			for i := range 100 {
				list := elements(prefix("172.16.0.0/12"), prefix(fmt.Sprintf("100.%d.0.0/%d", i, 17+i%8)), prefix("2001:db8::/32"))
				change(list, nil)
				change(nil, list)
			}
		}},
		{"masked sets grow", func() {
			var list []enforce.Element
			for i := range 200 {
				list = append(list, prefix(fmt.Sprintf("100.64.%d.0/24", i)))
			}
			for _, e := range list {
				change(elements(e), nil)
			}
			change(nil, list)
		}},
		{"the block passes from address to prefix and back, one element a transaction", func() {
			k.opts.ChunkElements = 1
			for range 20 {
				around := elements(prefix("10.7.0.2/31"), prefix("fd07::2/127"))
				change(around, block)
				change(block, around)
			}
			k.opts.ChunkElements = 1000
		}},
		{"agents restart", func() {
			for range 20 {
				if h := adopt(t, open(t, b.host.ns)); !h.Intact {
					t.Error("not intact")
				}
			}
		}},
		{"rules are repaired", func() {
			for range 20 {
				b.host.ns.run("nft", "add rule inet palisade prerouting counter; add rule bridge palisade prerouting counter; add set inet palisade a4_32.77 { type ipv4_addr; }")
				if h := adopt(t, k); h.Intact {
					t.Error("intact")
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			blocked := []*flow{b.flow(b.blocked, b.innocent, false), b.flow(b.outside, b.blocked, false), b.flow(b.innocent, b.blocked, true)}
			innocent := []*flow{b.flow(b.innocent, b.outside, false), b.flow(b.outside, b.innocent, true), b.flow(b.routed, b.innocent, false)}
			before := count()
			stop := flood(append(blocked, innocent...)...)
			waitFor(t, "packets flow", func() bool { return innocent[0].to.received(innocent[0].id) > 0 })
			for start := time.Now(); time.Since(start) < time.Second; {
				c.do()
			}
			stop()
			total := 0
			for _, f := range blocked {
				total += f.sent
				if n := f.to.received(f.id); n != 0 {
					t.Errorf("%v: %d of %d leaked", f, n, f.sent)
				}
			}
			for _, f := range innocent {
				total += f.sent
				for late := time.Now().Add(time.Second); f.lost() > 0 && time.Now().Before(late); {
					time.Sleep(time.Millisecond)
				}
				if f.lost() != 0 {
					t.Errorf("%v: %d of %d lost", f, f.lost(), f.sent)
				}
			}
			after := count()
			t.Logf("%d packets watched, counters at %d", total, after)
			if after < before && c.name != "the block passes from address to prefix and back, one element a transaction" {
				t.Errorf("the counters went back from %d to %d", before, after)
			}
			verify(t, k)
		})
	}
}

// TestCountersSurviveGrowth: the new set takes the counters along.
func TestCountersSurviveGrowth(t *testing.T) {
	b := newTestbed(t)
	k := adopted(t, b.host.ns, func(o *Options) { o.ExactSize = 4 })
	block := elements(prefix("10.7.0.2"))
	apply(t, k, 1, block, nil)
	b.flow(b.blocked, b.innocent, false).send(25)
	want := enforce.Counter{Packets: 25, Bytes: 25 * (20 + 8 + 16)}
	check := func(when string) {
		t.Helper()
		got, err := k.Counters(t.Context(), block)
		if err != nil || got[block[0]] != want {
			t.Errorf("%s: %+v, want %+v (%v)", when, got[block[0]], want, err)
		}
	}
	check("before")
	apply(t, k, 2, addresses(100), nil)
	check("after growth")
	if name := k.sets[setID{bridge, base{kind: kind4, bits: 32}}].name; name == "a4_32" {
		t.Fatal("the set did not grow")
	}
	k = adopted(t, b.host.ns)
	check("after a restart")
}
