package wire

import "time"

// JoinToken admits one node, once. Its text is shown once, when it is created.
type JoinToken struct {
	ID        string    `json:"id" example:"6f1c0a9e2b7d4853"`
	Node      string    `json:"node,omitempty" doc:"The only node that it admits; without it, any"`
	Zone      string    `json:"zone,omitempty" doc:"Zone of the node that it admits"`
	Again     bool      `json:"again,omitempty" doc:"It gives that node, a member, a new certificate"`
	State     string    `json:"state" enum:"open,used,expired"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
	Actor     string    `json:"actor" doc:"Who created it"`
	UsedBy    string    `json:"used_by,omitempty" doc:"The node that it admitted"`
	UsedAt    time.Time `json:"used_at,omitzero"`
}

// NewJoinToken is a join token that was just created.
type NewJoinToken struct {
	JoinToken
	Token   string `json:"token" doc:"The token itself, for palisade join. It is shown here and never again"`
	Address string `json:"address" doc:"Peer address of the node that answered, for palisade join"`
}

// JoinTokenRequest asks for a join token.
type JoinTokenRequest struct {
	Node string `json:"node,omitempty" maxLength:"255" doc:"The only node id that it admits; without it, any"`
	Zone string `json:"zone,omitempty" maxLength:"64" doc:"Zone of the node that it admits; without it, the node chooses"`
	// Again is for a member whose certificate has ended.
	Again bool   `json:"again,omitempty" doc:"Gives the member node a new certificate for the key that it has, instead of admitting a new one"`
	TTL   string `json:"ttl,omitempty" example:"15m" maxLength:"32" doc:"How long it can be used, at most 7 days; 15 minutes without it"`
}

// Fleet is who the fleet is, and the keys that it trusts by.
type Fleet struct {
	ID          string      `json:"id"`
	Epoch       uint64      `json:"epoch" doc:"Grows when the fleet goes on without what it lost"`
	Since       *Epoch      `json:"since,omitempty" doc:"How the present epoch began; absent in the first"`
	FormedAt    time.Time   `json:"formed_at"`
	Authorities []Authority `json:"authorities" nullable:"false" doc:"All that are trusted, the current one last"`
	Awaiting    []string    `json:"awaiting" nullable:"false" doc:"Nodes without a certificate of the current authority; they keep a rotation from its end"`
	GossipKeys  []GossipKey `json:"gossip_keys" nullable:"false"`
	Revision    uint64      `json:"revision"`
}

// Epoch says how the fleet went on without what it lost.
type Epoch struct {
	At      time.Time `json:"at"`
	Node    string    `json:"node" doc:"That it went on from"`
	How     string    `json:"how" enum:"recover,restore"`
	Settled bool      `json:"settled" doc:"Nodes have been allowed to let go of what only their kernels hold from before"`
}

// Authority is one of the fleet's certificate authorities.
type Authority struct {
	SHA256      string    `json:"sha256" doc:"Of its public key: what join tokens pin"`
	State       string    `json:"state" enum:"current,trusted"`
	NotAfter    time.Time `json:"not_after"`
	Certificate string    `json:"certificate" doc:"PEM"`
}

// GossipKey is one of the keys by which gossip is read.
type GossipKey struct {
	ID    string `json:"id"`
	State string `json:"state" enum:"added,primary,old"`
}

// Membership is what the fleet decided about a node, and where it is reached. It is empty before the node was admitted.
type Membership struct {
	Address     string       `json:"address,omitempty" doc:"Where the other nodes reach it"`
	Gossip      string       `json:"gossip,omitempty" doc:"Where its gossip is reached"`
	API         string       `json:"api,omitempty" doc:"Where its API is reached, if it is from elsewhere"`
	Zone        string       `json:"zone,omitempty"`
	State       string       `json:"state,omitempty" enum:"active,drained,retired"`
	JoinedAt    time.Time    `json:"joined_at,omitzero"`
	Certificate *Certificate `json:"certificate,omitempty"`
}

// Certificate is what the fleet knows of the certificate of a node.
type Certificate struct {
	Serial    uint64    `json:"serial"`
	NotAfter  time.Time `json:"not_after"`
	Confirmed bool      `json:"confirmed" doc:"The node has said that it has it"`
}
