// Package client calls the /v1 API of a Palisade node, over its Unix socket or over TCP with a token.
//
// Every write carries an Idempotency-Key, so that it can be sent again: answers 503 and 504 and broken
// connections are retried until the context or Options.RetryFor ends. A write whose outcome stays open
// is reported as *UnknownError, never as failed.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/palisade/palisade/httpapi/wire"
)

// The documents of the API.
//
//nolint:revive // wire documents each of them
type (
	Block           = wire.Block
	BlockRequest    = wire.BlockRequest
	BlockPatch      = wire.BlockPatch
	Target          = wire.Target
	Rate            = wire.Rate
	Port            = wire.Port
	Receipts        = wire.Receipts
	Due             = wire.Due
	Preview         = wire.Preview
	Impact          = wire.Impact
	BulkResult      = wire.BulkResult
	VM              = wire.VM
	Migration       = wire.Migration
	VMRequest       = wire.VMRequest
	SourceGuard     = wire.SourceGuard
	Account         = wire.Account
	AccountRequest  = wire.AccountRequest
	Settings        = wire.Settings
	SettingsRequest = wire.SettingsRequest
	RedirectPage    = wire.RedirectPage
	Node            = wire.Node
	Guard           = wire.Guard
	GuardRequest    = wire.GuardRequest
	Status          = wire.Status
	NodeProblem     = wire.NodeProblem
	Incident        = wire.Incident
	Event           = wire.Event
	Token           = wire.Token
	NewToken        = wire.NewToken
	TokenRequest    = wire.TokenRequest
	User            = wire.User
	UserRequest     = wire.UserRequest
	Session         = wire.Session
	// Problem is the error of every answer that is not a success.
	Problem = wire.Problem //nolint:errname // RFC 9457 calls it a problem
)

const (
	firstBackoff   = 50 * time.Millisecond
	longestBackoff = time.Second
	attemptTimeout = 30 * time.Second // of one request, without the time it asks the server to wait
	maxAnswer      = 256 << 20
)

// Options say where the API is. Exactly one of Socket and URL is set.
type Options struct {
	Socket string // path of the Unix socket
	URL    string // "https://host:port"; http only to a loopback address, so that no token is given away
	Token  string // for URL
	// RootCAs verify the server's certificate; the system's if nil.
	RootCAs *x509.CertPool
	// RetryFor bounds the retries of one call; 0 retries until its context ends, less than 0 never.
	RetryFor time.Duration
}

// Client is safe for concurrent use.
type Client struct {
	base     string
	token    string
	retryFor time.Duration
	http     *http.Client
}

// UnknownError says that a write may or may not have been committed. Sending it again with the same
// Key is safe and tells the outcome.
type UnknownError struct {
	Key string
	Err error // the last thing that went wrong
}

// Error implements error.
func (e *UnknownError) Error() string {
	return fmt.Sprintf("outcome unknown: the write may or may not have been committed; sending it again with the idempotency key %s is safe (%v)", e.Key, e.Err)
}

// Unwrap gives the last thing that went wrong.
func (e *UnknownError) Unwrap() error { return e.Err }

// ConnectError says that the node could not be reached; nothing was sent.
type ConnectError struct{ Err error }

// Error implements error.
func (e *ConnectError) Error() string { return "cannot connect: " + e.Err.Error() }

// Unwrap gives the cause.
func (e *ConnectError) Unwrap() error { return e.Err }

// New returns a client; it does not connect yet.
func New(o Options) (*Client, error) {
	if (o.Socket == "") == (o.URL == "") {
		return nil, errors.New("client: give either a socket or a URL")
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	tr := &http.Transport{
		DialContext:         dialer.DialContext,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     time.Minute,
		ForceAttemptHTTP2:   true,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.RootCAs},
	}
	c := &Client{token: o.Token, retryFor: o.RetryFor, http: &http.Client{Transport: tr, CheckRedirect: noRedirect}}
	if o.Socket != "" {
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", o.Socket)
		}
		c.base, c.token = "http://palisade", ""
		return c, nil
	}
	tr.Proxy = http.ProxyFromEnvironment
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("client: %q is not a URL like https://192.0.2.1:8440", o.URL)
	}
	if u.Scheme == "http" && !loopback(u.Hostname()) {
		return nil, fmt.Errorf("client: %s would send the token in clear text; use https", o.URL)
	}
	c.base = strings.TrimSuffix(u.Scheme+"://"+u.Host+u.Path, "/")
	return c, nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// noRedirect keeps the token from following anyone anywhere.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// call is one request and where its answer goes.
