// Package wire holds the JSON documents of the /v1 API, shared by the server and its clients. It uses
// only the standard library. The struct tags doc, maxLength, enum and nullable feed the OpenAPI
// document; they have no effect on encoding.
package wire

import (
	"cmp"
	"time"
)

// Target is what a block holds: exactly one field is set.
type Target struct {
	VM     string `json:"vm,omitempty" maxLength:"255" doc:"VM id; on input also a name that only one VM has"`
	Prefix string `json:"prefix,omitempty" maxLength:"64" doc:"IPv4 or IPv6 address or CIDR without host bits" example:"192.0.2.7"`
	// Account and List hold what belongs to them now and later.
	Account string `json:"account,omitempty" maxLength:"255" doc:"Every VM with this owner, now and later"`
	List    string `json:"list,omitempty" maxLength:"255" doc:"Every prefix of the list with this name, now and later"`
}

// String gives the field that is set.
func (t Target) String() string { return cmp.Or(t.VM, t.Prefix, t.Account, t.List) }

// Counters are the packets dropped for a block, summed over the nodes that answered.
type Counters struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Receipt says that a node's kernel stands as the block says.
type Receipt struct {
	Node  string    `json:"node"`
	Index uint64    `json:"index" doc:"Log index in the node's kernel when it gave the receipt"`
	At    time.Time `json:"at" doc:"When the kernel first stood so, by the node's clock"`
}

// Unconfirmed says that a node did not confirm the block's state.
type Unconfirmed struct {
	Node  string    `json:"node"`
	Since time.Time `json:"since" doc:"From when on there is no evidence: the block's last change, or the last confirmation or sign of life that came later"`
	Why   string    `json:"why,omitempty" doc:"What the node said: a part of the target is on a network that can't be enforced there"`
}

// Block is one hold on one target. Counters, receipts and unconfirmed are absent in events.
type Block struct {
	ID          string        `json:"id" example:"b17"`
	Target      Target        `json:"target"`
	VMName      string        `json:"vm_name,omitempty" doc:"Name of the target VM, where it has one"`
	Reason      string        `json:"reason"`
	Note        string        `json:"note"`
	Actor       string        `json:"actor" doc:"Who asked for it: token:NAME, unix:UID or node:ID"`
	Kind        string        `json:"kind" example:"drop" doc:"drop, reject, limit, ports or redirect"`
	Direction   string        `json:"direction" example:"both" doc:"both, in or out, seen from the target"`
	Rate        *Rate         `json:"rate,omitempty" doc:"Of kind limit"`
	Ports       []Port        `json:"ports,omitempty" nullable:"false" doc:"Of kind ports"`
	RedirectTo  string        `json:"redirect_to,omitempty" doc:"Of kind redirect: the HTTP server that is asked; absent: the node's own page"`
	State       string        `json:"state" enum:"pending,active,lifted,ended" doc:"lifted: by somebody, also before its start; ended: by itself"`
	Index       uint64        `json:"index" doc:"Log index at which the state last changed"`
	Revision    uint64        `json:"revision" doc:"Log index of the last change; the ETag"`
	CreatedAt   time.Time     `json:"created_at"`
	StartsAt    time.Time     `json:"starts_at,omitzero" doc:"Agreed start of a block that was delayed"`
	EndsAt      time.Time     `json:"ends_at,omitzero" doc:"Agreed end; absent if it is lifted by hand"`
	ConfirmBy   time.Time     `json:"confirm_by,omitzero" doc:"When it ends unless it is confirmed before"`
	StartedAt   time.Time     `json:"started_at,omitzero" doc:"When a delayed block became active"`
	Since       time.Time     `json:"since,omitzero" doc:"When it became active, delayed or not; absent if it never did"`
	LiftedAt    time.Time     `json:"lifted_at,omitzero" doc:"When it was lifted or ended"`
	LiftedBy    string        `json:"lifted_by,omitempty" doc:"Who lifted it; schedule:end or schedule:unconfirmed if it ended by itself"`
	Counters    *Counters     `json:"counters,omitempty"`
	Receipts    []Receipt     `json:"receipts,omitzero" nullable:"false" doc:"Nodes whose kernel stands as this block says"`
	Unconfirmed []Unconfirmed `json:"unconfirmed,omitzero" nullable:"false" doc:"Nodes that did not confirm it"`
}

