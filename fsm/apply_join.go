package fsm

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"
)

func (a *applier) createJoinToken(op *CreateJoinToken) (*JoinToken, *Error) {
	if a.fleet == nil {
		return nil, noFleet()
	}
	if refused := first(
		checkID("id", op.ID), checkOptionalID("node", op.Node), checkText("zone", op.Zone, MaxZoneBytes),
	); refused != nil {
		return nil, refused
	}
	if op.TTL <= 0 || op.TTL > MaxJoinTokenTTL {
		return nil, &Error{CodeInvalid, "ttl", fmt.Sprintf("is %s; a join token lasts for more than nothing and at most %s", op.TTL, MaxJoinTokenTTL)}
	}
	if op.Hash == [32]byte{} {
		return nil, &Error{CodeInvalid, "hash", "is missing"}
	}
	if _, known := a.joinTokens.get([]byte(op.ID)); known {
		return nil, &Error{CodeConflict, "id", "there is a join token " + op.ID + " already"}
	}
	if refused := a.checkTokenNode(op); refused != nil {
		return nil, refused
	}
	over := a.tokensOver()
	if a.joinTokens.n-len(over) >= MaxJoinTokens {
		return nil, &Error{CodeTooMany, "", fmt.Sprintf("there are %d join tokens, which is the most; delete some", MaxJoinTokens)}
	}
	for _, t := range over {
		a.setJoinToken(t, nil)
		a.emit(Event{Type: EventJoinTokenForgotten, JoinToken: t.public()})
	}
	now := fromNanos(a.time)
	t := &JoinToken{
		ID: op.ID, Hash: op.Hash, Node: op.Node, Zone: op.Zone, Again: op.Again,
		CreatedAt: now, ExpiresAt: utc(now.Add(op.TTL)), Actor: a.actor, Revision: a.index,
	}
	return a.putJoinToken(nil, t, EventJoinTokenCreated), nil
}

// checkTokenNode checks the node that a token is to be bound to.
func (a *applier) checkTokenNode(op *CreateJoinToken) *Error {
	switch {
	case op.Again && op.Node == "":
		return &Error{CodeInvalid, "node", "is missing; a token for a node that comes back names it"}
	case op.Again && op.Zone != "":
		return &Error{CodeInvalid, "zone", "can't be given for a node that comes back; it keeps its zone"}
	case op.Again:
		_, refused := a.member(op.Node)
		if refused != nil {
			refused.Field = "node"
		}
		return refused
	case op.Node != "":
		return a.checkNewID("node", op.Node)
	}
	return nil
}

// tokensOver are those that nobody has to be told about any more.
func (a *applier) tokensOver() (over []*JoinToken) {
	before := fromNanos(a.time).Add(-JoinTokenKept)
	for t := range a.joinTokens.all() {
		if t.ExpiresAt.Before(before) {
			over = append(over, t)
		}
	}
	return over
}

// putJoinToken replaces a token and tells of it. It returns what may be shown.
func (a *applier) putJoinToken(was, is *JoinToken, event EventType) *JoinToken {
	a.setJoinToken(was, is)
	shown := is.public()
	a.emit(Event{Type: event, JoinToken: shown})
	return shown
}

// deleteJoinToken returns the token as it was.
func (a *applier) deleteJoinToken(op DeleteJoinToken) (*JoinToken, *Error) {
	t, ok := a.joinTokens.get([]byte(op.ID))
	if !ok {
		return nil, &Error{CodeNotFound, "id", "there is no join token " + quote(op.ID)}
	}
	a.setJoinToken(t, nil)
	shown := t.public()
	a.emit(Event{Type: EventJoinTokenDeleted, JoinToken: shown})
	return shown, nil
}

