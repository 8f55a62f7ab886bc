package browser

import (
	"fmt"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"

	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/test/rig"
)

// wide is more addresses than the settings of a new fleet let one block touch, and none of the fleet's own.
const wide = "100.64.0.0/14"

// blockWide blocks it in the dialog with a safety net, and returns the block's id. The dialog stays open.
func (b *tab) blockWide(within string) string {
	b.t.Helper()
	b.press("b")
	b.write("#block-target", wide)
	b.until("the prefix is offered", `document.querySelector('#target-hits [role=option][aria-selected=true]')`)
	b.press(kb.Enter)
	b.until("it is refused as too wide", `document.querySelector('[data-refused=too_many]')`)
	b.until("the button says why it can't be used", `[...document.querySelectorAll('dialog footer button')].some(e => e.textContent.trim() === 'Block now' && e.getAttribute('aria-disabled') === 'true' && e.title.includes('65536'))`)
	b.until("it says so in plain words", `(s => s.startsWith('100.64.0.0/14 touches 262144 addresses') && s.includes('safety net') && !s.includes('confirm_within'))(document.querySelector('[data-refused]').innerText)`)
	b.shoot("wide-refused")
	b.choose("#b-confirm", within)
	b.click("Block now")
	b.until("it is in force, and waits for a confirmation", `document.querySelector('dialog [data-receipts=complete]') && document.querySelector('dialog [data-confirm]')`)
	var id string
	b.js(`document.querySelector('dialog [data-confirm]').dataset.confirm`, &id)
	return id
}

// choose picks an option of a select by its value.
func (b *tab) choose(selector, value string) {
	b.t.Helper()
	b.until("there is a choice "+value, fmt.Sprintf(`[...document.querySelector(%[1]s)?.options ?? []].some(o => o.value === %[2]s)`, quote(selector), quote(value)))
	b.js(fmt.Sprintf(`(() => { const e = document.querySelector(%s); e.value = %s; e.dispatchEvent(new Event('change', {bubbles: true})); return true })()`, quote(selector), quote(value)), new(bool))
}

// left is an expression: how many seconds the countdown shows, -1 without one.
const left = `(() => { const m = document.querySelector('[data-confirm]')?.innerText.match(/(?:(\d+) min)?\s*(?:(\d+) s)?\./); return m ? 60 * (m[1] ?? 0) + 1 * (m[2] ?? 0) : -1 })()`

func state(t *testing.T, l *rig.Rig, id string) client.Block {
	t.Helper()
	x, err := l.Clients["node-3"].Block(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestAWideBlockStaysOnceConfirmed: it asks, counts down where it was made and where a colleague looks, and stays.
func TestAWideBlockStaysOnceConfirmed(t *testing.T) {
	l := lab(t)
	b, colleague := open(t, l, "node-1"), open(t, l, "node-2")
	b.login("operator")
	colleague.login("operator")
	id := b.blockWide("10m")
	var first, later int
	b.js(left, &first)
	if first < 9*60 || first > 10*60 {
		t.Errorf("of 10 minutes it shows %d s", first)
	}
	b.until("it counts down", fmt.Sprintf(`%s < %d`, left, first))
	b.shoot("wide-countdown")
	colleague.visit("/blacklist/" + id)
	colleague.until("the colleague sees the countdown", left+" > 0")
	if colleague.js(left, &later); later > first {
		t.Errorf("the colleague sees %d s, when there were %d", later, first)
	}
	colleague.click("Confirm")
	for _, x := range []*tab{b, colleague} {
		x.until("nothing is asked any more", `!document.querySelector('[data-confirm]')`)
	}
	if x := state(t, l, id); x.State != "active" || !x.ConfirmBy.IsZero() {
		t.Errorf("the block is %s, to be confirmed by %s", x.State, x.ConfirmBy)
	}
	b.quiet()
	colleague.quiet()
}

// TestAWideBlockIsTakenBackByItself: nobody confirms it, and it goes from every kernel; the page says so.
func TestAWideBlockIsTakenBackByItself(t *testing.T) {
	l := lab(t)
	b := open(t, l, "node-2")
	b.login("operator")
	id := b.blockWide("30s")
	at := state(t, l, id).ConfirmBy
	b.until("it says that it has ended by itself", fmt.Sprintf(`document.querySelector('dialog [data-taken-back=%s]')`, id))
	if early := time.Until(at); early > 0 {
		t.Errorf("it says so %s before the end", early)
	}
	b.until("it is out of every kernel", `document.querySelector('dialog [data-receipts=complete]')?.innerText.includes('Out of every live kernel')`)
	b.shoot("wide-taken-back")
	for _, n := range l.Nodes() {
		if x := l.Ruleset(t, n.Name); contains(x, "100.64.0.0") {
			t.Errorf("%s still holds it", n.Name)
		}
	}
	b.click("Close")
	b.visit("/blacklist/" + id)
	b.until("its page says so too", `document.querySelector('main [data-taken-back]') && !document.querySelector('[data-confirm]')`)
	b.quiet()
}
