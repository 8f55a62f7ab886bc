package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/palisade/palisade/httpapi/wire"
)

const (
	// silence is how long a stream may say nothing, not even that it is alive, before it is taken for
	// broken: three heartbeats of the server.
	silence  = 45 * time.Second
	maxEvent = 8 << 20
)

// Events follows all changes after a log index, or from now on if after is nil, and connects again
// wherever the stream breaks off: no event is lost and none comes twice. It ends with an error that
// trying again does not help, or with the context's. An event of type "reset" (wire.EventReset) says
// that some were lost because they are too old: read everything again.
func (c *Client) Events(ctx context.Context, after *uint64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		s := stream{c: c, yield: yield}
		if after != nil {
			s.id = strconv.FormatUint(*after, 10)
		}
		start, backoff := time.Now(), firstBackoff
		for {
			err := s.connect(ctx)
			if s.stopped {
				return
			}
			if s.alive {
				s.alive = false
				start, backoff = time.Now(), firstBackoff
			}
			again, pause := retryable(err)
			pause = max(pause, backoff)
			late := c.retryFor != 0 && time.Since(start)+pause > c.retryFor
			if !again || late || !sleep(ctx, pause) {
				if ctx.Err() != nil {
					err = ctx.Err()
				}
				yield(Event{}, err)
				return
			}
			backoff = min(2*backoff, longestBackoff)
		}
	}
}

// stream is what outlives one connection.
type stream struct {
	c       *Client
	yield   func(Event, error) bool
	id      string // last id received, "" for none
	done    int    // events delivered after that id, which come again after a reconnect
	skip    int    // of those, how many are still to come
	alive   bool   // this connection was answered
	stopped bool   // the caller wants no more
}

// connect follows the stream until it breaks off; the error is never nil.
func (s *stream) connect(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchdog := time.AfterFunc(silence, cancel)
	defer watchdog.Stop()
	q := call{method: http.MethodGet, path: "/v1/events", query: url.Values{}}
	if s.id != "" {
		q.query.Set("from", s.id)
	}
	res, err := s.c.send(ctx, q, nil)
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
			return &ConnectError{op}
		}
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
		return &retryAfterError{problemOf(res, b), res.Header.Get("Retry-After")}
	}
	s.alive, s.skip = true, s.done
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, maxEvent)
	var id string
	var data []byte
	for lines.Scan() {
		watchdog.Reset(silence)
		field, value, _ := bytes.Cut(lines.Bytes(), []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch {
		case len(lines.Bytes()) == 0:
			if err := s.dispatch(id, data); err != nil || s.stopped {
				return err
			}
			id, data = "", nil
		case string(field) == "id":
			id = string(value)
		case string(field) == "data":
			data = append(data, value...)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

// dispatch delivers one event, unless it was delivered before the stream broke off.
func (s *stream) dispatch(id string, data []byte) error {
	if len(data) > 0 {
		var e Event
		if err := json.Unmarshal(data, &e); err != nil {
			return errors.Join(errors.New("an event is not what this client understands"), err)
		}
		switch {
		case e.Type == wire.EventReset:
			s.skip = 0
		case s.skip > 0:
			s.skip--
			if id != "" {
				s.id, s.done, s.skip = id, 0, 0
			}
			return nil
		}
		s.done++
		if !s.yield(e, nil) {
			s.stopped = true
		}
	}
	// An id without data is where the stream starts: after a reconnect that is nothing new.
	if id != "" && (len(data) > 0 || id != s.id) {
		s.id, s.done = id, 0
	}
	return nil
}
