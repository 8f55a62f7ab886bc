package cluster

import (
	"slices"
	"sync"
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
)

// knowledge is what a follower knows of the leader, and through whom.
type knowledge struct {
	silence time.Duration // after which a leader that is heard again may have committed anything

	mu    sync.Mutex
	known known
}

// known is what is known at one moment. It is copied; path is never changed in place.
type known struct {
	leader  string
	term    uint64
	commit  uint64    // of the leader, proven in this term; 0 if not
	contact time.Time // when the leader was heard, at the latest: time on the way is not subtracted
	// proof is an index that the leader proved to be current when it was asked, after the last silence; 0 if it was not yet.
	proof uint64
	gap   uint64 // counts silences

	path     []string      // from a voter to the source, or to the last one
	attached bool          // the path is whole
	changed  chan struct{} // closed with the next change
}

func newKnowledge(silence time.Duration) *knowledge {
	return &knowledge{silence: silence, known: known{changed: make(chan struct{})}}
}

// hear takes a beat that arrived just now.
func (w *knowledge) hear(b *peerpb.FollowBeat) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := &w.known
	k.path, k.attached = b.GetPath(), b.GetAttached()
	defer w.wake()
	if b.GetAge() < 0 {
		return
	}
	contact := time.Now().Add(-time.Duration(b.GetAge()))
	if contact.Before(k.contact) || b.GetTerm() < k.term {
		return // what another source said is newer
	}
	if contact.Sub(k.contact) > w.silence {
		k.commit, k.proof = 0, 0
		k.gap++
	}
	if b.GetTerm() > k.term {
		k.commit = 0
	}
	k.leader, k.term, k.contact = b.GetLeader(), b.GetTerm(), contact
	k.commit = max(k.commit, b.GetCommit())
}

// detach notes that there is no source any more; the path to it is kept, to look for the next there.
func (w *knowledge) detach() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.known.attached = false
	w.wake()
}

// wake tells of a change. The caller holds mu.
func (w *knowledge) wake() {
	close(w.known.changed)
	w.known.changed = make(chan struct{})
}

func (w *knowledge) now() known {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.known
}

// prove takes an index that the leader proved after the silence with this count.
func (w *knowledge) prove(index, gap uint64, leader string, asked time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := &w.known
	if k.gap != gap {
		return
	}
	k.proof = max(k.proof, index, 1)
	if leader == k.leader && asked.After(k.contact) { // beats that wait behind entries say later that it was there
		k.contact = asked
	}
	w.wake()
}

// fresh says that the leader was heard within a limit.
func (k *known) fresh(limit time.Duration) bool {
	return k.leader != "" && time.Since(k.contact) < limit
}

// source is whom this node follows or followed last, "" if nobody.
func (k *known) source() string {
	if len(k.path) == 0 {
		return ""
	}
	return k.path[len(k.path)-1]
}

// covers says that a log up to this index holds everything that the leader had committed when it was
// heard last. Neither a beat nor the first word after a silence is enough: both may be old. What counts is an index
// that the leader proved on a question that was asked after.
func (k *known) covers(index uint64) bool {
	return k.proof > 0 && k.commit > 0 && index >= k.proof && index >= k.commit
}

// relayPath is the path that followers of this node are told.
func (k *known) relayPath(self string) []string {
	return append(slices.Clone(k.path), self)
}