// NIC is one network interface of a VM as its node reports it.
type NIC struct {
	MAC         string   `json:"mac" example:"52:54:00:12:34:56"`
	Tap         string   `json:"tap" doc:"Host side interface on the VM's node, empty if unknown" example:"vnet3"`
	Network     string   `json:"network,omitempty" doc:"Kind of network: bridge, routed, macvtap, openvswitch, openvswitch-userspace, hostdev, vhostuser, vdpa, user or unknown; absent: its node did not say" example:"bridge"`
	Enforceable bool     `json:"enforceable" doc:"Whether the VM's node can hold what this interface sends and gets; false where packets do not pass the node's kernel"`
	Addresses   []string `json:"addresses" nullable:"false"`
}

// Sighting is a hint by gossip that a VM is elsewhere than the log says.
type Sighting struct {
	Node  string    `json:"node"`
	Phase string    `json:"phase"`
	Epoch uint64    `json:"epoch"`
	At    time.Time `json:"at"`
}

// VM is a virtual machine.
type VM struct {
	ID          string     `json:"id"`
	Name        string     `json:"name"`
	Kind        string     `json:"kind" doc:"kvm, openvz or netns; empty while only declared"`
	Node        string     `json:"node" doc:"Node it runs or last ran on, empty if never seen"`
	Destination string     `json:"destination,omitempty" doc:"Node it is in flight to"`
	Migration   *Migration `json:"migration,omitempty" doc:"The last migration; absent if there was none"`
	Owner       string     `json:"owner"`
	State       string     `json:"state" enum:"declared,running,migrating,stopped,lost"`
	Epoch       uint64     `json:"epoch"`
	Revision    uint64     `json:"revision" doc:"Log index of the last change; the ETag"`
	NICs        []NIC      `json:"nics" nullable:"false"`
	Addresses   []string   `json:"addresses" nullable:"false" doc:"All addresses, declared and observed"`
	Declared    []string   `json:"declared" nullable:"false" doc:"Addresses and prefixes declared through the API"`
	Blocked     bool       `json:"blocked" doc:"At least one active block holds it, by VM, account or address"`
	Blocks      []string   `json:"blocks" nullable:"false" doc:"Ids of the active blocks that hold it"`
	Sighting    *Sighting  `json:"sighting,omitempty" doc:"Present when gossip has newer word of it than the log"`
	// DoNotBlockUntil is zero if it was not set for the VM itself.
	DoNotBlockUntil time.Time `json:"do_not_block_until,omitzero" doc:"Blocks of reason unpaid are refused before"`
	SourceGuard     string    `json:"source_guard" enum:"on,off,inherit" doc:"Whether it may use its registered addresses alone: inherit is what the settings say"`
	// GuardedSource is nil in lists and in answers to writes.
	GuardedSource *SourceGuard `json:"guarded_source,omitempty" doc:"What it is bound to; only where one VM is asked for, and only if it is to be bound"`
}

// SourceGuard is what a VM is bound to on the node where it runs.
type SourceGuard struct {
	Node      string   `json:"node,omitempty" doc:"The node that was asked; absent if the VM runs on none"`
	MACs      bool     `json:"macs" doc:"The node's kernel lets it use its own hardware addresses alone"`
	Addresses bool     `json:"addresses" doc:"The node's kernel lets it use its own addresses alone"`
	Why       string   `json:"why,omitempty" doc:"Why it is not bound to all of them"`
	Dropped   Counters `json:"dropped" doc:"What the node dropped of it, since its agent started"`
}

