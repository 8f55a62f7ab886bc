package browser

import (
	"fmt"
	"testing"

	"github.com/palisade/palisade/httpapi/client"
)

// TestALiftSaysWhatStaysBlocked: each block lifts only itself, and the dialog says so before the button.
func TestALiftSaysWhatStaysBlocked(t *testing.T) {
	l := lab(t)
	vm := id(t, l, "guest4")
	abuse, _ := l.Block(t, "node-1", client.Target{VM: "guest4"})
	unpaid, err := l.Clients["node-2"].AddBlock(t.Context(), client.BlockRequest{Target: client.Target{VM: "guest4"}, Reason: "unpaid"}, client.Write{Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, l, "node-3")
	b.login("operator")
	b.visit("/blacklist/" + abuse.ID)
	b.click("Lift " + abuse.ID)
	b.until("it says what stays", fmt.Sprintf(`(s => s?.includes(%q) && s.includes('unpaid'))(document.querySelector('dialog[open] [data-still-held]')?.innerText)`, unpaid.Block.ID))
	b.shoot("lift-still-held")
	b.click("Lift")
	b.until("it is out of every kernel", `document.querySelector('dialog [data-receipts=complete]')`)
	b.click("Close")
	b.visit("/")
	b.until("the VM is still blocked", held(vm))
	b.visit("/blacklist/" + unpaid.Block.ID)
	b.click("Lift " + unpaid.Block.ID)
	b.until("it says that nothing else does", `document.querySelector('dialog[open] [data-freed]')`)
	b.click("Lift")
	b.until("it is out of every kernel", `document.querySelector('dialog [data-receipts=complete]')`)
	b.click("Close")
	b.visit("/")
	b.until("the VM is free", "!"+held(vm))
	b.quiet()
}
