package logs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TestJournal: every line has the priority of its record, one line for each record whatever is in it, and no time.
func TestJournal(t *testing.T) {
	var out bytes.Buffer
	log := New(Options{Writer: &out, Level: slog.LevelDebug, Journal: true}).Logger().With("node", "n1").WithGroup("g")
	log.Debug("d")
	log.Info("two\nlines", "k", "v\n<0>emerg")
	log.Warn("w")
	log.Error("e")
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 4 {
		t.Fatalf("%d lines: %s", len(lines), &out)
	}
	for i, want := range []string{"<7>level=DEBUG", "<6>level=INFO", "<4>level=WARN", "<3>level=ERROR"} {
		if !strings.HasPrefix(lines[i], want+" ") || !strings.Contains(lines[i], "node=n1") {
			t.Errorf("line %d is %q, want %s …", i, lines[i], want)
		}
	}
}

func TestJSON(t *testing.T) {
	var out bytes.Buffer
	New(Options{Writer: &out, JSON: true}).Logger().Info("m", "k", 1)
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line["time"] == nil || line["k"] != 1. {
		t.Errorf("%v: %s", err, &out)
	}
}

// TestRecentIsBounded: the newest lines are kept, also of many writers at once.
func TestRecentIsBounded(t *testing.T) {
	var out bytes.Buffer
	l := New(Options{Writer: &out, KeepBytes: 4096})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 100 {
				l.Logger().Info("line", "from", i, "n", j)
			}
		})
	}
	wg.Wait()
	l.Logger().Info(strings.Repeat("x", 5000))
	l.Logger().Info("the last")
	recent := l.Recent()
	if len(recent) > 4096 || len(recent) < 2000 || !bytes.HasSuffix(recent, []byte("msg=\"the last\"\n")) {
		t.Errorf("%d bytes are kept, the end is %q", len(recent), recent[max(0, len(recent)-60):])
	}
	if n := strings.Count(out.String(), "\n"); n != 802 {
		t.Errorf("%d lines were written", n)
	}
}

// TestSecretsAreTakenOut wherever they are, and nothing else is.
func TestSecretsAreTakenOut(t *testing.T) {
	var out bytes.Buffer
	l := New(Options{Writer: &out})
	const canary = "c4naryC4NARYc4nary"
	err := fmt.Errorf("get %q: refused", "https://user:"+canary+"@feed.example/list?key="+canary)
	for _, s := range []string{
		"plt_" + canary, "pls_" + canary, "pjt1." + canary, "Authorization: Bearer " + canary, "Basic " + canary, "Cookie: __Host-palisade-device=" + canary + "; a=b",
		"ftp://" + canary + "@host/", "https://host/x?token=" + canary + "&b=" + canary, `{"password":"` + canary + `"}`, "secret=" + canary,
		"-----BEGIN EC PRIVATE KEY-----\n" + canary + "\n-----END", "AGE-SECRET-KEY-1" + strings.ToUpper(canary), "$argon2id$v=19$" + canary,
	} {
		l.Logger().Info(s)
		l.Logger().Info("m", "k", s)
		l.Logger().With("k", s).Info("m", slog.Group("g", "k", s))
	}
	l.Logger().Info("m", "err", err)
	for what, text := range map[string]string{"written": out.String(), "kept": string(l.Recent())} {
		for line := range strings.Lines(text) {
			if strings.Contains(strings.ToLower(line), strings.ToLower(canary)) {
				t.Errorf("%s: %s", what, line)
			}
		}
	}
	out.Reset()
	harmless := `b17 192.0.2.7 2001:db8::/32 token:billing plt_ https://feed.example/drop.txt palisade://f00d/node/n1 secret_set`
	l.Logger().Info(harmless)
	if !strings.Contains(out.String(), harmless) {
		t.Errorf("changed to %s", &out)
	}
}

func TestToJournal(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	for stream, want := range map[string]bool{
		fmt.Sprintf("%d:%d", st.Dev, st.Ino): true, fmt.Sprintf("%d:%d", st.Dev, st.Ino+1): false, "": false, "x": false,
	} {
		if got := ToJournal(f, stream); got != want {
			t.Errorf("%q: %t", stream, got)
		}
	}
}

// BenchmarkLine is what a line costs.
func BenchmarkLine(b *testing.B) {
	var out bytes.Buffer
	log := New(Options{Writer: &out}).Logger().With("node", "n1", "room", "enforcer")
	for b.Loop() {
		out.Reset()
		log.Info("started or ended blocks that were due", "blocks", 17, "index", 12345, "late", "3ms")
	}
}
