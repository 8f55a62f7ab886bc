package cluster

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"

	"github.com/palisade/palisade/cluster/internal/peerpb"
)

// tellMembers is what this node says of raft's members: what it has applied, and if it votes, the proof of that.
func (c *Cluster) tellMembers() *peerpb.Membership {
	m := c.members.encode()
	m.Proof = c.membersProof(m)
	return m
}

// hearMembers takes what a peer says of raft's members. Who believes it may leave raft, so it must be as hard to make
// up as an entry of the log, see mayRaft: the peer has the seal key, or is a voter by this node's own log. What
// others say is good for asking those that they name.
func (c *Cluster) hearMembers(from string, m *peerpb.Membership) {
	proof := c.membersProof(m)
	switch {
	case m == nil:
	case c.identity == nil, proof != nil && hmac.Equal(proof, m.GetProof()), c.voters()[from]:
		c.members.hear(m)
	default:
		c.members.hint(m)
	}
}

// membersProof is a MAC over a list with the seal key, nil without one. It is a fact for ever, so it may be repeated.
func (c *Cluster) membersProof(m *peerpb.Membership) []byte {
	if c.identity == nil || c.identity.SealKey() == nil {
		return nil
	}
	mac := hmac.New(sha256.New, c.identity.SealKey())
	b := []byte("palisade-membership\x00" + c.identity.Fleet())
	b = binary.BigEndian.AppendUint64(b, c.identity.Epoch())
	b = binary.BigEndian.AppendUint64(b, m.GetIndex())
	for _, id := range m.GetMembers() {
		b = binary.BigEndian.AppendUint64(b, uint64(len(id)))
		b = append(b, id...)
	}
	_, _ = mac.Write(b) // never fails
	return mac.Sum(nil)
}
