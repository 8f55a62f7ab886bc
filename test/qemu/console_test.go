package qemu

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/deploy/fleet"
)

// flood makes a guest send, by its serial console: 25 pings a second to the outside over IPv4, for which
// it needs no neighbour's answer, and as many over IPv6 to a multicast group that nobody is in. It ends
// with the test, or by the function returned.
func (l *lab) flood(t *testing.T, guest string, w *wires) (end func()) {
	t.Helper()
	v4, _ := l.Ends(t, fleet.Outside)
	mac, err := l.Exec(t.Context(), fleet.Outside, "cat", "/sys/class/net/br0/address")
	if err != nil {
		t.Fatal(err)
	}
	began, ended := time.Now(), false
	end = func() {
		if !ended {
			ended = true
			l.console(t, guest, "killall ping; arp -d "+v4.Addr.String())
		}
	}
	t.Cleanup(end)
	l.console(t, guest, fmt.Sprintf("arp -s %s %s; for to in %s ff05::fa11; do ping -q -i 0.04 $to >/dev/null & done", v4.Addr, bytes.TrimSpace(mac), v4.Addr))
	for _, protocol := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} {
		l.Eventually(t, fmt.Sprintf("%s floods with protocol %04x", guest, protocol), func() error {
			if n := w.count(began, func(f frame) bool {
				return f.where == "outside" && f.passed && f.ping && f.protocol == protocol
			}); n < 20 {
				return fmt.Errorf("%d pings came out", n)
			}
			return nil
		})
	}
	return end
}

// console types a line at a guest's serial console, where a shell runs, and waits until it has been run.
func (l *lab) console(t *testing.T, guest, line string) {
	t.Helper()
	if err := l.Type(context.WithoutCancel(t.Context()), guest, line); err != nil {
		t.Fatal(err)
	}
}

// forget makes the bridge outside forget where everyone is: what is for a guest that is not heard goes
// to every node from then on.
func (l *lab) forget(t *testing.T) {
	t.Helper()
	if _, err := l.Exec(context.WithoutCancel(t.Context()), fleet.Outside, "ip", "link", "set", "br0", "type", "bridge", "fdb_flush"); err != nil {
		t.Fatal(err)
	}
}
