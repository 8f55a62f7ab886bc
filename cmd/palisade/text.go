package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

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

// ellipsized cuts a text to a number of characters.
func ellipsized(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:max(most-1, 0)]) + "…"
}

// fit cuts the cells of some columns, those that are widest, until the rows with their heads have at most width
// characters, as far as each keeps its least.
func fit(rows [][]string, width int, least map[int]int) {
	if len(rows) == 0 {
		return
	}
	widths := make([]int, len(rows[0]))
	total := 2 * (len(widths) - 1)
	for _, row := range rows {
		for i, s := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(s))
		}
	}
	for _, w := range widths {
		total += w
	}
	for ; total > width; total-- {
		widest := -1
		for i, n := range least {
			if widths[i] > n && (widest < 0 || widths[i] > widths[widest] || widths[i] == widths[widest] && i < widest) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	for _, row := range rows {
		for i := range least {
			row[i] = ellipsized(row[i], widths[i])
		}
	}
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

// localLayout is how times are shown, and one of the ways to give them.
const localLayout = "2006-01-02 15:04:05Z07:00"

// local writes a time for people, with their zone.
func local(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Local().Format(localLayout)
}

// brief writes a time for a table: without the year if it is this one, and without seconds.
func brief(t, now time.Time) string {
	switch t, now := t.Local(), now.Local(); {
	case t.IsZero():
		return ""
	case t.Year() == now.Year():
		return t.Format("01-02 15:04")
	default:
		return t.Format("2006-01-02")
	}
}

// optional is local for a time that may not be set.
func optional(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return local(t)
}

// count writes a number of things.
func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

func blockedBy(ids []string) string {
	if len(ids) == 0 {
		return "no"
	}
	return "by " + cell(strings.Join(ids, ", "))
}

// what says what a block does, as short as it is given: "drop", "limit 10mbit out".
func what(b *client.Block) string {
	words := []string{b.Kind}
	if b.Rate != nil {
		words = append(words, rateText(b.Rate))
	}
	if len(b.Ports) > 0 {
		ports := make([]string, len(b.Ports))
		for i, p := range b.Ports {
			ports[i] = p.String()
		}
		words = append(words, some(ports, 4))
	}
	if b.RedirectTo != "" {
		words = append(words, "to "+b.RedirectTo)
	}
	if b.Direction != "both" {
		words = append(words, b.Direction)
	}
	return strings.Join(words, " ")
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
	g.printf("%s  %s  %s  reason %s  by %s  %s\n", b.ID, cell(targetText(b)), cell(what(b)), cell(b.Reason), cell(b.Actor), local(b.CreatedAt))
	if b.Note != "" {
		g.printf("  note: %s\n", cell(b.Note))
	}
	changed, verb := b.Since, "in force on"
	switch b.State {
	case "pending":
		changed, verb = b.CreatedAt, "agreed with"
		g.printf("  starts %s\n", local(b.StartsAt))
	case "active":
		if !b.StartsAt.IsZero() {
			g.printf("  started %s\n", local(b.StartedAt))
		}
	case "ended":
		changed, verb = b.LiftedAt, "lifted on"
		why := "as agreed"
		if b.LiftedBy == "schedule:unconfirmed" {
			why = "because nobody confirmed it"
		}
		g.printf("  ended %s, %s\n", local(b.LiftedAt), why)
	default:
		changed, verb = b.LiftedAt, "lifted on"
		g.printf("  lifted by %s  %s\n", cell(b.LiftedBy), local(b.LiftedAt))
	}
	if end := until(b); end != "" {
		g.printf("  ends %s\n", end)
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
