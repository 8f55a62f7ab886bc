package login

import (
	"strconv"
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	l := NewLimiter(func() time.Time { return now })
	limit := Limit{Burst: 3, Every: time.Minute}
	try := func(names ...string) time.Duration {
		keys := map[string]Limit{}
		for _, n := range names {
			keys[n] = limit
		}
		return l.Try(keys)
	}
	for i := range 3 {
		if try("a") != 0 {
			t.Fatalf("try %d is refused", i)
		}
	}
	if wait := try("a"); wait != time.Minute {
		t.Errorf("the fourth waits %s", wait)
	}
	if try("b", "a") == 0 || try("b") != 0 || try("b") != 0 || try("b") != 0 || try("b") == 0 {
		t.Error("a try that one of two keys refuses is counted for the other, or is not refused")
	}
	now = now.Add(59 * time.Second)
	if wait := try("a"); wait != time.Second {
		t.Errorf("after 59 s it waits %s", wait)
	}
	now = now.Add(time.Second)
	if try("a") != 0 || try("a") == 0 {
		t.Error("after a minute there is one more try, and only one")
	}
	l.Return(map[string]Limit{"a": limit, "never": limit})
	if try("a") != 0 || try("a") == 0 {
		t.Error("a try that was given back can be used once")
	}
	now = now.Add(time.Hour)
	for range 5 { // a good login gives back more than is full
		if try("a") != 0 {
			t.Error("refused")
		}
		l.Return(map[string]Limit{"a": limit})
	}
	for i := range 3 {
		if try("a") != 0 {
			t.Errorf("try %d", i)
		}
	}
	if try("a") == 0 {
		t.Error("what was given back makes more than the burst")
	}
}

func TestTheLimiterForgetsTheOldest(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	l := NewLimiter(func() time.Time { return now })
	limit := Limit{Burst: 1, Every: time.Hour}
	admitted := 0
	for i := range 3 * maxCounted {
		now = now.Add(time.Millisecond)
		l.Try(map[string]Limit{strconv.Itoa(i): limit})
		if l.Try(map[string]Limit{"busy": limit}) == 0 {
			admitted++
		}
	}
	if len(l.counts) > maxCounted || l.order.Len() > maxCounted {
		t.Errorf("%d are counted", len(l.counts))
	}
	if l.Try(map[string]Limit{strconv.Itoa(3*maxCounted - 1): limit}) == 0 {
		t.Error("the newest is forgotten")
	}
	if admitted != 1 {
		t.Errorf("one that goes on trying was forgotten: it was admitted %d times", admitted)
	}
}

func TestSource(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64", "@": "@",
	} {
		if got := Source(addr); got != want {
			t.Errorf("%s counts as %s, want %s", addr, got, want)
		}
	}
}
