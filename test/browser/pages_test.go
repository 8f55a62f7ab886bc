package browser

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"github.com/palisade/palisade/httpapi/client"
)

// pages are all that an admin can open.
func pages(vm, block string) map[string]string {
	return map[string]string{
		"overview": "/", "vms": "/vms", "vm": "/vms/" + vm, "blacklist": "/blacklist", "block": "/blacklist/" + block, "schedule-page": "/blacklist/schedule",
		"lists": "/lists", "list": "/lists/feed", "nodes": "/nodes", "node": "/nodes/node-1", "audit": "/audit", "access": "/access", "settings": "/settings", "explain": "/explain", "not-found": "/nowhere",
	}
}

// shade is an expression: how light the plot's lines and letters are, 0 to 255.
const shade = `(c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0, sum = 0; for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 200) { n++; sum += (d[i] + d[i + 1] + d[i + 2]) / 3 } return n > 100 ? Math.round(sum / n) : -1 })(document.querySelector('main canvas'))`

// TestPlotsFollowTheLook: the system's colours change at dusk, while the page is open.
func TestPlotsFollowTheLook(t *testing.T) {
	l := lab(t)
	b := open(t, l, "node-1")
	b.scheme(false)
	b.login("viewer")
	b.until("the plot is drawn", `document.querySelector('main canvas') && `+shade+` >= 0`)
	want := map[bool]int{}
	for _, dark := range []bool{true, false} {
		b.scheme(dark)
		b.go_("/")
		b.until("the plot is drawn", `document.querySelector('main canvas') && `+shade+` >= 0`)
		var s int
		b.js(shade, &s)
		want[dark] = s
	}
	if want[true] == want[false] {
		t.Fatalf("dark and light plots look the same: %d", want[true])
	}
	for _, dark := range []bool{true, false} {
		b.scheme(dark)
		b.until("the plot has the colours of the page", fmt.Sprintf(`Math.abs(%s - %d) < Math.abs(%s - %d) / 4`, shade, want[dark], shade, want[!dark]))
	}
	b.quiet()
}

// TestTimesOfRefusalsAreLocal: the API speaks of times in UTC; people read their own, and UTC with the mouse over it.
func TestTimesOfRefusalsAreLocal(t *testing.T) {
	l := lab(t)
	until := time.Now().Add(72 * time.Hour).UTC().Truncate(time.Second)
	if err := l.Call(t.Context(), "node-1", "PUT", "/v1/accounts/acme", map[string]any{"do_not_block_until": until}, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Call(context.Background(), "node-1", "PUT", "/v1/accounts/acme", map[string]any{}, nil); err != nil {
			t.Error(err)
		}
	})
	b := open(t, l, "node-1")
	b.login("operator")
	b.visit("/accounts/acme")
	b.run("live in another time zone", emulation.SetTimezoneOverride("Asia/Tokyo"))
	b.until("its block button", `[...document.querySelectorAll('main button')].find(e => e.innerText.trim() === 'Block')?.click() ?? document.querySelector('dialog[open] [data-target]')`)
	b.js(`(document.querySelector('dialog input[value=unpaid]').click(), true)`, new(bool))
	b.until("it is refused", `document.querySelector('[data-refused]')`)
	b.until("it begins with plain words", `document.querySelector('[data-refused]').innerText.startsWith('Account acme is not to be blocked')`)
	at := until.In(time.FixedZone("JST", 9*3600))
	b.until("the time is local, with UTC over it", fmt.Sprintf(`(e => e && e.innerText.includes(%q) && e.title.includes(%q))(document.querySelector('[data-refused] time'))`, at.Format("15:04"), until.Format("2006-01-02 15:04:05")))
	b.until("nothing else is said of it", fmt.Sprintf(`!document.querySelector('dialog').innerText.includes(%q)`, until.Format(time.RFC3339)))
	b.shoot("refused-until")
	b.quiet()
}

// violation is what axe-core finds.
type violation struct {
	ID, Impact, Help string
	Nodes            []struct {
		HTML   string
		Target []any
	}
}

