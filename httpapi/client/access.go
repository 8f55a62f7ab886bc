package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
)

// Tokens walks the API tokens, by name.
func (c *Client) Tokens(ctx context.Context) iter.Seq2[Token, error] {
	return all[Token](ctx, c, "/v1/tokens", url.Values{})
}

// CreateToken creates an API token. Only the answer has its secret: if that is lost, the name is taken, and the token
// must be deleted and created anew.
func (c *Client) CreateToken(ctx context.Context, t TokenRequest) (NewToken, error) {
	var out NewToken
	_, err := c.do(ctx, call{method: http.MethodPost, path: "/v1/tokens", body: t, out: &out})
	return out, err
}

// DeleteToken deletes an API token.
func (c *Client) DeleteToken(ctx context.Context, name string, w Write) error {
	_, err := c.do(ctx, w.call(http.MethodDelete, "/v1/tokens/"+url.PathEscape(name), nil, nil))
	return err
}
