package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/hclogslog"
	"github.com/palisade/palisade/pki"
)

// Bounds of peer RPC.
const (
	// MaxCommandBytes bounds an encoded command, and with it an entry of the log.
	MaxCommandBytes  = 4 << 20
	maxRequestBytes  = MaxCommandBytes + 64<<10
	maxResponseBytes = 32 << 20
	maxCallTime      = 2 * time.Minute
	maxStreams       = 512 // calls at once on one connection
	// maxIntake bounds the bodies that one peer has on the way to this node at once. A forwarder has a few calls under way.
	maxIntake = 32 << 20
	// timeoutHeader carries what is left of the caller's deadline in milliseconds: a duration, since
	// clocks differ.
	timeoutHeader = "Palisade-Timeout-Ms"
)

// errNotSent marks a call that certainly did not reach the peer.
var errNotSent = errors.New("peer not reached")

// peers is how a node calls the others: the call named verb, of the node with this id. Errors wrap
// errNotSent if nothing was sent, and fsm.ErrUnavailable if the peer refused because it does not lead.
type peers interface {
	call(ctx context.Context, id, verb string, req, resp proto.Message) error
	// follow opens a stream that lives until it is closed or ctx ends.
	follow(ctx context.Context, id string, first *peerpb.FollowUp) (upstream, error)
}

// verbWho is the one call that anybody of the fleet is answered.
const verbWho = "who"

// calls are the calls of a peer, with their types.
type calls struct{ peers }

func ring[R any, PR message[R]](ctx context.Context, p peers, id, verb string, req proto.Message) (PR, error) {
	resp := PR(new(R))
	if err := p.call(ctx, id, verb, req, resp); err != nil {
		return nil, err
	}
	return resp, nil
}

func (c calls) hello(ctx context.Context, id string, req *peerpb.HelloRequest) (*peerpb.HelloResponse, error) {
	return ring[peerpb.HelloResponse](ctx, c, id, "hello", req)
}

func (c calls) who(ctx context.Context, id string, req *peerpb.WhoRequest) (*peerpb.WhoResponse, error) {
	return ring[peerpb.WhoResponse](ctx, c, id, verbWho, req)
}

func (c calls) propose(ctx context.Context, id string, req *peerpb.ProposeRequest) (*peerpb.ProposeResponse, error) {
	return ring[peerpb.ProposeResponse](ctx, c, id, "propose", req)
}

func (c calls) readIndex(ctx context.Context, id string, req *peerpb.ReadIndexRequest) (*peerpb.ReadIndexResponse, error) {
	return ring[peerpb.ReadIndexResponse](ctx, c, id, "readindex", req)
}

func (c calls) ask(ctx context.Context, id string, req *peerpb.AskRequest) (*peerpb.AskResponse, error) {
	return ring[peerpb.AskResponse](ctx, c, id, "ask", req)
}

func (c calls) admit(ctx context.Context, id string, req *peerpb.AdmitRequest) (*peerpb.AdmitResponse, error) {
	return ring[peerpb.AdmitResponse](ctx, c, id, "admit", req)
}

func (c calls) renew(ctx context.Context, id string, req *peerpb.RenewRequest) (*peerpb.RenewResponse, error) {
	return ring[peerpb.RenewResponse](ctx, c, id, "renew", req)
}

func (c calls) serving(ctx context.Context, id string, req *peerpb.ServingRequest) (*peerpb.ServingResponse, error) {
	return ring[peerpb.ServingResponse](ctx, c, id, "serving", req)
}

func (c calls) secrets(ctx context.Context, id string, req *peerpb.SecretsRequest) (*peerpb.SecretsResponse, error) {
	return ring[peerpb.SecretsResponse](ctx, c, id, "secrets", req)
}

func (c calls) entrust(ctx context.Context, id string, req *peerpb.EntrustRequest) (*peerpb.EntrustResponse, error) {
	return ring[peerpb.EntrustResponse](ctx, c, id, "entrust", req)
}

func (c calls) rotate(ctx context.Context, id string, req *peerpb.RotateRequest) (*peerpb.RotateResponse, error) {
	return ring[peerpb.RotateResponse](ctx, c, id, "rotate", req)
}

// handler answers one kind of call. from is the caller's node id, as its certificate proves it.
type handler func(ctx context.Context, from string, body []byte) (proto.Message, error)

// errBadBody is a body that is not the message it should be.
var errBadBody = errors.New("the body can't be read")

func handle[Q any, PQ message[Q], R proto.Message](serve func(context.Context, string, PQ) (R, error)) handler {
	return func(ctx context.Context, from string, body []byte) (proto.Message, error) {
		req := PQ(new(Q))
		if err := proto.Unmarshal(body, req); err != nil {
			return nil, fmt.Errorf("%w: %w", errBadBody, err)
		}
		return serve(ctx, from, req)
	}
}

