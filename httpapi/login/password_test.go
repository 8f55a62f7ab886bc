package login

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestPasswords(t *testing.T) {
	p := NewPasswords()
	hash, err := p.Hash(t.Context(), "correct horse battery")
	if err != nil || !strings.HasPrefix(hash, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Fatalf("%q, %v", hash, err)
	}
	again, _ := p.Hash(t.Context(), "correct horse battery")
	if again == hash {
		t.Error("two hashes of one password are equal: there is no salt")
	}
	for _, c := range []struct {
		hash, password string
		want           bool
	}{
		{hash, "correct horse battery", true}, {again, "correct horse battery", true}, {hash, "correct horse batterz", false},
		{hash, "", false}, {"", "", false}, {"", "correct horse battery", false},
	} {
		for _, known := range []bool{true, false} {
			if ok, err := p.Verify(t.Context(), c.hash, c.password, known); ok != c.want || err != nil {
				t.Errorf("%q for %q: %v, %v", c.password, c.hash, ok, err)
			}
		}
	}
	// What costs much more than ours, or is no hash, is an error and no answer.
	for _, bad := range []string{
		"x", "$argon2i$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA", "$argon2id$v=18$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
		"$argon2id$v=19$m=4194304,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA", "$argon2id$v=19$m=19456,t=4000,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
		"$argon2id$v=19$m=19456,t=2,p=0$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA", "$argon2id$v=19$m=19456,t=2,p=1$$aGFzaGhhc2hoYXNoaGFzaA",
		"$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$", "$argon2id$v=19$m=0,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
	} {
		if ok, err := p.Verify(t.Context(), bad, "x", false); ok || err == nil || strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v, %v", bad, ok, err)
		}
	}
}

// TestUnknownUsersTakeAsLong compares the shortest of some tries, which machine load can't shorten.
func TestUnknownUsersTakeAsLong(t *testing.T) {
	p := NewPasswords()
	hash, _ := p.Hash(t.Context(), "correct horse battery")
	shortest := func(hash string) time.Duration {
		best := time.Hour
		for range 5 {
			began := time.Now()
			_, _ = p.Verify(t.Context(), hash, "wrong horse battery", false)
			best = min(best, time.Since(began))
		}
		return best
	}
	known, unknown := shortest(hash), shortest("")
	if unknown < known/2 || known < unknown/2 {
		t.Errorf("a known user takes %s, an unknown one %s", known, unknown)
	}
}

func TestWhatIsAPassword(t *testing.T) {
	for password, want := range map[string]string{
		"short": "fewer than 12", "aaaaaaaaaaaaaaaa": "again and again", "ann-password": "name of the user",
		"correct horse battery": "", "ünïcödé-wörds": "", strings.Repeat("x1", 600): "more than 1024", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff": "UTF-8",
	} {
		got := Check(password, "ann")
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", password, got, want)
		}
	}
}

// TestPasswordsAreBounded floods the checker: it works on a few, queues a few, and refuses the rest at once. Its memory is
// that of the few.
func TestPasswordsAreBounded(t *testing.T) {
	p := NewPasswords()
	var mu sync.Mutex
	counts := map[bool]int{}
	var wg sync.WaitGroup
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 300 {
		wg.Go(func() {
			_, err := p.Verify(t.Context(), "", "guess", false)
			mu.Lock()
			defer mu.Unlock()
			counts[errors.Is(err, ErrBusy)]++
		})
	}
	ok, err := p.Verify(t.Context(), p.nobody, "x", true) // a known device has slots of its own
	if ok || err != nil {
		t.Errorf("a known device: %v, %v", ok, err)
	}
	wg.Wait()
	runtime.ReadMemStats(&after)
	if counts[true] < 200 || counts[false] == 0 {
		t.Errorf("%d were refused, %d checked", counts[true], counts[false])
	}
	if grown := after.Sys - before.Sys; grown > 512<<20 {
		t.Errorf("the process grew by %d MiB", grown>>20)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range cap(p.others.slots) {
		p.others.slots <- struct{}{}
	}
	if _, err := p.Verify(ctx, "", "x", false); !errors.Is(err, context.Canceled) {
		t.Errorf("who went away waits: %v", err)
	}
	// While all places of the others are taken, a known device does not wait.
	if ok, err := p.Verify(t.Context(), "", "x", true); ok || err != nil {
		t.Errorf("a known device, while others take all places: %v, %v", ok, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(salted("x")))
	f.Fuzz(func(t *testing.T, s string) {
		h, err := decode(s)
		if err == nil && (h.memory > 4*memoryKiB || h.passes > 10 || h.threads > 4 || len(h.key) < 16) {
			t.Fatalf("%q is too costly or too weak", s)
		}
	})
}
