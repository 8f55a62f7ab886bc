package agent

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/palisade/palisade/backup"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi"
)

// backups makes backups of the state as this node has it.
type backups struct {
	node, version string
	store         *fsm.Store
	members       func() []fsm.Member
	sealKey       func() []byte
	now           func() time.Time
}

var _ httpapi.Backups = (*backups)(nil)

// Backup implements httpapi.Backups. The state is that of one log index, whatever is written meanwhile.
func (b *backups) Backup(recipients []string) (func(io.Writer) error, error) {
	to, err := backup.ParseRecipients(recipients)
	if err != nil {
		return nil, &fsm.Error{Code: fsm.CodeInvalid, Field: "recipient", Detail: err.Error()}
	}
	key := b.sealKey()
	if key == nil {
		// Without it what is sealed in the state could never be opened again.
		var voters []string
		for _, m := range b.members() {
			if m.Voter {
				voters = append(voters, m.ID)
			}
		}
		return nil, &fsm.Error{Code: fsm.CodeConflict, Detail: "this node does not vote, so it has no key to the fleet's secrets; make the backup on one of " + strings.Join(voters, ", ")}
	}
	view := b.store.View()
	f, ok := view.Fleet()
	if !ok {
		return nil, &fsm.Error{Code: fsm.CodeConflict, Detail: "this node does not know the fleet's state yet"}
	}
	h := backup.Header{Fleet: f.ID, Epoch: f.Epoch, At: b.now().UTC(), Node: b.node, Build: b.version}
	return func(w io.Writer) error {
		if err := backup.Write(w, to, h, key, view); err != nil {
			return fmt.Errorf("backup at index %d: %w", view.Index(), err)
		}
		return nil
	}, nil
}
