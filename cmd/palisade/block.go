package main

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/httpapi/wire"
)

// BlockCmd groups what is done with blocks.
type BlockCmd struct {
	Add      BlockAddCmd      `cmd:"" help:"Block a VM, an address, a prefix, an account or a list, now or later, on every node."`
	Ls       BlockLsCmd       `cmd:"" aliases:"list" help:"List blocks."`
	Show     BlockShowCmd     `cmd:"" help:"Show a block, where it is in force and what it dropped."`
	Edit     BlockEditCmd     `cmd:"" help:"Change when a block starts or ends, or its note."`
	Confirm  BlockConfirmCmd  `cmd:"" help:"Confirm a block that was added with --confirm-within, so that it stays."`
	Lift     BlockLiftCmd     `cmd:"" help:"Lift blocks, or cancel pending ones. Other blocks on the same target stay."`
	Receipts BlockReceiptsCmd `cmd:"" help:"Show which nodes have the block's last change in their kernel, and wait for them."`
	Bulk     BlockBulkCmd     `cmd:"" help:"Add, lift and change thousands of blocks from a file of JSON lines."`
}

// Waiting are the flags of writes that can wait until they are in force.
type Waiting struct {
	Wait    bool          `help:"Wait until every live node has it in its kernel."`
	Timeout time.Duration `default:"5s" help:"How long to wait, 100ms to 60s."`
	Key     string        `placeholder:"KEY" help:"Idempotency key: the same command with the same key has one effect."`
	DryRun  bool          `help:"Change nothing; show what would happen and what it would touch."`
}

// write returns how to write, and where a dry run puts what would happen.
func (w *Waiting) write() (client.Write, *client.Preview) {
	out := client.Write{Key: w.Key, Wait: w.Wait, Timeout: w.Timeout}
	if w.DryRun {
		out.Preview = new(client.Preview)
	}
	return out, out.Preview
}

// Sort are the flags that say what TARGET is.
type Sort struct {
	VM      bool `name:"vm" xor:"sort" help:"TARGET is a VM, whatever it looks like."`
	Prefix  bool `xor:"sort" help:"TARGET is an address or CIDR."`
	Account bool `xor:"sort" help:"TARGET is an account: all VMs that it owns, now and later."`
	List    bool `xor:"sort" help:"TARGET is the name of a list."`
}

// addressLike is what is meant as an address, also if it is none.
var addressLike = regexp.MustCompile(`^[0-9]+(\.[0-9]+)+$|:|/`)

// target finds out what is meant: everything that is or tries to be an address or CIDR is a prefix.
func (s *Sort) target(text string) client.Target {
	switch {
	case s.Account:
		return client.Target{Account: text}
	case s.List:
		return client.Target{List: text}
	case s.Prefix || !s.VM && addressLike.MatchString(text):
		return client.Target{Prefix: text}
	}
	return client.Target{VM: text}
}

// BlockAddCmd blocks a target.
type BlockAddCmd struct {
	Target string `arg:"" help:"Address, CIDR, VM id, or a name that only one VM has; an account or list with its flag."`
	Sort
	Kind       string `enum:",drop,reject,limit,ports,redirect" default:"" placeholder:"KIND" help:"drop, reject, limit, ports or redirect; drop if not given and not implied by --rate, --port or --redirect-to."`
	Direction  string `enum:"both,in,out" default:"both" help:"Seen from the target: both, in (to it) or out (from it). What attackers send is out of them."`
	Rate       rate   `placeholder:"RATE" help:"Let so much pass in each direction, for example 10mbit or 5000pps."`
	Port       []port `placeholder:"PORT" help:"Drop only these destination ports, for example tcp/25, udp/1000-2000 or icmp. Can be repeated."`
	RedirectTo string `placeholder:"ADDRESS:PORT" help:"Answer visitors from this HTTP server instead of the node's own page."`
	Reason     string `default:"manual" complete:"unpaid abuse attack maintenance legal manual" help:"Why, for machines: unpaid, abuse, attack, maintenance, legal, manual or another word. Each reason lifts only itself."`
	Note       string `help:"Why, for people."`

	At            moment `placeholder:"TIME" help:"Start then: +2h from now, or a time like 2026-01-31T08:00:00+01:00."`
	For           span   `xor:"end" placeholder:"DURATION" help:"End by itself so long after the start, for example 72h or 7d."`
	Until         moment `xor:"end" placeholder:"TIME" help:"End by itself then."`
	ConfirmWithin span   `placeholder:"DURATION" help:"End by itself so long after the start unless it is confirmed."`
	Force         bool   `help:"Allow to hold more than the settings allow. Takes the scope admin."`
	Waiting
}

