package cluster

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/palisade/palisade/pki"
)

// life is one start of an agent. The number grows with every start and is kept on the node's disk; the instance is
// random. Two with the same number can't come from one disk that was not copied or set back.
type life struct {
	Generation uint64
	Instance   uint64
}

// said is what a node says of itself with every contact.
type said struct {
	Epoch uint64
	life
}

// epochProof is what makes members give up what they hold of the epochs before: the word of the fleet's authority that
// the fleet goes on from Node under Epoch.
type epochProof struct {
	Epoch     uint64 `json:"epoch"`
	Node      string `json:"node"`
	Signature []byte `json:"signature"`
}

// SupersededError ends Run on a node that has heard that the fleet goes on under a higher epoch. The identity has
// been told; the next Run sets the store aside and rejoins.
type SupersededError struct {
	Epoch uint64
	From  string // who told
}

func (e *SupersededError) Error() string {
	return fmt.Sprintf("the fleet goes on under epoch %d, as node %s says: what this node holds of before is set aside, and it rejoins", e.Epoch, e.From)
}

// RefusedError ends Run on a node that can never take part as what it is. Its kernel goes on enforcing.
type RefusedError struct{ Why string }

func (e *RefusedError) Error() string { return e.Why }

// Headers of every call and answer.
const (
	selfHeader    = "Palisade-Self"        // epoch, generation and instance
	proofHeader   = "Palisade-Epoch-Proof" // node and signature; absent in the first epoch
	addressHeader = "Palisade-Address"     // where the caller is reached
	refusalHeader = "Palisade-Refusal"     // why the caller is refused: one of the words below
)

// Words of refusalHeader.
const (
	refusedEpoch = "epoch"
	refusedCopy  = "copy"
	refusedYet   = "undecided"
)

// refusal is why a contact is refused.
type refusal struct{ word, text string }

func (r *refusal) Error() string { return r.text }

func (s said) header() string {
	return fmt.Sprintf("%d %d %016x", s.Epoch, s.Generation, s.Instance)
}

func parseSaid(text string) (s said, err error) {
	parts := strings.Fields(text)
	if len(parts) != 3 {
		return s, errors.New("bad " + selfHeader)
	}
	for i, into := range []*uint64{&s.Epoch, &s.Generation, &s.Instance} {
		base := 10
		if i == 2 {
			base = 16
		}
		if *into, err = strconv.ParseUint(parts[i], base, 64); err != nil {
			return said{}, errors.New("bad " + selfHeader)
		}
	}
	return s, nil
}

func (p *epochProof) header() string {
	return p.Node + " " + base64.StdEncoding.EncodeToString(p.Signature)
}

func parseProof(epoch uint64, text string) *epochProof {
	node, b64, ok := strings.Cut(text, " ")
	signature, err := base64.StdEncoding.DecodeString(b64)
	if !ok || err != nil {
		return nil
	}
	return &epochProof{Epoch: epoch, Node: node, Signature: signature}
}

// saidBytes is the length of what a node says of itself before it speaks raft.
const saidBytes = 24

func (s said) bytes() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, saidBytes), s.Epoch)
	b = binary.BigEndian.AppendUint64(b, s.Generation)
	return binary.BigEndian.AppendUint64(b, s.Instance)
}

func readSaid(b []byte) said {
	return said{
		Epoch: binary.BigEndian.Uint64(b),
		life:  life{Generation: binary.BigEndian.Uint64(b[8:]), Instance: binary.BigEndian.Uint64(b[16:])},
	}
}

// contacts decides whom this node may deal with: those of its own epoch, and of each node only the newest life. It is
// asked with every call and with every connection of raft.
type contacts struct {
	identity *Identity
	dir      *directory
	mine     said
	floor    func(id string) uint64                             // generation of a node by the state
	ask      func(ctx context.Context, id string) (life, error) // which life answers where a node is reached
	over     func(error)                                        // ends this node's part
	cut      func()                                             // closes the connections that are outlived
	spawn    func(func(context.Context))                        // runs beside, until this node ends at the latest
	mu       sync.Mutex
	lives    map[string]belief
	strange  map[string]bool          // nodes that refuse this node's certificate
	takes    map[string]bool          // of each node that answered, whether it deals with this one or takes it for a copy
	doubts   map[string]chan struct{} // of nodes that are being asked; closed when that is done
}

// belief is which life of a node this one deals with.
type belief struct {
	life
	// sure is a life that was found where the node is reached. Of another it is known only that nothing was there when it
	// came: the one before may be cut off from this node, and come back.
	sure  bool
	asked time.Time // when it was last looked for
}

// askAgain is how often a life is looked for that is not sure, as long as it calls.
const askAgain = 5 * time.Second

