package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/pki"
)

// Signatures are given by the leader only: it has the authority's key, and its state is the newest.

// leads says with an error why this node can't decide anything for the fleet.
func (c *Cluster) leads() error {
	if r := c.running.Load(); r == nil || r.throne.current() == nil {
		return fmt.Errorf("%w: node %q does not lead", fsm.ErrUnavailable, c.id)
	}
	return nil
}

// onAdmit admits a joining node, for whoever it came to. A refusal is an answer.
func (c *Cluster) onAdmit(ctx context.Context, _ string, req *peerpb.AdmitRequest) (*peerpb.AdmitResponse, error) {
	if err := c.leads(); err != nil {
		return nil, err
	}
	now, err := c.clock(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: the time is not known: %w", fsm.ErrUnavailable, err)
	}
	op, refused := admission(req)
	if refused == nil {
		op.Node.NotAfter = pki.NodeTerms{Lifetime: c.lifetime}.NotAfter(now)
		refused = c.store.View().CheckAdmission(op, now) // what has no token must not get into the log
	}
	if refused != nil {
		return &peerpb.AdmitResponse{Refusal: encodeRefusal(refused)}, nil
	}
	res, err := c.Propose(ctx, fsm.Command{Actor: "node:" + op.Node.ID, From: req.GetFrom(), Op: op})
	if err != nil {
		return nil, err
	}
	if refused := res.Err; refused != nil {
		return &peerpb.AdmitResponse{Refusal: encodeRefusal(refused)}, nil
	}
	view := c.store.View()
	chain, err := c.issueNode(view, res.Node, req.GetRequest(), now)
	if err != nil {
		return nil, err
	}
	r, _ := rosterOf(view)
	f, _ := view.Fleet()
	keys, err := openKeys(f, c.identity.SealKey())
	if err != nil {
		return nil, err
	}
	c.log.Info("a node was admitted", "peer", op.Node.ID, "address", op.Node.Address, "token", op.Token)
	return &peerpb.AdmitResponse{Fleet: f.ID, Chain: chain, Roster: encodeRoster(r), Keys: encodeKeys(keys), EpochProof: encodeProof(c.identity.proofOf()), Generation: max(res.Node.Generation, c.contacts.met(op.Node.ID))}, nil
}

// admission reads what a joining node wants.
func admission(req *peerpb.AdmitRequest) (fsm.AdmitNode, *fsm.Error) {
	hash, err := pki.RequestKey(req.GetRequest())
	if err != nil {
		return fsm.AdmitNode{}, &fsm.Error{Code: fsm.CodeInvalid, Field: "request", Detail: err.Error()}
	}
	return fsm.AdmitNode{
		Token: req.GetToken(), Hash: sha256.Sum256(req.GetSecret()),
		Node: fsm.Admission{
			ID: req.GetNode(), Name: req.GetName(), Zone: req.GetZone(),
			Address: req.GetAddress(), Gossip: req.GetGossip(), API: req.GetApi(), KeyHash: hash,
			Format: req.GetFormat(),
		},
	}, nil
}

// issueNode signs the certificate that the state has made room for, and returns its chain.
func (c *Cluster) issueNode(view *fsm.View, n *fsm.Node, request []byte, now time.Time) ([][]byte, error) {
	if view.Index() < n.Serial {
		return nil, fmt.Errorf("%w: this leader lags behind its log", fsm.ErrUnavailable)
	}
	a, f, err := c.authority(view)
	if err != nil {
		return nil, err
	}
	// It ends when the state says, however often it is asked for: one serial is one certificate.
	terms := pki.NodeTerms{Fleet: f.ID, Node: n.ID, Serial: n.Serial, Lifetime: c.lifetime}
	leaf, err := a.IssueNode(request, terms, now.Add(n.NotAfter.Sub(terms.NotAfter(now))))
	if err != nil {
		return nil, err
	}
	return a.Chain(leaf), nil
}

