package wire

import "time"

// VMDetail is a VM with what only its own page needs.
type VMDetail struct {
	VM
	Holds        []Block  `json:"holds" nullable:"false" doc:"The active blocks that hold it, whole, without receipts; what each is on says why it holds the VM"`
	Pending      []Block  `json:"pending" nullable:"false" doc:"Blocks on the VM itself or its account that start later"`
	History      []VMMove `json:"history" nullable:"false" doc:"Where it was, the newest first, at most 50; of what this node's feed of changes still has"`
	HistorySince uint64   `json:"history_since" doc:"Log index from which on the history is complete"`
}

// VMMove is a change of where a VM is, or of its state.
type VMMove struct {
	At          time.Time `json:"at"`
	Index       uint64    `json:"index"`
	Type        string    `json:"type" enum:"vm.declared,vm.observed,vm.migrating,vm.migration,vm.moved,vm.lost"`
	From        string    `json:"from,omitempty" doc:"Node before it moved, if that is known"`
	Node        string    `json:"node"`
	Destination string    `json:"destination,omitempty"`
	State       string    `json:"state"`
}

// Overview is the fleet in numbers.
type Overview struct {
	Index uint64         `json:"index"`
	Nodes []NodeOverview `json:"nodes" nullable:"false" doc:"By id; VMs that were never seen on a node are under the empty id"`
}

// NodeOverview counts the VMs of a node.
type NodeOverview struct {
	ID        string `json:"id"`
	VMs       int    `json:"vms" doc:"That run or last ran there"`
	Running   int    `json:"running"`
	Migrating int    `json:"migrating" doc:"In flight from there"`
	Arriving  int    `json:"arriving" doc:"In flight to there"`
	Stopped   int    `json:"stopped"`
	Lost      int    `json:"lost"`
	Held      int    `json:"held" doc:"Held by at least one active block"`
}

// Found is what a search found, the best first.
type Found struct {
	VMs       []VM           `json:"vms" nullable:"false"`
	Addresses []FoundAddress `json:"addresses" nullable:"false" doc:"The address or prefix that was asked for, and those on which blocks are"`
	Nodes     []FoundNode    `json:"nodes" nullable:"false"`
	Lists     []FoundList    `json:"lists" nullable:"false"`
	Accounts  []FoundAccount `json:"accounts" nullable:"false"`
	Blocks    []Block        `json:"blocks" nullable:"false" doc:"The block that has this id"`
}

// FoundAddress is an address or a prefix.
type FoundAddress struct {
	Prefix string   `json:"prefix"`
	VMs    []string `json:"vms" nullable:"false" doc:"Ids of VMs that have it, or an address in it, at most 10"`
	Blocks []string `json:"blocks" nullable:"false" doc:"Ids of the active and pending blocks on it, and of the active ones on prefixes around it"`
}

// FoundNode is a node.
type FoundNode struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// FoundList is a list.
type FoundList struct {
	Name string `json:"name"`
	Size int    `json:"size"`
	Note string `json:"note"`
}

// FoundAccount is an account.
type FoundAccount struct {
	ID     string   `json:"id"`
	VMs    int      `json:"vms"`
	Blocks []string `json:"blocks" nullable:"false" doc:"Ids of the active blocks on it"`
}

// EventStanding is the type of the events that a live stream has beside those of the log.
const EventStanding = "standing"

// Standing is how the fleet stands as the node of the stream sees it.
type Standing struct {
	Type        string    `json:"type" enum:"standing"`
	At          time.Time `json:"at" doc:"This node's clock"`
	Node        string    `json:"node"`
	Version     string    `json:"version"`
	Fleet       string    `json:"fleet"`
	Epoch       uint64    `json:"epoch" doc:"Another one than before: what is known of the log is of no use, begin anew"`
	Index       uint64    `json:"index"`
	CommitIndex uint64    `json:"commit_index"`
	Leader      string    `json:"leader"`
	Term        uint64    `json:"term"`
	Quorum      bool      `json:"quorum"`
	CaughtUp    bool      `json:"caught_up"`
	AgeMS       int64     `json:"age_ms" doc:"How old this picture can be; -1 if no leader was heard since the start"`
	// Nodes are all members in the first event of a stream.
	Nodes []NodeStanding `json:"nodes" nullable:"false" doc:"Members of which something has changed since the event before; in the first, all"`
	Gone  []string       `json:"gone" nullable:"false" doc:"Ids of what is no member any more"`
}

// NodeStanding is how one member stands.
type NodeStanding struct {
	ID            string `json:"id"`
	Alive         bool   `json:"alive" doc:"By gossip"`
	Voter         bool   `json:"voter"`
	Leader        bool   `json:"leader"`
	Healthy       bool   `json:"healthy" doc:"It answered just now and its kernel stands as its state says"`
	AppliedIndex  uint64 `json:"applied_index"`
	EnforcedIndex uint64 `json:"enforced_index"`
	Problem       string `json:"problem,omitempty"`
}
