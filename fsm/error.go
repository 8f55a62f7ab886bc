package fsm

import "errors"

// Code is a stable, machine-readable name of a refusal. It appears in API problems.
type Code string

// The codes of refusals by the state machine.
const (
	CodeInvalid       Code = "invalid"              // a field is malformed or missing
	CodeTooWide       Code = "prefix_too_wide"      // wider than MinPrefixBits4 or MinPrefixBits6
	CodeNotFound      Code = "not_found"            // the object named does not exist
	CodeAmbiguous     Code = "ambiguous_name"       // more than one VM has the name
	CodeGuardConflict Code = "guard_conflict"       // the target holds what must never be blocked
	CodeConflict      Code = "conflict"             // the object is not in a state that allows it
	CodeRevision      Code = "revision_mismatch"    // If-Match did not match
	CodeKeyReused     Code = "idempotency_key_used" // same key, different request
	CodeStale         Code = "stale"                // an observation older than what is known
	CodeTooMany       Code = "too_many"             // touches more than the settings allow without confirmation
	CodeNotYet        Code = "do_not_block"         // refused until a time that was set for the account or VM
	CodeAborted       Code = "aborted"              // another op of the same atomic batch was refused
	CodeUnsupported   Code = "unsupported"          // a value that a newer version knows
	CodeUpgrade       Code = "upgrade_pending"      // not every node's build reads it yet

	// The codes of refused admissions.
	CodeTokenUnknown Code = "join_token_unknown" // of another fleet, deleted, or wrong
	CodeTokenExpired Code = "join_token_expired"
	CodeTokenUsed    Code = "join_token_used"
	CodeTokenBound   Code = "join_token_bound" // to another node or zone
	CodeNodeExists   Code = "node_exists"
	CodeNodeRetired  Code = "node_retired" // also of what a retired node asks for
)

// Error is a refusal by the state machine: deterministic, replicated, and certain: nothing changed.
type Error struct {
	Code   Code
	Field  string // JSON pointer-like name of the offending field, "target.prefix"; may be empty
	Detail string // what was wrong and what would be right, for people
}

func (e *Error) Error() string {
	if e.Field == "" {
		return e.Detail
	}
	return e.Field + ": " + e.Detail
}

// Outcomes of a write that did not end in a Result. Any error of Propose that is none of these and
// no *Error was refused before it left this node.
var (
	// ErrUnavailable: certainly not written, no leader or no quorum; try again later.
	ErrUnavailable = errors.New("no quorum: the fleet has no leader that can commit")
	// ErrUnknown: the write may or may not have been committed; a retry with the same key is safe.
	ErrUnknown = errors.New("outcome unknown: the write may or may not have been committed")
	// ErrCompacted: the feed no longer reaches back to the index asked for; start from a View.
	ErrCompacted = errors.New("the change feed does not reach back that far")
)
