package wire

// Code names a kind of problem for machines. Codes are stable.
type Code string

// The codes of problems.
const (
	CodeInvalid        Code = "invalid"               // 422 a field is malformed, missing or unknown
	CodeTooWide        Code = "prefix_too_wide"       // 422 wider than can be blocked
	CodeKeyUsed        Code = "idempotency_key_used"  // 422 same key, different request
	CodeUnsupported    Code = "unsupported"           // 422 a value that a newer version knows
	CodeMalformedJSON  Code = "malformed_json"        // 400
	CodeUnauthorized   Code = "unauthorized"          // 401 no token, or an unknown one
	CodeLoginRefused   Code = "login_refused"         // 401 the user name or the password is wrong
	CodeCrossOrigin    Code = "cross_origin"          // 403 authorized by a cookie, and maybe sent by another site
	CodeTooManyLogins  Code = "too_many_logins"       // 429 try again later
	CodeForbidden      Code = "forbidden"             // 403 the token's scope does not allow it
	CodeNotFound       Code = "not_found"             // 404 what the URL names does not exist
	CodeVMNotFound     Code = "vm_not_found"          // 404 a VM named inside the request does not exist
	CodeMethod         Code = "method_not_allowed"    // 405
	CodeRequestTimeout Code = "request_timeout"       // 408 the body did not arrive in time
	CodeAmbiguous      Code = "ambiguous_name"        // 409 more than one VM has the name
	CodeGuardConflict  Code = "guard_conflict"        // 409 the target must never be blocked
	CodeConflict       Code = "conflict"              // 409 the object is not in a state that allows it
	CodeTooMany        Code = "too_many"              // 409 touches more than the settings allow without confirmation
	CodeDoNotBlock     Code = "do_not_block"          // 409 the account or VM must not be blocked yet
	CodeUpgrade        Code = "upgrade_pending"       // 409 not every node's build reads it yet
	CodeAborted        Code = "aborted"               // 409 another element of the same request was refused
	CodeRevision       Code = "revision_mismatch"     // 412 If-Match did not match
	CodeTooLarge       Code = "body_too_large"        // 413
	CodePrecondition   Code = "precondition_required" // 428 If-Match is missing
	CodeMediaType      Code = "unsupported_media_type"
	CodeInternal       Code = "internal"          // 500 a fault of the server; nothing was changed
	CodeProvider       Code = "identity_provider" // 502 it can't be asked now
	CodeNoQuorum       Code = "no_quorum"         // 503 nothing was changed; try again later
	CodeNotReady       Code = "not_ready"         // 503 of /readyz
	CodeTooManyStreams Code = "too_many_streams"  // 503 the limit of event streams is reached
	CodeShuttingDown   Code = "shutting_down"     // 503
	CodeUnknownOutcome Code = "outcome_unknown"   // 504 a retry with the same Idempotency-Key is safe
)

// FieldError is what is wrong with one field of a request.
type FieldError struct {
	Location string `json:"location" doc:"Where, for example body.target.prefix or query.limit"`
	Message  string `json:"message" doc:"What was wrong and what would be right"`
	Value    any    `json:"value,omitempty" doc:"What was sent, shortened"`
}

// Problem is an RFC 9457 problem document, and an error.
type Problem struct { //nolint:errname // RFC 9457 calls it a problem
	Type     string       `json:"type" example:"urn:palisade:problem:invalid"`
	Title    string       `json:"title"`
	Status   int          `json:"status"`
	Detail   string       `json:"detail"`
	Code     Code         `json:"code" doc:"Stable name of the kind of problem"`
	Instance string       `json:"instance,omitempty" doc:"The Idempotency-Key of the request, where a retry needs it"`
	Errors   []FieldError `json:"errors,omitempty" nullable:"false"`
}

// Error gives the detail.
func (p *Problem) Error() string { return p.Detail }

// GetStatus gives the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType gives the media type of problems.
func (p *Problem) ContentType(string) string { return "application/problem+json" }
