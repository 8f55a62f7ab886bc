package client

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/palisade/palisade/httpapi/wire"
)

// The documents of the audit.
//
//nolint:revive // wire documents each of them
type (
	AuditRecord = wire.AuditRecord
	AuditCheck  = wire.AuditCheck
)

// AuditFilter chooses records; what is empty chooses all.
type AuditFilter struct {
	After                          uint64 // only records after this number
	Actor, Object, Action, Outcome string
	Oldest                         bool // oldest first; else newest first
}

// Audit walks the records of the audit that the filter chooses.
func (c *Client) Audit(ctx context.Context, f AuditFilter) iter.Seq2[AuditRecord, error] {
	q := url.Values{}
	set(q, "actor", f.Actor)
	set(q, "object", f.Object)
	set(q, "action", f.Action)
	set(q, "outcome", f.Outcome)
	if f.After != 0 {
		q.Set("after", strconv.FormatUint(f.After, 10))
	}
	if f.Oldest {
		q.Set("order", "oldest")
	}
	return all[AuditRecord](ctx, c, "/v1/audit", q)
}

// verifyWait is how long a node may take to read all its files.
const verifyWait = 10 * time.Minute

// VerifyAudit lets the node check its own files, and that they end where its state does.
func (c *Client) VerifyAudit(ctx context.Context) (AuditCheck, error) {
	var out AuditCheck
	_, err := c.do(ctx, call{method: http.MethodGet, path: "/v1/audit/verify", out: &out, wait: verifyWait})
	return out, err
}

// ExportAudit writes the lines of the records from first to last to w, as they are; 0 for last is all there are. It is
// not tried again: an error says that w has not got all of them.
func (c *Client) ExportAudit(ctx context.Context, first, last uint64, w io.Writer) error {
	q := url.Values{"from": {strconv.FormatUint(first, 10)}, "to": {strconv.FormatUint(last, 10)}}
	return c.download(ctx, "/v1/audit/export", q, w)
}

// DebugBundle writes a node's debug bundle, a gzipped tar, to w. An error says that w has not got all of it.
func (c *Client) DebugBundle(ctx context.Context, w io.Writer) error {
	return c.download(ctx, "/v1/debug/bundle", nil, w)
}

// download copies an answer that is no JSON to w. It is not tried again.
func (c *Client) download(ctx context.Context, path string, q url.Values, w io.Writer) error {
	res, err := c.send(ctx, call{method: http.MethodGet, path: path, query: q}, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
		if err != nil {
			return fmt.Errorf("the answer was cut off: %w", err)
		}
		return problemOf(res, b)
	}
	if _, err := io.Copy(w, res.Body); err != nil {
		return fmt.Errorf("the answer was cut off: %w", err)
	}
	return nil
}