func newContacts(i *Identity, d *directory) *contacts {
	return &contacts{identity: i, dir: d, lives: map[string]belief{}, strange: map[string]bool{}, takes: map[string]bool{}, doubts: map[string]chan struct{}{}}
}

// meet decides about a node that has come to this one. The error is a *refusal. It may ask back, and blocks until ctx
// ends at most.
func (c *contacts) meet(ctx context.Context, id string, s said, proof *epochProof, address string) error {
	switch {
	case s.Epoch > c.mine.Epoch:
		c.heardOf(id, proof, address)
		return &refusal{refusedEpoch, fmt.Sprintf("this node is still at epoch %d", c.mine.Epoch)}
	case s.Epoch < c.mine.Epoch:
		return &refusal{refusedEpoch, fmt.Sprintf("the fleet goes on under epoch %d; what is of epoch %d is over", c.mine.Epoch, s.Epoch)}
	}
	for {
		done, err := c.look(id, s.life)
		if done || err != nil {
			return err
		}
		wait, first := c.doubt(id)
		if !first {
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return errUndecided
			}
		}
		return c.settle(ctx, id, s.life, wait)
	}
}

// settle asks where the node is reached whether its earlier life goes on there.
func (c *contacts) settle(ctx context.Context, id string, l life, wait chan struct{}) error {
	now, err := c.ask(ctx, id)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.doubts, id)
	close(wait)
	known, met := c.lives[id]
	switch {
	case err == nil && now != l:
		if !known.sure || now.Generation >= known.Generation {
			c.believe(id, belief{now, true, time.Now()})
		}
		return copyOf(id, "it runs elsewhere at this moment, where the fleet reaches it")
	case err == nil:
		c.believe(id, belief{l, true, time.Now()})
		return nil
	case ctx.Err() != nil, errors.Is(err, errSilent): // fails closed
		return errUndecided // that nobody waited or answered says nothing about the other life
	case met && l.Generation <= known.Generation:
		return known.before(id, l)
	}
	c.believe(id, belief{l, false, time.Now()})
	return nil
}

// believe deals with a life from now on, and with no other of that node. c.mu is held.
func (c *contacts) believe(id string, b belief) {
	was, met := c.lives[id]
	c.lives[id] = b
	if met && was.life != b.life {
		c.spawn(func(context.Context) { c.cut() })
	}
}

var (
	// errUndecided refuses a contact for now.
	errUndecided = &refusal{refusedYet, "whether this is a copy is not known yet"}
	// errSilent is that something is where a node is reached, and does not say who it is.
	errSilent = errors.New("something is there and does not answer")
)

