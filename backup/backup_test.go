package backup

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/palisade/palisade/fsm"
)

const canary = "seal-key-canary-0123456789abcdef"

func state(t testing.TB) *fsm.View {
	t.Helper()
	s := fsm.NewStore()
	for i, op := range []fsm.Op{
		fsm.DeclareVM{ID: "vm1", Name: "web", Owner: "alice"},
		fsm.AddBlock{Target: fsm.Target{VM: "vm1"}, Reason: "abuse"},
	} {
		data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(int64(i+1), 0), Actor: "token:test", Op: op})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.ApplyBatch([]fsm.Entry{{Index: uint64(i + 1), Data: data}}); err != nil {
			t.Fatal(err)
		}
	}
	return s.View()
}

func header() Header {
	return Header{Fleet: "0123456789abcdef", Epoch: 3, At: time.Unix(77, 0).UTC(), Node: "n1", Build: "v1"}
}

func forCourier(t testing.TB) (Courier, Recipients) {
	t.Helper()
	c, err := NewCourier()
	if err != nil {
		t.Fatal(err)
	}
	to, err := ParseRecipients([]string{c.Recipient()})
	if err != nil {
		t.Fatal(err)
	}
	return c, to
}

func check(t *testing.T, c *Content, view *fsm.View) {
	t.Helper()
	want := header()
	want.Index, want.Hash = view.Index(), view.Hash()
	if c.Header != want || string(c.SealKey) != canary || c.Store.View().Hash() != view.Hash() || c.Store.View().CountActive() != 1 {
		t.Errorf("read %+v", c.Header)
	}
}

func TestBackupPassesOnToAPassphrase(t *testing.T) {
	view := state(t)
	courier, to := forCourier(t)
	var sent bytes.Buffer
	if err := Write(&sent, to, header(), []byte(canary), view); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sent.Bytes(), []byte(canary)) || bytes.Contains(sent.Bytes(), []byte("alice")) {
		t.Error("the backup is not encrypted")
	}
	pass := []byte("correct horse battery staple\n")
	keep, err := ForPassphrase(pass)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	c, err := Pass(&file, keep, bytes.NewReader(sent.Bytes()), courier)
	if err != nil {
		t.Fatal(err)
	}
	check(t, c, view)
	key, err := FromPassphrase(bytes.TrimSpace(pass))
	if err != nil {
		t.Fatal(err)
	}
	if c, err = Read(bytes.NewReader(file.Bytes()), key); err != nil {
		t.Fatal(err)
	}
	check(t, c, view)
	for _, text := range []string{"correct horse battery stapler", "short"} {
		wrong, err := FromPassphrase([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Read(bytes.NewReader(file.Bytes()), wrong); err == nil || !strings.Contains(err.Error(), "another passphrase") {
			t.Errorf("with the passphrase %q: %v", text, err)
		}
	}
}

// TestDamagedBackupIsRefused: whatever is cut off or changed, nothing of it is believed.
func TestDamagedBackupIsRefused(t *testing.T) {
	courier, to := forCourier(t)
	var sent bytes.Buffer
	if err := Write(&sent, to, header(), []byte(canary), state(t)); err != nil {
		t.Fatal(err)
	}
	whole := sent.Bytes()
	for cut := 0; cut < len(whole); cut += 7 {
		if _, err := Read(bytes.NewReader(whole[:cut]), courier.Key()); err == nil {
			t.Fatalf("cut to %d of %d bytes it is believed", cut, len(whole))
		}
		if _, err := Pass(io.Discard, to, bytes.NewReader(whole[:cut]), courier); err == nil {
			t.Fatalf("cut to %d of %d bytes it is passed on", cut, len(whole))
		}
	}
	for at := 0; at < len(whole); at += 5 {
		b := bytes.Clone(whole)
		b[at] ^= 0x20
		if _, err := Read(bytes.NewReader(b), courier.Key()); err == nil {
			t.Fatalf("with byte %d changed it is believed", at)
		}
	}
	if _, err := Read(bytes.NewReader(append(bytes.Clone(whole), 'x')), courier.Key()); err == nil {
		t.Error("with a byte behind its end it is believed")
	}
}

// TestForgedBackupIsRefused: who can encrypt for the key can write what he likes inside; none of it panics, and what
// does not fit together is refused. No error quotes the secrets.
func TestForgedBackupIsRefused(t *testing.T) {
	courier, to := forCourier(t)
	var snapshot bytes.Buffer
	view := state(t)
	if err := view.WriteSnapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	for name, plain := range map[string]string{
		"empty":          "",
		"no magic":       "hello\n",
		"newer format":   "PALISADE-BACKUP 2\n",
		"long line":      "PALISADE-BACKUP 1\n" + strings.Repeat("x", maxLine+1),
		"no state":       "PALISADE-BACKUP 1\n{}\n{}\n",
		"bad secrets":    "PALISADE-BACKUP 1\n{}\n{\"seal_key\":\"" + canary + "\n",
		"another index":  "PALISADE-BACKUP 1\n{\"index\":9,\"state_hash\":\"" + view.Hash() + "\"}\n{}\n" + snapshot.String(),
		"another hash":   "PALISADE-BACKUP 1\n{\"index\":2,\"state_hash\":\"00\"}\n{}\n" + snapshot.String(),
		"more behind it": "PALISADE-BACKUP 1\n{\"index\":2,\"state_hash\":\"" + view.Hash() + "\"}\n{}\n" + snapshot.String() + "x",
	} {
		var b bytes.Buffer
		w, err := age.Encrypt(&b, to.list...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(&b, courier.Key()); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWriterThatFails(t *testing.T) {
	_, to := forCourier(t)
	if err := Write(failing{}, to, header(), nil, state(t)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Write: %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestKeys(t *testing.T) {
	for _, bad := range [][]string{nil, {""}, {"age1nothing"}, {"AGE-SECRET-KEY-1" + strings.Repeat("Q", 58)}, {"a\nb"}, make([]string, MaxRecipients+1)} {
		if _, err := ParseRecipients(bad); err == nil {
			t.Errorf("recipients %q were taken", bad)
		}
	}
	if _, err := ForPassphrase([]byte("short\n")); err == nil {
		t.Error("a short passphrase was taken")
	}
	if _, err := ParseKey([]byte("AGE-SECRET-KEY-1" + canary)); err == nil || strings.Contains(err.Error(), canary) {
		t.Errorf("ParseKey: %v", err)
	}
}
