package fsm

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func packed(texts ...string) []byte {
	var list []netip.Prefix
	for _, s := range texts {
		list = append(list, prefix(s))
	}
	return slices.Concat(slices.Collect(setOf(list).Packed(1 << 20))...)
}

// upload puts a content in place.
func (l *log) upload(tb testing.TB, name string, texts ...string) *List {
	tb.Helper()
	l.ok(tb, BeginList{Upload: "up", Name: name, Origin: "test"})
	if len(texts) > 0 {
		l.ok(tb, AddListChunk{Upload: "up", Prefixes: packed(texts...)})
	}
	return l.ok(tb, CommitList{Upload: "up"}).List
}

func content(v *View, name string) (texts []string) {
	_, set, _ := v.List(name)
	for p := range set.All() {
		texts = append(texts, p.String())
	}
	return texts
}

func TestAnUploadIsSeenWhenItIsCommitted(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	first := log.upload(t, "feed", "192.0.2.0/24")
	log.ok(t, BeginList{Upload: "u2", Name: "feed"})
	log.ok(t, AddListChunk{Upload: "u2", Prefixes: packed("198.51.100.7/32")})
	log.ok(t, AddListChunk{Upload: "u2", Sequence: 1, Prefixes: packed("203.0.113.0/24", "2001:db8::/32")})
	log.ok(t, AddListChunk{Upload: "u2", Sequence: 1, Prefixes: packed("203.0.113.0/24", "2001:db8::/32")}) // a retry
	if got := content(s.View(), "feed"); !slices.Equal(got, []string{"192.0.2.0/24"}) {
		t.Fatalf("before the commit the list has %v", got)
	}
	log.refused(t, AddListChunk{Upload: "u2", Sequence: 3, Prefixes: packed("2001:db9::/32")}, CodeConflict, "sequence")
	log.refused(t, AddListChunk{Upload: "u2", Sequence: 2, Prefixes: packed("203.0.113.9/32")}, CodeInvalid, "prefixes")
	log.refused(t, AddListChunk{Upload: "u2", Sequence: 2}, CodeInvalid, "prefixes")
	log.refused(t, AddListChunk{Upload: "u2", Sequence: 2, Prefixes: []byte{32, 1}}, CodeInvalid, "prefixes")
	log.refused(t, AddListChunk{Upload: "none", Prefixes: packed("192.0.2.1/32")}, CodeNotFound, "upload")
	log.refused(t, BeginList{Upload: "u2", Name: "feed"}, CodeConflict, "upload")
	log.refused(t, CommitList{Upload: "u2", IfRevision: first.Revision + 1}, CodeRevision, "if_revision")
	l := log.ok(t, CommitList{Upload: "u2", IfRevision: first.Revision}).List
	if got := content(s.View(), "feed"); !slices.Equal(got, []string{"198.51.100.7/32", "203.0.113.0/24", "2001:db8::/32"}) {
		t.Fatalf("after the commit the list has %v", got)
	}
	if l.Size != 3 || l.Revision != log.index || l.Hash == first.Hash || !l.LoadedAt.Equal(log.time) {
		t.Errorf("the list is %+v", l)
	}
	log.refused(t, CommitList{Upload: "u2"}, CodeNotFound, "upload")

	// The same content again changes nothing.
	was := s.View()
	log.upload(t, "feed", "192.0.2.0/24")
	log.upload(t, "feed", "192.0.2.0/24")
	if n := len(s.View().events) - len(was.events); n != 1 {
		t.Errorf("two uploads of the same content made %d events", n)
	}
}

func TestPatchingCutsOut(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.upload(t, "feed", "10.0.0.0/24", "10.0.9.0/32")
	log.ok(t, PatchList{Name: "feed", Add: packed("10.0.0.1/32", "10.0.9.0/24"), Remove: packed("10.0.0.0/25")})
	want := []string{"10.0.0.1/32", "10.0.0.128/25", "10.0.9.0/24"}
	if got := content(s.View(), "feed"); !slices.Equal(got, want) {
		t.Errorf("the list has %v, want %v", got, want)
	}
	log.refused(t, PatchList{Name: "none"}, CodeNotFound, "name")
	log.refused(t, PatchList{Name: "feed", IfRevision: 1}, CodeRevision, "if_revision")
	log.refused(t, PatchList{Name: "feed", Add: append(packed("10.1.0.0/16"), packed("10.1.2.0/24")...)}, CodeInvalid, "add")
	log.refused(t, PatchList{Name: "feed", Remove: []byte{7, 10, 0, 0, 0}}, CodeInvalid, "remove")
	if r := log.ok(t, PatchList{Name: "feed", Remove: packed("172.16.0.0/12")}); r.List.Revision == r.Index {
		t.Error("a patch that changes nothing made a new revision")
	}
}

