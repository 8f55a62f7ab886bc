package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/palisade/palisade/httpapi/client"
)

// clean makes text from elsewhere harmless for a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			return '\uFFFD'
		}
		return r
	}, s)
}

// cell is clean on one line, and never empty, so that columns can be told apart.
func cell(s string) string {
	s = strings.ReplaceAll(clean(s), "\n", " ")
	if s == "" {
		return "-"
	}
	return s
}

type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, head ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	fmt.Fprintln(t.w, strings.Join(head, "\t"))
	return t
}

func (t *table) row(cells ...string) {
	for i := range cells {
		cells[i] = cell(cells[i])
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func (t *table) flush() error { return t.w.Flush() }

// local writes a time for people.
func local(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// some writes the first few of a list.
func some(list []string, most int) string {
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s, and %d more", strings.Join(list[:most], ", "), len(list)-most)
}

// delay writes how long after the block's change a node's kernel had it: to the tenth of a
// millisecond, or the time itself if an agent has restarted since and can vouch only from then on.
func delay(changed, at time.Time) string {
	d := at.Sub(changed)
	if d < 0 || d > 10*time.Second {
		return "since " + local(at)
	}
	return fmt.Sprintf("+%.1f ms", float64(d.Microseconds())/1000)
}

// printBlock shows one block, where it is in force and where not.
func (g *Globals) printBlock(b *client.Block) {
	changed, verb := b.CreatedAt, "in force on"
	g.printf("%s  %s  reason %s  by %s  %s\n", b.ID, cell(b.Target.String()), cell(b.Reason), cell(b.Actor), local(b.CreatedAt))
	if b.Note != "" {
		g.printf("  note: %s\n", cell(b.Note))
	}
	if b.State == "lifted" {
		changed, verb = b.LiftedAt, "lifted on"
		g.printf("  lifted by %s  %s\n", cell(b.LiftedBy), local(b.LiftedAt))
	}
	if len(b.Receipts) > 0 {
		var on []string
		for _, r := range b.Receipts {
			on = append(on, cell(r.Node)+" "+delay(changed, r.At))
		}
		g.printf("  %s %s\n", verb, strings.Join(on, ", "))
	}
	for _, u := range b.Unconfirmed {
		g.printf("  not confirmed on %s since %s\n", cell(u.Node), local(u.Since))
	}
	if b.Counters != nil && b.Counters.Packets > 0 {
		g.printf("  dropped %d packets, %d bytes\n", b.Counters.Packets, b.Counters.Bytes)
	}
}
