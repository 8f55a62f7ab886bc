package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// auditRecord is a line of the audit as a reader sees it.
type auditRecord struct {
	Seq     uint64
	Prev    string
	Index   uint64
	Time    time.Time
	Actor   string
	From    string
	Action  string
	Object  string
	Asked   json.RawMessage
	Before  json.RawMessage
	After   json.RawMessage
	Outcome string
}

// fataler is what a test and a property have in common.
type fataler interface {
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// audited reads the audit of a view that has forgotten none of it, and follows its chain.
func audited(tb fataler, v *View) []auditRecord {
	lines, complete := v.AuditSince(0)
	if !complete {
		tb.Fatal("the audit is not complete")
	}
	var chain AuditChain
	var out []auditRecord
	for _, line := range lines {
		if err := chain.Next(line); err != nil {
			tb.Fatal(err)
		}
		var r auditRecord
		if err := json.Unmarshal(line, &r); err != nil {
			tb.Fatalf("%v: %s", err, line)
		}
		if r.Seq != chain.Seq || r.Index == 0 || r.Action == "" || r.Outcome == "" {
			tb.Fatalf("record %d is not whole: %s", chain.Seq, line)
		}
		out = append(out, r)
	}
	if chain != v.AuditHead() {
		tb.Fatalf("the chain ends at %d, the head is %d", chain.Seq, v.AuditHead().Seq)
	}
	return out
}

// TestTheAuditTellsEverything applies random commands and compares the audit with the events and
// refusals: each has its record, and each record begins where the one before of its object ended.
func TestTheAuditTellsEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		wide := limits{results: 6, over: 3, events: 1 << 20, audits: 1 << 20}
		lived, restored := newStore(wide), newStore(wide)
		refused := 0
		for i := range rapid.IntRange(1, 60).Draw(t, "entries") {
			ops := rapid.SliceOfN(rapid.OneOf(genOp(i), genFleetOp(uint64(i+1))), 1, 4).Draw(t, "ops")
			data, err := MarshalCommand(Command{Actor: "token:a", Time: time.Unix(int64(1_700_000_000+i), 0), Op: Batch{Ops: ops}})
			if err != nil {
				t.Fatal(err)
			}
			var results []Result
			for _, s := range []*Store{lived, restored} {
				if results, err = s.ApplyBatch([]Entry{{uint64(i + 1), data}}); err != nil {
					t.Fatal(err)
				}
			}
			for j, item := range results[0].Items {
				_, told := ops[j].(RefusedLogins)
				if action, _, _ := askedFor(ops[j]); (item.Err != nil || told) && action != "" {
					refused++
				}
			}
			if i%7 == 6 {
				var b bytes.Buffer
				if err := lived.View().WriteSnapshot(&b); err != nil {
					t.Fatal(err)
				}
				if err := restored.Restore(&b); err != nil {
					t.Fatal(err)
				}
			}
		}
		if a, b := lived.View(), restored.View(); a.AuditHead() != b.AuditHead() || a.Hash() != b.Hash() {
			t.Fatalf("audit of a restored node ends at %d, of one that lived at %d", b.AuditHead().Seq, a.AuditHead().Seq)
		}
		records := audited(t, lived.View())
		events, _ := lived.View().eventsSince(0)
		events = slices.DeleteFunc(slices.Clone(events), func(e Event) bool { return auditAction(e.Type) == "" })
		j, defaults := &auditJSON{b: []byte("{")}, DefaultSettings()
		j.settings("", &defaults)
		last := map[string]string{"settings ": string(j.b[1:])} // the only object that was always there
		inVain := 0
		for _, r := range records {
			if r.Outcome != auditDone {
				inVain++
				continue
			}
			e := events[0]
			events = events[1:]
			if r.Index != e.Index || r.Action != auditAction(e.Type) || r.Actor != e.Actor || !r.Time.Equal(e.Time) {
				t.Fatalf("record %+v is not that of event %+v", r, e)
			}
			key := strings.Split(r.Action, ".")[0] + " " + r.Object
			if was := last[key]; was != string(r.Before) {
				t.Fatalf("%s of %s begins with %s, the record before left %s", r.Action, r.Object, r.Before, was)
			}
			if string(r.Before) == string(r.After) {
				t.Fatalf("%s of %s changed nothing: %s", r.Action, r.Object, r.After)
			}
			last[key] = string(r.After)
		}
		if len(events) > 0 || inVain != refused {
			t.Fatalf("%d events have no record; %d refusals are recorded, %d were given", len(events), inVain, refused)
		}
	})
}

