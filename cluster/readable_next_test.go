//go:build nextformat

package cluster

import (
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/pki"
)

// TestNobodyIsAdmittedToWhatItCantRead: a node of an older build and the first command of a new format come to the leader together, the node
// first. The state knows nothing of it when the leader looks who reads the command; so one of them must not be let in.
func TestNobodyIsAdmittedToWhatItCantRead(t *testing.T) {
	f, _ := formed(t)
	n := f.leader()
	n.propose(fsm.Command{Actor: "node:n1", Op: fsm.PutNode{Node: fsm.Node{ID: "n1", Format: fsm.Format}}})
	token := f.token()
	admit := fsm.Command{Actor: "node:old", Op: fsm.AdmitNode{Token: token.ID(), Hash: token.SecretHash(), Node: fsm.Admission{
		ID: "old", Address: "192.0.2.9:1", Gossip: "192.0.2.9:2", KeyHash: [32]byte{9}, NotAfter: time.Now().Add(pki.LeafLifetime), Format: 1,
	}}}
	settings := fsm.DefaultSettings()
	settings.MaxVMs++
	got := n.c.submit(within(t, 10*time.Second), []fsm.Command{admit, {Actor: "t", Op: fsm.PutSettings{Settings: settings}}})
	if got[0].kind != notAppended || got[1].kind != done || got[1].result.Err != nil {
		t.Errorf("a node that reads 1: %+v; what needs 2: %+v", got[0], got[1])
	}
	// It is tried again as any command that was not appended, and then the state knows.
	res, err := n.c.Propose(within(t, 10*time.Second), admit)
	if err != nil || res.Err == nil || res.Err.Code != fsm.CodeUpgrade {
		t.Errorf("the node again: %+v, %v", res, err)
	}
}
