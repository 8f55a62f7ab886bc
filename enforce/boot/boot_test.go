package boot_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/boot"
	"github.com/palisade/palisade/fsm"
)

func prefix(s string) enforce.Element { return enforce.Element{Prefix: netip.MustParsePrefix(s)} }

func set(list ...enforce.Element) map[enforce.Element]struct{} {
	m := make(map[enforce.Element]struct{})
	for _, e := range list {
		m[e] = struct{}{}
	}
	return m
}

// elements of every kind and with every treatment.
func elements() *rapid.Generator[enforce.Element] {
	treatments := []enforce.Treatment{"", "in", "reject_out", "limit_in_b17_8000bits", "ports_out_b17_6.25_17.53-60", "page_8079", "here"}
	return rapid.Custom(func(t *rapid.T) enforce.Element {
		e := enforce.Element{Treatment: rapid.SampledFrom(treatments).Draw(t, "treatment")}
		switch rapid.IntRange(0, 4).Draw(t, "kind") {
		case 0:
			e.Tap = rapid.StringMatching(`vnet[0-9]{1,3}`).Draw(t, "tap")
		case 1:
			e.MAC = fsm.MAC{2, 0, 0, 0, rapid.Byte().Draw(t, "b"), 1}
		case 2:
			e.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, rapid.Byte().Draw(t, "b"), rapid.Byte().Draw(t, "b")}), rapid.IntRange(8, 32).Draw(t, "bits")).Masked()
		case 3:
			e.Prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: rapid.Byte().Draw(t, "b")}), rapid.IntRange(16, 128).Draw(t, "bits")).Masked()
		default:
			e.Treatment = "limit_out_b3_9packets"
		}
		return e
	})
}

// What was written is read back, whatever came in between.
func TestBlocksAreReadBack(t *testing.T) {
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		dir := filepath.Join(t.TempDir(), strconv.Itoa(n))
		w := boot.NewBlocksWriter(dir)
		held := set(rapid.SliceOf(elements()).Draw(rt, "held")...)
		index := uint64(1)
		for range rapid.IntRange(1, 6).Draw(rt, "writes") {
			index += 3
			if w.Full() || rapid.Bool().Draw(rt, "anew") {
				if err := w.Begin(boot.Blocks{Index: index, Elements: held}); err != nil {
					rt.Fatal(err)
				}
				continue
			}
			d := enforce.Delta{Index: index}
			for _, e := range rapid.SliceOf(elements()).Draw(rt, "change") {
				if _, there := held[e]; there {
					d.Remove = append(d.Remove, e)
					delete(held, e)
				} else {
					d.Add = append(d.Add, e)
					held[e] = struct{}{}
				}
			}
			// A frame adds before it removes.
			d.Add = kept(d.Add, held)
			d.Remove = gone(d.Remove, held)
			if err := w.Append(d); err != nil {
				rt.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			rt.Fatal(err)
		}
		got, err := boot.ReadBlocks(dir)
		if err != nil || got.Damaged != nil || got.Unknown != 0 || got.Index != index || !maps.Equal(got.Elements, held) {
			rt.Fatalf("read index %d with %d elements (%v, %v), want index %d with %d", got.Index, len(got.Elements), got.Damaged, err, index, len(held))
		}
	})
}

func kept(list []enforce.Element, held map[enforce.Element]struct{}) (out []enforce.Element) {
	for _, e := range list {
		if _, ok := held[e]; ok {
			out = append(out, e)
		}
	}
	return out
}

func gone(list []enforce.Element, held map[enforce.Element]struct{}) (out []enforce.Element) {
	for _, e := range list {
		if _, ok := held[e]; !ok {
			out = append(out, e)
		}
	}
	return out
}