func (a *applier) admitNode(op *AdmitNode) (*Node, *Error) {
	token, again, refused := a.checkAdmission(op)
	if refused != nil {
		return nil, refused
	}
	if again != nil {
		return again, nil
	}
	if token.Zone != "" {
		op.Node.Zone = token.Zone
	}
	var n *Node
	if token.Again {
		n = a.readmit(&op.Node)
	} else {
		n = a.admit(&op.Node, a.index)
	}
	used := *token
	used.UsedBy, used.UsedAt, used.Revision = n.ID, fromNanos(a.time), a.index
	a.putJoinToken(token, &used, EventJoinTokenUsed)
	return n, nil
}

// checkAdmission returns the token, and the node if this admission was done before.
func (s *state) checkAdmission(op *AdmitNode) (token *JoinToken, again *Node, refused *Error) {
	no := func(code Code, field, detail string) (*JoinToken, *Node, *Error) {
		return nil, nil, &Error{code, field, detail}
	}
	const create = `; "palisade join-token create" on a member makes a new one`
	if s.fleet == nil {
		return nil, nil, noFleet()
	}
	t, ok := s.joinTokens.get([]byte(op.Token))
	if !ok || t.Hash != op.Hash { // the same words for both: ids are no secret
		return no(CodeTokenUnknown, "token", "this fleet has no such join token: it is of another fleet, or was deleted, or is long over"+create)
	}
	if t.UsedBy != "" {
		if n, ok := s.nodes.get([]byte(t.UsedBy)); ok && n.ID == op.Node.ID && n.KeyHash == op.Node.KeyHash && n.Member() {
			return t, n, nil
		}
		return no(CodeTokenUsed, "token", fmt.Sprintf("the join token was used by node %s at %s; it admits only once", t.UsedBy, say(t.UsedAt))+create)
	}
	if now := fromNanos(s.time); !now.Before(t.ExpiresAt) {
		return no(CodeTokenExpired, "token", fmt.Sprintf("the join token ended at %s, the leader's clock says %s", say(t.ExpiresAt), say(now))+create)
	}
	if t.Node != "" && t.Node != op.Node.ID {
		return no(CodeTokenBound, "node.id", fmt.Sprintf("the join token is for node %s only, this one is %s", t.Node, quote(op.Node.ID))+create)
	}
	if t.Zone != "" && op.Node.Zone != "" && t.Zone != op.Node.Zone {
		return no(CodeTokenBound, "node.zone", fmt.Sprintf("the join token is for zone %s, the node says that it is in %s", quote(t.Zone), quote(op.Node.Zone)))
	}
	if t.Again {
		return t, nil, s.checkReturning("node.", &op.Node)
	}
	return t, nil, s.checkMember("node.", &op.Node)
}

func say(t time.Time) string { return t.Format(time.RFC3339) }

// checkReturning refuses a node that comes back but is no member, or does not have the key of the one that is.
func (s *state) checkReturning(front string, n *Admission) *Error {
	was, ok := s.nodes.get([]byte(n.ID))
	switch {
	case !ok || was.Serial == 0:
		return &Error{CodeNotFound, front + "id", "there is no node " + quote(n.ID)}
	case !was.Member():
		return s.checkNewID(front+"id", n.ID)
	case was.KeyHash != n.KeyHash:
		return &Error{CodeConflict, front + "key_hash", "this machine does not have the key of node " + n.ID +
			": only the data directory of that node comes back under its id; retire it, and join under another one"}
	}
	return first(s.checkAdmitted(front, n), s.checkReached(front, n))
}

// checkMember refuses a new member whose texts are wrong, or that has what another one has.
func (s *state) checkMember(front string, n *Admission) *Error {
	if refused := s.checkAdmitted(front, n); refused != nil {
		return refused
	}
	if was, ok := s.nodes.get([]byte(n.ID)); ok && was.Member() && was.Serial != 0 && was.KeyHash == n.KeyHash {
		return &Error{CodeNodeExists, front + "id", "node " + n.ID +
			` is a member, and this is its key; "palisade join-token create --node ` + n.ID + ` --again" makes the token for it`}
	}
	if refused := s.checkNewID(front+"id", n.ID); refused != nil {
		return refused
	}
	for m := range s.nodes.all() {
		if m.KeyHash == n.KeyHash {
			return &Error{CodeConflict, front + "key_hash", "node " + m.ID + " has the same key: its data directory was copied; start with an empty one"}
		}
	}
	return s.checkReached(front, n)
}