// handlers are what this node answers, by verb.
func (c *Cluster) handlers() map[string]handler {
	return map[string]handler{
		"hello":     handle(c.onHello),
		verbWho:     handle(c.onWho),
		"propose":   handle(c.onPropose),
		"readindex": handle(c.onReadIndex),
		"ask":       handle(c.onAsk),
		"admit":     handle(c.onAdmit),
		"renew":     handle(c.onRenew),
		"serving":   handle(c.onServing),
		"secrets":   handle(c.onSecrets),
		"entrust":   handle(c.onEntrust),
		"rotate":    handle(c.onRotate),
	}
}

// httpPeers calls over HTTP/2, with one connection for each peer that is kept open.
type httpPeers struct {
	port *port
	dir  *directory

	mu      sync.Mutex
	clients map[string]*httpPeer
}

type httpPeer struct {
	address string
	client  *http.Client
}

var _ peers = (*httpPeers)(nil)

func newHTTPPeers(p *port, d *directory) *httpPeers {
	return &httpPeers{port: p, dir: d, clients: map[string]*httpPeer{}}
}

// client is the one for a member, made anew if the member is reached elsewhere now; nil for who is none.
func (h *httpPeers) client(id string) *http.Client {
	peer, ok := h.dir.peer(id)
	h.mu.Lock()
	defer h.mu.Unlock()
	known := h.clients[id]
	if ok && known != nil && known.address == peer.Address {
		return known.client
	}
	if known != nil {
		known.client.CloseIdleConnections()
		delete(h.clients, id)
	}
	if !ok {
		return nil
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP2(true)
	client := &http.Client{Transport: &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return h.port.dial(ctx, id, peer.Address, alpnRPC)
		},
		Protocols:           protocols,
		ForceAttemptHTTP2:   true,
		DisableCompression:  true,
		MaxIdleConnsPerHost: 2,
		// A peer that went silent is noticed by pings, which are sent only while a call waits
		// or the connection is idle for so long.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 3 * time.Second},
	}}
	h.clients[id] = &httpPeer{peer.Address, client}
	return client
}

func (h *httpPeers) tidy() {
	h.mu.Lock()
	ids := slices.Collect(maps.Keys(h.clients))
	h.mu.Unlock()
	for _, id := range ids {
		h.client(id)
	}
}

func (h *httpPeers) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.clients {
		c.client.CloseIdleConnections()
	}
}

func (h *httpPeers) call(ctx context.Context, id, verb string, req, resp proto.Message) error {
	client := h.client(id)
	if client == nil {
		return fmt.Errorf("%w: no peer %q", errNotSent, id)
	}
	body, err := proto.Marshal(req)
	if err != nil {
		return fmt.Errorf("%w: encode %s: %w", errNotSent, verb, err)
	}
	// The peer acts on a whole body only: as long as the last byte was not taken from here, nothing
	// has happened.
	var left atomic.Bool
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://peer/v1/"+verb, &sentBody{*bytes.NewReader(body), &left})
	if err != nil {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	h.port.contacts.say(hr.Header)
	hr.ContentLength = int64(len(body))
	hr.Header.Set(protocolHeader, ownProtocols().String())
	hr.GetBody = func() (io.ReadCloser, error) { return &sentBody{*bytes.NewReader(body), &left}, nil }
	if deadline, ok := ctx.Deadline(); ok {
		hr.Header.Set(timeoutHeader, strconv.FormatInt(budget(time.Until(deadline)).Milliseconds(), 10))
	}
	res, err := client.Do(hr)
	if err != nil {
		h.port.contacts.unanswered(id, err)
		if !left.Load() {
			err = fmt.Errorf("%w: %w", errNotSent, err)
		}
		return fmt.Errorf("%s of peer %s: %w", verb, id, err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxResponseBytes+1))
	if err == nil && len(data) > maxResponseBytes {
		err = fmt.Errorf("answer of more than %d bytes", maxResponseBytes)
	}
	if err != nil {
		return fmt.Errorf("%s of peer %s: %w", verb, id, err)
	}
	h.port.contacts.answered(id, res.Header, strings.TrimSpace(string(data)))
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusUpgradeRequired: // it did nothing
		return fmt.Errorf("%w: %s of peer %s: %s", errNotSent, verb, id, strings.TrimSpace(string(data)))
	case http.StatusServiceUnavailable:
		return fmt.Errorf("%s of peer %s: %s: %w", verb, id, strings.TrimSpace(string(data)), fsm.ErrUnavailable)
	default:
		return fmt.Errorf("%s of peer %s: %s: %s", verb, id, res.Status, strings.TrimSpace(string(data)))
	}
	if err := proto.Unmarshal(data, resp); err != nil {
		return fmt.Errorf("%s of peer %s: decode the answer: %w", verb, id, err)
	}
	return nil
}

// sentBody notes when the last byte of a request's body is taken to be sent.
type sentBody struct {
	bytes.Reader
	left *atomic.Bool
}

