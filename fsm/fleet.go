package fsm

import (
	"fmt"
	"iter"
	"slices"
	"time"
)

// Fleet is who the fleet is and the keys that it trusts by. There is none until FormFleet, and one from
// then on. Secrets in it are sealed under a key that is on voters' disks only; results and events don't
// have them at all.
type Fleet struct {
	ID    string // 16 hex digits
	Epoch uint64 // grows when the fleet goes on without what it lost
	Since Epoch  // of the present epoch
	// CAs are the authorities that are trusted, oldest first. The last is current: it signs.
	CAs []CA
	// GossipKeys are all keys that nodes can read gossip by, oldest first. One is primary.
	GossipKeys []GossipKey
	FormedAt   time.Time
	Revision   uint64 // log index of the last change
}

// CA is a certificate authority of the fleet. The state machine does not look into certificates.
type CA struct {
	ID          string // SHA-256 of its public key, hex
	Certificate []byte // DER, self-signed
	Cross       []byte // DER, its name and key signed by the authority before; empty for the first
	SealedKey   []byte // only while it is current
	State       CAState
	// Index is the log index at which it became current, 0 for the first: certificates with a higher serial
	// are of it or of a later one.
	Index uint64
}

// CAState says what an authority is for.
type CAState string

// The states of an authority.
const (
	CACurrent CAState = "current" // signs
	CATrusted CAState = "trusted" // certificates that it signed are still accepted
)

// GossipKey encrypts gossip.
type GossipKey struct {
	ID        string
	SealedKey []byte
	State     GossipKeyState
	Index     uint64 // log index at which it got this state
}

// GossipKeyState says what a gossip key is for.
type GossipKeyState string

// The states of a gossip key. A rotation leads a key through them in this order.
const (
	GossipKeyAdded   GossipKeyState = "added"   // for reading, until every node has it
	GossipKeyPrimary GossipKeyState = "primary" // for writing
	GossipKeyOld     GossipKeyState = "old"     // for reading, until no node writes with it
)

// Membership is what the fleet decided about a node, and where the node says that it is reached. Membership
// of the fleet = nodes that are not retired.
type Membership struct {
	// Reported by the node itself, see PutNode.
	Address    string // of its peer port, host:port
	Gossip     string // ip:port
	API        string // host:port, empty if it serves only its socket
	Generation uint64 // number of starts of its agent; never falls

	Zone    string
	KeyHash [32]byte // SHA-256 of the public key of the newest certificate
	// Serial of the newest certificate issued: the log index of the op, or FirstSerial.
	Serial uint64
	// Confirmed is the lowest serial that peers accept. It follows Serial when the node has said that it
	// has the certificate: a reply can be lost.
	Confirmed uint64
	NotAfter  time.Time // of the newest certificate
	State     NodeState
	JoinedAt  time.Time
	RetiredAt time.Time // zero while it is a member
}

// FirstSerial is that of the certificate of the node that formed the fleet: it was made before there
// was a log.
const FirstSerial = 1

// NodeState says whether a node takes part.
type NodeState string

// The states of a node. A node that was never admitted (there was no fleet yet) has none and counts as active.
const (
	NodeActive  NodeState = "active"
	NodeDrained NodeState = "drained"
	NodeRetired NodeState = "retired" // for ever; kept so that its id is never used again
)

// Member says whether the node takes part in the fleet.
func (n *Node) Member() bool { return n.State != NodeRetired }

// JoinToken admits one node, once.
type JoinToken struct {
	ID   string
	Hash [32]byte // SHA-256 of its secret; zero in results and events
	// Node is the only id that it admits, empty for any. Zone is the one that its node gets, empty if the
	// node may choose.
	Node, Zone string
	// Again says that it gives the member Node a new certificate for the key that it has, instead of admitting a new one.
	Again     bool
	CreatedAt time.Time
	ExpiresAt time.Time
	Actor     string // who created it
	UsedBy    string // id of the node that it admitted
	UsedAt    time.Time
	Revision  uint64 // log index of the last change
}

// Limits on what identity and joining add to the state.
const (
	MaxAddressBytes     = 300 // of host:port
	MaxZoneBytes        = 64
	MaxCertificateBytes = 4 << 10
	MaxSealedBytes      = 1 << 10
	MaxJoinTokens       = 1000
	MaxJoinTokenTTL     = 7 * 24 * time.Hour
	// JoinTokenKept is for how long after its end a token can still be told from one that never was.
	JoinTokenKept = 24 * time.Hour
	maxGossipKeys = 3
)

// FormFleet makes this the state of a fleet, with its first node. It is refused with CodeConflict if there
// is a fleet.
type FormFleet struct {
	ID        string
	CA        CA
	GossipKey GossipKey
	Node      Admission
}

// Admission is what a node is admitted with.
type Admission struct {
	ID, Name, Zone string
	Address        string
	Gossip         string
	API            string
	KeyHash        [32]byte
	NotAfter       time.Time // of the certificate that will be signed
	Format         uint32    // highest command format that its build reads; 0 counts as 1
}

// CreateJoinToken creates a token that ends after TTL, counted from the state time. With Again, Node is a member whose
// certificate may have ended: the token is refused with CodeNotFound or CodeNodeRetired if it is none.
type CreateJoinToken struct {
	ID         string
	Hash       [32]byte
	Node, Zone string
	TTL        time.Duration
	Again      bool
}

// DeleteJoinToken deletes a token, used or not.
type DeleteJoinToken struct{ ID string }

