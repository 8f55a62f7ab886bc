package fsm

import (
	"context"
	"sort"
	"time"
)

// EventType names what happened.
type EventType string

// The event types. Exactly the field of Event that the type's first word names is set.
const (
	EventBlockAdded     EventType = "block.added"   // active, or pending
	EventBlockStarted   EventType = "block.started" // a pending block became active
	EventBlockChanged   EventType = "block.changed" // its times, note or confirmation
	EventBlockLifted    EventType = "block.lifted"  // or cancelled
	EventBlockEnded     EventType = "block.ended"   // by itself
	EventVMDeclared     EventType = "vm.declared"   // created or changed through the API
	EventVMObserved     EventType = "vm.observed"   // first seen, or anything observed changed
	EventVMMigrating    EventType = "vm.migrating"  // in flight to VM.Destination
	EventVMMoved        EventType = "vm.moved"      // now runs on another node than before
	EventVMMigration    EventType = "vm.migration"  // its migration is in another phase, and it is where it was
	EventNodeChanged    EventType = "node.changed"
	EventGuardAdded     EventType = "guard.added" // or changed
	EventGuardRemoved   EventType = "guard.removed"
	EventBlockForgotten EventType = "block.forgotten" // a block that is over, beyond RetainedLifted
	EventAccountChanged EventType = "account.changed"
	EventSettings       EventType = "settings.changed"
	EventListChanged    EventType = "list.changed" // created, or its content or its description changed
	EventListRemoved    EventType = "list.removed"

	EventFleetFormed      EventType = "fleet.formed"
	EventCAStarted        EventType = "fleet.ca_started"
	EventCAFinished       EventType = "fleet.ca_finished"
	EventGossipKeyChanged EventType = "fleet.gossip_key_changed"
	EventNodeAdmitted     EventType = "node.admitted"
	EventNodeRenewed      EventType = "node.renewed" // a certificate was issued, or confirmed

	EventNodeDrained    EventType = "node.drained"
	EventNodeUndrained  EventType = "node.undrained"
	EventNodeRetired    EventType = "node.retired"
	EventVMLost         EventType = "vm.lost"         // its node was retired
	EventFleetRecovered EventType = "fleet.recovered" // a new epoch, from what one node had
	EventFleetRestored  EventType = "fleet.restored"  // a new epoch, from a backup
	EventFleetSettled   EventType = "fleet.settled"

	EventJoinTokenCreated   EventType = "join_token.created"
	EventJoinTokenUsed      EventType = "join_token.used"
	EventJoinTokenDeleted   EventType = "join_token.deleted"
	EventJoinTokenForgotten EventType = "join_token.forgotten" // JoinTokenKept after its end
	EventTokenCreated       EventType = "token.created"
	EventTokenDeleted       EventType = "token.deleted"
	EventUserChanged        EventType = "user.changed" // created, or its scope or password changed
	EventUserDeleted        EventType = "user.deleted"
	EventSessionStarted     EventType = "session.started"   // a login
	EventSessionEnded       EventType = "session.ended"     // by a logout, or because of its user
	EventSessionForgotten   EventType = "session.forgotten" // over by itself

	EventIncident EventType = "incident.reported" // something befell a node
)

// Event is one change of one object. What changed nothing gives no event.
type Event struct {
	Index uint64
	Time  time.Time
	Type  EventType
	Actor string
	Block *Block
	VM    *VM
	Node  *Node
	Guard *Guard

	Account  *Account // Revision 0 if it was removed
	Settings *Settings
	List     *List
	// Fleet and JoinToken are without their secrets, sealed or hashed.
	Fleet     *Fleet
	JoinToken *JoinToken
	Token     *Token // as they are in results: without hashes
	User      *User
	Session   *Session
	Incident  *Incident
}

// Watch returns a watcher of everything after log index from, which may lie ahead of the state.
func (s *Store) Watch(from uint64) *Watcher {
	return &Watcher{store: s, seen: from, restored: s.View().restored}
}

// Watcher walks the change feed. It is used by one goroutine; it needs no closing. One that is slow
// holds up nobody.
type Watcher struct {
	store    *Store
	seen     uint64 // everything up to this log index was delivered or is not wanted
	view     uint64 // index of the last View delivered
	restored uint64
}

// Next blocks until the state is past what the watcher has seen and returns the current View with
// all events since, in order (none if the entries changed nothing). It returns ErrCompacted together
// with the current View when the feed does not reach back far enough (also after a Restore that
// skipped events): the caller starts again from that View, and the next call goes on after it. Any
// other error is the context's. The events must not be changed.
func (w *Watcher) Next(ctx context.Context) (*View, []Event, error) {
	for {
		v := w.store.View()
		back := v.restored != w.restored && v.index < w.view // restored to an older state
		w.restored = v.restored
		if back || v.index > w.seen {
			events, complete := v.eventsSince(w.seen)
			w.seen, w.view = v.index, v.index
			if back || !complete {
				return v, nil, ErrCompacted
			}
			return v, events, nil
		}
		select {
		case <-v.superseded:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// eventsSince returns the events after a log index, and whether those are all.
func (v *View) eventsSince(index uint64) ([]Event, bool) {
	if index < v.eventsAfter {
		return nil, false
	}
	i := sort.Search(len(v.events), func(i int) bool { return v.events[i].Index > index })
	// Without spare capacity: appending to it can't reach the writer's part of the array.
	return v.events[i:len(v.events):len(v.events)], true
}
