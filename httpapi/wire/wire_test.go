package wire

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "72h": 72 * time.Hour, "7d": 7 * 24 * time.Hour, "1d12h": 36 * time.Hour,
		"0d1h": time.Hour, "1.5h": 90 * time.Minute, "1h30m": 90 * time.Minute,
	} {
		if d, err := ParseDuration(text); err != nil || d != want {
			t.Errorf("%s: %v, %v", text, d, err)
		}
	}
	for _, text := range []string{"", "0", "0s", "0d", "7", "d", "-1h", "+1h", "1d-1h", "1h1d", "1.5d", "7 d", "999999d", "1w", "1d ", "106751d24h", "1e3h"} {
		if d, err := ParseDuration(text); err == nil || !strings.Contains(err.Error(), "7d") {
			t.Errorf("%q: %v, %v", text, d, err)
		}
	}
}

func TestPortForms(t *testing.T) {
	for text, want := range map[string]Port{
		`"tcp/25"`:                               {"tcp", 25, 25},
		`"udp/1000-2000"`:                        {"udp", 1000, 2000},
		`"icmp"`:                                 {"icmp", 0, 0},
		`{"protocol":"47"}`:                      {"47", 0, 0},
		`{"protocol":"tcp","from":25}`:           {"tcp", 25, 0},
		`{"protocol":"tcp","from":25,"to":30}`:   {"tcp", 25, 30},
		`{"protocol":"sctp","from":7,"to":7}`:    {"sctp", 7, 7},
		`{"protocol":"tcp","from":99999,"to":1}`: {"tcp", 99999, 1}, // who decodes it checks it
	} {
		var p Port
		if err := json.Unmarshal([]byte(text), &p); err != nil || p != want {
			t.Errorf("%s: %+v, %v", text, p, err)
		}
	}
	for _, text := range []string{`""`, `"47"`, `"tcp/"`, `"tcp/25-"`, `"tcp/-25"`, `"/25"`, `"tcp/25/26"`, `"TCP/25"`, `"tcp/0"`, `"tcp/0-7"`, `"tcp/25-0"`, `"tcp/123456"`, `25`, `[]`} {
		var p Port
		if err := json.Unmarshal([]byte(text), &p); err == nil {
			t.Errorf("%s: %+v", text, p)
		}
	}
}

// A merge patch tells absent, null and a value apart, in both directions.
func TestMergePatch(t *testing.T) {
	at := time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC)
	for text, want := range map[string]BlockPatch{
		`{}`:                                   {},
		`{"ends_at":null}`:                     {EndsAt: Given(time.Time{})},
		`{"note":null}`:                        {Note: Given("")},
		`{"note":"x","confirm":true}`:          {Note: Given("x"), Confirm: true},
		`{"starts_at":"2090-01-01T00:00:00Z"}`: {StartsAt: Given(at)},
	} {
		var p BlockPatch
		if err := json.Unmarshal([]byte(text), &p); err != nil || p != want {
			t.Errorf("%s: %+v, %v", text, p, err)
		}
		if b, err := json.Marshal(want); err != nil || string(b) != text {
			t.Errorf("%+v: %s, %v", want, b, err)
		}
	}
	var p BlockPatch
	if json.Unmarshal([]byte(`{"ends_at":7}`), &p) == nil || json.Unmarshal([]byte(`{"ends_at":"soon"}`), &p) == nil {
		t.Error("nonsense was taken for a time")
	}
}

// What is accepted is positive, and text of it means the same again.
func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"7d", "72h", "1d12h", "106751d23h", "-1h", "0d", "1.5h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		if again, err := ParseDuration(d.String()); d <= 0 || err != nil || again != d {
			t.Fatalf("%q: %s, again %s, %v", s, d, again, err)
		}
	})
}

// What is accepted comes back from both of its forms.
func FuzzPort(f *testing.F) {
	for _, s := range []string{`"tcp/25"`, `"udp/1000-2000"`, `"icmp"`, `{"protocol":"tcp","from":25,"to":25}`, `"tcp/0"`, `"25"`, `null`, `{"protocol":""}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Port
		if json.Unmarshal(b, &p) != nil {
			return
		}
		object, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var again Port
		if err := json.Unmarshal(object, &again); err != nil || again != p {
			t.Fatalf("%s gives %s: %+v, %v", b, object, again, err)
		}
		if short, err := ParsePort(p.String()); err == nil && len(b) > 0 && b[0] == '"' && short != p {
			t.Fatalf("%s gives %s: %+v", b, p, short)
		}
	})
}
