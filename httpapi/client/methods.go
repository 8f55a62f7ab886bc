package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/palisade/palisade/httpapi/wire"
)

// Write says how a write is made. The zero value is a plain write with a key of its own.
type Write struct {
	Key     string        // idempotency key; random if empty
	IfMatch uint64        // revision that the object must have; 0 for any
	Wait    bool          // until every live node has it in its kernel
	Timeout time.Duration // of Wait, 100 ms to 60 s; the server's default (5 s) if 0
	// Preview, if not nil, makes the write a dry run: nothing is changed, what would happen is put there, and
	// the call returns nothing else. A refusal is a part of the preview and no error.
	Preview *Preview
}

// Written is the answer to a write of a block.
type Written struct {
	Block Block
	// Confirmed says, after Wait, that every live node has it in its kernel; without Wait it is true.
	Confirmed bool
	Replayed  bool // the key was known: nothing new was done
}

func (w Write) call(method, path string, body, out any) call {
	q := call{method: method, path: path, body: body, out: out, key: w.Key, ifMatch: w.IfMatch, query: url.Values{}}
	if q.key == "" {
		q.key = NewKey()
	}
	if w.Preview != nil {
		q.query.Set("dry_run", "true")
		q.out = w.Preview
	}
	if w.Wait {
		q.query.Set("wait", "enforced")
		q.wait = 5 * time.Second
		if w.Timeout != 0 {
			q.query.Set("timeout", w.Timeout.String())
			q.wait = w.Timeout
		}
	}
	return q
}

func (c *Client) writeBlock(ctx context.Context, w Write, method, path string, body any) (Written, error) {
	var out Written
	a, err := c.do(ctx, w.call(method, path, body, &out.Block))
	out.Confirmed, out.Replayed = a.status != http.StatusAccepted, a.replayed
	if err != nil {
		return Written{}, err
	}
	return out, nil
}

// AddBlock blocks a VM, a prefix, an account or a list.
func (c *Client) AddBlock(ctx context.Context, b BlockRequest, w Write) (Written, error) {
	return c.writeBlock(ctx, w, http.MethodPost, "/v1/blocks", b)
}

// LiftBlock ends a block, or cancels a pending one.
func (c *Client) LiftBlock(ctx context.Context, id string, w Write) (Written, error) {
	return c.writeBlock(ctx, w, http.MethodDelete, "/v1/blocks/"+url.PathEscape(id), nil)
}

// PutVM declares a VM.
func (c *Client) PutVM(ctx context.Context, id string, vm VMRequest, w Write) (VM, error) {
	var out VM
	_, err := c.do(ctx, w.call(http.MethodPut, "/v1/vms/"+url.PathEscape(id), vm, &out))
	return out, err
}

// AddGuard makes a prefix or a VM unblockable.
func (c *Client) AddGuard(ctx context.Context, g GuardRequest, w Write) (Guard, error) {
	var out Guard
	_, err := c.do(ctx, w.call(http.MethodPost, "/v1/guards", g, &out))
	return out, err
}

// RemoveVMGuard removes the guard of a VM.
func (c *Client) RemoveVMGuard(ctx context.Context, vm string, w Write) error {
	_, err := c.do(ctx, w.call(http.MethodDelete, "/v1/guards/vm/"+url.PathEscape(vm), nil, nil))
	return err
}

// RemoveGuard removes an operator's guard of a prefix.
func (c *Client) RemoveGuard(ctx context.Context, prefix string, w Write) error {
	_, err := c.do(ctx, w.call(http.MethodDelete, "/v1/guards/"+url.PathEscape(prefix), nil, nil))
	return err
}

// get reads one document.
func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var out T
	_, err := c.do(ctx, call{method: http.MethodGet, path: path, query: query, out: &out})
	return out, err
}

// all walks every page of a list. It ends with the first error.
func all[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		query.Set("limit", "1000")
		for {
			p, err := get[wire.Page[T]](ctx, c, path, query)
			if err != nil {
				var zero T
				yield(zero, err)
				return
			}
			for _, item := range p.Items {
				if !yield(item, nil) {
					return
				}
			}
			if p.Next == nil {
				return
			}
			query.Set("cursor", *p.Next)
		}
	}
}

func set(q url.Values, name, value string) {
	if value != "" {
		q.Set(name, value)
	}
}

// BlockFilter selects blocks; empty fields select all.
type BlockFilter struct {
	VM     string // id or unique name
	Prefix string
	// Account and List are those that are blocked themselves.
	Account, List string
	Reason        string
	Actor         string
	Kind          string
	State         string // "active" (default), "pending", "lifted", "ended" or "all"
}

// Blocks walks the blocks that the filter selects, in the order of their creation.
func (c *Client) Blocks(ctx context.Context, f BlockFilter) iter.Seq2[Block, error] {
	q := targetQuery(Target{VM: f.VM, Prefix: f.Prefix, Account: f.Account, List: f.List})
	set(q, "reason", f.Reason)
	set(q, "actor", f.Actor)
	set(q, "kind", f.Kind)
	set(q, "state", f.State)
	return all[Block](ctx, c, "/v1/blocks", q)
}

// Block returns a block with its receipts and counters.
func (c *Client) Block(ctx context.Context, id string) (Block, error) {
	return get[Block](ctx, c, "/v1/blocks/"+url.PathEscape(id), nil)
}

// VMFilter selects VMs; empty fields select all.
type VMFilter struct {
	Node, Owner, Name string
	Blocked           *bool
}

// VMs walks the VMs that the filter selects, by id.
func (c *Client) VMs(ctx context.Context, f VMFilter) iter.Seq2[VM, error] {
	q := url.Values{}
	set(q, "node", f.Node)
	set(q, "owner", f.Owner)
	set(q, "name", f.Name)
	if f.Blocked != nil {
		q.Set("blocked", strconv.FormatBool(*f.Blocked))
	}
	return all[VM](ctx, c, "/v1/vms", q)
}

// VM returns a VM by id or unique name.
func (c *Client) VM(ctx context.Context, ref string) (VM, error) {
	return get[VM](ctx, c, "/v1/vms/"+url.PathEscape(ref), nil)
}

// Nodes walks the nodes by id.
func (c *Client) Nodes(ctx context.Context) iter.Seq2[Node, error] {
	return all[Node](ctx, c, "/v1/nodes", url.Values{})
}

// Node returns a node by id.
func (c *Client) Node(ctx context.Context, id string) (Node, error) {
	return get[Node](ctx, c, "/v1/nodes/"+url.PathEscape(id), nil)
}

// Guards walks the operators' guards, or everything that can't be blocked.
func (c *Client) Guards(ctx context.Context, everything bool) iter.Seq2[Guard, error] {
	q := url.Values{}
	if everything {
		q.Set("all", "true")
	}
	return all[Guard](ctx, c, "/v1/guards", q)
}

// Status returns the node's standing.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/v1/status", nil)
}

// Ready returns nil if the node has quorum contact, is caught up and enforces, else the problem.
func (c *Client) Ready(ctx context.Context) error {
	_, err := get[struct{}](ctx, c, "/readyz", nil)
	return err
}