// checkReached refuses an address that another member has.
func (s *state) checkReached(front string, n *Admission) *Error {
	for m := range s.members() {
		if m.ID != n.ID && (m.Address == n.Address || m.Gossip == n.Gossip) {
			return &Error{CodeConflict, front + "address", fmt.Sprintf("node %s has the address %s; retire it if it is gone", m.ID, n.Address)}
		}
	}
	return nil
}

// checkAdmitted refuses texts that are wrong, and a build that can't read the log.
func (s *state) checkAdmitted(front string, n *Admission) *Error {
	if refused := first(
		checkID(front+"id", n.ID),
		checkText(front+"name", n.Name, MaxNameBytes),
		checkText(front+"zone", n.Zone, MaxZoneBytes),
		checkAddress(front+"address", n.Address, false),
		checkAddress(front+"gossip", n.Gossip, true),
	); refused != nil {
		return refused
	}
	if n.API != "" {
		if refused := checkAddress(front+"api", n.API, false); refused != nil {
			return refused
		}
	}
	if n.KeyHash == [32]byte{} {
		return &Error{CodeInvalid, front + "key_hash", "is missing"}
	}
	if reads := max(n.Format, 1); reads < s.format {
		return &Error{CodeUpgrade, front + "format", fmt.Sprintf(
			"its build reads command formats up to %d, the fleet's log needs %d; install the fleet's version first", reads, s.format)}
	}
	return nil
}

// checkNewID refuses the id of a node that was ever admitted.
func (s *state) checkNewID(field, id string) *Error {
	n, known := s.nodes.get([]byte(id))
	switch {
	case !known || n.Serial == 0:
		return nil
	case n.State == NodeRetired:
		return &Error{CodeNodeRetired, field, "node " + id + " was retired, and ids are never used again; choose another one"}
	}
	return &Error{CodeNodeExists, field, "node " + id + " is a member; choose another id, or retire that node if it is gone"}
}

// admit makes a member of what was checked.
func (a *applier) admit(m *Admission, serial uint64) *Node {
	var n Node
	was, known := a.nodes.get([]byte(m.ID))
	if known {
		n = *was
	}
	n.ID, n.Name, n.Format = m.ID, m.Name, m.Format
	n.Membership = Membership{
		Address: m.Address, Gossip: m.Gossip, API: m.API, Zone: m.Zone, Generation: n.Generation,
		KeyHash: m.KeyHash, Serial: serial, Confirmed: serial, NotAfter: utc(m.NotAfter),
		State: NodeActive, JoinedAt: fromNanos(a.time),
	}
	return a.changeNode(was, &n, EventNodeAdmitted)
}

// readmit gives a member that was checked a new certificate. As with a renewal, the one before is good until the node confirms the
// new one, if it has not ended.
func (a *applier) readmit(m *Admission) *Node {
	was, _ := a.nodes.get([]byte(m.ID))
	n := *was
	n.Format, n.Address, n.Gossip, n.API = m.Format, m.Address, m.Gossip, m.API
	n.Serial, n.NotAfter = a.index, utc(m.NotAfter)
	return a.changeNode(was, &n, EventNodeRenewed)
}

func (a *applier) changeNode(was, is *Node, event EventType) *Node {
	is.Revision = a.index
	a.setNode(was, is)
	a.emit(Event{Type: event, Node: is})
	return is
}

