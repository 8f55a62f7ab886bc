package exec

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/palisade/palisade/inventory"
	"github.com/palisade/palisade/inventory/output"
	"github.com/palisade/palisade/inventory/poll"
)

const (
	a   = `{"id":"a","phase":"running"}`
	b   = `{"id":"b","phase":"stopped"}`
	end = `{"end":true}`
)

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// program writes a shell script and returns its path.
func program(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	return path
}

// listings runs a source once.
func listings(t *testing.T, s output.Source, timeout time.Duration) ([]string, error) {
	t.Helper()
	defer goleak.VerifyNone(t)
	var got []string
	err := follow(t.Context(), s, timeout, func(l poll.Listing) error {
		var ids []string
		for _, v := range l.VMs {
			ids = append(ids, v.ID)
		}
		got = append(got, strings.Join(ids, " "))
		return nil
	})
	return got, err
}

func TestAProgramsListings(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   []string
		err    string
	}{
		"it ends well":                     {"echo '" + a + "'; echo; echo '" + b + "'", []string{"a b"}, ""},
		"marked":                           {"echo '" + a + "'; echo '" + end + "'", []string{"a"}, ""},
		"marked and empty":                 {"echo '" + end + "'", []string{""}, ""},
		"several":                          {"echo '" + a + "'; echo '" + end + "'; echo '" + b + "'; echo '" + end + "'", []string{"a", "b"}, ""},
		"it fails":                         {"echo '" + a + "'; echo 'no such pool' >&2; exit 3", nil, "exit status 3: no such pool"},
		"fails after a listing":            {"echo '" + a + "'; echo '" + end + "'; echo '" + b + "'; exit 1", []string{"a"}, "exit status 1"},
		"a line that can't be read":        {"echo '" + a + "'; echo 'Warning: x'; echo '" + b + "'", nil, "line 2: invalid character"},
		"an unknown field":                 {`echo '{"id":"a","phase":"running","end":true}'`, nil, "unknown field"},
		"a long line":                      {"head -c 70000 /dev/zero | tr '\\0' x", nil, "token too long"},
		"no line":                          {"true", nil, ""},
		"a signal":                         {"echo '" + a + "'; kill -9 $$", nil, "signal: killed"},
		"it has no rights, no input, PATH": {`read x; [ "$HOME$x" = "" ] && [ "$LC_ALL" = C ] && echo '` + a + `'`, []string{"a"}, ""},
		"too slow":                         {"echo '" + a + "'; sleep 60 & wait", nil, "not complete within"},
		"too slow later":                   {"echo '" + a + "'; echo '" + end + "'; echo '" + b + "'; sleep 60 & wait", []string{"a"}, "not complete within"},
	} {
		t.Run(name, func(t *testing.T) {
			timeout := 20 * time.Second
			if strings.HasPrefix(name, "too slow") {
				timeout = 300 * time.Millisecond
			}
			got, err := listings(t, output.Source{Command: []string{program(t, c.script)}}, timeout)
			if !slices.Equal(got, c.want) {
				t.Errorf("listings %q, want %q", got, c.want)
			}
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q in it", err, c.err)
			}
		})
	}
}

func TestNoProgram(t *testing.T) {
	if _, err := listings(t, output.Source{Command: []string{filepath.Join(t.TempDir(), "list")}}, time.Second); err == nil {
		t.Error("no error")
	}
}

// TestAProgramThatFollows keeps one running, has it die, and sees its next run.
func TestAProgramThatFollows(t *testing.T) {
	defer goleak.VerifyNone(t)
	pipe := filepath.Join(t.TempDir(), "pipe")
	var logged buffer
	d, err := New(Options{
		// What is written to the file is printed at once, and "die" ends it.
		Source:   output.Source{Command: []string{program(t, "touch "+pipe+"; tail -n +1 -f "+pipe+" | while read -r l; do [ \"$l\" = die ] && exit 4; echo \"$l\"; done; exit 4")}},
		Interval: 10 * time.Millisecond, Timeout: 20 * time.Second, Logger: slog.New(slog.NewTextHandler(&logged, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	say := func(lines ...string) {
		t.Helper()
		f, err := os.OpenFile(pipe, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		_, err = fmt.Fprintln(f, strings.Join(lines, "\n"))
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	reports := make(chan string, 10)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- d.Run(ctx, func(r inventory.Report) {
			var ids []string
			for _, v := range r.VMs {
				ids = append(ids, v.ID)
			}
			reports <- strings.Join(ids, " ") + " +" + strings.Join(r.Arrived, " ")
		})
	}()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-reports:
			if got != want {
				t.Fatalf("report %q, want %q", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no report; log:\n%s", logged.String())
		}
	}
	say(a, end)
	next("a +a")
	say(a, b) // half a listing says nothing
	say(end)
	next("a b +")
	say(a) // nor does one whose end never comes
	if err := os.Truncate(pipe, 0); err != nil {
		t.Fatal(err)
	}
	say("die")
	for end := time.Now().Add(20 * time.Second); !strings.Contains(logged.String(), "exit status 4"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the program did not end; log:\n%s", logged.String())
		}
	}
	if err := os.WriteFile(pipe, []byte(strings.Join([]string{a, b, end, ""}, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	next("a b +a") // it was gone for a while: what is here is news
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestASocketNeedsTheMarker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	answers := make(chan string, 2)
	answers <- a + "\n" + end + "\n"
	answers <- a + "\n"
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(<-answers))
			_ = c.Close()
		}
	}()
	got, err := follow1(t, path)
	if err != nil || !slices.Equal(got, []string{"a"}) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := follow1(t, path); err == nil || len(got) > 0 || !strings.Contains(err.Error(), "no end marker") {
		t.Errorf("without the marker: %q, %v", got, err)
	}
	_ = l.Close()
	<-served
	if _, err := follow1(t, path); err == nil {
		t.Error("nobody listens, and there is no error")
	}
}

func follow1(t *testing.T, path string) ([]string, error) {
	t.Helper()
	var got []string
	err := follow(t.Context(), output.Source{Socket: path}, 20*time.Second, func(l poll.Listing) error {
		for _, v := range l.VMs {
			got = append(got, v.ID)
		}
		return nil
	})
	return got, err
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"neither":         {},
		"both":            {Source: output.Source{Command: []string{"/bin/x"}, Socket: "/run/x"}},
		"relative":        {Source: output.Source{Command: []string{"x"}}},
		"relative socket": {Source: output.Source{Socket: "x"}},
		"timeout":         {Source: output.Source{Command: []string{"/bin/x"}}, Timeout: -1},
		"interval":        {Source: output.Source{Command: []string{"/bin/x"}}, Interval: -1},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(a + "\n" + end + "\n" + b + "\n")
	f.Add("\n\n{}\n")
	f.Fuzz(func(t *testing.T, text string) {
		check := func(vms []inventory.Seen) error {
			for _, v := range vms {
				if v.ID == "" || v.Name == "" || v.Phase == "" {
					t.Errorf("accepted %+v", v)
				}
			}
			return nil
		}
		open, err := read(strings.NewReader(text), func() {}, check)
		if err == nil {
			_ = check(open)
		}
	})
}