func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if b.Len() == 0 {
		b.left.Store(true)
	}
	return n, err
}

// WriteTo hides the Reader's, which would pass Read by.
func (b *sentBody) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, struct{ io.Reader }{b}) }

func (*sentBody) Close() error { return nil }

// budget leaves a part of the time for the way back, so that what a peer knows when its time is up
// still arrives.
func budget(left time.Duration) time.Duration {
	return max(left-min(left/10, 100*time.Millisecond), time.Millisecond)
}

// newRPCServer answers peers. base ends every call when the cluster stops.
func newRPCServer(base context.Context, handlers map[string]handler, follow followed, contacts *contacts, heard func(id string), logger *slog.Logger) *http.Server {
	mux := http.NewServeMux()
	in := &bodies{of: map[string]int64{}}
	for verb, h := range handlers {
		check := contacts.called
		if verb == verbWho {
			check = func(context.Context, string, http.Header) error { return nil }
		}
		mux.Handle("POST /v1/"+verb, answer(h, in, contacts, check, heard))
	}
	mux.Handle("POST /v1/follow", serveFollow(follow, contacts, heard))
	protocols := &http.Protocols{}
	protocols.SetHTTP2(true)
	quiet := func(_ string, l slog.Level) slog.Level { return min(l, slog.LevelDebug) }
	return &http.Server{
		Handler:           mux,
		Protocols:         protocols,
		ReadHeaderTimeout: 5 * time.Second,
		MaxHeaderBytes:    16 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams, SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if c, ok := conn.(*tls.Conn); ok {
				return context.WithValue(ctx, connKey{}, c.NetConn())
			}
			return ctx
		},
		ErrorLog: hclogslog.NewStandard(logger, quiet),
	}
}

// connKey is the *peerConn of a call, in its context.
type connKey struct{}

// message is a pointer to a generated message type.
type message[T any] interface {
	*T
	proto.Message
}

// bodies bounds what peers have on the way to this node: a body is read as a whole before it is looked at.
type bodies struct {
	mu sync.Mutex
	of map[string]int64 // bytes, by peer
}

// take makes room for a body of n bytes, -1 if that is not said; false if the peer has too much on the way.
func (i *bodies) take(peer string, n int64) (release func(), ok bool) {
	if n < 0 || n > maxRequestBytes {
		n = maxRequestBytes
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.of[peer]+n > maxIntake {
		return nil, false
	}
	i.of[peer] += n
	return func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.of[peer] -= n; i.of[peer] == 0 {
			delete(i.of, peer)
		}
	}, true
}

// readBody reads a whole body, until ctx ends at the latest.
func readBody(ctx context.Context, w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := http.NewResponseController(w).SetReadDeadline(deadline); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBytes))
}

func answer(serve handler, in *bodies, contacts *contacts, check func(context.Context, string, http.Header) error, heard func(id string)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from := peerOf(r.TLS)
		limit := maxCallTime
		if v := r.Header.Get(timeoutHeader); v != "" {
			ms, err := strconv.ParseInt(v, 10, 64)
			if err != nil || ms <= 0 {
				http.Error(w, "bad "+timeoutHeader, http.StatusBadRequest)
				return
			}
			limit = min(limit, time.Duration(min(ms, maxCallTime.Milliseconds()))*time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		contacts.say(w.Header())
		if err := check(ctx, from, r.Header); err != nil {
			refuse(w, err)
			return
		}
		heard(from)
		release, ok := in.take(from, r.ContentLength)
		if !ok {
			http.Error(w, "this node has too much of the caller's to read", http.StatusServiceUnavailable)
			return
		}
		defer release()
		body, err := readBody(ctx, w, r)
		if err != nil {
			http.Error(w, "body: "+err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		resp, err := serve(ctx, from, body)
		var out []byte
		if err == nil {
			out, err = proto.Marshal(resp)
		}
		switch {
		case errors.Is(err, errBadBody):
			http.Error(w, err.Error(), http.StatusBadRequest)
		case errors.Is(err, fsm.ErrUnavailable):
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		default:
			w.Header().Set("Content-Type", "application/x-protobuf")
			_, _ = w.Write(out) // the caller is gone if it fails
		}
	})
}

// refuse answers a caller that this node may not deal with.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusBadRequest
	if refused, ok := errors.AsType[*refusal](err); ok {
		w.Header().Set(refusalHeader, refused.word)
		status = http.StatusConflict
	}
	http.Error(w, err.Error(), status)
}

// peerOf is the node id in the caller's certificate, "" for who has none. It is read where the handshake has read it: the
// common name is a shortened id, which may be another node's.
func peerOf(cs *tls.ConnectionState) string {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return ""
	}
	member, err := pki.ReadMember(cs.PeerCertificates[0])
	if err != nil {
		return ""
	}
	return member.Node
}
