package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/palisade/palisade/audit"
	"github.com/palisade/palisade/httpapi/client"
)

// AuditCmd groups what is done with the audit.
type AuditCmd struct {
	Ls     AuditLsCmd     `cmd:"" aliases:"list" help:"List records, the newest first."`
	Export AuditExportCmd `cmd:"" help:"Write the audit as JSON lines, as it is chained."`
	Verify AuditVerifyCmd `cmd:"" help:"Prove that no record was changed, removed or put elsewhere."`
}

// AuditLsCmd lists records.
type AuditLsCmd struct {
	After   uint64 `placeholder:"SEQ" help:"Only records after this number."`
	Actor   string `help:"Only those of this actor, for example token:billing."`
	Object  string `help:"Only those of the object with this id."`
	Action  string `help:"Only those of this action (block.add) or of one kind of object (block)."`
	Outcome string `help:"Only those with this outcome: done, or the code of a refusal."`
	Limit   int    `default:"50" help:"At most this many; 0 for all."`
	Oldest  bool   `help:"The oldest first."`
}

// Run implements the command.
func (c *AuditLsCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	records := api.Audit(ctx, client.AuditFilter{
		After: c.After, Actor: c.Actor, Object: c.Object, Action: c.Action, Outcome: c.Outcome, Oldest: c.Oldest,
	})
	some := func(yield func(client.AuditRecord, error) bool) {
		n := 0
		for r, err := range records {
			if !yield(r, err) {
				return
			}
			if n++; n == c.Limit {
				return
			}
		}
	}
	return printList(g, some, []string{"SEQ", "TIME", "ACTOR", "FROM", "ACTION", "OBJECT", "OUTCOME"}, func(r client.AuditRecord) []string {
		return []string{strconv.FormatUint(r.Seq, 10), local(r.Time), r.Actor, r.From, r.Action, auditObject(&r), r.Outcome}
	})
}

// auditObject is the object; of a request for a block that was refused, its target.
func auditObject(r *client.AuditRecord) string {
	if r.Object != "" || len(r.Asked) == 0 {
		return r.Object
	}
	var asked struct {
		Target client.Target `json:"target"`
	}
	if err := json.Unmarshal(r.Asked, &asked); err != nil {
		return "" // other requests ask for other things
	}
	return asked.Target.String()
}

// AuditExportCmd writes the lines.
type AuditExportCmd struct {
	First uint64 `placeholder:"SEQ" help:"First record; the oldest that is kept if that is later."`
	Last  uint64 `placeholder:"SEQ" help:"Last record; all there are if it is not given."`
	File  string `arg:"" optional:"" help:"File to write, which must not exist; standard output if it is not given."`
}

// Run implements the command.
func (c *AuditExportCmd) Run(ctx context.Context, g *Globals) error {
	api, err := g.Client()
	if err != nil {
		return err
	}
	if c.File == "" || c.File == "-" {
		return api.ExportAudit(ctx, c.First, c.Last, g.Stdout)
	}
	f, err := os.OpenFile(c.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(api.ExportAudit(ctx, c.First, c.Last, f), f.Sync(), f.Close())
}

// AuditVerifyCmd checks the chain.
type AuditVerifyCmd struct {
	File string `arg:"" optional:"" help:"Exported file to check, without asking anybody; - for standard input. Without it, the node checks its own files, and what it exports is checked here."`
	Head string `placeholder:"SHA256" help:"What the SHA-256 of the last record must be. Without it, a changed last record of a file goes unseen."`
}

// auditVerdict is what was found.
type auditVerdict struct {
	Records uint64 `json:"records"`
	First   uint64 `json:"first"`
	Last    uint64 `json:"last"`
	Head    string `json:"head"`
	// Node is the node's own check.
	Node *client.AuditCheck `json:"node,omitempty"`
}

// Run implements the command.
func (c *AuditVerifyCmd) Run(ctx context.Context, g *Globals) error {
	var found auditVerdict
	var err error
	if c.File != "" {
		found, err = c.verifyFile(g)
	} else {
		found, err = verifyNode(ctx, g)
	}
	if err != nil {
		return err
	}
	if c.Head != "" && !strings.EqualFold(c.Head, found.Head) {
		return fmt.Errorf("%w: record %d has the SHA-256 %s, not %s", errAudit, found.Last, found.Head, c.Head)
	}
	if g.JSON() {
		return g.PrintJSON(found)
	}
	if found.Records == 0 {
		g.printf("there are no records\n")
		return nil
	}
	g.printf("%d records, %d to %d: each continues the one before\nSHA-256 of record %d: %s\n", found.Records, found.First, found.Last, found.Last, found.Head)
	if n := found.Node; n != nil {
		g.printf("node %s says the same of its disk (up to record %d) and its state\n", cell(n.Node), n.Written)
	}
	return nil
}

// errAudit is the error of an audit that is not what it should be.
var errAudit = errors.New("the audit does not verify")

func (c *AuditVerifyCmd) verifyFile(g *Globals) (auditVerdict, error) {
	in, err := g.open(c.File)
	if err != nil {
		return auditVerdict{}, err
	}
	defer in.Close()
	return verifyLines(in)
}

func verifyLines(in io.Reader) (auditVerdict, error) {
	sum, err := audit.Check(in)
	if err != nil {
		return auditVerdict{}, fmt.Errorf("%w: %w", errAudit, err)
	}
	return auditVerdict{Records: sum.Records, First: sum.First, Last: sum.Chain.Seq, Head: hex.EncodeToString(sum.Chain.Head[:])}, nil
}

// verifyNode compares what the node says of its audit with what it gives out.
func verifyNode(ctx context.Context, g *Globals) (auditVerdict, error) {
	api, err := g.Client()
	if err != nil {
		return auditVerdict{}, err
	}
	node, err := api.VerifyAudit(ctx)
	if err != nil {
		return auditVerdict{}, err
	}
	switch {
	case node.Problem != "":
		return auditVerdict{}, fmt.Errorf("%w: node %s: %s", errAudit, clean(node.Node), clean(node.Problem))
	case len(node.Gaps) > 0:
		return auditVerdict{}, fmt.Errorf("%w: node %s has no records %d to %d", errAudit, clean(node.Node), node.Gaps[0].First, node.Gaps[0].Last)
	case node.Records == 0:
		return auditVerdict{Node: &node}, nil
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	out, in := io.Pipe()
	go func() { _ = in.CloseWithError(api.ExportAudit(ctx, 0, node.Last, in)) }() // ends when the reading does
	defer func() { _ = out.Close() }()
	found, err := verifyLines(out)
	if err != nil {
		return auditVerdict{}, err
	}
	if found.Last != node.Last || found.Head != node.Head {
		return auditVerdict{}, fmt.Errorf("%w: node %s says that record %d has the SHA-256 %s; it exports record %d with %s",
			errAudit, clean(node.Node), node.Last, clean(node.Head), found.Last, found.Head)
	}
	found.Node = &node
	return found, nil
}