// Of a file that was cut off or changed anywhere, what is read is what stood at one time, or it is damaged: never a
// mixture, and never nothing without an error.
func TestDamageIsNoticed(t *testing.T) {
	dir := t.TempDir()
	w := boot.NewBlocksWriter(dir)
	held := set(prefix("10.0.0.1/32"), prefix("10.0.0.2/32"))
	states := map[uint64]map[enforce.Element]struct{}{1: maps.Clone(held)}
	if err := w.Begin(boot.Blocks{Index: 1, Elements: held}); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(3) {
		d := enforce.Delta{Index: i + 2, Add: []enforce.Element{prefix(fmt.Sprintf("10.1.0.%d/32", i))}, Remove: []enforce.Element{prefix(fmt.Sprintf("10.0.0.%d/32", i+1))}}
		if err := w.Append(d); err != nil {
			t.Fatal(err)
		}
		held[d.Add[0]] = struct{}{}
		delete(held, d.Remove[0])
		states[d.Index] = maps.Clone(held)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "blocks.1")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	look := func(what string, content []byte, cut bool) {
		t.Helper()
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := boot.ReadBlocks(dir)
		var damaged *boot.DamagedError
		switch {
		case errors.As(err, &damaged):
			if len(damaged.Files) != 1 || damaged.Files[0] != file {
				t.Errorf("%s: %v names the wrong files", what, err)
			}
		case err != nil:
			t.Errorf("%s: %v", what, err)
		case !maps.Equal(got.Elements, states[got.Index]):
			t.Errorf("%s: at index %d it reads %v", what, got.Index, got.Elements)
		case !cut && got.Index != 4 && got.Damaged == nil:
			// A length that was made larger looks as if the rest was never written.
			if !strings.Contains(what, "length") {
				t.Errorf("%s: index %d is read and no damage told", what, got.Index)
			}
		}
	}
	for n := range whole {
		look(fmt.Sprintf("cut off at %d", n), whole[:n], true)
	}
	for n := range whole {
		bad := bytes.Clone(whole)
		bad[n] ^= 0x41
		look(fmt.Sprintf("byte %d changed, a length or not", n), bad, false)
	}
}

// A newest file that is damaged gives way to the one before; more than two are never kept.
func TestTheGenerationBefore(t *testing.T) {
	dir := t.TempDir()
	if _, err := boot.ReadBlocks(dir); !errors.Is(err, boot.ErrNone) {
		t.Fatalf("an empty directory: %v", err)
	}
	w := boot.NewBlocksWriter(dir)
	for i := range uint64(4) {
		if err := w.Begin(boot.Blocks{Index: i + 1, Elements: set(prefix(fmt.Sprintf("10.0.0.%d/32", i)))}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Append(enforce.Delta{Index: 9, Add: []enforce.Element{prefix("10.9.0.0/16")}}); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) != 2 {
		t.Errorf("the files are %v, %v", names, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "blocks.4"), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := boot.ReadBlocks(dir)
	if err != nil || got.Index != 3 || got.Damaged == nil || !strings.Contains(got.Damaged.Error(), "blocks.4") {
		t.Errorf("read index %d, damage %v, error %v", got.Index, got.Damaged, err)
	}
	if err := os.Truncate(filepath.Join(dir, "blocks.3"), 0); err != nil {
		t.Fatal(err)
	}
	var damaged *boot.DamagedError
	if _, err := boot.ReadBlocks(dir); !errors.As(err, &damaged) || len(damaged.Files) != 2 {
		t.Errorf("both damaged: %v", err)
	}
}

// The file does not grow for ever.
func TestAFullFileIsWrittenAnew(t *testing.T) {
	w := boot.NewBlocksWriter(t.TempDir())
	if err := w.Begin(boot.Blocks{Index: 1}); err != nil {
		t.Fatal(err)
	}
	changes := 0
	for ; !w.Full(); changes++ {
		if changes > 1_000_000 {
			t.Fatal("it is never full")
		}
		d := enforce.Delta{Index: uint64(changes + 2)}
		for i := range 1000 {
			d.Add = append(d.Add, prefix(fmt.Sprintf("10.%d.%d.0/24", changes%250, i%250)))
		}
		if err := w.Append(d); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Begin(boot.Blocks{Index: 99}); err != nil || w.Full() {
		t.Errorf("begun anew: full %t, %v", w.Full(), err)
	}
	_ = w.Close()
}

func FuzzReadBlocks(f *testing.F) {
	dir := f.TempDir()
	w := boot.NewBlocksWriter(dir)
	err := errors.Join(w.Begin(boot.Blocks{Index: 7, Elements: set(prefix("10.0.0.0/8"), enforce.Element{Tap: "vnet0"}, enforce.Element{MAC: fsm.MAC{2}, Treatment: "in"})}),
		w.Append(enforce.Delta{Index: 8, Remove: []enforce.Element{prefix("10.0.0.0/8")}}), w.Close())
	seed, rerr := os.ReadFile(filepath.Join(dir, "blocks.1"))
	if err != nil || rerr != nil {
		f.Fatal(err, rerr)
	}
	f.Add(seed)
	f.Add([]byte{})
	dir = f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, kind := range []string{"blocks.1", "lists.1"} {
			if err := os.WriteFile(filepath.Join(dir, kind), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := boot.ReadBlocks(dir); err == nil {
			for e := range got.Elements {
				if _, ok := e.Treatment.Terms(); !ok {
					t.Errorf("the treatment of %v is not known", e)
				}
			}
		}
		_, _ = boot.ReadLists(dir, nil)
	})
}
