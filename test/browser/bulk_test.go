package browser

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/palisade/palisade/httpapi/client"
)

// TestManyBlocksAreLiftedAtOnce: those that were chosen, and no other; one that a colleague lifted meanwhile is no obstacle.
func TestManyBlocksAreLiftedAtOnce(t *testing.T) {
	l := lab(t)
	var ids []string
	for i := range 6 {
		block, _ := l.Block(t, "node-1", client.Target{Prefix: fmt.Sprintf("198.51.100.%d", 10+i)})
		ids = append(ids, block.ID)
	}
	b := open(t, l, "node-2")
	b.login("operator")
	b.visit("/blacklist")
	for _, id := range ids {
		b.until(id+" is shown", fmt.Sprintf(`document.querySelector('tr[data-block=%s]')`, id))
	}
	tick := func(id string) {
		b.js(fmt.Sprintf(`(document.querySelector('input[type=checkbox][aria-label="Choose %s"]').click(), true)`, id), new(bool))
	}
	b.js(`(document.querySelector('input[aria-label="Choose all"]').click(), true)`, new(bool))
	b.until("all are chosen", `[...document.querySelectorAll('tr[data-block] input')].every(e => e.checked)`)
	tick(ids[4])
	tick(ids[5])
	b.until("it says how many", `document.querySelector('.bulk')?.innerText.includes('4 chosen')`)
	b.shoot("bulk-chosen")
	b.click("Lift 4")
	b.until("it asks, and names them", list(ids[:4])+`.every(x => document.querySelector('dialog[open]')?.innerText.includes(x))`)
	l.Lift(t, "node-3", ids[3]) // while the dialog is open
	b.click("Lift 4")
	b.until("the dialog closes, or says what was refused", `!document.querySelector('dialog[open]') || document.querySelector('dialog .notice')`)
	b.until("the rows go, and the others stay", fmt.Sprintf(`%s.every(x => !document.querySelector('tr[data-block=' + x + ']')) && %s.every(x => document.querySelector('tr[data-block=' + x + ']'))`, list(ids[:4]), list(ids[4:])))
	for i, id := range ids {
		want := "lifted"
		if i >= 4 {
			want = "active"
		}
		if x := state(t, l, id); x.State != want {
			t.Errorf("%s is %s, want %s", id, x.State, want)
		}
	}
	for _, n := range l.Nodes() {
		rules := l.Ruleset(t, n.Name)
		if contains(rules, "198.51.100.10") || !contains(rules, "198.51.100.15") {
			t.Errorf("the kernel of %s does not hold what is left, and that alone", n.Name)
		}
	}
	b.quiet()
}

// list is a literal of texts in the page's language.
func list(texts []string) string {
	var q []string
	for _, s := range texts {
		q = append(q, quote(s))
	}
	return "[" + strings.Join(q, ", ") + "]"
}

func contains(text, what string) bool { return strings.Contains(text, what) }

// TestAListIsImported: it is looked at first, its bad lines are named, the upload shows how far it is, and what was put in place
// is the rest.
func TestAListIsImported(t *testing.T) {
	l := lab(t)
	ctx := t.Context()
	t.Cleanup(func() { _ = l.Clients["node-1"].DeleteList(context.Background(), "scanners", client.Write{}) })
	var text strings.Builder
	const good = 200_000
	for i := range good {
		fmt.Fprintf(&text, "198.%d.%d.%d/32 # a scanner\n", 18+i>>16, i>>8&255, i&255)
		if i == 2 {
			text.WriteString("300.1.2.3\n<script>window.pwned=1</script>\n")
		}
	}
	file := filepath.Join(t.TempDir(), "scanners.txt")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	b := open(t, l, "node-3")
	b.login("operator")
	b.visit("/lists")
	b.click("Import")
	b.write("#l-name", "scanners")
	b.run("choose the file", chromedp.SetUploadFiles("#l-file", []string{file}, chromedp.ByQuery))
	b.watch("progress", `document.querySelector('dialog progress')`)
	b.click("Check it")
	b.until("the bad lines are named", `(s => s?.includes('300.1.2.3') && s.includes('<script>'))(document.querySelector('dialog .lines')?.innerText)`)
	b.until("by their number", `[...document.querySelectorAll('dialog .lines b')].map(e => e.textContent).join() === '4,5'`)
	b.until("nothing can be put in place before it is said what becomes of them", `[...document.querySelectorAll('dialog footer button')].some(e => e.textContent.trim() === 'Put in place' && e.getAttribute('aria-disabled') === 'true')`)
	b.shoot("list-lines")
	if _, err := l.Clients["node-1"].List(ctx, "scanners"); err == nil {
		t.Error("a list that was only looked at is in place")
	}
	b.js(`([...document.querySelectorAll('dialog label')].find(e => e.innerText.includes('Leave the bad lines out')).querySelector('input').click(), true)`, new(bool))
	b.click("Put in place")
	b.until("it is in place", `document.querySelector('dialog .notice.ok')?.innerText.includes('scanners')`)
	b.shoot("list-done")
	if !b.watched("progress") {
		t.Error("no progress was shown")
	}
	got, err := l.Clients["node-1"].List(ctx, "scanners")
	if err != nil || got.Size == 0 {
		t.Fatalf("the fleet has %+v, %v", got, err)
	}
	var within string
	b.js(`fetch('/v1/lists/scanners/entries?within=198.18.0.7').then(r => r.text())`, &within)
	if !strings.Contains(within, "198.") {
		t.Errorf("198.18.0.7 is not on the list: %q", within)
	}
	b.click("Close")
	b.until("the page shows it", `[...document.querySelectorAll('main td')].some(e => e.innerText.includes('scanners'))`)
	var pwned bool
	if b.js(`window.pwned !== undefined`, &pwned); pwned {
		t.Error("a line was taken for markup")
	}
	b.quiet()
}

// watch notes in the page whether an expression is ever true, in any frame from now on.
func (b *tab) watch(name, expression string) {
	b.t.Helper()
	b.js(fmt.Sprintf(`(() => { window.seen ??= {}; const look = () => { if (%s) window.seen[%s] = true; else requestAnimationFrame(look) }; look(); return true })()`, expression, quote(name)), new(bool))
}

// watched says whether it was.
func (b *tab) watched(name string) (ok bool) {
	b.t.Helper()
	b.js(fmt.Sprintf(`window.seen?.[%s] === true`, quote(name)), &ok)
	return ok
}