func TestTamperingIsFoundAndNamed(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	for i := range 5 {
		log.ok(t, AddBlock{Target: Target{Prefix: netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/32", i))}, Note: "n"})
	}
	lines, _ := s.View().AuditSince(0)
	check := func(lines [][]byte) (AuditChain, error) {
		var c AuditChain
		for _, l := range lines {
			if err := c.Next(l); err != nil {
				return c, err
			}
		}
		return c, nil
	}
	if c, err := check(lines); err != nil || c != s.View().AuditHead() {
		t.Fatalf("the chain as it was written: %v", err)
	}
	for i := range lines {
		for at := range lines[i] {
			forged := slices.Clone(lines)
			forged[i] = slices.Clone(lines[i])
			forged[i][at] ^= 1
			c, err := check(forged)
			switch {
			case err == nil && (i < len(lines)-1 || c == s.View().AuditHead()):
				t.Fatalf("byte %d of record %d was changed, and nobody saw it", at, i+1)
			case err != nil && !strings.Contains(err.Error(), fmt.Sprintf("record %d", i+1)) && !strings.Contains(err.Error(), fmt.Sprintf("record %d", i)):
				t.Fatalf("byte %d of record %d was changed, and the blame is elsewhere: %v", at, i+1, err)
			}
		}
	}
	for name, c := range map[string]struct {
		forged [][]byte
		says   string
	}{
		"removed":       {slices.Concat(lines[:2], lines[3:]), "record 4 follows record 2: 1 are missing"},
		"first removed": {lines[1:], "record 2 follows record 0: 1 are missing"},
		"swapped":       {[][]byte{lines[0], lines[2], lines[1]}, "record 3 follows record 1"},
		"repeated":      {[][]byte{lines[0], lines[1], lines[1]}, "record 2 follows record 2: it is repeated"},
		"foreign":       {[][]byte{lines[0], []byte(`{"prev":1}`)}, "what follows record 1 is no audit record"},
	} {
		if _, err := check(c.forged); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	// Whoever renumbers and links again what follows is betrayed by the head.
	var c AuditChain
	for i, l := range slices.Concat(lines[:2], lines[3:]) {
		_, rest, _ := bytes.Cut(l, []byte(`","index"`))
		l = slices.Concat(fmt.Appendf(nil, `{"seq":%d,"prev":"%x","index"`, i+1, c.Head), rest)
		if err := c.Next(l); err != nil {
			t.Fatal(err)
		}
	}
	if c.Head == s.View().AuditHead().Head {
		t.Error("a forged chain has the head of the true one")
	}
}

func TestARecordSaysWhoAskedForWhat(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, PutGuard{Prefix: netip.MustParsePrefix("192.0.2.0/28"), Note: "ours"})
	log.ok(t, AddBlock{Target: Target{Prefix: netip.MustParsePrefix("198.51.100.7/32")}, Reason: "abuse", Note: "a \"b\"\nc\x00"[:7]})
	log.ok(t, LiftBlock{ID: "b1"})
	log.ok(t, DeleteGuard{Prefix: netip.MustParsePrefix("192.0.2.0/28")})
	log.refused(t, LiftBlock{ID: "b1"}, CodeConflict, "id")
	log.refused(t, AddBlock{Target: Target{VM: "nobody"}, Note: "why"}, CodeNotFound, "target.vm")
	long := strings.Repeat("x", MaxNoteBytes*3)
	log.refused(t, AddBlock{Target: Target{VM: "nobody"}, Note: long}, CodeInvalid, "note")
	var got []string
	for _, r := range audited(t, s.View()) {
		got = append(got, fmt.Sprintf("%d %s %s %s", r.Index, r.Action, r.Object, r.Outcome))
	}
	want := []string{
		"1 guard.put 192.0.2.0/28 done", "2 block.add b1 done", "3 block.lift b1 done", "4 guard.delete 192.0.2.0/28 done",
		"5 block.lift b1 conflict", "6 block.add  not_found", "7 block.add  invalid",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	records := audited(t, s.View())
	var before, after struct {
		ID, State, Reason, Note string
		LiftedBy                string `json:"lifted_by"`
		Target                  struct{ Prefix string }
	}
	if err := json.Unmarshal(records[2].Before, &before); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(records[2].After, &after); err != nil {
		t.Fatal(err)
	}
	if before.State != "active" || before.Target.Prefix != "198.51.100.7/32" || before.Note != "a \"b\"\nc" ||
		after.State != "lifted" || after.LiftedBy != records[2].Actor || after.Reason != "abuse" {
		t.Errorf("lifting went from %+v to %+v", before, after)
	}
	if records[3].After != nil || !strings.Contains(string(records[3].Before), "ours") {
		t.Errorf("removing a guard went from %s to %s", records[3].Before, records[3].After)
	}
	if !strings.Contains(string(records[5].Asked), `{"vm":"nobody"}`) {
		t.Errorf("a refused request is recorded as %s", records[5].Asked)
	}
	if records[6].Asked != nil {
		t.Errorf("%d bytes of a refused request are recorded", len(records[6].Asked))
	}
}

func TestListsAreRecordedWithoutTheirContent(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, BeginList{Upload: "u", Name: "feed", Origin: "feed.txt"})
	log.ok(t, AddListChunk{Upload: "u", Prefixes: packed("10.0.0.0/24", "10.9.0.0/16")})
	log.ok(t, CommitList{Upload: "u"})
	log.refused(t, PatchList{Name: "none"}, CodeNotFound, "name")
	log.ok(t, DeleteList{Name: "feed"})
	var got []string
	records := audited(t, s.View())
	for _, r := range records {
		got = append(got, r.Action+" "+r.Object+" "+r.Outcome)
	}
	if want := []string{"list.put feed done", "list.put none not_found", "list.delete feed done"}; !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
	var l struct {
		Name, Origin, Hash string
		Size               int
	}
	if err := json.Unmarshal(records[0].After, &l); err != nil || l.Name != "feed" || l.Origin != "feed.txt" || l.Size != 2 || len(l.Hash) != 64 {
		t.Errorf("after %s: %v", records[0].After, err)
	}
	if string(records[2].Before) != string(records[0].After) || records[2].After != nil {
		t.Errorf("removing went from %s to %s", records[2].Before, records[2].After)
	}
}

func TestWhatIsNoDeedIsNotRecorded(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	see := ObserveVM{ID: "vm1", Node: "n1", Phase: PhaseRunning, Epoch: 2}
	log.ok(t, see)
	n := s.View().AuditHead().Seq
	if n != 1 {
		t.Fatalf("the first sight of a VM made %d records", n)
	}
	log.ok(t, see) // unchanged
	see.Epoch = 1
	log.refused(t, see, CodeStale, "epoch")
	block := Command{Actor: "token:a", From: "192.0.2.9", Key: "k", Op: AddBlock{Target: Target{VM: "vm1"}}}
	for i := range 2 {
		if _, err := s.ApplyBatch([]Entry{{s.View().Index() + 1, encode(t, block)}}); err != nil {
			t.Fatalf("try %d: %v", i, err)
		}
	}
	records := audited(t, s.View())
	if len(records) != 2 || records[1].From != "192.0.2.9" || records[1].Actor != "token:a" {
		t.Errorf("got %+v", records)
	}
}

func TestTheStateKeepsTheNewestOfTheAudit(t *testing.T) {
	l := limits{results: 1, over: 1, events: 1, audits: 3}
	s := newStore(l)
	log := newLog(s)
	for i := range 10 {
		log.ok(t, PutGuard{Prefix: netip.MustParsePrefix("192.0.2.0/28"), Note: strconv.Itoa(i)})
	}
	for _, s := range []*Store{s, restored(t, l, s.View())} {
		v := s.View()
		for seq, want := range map[uint64]struct {
			n        int
			complete bool
		}{0: {3, false}, 6: {3, false}, 7: {3, true}, 9: {1, true}, 10: {0, true}, 99: {0, true}} {
			lines, complete := v.AuditSince(seq)
			if len(lines) != want.n || complete != want.complete {
				t.Errorf("since %d: %d lines, complete %v; want %+v", seq, len(lines), complete, want)
			}
			if want.n > 0 && sha256.Sum256(lines[want.n-1]) != v.AuditHead().Head {
				t.Errorf("since %d does not end at the head", seq)
			}
		}
	}
}

// TestLinesAreHeldUntilTheyAreWritten lets the audit outrun the disk, and looks at what is replicated.
func TestLinesAreHeldUntilTheyAreWritten(t *testing.T) {
	l := limits{results: 1, over: 1, events: 1, audits: 3}
	slow, quick := newStore(l), newStore(l)
	slow.HoldAudit(0)
	log := newLog(slow, quick)
	put := func(n int) {
		for i := range n {
			log.ok(t, PutGuard{Prefix: netip.MustParsePrefix("192.0.2.0/28"), Note: fmt.Sprint(log.index, i)})
		}
	}
	put(10)
	if lines, complete := slow.View().AuditSince(0); len(lines) != 10 || !complete {
		t.Errorf("%d lines are held, complete %v; want all 10", len(lines), complete)
	}
	if a, b := snapshot(t, slow.View()), snapshot(t, quick.View()); !bytes.Equal(a, b) {
		t.Error("what is held for a disk is in the snapshot")
	}
	slow.HoldAudit(8)
	put(1)
	if lines, complete := slow.View().AuditSince(8); len(lines) != 3 || !complete {
		t.Errorf("%d lines after 8, complete %v; want 3", len(lines), complete)
	}
	if lines, complete := slow.View().AuditSince(7); len(lines) != 3 || complete {
		t.Errorf("%d lines after 7, complete %v; 8 was written and may be gone", len(lines), complete)
	}
	if slow.View().Hash() != quick.View().Hash() {
		t.Error("what is held is in the state hash")
	}
}

func restored(tb testing.TB, l limits, v *View) *Store {
	tb.Helper()
	s := newStore(l)
	if err := s.Restore(bytes.NewReader(snapshot(tb, v))); err != nil {
		tb.Fatal(err)
	}
	return s
}

func TestQuotesAreJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "text")
		j := &auditJSON{}
		j.quote(s)
		var got string
		if err := json.Unmarshal(j.b, &got); err != nil || !utf8.Valid(j.b) || bytes.IndexByte(j.b, '\n') >= 0 {
			t.Fatalf("%q became %q: %v", s, j.b, err)
		}
		if want := string([]rune(s)); got != want {
			t.Fatalf("%q was read as %q", want, got)
		}
	})
}

