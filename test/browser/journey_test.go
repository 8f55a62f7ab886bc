package browser

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
	"github.com/palisade/palisade/test/rig"
)

// held is an expression: the map shows a VM as blocked.
func held(vm string) string { return fmt.Sprintf(`document.querySelector('[data-vm=%q].held')`, vm) }

// on is an expression: the map shows a VM on a node, arrived.
func on(vm, node string) string {
	return fmt.Sprintf(`document.querySelector('[data-node=%q] [data-vm=%q]:not(.ghost)') && !document.querySelector('[data-vm=%q].ghost')`, node, vm, vm)
}

// id is that of a guest's VM.
func id(t *testing.T, l *rig.Rig, guest string) string {
	t.Helper()
	g, err := l.Guest(guest)
	if err != nil {
		t.Fatal(err)
	}
	return g.VM
}

// address is the guest's first one.
func address(t *testing.T, l *rig.Rig, guest string) string {
	t.Helper()
	v4, _ := l.Ends(t, guest)
	return v4.Addr.String()
}

// TestAnAdminBlocksAGuest is what the page is for: find a VM by its address, block it in two clicks, and see it in force; a
// colleague on another node sees the same. The guest's packets are counted where they should arrive.
func TestAnAdminBlocksAGuest(t *testing.T) {
	l := lab(t)
	vm := id(t, l, "guest1")
	colleague := open(t, l, "node-2")
	colleague.login("viewer")
	b := open(t, l, "node-1")
	b.login("operator")
	b.js(`(window.same = 1, true)`, new(bool))
	colleague.js(`(window.same = 1, true)`, new(bool))

	f := l.Flows(t)
	var victims []*probe.Flow
	for _, peer := range []string{"guest2", "guest3", fleet.Outside} {
		victims = append(victims, f.UDP("guest1", peer)...)
	}
	innocents := f.UDP("guest2", "guest4")
	f.Passing(append(append([]*probe.Flow{}, victims...), innocents...))

	b.press("/")
	b.until("the search has the focus", `document.activeElement.id === 'search'`)
	b.write("#search", address(t, l, "guest1"))
	b.until("the guest is found by its address", `document.querySelector('#search-hits [role=option][aria-selected=true]')?.innerText.includes('guest1')`)
	b.press(kb.Enter)
	b.until("its page is open", `document.querySelector('h1')?.innerText.includes('guest1')`)

	b.press("b")
	b.write("#block-target", "guest1")
	b.until("the target is offered", `document.querySelector('#target-hits [role=option][aria-selected=true]')?.innerText.includes('guest1')`)
	b.press(kb.Enter)
	b.until("the target is chosen", `document.querySelector('[data-target]')`)
	b.until("what it would touch is shown", `document.querySelector('[data-preview=ready]')?.innerText.includes('1')`)
	b.shoot("block-dialog")
	b.click("Block now")
	b.until("every kernel has it, and each node's receipt is shown", `document.querySelector('dialog [data-receipts=complete]') && document.querySelectorAll('dialog [data-receipt]').length === 3`)
	at := time.Now()
	b.shoot("block-receipts")
	f.Silent(victims, at)
	colleague.until("the colleague on another node sees it", held(vm))

	var blocks []client.Block
	for x, err := range l.Clients["node-3"].Blocks(t.Context(), client.BlockFilter{VM: "guest1"}) {
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, x)
	}
	if len(blocks) != 1 || blocks[0].Actor != "user:operator" || blocks[0].Reason != "abuse" {
		t.Fatalf("the fleet has %+v", blocks)
	}
	block := blocks[0].ID

	b.click("Close")
	b.visit("/blacklist/" + block)
	b.click("Change")
	b.click("+1 h")
	b.until("what it touches is shown", `document.querySelector('dialog[open] [data-preview=ready]')?.innerText.includes('guest1')`)
	b.click("Save")
	b.until("the change is in every kernel", `document.querySelector('dialog[open] [data-receipts=complete]')`)
	b.click("Close")
	b.until("the dialog closes", `!document.querySelector('dialog[open]')`)
	b.visit("/blacklist/schedule")
	b.until("the unblock is on the schedule", fmt.Sprintf(`document.querySelector('main').innerText.includes(%q)`, block))
	scheduled, err := l.Clients["node-2"].Block(t.Context(), block)
	if left := time.Until(scheduled.EndsAt); err != nil || left < 55*time.Minute || left > 65*time.Minute {
		t.Errorf("the block ends at %v, %v", scheduled.EndsAt, err)
	}
	b.shoot("schedule")

	b.visit("/")
	b.until("the guest is on its node", on(vm, "node-1"))
	l.Move(t, "guest1", "node-3")
	for _, x := range []*tab{b, colleague} {
		x.until("the guest has moved on the picture", on(vm, "node-3"))
		x.until("it is still blocked", held(vm))
	}
	f.Silent(victims, at)

	b.visit("/blacklist/" + block)
	b.click("Lift " + block)
	b.until("it is asked for", `document.querySelector('dialog[open]')`)
	b.click("Lift")
	b.until("it is out of every kernel", `[...document.querySelectorAll('[data-receipts=complete]')].some(e => e.innerText.includes('Out of every live kernel'))`)
	f.Passing(victims)
	colleague.until("the colleague sees that it is free", "!"+held(vm))
	f.Lossless(innocents)
	for _, x := range []*tab{b, colleague} {
		var same bool
		if x.js(`window.same === 1`, &same); !same {
			t.Errorf("the page on %s was loaded anew", x.node)
		}
		x.quiet()
	}
	l.Move(t, "guest1", "node-1")
}

