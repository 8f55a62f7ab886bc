package wire

import (
	"encoding/json"
	"time"
)

// BlockRequest is the body of POST /v1/blocks.
type BlockRequest struct {
	Target     Target `json:"target" doc:"Exactly one of vm, prefix, account and list"`
	Kind       string `json:"kind,omitempty" enum:"drop,reject,limit,ports,redirect" doc:"drop if empty"`
	Direction  string `json:"direction,omitempty" enum:"both,in,out" doc:"Seen from the target; both if empty"`
	Rate       *Rate  `json:"rate,omitempty" doc:"Of kind limit: what passes in each direction"`
	Ports      []Port `json:"ports,omitempty" nullable:"false" maxItems:"16" doc:"Of kind ports: what is dropped. Short forms are \"tcp/25\", \"udp/1000-2000\" and \"icmp\""`
	RedirectTo string `json:"redirect_to,omitempty" maxLength:"64" doc:"Of kind redirect: the HTTP server to ask; empty: the node's own page" example:"192.0.2.1:80"`
	Reason     string `json:"reason,omitempty" maxLength:"64" doc:"Why, for machines; \"manual\" if empty. Each reason lifts only itself" example:"unpaid"`
	Note       string `json:"note,omitempty" maxLength:"4096" doc:"Why, for people"`

	StartsAt time.Time `json:"starts_at,omitzero" doc:"When it starts; at once if absent or not in the future"`
	EndsAt   time.Time `json:"ends_at,omitzero" doc:"When it ends by itself"`
	Duration string    `json:"duration,omitempty" maxLength:"32" doc:"Instead of ends_at: how long after its start it ends" example:"72h"`
	// ConfirmWithin and Force are the two ways to hold more than the settings allow.
	ConfirmWithin string `json:"confirm_within,omitempty" maxLength:"32" doc:"It ends by itself so long after its start unless it is confirmed" example:"10m"`
	Force         bool   `json:"force,omitempty" doc:"Allows to hold more than the settings allow; takes the scope admin"`
}

// BlockPatch is the body of PATCH /v1/blocks/{id}, a JSON merge patch (RFC 7396): what is absent stays.
type BlockPatch struct {
	StartsAt Optional[time.Time] `json:"starts_at,omitzero" doc:"Of a pending block; null or a time that has passed: at once"`
	EndsAt   Optional[time.Time] `json:"ends_at,omitzero" doc:"null: never by itself; a time that has passed: as soon as the schedule sees it"`
	Note     Optional[string]    `json:"note,omitzero" maxLength:"4096" doc:"null clears it"`
	Confirm  bool                `json:"confirm,omitempty" doc:"true: the block needs no confirmation any more"`
}

// Optional is a field of a merge patch: absent, null (the zero Value), or a value.
type Optional[T comparable] struct {
	Set   bool
	Value T
}

// Given is a field with a value.
func Given[T comparable](v T) Optional[T] { return Optional[T]{Set: true, Value: v} }

// IsZero says that it is absent.
func (o Optional[T]) IsZero() bool { return !o.Set }

// MarshalJSON implements json.Marshaler.
func (o Optional[T]) MarshalJSON() ([]byte, error) {
	var zero T
	if o.Value == zero {
		return []byte("null"), nil
	}
	return json.Marshal(o.Value)
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *Optional[T]) UnmarshalJSON(b []byte) error {
	*o = Optional[T]{Set: true}
	return json.Unmarshal(b, &o.Value) // null leaves it zero
}

// What happens to a block when it is due.
const (
	DueStart       = "start"
	DueEnd         = "end"
	DueUnconfirmed = "unconfirmed" // it ends because nobody confirmed it
)

// Due is one entry of the schedule.
type Due struct {
	At    time.Time `json:"at"`
	What  string    `json:"what" enum:"start,end,unconfirmed" doc:"unconfirmed: it ends unless somebody confirms it before"`
	Block Block     `json:"block"`
}

// Receipts say where a state of the fleet is in force.
type Receipts struct {
	Index         uint64        `json:"index" doc:"Log index that a node must have in its kernel"`
	Complete      bool          `json:"complete" doc:"Every live node confirmed it"`
	Receipts      []Receipt     `json:"receipts" nullable:"false"`
	Unconfirmed   []Unconfirmed `json:"unconfirmed" nullable:"false"`
	EnforcedIndex uint64        `json:"enforced_index" doc:"Lowest log index in any node's kernel, of the nodes that were heard"`
}

// BulkOp is one element of POST /v1/blocks/bulk; exactly one field is set. A BlockRequest without a BulkOp around it
// is an add.
type BulkOp struct {
	Add   *BlockRequest `json:"add,omitempty"`
	Lift  *BulkLift     `json:"lift,omitempty"`
	Patch *BulkPatch    `json:"patch,omitempty"`
}

// BulkLift lifts one block by its id, or the blocks of one reason on one target.
type BulkLift struct {
	ID       string  `json:"id,omitempty" maxLength:"64"`
	Revision uint64  `json:"revision,omitempty" doc:"With id: only if the block is at this revision"`
	Target   *Target `json:"target,omitempty"`
	Reason   string  `json:"reason,omitempty" maxLength:"64" doc:"With target"`
}

// BulkPatch changes one block.
type BulkPatch struct {
	ID       string `json:"id" maxLength:"64"`
	Revision uint64 `json:"revision,omitempty" doc:"Only if the block is at this revision"`
	BlockPatch
}

// Outcome is what one write did or would do: an HTTP status and, at most, one of the others.
type Outcome struct {
	Status   int       `json:"status" doc:"HTTP status of the same request made alone"`
	Problem  *Problem  `json:"problem,omitempty"`
	Block    *Block    `json:"block,omitempty"`
	Blocks   []Block   `json:"blocks,omitempty" nullable:"false" doc:"Of a lift by reason"`
	VM       *VM       `json:"vm,omitempty"`
	Guard    *Guard    `json:"guard,omitempty"`
	Account  *Account  `json:"account,omitempty"`
	Settings *Settings `json:"settings,omitempty"`
	List     *List     `json:"list,omitempty"`
}

// BulkResult is the answer to one element of a bulk request, in the order of the request.
type BulkResult struct {
	Index  int     `json:"index" doc:"Of the element, from 0; empty lines do not count"`
	Line   int     `json:"line" doc:"Of the body, from 1"`
	Impact *Impact `json:"impact,omitempty" doc:"With dry_run=true, of an add"`
	Outcome
}

// Preview is the answer to a write with dry_run=true.
type Preview struct {
	Would  Outcome `json:"would" doc:"What the write would answer now"`
	Impact *Impact `json:"impact,omitempty" doc:"What its target covers; absent if it has none"`
}

// Impact is what a target covers.
type Impact struct {
	VMs       []string  `json:"vms" nullable:"false" doc:"Ids, at most 1000"`
	CountVMs  int       `json:"count_vms"`
	Nodes     []string  `json:"nodes" nullable:"false" doc:"Where those VMs are"`
	Addresses uint64    `json:"addresses" doc:"Of a prefix; IPv6 counts in /64 networks"`
	Guards    []Guarded `json:"guards" nullable:"false" doc:"What stands against it, or is left out of it"`
	Overlaps  []Block   `json:"overlaps" nullable:"false" doc:"Blocks that hold some of the same"`
}

// Guarded is a prefix that can't be blocked.
type Guarded struct {
	Prefix string `json:"prefix"`
	Why    string `json:"why"`
}
