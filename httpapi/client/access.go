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

// Users walks the users that log in with a password, by name.
func (c *Client) Users(ctx context.Context) iter.Seq2[User, error] {
	return all[User](ctx, c, "/v1/users", url.Values{})
}

// User returns a user.
func (c *Client) User(ctx context.Context, name string) (User, error) {
	return get[User](ctx, c, "/v1/users/"+url.PathEscape(name), nil)
}

// PutUser creates a user, or changes what is not empty. ifRevision, if not 0, is the revision the user must have.
func (c *Client) PutUser(ctx context.Context, name string, u UserRequest, ifRevision uint64) (User, error) {
	var out User
	_, err := c.do(ctx, call{method: http.MethodPut, path: "/v1/users/" + url.PathEscape(name), body: u, ifMatch: ifRevision, out: &out})
	return out, err
}

// DeleteUser deletes a user.
func (c *Client) DeleteUser(ctx context.Context, name string, w Write) error {
	_, err := c.do(ctx, w.call(http.MethodDelete, "/v1/users/"+url.PathEscape(name), nil, nil))
	return err
}

// Sessions walks the sessions, of one user or of all ("").
func (c *Client) Sessions(ctx context.Context, user string) iter.Seq2[Session, error] {
	q := url.Values{}
	if user != "" {
		q.Set("user", user)
	}
	return all[Session](ctx, c, "/v1/sessions", q)
}

// EndSession ends a session.
func (c *Client) EndSession(ctx context.Context, id string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: "/v1/sessions/" + url.PathEscape(id)})
	return err
}
