package test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
)

// visit asks for a page over plain HTTP, as a visitor at a place does, and returns all that was answered.
func (l *lab) visit(t *testing.T, where string, address netip.Addr, port int) (string, error) {
	t.Helper()
	script := fmt.Sprintf(`exec 3<>/dev/tcp/%s/%d && printf 'GET / HTTP/1.0\r\nHost: shop.example\r\n\r\n' >&3 && cat <&3`, address, port)
	out, err := l.Exec(t.Context(), where, "timeout", "5", "bash", "-c", script)
	return string(out), err
}

func (l *lab) add(t *testing.T, req client.BlockRequest) client.Block {
	t.Helper()
	w, err := l.Clients["node-2"].AddBlock(t.Context(), req, client.Write{Wait: true, Timeout: 20 * time.Second})
	if err != nil || !w.Confirmed {
		t.Fatalf("block %+v: %+v, %v", req, w.Block, err)
	}
	return w.Block
}

// TestVisitorsOfASuspendedGuestGetThePage: a bridged and a routed guest, visited from the same bridge, from
// another node, from a node itself and from outside, over IPv4 and IPv6. Nothing else gets through.
func TestVisitorsOfASuspendedGuestGetThePage(t *testing.T) {
	l := sharedLab(t)
	if _, err := l.Clients["node-1"].PutSettings(t.Context(), client.SettingsRequest{
		MaxVMs: 100, MaxAddresses: 65536, Redirect: client.RedirectPage{Title: "Closed", Text: "The rent is due.", Link: "https://pay.example/"},
	}, client.Write{}); err != nil {
		t.Fatal(err)
	}
	visitors := map[string][]string{
		"guest1": {"guest2", "guest3", "node-1", "node-2", fleet.Outside},
		"guest7": {"guest3", "guest5", "node-1", fleet.Outside},
	}
	for guest, from := range visitors {
		t.Run(guest, func(t *testing.T) {
			f := l.Flows(t)
			var victims []*probe.Flow
			for _, where := range from {
				victims = append(victims, f.UDP(guest, where)...)
			}
			innocents := f.UDP("guest4", "guest5")
			f.Passing(append(append([]*probe.Flow{}, victims...), innocents...))
			block := l.add(t, client.BlockRequest{Target: client.Target{VM: guest}, Kind: "redirect", Reason: "unpaid"})
			since := time.Now()
			v4, v6 := l.Ends(t, guest)
			for _, where := range from {
				for _, address := range []netip.Addr{v4.Addr, v6.Addr} {
					page, err := l.visit(t, where, address, 80)
					if !strings.HasPrefix(page, "HTTP/1.0 503 ") && !strings.HasPrefix(page, "HTTP/1.1 503 ") {
						t.Errorf("%s asks %s for a page: %v %.80q", where, address, err, page)
						continue
					}
					for _, want := range []string{"Closed", "The rent is due.", "https://pay.example/", "Cache-Control: no-store"} {
						if !strings.Contains(page, want) {
							t.Errorf("%s gets a page without %q:\n%s", where, want, page)
						}
					}
				}
			}
			rest(time.Second)
			f.Silent(victims, since)
			l.Lift(t, "node-1", block.ID)
			f.Passing(victims)
			f.Lossless(innocents)
		})
	}
}

// TestAnAccountIsHeldWithAllItsGuests of now and later, on all nodes, and a guarded one is not.
func TestAnAccountIsHeldWithAllItsGuests(t *testing.T) {
	l := sharedLab(t)
	own := func(guest, owner string) {
		t.Helper()
		vm, err := l.Clients["node-1"].VM(t.Context(), guest)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Clients["node-1"].PutVM(t.Context(), vm.ID, client.VMRequest{Owner: owner, Addresses: vm.Declared}, client.Write{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := l.Clients["node-1"].PutVM(context.Background(), vm.ID, client.VMRequest{Addresses: vm.Declared}, client.Write{}); err != nil {
				t.Error(err)
			}
		})
	}
	f := l.Flows(t)
	first, second, other := f.UDP("guest1", fleet.Outside), f.UDP("guest3", fleet.Outside), f.UDP("guest5", fleet.Outside)
	f.Passing(append(append(append([]*probe.Flow{}, first...), second...), other...))
	own("guest1", "acct-42")
	own("guest5", "acct-42")
	if _, err := l.Clients["node-1"].AddGuard(t.Context(), client.GuardRequest{VM: "guest5"}, client.Write{}); err != nil {
		t.Fatal(err)
	}
	block := l.add(t, client.BlockRequest{Target: client.Target{Account: "acct-42"}, Reason: "abuse"})
	since := time.Now()
	own("guest3", "acct-42") // joins the account later
	if r, err := l.Clients["node-1"].BlockReceipts(t.Context(), block.ID, 10*time.Second); err != nil || !r.Complete {
		t.Fatalf("receipts %+v, %v", r, err)
	}
	rest(500 * time.Millisecond)
	joined := time.Now()
	rest(500 * time.Millisecond)
	f.Silent(first, since)
	f.Silent(second, joined)
	l.Lift(t, "node-3", block.ID)
	f.Passing(first)
	f.Passing(second)
	f.Lossless(other)
	if err := l.Clients["node-1"].RemoveVMGuard(t.Context(), "guest5", client.Write{}); err != nil {
		t.Fatal(err)
	}
}
