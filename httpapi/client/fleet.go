package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"

	"github.com/palisade/palisade/httpapi/wire"
)

// The bodies of join tokens and of the fleet's keys are those of package wire.
//
//nolint:revive // wire documents each of them
type (
	JoinToken        = wire.JoinToken
	NewJoinToken     = wire.NewJoinToken
	JoinTokenRequest = wire.JoinTokenRequest
	Fleet            = wire.Fleet
)

// JoinTokens walks the join tokens, by id, also those that were used or are over.
func (c *Client) JoinTokens(ctx context.Context) iter.Seq2[JoinToken, error] {
	return all[JoinToken](ctx, c, "/v1/join-tokens", url.Values{})
}

// CreateJoinToken creates a join token. Only the answer has its text: if that is lost, create another one.
func (c *Client) CreateJoinToken(ctx context.Context, t JoinTokenRequest) (NewJoinToken, error) {
	var out NewJoinToken
	_, err := c.do(ctx, call{method: http.MethodPost, path: "/v1/join-tokens", body: t, out: &out})
	return out, err
}

// DeleteJoinToken deletes a join token, used or not.
func (c *Client) DeleteJoinToken(ctx context.Context, id string, w Write) error {
	_, err := c.do(ctx, w.call(http.MethodDelete, "/v1/join-tokens/"+url.PathEscape(id), nil, nil))
	return err
}

// Fleet returns who the fleet is, and the keys that it trusts by.
func (c *Client) Fleet(ctx context.Context) (Fleet, error) {
	var out Fleet
	_, err := c.do(ctx, call{method: http.MethodGet, path: "/v1/ca", out: &out})
	return out, err
}

// RotateCA begins the rotation of the fleet's authority. While one is under way, it is refused.
func (c *Client) RotateCA(ctx context.Context) (Fleet, error) { return c.rotate(ctx, "/v1/ca/rotate") }

// RotateGossipKey begins the rotation of the gossip key. While one is under way, it is refused.
func (c *Client) RotateGossipKey(ctx context.Context) (Fleet, error) {
	return c.rotate(ctx, "/v1/gossip-key/rotate")
}

func (c *Client) rotate(ctx context.Context, path string) (Fleet, error) {
	var out Fleet
	_, err := c.do(ctx, call{method: http.MethodPost, path: path, out: &out})
	return out, err
}
