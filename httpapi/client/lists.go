package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/palisade/palisade/httpapi/wire"
)

// The documents of lists.
//
//nolint:revive // wire documents each of them
type (
	List              = wire.List
	ListResult        = wire.ListResult
	ListPatchRequest  = wire.ListPatchRequest
	ListSourceRequest = wire.ListSourceRequest
)

// listTimeout is how long one attempt to put a list may take.
const listTimeout = 10 * time.Minute

// ListPut says how a list is put in place.
type ListPut struct {
	Origin      string // where the content comes from, for people
	IfMatch     uint64 // revision that the list must have; 0 for any
	SkipInvalid bool   // leave bad lines out
	Force       bool   // allow that a block which holds it comes to touch more than the settings allow; takes the scope admin
	DryRun      bool
	Wait        bool // until every live node has it in its kernel, if a block holds it
	Timeout     time.Duration
}

// Lists walks all lists, by name.
func (c *Client) Lists(ctx context.Context) iter.Seq2[List, error] {
	return all[List](ctx, c, "/v1/lists", url.Values{})
}

// List returns a list without its entries.
func (c *Client) List(ctx context.Context, name string) (List, error) {
	return get[List](ctx, c, listPath(name), nil)
}

func listPath(name string) string { return "/v1/lists/" + url.PathEscape(name) }

// ListEntries walks the entries of a list, all of them or, if within is not empty, those that overlap an address or a
// CIDR.
func (c *Client) ListEntries(ctx context.Context, name, within string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		q := url.Values{}
		set(q, "within", within)
		res, err := c.send(ctx, call{method: http.MethodGet, path: listPath(name) + "/entries", query: q}, nil)
		if err != nil {
			yield("", &ConnectError{err})
			return
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			b, _ := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
			yield("", problemOf(res, b))
			return
		}
		lines := bufio.NewScanner(res.Body)
		for lines.Scan() {
			if !yield(lines.Text(), nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield("", fmt.Errorf("the answer was cut off: %w", err))
		}
	}
}

// PutList replaces a list by the text of r, or creates it. It is sent once: to put the same content again is
// always safe. The text is not kept in memory. Of an error that is no *Problem, the outcome is unknown.
func (c *Client) PutList(ctx context.Context, name string, r io.Reader, o ListPut) (ListResult, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	q := url.Values{}
	set(q, "origin", o.Origin)
	for flag, on := range map[string]bool{"skip_invalid": o.SkipInvalid, "dry_run": o.DryRun, "force": o.Force} {
		if on {
			q.Set(flag, "true")
		}
	}
	if o.Wait {
		q.Set("wait", "enforced")
		if o.Timeout != 0 {
			q.Set("timeout", o.Timeout.String())
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, c.base+listPath(name)+"?"+q.Encode(), r)
	if err != nil {
		return ListResult{}, err
	}
	req.Header.Set("Content-Type", "text/plain")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if o.IfMatch != 0 {
		req.Header.Set("If-Match", `"`+strconv.FormatUint(o.IfMatch, 10)+`"`)
	}
	res, err := c.http.Do(req)
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
			return ListResult{}, &ConnectError{op}
		}
		return ListResult{}, fmt.Errorf("the list may or may not have been put in place; to put it again is safe: %w", err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return ListResult{}, fmt.Errorf("the answer was cut off: %w", err)
	}
	if res.StatusCode/100 != 2 {
		return ListResult{}, problemOf(res, b)
	}
	var out ListResult
	if err := json.Unmarshal(b, &out); err != nil {
		return out, fmt.Errorf("the answer is not what this client understands: %w", err)
	}
	return out, nil
}

// ListPatch says how a list is changed; see ListPut.
type ListPatch struct{ SkipInvalid, Force bool }

// PatchList adds and removes entries, and describes a list.
func (c *Client) PatchList(ctx context.Context, name string, p ListPatchRequest, o ListPatch, w Write) (ListResult, error) {
	var out ListResult
	q := w.call(http.MethodPatch, listPath(name), p, &out)
	if o.SkipInvalid {
		q.query.Set("skip_invalid", "true")
	}
	if o.Force {
		q.query.Set("force", "true")
	}
	_, err := c.do(ctx, q)
	return out, err
}

// DeleteList deletes a list that no block holds.
func (c *Client) DeleteList(ctx context.Context, name string, w Write) error {
	_, err := c.do(ctx, w.call(http.MethodDelete, listPath(name), nil, nil))
	return err
}

// PutListSource has the leader load a list.
func (c *Client) PutListSource(ctx context.Context, name string, s ListSourceRequest, w Write) (List, error) {
	var out List
	_, err := c.do(ctx, w.call(http.MethodPut, listPath(name)+"/source", s, &out))
	return out, err
}

// DeleteListSource has a list loaded no more; its content stays.
func (c *Client) DeleteListSource(ctx context.Context, name string, w Write) (List, error) {
	var out List
	_, err := c.do(ctx, w.call(http.MethodDelete, listPath(name)+"/source", nil, &out))
	return out, err
}