func FuzzAuditChain(f *testing.F) {
	f.Add([]byte(`{"seq":1,"prev":"` + strings.Repeat("0", 64) + `","outcome":"done"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		c, err := AuditFrom(line)
		if err != nil {
			return
		}
		if err := c.Next(line); err != nil {
			t.Fatalf("a line does not continue what it says it continues: %v", err)
		}
	})
}

// BenchmarkAudit measures what the audit adds to a block: one record.
func BenchmarkAudit(b *testing.B) {
	a := applier{state: newState(), limits: defaultLimits(), actor: "token:billing", from: "192.0.2.17"}
	a.index, a.time = 12345, time.Unix(1_700_000_000, 123456789).UnixNano()
	e := Event{Index: 12345, Type: EventBlockAdded, Block: &Block{
		ID: "b17", Target: Target{VM: "0fbb5ac2-71e0-4f3c-9d0e-5a7b8e1c9f11"}, Kind: Drop, Direction: Both, Reason: "unpaid",
		Note: "third reminder was on Monday", Actor: "token:billing", State: BlockActive,
		CreatedAt: fromNanos(a.time), Index: 12345, Revision: 12345,
	}}
	b.ReportAllocs()
	for b.Loop() {
		a.recordEvent(&e)
	}
}

// TestTheAuditHasNoSecretOfAFeed: the URL of a source with its secrets, sealed, is in no record, accepted or refused.
func TestTheAuditHasNoSecretOfAFeed(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	src := ListSource{URL: "https://ann:xxxxx@lists.example/drop.txt?xxxxx", Sealed: "canary", Interval: MinListInterval, MaxBytes: 1 << 20}
	log.ok(t, DescribeList{Name: "feed", Source: &src})
	refused := src
	refused.Interval = 1
	log.refused(t, DescribeList{Name: "feed", Source: &refused}, CodeInvalid, "source.interval")
	log.ok(t, DescribeList{Name: "feed", Source: &ListSource{}})
	lines, _ := s.View().AuditSince(0)
	if text := string(bytes.Join(lines, []byte("\n"))); strings.Contains(text, "canary") || !strings.Contains(text, "lists.example/drop.txt") {
		t.Errorf("the audit has\n%s", text)
	}
}

// TestTheGuideNamesEveryAction: who reads the audit finds in the guide what each action means.
func TestTheGuideNamesEveryAction(t *testing.T) {
	guide, err := os.ReadFile("../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range eventTypes() {
		if action := auditAction(event); action != "" && !strings.Contains(string(guide), "`"+action+"`") {
			t.Errorf("docs/audit.md does not say what %s is", action)
		}
	}
}
