package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// Backups makes backups. Its methods are safe for concurrent use.
type Backups interface {
	// Backup prepares a backup of the present state, encrypted for the recipients, which write then streams. What can't be
	// done is told before: the error is an *fsm.Error of the field "recipient", or with CodeConflict if this node can't.
	Backup(recipients []string) (write func(io.Writer) error, err error)
}

// ageType is the media type of what age encrypts.
const ageType = "application/age-encryption"

// backupWait is for one piece of a backup.
const backupWait = 30 * time.Second

type backupInput struct {
	Recipient []string `query:"recipient,explode" required:"true" minItems:"1" maxItems:"16" doc:"Who can read it: an age recipient (age1…); several may be given"`
}

func backupRoutes() []route {
	return []route{{
		op:    operation(http.MethodGet, "/v1/backup", "backup", "Make a backup of the state, encrypted with age", http.StatusOK),
		scope: ScopeAdmin, stream: true, codes: []wire.Code{wire.CodeConflict}, add: (*Server).addBackup,
	}}
}

func (s *Server) addBackup(api huma.API, op huma.Operation) {
	op.Description = "One file that holds the state at one log index and the key of the secrets in it. `palisade backup` keeps it, `palisade restore` brings a fleet back from it.\n\n" + op.Description
	op.Responses["200"] = &huma.Response{Description: "An age file; one that was cut off can't be read", Content: map[string]*huma.MediaType{ageType: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}}}
	huma.Register(api, op, func(_ context.Context, in *backupInput) (*raw, error) {
		write, err := s.opts.Backups.Backup(in.Recipient)
		if err != nil {
			refused, ok := errors.AsType[*fsm.Error](err)
			if !ok {
				return nil, problem(wire.CodeInternal, "%s", err)
			}
			return nil, refusalProblem(refused, sent{"recipient": at("query.recipient", nil)})
		}
		return &raw{Body: func(c huma.Context) {
			_, w := humachi.Unwrap(c)
			w.Header().Set("Content-Type", ageType)
			if err := write(&patient{w, http.NewResponseController(w)}); err != nil {
				s.log.Error("a backup failed", "err", err)
				// The caller must not take the answer for whole.
				panic(http.ErrAbortHandler) //nolint:forbidigo // net/http's own way to cut it, and the middleware passes it on
			}
		}}, nil
	})
}

// patient gives each write its time: the whole may take longer than an answer usually does.
type patient struct {
	io.Writer
	rc *http.ResponseController
}

func (p *patient) Write(b []byte) (int, error) {
	_ = p.rc.SetWriteDeadline(time.Now().Add(backupWait)) // a recorder in a test has none
	return p.Writer.Write(b)
}

// noBackups is a node that makes none.
type noBackups struct{}

// Backup implements Backups.
func (noBackups) Backup([]string) (func(io.Writer) error, error) {
	return nil, &fsm.Error{Code: fsm.CodeConflict, Detail: "this node makes no backups"}
}