func TestAListThatIsHeldStays(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, DeclareVM{ID: "v1", Addresses: []netip.Prefix{prefix("192.0.2.9/32")}})
	log.refused(t, AddBlock{Target: Target{List: "feed"}}, CodeNotFound, "target.list")
	l := log.upload(t, "feed", "192.0.2.0/24")
	log.refused(t, AddBlock{Target: Target{List: "feed"}, Kind: Reject}, CodeInvalid, "kind")
	later := log.ok(t, AddBlock{Target: Target{List: "feed"}, Direction: Out, StartsAt: log.time.Add(1e12)}).Block
	log.refused(t, DeleteList{Name: "feed"}, CodeConflict, "name")
	log.ok(t, LiftBlock{ID: later.ID})
	b := log.ok(t, AddBlock{Target: Target{List: "feed"}, Direction: In}).Block
	log.refused(t, DeleteList{Name: "feed"}, CodeConflict, "name")
	vm, _ := s.View().VM("v1")
	if held := s.View().Holding(vm); len(held) != 1 || held[0].ID != b.ID {
		t.Errorf("the VM on the list is held by %v", held)
	}
	if i, _ := s.View().Impact(Target{List: "feed"}); i.CountVMs != 1 {
		t.Errorf("the list touches %d VMs, want 1", i.CountVMs)
	}
	if all := slices.Collect(s.View().HeldLists()); len(all) != 1 || all[0].ID != b.ID {
		t.Errorf("held lists: %v", all)
	}
	log.ok(t, LiftBlock{ID: b.ID})
	log.refused(t, DeleteList{Name: "feed", IfRevision: l.Revision + 100}, CodeRevision, "if_revision")
	log.ok(t, DeleteList{Name: "feed"})
	if _, _, ok := s.View().List("feed"); ok {
		t.Error("the list is still there")
	}
	log.refused(t, DeleteList{Name: "feed"}, CodeNotFound, "name")
}

func TestUploadsAreForgotten(t *testing.T) {
	log := newLog(NewStore())
	for i := range MaxUploads {
		log.ok(t, BeginList{Upload: fmt.Sprint("u", i), Name: "feed"})
	}
	log.ok(t, AddListChunk{Upload: "u0", Prefixes: packed("192.0.2.1/32")})
	log.ok(t, BeginList{Upload: "new", Name: "feed"})
	log.refused(t, CommitList{Upload: "u1"}, CodeNotFound, "upload") // silent for the longest time
	log.ok(t, AbortList{Upload: "u2"})
	log.ok(t, AbortList{Upload: "u2"})
	log.refused(t, AddListChunk{Upload: "u2", Prefixes: packed("192.0.2.1/32")}, CodeNotFound, "upload")
	if l := log.ok(t, CommitList{Upload: "u0"}).List; l.Size != 1 {
		t.Errorf("the list has %d prefixes", l.Size)
	}
}

func TestAListIsDescribed(t *testing.T) {
	log := newLog(NewStore())
	owner, note := "abuse desk", "two\nlines"
	src := ListSource{URL: "https://lists.example/drop.txt", Interval: MinListInterval, MaxBytes: 1 << 20}
	l := log.ok(t, DescribeList{Name: "feed", Owner: &owner, Source: &src}).List
	l = log.ok(t, DescribeList{Name: "feed", Note: &note, IfRevision: l.Revision}).List
	if l.Owner != owner || l.Note != note || l.Source != src || l.Size != 0 {
		t.Errorf("the list is %+v", l)
	}
	if l = log.ok(t, DescribeList{Name: "feed", Source: &ListSource{}}).List; l.Source != (ListSource{}) {
		t.Errorf("the source is still %+v", l.Source)
	}
	for field, bad := range map[string]ListSource{
		"source.url":       {URL: "ftp://x/y", Interval: MinListInterval, MaxBytes: 1},
		"source.interval":  {URL: "http://x/y", Interval: 1, MaxBytes: 1},
		"source.max_bytes": {URL: "file:///x/y", Interval: MinListInterval},
	} {
		log.refused(t, DescribeList{Name: "feed", Source: &bad}, CodeInvalid, field)
	}
	log.refused(t, DescribeList{Name: "a list"}, CodeInvalid, "name")
	for i := range MaxLists - 1 {
		log.ok(t, DescribeList{Name: fmt.Sprint("l", i)})
	}
	log.refused(t, DescribeList{Name: "onemore"}, CodeConflict, "name")
	log.refused(t, BeginList{Upload: "u", Name: "onemore"}, CodeConflict, "name")
}

