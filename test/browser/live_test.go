package browser

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"

	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/test/rig"
)

// busily changes a VM that nobody looks at, many times a second, until the test or stop ends it.
func busily(t *testing.T, l *rig.Rig) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ctx.Err() == nil; i++ {
			body := map[string]string{"name": fmt.Sprintf("busy-%d", i)}
			if err := l.Call(ctx, "node-2", "PUT", "/v1/vms/busy", body, nil); err != nil && ctx.Err() == nil {
				t.Errorf("change a VM: %v", err)
				return
			}
		}
	}()
	return func() { cancel(); <-ended }
}

// TestABusyFleetIsShownAsItIs: a page shows what happens to its own while other things change without a pause, and does not ask for
// it with each of them.
func TestABusyFleetIsShownAsItIs(t *testing.T) {
	l := lab(t)
	vm := id(t, l, "guest1")
	b := open(t, l, "node-1")
	b.login("viewer")
	stop := busily(t, l)
	defer stop()
	for _, path := range []string{"/vms/" + vm, "/nodes/node-1"} {
		b.visit(path)
		b.until(path+" is shown", `document.querySelector('h1 .badge')`)
		block, _ := l.Block(t, "node-1", client.Target{VM: vm})
		b.until("the block is shown while others change", `document.querySelector('#main .badge.bad')`)
		l.Lift(t, "node-1", block.ID)
		b.until("the lift is shown while others change", `!document.querySelector('#main .badge.bad')`)
		var asked int
		b.js(`new Promise(done => { performance.clearResourceTimings(); setTimeout(() => done(performance.getEntriesByType('resource').length), 3000) })`, &asked)
		if asked > 20 {
			t.Errorf("%s asks %d times in 3 s", path, asked)
		}
	}
	b.quiet()
}

// TestChangesOnTheirWayLeave: what is in every kernel leaves the overview, though nothing else happens.
func TestChangesOnTheirWayLeave(t *testing.T) {
	l := lab(t)
	b := open(t, l, "node-1")
	b.login("viewer")
	block, _ := l.Block(t, "node-1", client.Target{Prefix: "203.0.113.7"})
	b.until("the block is on its way", `document.querySelector('.flight')?.innerText.includes('`+block.ID+`')`)
	b.until("it has arrived", `!document.querySelector('.flight')`)
	b.quiet()
}

// TestAnAccountShowsWhatIsAgreed: holds that have yet to start are shown beside those in force.
func TestAnAccountShowsWhatIsAgreed(t *testing.T) {
	l := lab(t)
	block, err := l.Clients["node-1"].AddBlock(t.Context(), client.BlockRequest{Target: client.Target{Account: "acme"}, Reason: "unpaid", StartsAt: time.Now().Add(time.Hour)}, client.Write{})
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, l, "node-1")
	b.login("operator")
	b.visit("/accounts/acme")
	b.until("the agreed block is shown", fmt.Sprintf(`[...document.querySelectorAll('#main a')].some(e => e.textContent === %q)`, block.Block.ID))
	b.quiet()
}

// TestWhatIsWrittenStays: settings that somebody else changes meanwhile do not take the place of what is being written; saving it is refused.
func TestWhatIsWrittenStays(t *testing.T) {
	l := lab(t)
	ctx := t.Context()
	c := l.Clients["node-2"]
	was, err := c.Settings(ctx)
	if err == nil {
		was, err = c.PutSettings(ctx, was.SettingsRequest, client.Write{}) // what was never set has no revision to compare
	}
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, l, "node-1")
	b.login("admin")
	b.visit("/settings")
	b.until("the settings are shown", `document.querySelector('#s-title')`)
	b.write("#s-title", ", mine")
	theirs := was.SettingsRequest
	theirs.Redirect.Text = "theirs"
	if _, err := c.PutSettings(ctx, theirs, client.Write{IfMatch: was.Revision}); err != nil {
		t.Fatal(err)
	}
	// What comes after it has come: so has it.
	if err := l.Call(ctx, "node-2", "POST", "/v1/guards", map[string]string{"prefix": "203.0.113.99", "note": "after it"}, nil); err != nil {
		t.Fatal(err)
	}
	b.until("the guard is shown", `document.querySelector('#main').innerText.includes('after it')`)
	b.until("what was written is there", `document.querySelector('#s-title').value.endsWith(', mine')`)
	b.click("Save")
	b.until("it is refused", `document.querySelector('#main [role=alert]')`)
	now, err := c.Settings(ctx)
	if err != nil || now.Redirect.Text != "theirs" || now.Redirect.Title != was.Redirect.Title {
		t.Errorf("the settings are %+v, %v", now, err)
	}
	if _, err := c.PutSettings(ctx, was.SettingsRequest, client.Write{IfMatch: now.Revision}); err != nil {
		t.Error(err)
	}
	if err := l.Call(ctx, "node-2", "DELETE", "/v1/guards/203.0.113.99/32", nil, nil); err != nil {
		t.Error(err)
	}
	b.quiet()
}

// TestBillingLooksAfterItself: whoever may log in can change the own password and end the own sessions.
func TestBillingLooksAfterItself(t *testing.T) {
	l := lab(t)
	if err := l.Call(t.Context(), "node-1", "PUT", "/v1/users/till", map[string]string{"scope": "billing", "password": password}, nil); err != nil {
		t.Fatal(err)
	}
	b := open(t, l, "node-1")
	b.write("#user", "till")
	b.write("#password", password)
	b.press(kb.Enter)
	b.until("the page is shown", `document.querySelector('#main h1')`)
	b.visit("/access")
	b.click("Change the password")
	b.until("the dialog is open", `document.querySelector('dialog[open] #pw-old')`)
	b.write("#pw-old", password)
	b.write("#pw-new", password+" again")
	b.click("Save")
	b.until("it is changed", `!document.querySelector('dialog[open]')`)
	b.quiet()
	other := open(t, l, "node-2")
	other.write("#user", "till")
	other.write("#password", password+" again")
	other.press(kb.Enter)
	other.until("the new password is taken", `document.querySelector('#main h1') && !document.querySelector('#password')`)
	other.quiet()
}
