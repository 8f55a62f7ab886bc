package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/apitest"
)

// examples returns the shell commands of a guide's worked examples by heading, those before the first
// heading in front of each.
func examples(t *testing.T, path string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(b), "\n## Worked examples\n")
	if !ok {
		t.Fatalf("%s has no worked examples", path)
	}
	fence := regexp.MustCompile("(?s)```sh\n(.*?)```")
	commands := func(s string) string {
		var out strings.Builder
		for _, m := range fence.FindAllStringSubmatch(s, -1) {
			out.WriteString(m[1])
		}
		return out.String()
	}
	parts := strings.Split(text, "\n### ")
	out := map[string]string{}
	for _, p := range parts[1:] {
		heading, body, _ := strings.Cut(p, "\n")
		out[heading] = commands(parts[0]) + commands(body)
	}
	return out
}

// The worked examples of access are run as they stand in the guide.
func TestExamplesOfAccess(t *testing.T) {
	want := map[string]struct {
		says  string
		check func(v *fsm.View) bool
	}{
		"A billing system": {"b1", func(v *fsm.View) bool {
			b, _ := v.Block("b1")
			return b.State == fsm.BlockLifted && b.Actor == "token:billing"
		}},
		"Prometheus":      {"", func(v *fsm.View) bool { k, ok := v.Token("prometheus"); return ok && k.Scope == fsm.ScopeMetrics }},
		"A person leaves": {"ann", func(v *fsm.View) bool { _, known := v.User("ann"); return !known }},
	}
	scripts := examples(t, "../../docs/access.md")
	for heading, script := range scripts {
		t.Run(heading, func(t *testing.T) {
			f := apitest.New(t)
			f.RunVM("101", "shop", "n1", "192.0.2.7")
			f.Apply(fsm.DeclareVM{ID: "101", Owner: "acct-42"})
			socket, url := listen(t, f)
			cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", script)
			cmd.Dir = t.TempDir()
			cmd.Env = append(os.Environ(), "PALISADE_SOCKET="+socket, "URL="+url)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), want[heading].says) || strings.Contains(string(out), "plt_") || strings.Contains(string(out), "horse") {
				t.Fatalf("%v\n%s", err, out)
			}
			if w, ok := want[heading]; !ok || !w.check(f.View()) {
				t.Errorf("it left something else, or nobody says what")
			}
		})
	}
	if len(scripts) != len(want) {
		t.Errorf("%d examples, want %d", len(scripts), len(want))
	}
}

// The worked examples of joining are run as they stand in the guide.
func TestExamplesOfJoining(t *testing.T) {
	check := map[string]func(f *fsm.Fleet, tokens int) bool{
		"Admit a node": func(_ *fsm.Fleet, tokens int) bool { return tokens == 0 },
		"New keys":     func(f *fsm.Fleet, _ int) bool { return len(f.CAs) == 2 && len(f.GossipKeys) == 2 },
	}
	scripts := examples(t, "../../docs/joining.md")
	for heading, script := range scripts {
		t.Run(heading, func(t *testing.T) {
			f := apitest.New(t)
			f.Form()
			socket, _ := listen(t, f)
			cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", script)
			cmd.Dir = t.TempDir()
			cmd.Env = append(os.Environ(), "PALISADE_SOCKET="+socket)
			out, err := cmd.CombinedOutput()
			if err != nil || strings.Contains(string(out), "pjt1.") {
				t.Fatalf("%v\n%s", err, out)
			}
			formed, _ := f.View().Fleet()
			tokens := 0
			for range f.View().JoinTokens() {
				tokens++
			}
			if c, ok := check[heading]; !ok || !c(formed, tokens) {
				t.Errorf("it left something else, or nobody says what:\n%s", out)
			}
		})
	}
	if len(scripts) != len(check) {
		t.Errorf("%d examples, want %d", len(scripts), len(check))
	}
}

