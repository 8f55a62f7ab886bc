package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/palisade/palisade/test/rig"
)

// patience is for what happens at once on a machine that has nothing else to do.
const patience = 45 * time.Second

// chromium is one browser, with a window for each user.
type chromium struct{ ctx context.Context }

func startChromium(t *testing.T) *chromium {
	t.Helper()
	binary, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("chromium is not installed; deploy/install-deps.sh test does that")
	}
	dir := t.TempDir()
	alloc, stop := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(binary), chromedp.UserDataDir(dir), chromedp.NoSandbox, // the suite runs as root
		chromedp.IgnoreCertErrors, // the fleet's authority is not one of the browser's
		chromedp.Flag("lang", "en-US"), chromedp.WSURLReadTimeout(patience),
	)...)
	ctx, end := chromedp.NewContext(alloc)
	t.Cleanup(func() { end(); stop() })
	if err := chromedp.Run(ctx); err != nil {
		t.Fatal(err)
	}
	return &chromium{ctx}
}

// tab is one page, in a browser context of its own: it shares no cookies with others.
type tab struct {
	t    *testing.T
	ctx  context.Context
	node string
	base string // URL of the node

	mu   sync.Mutex
	bad  []string // what the browser complained about
	cuts bool     // the test cuts the node off, and failed requests are no wonder
}

// open opens the page of a node.
func (c *chromium) open(t *testing.T, l *rig.Rig, node string) *tab {
	t.Helper()
	n, err := l.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := chromedp.NewContext(c.ctx, chromedp.WithNewBrowserContext())
	t.Cleanup(end)
	b := &tab{t: t, ctx: ctx, node: node, base: n.API}
	chromedp.ListenTarget(ctx, b.hear)
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
		if e.Entry.Source != cdplog.SourceNetwork { // a refusal by the API is no fault of the page
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

// press presses keys.
func (b *tab) press(keys string) {
	b.t.Helper()
	b.run("press "+keys, chromedp.KeyEvent(keys))
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
	b.write("#password", password+kb.Enter)
	b.until("the overview is shown", `document.querySelectorAll('[data-node]').length === 3`)
}

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
