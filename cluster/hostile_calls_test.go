package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

// frames is a connection of a stolen node that speaks HTTP/2 by hand.
type frames struct {
	*http2.Framer
	conn *tls.Conn
}

func (f *fleet) frames(t *testing.T, to string) *frames {
	t.Helper()
	conn := f.stolen(t, to, alpnRPC)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	h := &frames{Framer: http2.NewFramer(conn, conn), conn: conn}
	if err := h.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return h
}

// head is the start of a call.
func (f *fleet) head(verb string, more ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	fields := append([]string{":method", "POST", ":scheme", "https", ":authority", "peer", ":path", "/v1/" + verb}, more...)
	h := http.Header{}
	f.nodes[2].c.contacts.say(h)
	for k := range h {
		fields = append(fields, strings.ToLower(k), h.Get(k))
	}
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // into memory
	}
	return b.Bytes()
}

// floods: frames that cost the sender little cost the node little, and end the connection or are
// passed over.
func (f *fleet) floods(t *testing.T) {
	to, _ := f.addressOf(f.leader())
	hello := f.head("hello")
	for name, flood := range map[string]func(h *frames) error{
		"rapid reset": func(h *frames) error {
			for i := range uint32(50_000) {
				if err := errors.Join(h.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: hello, EndHeaders: true}), h.WriteRSTStream(2*i+1, http2.ErrCodeCancel)); err != nil {
					return err
				}
			}
			return nil
		},
		"continuations without end": func(h *frames) error {
			if err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: hello}); err != nil {
				return err
			}
			for range 50_000 {
				if err := h.WriteContinuation(1, false, bytes.Repeat([]byte{0}, 1000)); err != nil {
					return err
				}
			}
			return nil
		},
		"continuations of nothing": func(h *frames) error {
			err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: hello})
			for i := 0; i < 200_000 && err == nil; i++ {
				err = h.WriteContinuation(1, false, nil)
			}
			return err
		},
		"a bomb of headers": func(h *frames) error {
			var b bytes.Buffer
			e := hpack.NewEncoder(&b)
			_ = e.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 3000)})
			for range 10_000 {
				_ = e.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 3000)}) // a byte each
			}
			return h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b.Bytes(), EndHeaders: true, EndStream: true})
		},
		"pings": func(h *frames) error {
			var err error
			for i := 0; i < 100_000 && err == nil; i++ {
				err = h.WritePing(false, [8]byte{})
			}
			return err
		},
		"settings": func(h *frames) error {
			var err error
			for i := 0; i < 100_000 && err == nil; i++ {
				err = h.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)})
			}
			return err
		},
		"data of no call": func(h *frames) error { return h.WriteData(99, false, make([]byte, 100)) },
		"a window too big": func(h *frames) error {
			return errors.Join(h.WriteWindowUpdate(0, 1<<31-1), h.WriteWindowUpdate(0, 1<<31-1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			f.besiege(t, 48<<20, func() {
				h := f.frames(t, to)
				_ = h.conn.SetDeadline(time.Now().Add(20 * time.Second))
				_ = flood(h) // it may be cut off in the middle
				_ = h.conn.CloseWrite()
				ends(t, name, h.conn)
			})
		})
	}
}

// bodies: large and slow bodies of one peer are bounded together, and others are served meanwhile.
func (f *fleet) bodies(t *testing.T) {
	here := f.leader()
	to, _ := f.addressOf(here)
	const calls = 400
	f.besiege(t, maxIntake+64<<20, func() { // each says that 4 MiB come, and sends nothing
		var wg sync.WaitGroup
		for range 4 {
			h := f.frames(t, to)
			defer func() { _ = h.conn.Close() }()
			wg.Go(func() { _, _ = io.Copy(io.Discard, h.conn) })
			head := f.head("propose", "content-length", strconv.Itoa(MaxCommandBytes), strings.ToLower(timeoutHeader), "4000")
			var err error
			for i := uint32(0); i < calls/4 && err == nil; i++ {
				err = h.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: head, EndHeaders: true})
			}
			if err != nil {
				t.Error(err)
			}
		}
		begin := time.Now()
		// Its own calls are turned away by now, those of others are not.
		if _, err := f.nodes[0].c.Ask(within(t, 5*time.Second), here.id, fsm.Query{}); err != nil && f.nodes[0] != here {
			t.Errorf("another node's call: %v after %s", err, time.Since(begin))
		}
		client, base := f.clientAs(t, here, "n3"), "https://"+to
		res, err := f.post(client, base+"/v1/propose", bytes.NewReader(make([]byte, MaxCommandBytes)))
		if err != nil || res.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("one more large body is answered %v, %v", res, err)
		}
		// The time that the calls have ends, and with it what they hold.
		f.await("the bodies to be given up", func() bool {
			res, err := f.post(client, base+"/v1/propose", bytes.NewReader(make([]byte, MaxCommandBytes)))
			return err == nil && res.StatusCode == http.StatusBadRequest
		})
		if took := time.Since(begin); took > 14*time.Second { // an unanswered ping ends the connection after 20 s
			t.Errorf("bodies that had 4 s were given up after %s", took)
		}
	})
}