// AdmitNode admits a node with a token. The same token with the same node and key again is answered with the
// node as it is, so that a lost answer can be asked for again. The codes of its refusals are CodeTokenUnknown,
// CodeTokenExpired, CodeTokenUsed, CodeTokenBound, CodeNodeExists, CodeNodeRetired, CodeConflict (an
// address or a key that another node has) and CodeUpgrade (its build can't read the log).
//
// With a token that has Again, the node must be the member that the token names and have its key. It keeps its id, its zone and
// its store, gets a certificate like one that is renewed, and is reached where it now says.
type AdmitNode struct {
	Token string
	Hash  [32]byte // SHA-256 of the secret
	Node  Admission
}

// RenewNode makes room for a new certificate of a node. Using is the serial of the certificate that asked for it:
// certificates with a lower one are refused from now on.
type RenewNode struct {
	ID       string
	Using    uint64
	KeyHash  [32]byte
	NotAfter time.Time
}

// ConfirmNode says that a node has its certificate with this serial. Older ones are refused from now on.
type ConfirmNode struct {
	ID     string
	Serial uint64
}

// StartCA makes an authority the current one. The one before stays trusted until FinishCA.
type StartCA struct{ CA CA }

// FinishCA ends the trust in an authority. It is refused with CodeConflict as long as a member has no confirmed
// certificate of the current one, see View.AwaitingCA.
type FinishCA struct{ ID string }

// AddGossipKey adds a key to read gossip by.
type AddGossipKey struct{ Key GossipKey }

// UseGossipKey makes a key that was added the primary one. It is refused with CodeConflict if a node was retired since
// the key was added: the node may have it.
type UseGossipKey struct{ ID string }

// RemoveGossipKey removes a key that is not primary.
type RemoveGossipKey struct{ ID string }

func (FormFleet) isOp()       {}
func (CreateJoinToken) isOp() {}
func (DeleteJoinToken) isOp() {}
func (AdmitNode) isOp()       {}
func (RenewNode) isOp()       {}
func (ConfirmNode) isOp()     {}
func (StartCA) isOp()         {}
func (FinishCA) isOp()        {}
func (AddGossipKey) isOp()    {}
func (UseGossipKey) isOp()    {}
func (RemoveGossipKey) isOp() {}

// Fleet returns who the fleet is, false before it was formed.
func (v *View) Fleet() (*Fleet, bool) { return v.fleet, v.fleet != nil }

// CurrentCA returns the authority that signs, false before the fleet was formed.
func (f *Fleet) CurrentCA() (CA, bool) {
	i := slices.IndexFunc(f.CAs, func(c CA) bool { return c.State == CACurrent })
	if i < 0 {
		return CA{}, false
	}
	return f.CAs[i], true
}

// Members walks the nodes that are not retired, by id.
func (v *View) Members() iter.Seq[*Node] { return v.members() }

func (s *state) members() iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		for n := range s.nodes.all() {
			if n.Member() && !yield(n) {
				return
			}
		}
	}
}

// AwaitingCA returns the ids of the members that have no confirmed certificate of the current authority. They keep
// a rotation from its end.
func (v *View) AwaitingCA() []string { return v.awaitingCA() }

func (s *state) awaitingCA() []string {
	if s.fleet == nil {
		return nil
	}
	current, _ := s.fleet.CurrentCA()
	var ids []string
	for n := range s.members() {
		if n.Confirmed <= current.Index {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// LastRetired is the log index at which a node was last retired, 0 if none was.
func (v *View) LastRetired() uint64 { return v.lastRetired() }

func (s *state) lastRetired() (index uint64) {
	for n := range s.nodes.all() {
		if !n.Member() {
			index = max(index, n.Revision) // nothing changes a retired node
		}
	}
	return index
}

// JoinToken returns a join token by id.
func (v *View) JoinToken(id string) (*JoinToken, bool) { return v.joinTokens.get([]byte(id)) }

// JoinTokens walks the join tokens by id, also those that were used or are over.
func (v *View) JoinTokens() iter.Seq[*JoinToken] { return v.joinTokens.all() }

// CheckAdmission says what AdmitNode would be refused with at a time, nil if it would not be. Who answers strangers asks
// here first: what has no good token must not get into the log. An answer that was lost is given again only as long as
// the node has the certificate of its admission to come: a used token must not be a way around renewal.
func (v *View) CheckAdmission(op AdmitNode, now time.Time) *Error {
	s := v.state
	s.time = max(s.time, toNanos(now))
	token, again, refused := s.checkAdmission(&op)
	if again == nil {
		return refused
	}
	const had = "the join token was used by node %s at %s, which "
	switch {
	case again.Serial != token.Revision:
		return &Error{CodeTokenUsed, "token", fmt.Sprintf(had+"has had a newer certificate since; it admits only once", again.ID, say(token.UsedAt))}
	case !fromNanos(s.time).Before(again.NotAfter):
		return &Error{CodeTokenUsed, "token", fmt.Sprintf(had+"never came; its certificate ended at %s", again.ID, say(token.UsedAt), say(again.NotAfter))}
	}
	return nil
}

// public is the fleet as results and events show it.
func (f *Fleet) public() *Fleet {
	p := *f
	p.CAs, p.GossipKeys = slices.Clone(f.CAs), slices.Clone(f.GossipKeys)
	for i := range p.CAs {
		p.CAs[i].SealedKey = nil
	}
	for i := range p.GossipKeys {
		p.GossipKeys[i].SealedKey = nil
	}
	return &p
}

// public is the token as results and events show it.
func (t *JoinToken) public() *JoinToken {
	p := *t
	p.Hash = [32]byte{}
	return &p
}
