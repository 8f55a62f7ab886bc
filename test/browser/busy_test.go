package browser

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/test/rig"
)

// flood blocks n addresses at once.
func flood(t *testing.T, l *rig.Rig, n int) {
	t.Helper()
	var body bytes.Buffer
	for i := range n {
		fmt.Fprintf(&body, `{"add":{"target":{"prefix":"198.18.%d.%d"},"reason":"attack"}}`+"\n", i/250, i%250+1)
	}
	results, err := l.Clients["node-2"].BulkBlocks(t.Context(), body.Bytes(), client.Bulk{})
	if err != nil || len(results) != n {
		t.Fatalf("%d results, %v", len(results), err)
	}
}

// TestAFloodIsShownInSmallSteps adds many blocks at once: neither the blacklist nor the overview may draw all of them in one frame, and
// both come to show them.
func TestAFloodIsShownInSmallSteps(t *testing.T) {
	l := lab(t)
	t.Cleanup(func() { l.Heal(t) })
	l.Block(t, "node-1", client.Target{Prefix: "198.18.9.9"})
	b := open(t, l, "node-1")
	b.login("operator")
	// What is added in one frame to the rows of the place: the most so far.
	watch := func(rows string) {
		t.Helper()
		b.js(fmt.Sprintf(`(() => {
			window.most = 0;
			window.adding?.disconnect();
			let n = 0;
			window.adding = new MutationObserver((list) => {
				for (const m of list) for (const e of m.addedNodes) if (e instanceof Element && e.matches(%[1]q)) n++;
				window.most = Math.max(window.most, n);
			});
			window.adding.observe(document.body, {childList: true, subtree: true});
			const frame = () => { n = 0; requestAnimationFrame(frame) };
			frame();
			return true })()`, rows), new(bool))
	}
	most := func(limit int) {
		t.Helper()
		var n int
		b.js(`window.most`, &n)
		if n == 0 || n > limit {
			t.Errorf("%d rows came in one frame, want 1 to %d", n, limit)
		}
	}

	b.visit("/blacklist")
	b.until("the blacklist is shown", `document.querySelectorAll('tr[data-block]').length === 1`)
	watch("tr[data-block]")
	flood(t, l, 150)
	b.until("the newest hundred are shown", `document.querySelectorAll('tr[data-block]').length === 100 && document.querySelector('tr[data-block]').innerText.includes('198.18.0.150')`)
	most(25)

	l.Heal(t)
	b.visit("/")
	b.until("the overview is shown", `document.querySelector('.feed li')`)
	b.until("what was before has been shown", `document.querySelectorAll('.feed li').length === 40 && !document.querySelector('.flights')`)
	watch(".feed li")
	flood(t, l, 400)
	b.until("the newest events are shown", `document.querySelector('.feed li').innerText.includes('198.18.1.150')`)
	most(20)
	var rows int
	b.js(`document.querySelectorAll('.feed li').length`, &rows)
	if rows > 40 {
		t.Errorf("%d events are in the page", rows)
	}
	b.quiet()
}
