package browser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/test/rig"
)

// happened is an expression: what the list of events says of the addresses of 198.51.100.0/24, newest first.
const happened = `[...document.querySelectorAll('.feed li')].map(e => (m => m && m[1] + (e.innerText.includes('unblocked') ? '-' : '+'))(e.innerText.match(/198\.51\.100\.(\d+)/))).filter(x => x).join(' ')`

// TestAPageMissesNothingWhileItsNodeRestarts: the connection breaks, things happen elsewhere, and the page shows each of them
// once and in order, without beginning anew.
func TestAPageMissesNothingWhileItsNodeRestarts(t *testing.T) {
	l := lab(t)
	b := open(t, l, "node-2")
	b.login("viewer")
	b.js(`(window.same = 1, true)`, new(bool))
	one := func(n int) client.Block {
		block, _ := l.Block(t, "node-1", client.Target{Prefix: fmt.Sprintf("198.51.100.%d", n)})
		return block
	}
	var before string
	block := one(100)
	b.until("what happens is shown", happened+`.startsWith('100+')`)
	b.js(happened, &before)

	if err := l.KillAgent(t.Context(), "node-2", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	b.until("a banner says that the node does not answer", `document.querySelector('[data-banner=lost]')`)
	want := []string{"100-"}
	l.Lift(t, "node-1", block.ID)
	for n := range 6 {
		x := one(101 + n)
		want = append(want, fmt.Sprintf("%d+", 101+n))
		if n%2 == 0 {
			l.Lift(t, "node-3", x.ID)
			want = append(want, fmt.Sprintf("%d-", 101+n))
		}
	}
	var missed string
	if b.js(happened, &missed); missed != before {
		t.Fatalf("a page without a connection shows %q after %q", missed, before)
	}
	if err := l.StartAgent(t.Context(), "node-2"); err != nil {
		t.Fatal(err)
	}
	b.until("the page comes back by itself", `!document.querySelector('[data-banner]')`)
	one(110)
	want = append(want, "110+")
	slices.Reverse(want)
	b.until("it shows all that it missed, once and in order", fmt.Sprintf(`%s === %q`, happened, strings.TrimSpace(strings.Join(want, " ")+" "+before)))
	b.until("its number of active blocks is right", `[...document.querySelectorAll('a[href="/blacklist"]')].some(e => /\b4\b/.test(e.innerText))`)
	var same bool
	if b.js(`window.same === 1`, &same); !same {
		t.Error("the page was loaded anew")
	}
	b.quiet()
}

// TestAPageBeginsAnewAfterARestore: the state went back, so that what the page shows is no more: it reads all again, and says so.
// The fleet is one of its own.
func TestAPageBeginsAnewAfterARestore(t *testing.T) {
	l := own(t, "palwebre")
	ctx := t.Context()
	b := open(t, l, "node-1")
	b.login("operator")
	kept, _ := l.Block(t, "node-1", client.Target{VM: "guest1"})
	dir := t.TempDir()
	pass, backup := filepath.Join(dir, "pass"), filepath.Join(dir, "fleet.age")
	if err := os.WriteFile(pass, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	command(ctx, t, l, "node-1", "backup", "--out", backup, "--passphrase-file", pass)
	lost, _ := l.Block(t, "node-1", client.Target{VM: "guest2"})
	vm1, vm2 := id(t, l, "guest1"), id(t, l, "guest2")
	b.until("both are blocked on the picture", held(vm1)+" && "+held(vm2))
	b.js(`(window.same = 1, true)`, new(bool))

	for _, n := range l.Nodes() {
		if err := l.KillAgent(ctx, n.Name, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	b.until("a banner says that the node does not answer", `document.querySelector('[data-banner=lost]')`)
	n, err := l.Node("node-1")
	if err != nil {
		t.Fatal(err)
	}
	command(ctx, t, l, "node-1", "restore", backup, "--passphrase-file", pass, "--config", filepath.Join(n.Dir, "agent.toml"), "--yes", "--confirm-losses", "1")
	if err := l.LaunchAgent(ctx, "node-1"); err != nil { // not ready before it is settled what becomes of the other block
		t.Fatal(err)
	}
	b.until("the page comes back, and says that it began anew", `document.querySelector('[data-banner=restored]') && !document.querySelector('[data-banner=lost]')`)
	b.until("it shows what was restored, and nothing else", held(vm1)+" && !"+held(vm2))
	b.until("it says why", `document.querySelector('[data-banner=restored]').innerText.includes('was restored')`)
	b.until("nothing of the lost time is left", fmt.Sprintf(`!document.querySelector('main').innerText.match(/\b%s\b/)`, lost.ID))
	b.until("the node says what its kernel still holds", `document.querySelector('main').innerText.includes('from before epoch 2')`)
	b.shoot("restored")
	command(ctx, t, l, "node-1", "settle", "2")
	for _, x := range []string{"node-2", "node-3"} {
		if err := l.StartAgent(ctx, x); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.AwaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	l.Eventually(t, "the audit goes on", func() error {
		st, err := l.Clients["node-1"].Status(ctx)
		for _, p := range st.Problems {
			if p.Code == "audit_failing" {
				err = errors.Join(err, errors.New(p.Text))
			}
		}
		return err
	})
	b.visit("/blacklist")
	b.until("the list of blocks is that of the backup", fmt.Sprintf(`document.querySelector('tr[data-block=%s]') && !document.querySelector('tr[data-block=%s]')`, kept.ID, lost.ID))
	b.visit("/")
	block, _ := l.Block(t, "node-2", client.Target{VM: "guest3"})
	b.until("and it follows what happens now", held(id(t, l, "guest3")))
	if block.ID == lost.ID {
		t.Errorf("%s means something else now", lost.ID)
	}
	b.js(`(document.querySelector('[data-banner=restored] button').click(), true)`, new(bool))
	b.until("the banner can be closed", `!document.querySelector('[data-banner=restored]')`)
	var same bool
	if b.js(`window.same === 1`, &same); !same {
		t.Error("the page was loaded anew")
	}
	b.quiet()
}

// own is a fleet of the test's own, with the users of lab, that goes down with the test.
func own(t *testing.T, prefix string) *rig.Rig {
	t.Helper()
	bin, err := shared.Binaries()
	if err != nil {
		t.Fatal(err)
	}
	l, err := rig.Up(t.Context(), bin, fleet.Options{Prefix: prefix})
	if l != nil {
		t.Cleanup(func() {
			if t.Failed() {
				l.ShowLogs(t)
			}
			if err := l.Down(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	users(t, l)
	return l
}

// command runs palisade on a node as its root.
func command(ctx context.Context, t *testing.T, l *rig.Rig, node string, args ...string) string {
	t.Helper()
	n, err := l.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := l.Command(ctx, node, append([]string{l.Binary(node)}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(cmd.Environ(), "PALISADE_SOCKET="+n.Socket)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s# palisade %s: %v\n%s", node, args, err, out)
	}
	return string(out)
}