// kind is the one given, or the one that the parameters imply.
func (c *BlockAddCmd) kind() string {
	switch {
	case c.Kind != "":
		return c.Kind
	case c.Rate.given():
		return "limit"
	case len(c.Port) > 0:
		return "ports"
	case c.RedirectTo != "":
		return "redirect"
	}
	return "drop"
}

// Run implements the command.
func (c *BlockAddCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	req := client.BlockRequest{
		Target: c.target(c.Target), Kind: c.kind(), Direction: c.Direction, RedirectTo: c.RedirectTo,
		Reason: c.Reason, Note: c.Note, StartsAt: c.At.Time, EndsAt: c.Until.Time, Duration: string(c.For),
		ConfirmWithin: string(c.ConfirmWithin), Force: c.Force,
	}
	if c.Rate.given() {
		req.Rate = (*client.Rate)(&c.Rate)
	}
	for _, p := range c.Port {
		req.Ports = append(req.Ports, client.Port(p))
	}
	write, preview := c.write()
	w, err := api.AddBlock(ctx, req, write)
	if err != nil {
		return err
	}
	if preview != nil {
		return g.printPreview(preview)
	}
	done := "blocked"
	if w.Block.Kind != "drop" || w.Block.State == "pending" {
		done = what(&w.Block)
	}
	return g.printWritten(w, c.Wait, done)
}

// printWritten prints a block that was just changed.
func (g *Globals) printWritten(w client.Written, waited bool, done string) error {
	b := &w.Block
	switch {
	case g.JSON():
		if err := g.PrintJSON(b); err != nil {
			return err
		}
	case waited:
		g.printBlock(b)
	default:
		again := ""
		if w.Replayed {
			again = " (done before, with this key)"
		}
		g.printf("%s  %s %s%s%s\n", b.ID, cell(targetText(b)), done, due(b), again)
	}
	if w.Confirmed {
		return nil
	}
	return unconfirmed(b)
}

// BlockLsCmd lists blocks.
type BlockLsCmd struct {
	Target string `arg:"" optional:"" help:"Only blocks on exactly this VM, address, CIDR, account or list."`
	Sort
	Reason string `complete:"unpaid abuse attack maintenance legal manual" help:"Only blocks with this reason."`
	Actor  string `help:"Only blocks that this caller asked for, for example token:billing."`
	Kind   string `enum:",drop,reject,limit,ports,redirect" default:"" placeholder:"KIND" help:"Only blocks of this kind: drop, reject, limit, ports or redirect."`
	State  string `enum:"pending,active,lifted,ended,all" default:"active" help:"pending, active, lifted, ended or all."`
}

// Run implements the command.
func (c *BlockLsCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	f := client.BlockFilter{Reason: c.Reason, Actor: c.Actor, Kind: c.Kind, State: c.State}
	if c.Target != "" {
		t := c.target(c.Target)
		f.VM, f.Prefix, f.Account, f.List = t.VM, t.Prefix, t.Account, t.List
	}
	blocks := wire.Page[client.Block]{Items: []client.Block{}}
	for b, err := range api.Blocks(ctx, f) {
		if err != nil {
			return err
		}
		blocks.Items = append(blocks.Items, b)
	}
	if g.JSON() {
		return g.PrintJSON(blocks)
	}
	return g.printBlocks(blocks.Items, c.State, time.Now())
}

