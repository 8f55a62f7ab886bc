package fsm

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

// sample is a state with some of everything.
func sample(tb testing.TB) *Store {
	tb.Helper()
	s := NewStore()
	log := newLog(s)
	log.ok(tb, PutNode{Node{
		ID: "n1", Name: "node one", Addresses: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")},
		Gateways: []netip.Addr{addr("192.0.2.254")}, MACs: []MAC{{2, 1}},
		Guards: []netip.Prefix{prefix("100.64.0.0/16")}, Version: "v1",
	}})
	log.ok(tb, PutGuard{Prefix: prefix("203.0.113.0/24"), Note: "office"})
	log.ok(tb, DeclareVM{ID: "v1", Name: "web", Owner: "c7", Addresses: []netip.Prefix{prefix("198.51.100.0/26")}})
	log.ok(tb, running("v1", "n1", 1, "198.51.100.65", "2001:db8:1::5"))
	incoming := running("v1", "n2", 2)
	incoming.Phase = PhaseIncoming
	log.ok(tb, incoming)
	log.key = "k1"
	log.ok(tb, AddBlock{Target: Target{VM: "web"}, Reason: "unpaid", Note: "two\nlines"})
	log.key = "k2"
	log.ok(tb, Batch{Ops: []Op{onPrefix("198.51.100.128/25"), onPrefix("127.0.0.1/32"), onPrefix("2001:db8:2::/48")}})
	log.key = "k3"
	log.refused2(tb, onVM("none"), CodeNotFound)
	log.ok(tb, LiftBlock{ID: "b2"})
	log.ok(tb, DeleteGuard{Prefix: prefix("203.0.113.0/24")})
	log.ok(tb, CreateToken{Name: "ci", Scope: ScopeMetrics, Hash: [32]byte{1}})
	ann := log.ok(tb, PutUser{Name: "ann", Scope: ScopeOperator, Password: testPassword}).User
	login := session("s1", "ann", ann.Revision, s)
	login.Device = [32]byte{2}
	log.ok(tb, login)
	return s
}

func TestSnapshotIsTheState(t *testing.T) {
	s := sample(t)
	image := snapshot(t, s.View())
	fresh := NewStore()
	if err := fresh.Restore(iotest.OneByteReader(bytes.NewReader(image))); err != nil {
		t.Fatal(err)
	}
	if fresh.View().Hash() != s.View().Hash() || !bytes.Equal(snapshot(t, fresh.View()), image) {
		t.Error("the restored state differs")
	}
	vm, _ := fresh.View().VM("v1")
	for _, e := range fresh.View().events[len(fresh.View().events)-6:] {
		if e.VM != nil && e.VM.Revision == vm.Revision && e.VM != vm {
			t.Error("an event has its own copy of an object")
		}
	}
}

// TestDamageIsFound changes every byte and cuts at every length.
func TestDamageIsFound(t *testing.T) {
	image := snapshot(t, sample(t).View())
	s := NewStore()
	log := newLog(s)
	log.ok(t, onPrefix("198.51.100.7/32"))
	before := s.View()
	damagedBy := func(what string, at int, b []byte) {
		t.Helper()
		err := s.Restore(bytes.NewReader(b))
		var unsupported *UnsupportedError
		if err == nil || !errors.Is(err, ErrSnapshot) && !errors.As(err, &unsupported) {
			t.Errorf("%s at %d: %v", what, at, err)
		}
		if s.View() != before {
			t.Fatalf("%s at %d: the state changed", what, at)
		}
	}
	for i := range image {
		damagedBy("cut", i, image[:i])
		flipped := bytes.Clone(image)
		flipped[i] ^= 1 << (i % 8)
		damagedBy("flip", i, flipped)
	}
	damagedBy("more", len(image), append(bytes.Clone(image), 0))
	damagedBy("twice", len(image), append(bytes.Clone(image), image...))
}

func TestErrorsOfStreamsArePassedOn(t *testing.T) {
	boom := errors.New("boom")
	image := snapshot(t, sample(t).View())
	for _, n := range []int{0, 3, 100, len(image)} {
		r := io.MultiReader(bytes.NewReader(image[:n]), iotest.ErrReader(boom))
		if err := NewStore().Restore(r); !errors.Is(err, boom) || errors.Is(err, ErrSnapshot) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
	if err := sample(t).View().WriteSnapshot(failingWriter{boom}); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestANewerSnapshotIsNotDamage(t *testing.T) {
	var b bytes.Buffer
	header := headerRecord(&NewStore().View().state)
	header.GetHeader().Version = snapshotVersion + 1
	w := newRecordWriter(&b)
	w.write([]byte(snapshotMagic))
	w.record(header)
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	err := NewStore().Restore(&b)
	var unsupported *UnsupportedError
	if !errors.As(err, &unsupported) || unsupported.Version != 2 || errors.Is(err, ErrSnapshot) {
		t.Errorf("got %v", err)
	}
}

// TestRestoreReadsLittle: a reader of a hostile stream holds no more than one record.
func TestRestoreReadsLittle(t *testing.T) {
	var b bytes.Buffer
	w := newRecordWriter(&b)
	w.write([]byte(snapshotMagic))
	w.record(&fsmpb.Record{Record: &fsmpb.Record_Header{Header: &fsmpb.Header{
		Version: 1, Index: 1, LastBlock: 1 << 60, Blocks: 1 << 60, Vms: 1 << 60, LastEvent: 1 << 60, Events: 1 << 60,
	}}})
	w.write([]byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	if err := NewStore().Restore(&b); !errors.Is(err, ErrSnapshot) || !strings.Contains(err.Error(), "at most") {
		t.Errorf("got %v", err)
	}
}

// TestOldSnapshotsCanBeRead keeps what the first format wrote readable for ever, and its hash stable:
// nodes of two builds compare hashes during an upgrade.
func TestOldSnapshotsCanBeRead(t *testing.T) {
	image, err := os.ReadFile("testdata/v1.snapshot")
	if err != nil {
		t.Fatal(err)
	}
	s := NewStore()
	if err := s.Restore(bytes.NewReader(image)); err != nil {
		t.Fatal(err)
	}
	const want = "5cbfc80a1f22c29ba7c05b3be6de5fc6245be2c158c8604111ce7e6253b31656"
	if got := s.View().Hash(); got != want {
		t.Errorf("state hash is %s, was %s", got, want)
	}
	// The format knew no audit yet, whose head is part of the hash.
	const audited = "6f7f96d40e738ec9fba30df65c50bf6d560ea91f1a4c1cb0128bc65af7bda767"
	if got := sample(t).View().Hash(); got != audited {
		t.Errorf("the same commands now give the state hash %s", got)
	}
}
