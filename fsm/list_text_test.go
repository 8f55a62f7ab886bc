package fsm

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestListText(t *testing.T) {
	text := "# a feed\n\n192.0.2.0/24 ; SBL1\n192.0.2.7\r\n  2001:db8::/32\t# twice\n2001:db8::/32\n" +
		"192.0.2.1/24\nnonsense\n10.0.0.0/7\n::ffff:198.51.100.1\nfe80::1%eth0\n198.51.100.9"
	var p ListParser
	if err := p.ReadText(strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	set, merged := p.Set()
	var got []string
	for e := range set.All() {
		got = append(got, e.String())
	}
	if want := []string{"192.0.2.0/24", "198.51.100.1/32", "198.51.100.9/32", "2001:db8::/32"}; !slices.Equal(got, want) {
		t.Errorf("the list has %v, want %v", got, want)
	}
	if merged != 2 || p.Bad != 4 {
		t.Errorf("%d merged and %d bad, want 2 and 4", merged, p.Bad)
	}
	var lines []int
	for _, problem := range p.Problems {
		lines = append(lines, problem.Line)
		if problem.Text == "" || problem.Detail == "" {
			t.Errorf("line %d is not explained: %+v", problem.Line, problem)
		}
	}
	if !slices.Equal(lines, []int{7, 8, 9, 11}) {
		t.Errorf("bad lines %v", lines)
	}
	var many ListParser
	if err := many.ReadText(strings.NewReader(strings.Repeat("x\n", 500))); err != nil || many.Bad != 500 || len(many.Problems) != MaxListProblems {
		t.Errorf("%d bad, %d told, %v", many.Bad, len(many.Problems), err)
	}
	var long ListParser
	if err := long.ReadText(strings.NewReader("192.0.2.1\n" + strings.Repeat("x", 100_000))); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a line without end: %v", err)
	}
}

// Both ways of replacing a content lead to the same list.
func TestUploadAndPatchLeadToTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) PrefixSet { return setOf(rapid.SliceOfN(crowded(4, 6), 0, 60).Draw(t, name)) }
		was, is := draw("was"), draw("is")
		op, ok := PatchFrom(&List{Name: "feed"}, was, is)
		if !ok {
			t.Fatal("a small change does not fit an op")
		}
		add, err := PrefixSet{}.appendPacked(op.Add)
		if err != nil {
			t.Fatal(err)
		}
		remove, err := PrefixSet{}.appendPacked(op.Remove)
		if err != nil {
			t.Fatal(err)
		}
		if was.Patch(add, remove).Hash() != is.Hash() {
			t.Fatal("the patch leads to another content")
		}
		var up PrefixSet
		for op := range UploadOps("u", "feed", "", is) {
			if c, chunk := op.(AddListChunk); chunk {
				if up, err = up.appendPacked(c.Prefixes); err != nil {
					t.Fatal(err)
				}
			}
		}
		if up.Hash() != is.Hash() || string(is.Pack()) != string(slices.Concat(slices.Collect(is.Packed(10))...)) {
			t.Fatal("the upload leads to another content")
		}
	})
	if _, ok := PatchFrom(&List{}, PrefixSet{}, sparse(MaxListPatch+100, 5)); ok {
		t.Error("a patch of more prefixes than allowed")
	}
}

func FuzzListText(f *testing.F) {
	f.Add("192.0.2.0/24 # x\n2001:db8::1\nbad")
	f.Add("::ffff:1.2.3.4/96\n0.0.0.0/0\n10.1.2.3/8;")
	f.Fuzz(func(t *testing.T, text string) {
		var p ListParser
		if p.ReadText(strings.NewReader(text)) != nil {
			return
		}
		set, _ := p.Set()
		if again, err := (PrefixSet{}).appendPacked(set.Pack()); err != nil || again.Hash() != set.Hash() {
			t.Fatalf("what was read can't be kept: %v", err)
		}
	})
}