// look decides by what is known; false if the node must be asked.
func (c *contacts) look(id string, l life) (done bool, err error) {
	floor := c.floor(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	known, met := c.lives[id]
	switch {
	case l.Generation < floor: // also if it was dealt with before this node's state knew that
		return true, older(id, floor, l)
	case met && known.life == l:
		if !known.sure && time.Since(known.asked) > askAgain {
			known.asked = time.Now()
			c.lives[id] = known
			c.spawn(func(ctx context.Context) { c.askFor(ctx, id, l) })
		}
		return true, nil
	case met && known.sure && l.Generation <= known.Generation:
		return true, known.before(id, l)
	}
	return false, nil
}

// askFor looks for a life again that was taken because nothing was where its node is reached.
func (c *contacts) askFor(ctx context.Context, id string, l life) {
	now, err := c.ask(ctx, id)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && c.lives[id].life == l {
		c.believe(id, belief{now, true, time.Now()})
	}
}

// outlived says whether an open connection of a life must be cut.
func (c *contacts) outlived(id string, l life) bool {
	floor := c.floor(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	known, met := c.lives[id]
	return l.Generation < floor || met && known.life != l
}

// before refuses a life that does not come after this one.
func (b belief) before(id string, l life) error {
	if l.Generation == b.Generation {
		return copyOf(id, fmt.Sprintf("its start %d was seen before", l.Generation))
	}
	return older(id, b.Generation, l)
}

func older(id string, starts uint64, l life) error {
	return copyOf(id, fmt.Sprintf("it was started %d times, this is its start %d", starts, l.Generation))
}

// met is the newest life of a node that was here, 0 for none.
func (c *contacts) met(id string) (generation uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lives[id].Generation
}

func (c *contacts) doubt(id string) (wait chan struct{}, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if wait, going := c.doubts[id]; going {
		return wait, false
	}
	wait = make(chan struct{})
	c.doubts[id] = wait
	return wait, true
}

func copyOf(id, why string) error {
	return &refusal{refusedCopy, fmt.Sprintf("this is a copy of node %s, or its data directory was set back: %s. %s; retire node %s if it is gone", id, why, outside, id)}
}

// heardOf takes in that a node is at a higher epoch than this one. Without the authority's word it is nothing but a claim.
func (c *contacts) heardOf(id string, proof *epochProof, address string) {
	if proof == nil || proof.Epoch <= c.mine.Epoch {
		return
	}
	trust := pki.Trust{Fleet: c.identity.Fleet(), Authorities: c.dir.now().trusted}
	if trust.VerifyEpoch(proof.Epoch, proof.Node, proof.Signature) != nil {
		return
	}
	if err := c.dir.goOn(proof.Epoch, id, address); err != nil {
		c.over(err)
		return
	}
	if err := c.identity.follow(proof); err != nil {
		c.over(err)
		return
	}
	c.over(&SupersededError{Epoch: proof.Epoch, From: id})
}

// goOn keeps where the node is reached that the fleet goes on from, for a node that does not know it yet.
func (d *directory) goOn(epoch uint64, id, address string) error {
	r := d.now().roster
	r.Epoch, r.Index = epoch, 0
	if _, known := d.now().all[id]; !known && id != "" && address != "" {
		r.Peers = append(r.Peers[:len(r.Peers):len(r.Peers)], Peer{ID: id, Address: address})
	}
	_, err := d.put(r)
	return err
}

// say adds what this node says of itself.
func (c *contacts) say(h http.Header) {
	h.Set(selfHeader, c.mine.header())
	if p := c.identity.proofOf(); p != nil {
		h.Set(proofHeader, p.header())
	}
	if me, ok := c.dir.peer(c.dir.self); ok {
		h.Set(addressHeader, me.Address)
	}
}

// called decides about a caller by the headers of its call.
func (c *contacts) called(ctx context.Context, from string, h http.Header) error {
	s, err := parseSaid(h.Get(selfHeader))
	if err != nil {
		return err
	}
	if err := c.meet(ctx, from, s, parseProof(s.Epoch, h.Get(proofHeader)), h.Get(addressHeader)); err != nil {
		return err
	}
	if conn, ok := ctx.Value(connKey{}).(*peerConn); ok {
		conn.life.CompareAndSwap(nil, &s.life)
	}
	if c.outlived(from, s.life) { // since then, when nothing said yet whose connection to cut
		return errUndecided
	}
	return nil
}

// unanswered takes in why a call of a node failed. Who refuses a certificate says no more than that.
func (c *contacts) unanswered(id string, err error) {
	const alert = "remote error: tls: bad certificate"
	if !strings.Contains(err.Error(), alert) { // crypto/tls has no type for it
		return
	}
	c.mu.Lock()
	c.strange[id] = true
	n := len(c.strange)
	c.mu.Unlock()
	if n > len(c.dir.now().others(c.dir.self))/2 {
		c.over(&RefusedError{Why: c.whyStrange()})
	}
}

// whyStrange is what a node is told whose certificate most other nodes refuse.
func (c *contacts) whyStrange() string {
	if ends := c.identity.Certificate().NotAfter; !c.identity.now().Before(ends) {
		return fmt.Sprintf("the certificate of node %s ended at %s, while it was away. Its kernel goes on enforcing what it holds. To go on as this node: "+
			"\"palisade join-token create --node %s --again\" on a member, then \"palisade join ADDRESS --token-file FILE\" here", c.dir.self, ends.Format(time.RFC3339), c.dir.self)
	}
	return "most other nodes refuse the certificate of node " + c.dir.self + ": it was retired while it was away, or is of another fleet. " + outside
}

// answered takes in the headers of an answer, and the text of a refusal.
func (c *contacts) answered(from string, h http.Header, text string) {
	word := h.Get(refusalHeader)
	refuses := word == refusedCopy
	c.mu.Lock()
	delete(c.strange, from)
	if word != refusedYet { // that is no answer
		c.takes[from] = !refuses
	}
	c.mu.Unlock()
	s, err := parseSaid(h.Get(selfHeader))
	if err != nil {
		return
	}
	if s.Epoch > c.mine.Epoch {
		c.heardOf(from, parseProof(s.Epoch, h.Get(proofHeader)), h.Get(addressHeader))
	}
	if refuses && c.outvoted() {
		c.over(&RefusedError{Why: text})
	}
}

// outvoted says whether most nodes that answered take this one for a copy. One alone is not believed as long as there
// are others to ask: it may be in hostile hands.
func (c *contacts) outvoted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	refuse := 0
	for _, takes := range c.takes {
		if !takes {
			refuse++
		}
	}
	return 2*refuse > len(c.takes) && refuse >= min(enough, len(c.dir.now().others(c.dir.self)))
}