// tableWidth is how wide the table of blocks is at most.
const tableWidth = 100

// printBlocks prints a table that fits on a terminal; show has what was left out.
func (g *Globals) printBlocks(blocks []client.Block, state string, now time.Time) error {
	when := cmp.Or(map[string]string{"pending": "STARTS", "lifted": "LIFTED", "ended": "ENDED"}[state], "SINCE")
	rows := [][]string{{"ID", "TARGET", "WHAT", "REASON", when, "UNTIL", "NODES", "DROPPED"}}
	unless := false
	for i := range blocks {
		b := &blocks[i]
		dropped := ""
		if b.Counters != nil {
			dropped = strconv.FormatUint(b.Counters.Packets, 10)
		}
		end := ""
		if at, confirm := ends(b); !at.IsZero() {
			if end = brief(at, now); confirm {
				end, unless = end+" *", true
			}
		}
		rows = append(rows, []string{b.ID, targetText(b), what(b), b.Reason, since(b, now), end,
			fmt.Sprintf("%d/%d", len(b.Receipts), len(b.Receipts)+len(b.Unconfirmed)), dropped})
	}
	if state == "all" {
		rows[0] = append(rows[0], "STATE")
		for i := range blocks {
			rows[i+1] = append(rows[i+1], blocks[i].State)
		}
	}
	for _, row := range rows[1:] {
		for i := range row {
			row[i] = cell(row[i])
		}
	}
	fit(rows, tableWidth, map[int]int{1: 14, 2: 7, 3: 7})
	t := newTable(g.Stdout, rows[0]...)
	for _, row := range rows[1:] {
		t.row(row...)
	}
	if err := t.flush(); err != nil {
		return err
	}
	if unless {
		g.printf("* unless it is confirmed before\n")
	}
	return nil
}

// since is when the block came to its state; of a pending block when it will start.
func since(b *client.Block, now time.Time) string {
	switch b.State {
	case "pending":
		return brief(b.StartsAt, now)
	case "active":
		return brief(b.Since, now)
	}
	return brief(b.LiftedAt, now)
}

// ends is when the block ends by itself next, zero if it does not, and whether that is unless it is confirmed.
func ends(b *client.Block) (at time.Time, unlessConfirmed bool) {
	switch {
	case b.State == "lifted" || b.State == "ended":
		return time.Time{}, false
	case !b.ConfirmBy.IsZero() && (b.EndsAt.IsZero() || b.ConfirmBy.Before(b.EndsAt)):
		return b.ConfirmBy, true
	}
	return b.EndsAt, false
}

// until is when the block ends by itself next, for a sentence.
func until(b *client.Block) string {
	switch at, unlessConfirmed := ends(b); {
	case at.IsZero():
		return ""
	case unlessConfirmed:
		return local(at) + " unless confirmed"
	default:
		return local(at)
	}
}

// due is what will happen to the block by itself, behind other words.
func due(b *client.Block) string {
	out := ""
	if b.State == "pending" {
		out = ", starts " + local(b.StartsAt)
	}
	if end := until(b); end != "" {
		out += ", ends " + end
	}
	return out
}

// BlockShowCmd shows one block.
type BlockShowCmd struct {
	ID string `arg:"" help:"Id of the block, for example b17."`
}

// Run implements the command.
func (c *BlockShowCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	b, err := api.Block(ctx, c.ID)
	if err != nil {
		return err
	}
	if g.JSON() {
		return g.PrintJSON(b)
	}
	g.printBlock(&b)
	return nil
}

// targetText is a target for people: with the name of a VM, and with what it is where that is not plain.
func targetText(b *client.Block) string {
	t := b.Target
	switch {
	case t.Account != "":
		return "account " + t.Account
	case t.List != "":
		return "list " + t.List
	case t.VM != "" && cmp.Or(b.VMName, t.VM) != t.VM:
		return t.VM + " (" + b.VMName + ")"
	}
	return t.String()
}