type call struct {
	method  string
	path    string
	query   url.Values
	body    any
	key     string // of a write; empty for a read
	ifMatch uint64
	wait    time.Duration // how long the server was asked to wait
	out     any           // pointer; nil for no body

	lines []byte               // instead of body: JSON lines, sent as they are
	read  func(b []byte) error // takes an answer of JSON lines, whatever its status
}

// answer is what an answer says beside its body.
type answer struct {
	status   int
	replayed bool
}

// do sends a call until it is answered for good.
func (c *Client) do(ctx context.Context, q call) (answer, error) {
	body := q.lines
	if q.body != nil {
		var err error
		if body, err = json.Marshal(q.body); err != nil {
			return answer{}, err
		}
	}
	start := time.Now()
	backoff := firstBackoff
	open := false // an attempt may have been committed
	for {
		a, sent, err := c.attempt(ctx, q, body)
		if err == nil {
			return a, nil
		}
		again, pause := retryable(err)
		open = open || (q.key != "" && sent)
		if p := (*Problem)(nil); errors.As(err, &p) && p.Status < 500 {
			open = false // the fleet answered: the key made it the answer to the first attempt too
		}
		pause = max(pause, backoff/2+mathrand.N(backoff/2+1))
		late := c.retryFor != 0 && time.Since(start)+pause > c.retryFor
		if !again || late || !sleep(ctx, pause) {
			if open {
				err = &UnknownError{Key: q.key, Err: err}
			}
			return answer{}, err
		}
		backoff = min(2*backoff, longestBackoff)
	}
}

// attempt sends a call once. sent says that the server may have acted on it: everything but a refusal
// that is certain.
func (c *Client) attempt(ctx context.Context, q call, body []byte) (a answer, sent bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout+q.wait)
	defer cancel()
	res, err := c.send(ctx, q, body)
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
			return a, false, &ConnectError{op}
		}
		return a, true, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return a, true, fmt.Errorf("the answer was cut off: %w", err)
	}
	a = answer{status: res.StatusCode, replayed: res.Header.Get("Idempotency-Replayed") == "true"}
	if q.read != nil && res.Header.Get("Content-Type") == jsonLines {
		return a, true, q.read(b)
	}
	if res.StatusCode/100 != 2 {
		p := problemOf(res, b)
		return a, p.Status != http.StatusServiceUnavailable, &retryAfterError{p, res.Header.Get("Retry-After")}
	}
	if q.out != nil && len(b) > 0 {
		if err := json.Unmarshal(b, q.out); err != nil {
			return a, true, fmt.Errorf("the answer is not what this client understands: %w", err)
		}
	}
	return a, true, nil
}

func (c *Client) send(ctx context.Context, q call, body []byte) (*http.Response, error) {
	target := c.base + q.path
	if len(q.query) > 0 {
		target += "?" + q.query.Encode()
	}
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, q.method, target, r)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
		if q.lines != nil {
			req.Header.Set("Content-Type", jsonLines)
		}
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if q.key != "" {
		req.Header.Set("Idempotency-Key", q.key)
	}
	if q.ifMatch != 0 {
		req.Header.Set("If-Match", `"`+strconv.FormatUint(q.ifMatch, 10)+`"`)
	}
	return c.http.Do(req)
}

// retryAfterError is a problem with the server's word on when to try again.
type retryAfterError struct {
	*Problem
	seconds string
}

func (e *retryAfterError) Unwrap() error { return e.Problem }

func problemOf(res *http.Response, body []byte) *Problem {
	p := new(Problem)
	if json.Unmarshal(body, p) != nil || p.Code == "" {
		// Not ours: a proxy, or another server.
		text := strings.TrimSpace(string(body[:min(len(body), 200)]))
		*p = Problem{Type: "about:blank", Title: res.Status, Detail: strings.TrimSpace(res.Status + " " + text)}
	}
	p.Status = res.StatusCode
	return p
}

// retryable says whether trying again can help, and how long the server wants to be left alone.
func retryable(err error) (again bool, pause time.Duration) {
	if ra := (*retryAfterError)(nil); errors.As(err, &ra) {
		if ra.Status != http.StatusServiceUnavailable && ra.Status != http.StatusGatewayTimeout {
			return false, 0
		}
		// The header counts whole seconds and is rounded up; a first second says no more than "soon".
		if n, perr := strconv.Atoi(ra.seconds); perr == nil && n > 1 {
			pause = min(time.Duration(n)*time.Second, 30*time.Second)
		}
		return true, pause
	}
	// There is no such socket, or it is not ours: waiting does not help.
	return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission), 0
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// NewKey returns a random idempotency key.
func NewKey() string { return rand.Text() }