// member returns a node that was admitted and not retired.
func (s *state) member(id string) (*Node, *Error) {
	n, ok := s.nodes.get([]byte(id))
	switch {
	case !ok || n.Serial == 0:
		return nil, &Error{CodeNotFound, "id", "there is no node " + quote(id)}
	case !n.Member():
		return nil, &Error{CodeNodeRetired, "id", "node " + id + " was retired"}
	}
	return n, nil
}

func (a *applier) renewNode(op *RenewNode) (*Node, *Error) {
	was, refused := a.member(op.ID)
	if refused != nil {
		return nil, refused
	}
	if op.Using < was.Confirmed || op.Using > was.Serial {
		return nil, &Error{CodeStale, "using", fmt.Sprintf("certificate %d of node %s is not its newest one", op.Using, op.ID)}
	}
	if op.KeyHash == [32]byte{} {
		return nil, &Error{CodeInvalid, "key_hash", "is missing"}
	}
	for m := range a.nodes.all() {
		if m.KeyHash == op.KeyHash && m.ID != op.ID {
			return nil, &Error{CodeConflict, "key_hash", "node " + m.ID + " has the same key"}
		}
	}
	is := *was
	is.Serial, is.Confirmed, is.KeyHash, is.NotAfter = a.index, op.Using, op.KeyHash, utc(op.NotAfter)
	return a.changeNode(was, &is, EventNodeRenewed), nil
}

func (a *applier) confirmNode(op ConfirmNode) (*Node, *Error) {
	was, refused := a.member(op.ID)
	if refused != nil {
		return nil, refused
	}
	if op.Serial < was.Confirmed || op.Serial > was.Serial {
		return nil, &Error{CodeStale, "serial", fmt.Sprintf("certificate %d of node %s is not its newest one", op.Serial, op.ID)}
	}
	if op.Serial == was.Confirmed {
		return was, nil
	}
	is := *was
	is.Confirmed = op.Serial
	return a.changeNode(was, &is, EventNodeRenewed), nil
}

func checkOptionalID(field, id string) *Error {
	if id == "" {
		return nil
	}
	return checkID(field, id)
}

// CheckAddress says why a text is no host:port at which others can reach something, such as an API; nil if it is one.
func CheckAddress(s string) error {
	if refused := checkAddress("", s, false); refused != nil {
		return refused
	}
	return nil
}

// checkAddress checks host:port as others reach it; with numeric set, the host must be an address.
func checkAddress(field, s string, numeric bool) *Error {
	if s == "" {
		return &Error{CodeInvalid, field, "is missing"}
	}
	if refused := checkText(field, s, MaxAddressBytes); refused != nil {
		return refused
	}
	host, port, err := net.SplitHostPort(s)
	n, bad := strconv.ParseUint(port, 10, 16)
	ip, none := netip.ParseAddr(host)
	switch {
	case err != nil || bad != nil || n == 0 || host == "" || numeric && none != nil || none != nil && checkHost(host) != nil:
		return &Error{CodeInvalid, field, quote(s) + ` is no address and port, which look like "192.0.2.1:7701"`}
	case none == nil && (ip.IsUnspecified() || ip.IsMulticast()):
		return &Error{CodeInvalid, field, s + " is not an address that others can reach"}
	}
	return nil
}

func checkHost(host string) *Error { return checkID("", host) }

// checkReported checks what reported takes over.
func checkReported(m *Membership) *Error {
	for _, a := range []struct {
		field, s string
		numeric  bool
	}{{"address", m.Address, false}, {"gossip", m.Gossip, true}, {"api", m.API, false}} {
		if a.s != "" {
			if refused := checkAddress(a.field, a.s, a.numeric); refused != nil {
				return refused
			}
		}
	}
	return nil
}

// reported takes over what a node may say of itself in PutNode: where it is reached, and its generation.
func (m *Membership) reported(is *Membership) {
	was := *m
	*m = *is
	m.Address, m.Gossip, m.API = or(was.Address, is.Address), or(was.Gossip, is.Gossip), or(was.API, is.API)
	m.Generation = max(was.Generation, is.Generation)
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
