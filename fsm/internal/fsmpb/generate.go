// Package fsmpb is the wire form of the replicated log and of snapshots. Only package fsm uses it:
// its types never appear in an exported signature there.
package fsmpb

// The committed output is that of Debian 12's protoc (3.21.12).
//
//go:generate protoc --plugin=protoc-gen-go=./protoc-gen-go --go_out=. --go_opt=paths=source_relative fsm.proto
