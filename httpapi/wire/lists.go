package wire

import "time"

// List is a named set of prefixes. Its entries are at /v1/lists/{name}/entries.
type List struct {
	Name     string      `json:"name" example:"drop"`
	Owner    string      `json:"owner" doc:"Who is responsible for it"`
	Note     string      `json:"note"`
	Origin   string      `json:"origin" doc:"Where the content came from: a file's name, an URL"`
	Source   *ListSource `json:"source,omitempty" doc:"Where the leader loads it from"`
	Size     int         `json:"size" doc:"Prefixes, those that lie in others left out"`
	Hash     string      `json:"hash" doc:"Equal for equal contents; of no meaning outside of Palisade"`
	LoadedAt time.Time   `json:"loaded_at,omitzero" doc:"When the content last changed"`
	Actor    string      `json:"actor" doc:"Who changed it last"`
	Revision uint64      `json:"revision"`
	Blocks   []string    `json:"blocks" nullable:"false" doc:"Ids of the active and pending blocks that hold it"`
}

// ListSource is where a list is loaded from, and how that went.
type ListSource struct {
	URL      string `json:"url" example:"https://lists.example/drop.txt"`
	Interval string `json:"interval" example:"1h0m0s"`
	MaxBytes uint64 `json:"max_bytes" doc:"Of the text, unpacked"`
	// The leader is asked for the following.
	CheckedAt time.Time `json:"checked_at,omitzero" doc:"When the leader last asked for it; missing if it has not yet, or if it is not reached"`
	LastError string    `json:"last_error,omitempty" doc:"Why it could not be loaded the last time, or what was left out. The content is the last good one"`
}

// ListSourceRequest sets where a list is loaded from.
type ListSourceRequest struct {
	URL      string `json:"url" maxLength:"2048" doc:"http or https; or file:///…, below the directory that the leader's config names" example:"https://lists.example/drop.txt"`
	Interval string `json:"interval" maxLength:"32" doc:"At least 1m" example:"1h"`
	MaxBytes uint64 `json:"max_bytes,omitempty" doc:"Of the text, unpacked; 33554432 if missing"`
}

// ListPatchRequest changes a list. What is missing stays.
type ListPatchRequest struct {
	Add    []string `json:"add,omitempty" maxItems:"50000" nullable:"false" doc:"Addresses and CIDRs"`
	Remove []string `json:"remove,omitempty" maxItems:"50000" nullable:"false" doc:"Addresses and CIDRs; of an entry around one, the rest stays"`
	Owner  *string  `json:"owner,omitempty" maxLength:"255"`
	Note   *string  `json:"note,omitempty" maxLength:"4096"`
}

// ListPrefixesRequest is a list as JSON.
type ListPrefixesRequest struct {
	Prefixes []string `json:"prefixes" nullable:"false" doc:"Addresses and CIDRs"`
}

// ListResult says what a write made of a list, or would with dry_run=true.
type ListResult struct {
	List     List          `json:"list" doc:"As it is after the write; with dry_run=true, as it is"`
	DryRun   bool          `json:"dry_run,omitempty"`
	Size     int           `json:"size" doc:"Prefixes of the new content"`
	Merged   int           `json:"merged" doc:"Entries sent that were repeated, or lie in another"`
	Added    int           `json:"added" doc:"Prefixes that were not in the list before"`
	Removed  int           `json:"removed" doc:"Prefixes that are no longer in it"`
	Guarded  int           `json:"guarded" doc:"Prefixes that overlap what can never be blocked; that part of them has no effect"`
	VMs      int           `json:"vms" doc:"VMs with an address in the new content; only with dry_run=true"`
	Skipped  int           `json:"skipped" doc:"Entries that were left out, with skip_invalid=true"`
	Refused  string        `json:"refused,omitempty" doc:"Why the write would be refused without force; only with dry_run=true"`
	Problems []ListProblem `json:"problems" nullable:"false" doc:"The first 100 of them"`
	// Unconfirmed is what wait=enforced found.
	Unconfirmed []string `json:"unconfirmed,omitempty" nullable:"false" doc:"With wait=enforced: nodes that did not confirm in time"`
}

// ListProblem is an entry that a list can't hold.
type ListProblem struct {
	Line   int    `json:"line" doc:"From 1; in JSON the place in the array"`
	Text   string `json:"text"`
	Detail string `json:"detail"`
}
