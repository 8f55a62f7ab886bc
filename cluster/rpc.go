package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/hclogslog"
)

// Bounds of peer RPC.
const (
	// MaxCommandBytes bounds an encoded command, and with it an entry of the log.
	MaxCommandBytes  = 4 << 20
	maxRequestBytes  = MaxCommandBytes + 64<<10
	maxResponseBytes = 32 << 20
	maxCallTime      = 2 * time.Minute
	maxStreams       = 512 // calls at once from one peer
	// timeoutHeader carries what is left of the caller's deadline in milliseconds: a duration, since
	// clocks differ.
	timeoutHeader = "Palisade-Timeout-Ms"
)

// errNotSent marks a call that certainly did not reach the peer.
var errNotSent = errors.New("peer not reached")

// peers is how a node calls the others. Errors wrap errNotSent if nothing was sent, and
// fsm.ErrUnavailable if the peer refused because it does not lead.
type peers interface {
	hello(ctx context.Context, id string, req *peerpb.HelloRequest) (*peerpb.HelloResponse, error)
	propose(ctx context.Context, id string, req *peerpb.ProposeRequest) (*peerpb.ProposeResponse, error)
	readIndex(ctx context.Context, id string, req *peerpb.ReadIndexRequest) (*peerpb.ReadIndexResponse, error)
	ask(ctx context.Context, id string, req *peerpb.AskRequest) (*peerpb.AskResponse, error)
}

// served is the other end: what a node answers.
type served interface {
	onHello(ctx context.Context, req *peerpb.HelloRequest) (*peerpb.HelloResponse, error)
	onPropose(ctx context.Context, req *peerpb.ProposeRequest) (*peerpb.ProposeResponse, error)
	onReadIndex(ctx context.Context, req *peerpb.ReadIndexRequest) (*peerpb.ReadIndexResponse, error)
	onAsk(ctx context.Context, req *peerpb.AskRequest) (*peerpb.AskResponse, error)
}

// httpPeers calls over HTTP/2, with one connection for each peer that is kept open.
type httpPeers struct {
	clients map[string]*http.Client
}

var _ peers = (*httpPeers)(nil)

func newHTTPPeers(p *port, self string) *httpPeers {
	h := &httpPeers{clients: map[string]*http.Client{}}
	for id, peer := range p.peers {
		if id == self {
			continue
		}
		protocols := &http.Protocols{}
		protocols.SetHTTP2(true)
		h.clients[id] = &http.Client{Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return p.dial(ctx, id, peer.Address, alpnRPC)
			},
			Protocols:           protocols,
			ForceAttemptHTTP2:   true,
			DisableCompression:  true,
			MaxIdleConnsPerHost: 2,
			// A peer that went silent is noticed by pings, which are sent only while a call waits
			// or the connection is idle for so long.
			HTTP2: &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 3 * time.Second},
		}}
	}
	return h
}

func (h *httpPeers) close() {
	for _, c := range h.clients {
		c.CloseIdleConnections()
	}
}

func (h *httpPeers) hello(ctx context.Context, id string, req *peerpb.HelloRequest) (*peerpb.HelloResponse, error) {
	return call(ctx, h, id, "hello", req, &peerpb.HelloResponse{})
}

func (h *httpPeers) propose(ctx context.Context, id string, req *peerpb.ProposeRequest) (*peerpb.ProposeResponse, error) {
	return call(ctx, h, id, "propose", req, &peerpb.ProposeResponse{})
}

func (h *httpPeers) readIndex(ctx context.Context, id string, req *peerpb.ReadIndexRequest) (*peerpb.ReadIndexResponse, error) {
	return call(ctx, h, id, "readindex", req, &peerpb.ReadIndexResponse{})
}

func (h *httpPeers) ask(ctx context.Context, id string, req *peerpb.AskRequest) (*peerpb.AskResponse, error) {
	return call(ctx, h, id, "ask", req, &peerpb.AskResponse{})
}

func call[R proto.Message](ctx context.Context, h *httpPeers, id, verb string, req proto.Message, resp R) (R, error) {
	var none R
	client := h.clients[id]
	if client == nil {
		return none, fmt.Errorf("%w: no peer %q", errNotSent, id)
	}
	body, err := proto.Marshal(req)
	if err != nil {
		return none, fmt.Errorf("%w: encode %s: %w", errNotSent, verb, err)
	}
	// The peer acts on a whole body only: as long as the last byte was not taken from here, nothing
	// has happened.
	var left atomic.Bool
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://peer/v1/"+verb, &sentBody{*bytes.NewReader(body), &left})
	if err != nil {
		return none, fmt.Errorf("%w: %w", errNotSent, err)
	}
	hr.ContentLength = int64(len(body))
	hr.GetBody = func() (io.ReadCloser, error) { return &sentBody{*bytes.NewReader(body), &left}, nil }
	if deadline, ok := ctx.Deadline(); ok {
		hr.Header.Set(timeoutHeader, strconv.FormatInt(budget(time.Until(deadline)).Milliseconds(), 10))
	}
	res, err := client.Do(hr)
	if err != nil {
		if !left.Load() {
			err = fmt.Errorf("%w: %w", errNotSent, err)
		}
		return none, fmt.Errorf("%s of peer %s: %w", verb, id, err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxResponseBytes+1))
	if err == nil && len(data) > maxResponseBytes {
		err = fmt.Errorf("answer of more than %d bytes", maxResponseBytes)
	}
	if err != nil {
		return none, fmt.Errorf("%s of peer %s: %w", verb, id, err)
	}
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusServiceUnavailable:
		return none, fmt.Errorf("%s of peer %s: %s: %w", verb, id, strings.TrimSpace(string(data)), fsm.ErrUnavailable)
	default:
		return none, fmt.Errorf("%s of peer %s: %s: %s", verb, id, res.Status, strings.TrimSpace(string(data)))
	}
	if err := proto.Unmarshal(data, resp); err != nil {
		return none, fmt.Errorf("%s of peer %s: decode the answer: %w", verb, id, err)
	}
	return resp, nil
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
func newRPCServer(base context.Context, s served, forget func(net.Conn), heard func(id string), logger *slog.Logger) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("POST /v1/hello", answer(s.onHello, heard))
	mux.Handle("POST /v1/propose", answer(s.onPropose, heard))
	mux.Handle("POST /v1/readindex", answer(s.onReadIndex, heard))
	mux.Handle("POST /v1/ask", answer(s.onAsk, heard))
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
		ErrorLog:          hclogslog.NewStandard(logger, quiet),
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateClosed || state == http.StateHijacked {
				forget(c)
			}
		},
	}
}

// message is a pointer to a generated message type.
type message[T any] interface {
	*T
	proto.Message
}

func answer[Q any, PQ message[Q], R proto.Message](serve func(context.Context, PQ) (R, error), heard func(id string)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		heard(peerOf(r.TLS))
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
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBytes))
		if err != nil {
			http.Error(w, "body: "+err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		req := PQ(new(Q))
		if err := proto.Unmarshal(body, req); err != nil {
			http.Error(w, "body: "+err.Error(), http.StatusBadRequest)
			return
		}
		resp, err := serve(ctx, req)
		var out []byte
		if err == nil {
			out, err = proto.Marshal(resp)
		}
		switch {
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

// peerOf is the node id in the caller's certificate.
func peerOf(cs *tls.ConnectionState) string {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return ""
	}
	return cs.PeerCertificates[0].Subject.CommonName
}