// TestAPageSaysThatItsNodeIsCutOff: what it shows is old, and nothing can be changed; it comes back by itself and has missed
// nothing.
func TestAPageSaysThatItsNodeIsCutOff(t *testing.T) {
	l := lab(t)
	vm := id(t, l, "guest2")
	st, err := l.Clients["node-1"].Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	node := "node-3"
	if st.Leader == node {
		node = "node-2"
	}
	b := open(t, l, node)
	b.login("operator")
	b.until("the block button works", button("Block"))
	if err := l.CutNode(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	b.until("a banner says that there is no quorum", `document.querySelector('[data-banner=quorum]')`)
	b.until("the block button can't be used and says why", `[...document.querySelectorAll('header button')].some(e => e.getAttribute('aria-label') === 'Block' && e.getAttribute('aria-disabled') === 'true' && e.title.length > 10)`)
	b.until("the banner leads to the same page on the other nodes", elsewhere(l, node, "/"))
	b.shoot("no-quorum")
	block, _ := l.Block(t, st.Leader, client.Target{VM: "guest2"})
	if err := l.HealNode(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	b.until("the banner goes", `!document.querySelector('[data-banner=quorum]')`)
	b.until("what happened meanwhile is shown", held(vm))
	l.Lift(t, st.Leader, block.ID)
	b.until("and what happens since", "!"+held(vm))
	b.quiet()

	if err := l.KillAgent(t.Context(), node, 15); err != nil {
		t.Fatal(err)
	}
	b.until("a banner says that the node does not answer", `document.querySelector('[data-banner=lost]')`)
	b.until("the banner still leads to the other nodes", elsewhere(l, node, "/"))
	b.shoot("node-lost")
	var link string
	b.js(`document.querySelector('[data-banner=lost] a').href`, &link)
	other := open(t, l, st.Leader)
	other.run("follow the link", chromedp.Navigate(link))
	other.login("viewer")
	if err := l.StartAgent(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	b.until("the page comes back by itself", `!document.querySelector('[data-banner]')`)
	block, _ = l.Block(t, st.Leader, client.Target{VM: "guest2"})
	b.until("and follows", held(vm))
	l.Lift(t, st.Leader, block.ID)
}

// elsewhere is an expression: the banner has a link to a path of every other node.
func elsewhere(l *rig.Rig, node, path string) string {
	var want []string
	for _, n := range l.Nodes() {
		if n.Name != node {
			want = append(want, n.API+path)
		}
	}
	slices.Sort(want)
	return fmt.Sprintf(`[...document.querySelectorAll('[data-banner] a')].map(e => e.getAttribute('href')).sort().join() === %q`, strings.Join(want, ","))
}

// TestAViewerOnlyLooks: what a scope may not do is not offered, and refused all the same.
func TestAViewerOnlyLooks(t *testing.T) {
	l := lab(t)
	b := open(t, l, "node-1")
	b.login("viewer")
	b.press("b")
	for _, path := range []string{"/", "/vms", "/vms/" + id(t, l, "guest1"), "/blacklist", "/lists", "/nodes", "/nodes/node-1", "/settings"} {
		b.visit(path)
		b.until(path+" is shown", `document.querySelector('h1, h2')`)
		var offered bool
		b.js(`!!document.querySelector('dialog[open]') || [...document.querySelectorAll('button')].some(e => /^(Block|Lift|Import|Drain|Retire|Add a node|Save)\b/.test(e.getAttribute('aria-label') ?? e.textContent.trim()))`, &offered)
		if offered {
			b.shoot("viewer-is-offered")
			t.Errorf("%s offers a viewer what it may not do", path)
		}
	}
	for _, path := range []string{"/v1/audit", "/v1/users", "/v1/tokens", "/v1/join-tokens"} {
		var status int
		if b.js(fmt.Sprintf(`fetch(%q).then(r => r.status)`, path), &status); status != 403 {
			t.Errorf("%s answers a viewer %d", path, status)
		}
	}
	var status int
	b.js(`fetch('/v1/blocks', {method: 'POST', headers: {'Palisade-CSRF': '1', 'Content-Type': 'application/json'}, body: JSON.stringify({target: {vm: 'guest1'}})}).then(r => r.status)`, &status)
	if status != 403 {
		t.Errorf("a viewer's block is answered %d", status)
	}
	b.js(`(document.querySelector('header summary').click(), true)`, new(bool))
	b.click("Log out")
	b.until("the login is shown", `document.querySelector('#password')`)
	if b.js(`fetch('/v1/status').then(r => r.status)`, &status); status != 401 {
		t.Errorf("after the logout, the status is answered %d", status)
	}
	b.quiet()
}

// TestHostileNamesDoNoHarm puts what attackers choose into every field that is shown.
func TestHostileNamesDoNoHarm(t *testing.T) {
	l := lab(t)
	names := []string{
		`<script>window.pwned=1</script>`, `"><img src=x onerror=window.pwned=1>`, `{{constructor.constructor('window.pwned=1')()}}`, `javascript:window.pwned=1`,
		strings.Repeat("W", 255), strings.Repeat("\u0301", 120), "\u05e9\u05dc\u05d5\u05dd<b>",
	}
	refused := []string{"abc\u202egnp.exe", "\u2066evil\u2069\u200b", "a\tb", strings.Repeat("x", 10<<10)}
	ctx := t.Context()
	for i, name := range names {
		vm := fmt.Sprintf("hostile-%d", i)
		body := map[string]any{"name": name, "owner": name, "addresses": []string{netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}).String()}}
		if err := l.Call(ctx, "node-1", "PUT", "/v1/vms/"+vm, body, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range refused { // direction marks and 10 KB do not even come in
		if err := l.Call(ctx, "node-1", "PUT", "/v1/vms/refused", map[string]string{"name": name}, nil); err == nil {
			t.Errorf("the API takes the name %.40q", name)
		}
	}
	var block client.Block
	if err := l.Call(ctx, "node-1", "POST", "/v1/blocks", map[string]any{"target": map[string]string{"vm": "hostile-0"}, "note": strings.Repeat("<b>4 KB</b> ", 400)[:4096], "reason": "abuse"}, &block); err != nil {
		t.Fatal(err)
	}
	b := open(t, l, "node-1")
	b.login("admin")
	for _, path := range []string{"/", "/vms", "/vms?search=" + "%3Cscript%3E", "/vms/hostile-0", "/vms/hostile-4", "/vms/hostile-5", "/vms/hostile-6", "/blacklist", "/blacklist/" + block.ID, "/accounts/" + "%3Cscript%3Ewindow.pwned=1%3C%2Fscript%3E", "/audit", "/vms/%3Cimg%20src=x%20onerror=window.pwned=1%3E"} {
		for _, width := range []int64{1440, 360} {
			b.size(width, 800, width == 360)
			b.go_(path)
			b.until(path+" is shown", shown)
			b.fits(path, width)
		}
	}
	b.visit("/")
	b.press("/")
	b.write("#search", "<script>")
	b.until("the search shows the name as it is", `document.querySelector('#search-hits')?.innerText.includes('<script>')`)
	var pwned, inline bool
	b.js(`window.pwned !== undefined`, &pwned)
	b.js(`!!document.querySelector('main script, main img[src=x], main i, main b[onerror]')`, &inline)
	if pwned || inline {
		t.Error("a name was taken for markup")
	}
	b.quiet()
}

// fits checks that nothing is wider than the window.
func (b *tab) fits(what string, width int64) {
	b.t.Helper()
	var wide int64
	if b.js(`document.documentElement.scrollWidth`, &wide); wide > width {
		b.shoot("too-wide")
		b.t.Errorf("%s is %d pixels wide in a window of %d", what, wide, width)
	}
}
