package cluster

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/cluster/internal/peerpb"
)

const (
	// maxFrame bounds a message on a follow stream: one entry of any size, or a batch of small ones.
	maxFrame = MaxCommandBytes + 64<<10
	// maxUpFrame bounds what a follower says.
	maxUpFrame = 4 << 10
	// takeTime is how long a follower may leave a message of its source untaken before it is cut off.
	takeTime = 10 * time.Second
)

// upstream is the follower's end of a follow stream. say and next may be called concurrently with each
// other; next blocks. close ends both and does not wait.
type upstream interface {
	say(m *peerpb.FollowUp) error
	next() (*peerpb.FollowDown, error)
	close()
}

// downstream is the source's end. say blocks while the follower takes nothing, for takeTime at most.
type downstream interface {
	say(m *peerpb.FollowDown) error
	next() (*peerpb.FollowUp, error)
}

func writeFrame(w io.Writer, m proto.Message) error {
	buf, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 4, 4+proto.Size(m)), m)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	binary.BigEndian.PutUint32(buf, uint32(len(buf)-4)) //nolint:gosec // far below
	_, err = w.Write(buf)
	return err
}

func readFrame(r io.Reader, most uint32, m proto.Message) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > most {
		return fmt.Errorf("a message of %d bytes, at most %d are taken", n, most)
	}
	buf := make([]byte, n)
	if _, err := io.ReadFull(r, buf); err != nil {
		return err
	}
	return proto.Unmarshal(buf, m)
}

// httpUpstream is one HTTP/2 call: messages of the follower in its body, those of the source in the
// answer's.
type httpUpstream struct {
	cancel context.CancelFunc
	body   io.ReadCloser

	mu  sync.Mutex
	out *io.PipeWriter
}

var _ upstream = (*httpUpstream)(nil)

// follow opens a stream from a peer. The stream lives until close, or until ctx ends.
func (h *httpPeers) follow(ctx context.Context, id string, first *peerpb.FollowUp) (upstream, error) {
	client := h.client(id)
	if client == nil {
		return nil, fmt.Errorf("%w: no peer %q", errNotSent, id)
	}
	ctx, cancel := context.WithCancel(ctx)
	in, out := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://peer/v1/follow", in)
	if err != nil {
		cancel()
		return nil, err
	}
	h.port.contacts.say(req.Header)
	req.Header.Set(protocolHeader, ownProtocols().String())
	u := &httpUpstream{cancel: cancel, out: out}
	go func() { _ = u.say(first) }() // ends with the transport's reading, or with its closing of the body
	res, err := client.Do(req)
	if err != nil {
		h.port.contacts.unanswered(id, err)
		cancel()
		return nil, fmt.Errorf("follow peer %s: %w", id, err)
	}
	var text string
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		text = strings.TrimSpace(string(body))
	}
	h.port.contacts.answered(id, res.Header, text)
	if res.StatusCode != http.StatusOK {
		_ = res.Body.Close()
		cancel()
		return nil, fmt.Errorf("follow peer %s: %s: %s", id, res.Status, text)
	}
	u.body = res.Body
	return u, nil
}

func (u *httpUpstream) say(m *peerpb.FollowUp) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return writeFrame(u.out, m)
}

func (u *httpUpstream) next() (*peerpb.FollowDown, error) {
	m := &peerpb.FollowDown{}
	return m, readFrame(u.body, maxFrame, m)
}

func (u *httpUpstream) close() {
	u.cancel()
	_ = u.out.CloseWithError(context.Canceled)
	_ = u.body.Close()
}

// httpDownstream is the other end of the call.
type httpDownstream struct {
	r  *http.Request
	w  http.ResponseWriter
	rc *http.ResponseController
}

var _ downstream = (*httpDownstream)(nil)

func (d *httpDownstream) say(m *peerpb.FollowDown) error {
	if err := d.rc.SetWriteDeadline(time.Now().Add(takeTime)); err != nil {
		return err
	}
	if err := writeFrame(d.w, m); err != nil {
		return err
	}
	return d.rc.Flush()
}

func (d *httpDownstream) next() (*peerpb.FollowUp, error) {
	m := &peerpb.FollowUp{}
	return m, readFrame(d.r.Body, maxUpFrame, m)
}

// followed serves one follower until it goes.
type followed func(ctx context.Context, first *peerpb.FollowUp, conn downstream) error

// serveFollow answers a peer that wants to follow.
func serveFollow(serve followed, contacts *contacts, heard func(id string)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer := peerOf(r.TLS)
		contacts.say(w.Header())
		ctx, cancel := context.WithTimeout(r.Context(), takeTime)
		err := contacts.called(ctx, peer, r.Header)
		cancel()
		if err != nil {
			refuse(w, err)
			return
		}
		heard(peer)
		d := &httpDownstream{r: r, w: w, rc: http.NewResponseController(w)}
		_ = d.rc.SetReadDeadline(time.Now().Add(takeTime)) // HTTP/2 can
		first, err := d.next()
		_ = d.rc.SetReadDeadline(time.Time{})
		switch {
		case err != nil:
			http.Error(w, "first message: "+err.Error(), http.StatusBadRequest)
			return
		case first.GetNode() != peer:
			http.Error(w, "the first message is not of the node that called", http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_ = serve(r.Context(), first, d) // the follower sees the end, and goes elsewhere
	})
}