func TestListsAreBounded(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, BeginList{Upload: "u", Name: "feed"})
	seq := uint32(0)
	for part := range sparse(MaxListPrefixes+20_000, 3).Packed(1 << 20) {
		r := log.do(t, AddListChunk{Upload: "u", Sequence: seq, Prefixes: part})
		if r.Err != nil {
			if r.Err.Code != CodeInvalid || r.Err.Field != "prefixes" {
				t.Fatal(r.Err)
			}
			log.ok(t, CommitList{Upload: "u"})
			if l, _, _ := s.View().List("feed"); l.Size > MaxListPrefixes {
				t.Errorf("the list has %d prefixes", l.Size)
			}
			return
		}
		seq++
	}
	t.Error("a list took more prefixes than a list may have")
}

// Replicas that applied the log, and one that was restored in its middle, hold the same lists, and what
// a slow model holds.
func TestListsAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := NewStore(), NewStore()
		log := newLog(a, b)
		lists := map[string]slowSet{}
		do := func(op Op) Result {
			log.index++
			data, err := MarshalCommand(Command{Time: log.time, Actor: "token:test", Op: op})
			if err != nil {
				t.Fatal(err)
			}
			var first Result
			for i, s := range []*Store{a, b} {
				r, err := s.ApplyBatch([]Entry{{log.index, data}})
				if err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					first = r[0]
				}
			}
			return first
		}
		name := rapid.SampledFrom([]string{"l1", "l2"})
		draw := func(what string) []netip.Prefix { return rapid.SliceOfN(crowded(4, 6), 0, 40).Draw(t, what) }
		pack := func(list []netip.Prefix) []byte { return slices.Concat(slices.Collect(setOf(list).Packed(1 << 20))...) }
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				n, list := name.Draw(t, "name"), draw("list")
				do(BeginList{Upload: "u", Name: n})
				seq := uint32(0)
				for part := range setOf(list).Packed(rapid.IntRange(20, 200).Draw(t, "part")) {
					if r := do(AddListChunk{Upload: "u", Sequence: seq, Prefixes: part}); r.Err != nil {
						t.Fatal(r.Err)
					}
					seq++
				}
				if r := do(CommitList{Upload: "u"}); r.Err != nil {
					t.Fatal(r.Err)
				}
				lists[n] = slowly(list)
			},
			"patch": func(t *rapid.T) {
				n, add, remove := name.Draw(t, "name"), draw("add"), draw("remove")
				was, known := lists[n]
				if r := do(PatchList{Name: n, Add: pack(add), Remove: pack(remove)}); (r.Err == nil) != known {
					t.Fatalf("%v, and the list is known: %t", r.Err, known)
				}
				if known {
					lists[n] = was.patch(add, remove)
				}
			},
			"delete": func(t *rapid.T) {
				n := name.Draw(t, "name")
				do(DeleteList{Name: n})
				delete(lists, n)
			},
			"leave an upload": func(t *rapid.T) {
				id := rapid.StringMatching("x[0-9]").Draw(t, "id")
				do(BeginList{Upload: id, Name: name.Draw(t, "name")})
				do(AddListChunk{Upload: id, Prefixes: pack(append(draw("left"), prefix("192.0.2.0/24")))})
			},
			"restore": func(t *rapid.T) {
				var image bytes.Buffer
				if err := a.View().WriteSnapshot(&image); err != nil {
					t.Fatal(err)
				}
				if err := b.Restore(&image); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				v := a.View()
				if h := b.View().Hash(); h != v.Hash() {
					t.Fatal("the replicas differ")
				}
				if v.sum != recomputed(v) {
					t.Fatal("the hash is not that of the objects")
				}
				if v.CountLists() != len(lists) {
					t.Fatalf("%d lists, want %d", v.CountLists(), len(lists))
				}
				for n, want := range lists {
					l, set, ok := v.List(n)
					if !ok || l.Size != len(want) || l.Hash != set.Hash() {
						t.Fatalf("list %s: %+v", n, l)
					}
					same(t, n, set, want)
				}
			},
		})
	})
}