// onRenew gives a member a new certificate for itself, and for nobody else: the call must come from the node.
func (c *Cluster) onRenew(ctx context.Context, from string, req *peerpb.RenewRequest) (*peerpb.RenewResponse, error) {
	if err := c.leads(); err != nil {
		return nil, err
	}
	if err := c.knows(from); err != nil {
		return nil, err
	}
	hash, err := pki.RequestKey(req.GetRequest())
	if err != nil {
		return nil, err
	}
	now, err := c.clock(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: the time is not known: %w", fsm.ErrUnavailable, err)
	}
	res, err := c.Propose(ctx, fsm.Command{Actor: "node:" + from, Op: fsm.RenewNode{
		ID: from, Using: req.GetUsing(), KeyHash: hash, NotAfter: pki.NodeTerms{Lifetime: c.lifetime}.NotAfter(now),
	}})
	if err != nil {
		return nil, err
	}
	if refused := res.Err; refused != nil {
		return &peerpb.RenewResponse{Refusal: encodeRefusal(refused)}, nil
	}
	chain, err := c.issueNode(c.store.View(), res.Node, req.GetRequest(), now)
	if err != nil {
		return nil, err
	}
	return &peerpb.RenewResponse{Chain: chain}, nil
}

// Renew gets this node a new certificate from the leader and puts it in the place of the present one, without
// touching open connections. It blocks until that is done or ctx ends. It can be called at any time, again too;
// an error leaves the present certificate in force. A refusal is an *fsm.Error.
func (c *Cluster) Renew(ctx context.Context) error {
	ctx, cancel := c.withDeadline(ctx)
	defer cancel()
	cred := c.identity.cur.Load()
	request, err := pki.Request(cred.key)
	if err != nil {
		return err
	}
	req := &peerpb.RenewRequest{Request: request, Using: cred.member.Serial}
	resp, err := toLeader(ctx, c, func(id string) (*peerpb.RenewResponse, error) {
		if id == c.id {
			return c.onRenew(ctx, c.id, req)
		}
		return c.rpc.renew(ctx, id, req)
	})
	if err != nil {
		return fmt.Errorf("renew the certificate: %w", err)
	}
	if resp.GetRefusal() != nil {
		return fmt.Errorf("renew the certificate: %w", decodeRefusal(resp.GetRefusal()))
	}
	if err := c.identity.swap(resp.GetChain()); err != nil {
		return err
	}
	// From here on the older certificate may be refused. If this does not get through, the next renewal says it.
	serial := c.identity.Certificate().Serial
	res, err := c.Propose(ctx, fsm.Command{Actor: "node:" + c.id, Op: fsm.ConfirmNode{ID: c.id, Serial: serial}})
	if err == nil && res.Err != nil {
		err = res.Err
	}
	if err != nil {
		return fmt.Errorf("confirm the renewed certificate: %w", err)
	}
	c.log.Info("the certificate was renewed", "serial", serial, "until", c.identity.Certificate().NotAfter)
	return nil
}

// Reload takes the certificate that Join has put on the disk for a node whose own one has ended, and with it where the others
// are reached now. It says whether there was one. It reads two small files.
func (c *Cluster) Reload() (bool, error) {
	changed, err := c.identity.reload()
	if err != nil || !changed {
		return false, err
	}
	r, err := loadRoster(c.identity.file(rosterFile))
	if err != nil {
		return true, err
	}
	if r.Epoch == c.dir.now().roster.Epoch { // of another epoch the peers tell, with a proof
		c.enforce(r)
	}
	c.log.Info("this node has a new certificate from the disk", "until", c.identity.Certificate().NotAfter)
	return true, nil
}

// Certificate says what is in this node's present certificate. RenewAt says when Renew is due; it is due at once,
// whatever the time, while AuthorityChanged.
func (c *Cluster) Certificate() pki.Member { return c.identity.Certificate() }

// AuthorityChanged says that this node's certificate is not of the fleet's current authority, or not confirmed:
// Renew is due.
func (c *Cluster) AuthorityChanged() bool {
	view := c.store.View()
	f, ok := view.Fleet()
	n, known := view.Node(c.id)
	if !ok || !known {
		return false
	}
	ca, _ := f.CurrentCA()
	return n.Confirmed <= ca.Index || c.Certificate().Serial <= ca.Index
}

