package browser

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/palisade/palisade/httpapi/client"
)

// holding is what a tab's requests are stopped by: each waits until it is let go, or failed.
type holding struct {
	b       *tab
	end     context.CancelFunc
	stopped chan fetch.RequestID
}

// hold stops the page's requests that match a pattern, before they are sent or when their answers have come.
func (b *tab) hold(pattern string, when fetch.RequestStage) *holding {
	b.t.Helper()
	ctx, end := context.WithCancel(b.ctx)
	h := &holding{b: b, end: end, stopped: make(chan fetch.RequestID, 100)}
	chromedp.ListenTarget(ctx, func(ev any) {
		if e, ok := ev.(*fetch.EventRequestPaused); ok {
			h.stopped <- e.RequestID
		}
	})
	b.run("stop "+pattern, fetch.Enable().WithPatterns([]*fetch.RequestPattern{{URLPattern: pattern, RequestStage: when}}))
	return h
}

// next waits for a request that is stopped.
func (h *holding) next(what string) fetch.RequestID {
	h.b.t.Helper()
	select {
	case id := <-h.stopped:
		return id
	case <-time.After(patience):
		h.b.t.Fatalf("%s: no request is stopped: %s", h.b.node, what)
		return ""
	}
}

// release lets go of a request, and of all that come.
func (h *holding) release(actions ...chromedp.Action) {
	h.b.t.Helper()
	h.end()
	h.b.run("let the requests go", append(actions, fetch.Disable())...)
}

// told is an expression: the list of events has more than n of a block.
func told(block string, n int) string {
	return fmt.Sprintf(`document.querySelectorAll('.feed a[href="/blacklist/%s"]').length > %d`, block, n)
}

// TestAPageMissesNoEvent: an event that comes while the page reads, or whose reading fails, is not lost. The page reads
// what a block holds again after an event, and what an answer says may be older than the event.
func TestAPageMissesNoEvent(t *testing.T) {
	l := lab(t)
	guest, err := l.Guest("guest2")
	if err != nil {
		t.Fatal(err)
	}
	vm, home := guest.VM, guest.Node
	b := open(t, l, "node-2")
	b.login("viewer")

	var prefixes byte
	stir := func() { // makes the page read
		prefixes++
		l.Block(t, "node-1", client.Target{Prefix: fmt.Sprintf("203.0.113.%d/32", prefixes)})
	}
	events := func(block string) (n int) {
		b.js(fmt.Sprintf(`document.querySelectorAll('.feed a[href="/blacklist/%s"]').length`, block), &n)
		return n
	}
	read := `performance.getEntriesByType('resource').filter(e => e.name.includes('/v1/vms')).length`
	frames := `new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r(true))))`

	block, _ := l.Block(t, "node-1", client.Target{VM: "guest2"})
	b.until("the guest is held", held(vm))
	h := b.hold("*/v1/vms*", fetch.RequestStageResponse)
	stir()
	h.next("the page reads the VMs after a block")
	n := events(block.ID)
	l.Lift(t, "node-1", block.ID)
	b.until("the page hears of the lift while it reads", told(block.ID, n))
	h.release()
	b.until("the guest is free, though the answer was of before", "!"+held(vm))

	block, _ = l.Block(t, "node-1", client.Target{VM: "guest2"})
	b.until("the guest is held again", held(vm))
	h = b.hold("*/v1/vms*", fetch.RequestStageRequest)
	l.Lift(t, "node-1", block.ID)
	h.release(fetch.FailRequest(h.next("the page reads the VMs after a lift"), network.ErrorReasonConnectionReset))
	b.until("the guest is free, though the reading failed", "!"+held(vm))

	b.until("the guest is where it began", on(vm, home))
	h = b.hold("*/v1/vms*", fetch.RequestStageResponse)
	stir()
	h.next("the page reads the VMs")
	var before, after int
	b.js(read, &before)
	l.Move(t, "guest2", "node-3")
	b.until("the page hears of the move while it reads", on(vm, "node-3"))
	h.release()
	for deadline := time.Now().Add(patience); after <= before; b.js(read, &after) {
		if time.Now().After(deadline) {
			t.Fatal("the answer does not come")
		}
	}
	b.js(frames, new(bool))
	var there bool
	if b.js("!!("+on(vm, "node-3")+")", &there); !there {
		t.Error("an answer of before the move has put the guest back")
	}
	b.quiet()
	l.Move(t, "guest2", home)
}

// TestABusyPictureGoesOn: while events keep coming, each answer is of before the last of them. It is shown all the same.
func TestABusyPictureGoesOn(t *testing.T) {
	l := lab(t)
	t.Cleanup(func() { l.Heal(t) })
	b := open(t, l, "node-1")
	b.login("operator")
	b.until("the overview is shown", `document.querySelector('.feed li')`)
	h := b.hold("*/v1/schedule*", fetch.RequestStageResponse)
	due, err := l.Clients["node-3"].AddBlock(t.Context(), client.BlockRequest{Target: client.Target{VM: "guest3"}, StartsAt: time.Now().Add(2 * time.Hour)}, client.Write{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		answer := h.next("the page reads what is due")
		block, _ := l.Block(t, "node-2", client.Target{Prefix: fmt.Sprintf("203.0.113.%d/32", 200+i)})
		b.until("the page hears of a block meanwhile", told(block.ID, 0))
		b.run("let the answer go", fetch.ContinueRequest(answer))
	}
	h.next("the page reads again, because that was of before")
	var shown bool
	if b.js(fmt.Sprintf(`[...document.querySelectorAll('#main section')].some(e => e.innerText.startsWith('Schedule') && e.innerText.includes(%q))`, due.Block.ID), &shown); !shown {
		t.Error("what came is not shown")
	}
	h.release()
	b.quiet()
}