func (f *fleet) post(client *http.Client, url string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, body)
	if err != nil {
		return nil, err
	}
	f.nodes[2].c.contacts.say(req.Header)
	res, err := client.Do(req)
	if err == nil {
		_ = res.Body.Close()
	}
	return res, err
}

// nonsenseOnFollowStreams: a follower that says what it should not loses its stream, and nobody else theirs.
func (f *fleet) nonsenseOnFollowStreams(t *testing.T) {
	here := f.leader()
	to, _ := f.addressOf(here)
	frame := func(m *peerpb.FollowUp) []byte {
		var b bytes.Buffer
		if err := writeFrame(&b, m); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	said := func(n uint32, b []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, n), b...) }
	first := frame(&peerpb.FollowUp{Node: "n3"})
	for name, c := range map[string]struct {
		send   []byte
		status string // of the answer
	}{
		"nothing":                    {nil, "400"},
		"a length of 4 GiB":          {said(1<<32-1, nil), "400"},
		"just too long":              {said(maxUpFrame+1, make([]byte, maxUpFrame+1)), "400"},
		"no message":                 {said(3, []byte{0xff, 0xff, 0xff}), "400"},
		"another's name":             {frame(&peerpb.FollowUp{Node: "n2"}), "403"},
		"then noise":                 {append(bytes.Clone(first), noise(4096)...), "200"},
		"then half a message":        {append(bytes.Clone(first), 0, 0, 0, 9, 1), "200"},
		"then a length of 4 GiB":     {append(bytes.Clone(first), said(1<<32-1, nil)...), "200"},
		"then very many messages":    {append(bytes.Clone(first), bytes.Repeat(frame(&peerpb.FollowUp{Room: 1<<32 - 1}), 5000)...), "200"},
		"an index of the far future": {frame(&peerpb.FollowUp{Node: "n3", Index: 1<<64 - 1, Term: 1<<64 - 1}), "200"},
		"an index that it never had": {frame(&peerpb.FollowUp{Node: "n3", Index: 2, Term: 77}), "200"},
	} {
		t.Run(name, func(t *testing.T) {
			f.besiege(t, 48<<20, func() {
				h := f.frames(t, to)
				_ = h.conn.SetDeadline(time.Now().Add(20 * time.Second))
				head := f.head("follow")
				if err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head, EndHeaders: true}); err != nil {
					t.Fatal(err)
				}
				for rest := c.send; len(rest) > 0; {
					n := min(len(rest), 16<<10)
					if err := h.WriteData(1, false, rest[:n]); err != nil {
						break // it was cut off
					}
					rest = rest[n:]
				}
				if !strings.HasPrefix(name, "then a length") && !strings.HasPrefix(name, "then noise") && !strings.Contains(name, "long") && !strings.Contains(name, "no message") {
					_ = h.WriteData(1, true, nil)
				}
				if got := status(t, h); got != c.status {
					t.Errorf("answered %s, want %s", got, c.status)
				}
				_ = h.conn.Close()
				f.await("the place to be given back", func() bool { return here.c.source.followers() == 0 })
			})
		})
	}
}

// status reads frames until the answer to the first call begins.
func status(t *testing.T, h *frames) string {
	t.Helper()
	h.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		frame, err := h.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if m, ok := frame.(*http2.MetaHeadersFrame); ok {
			return m.PseudoValue("status")
		}
	}
}