// ServingCertificate has the leader sign a certificate of the fleet's authority for this node's API, for a key of
// the caller's (request as pki.Request makes it). Names and addresses that are another node's are left out. It
// returns the chain in DER, the leaf first. It blocks until then or until ctx ends.
func (c *Cluster) ServingCertificate(ctx context.Context, request []byte, names []string, addresses []netip.Addr) ([][]byte, error) {
	ctx, cancel := c.withDeadline(ctx)
	defer cancel()
	req := &peerpb.ServingRequest{Request: request, Names: names}
	for _, a := range addresses {
		req.Addresses = append(req.Addresses, a.AsSlice())
	}
	resp, err := toLeader(ctx, c, func(id string) (*peerpb.ServingResponse, error) {
		if id == c.id {
			return c.onServing(ctx, c.id, req)
		}
		return c.rpc.serving(ctx, id, req)
	})
	if err != nil {
		return nil, fmt.Errorf("get a certificate for the API: %w", err)
	}
	return resp.GetChain(), nil
}

// maxServingNames bounds the names, and the addresses, of one serving certificate.
const maxServingNames = 256

func (c *Cluster) onServing(ctx context.Context, from string, req *peerpb.ServingRequest) (*peerpb.ServingResponse, error) {
	if err := c.leads(); err != nil {
		return nil, err
	}
	if err := c.knows(from); err != nil {
		return nil, err
	}
	if len(req.GetNames()) > maxServingNames || len(req.GetAddresses()) > maxServingNames {
		return nil, errors.New("too many names")
	}
	now, err := c.clock(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: the time is not known: %w", fsm.ErrUnavailable, err)
	}
	view := c.store.View()
	a, _, err := c.authority(view)
	if err != nil {
		return nil, err
	}
	terms := pki.ServingTerms{Node: from, Names: slices.Clone(req.GetNames()), Lifetime: c.lifetime}
	for _, b := range req.GetAddresses() {
		if addr, ok := netip.AddrFromSlice(b); ok {
			terms.Addresses = append(terms.Addresses, addr.Unmap())
		}
	}
	othersOut(view, from, &terms)
	leaf, err := a.IssueServing(req.GetRequest(), terms, now)
	if err != nil {
		return nil, err
	}
	return &peerpb.ServingResponse{Chain: a.Chain(leaf)}, nil
}

// othersOut leaves out of a serving certificate what is another member's: a node must not be able to stand in the
// place of another's API. Loopback is each node's own, also if another announces it.
func othersOut(view *fsm.View, from string, terms *pki.ServingTerms) {
	names, addrs := map[string]bool{}, map[netip.Addr]bool{}
	for n := range view.Members() {
		if n.ID == from {
			continue
		}
		for _, name := range []string{n.ID, n.Name, hostPart(n.Address), hostPart(n.API), hostPart(n.Gossip)} {
			if a, err := netip.ParseAddr(name); err == nil && !a.IsLoopback() {
				addrs[a.Unmap()] = true
			}
			if !strings.EqualFold(name, "localhost") {
				names[strings.ToLower(name)] = true
			}
		}
		for _, a := range n.Addresses {
			if !a.IsLoopback() {
				addrs[a] = true
			}
		}
	}
	terms.Names = slices.DeleteFunc(terms.Names, func(s string) bool { return names[strings.ToLower(s)] })
	terms.Addresses = slices.DeleteFunc(terms.Addresses, func(a netip.Addr) bool { return addrs[a] })
}

// toLeader makes a call to whoever leads, again while nobody does, until ctx ends.
func toLeader[R any](ctx context.Context, c *Cluster, call func(id string) (R, error)) (R, error) {
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		var none R
		err := errNoLeader
		if id := c.leaderHint(); id != "" {
			var resp R
			if resp, err = call(id); err == nil {
				return resp, nil
			}
			if !errors.Is(err, fsm.ErrUnavailable) && !errors.Is(err, errNotSent) {
				return none, err
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return none, fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-c.stopping:
			return none, fmt.Errorf("%w: this node stops: %w", fsm.ErrUnavailable, err)
		}
	}
}

func hostPart(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	return host
}
