package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/palisade/palisade/test/chromium"
	"github.com/palisade/palisade/test/rig"
)

// patience is for what happens at once on a machine that has nothing else to do.
const patience = 45 * time.Second

// tab is one page in a browser of its own: it shares no cookies with others, as if on another machine.
type tab struct {
	t    *testing.T
	ctx  context.Context
	node string
	base string // URL of the node

	mu  sync.Mutex
	bad []string // what the browser complained about
}

// open opens the page of a node in a new browser.
func open(t *testing.T, l *rig.Rig, node string) *tab {
	t.Helper()
	n, err := l.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	b := &tab{t: t, node: node, base: n.API}
	browser, err := chromium.Start(context.Background(), patience, b.hear) // not t.Context(): Close ends it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := browser.Close(); err != nil {
			t.Error(err)
		}
	})
	b.ctx = browser.Page
	b.size(1440, 900, false)
	b.go_("/")
	return b
}

// hear keeps what should never be: exceptions of the page, and what its policy refused.
func (b *tab) hear(ev any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := ev.(type) {
	case *runtime.EventExceptionThrown:
		b.bad = append(b.bad, "exception: "+e.ExceptionDetails.Error())
	case *cdplog.EventEntryAdded:
		if e.Entry.Source != cdplog.SourceNetwork && e.Entry.Source != cdplog.SourceRendering { // a refusal by the API is no fault of the page
			b.bad = append(b.bad, fmt.Sprintf("%s: %s", e.Entry.Source, e.Entry.Text))
		}
	case *page.EventJavascriptDialogOpening:
		b.bad = append(b.bad, "a dialog of the browser: "+e.Message)
	}
}

// quiet fails the test for what the browser complained about so far.
func (b *tab) quiet() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.bad {
		b.t.Errorf("%s: the browser complains: %s", b.node, s)
	}
	b.bad = nil
}

func (b *tab) run(what string, actions ...chromedp.Action) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		b.shoot("failed-" + strings.ReplaceAll(b.t.Name(), "/", "-"))
		b.t.Fatalf("%s: %s: %v", b.node, what, err)
	}
}

// size sets the window's size in CSS pixels.
func (b *tab) size(width, height int64, phone bool) {
	b.t.Helper()
	b.run("set the size", chromedp.ActionFunc(func(ctx context.Context) error {
		return emulation.SetDeviceMetricsOverride(width, height, 1, phone).Do(ctx)
	}))
}

// scheme sets what the page is told of the user's liking: light or dark.
func (b *tab) scheme(dark bool) {
	b.t.Helper()
	value := "light"
	if dark {
		value = "dark"
	}
	b.run("set the colours", emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: value}}))
}

// go_ loads a path of the node anew.
func (b *tab) go_(path string) {
	b.t.Helper()
	b.run("open "+path, chromedp.Navigate(b.base+path))
}

// visit goes to a path inside of the page, as a click on a link does.
func (b *tab) visit(path string) {
	b.t.Helper()
	b.js(fmt.Sprintf(`(() => { const a = document.createElement('a'); a.href = %s; document.body.append(a); a.click(); a.remove(); return true })()`, quote(path)), new(bool))
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// js evaluates an expression, a promise too.
func (b *tab) js(expression string, out any) {
	b.t.Helper()
	b.run("evaluate "+expression, chromedp.Evaluate(expression, out, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
}

// until waits until an expression is true.
func (b *tab) until(what, expression string) {
	b.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		var ok bool
		b.js("!!("+expression+")", &ok)
		if ok {
			return
		}
		if time.Now().After(deadline) {
			var text string
			b.js(`document.body.innerText.slice(0, 3000)`, &text)
			b.shoot("failed-" + strings.ReplaceAll(b.t.Name(), "/", "-"))
			b.t.Fatalf("%s: it does not come to this: %s\n%s\nThe page says:\n%s", b.node, what, expression, text)
		}
		select {
		case <-time.After(25 * time.Millisecond):
		case <-b.t.Context().Done():
			b.t.FailNow()
		}
	}
}

// button is an expression for a button or link that can be clicked, by its name, in the open dialog if there is one.
func button(name string) string {
	return fmt.Sprintf(`(() => { const in_ = document.querySelector('dialog[open]') ?? document;
		return [...in_.querySelectorAll('button, a, summary')].find(e => e.checkVisibility() && e.getAttribute('aria-disabled') !== 'true' &&
			[e.getAttribute('aria-label'), e.textContent.trim()].includes(%s)) })()`, quote(name))
}

// click clicks a button by its name, once it can be clicked.
func (b *tab) click(name string) {
	b.t.Helper()
	b.until("there is a button "+name, button(name))
	b.js("("+button(name)+".click(), true)", new(bool))
}

// press presses one key: a character, or kb.Enter. The text goes with the key, so that a page which takes the key does not get the
// text as well, as from a keyboard.
func (b *tab) press(key string) {
	b.t.Helper()
	k := kb.Keys[[]rune(key)[0]]
	down := input.DispatchKeyEvent(input.KeyDown).WithKey(k.Key).WithCode(k.Code).WithText(k.Text).WithWindowsVirtualKeyCode(k.Windows)
	up := input.DispatchKeyEvent(input.KeyUp).WithKey(k.Key).WithCode(k.Code).WithWindowsVirtualKeyCode(k.Windows)
	b.run("press "+k.Key, down, up)
}

// write types into a field.
func (b *tab) write(selector, text string) {
	b.t.Helper()
	b.run("write into "+selector, chromedp.WaitVisible(selector, chromedp.ByQuery), chromedp.SendKeys(selector, text, chromedp.ByQuery))
}

// login logs in, and waits for the overview.
func (b *tab) login(user string) {
	b.t.Helper()
	b.write("#user", user)
	b.write("#password", password)
	b.press(kb.Enter)
	b.until("the overview is shown", `document.querySelectorAll('[data-node]').length === 3`)
}

// shown is an expression: the page has what was asked for.
const shown = `document.querySelector('main')?.innerText.trim().length > 20 && !document.querySelector('main [aria-busy=true]')`

// shoot keeps a picture of what is in sight.
func (b *tab) shoot(name string) {
	b.t.Helper()
	var png []byte
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Run(ctx, chromedp.CaptureScreenshot(&png)); err != nil {
		b.t.Logf("no screenshot %s: %v", name, err)
		return
	}
	if err := os.WriteFile(keep(b.t, name+".png"), png, 0o644); err != nil {
		b.t.Error(err)
	}
}