// Migration is the last migration of a VM.
type Migration struct {
	Phase     string    `json:"phase" enum:"arming,armed,live,settled,aborted" doc:"arming: announced, the destination's kernel is not known to hold what applies. armed: it holds all that applies, read back. live: the guest runs at the destination. settled: it has gone from the source, too. aborted: it came to nothing, the guest is where it was"`
	From      string    `json:"from" doc:"Node; empty for a VM that was seen nowhere before"`
	To        string    `json:"to" doc:"Node"`
	Cold      bool      `json:"cold,omitempty" doc:"The VM did not run when it began"`
	StartedAt time.Time `json:"started_at"`
	ChangedAt time.Time `json:"changed_at" doc:"Since when it is in this phase"`
}

// VMRequest is the body of PUT /v1/vms/{id}. It replaces what is declared of the VM.
type VMRequest struct {
	Name      string   `json:"name,omitempty" maxLength:"255" doc:"Empty keeps the name"`
	Owner     string   `json:"owner,omitempty" maxLength:"255" doc:"Account"`
	Addresses []string `json:"addresses,omitempty" nullable:"false" doc:"Addresses and prefixes routed to the VM, at most 1024"`
	// DoNotBlockUntil is as in VM; to change it takes the scope admin.
	DoNotBlockUntil time.Time `json:"do_not_block_until,omitzero" doc:"Blocks of reason unpaid are refused before. To change it takes the scope admin"`
	// SourceGuard is as in VM; to change it takes the scope admin.
	SourceGuard string `json:"source_guard,omitempty" enum:"on,off,inherit" doc:"Whether it may use its registered addresses alone; left out, it stays as it is. To change it takes the scope admin"`
}

// Node is a peer of the fleet on a virtualization host.
type Node struct {
	ID            string    `json:"id"`
	Name          string    `json:"name"`
	Addresses     []string  `json:"addresses" nullable:"false"`
	Role          string    `json:"role" enum:"leader,voter,follower"`
	Voter         bool      `json:"voter"`
	Leader        bool      `json:"leader"`
	Healthy       bool      `json:"healthy" doc:"It answered just now and its kernel stands as its state says"`
	AppliedIndex  uint64    `json:"applied_index" doc:"Log index of its state, the last that was heard of; 0 if none was"`
	EnforcedIndex uint64    `json:"enforced_index" doc:"Log index in its kernel, the last that was heard of; 0 if none was"`
	Version       string    `json:"version"`
	Format        uint32    `json:"format,omitempty" doc:"Highest command format that its build reads"`
	VMs           int       `json:"vms" doc:"VMs that run there, are in flight to or from there, or were last seen there"`
	Revision      uint64    `json:"revision" doc:"Log index of its last registration; the ETag"`
	LastHeard     time.Time `json:"last_heard,omitzero"`
	Problem       string    `json:"problem,omitempty"`
	ClockOffsetMS *float64  `json:"clock_offset_ms,omitempty" doc:"By how many milliseconds its clock is ahead of the voters' clocks; absent while that is not known"`
	Membership
}

// Guard is a prefix or a VM that can never be blocked.
type Guard struct {
	Prefix   string `json:"prefix,omitempty"`
	VM       string `json:"vm,omitempty" doc:"VM id"`
	Note     string `json:"note"`
	Actor    string `json:"actor"`
	Revision uint64 `json:"revision"`
	Why      string `json:"why,omitempty" doc:"With all=true: who says that it is guarded"`
}

// GuardRequest is the body of POST /v1/guards: exactly one of Prefix and VM is set.
type GuardRequest struct {
	Prefix string `json:"prefix,omitempty" maxLength:"64" doc:"IPv4 or IPv6 address or CIDR without host bits"`
	VM     string `json:"vm,omitempty" maxLength:"255" doc:"VM id, or a name that only one VM has"`
	Note   string `json:"note,omitempty" maxLength:"4096"`
}

// Counts are sizes of the state.
type Counts struct {
	Nodes         int `json:"nodes"`
	Alive         int `json:"alive" doc:"Members alive by gossip"`
	VMs           int `json:"vms"`
	LostVMs       int `json:"lost_vms" doc:"VMs last seen on nodes that were retired: nobody knows what became of them"`
	Blocks        int `json:"blocks" doc:"Retained blocks, in any state"`
	ActiveBlocks  int `json:"active_blocks"`
	PendingBlocks int `json:"pending_blocks" doc:"Agreed, start later"`
	Guards        int `json:"guards" doc:"Set by operators"`
}

