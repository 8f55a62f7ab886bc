package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

// Bounds of the door, where anyone may speak who reaches the peer port.
const (
	maxAdmitRequest  = 16 << 10
	maxAdmitResponse = 8 << 20
	doorReadTime     = 5 * time.Second
	doorTime         = 15 * time.Second
)

// answerJoin answers one node that asks to be admitted: one request, one answer. Whoever leads decides; this
// node passes it on, with the secret of the token, which admits once only.
func (c *Cluster) answerJoin(conn net.Conn) {
	ctx, cancel := context.WithTimeout(c.callCtx, doorTime)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	_ = conn.SetReadDeadline(time.Now().Add(doorReadTime))
	req := &peerpb.AdmitRequest{}
	if err := readMessage(conn, maxAdmitRequest, req); err != nil {
		c.log.Debug("a joining node was not understood", "remote", hostOf(conn), "err", err)
		return
	}
	req.From = hostOf(conn)
	resp, err := toLeader(ctx, c, func(id string) (*peerpb.AdmitResponse, error) {
		if id == c.id {
			return c.onAdmit(ctx, c.id, req)
		}
		return c.rpc.admit(ctx, id, req)
	})
	switch {
	case err != nil:
		c.log.Warn("a joining node could not be admitted", "remote", req.From, "peer", req.GetNode(), "err", err)
		resp = &peerpb.AdmitResponse{Problem: sayProblem(err)}
	case resp.GetRefusal() != nil:
		c.log.Warn("a joining node was refused", "remote", req.From, "peer", req.GetNode(), "token", req.GetToken(), "code", resp.GetRefusal().GetCode())
	}
	_ = conn.SetWriteDeadline(time.Now().Add(doorReadTime))
	if err := writeMessage(conn, resp); err != nil {
		c.log.Debug("the answer to a joining node did not get through", "remote", req.From, "err", err)
	}
}

// sayProblem tells a stranger no more than what it can do.
func sayProblem(err error) string {
	switch {
	case errors.Is(err, fsm.ErrUnknown):
		return "it is not known whether the node was admitted; the same command again is safe"
	case errors.Is(err, fsm.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return "the fleet has no leader that can admit a node now; try again"
	}
	return "the fleet could not admit the node; its leader's log says why"
}

// readMessage reads a message with its length before it, of at most so many bytes.
func readMessage(r io.Reader, most uint32, m proto.Message) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > most {
		return fmt.Errorf("a message of %d bytes, at most %d are allowed", n, most)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	return proto.Unmarshal(body, m)
}

func writeMessage(w io.Writer, m proto.Message) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	out := binary.BigEndian.AppendUint32(make([]byte, 0, len(body)+4), uint32(len(body))) //nolint:gosec // far below
	_, err = w.Write(append(out, body...))
	return err
}

func encodeRefusal(e *fsm.Error) *peerpb.Refusal {
	return &peerpb.Refusal{Code: string(e.Code), Field: e.Field, Detail: e.Detail}
}

func decodeRefusal(p *peerpb.Refusal) *fsm.Error {
	return &fsm.Error{Code: fsm.Code(p.GetCode()), Field: p.GetField(), Detail: p.GetDetail()}
}

func encodeRoster(r Roster) *peerpb.Roster {
	out := &peerpb.Roster{Epoch: r.Epoch, Index: r.Index, Authorities: r.Authorities}
	for _, p := range r.Peers {
		out.Peers = append(out.Peers, &peerpb.Peer{
			Id: p.ID, Name: p.Name, Address: p.Address, Gossip: p.Gossip, Confirmed: p.Confirmed,
			KeyHash: p.KeyHash, Retired: p.Retired,
		})
	}
	return out
}

func decodeRoster(p *peerpb.Roster) Roster {
	r := Roster{Epoch: p.GetEpoch(), Index: p.GetIndex(), Authorities: p.GetAuthorities()}
	for _, m := range p.GetPeers() {
		r.Peers = append(r.Peers, Peer{
			ID: m.GetId(), Name: m.GetName(), Address: m.GetAddress(), Gossip: m.GetGossip(), Confirmed: m.GetConfirmed(),
			KeyHash: m.GetKeyHash(), Retired: m.GetRetired(),
		})
	}
	return r
}
