package boot_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/boot"
	"github.com/palisade/palisade/fsm"
)

// held returns what a node must drop because of a list with these prefixes, and a guard inside of one.
func held(t *testing.T, guard string, prefixes ...string) *enforce.Lists {
	t.Helper()
	var b fsm.PrefixSetBuilder
	for _, p := range prefixes {
		b.Add(netip.MustParsePrefix(p))
	}
	set, _ := b.Set()
	store := fsm.NewStore()
	var entries []fsm.Entry
	put := func(op fsm.Op) {
		data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(1, 0), Actor: "test", Op: op})
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, fsm.Entry{Index: uint64(len(entries) + 1), Data: data})
	}
	put(fsm.PutGuard{Prefix: netip.MustParsePrefix(guard)})
	put(fsm.BeginList{Upload: "u", Name: "feed"})
	seq := uint32(0)
	for part := range set.Packed(1 << 20) {
		put(fsm.AddListChunk{Upload: "u", Sequence: seq, Prefixes: part})
		seq++
	}
	put(fsm.CommitList{Upload: "u"})
	put(fsm.AddBlock{Target: fsm.Target{List: "feed"}, Direction: fsm.Out, Force: true})
	results, err := store.ApplyBatch(entries)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		if r.Err != nil {
			t.Fatalf("entry %d: %v", i+1, r.Err)
		}
	}
	return enforce.CompileLists(store.View(), enforce.Local{Node: "n1", Guards: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}})
}

func count(l *enforce.Lists) (n int) {
	for range l.All() {
		n++
	}
	return n
}

// Lists are read back equal, guards included: an agent that finds them in its kernel has nothing to write.
func TestListsAreReadBack(t *testing.T) {
	dir := t.TempDir()
	if _, err := boot.ReadLists(dir, nil); !errors.Is(err, boot.ErrNone) {
		t.Fatalf("an empty directory: %v", err)
	}
	l := held(t, "198.51.100.7/32", "198.51.100.0/24", "203.0.113.9/32", "2001:db8::/64")
	if err := boot.WriteLists(dir, l, 42); err != nil {
		t.Fatal(err)
	}
	got, err := boot.ReadLists(dir, nil)
	if err != nil || got.Damaged != nil {
		t.Fatal(err, got.Damaged)
	}
	if got.Lists.Hash() != l.Hash() || got.Lists.Index() != 42 || count(got.Lists) != count(l) || count(l) < 10 {
		t.Errorf("read %d elements at %d, want %d", count(got.Lists), got.Lists.Index(), count(l))
	}
	for e, added := range enforce.ListChanges(l, got.Lists) {
		t.Errorf("%v differs: %t", e, added)
	}

	// A guard that the file does not know is left out, and said to be by the hash.
	guarded, err := boot.ReadLists(dir, []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")})
	if err != nil || guarded.Lists.Contains(enforce.ListElement{Direction: fsm.Out, Prefix: netip.MustParsePrefix("203.0.113.9/32")}) || guarded.Lists.Hash() == l.Hash() {
		t.Errorf("with another guard: %v", err)
	}
}

func TestDamagedListsGiveWayToTheOnesBefore(t *testing.T) {
	dir := t.TempDir()
	first, second := held(t, "198.51.100.7/32", "198.51.100.0/24"), held(t, "198.51.100.7/32", "203.0.113.0/24")
	for i, l := range []*enforce.Lists{first, second} {
		if err := boot.WriteLists(dir, l, uint64(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "lists.2")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		bad := append([]byte{}, whole...)
		bad[n] ^= 0x55
		for what, content := range map[string][]byte{"cut off": whole[:n], "changed": bad} {
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := boot.ReadLists(dir, nil)
			if err != nil || got.Damaged == nil || got.Lists.Hash() != first.Hash() {
				t.Fatalf("%s at %d: %v, damage %v", what, n, err, got.Damaged)
			}
		}
	}
}

// A million prefixes are written and read in a moment.
func TestAMillionPrefixes(t *testing.T) {
	list := make([]string, 0, 1_000_000)
	for i := range 1_000_000 {
		list = append(list, fmt.Sprintf("%d.%d.%d.%d/32", 20+i>>20, i>>12&0xff, i>>4&0xff, i&0xf*16+1))
	}
	l := held(t, "198.51.100.7/32", list...)
	dir := t.TempDir()
	begin := time.Now()
	if err := boot.WriteLists(dir, l, 1); err != nil {
		t.Fatal(err)
	}
	wrote := time.Since(begin)
	begin = time.Now()
	got, err := boot.ReadLists(dir, nil)
	if err != nil || got.Lists.Hash() != l.Hash() {
		t.Fatal(err)
	}
	info, err := os.Stat(got.File)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d prefixes: %d bytes, written in %v, read in %v", count(l), info.Size(), wrote, time.Since(begin))
	if info.Size() > 8_000_000 {
		t.Errorf("the file has %d bytes", info.Size())
	}
}