// Status is this node's standing and its picture of the fleet.
type Status struct {
	Node              string `json:"node"`
	Leader            string `json:"leader" doc:"Empty if none is known"`
	Quorum            bool   `json:"quorum"`
	Term              uint64 `json:"term"`
	Index             uint64 `json:"index" doc:"Log index of this node's state"`
	CommitIndex       uint64 `json:"commit_index"`
	EnforcedIndex     uint64 `json:"enforced_index" doc:"Lowest log index in any node's kernel, of the nodes that were heard"`
	NodeEnforcedIndex uint64 `json:"node_enforced_index" doc:"Log index in this node's kernel"`
	StateHash         string `json:"state_hash" doc:"Equal on every node at the same index"`
	AgeMS             int64  `json:"age_ms" doc:"How old this picture can be, in milliseconds; -1 if no leader was heard since the start"`
	CaughtUp          bool   `json:"caught_up"`
	Version           string `json:"version"`
	Counts            Counts `json:"counts"`
	// Problems are those of all nodes that answered, and the nodes that did not.
	Problems []NodeProblem `json:"problems" nullable:"false" doc:"What the watchdogs of the nodes that answered have noticed, and the nodes that did not; the critical first"`
}

// Incident is something that befell a node, told by the node itself.
type Incident struct {
	Node     string    `json:"node"`
	Code     string    `json:"code" doc:"That of the problem, as in docs/monitoring.md" example:"kernel_drift"`
	Severity string    `json:"severity" enum:"critical,warning"`
	Text     string    `json:"text" doc:"What happened"`
	At       time.Time `json:"at" doc:"When, by the node's clock"`
	LastedMS float64   `json:"lasted_ms" doc:"Milliseconds from finding it to its being undone; 0 if it is not undone"`
	Times    uint64    `json:"times" doc:"How often it happened since the report before"`
}

// NodeProblem is something that is wrong with a node, and lasts.
type NodeProblem struct {
	Node     string    `json:"node"`
	Code     string    `json:"code" example:"clock_offset" doc:"Stable; docs/monitoring.md has the list"`
	Severity string    `json:"severity" enum:"critical,warning"`
	Since    time.Time `json:"since,omitzero" doc:"Clock of the node that noticed it"`
	Text     string    `json:"text" doc:"What is wrong, and what to do"`
}

// ProblemSilent is the code of the problem that a node did not answer.
const ProblemSilent = "node_silent"

// Page is one page of a list.
type Page[T any] struct {
	Items []T `json:"items" nullable:"false"`
	// Next is the cursor of the next page, nil on the last.
	Next *string `json:"next" doc:"Cursor of the next page, null on the last"`
}

// CountedPage is one page of a list that says how long the list is.
type CountedPage[T any] struct {
	Page[T]
	Total int `json:"total" doc:"How many there are on all pages together"`
}

// EventReset is the type of the event that tells a client to read everything again: the feed no
// longer reaches back to where it was.
const EventReset = "reset"

// Event is one change, as the events stream sends it. Which of the objects is set follows from the
// first word of Type; none is in a reset.
type Event struct {
	Index uint64    `json:"index"`
	At    time.Time `json:"at"`
	Type  string    `json:"type" example:"block.added"`
	Actor string    `json:"actor"`
	Block *Block    `json:"block,omitempty"`
	VM    *VM       `json:"vm,omitempty"`
	Node  *Node     `json:"node,omitempty"`
	Guard *Guard    `json:"guard,omitempty"`

	Incident *Incident `json:"incident,omitempty"`
	Account  *Account  `json:"account,omitempty"`
	Settings *Settings `json:"settings,omitempty"`
	List     *List     `json:"list,omitempty"`
	// These are sent to admins only.
	Token   *Token   `json:"token,omitempty"`
	User    *User    `json:"user,omitempty"`
	Session *Session `json:"session,omitempty"`

	Fleet     *Fleet     `json:"fleet,omitempty"`
	JoinToken *JoinToken `json:"join_token,omitempty"`
}
