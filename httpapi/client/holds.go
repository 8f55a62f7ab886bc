package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/palisade/palisade/httpapi/wire"
)

const (
	jsonLines = "application/jsonl"
	bulkWait  = 2 * time.Minute // for the answer to a bulk request, beside attemptTimeout
)

func targetQuery(t Target) url.Values {
	q := url.Values{}
	set(q, "vm", t.VM)
	set(q, "prefix", t.Prefix)
	set(q, "account", t.Account)
	set(q, "list", t.List)
	return q
}

// PatchBlock changes a block that is not over. Write.IfMatch is needed.
func (c *Client) PatchBlock(ctx context.Context, id string, p BlockPatch, w Write) (Written, error) {
	return c.writeBlock(ctx, w, http.MethodPatch, "/v1/blocks/"+url.PathEscape(id), p)
}

// ConfirmBlock makes a block stay that had to be confirmed.
func (c *Client) ConfirmBlock(ctx context.Context, id string, w Write) (Written, error) {
	return c.writeBlock(ctx, w, http.MethodPost, "/v1/blocks/"+url.PathEscape(id)+"/confirm", nil)
}

// LiftReason ends the blocks of one reason on exactly one target, and returns them. Confirmed is as in Written.
func (c *Client) LiftReason(ctx context.Context, t Target, reason string, w Write) (blocks []Block, confirmed bool, err error) {
	var page wire.Page[Block]
	q := w.call(http.MethodDelete, "/v1/blocks", nil, &page)
	for name, values := range targetQuery(t) {
		q.query[name] = values
	}
	q.query.Set("reason", reason)
	a, err := c.do(ctx, q)
	return page.Items, a.status != http.StatusAccepted, err
}

// BlockReceipts says where a block is in force; if wait is not 0, after every live node confirmed it or that time
// (100 ms to 60 s) has passed.
func (c *Client) BlockReceipts(ctx context.Context, id string, wait time.Duration) (Receipts, error) {
	var out Receipts
	q := call{method: http.MethodGet, path: "/v1/blocks/" + url.PathEscape(id) + "/receipts", query: url.Values{}, out: &out}
	if wait != 0 {
		q.query.Set("wait", wait.String())
		q.wait = wait
	}
	_, err := c.do(ctx, q)
	return out, err
}

// Schedule walks what starts and ends by itself, soonest first.
func (c *Client) Schedule(ctx context.Context) iter.Seq2[Due, error] {
	return all[Due](ctx, c, "/v1/schedule", url.Values{})
}

// Bulk says how a bulk request is made.
type Bulk struct {
	Key    string // idempotency key, at most 240 bytes; random if empty
	Atomic bool   // all elements or none
	DryRun bool   // change nothing
}

// BulkBlocks adds, lifts and changes the blocks of a body of JSON lines (see wire.BulkOp) and returns a result for each
// element: also together with an error, which says that not all were tried.
func (c *Client) BulkBlocks(ctx context.Context, body []byte, b Bulk) ([]BulkResult, error) {
	var results []BulkResult
	q := Write{Key: b.Key}.call(http.MethodPost, "/v1/blocks/bulk", nil, nil)
	q.lines, q.wait = body, bulkWait
	if b.Atomic {
		q.query.Set("atomic", strconv.FormatBool(true))
	}
	if b.DryRun {
		q.query.Set("dry_run", strconv.FormatBool(true))
	}
	q.read = func(answer []byte) error {
		var err error
		results, err = bulkResults(answer)
		return err
	}
	_, err := c.do(ctx, q)
	return results, err
}

// bulkResults reads the answer. A commit that failed on the way is an error that trying again helps: the key
// makes the commits before it have no second effect.
func bulkResults(answer []byte) ([]BulkResult, error) {
	var out []BulkResult
	var failed *Problem
	lines := json.NewDecoder(bytes.NewReader(answer))
	for lines.More() {
		var r BulkResult
		if err := lines.Decode(&r); err != nil {
			return out, errors.Join(errors.New("the answer is not what this client understands"), err)
		}
		if p := r.Problem; failed == nil && p != nil && p.Status >= http.StatusInternalServerError {
			failed = p
		}
		out = append(out, r)
	}
	if failed != nil {
		return out, &retryAfterError{failed, ""}
	}
	return out, nil
}

// Accounts walks the accounts for which something is set, by id.
func (c *Client) Accounts(ctx context.Context) iter.Seq2[Account, error] {
	return all[Account](ctx, c, "/v1/accounts", url.Values{})
}

// Account returns an account that owns a VM, is blocked, or has something set.
func (c *Client) Account(ctx context.Context, id string) (Account, error) {
	return get[Account](ctx, c, "/v1/accounts/"+url.PathEscape(id), nil)
}

// PutAccount replaces what is set for an account.
func (c *Client) PutAccount(ctx context.Context, id string, a AccountRequest, w Write) (Account, error) {
	var out Account
	_, err := c.do(ctx, w.call(http.MethodPut, "/v1/accounts/"+url.PathEscape(id), a, &out))
	return out, err
}

// Settings returns the fleet's settings.
func (c *Client) Settings(ctx context.Context) (Settings, error) {
	return get[Settings](ctx, c, "/v1/settings", nil)
}

// PutSettings replaces the fleet's settings.
func (c *Client) PutSettings(ctx context.Context, s SettingsRequest, w Write) (Settings, error) {
	var out Settings
	_, err := c.do(ctx, w.call(http.MethodPut, "/v1/settings", s, &out))
	return out, err
}