// The content of a list is compared with its own hash, before the end of the snapshot is reached.
func TestADamagedListIsFound(t *testing.T) {
	s := NewStore()
	newLog(s).upload(t, "feed", "192.0.2.0/24", "198.51.100.0/24")
	image := snapshot(t, s.View())
	at := bytes.Index(image, packed("192.0.2.0/24"))
	if at < 0 {
		t.Fatal("the content is not in the snapshot")
	}
	image[at+3]++
	err := NewStore().Restore(bytes.NewReader(image))
	if err == nil || !strings.Contains(err.Error(), "content of list") {
		t.Errorf("a changed list was restored, or found late: %v", err)
	}
}

// TestAHeldListDoesNotBecomeWideByItself: neither by a patch nor by an upload, by addresses or by VMs; with
// force it does, and then it may go on to grow.
func TestAHeldListDoesNotBecomeWideByItself(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	settings := DefaultSettings()
	settings.MaxVMs, settings.MaxAddresses = 1, 512
	log.ok(t, PutSettings{Settings: settings})
	for i, addr := range []string{"192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32"} {
		log.ok(t, DeclareVM{ID: fmt.Sprint("v", i), Addresses: []netip.Prefix{prefix(addr)}})
	}
	upload := func(force bool, texts ...string) Result {
		log.ok(t, BeginList{Upload: "up", Name: "feed"})
		log.ok(t, AddListChunk{Upload: "up", Prefixes: packed(texts...)})
		r := log.do(t, CommitList{Upload: "up", Force: force})
		log.ok(t, AbortList{Upload: "up"})
		return r
	}
	tooMany := func(what string, r Result) {
		t.Helper()
		if r.Err == nil || r.Err.Code != CodeTooMany || !strings.Contains(r.Err.Detail, what) {
			t.Errorf("it was not refused for %s: %v", what, r.Err)
		}
	}
	log.ok(t, PutGuard{VM: "v2"})
	log.upload(t, "feed", "10.0.0.0/20")
	log.refused(t, AddBlock{Target: Target{List: "feed"}}, CodeTooMany, "target")
	log.upload(t, "feed", "10.0.0.0/24", "192.0.2.1/32", "192.0.2.3/32") // one VM is guarded
	b := log.ok(t, AddBlock{Target: Target{List: "feed"}, StartsAt: log.time.Add(1e12)}).Block
	before := content(s.View(), "feed")

	tooMany("512 addresses", log.do(t, PatchList{Name: "feed", Add: packed("10.0.2.0/23")}))
	tooMany("512 addresses", log.do(t, PatchList{Name: "feed", Add: packed("2001:db8::/54")}))
	tooMany("1 VMs", log.do(t, PatchList{Name: "feed", Add: packed("192.0.2.2/32")}))
	tooMany("512 addresses", upload(false, "10.0.0.0/20"))
	tooMany("1 VMs", upload(false, "192.0.2.0/30"))
	if got := content(s.View(), "feed"); !slices.Equal(got, before) {
		t.Fatalf("refused changes left %v", got)
	}
	if _, set, _ := s.View().List("feed"); s.View().Widened("feed", set) != nil || s.View().Widened("feed", setOf([]netip.Prefix{prefix("10.0.0.0/20")})) == nil {
		t.Error("a dry run does not say so")
	}
	log.ok(t, PatchList{Name: "feed", Add: packed("10.0.1.0/25")}) // not wide
	log.ok(t, PatchList{Name: "feed", Add: packed("192.0.2.2/32"), Force: true})
	tooMany("512 addresses", log.do(t, PatchList{Name: "feed", Add: packed("10.0.2.0/23")}))
	if r := upload(true, "10.0.0.0/20", "192.0.2.0/30"); r.Err != nil {
		t.Error(r.Err)
	}
	log.ok(t, PatchList{Name: "feed", Add: packed("10.1.0.0/16", "2001:db8::/32")})
	if i, _ := s.View().Impact(Target{List: "feed"}); i.Addresses != 4096+4+65536+1<<32 || i.CountVMs != 2 {
		t.Errorf("the list touches %d addresses and %d VMs", i.Addresses, i.CountVMs)
	}
	log.upload(t, "feed", "10.0.0.0/24")
	log.ok(t, LiftBlock{ID: b.ID})
	log.ok(t, PatchList{Name: "feed", Add: packed("10.0.0.0/8")}) // nothing holds it
}
