package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/palisade/palisade/httpapi/wire"
)

// DrainNode takes all voter duty from a node, or with undo gives it back.
func (c *Client) DrainNode(ctx context.Context, id string, undo bool, w Write) (Node, error) {
	verb := "/drain"
	if undo {
		verb = "/undrain"
	}
	var out Node
	_, err := c.do(ctx, w.call(http.MethodPost, "/v1/nodes/"+url.PathEscape(id)+verb, nil, &out))
	return out, err
}

// RetireNode ends a node's membership for ever.
func (c *Client) RetireNode(ctx context.Context, id string, force bool, w Write) (Node, error) {
	var out Node
	_, err := c.do(ctx, w.call(http.MethodPost, "/v1/nodes/"+url.PathEscape(id)+"/retire", wire.RetireRequest{Force: force}, &out))
	return out, err
}

// SettleEpoch lets nodes let go of what only their kernels hold from before the epoch.
func (c *Client) SettleEpoch(ctx context.Context, epoch uint64, w Write) error {
	_, err := c.do(ctx, w.call(http.MethodPost, "/v1/fleet/settle", wire.SettleRequest{Epoch: epoch}, nil))
	return err
}
