package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/httpapi/wire"
)

// TestTheTableOfBlocksFits on a terminal, whatever is in it; what tells blocks apart stays.
func TestTheTableOfBlocksFits(t *testing.T) {
	now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	port := client.Port{Protocol: "tcp", From: 60000, To: 65535}
	blocks := []client.Block{
		{ID: "b1", Target: client.Target{Prefix: "192.0.2.7"}, Kind: "drop", Direction: "both", Reason: "abuse", State: "active", Since: now},
		{
			ID: "b1234567", Target: client.Target{Prefix: "2001:db8:1111:2222:3333:4444:5555:6600/120"}, Kind: "ports", Direction: "out",
			Ports: []client.Port{port, port, port, port, port}, Reason: strings.Repeat("r", 64), State: "pending", StartsAt: now, ConfirmBy: now.AddDate(1, 0, 0),
			Counters: &wire.Counters{Packets: 123456789012}, Unconfirmed: make([]wire.Unconfirmed, 1000),
		},
		{ID: "b3", Target: client.Target{VM: strings.Repeat("ü", 100)}, VMName: "x", Kind: "redirect", RedirectTo: "[2001:db8::1]:80", Direction: "both", Reason: "unpaid", State: "ended", LiftedAt: now.AddDate(-1, 0, 0)},
	}
	for _, state := range []string{"active", "all"} {
		var out bytes.Buffer
		if err := (&Globals{Stdout: &out}).printBlocks(blocks, state, now); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > tableWidth {
				t.Errorf("%d characters: %s", n, line)
			}
		}
		for _, want := range []string{"b1 ", "192.0.2.7 ", "b1234567 ", "2001:db8:11", "ports ", "…", "123456789012", "0/1000", "2027-05-06 *", "unless it is confirmed", "2025-05-06"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in:\n%s", want, out.String())
			}
		}
	}
}
