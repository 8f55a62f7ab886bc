package wire

import (
	"encoding/json"
	"time"
)

// AuditRecord is one record of the audit. What is empty is absent.
type AuditRecord struct {
	Seq     uint64          `json:"seq" doc:"Number of the record, from 1, without gaps"`
	Prev    string          `json:"prev" doc:"SHA-256 of the line before, as the export has it, without its newline"`
	Index   uint64          `json:"index" doc:"Log index of the change"`
	Time    time.Time       `json:"time"`
	Actor   string          `json:"actor,omitempty" doc:"Who: token:NAME, unix:UID or node:ID"`
	From    string          `json:"from,omitempty" doc:"Where the request came from: an address, or local for the Unix socket"`
	Action  string          `json:"action" example:"block.add"`
	Object  string          `json:"object,omitempty" doc:"Id of what was changed"`
	Asked   json.RawMessage `json:"asked,omitempty" doc:"What a refused request asked for"`
	Before  json.RawMessage `json:"before,omitempty" doc:"The object as it was"`
	After   json.RawMessage `json:"after,omitempty" doc:"The object as it is since"`
	Outcome string          `json:"outcome" doc:"done, or the code of the refusal" example:"done"`
}

// AuditCheck is what a node found when it followed the chain of the audit through its files and on to
// its state.
type AuditCheck struct {
	Node    string     `json:"node"`
	OK      bool       `json:"ok" doc:"Every record continues the one before, none is missing, and the last is that of the state"`
	Problem string     `json:"problem,omitempty" doc:"Which record was changed, is missing or is out of order"`
	Records uint64     `json:"records"`
	First   uint64     `json:"first" doc:"Number of the oldest record that is kept, 0 if there is none"`
	Last    uint64     `json:"last" doc:"Number of the newest record that continues the chain"`
	Head    string     `json:"head" doc:"SHA-256 of that record; equal on every node"`
	Written uint64     `json:"written" doc:"Number of the newest record on the disk of this node"`
	Gaps    []AuditGap `json:"gaps,omitempty" nullable:"false" doc:"Records that are missing, because no node had them any more"`
}

// AuditGap is a range of records, both ends included.
type AuditGap struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}
