package cluster

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

// FuzzFrames: whatever comes on a follow stream, at the door, or as one entry is a message or an error, and no more is
// read than may be.
func FuzzFrames(f *testing.F) {
	var good bytes.Buffer
	if err := writeFrame(&good, &peerpb.FollowUp{Node: "n1", Index: 7}); err != nil {
		f.Fatal(err)
	}
	entry, err := proto.Marshal(&peerpb.FollowDown{What: &peerpb.FollowDown_Beat{Beat: &peerpb.FollowBeat{Leader: "n1", Path: []string{"n1"}}}})
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{good.Bytes(), {0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 3, 1}, entry, nil} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range []proto.Message{&peerpb.FollowUp{}, &peerpb.FollowDown{}, &peerpb.AdmitRequest{}, &peerpb.AdmitResponse{}} {
			r := bytes.NewReader(b)
			if err := readFrame(r, maxUpFrame, m); err == nil && len(b)-r.Len() > 4+maxUpFrame {
				t.Fatalf("%d bytes were read", len(b)-r.Len())
			}
			_ = readMessage(bytes.NewReader(b), maxAdmitRequest, m)
		}
		e := &peerpb.FollowEntry{}
		if proto.Unmarshal(b, e) == nil {
			if l, err := decodeEntry(e); err == nil && l.Index != e.GetIndex() {
				t.Fatal("another entry")
			}
		}
	})
}

// FuzzPeerMessages: whatever a peer says, or answers, is decoded or refused.
func FuzzPeerMessages(f *testing.F) {
	for _, m := range []proto.Message{
		&peerpb.AdmitRequest{Token: "t", Secret: []byte("s"), Node: "n", Request: []byte{0x30}},
		&peerpb.AdmitResponse{Fleet: "f", Roster: &peerpb.Roster{Peers: []*peerpb.Peer{{Id: "n1"}}}},
		&peerpb.ProposeRequest{Commands: [][]byte{{1}}}, &peerpb.ProposeResponse{Outcomes: []*peerpb.Outcome{{}}}, &peerpb.AskRequest{}, &peerpb.AskResponse{},
		&peerpb.SecretsResponse{}, &peerpb.HelloResponse{}, &peerpb.WhoResponse{},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		for _, h := range []handler{
			handle(func(_ context.Context, _ string, m *peerpb.AdmitRequest) (*peerpb.AdmitRequest, error) {
				_, _ = admission(m)
				return m, nil
			}),
			handle(func(_ context.Context, _ string, m *peerpb.ProposeRequest) (*peerpb.ProposeRequest, error) {
				for _, c := range m.GetCommands() {
					_, _ = fsm.UnmarshalCommand(c)
				}
				return m, nil
			}),
			handle(func(_ context.Context, _ string, m *peerpb.AdmitResponse) (*peerpb.AdmitResponse, error) {
				_, _ = newListing(decodeRoster(m.GetRoster()))
				_ = decodeKeys(m.GetKeys()).String()
				_ = decodeRefusal(m.GetRefusal()).Error()
				_ = decodeProof(m.GetEpochProof())
				return m, nil
			}),
		} {
			_, _ = h(context.Background(), "n1", b)
		}
		_, _ = parseProtocols(string(b))
		_ = parsed(b)
	})
}

// parsed reads what a node says of itself, in both of its forms.
func parsed(b []byte) said {
	if len(b) < saidBytes {
		return said{}
	}
	return readSaid(b[:saidBytes])
}

// FuzzGossipMessages: whatever comes by gossip is a sighting or nothing; and only what has the form of a member's message
// gets to memberlist by a connection.
func FuzzGossipMessages(f *testing.F) {
	for _, b := range [][]byte{{gossipEncrypted, 0, 0, 0, 40, gossipVersion, 1, 2, 3}, {gossipEncrypted, 0, 0, 0, 40, 0}, {gossipEncrypted, 255, 255, 255, 255, 1}, nil} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		newSightings("n1", nil).take(b)
		s := &gossipStream{Conn: scripted{bytes.NewReader(b)}, most: 4096, gone: func() {}}
		var got []byte
		for buf := make([]byte, 7); ; {
			n, err := s.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		if len(got) > 4096 {
			t.Fatalf("%d bytes were read", len(got))
		}
		if len(got) > gossipHead && (got[0] != gossipEncrypted || got[gossipHead] != gossipVersion || got[1] > 0) {
			t.Fatalf("%x got through", got)
		}
	})
}

// scripted is a connection that says what a reader has.
type scripted struct{ io.Reader }

func (scripted) Write(b []byte) (int, error)      { return len(b), nil }
func (scripted) Close() error                     { return nil }
func (scripted) LocalAddr() net.Addr              { return nil }
func (scripted) RemoteAddr() net.Addr             { return nil }
func (scripted) SetDeadline(time.Time) error      { return nil }
func (scripted) SetReadDeadline(time.Time) error  { return nil }
func (scripted) SetWriteDeadline(time.Time) error { return nil }