// What to do when something was stolen is run as it stands in the guide.
func TestExamplesOfSecurity(t *testing.T) {
	want := map[string]func(v *fsm.View) bool{
		"A token is stolen":      func(v *fsm.View) bool { _, known := v.Token("stolen"); return !known },
		"A join token is stolen": func(v *fsm.View) bool { _, known := v.JoinToken("j1"); return !known },
		"A disk is stolen": func(v *fsm.View) bool {
			n, _ := v.Node("n3")
			f, _ := v.Fleet()
			return n.State == fsm.NodeRetired && len(f.CAs) == 2 && len(f.GossipKeys) == 2
		},
	}
	scripts := examples(t, "../../docs/security.md")
	for heading, script := range scripts {
		t.Run(heading, func(t *testing.T) {
			f := apitest.New(t)
			f.Form()
			f.Apply(fsm.CreateToken{Name: "stolen", Scope: fsm.ScopeOperator, Hash: [32]byte{1}})
			f.Apply(fsm.CreateJoinToken{ID: "j1", Hash: [32]byte{2}, TTL: time.Hour})
			f.Apply(fsm.CreateJoinToken{ID: "j3", Hash: [32]byte{3}, TTL: time.Hour})
			f.Apply(fsm.AdmitNode{Token: "j3", Hash: [32]byte{3}, Node: fsm.Admission{
				ID: "n3", Name: "n3", Address: "192.0.2.3:7420", Gossip: "192.0.2.3:7421", KeyHash: [32]byte{3}, NotAfter: time.Now().Add(time.Hour), Format: fsm.Format,
			}})
			socket, _ := listen(t, f)
			cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", script)
			cmd.Dir = t.TempDir()
			cmd.Env = append(os.Environ(), "PALISADE_SOCKET="+socket)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if left, ok := want[heading]; !ok || !left(f.View()) {
				t.Errorf("it left something else, or nobody says what:\n%s", out)
			}
		})
	}
	if len(scripts) != len(want) {
		t.Errorf("%d examples, want %d", len(scripts), len(want))
	}
}

// The worked examples are run as they stand in the guide; none may fail, and each must leave what it says.
func TestExamplesOfTheBlacklist(t *testing.T) {
	states := func(f *apitest.Fleet) string {
		var out []string
		for b := range f.View().Blocks("") {
			out = append(out, b.ID+" "+string(b.Kind)+" "+string(b.State))
		}
		return strings.Join(out, ", ")
	}
	// What each leaves, and what is there before it.
	want := map[string]struct {
		before []fsm.Op
		blocks string
		check  func(v *fsm.View) bool
	}{
		"A spammer": {[]fsm.Op{fsm.AddBlock{Target: fsm.Target{VM: "shop"}, Reason: "legal"}},
			"b1 drop active, b2 ports lifted, b3 ports lifted", nil},
		"An unpaid customer, with grace": {nil, "b1 redirect lifted", func(v *fsm.View) bool {
			b, _ := v.Block("b1")
			a, known := v.Account("acct-42")
			return b.StartsAt.Equal(a.DoNotBlockUntil) && b.EndsAt.IsZero() && b.Note == "second reminder" &&
				known && v.Settings().RedirectTitle == "Payment needed"
		}},
		"An attacked address": {nil, "b1 limit active, b2 drop active", func(v *fsm.View) bool {
			b, _ := v.Block("b2")
			return b.ConfirmBy.IsZero() && !b.EndsAt.IsZero() && b.Direction == fsm.Out // what the sources send
		}},
		"An imported feed": {nil, "b1 drop active, b2 drop active", func(v *fsm.View) bool {
			feed, set, ok := v.List("feed")
			mine, _, known := v.List("mine")
			for b := range v.Blocks("") {
				ok = ok && b.Direction == fsm.Out // what they send
			}
			return ok && known && feed.Size == 3 && mine.Size == 4 && !set.Contains(prefix(t, "203.0.113.128/32")) && feed.Source.Interval == time.Hour
		}},
		"Many at once": {[]fsm.Op{
			fsm.AddBlock{Target: fsm.Target{Prefix: prefix(t, "203.0.113.99/32")}, Reason: "abuse"},
		}, "b1 drop lifted, b2 drop active, b3 drop active, b4 limit active, b5 drop active, b6 drop active, b7 limit active", nil},
		"Emergency: unblock now": {[]fsm.Op{
			fsm.AddBlock{Target: fsm.Target{VM: "shop"}}, fsm.AddBlock{Target: fsm.Target{Prefix: prefix(t, "192.0.2.0/24")}},
		}, "b1 drop lifted, b2 drop lifted", func(v *fsm.View) bool { return len(v.GuardedVMs()) == 1 }},
	}
	scripts := examples(t, "../../docs/blacklist.md")
	for heading, script := range scripts {
		t.Run(heading, func(t *testing.T) {
			w, ok := want[heading]
			if !ok {
				t.Fatal("nobody says what this example leaves")
			}
			f := apitest.New(t, "n2", "n3")
			f.RunVM("101", "shop", "n1", "192.0.2.7", "2001:db8::7")
			f.Apply(fsm.DeclareVM{ID: "101", Owner: "acct-42"})
			for _, op := range w.before {
				f.Apply(op)
			}
			socket, _ := listen(t, f)
			cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", script)
			cmd.Dir = "../../docs"
			cmd.Env = append(os.Environ(), "PALISADE_SOCKET="+socket)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if got := states(f); got != w.blocks || w.check != nil && !w.check(f.View()) {
				t.Errorf("left %s, want %s", got, w.blocks)
			}
		})
	}
	if len(scripts) != len(want) {
		t.Errorf("%d examples, want %d", len(scripts), len(want))
	}
}