// TestEveryPageIsForEveryone opens each page as a desktop and as a phone, light and dark, keeps a picture of it, and has
// axe-core look at it.
func TestEveryPageIsForEveryone(t *testing.T) {
	l := lab(t)
	source := axe(t)
	ctx := t.Context()
	block, _ := l.Block(t, "node-1", client.Target{VM: "guest1"})
	l.Block(t, "node-2", client.Target{Prefix: "203.0.113.0/28"})
	if err := l.Call(ctx, "node-1", "POST", "/v1/blocks", map[string]any{
		"target": map[string]string{"vm": "guest3"}, "reason": "unpaid", "note": "second reminder sent", "starts_at": time.Now().Add(2 * time.Hour), "ends_at": time.Now().Add(48 * time.Hour),
	}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Clients["node-1"].PutList(ctx, "feed", strings.NewReader("192.0.2.0/24\n198.51.100.7\n"), client.ListPut{}); err != nil {
		t.Fatal(err)
	}
	vm := id(t, l, "guest1")
	login := open(t, l, "node-1")
	login.until("the login is shown", `document.querySelector('#password')`)
	looks := []struct {
		name          string
		width, height int64
		dark          bool
	}{{"desktop-light", 1440, 900, false}, {"desktop-dark", 1440, 900, true}, {"phone-light", 360, 740, false}, {"phone-dark", 360, 740, true}}
	look := func(b *tab, name, path string) {
		for _, k := range looks {
			b.size(k.width, k.height, k.width < 500)
			b.scheme(k.dark)
			b.visit(path)
			b.until(name+" is shown", shown)
			b.js(`Promise.all(document.getAnimations().filter(a => a.effect?.getComputedTiming().iterations !== Infinity).map(a => a.finished.catch(() => 0))).then(() => true)`, new(bool))
			b.shoot(name + "-" + k.name)
			b.fits(name, k.width)
			b.axe(source, name+" "+k.name)
		}
	}
	look(login, "login", "/")
	login.quiet()
	b := open(t, l, "node-1")
	b.login("admin")
	for name, path := range pages(vm, block.ID) {
		look(b, name, path)
	}
	b.size(1440, 900, false)
	b.visit("/")
	b.press("b")
	b.until("the dialog is open", `document.querySelector('dialog[open]')`)
	b.axe(source, "the block dialog")
	b.quiet()
}

// axe fails the test for what axe-core finds serious. The page's policy is lifted for that alone: axe is no part of it.
func (b *tab) axe(source, where string) {
	b.t.Helper()
	var found []violation
	b.run("run axe-core", page.SetBypassCSP(true), chromedp.Evaluate(source+";0", new(int)))
	b.js(`axe.run(document, {resultTypes: ['violations'], runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']}).then(r => r.violations)`, &found)
	for _, v := range found {
		if v.Impact != "serious" && v.Impact != "critical" {
			continue
		}
		for _, n := range v.Nodes[:min(3, len(v.Nodes))] {
			b.t.Errorf("%s: axe-core: %s (%s): %s: %.300s", where, v.ID, v.Impact, v.Help, n.HTML)
		}
	}
}

// The budget of the first page.
const (
	maxTransfer = 300 << 10
	maxUsable   = time.Second
)

// TestTheFirstPageIsSmallAndFast loads the overview with an empty cache. The machine that tests may be busy: the best of a
// few loads counts.
func TestTheFirstPageIsSmallAndFast(t *testing.T) {
	l := lab(t)
	b := open(t, l, "node-1")
	b.login("operator")
	firstPage(t, b, 6)
	var foreign []string
	b.js(`performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(location.origin))`, &foreign)
	if len(foreign) > 0 {
		t.Errorf("the page loads from other hosts: %v", foreign)
	}
	var policy string
	b.js(`fetch('/').then(r => r.headers.get('content-security-policy'))`, &policy)
	for _, must := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"} {
		if !strings.Contains(policy, must) {
			t.Errorf("the policy lacks %s: %s", must, policy)
		}
	}
	b.quiet()
}

// TestTheFirstPageOfManyVMsIsSmall: up to 3,000 VMs the page draws each of them, so it has to get each of them.
func TestTheFirstPageOfManyVMsIsSmall(t *testing.T) {
	l := own(t, "palwebfp")
	users(t, l)
	const vms = 2900
	failed := make(chan error, 16)
	for w := range cap(failed) {
		go func() {
			var err error
			for i := w; i < vms && err == nil; i += cap(failed) {
				_, err = l.Clients["node-1"].PutVM(t.Context(), fmt.Sprintf("vm-%05d", i), client.VMRequest{
					Name: fmt.Sprintf("customer-%05d", i), Owner: fmt.Sprintf("acct-%d", i%700), Addresses: []string{fmt.Sprintf("100.%d.%d.%d", 64+i>>16, i>>8&255, i&255)},
				}, client.Write{})
			}
			failed <- err
		}()
	}
	for range cap(failed) {
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
	b := open(t, l, "node-1")
	b.login("operator")
	firstPage(t, b, vms)
	b.quiet()
}

// firstPage loads the first page with nothing kept of an earlier visit, until it shows a number of VMs.
func firstPage(t *testing.T, b *tab, vms int) {
	t.Helper()
	best, sum := time.Hour, 0
	for range 5 {
		b.run("empty the cache", network.ClearBrowserCache())
		b.go_("/")
		b.until("the fleet is shown", fmt.Sprintf(`document.querySelectorAll('[data-vm]').length >= %d`, vms))
		var took float64
		b.js(`performance.now()`, &took) // since the navigation began; at most a look later than the map was there
		best = min(best, time.Duration(took*float64(time.Millisecond)))
		b.js(`[...performance.getEntriesByType('resource'), ...performance.getEntriesByType('navigation')].filter(e => !e.name.includes('/v1/events')).reduce((n, e) => n + e.transferSize, 0)`, &sum)
	}
	t.Logf("usable after %s, %d bytes transferred", best, sum)
	if best > maxUsable {
		t.Errorf("the first page is usable after %s, at best", best)
	}
	if sum > maxTransfer || sum < 10<<10 {
		t.Errorf("the first page takes %d bytes", sum)
	}
}
