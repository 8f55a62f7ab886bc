package httpapi

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/httpapi/wire"
)

// scriptedBackups streams a text, and fails on demand.
type scriptedBackups struct {
	text    string
	refused *fsm.Error
	fails   error
	asked   []string
}

func (b *scriptedBackups) Backup(recipients []string) (func(io.Writer) error, error) {
	if b.refused != nil {
		return nil, b.refused
	}
	b.asked = recipients
	return func(w io.Writer) error {
		_, err := io.WriteString(w, b.text)
		return errors.Join(err, b.fails)
	}, nil
}

func TestBackupIsStreamedWholeOrNotAtAll(t *testing.T) {
	b := &scriptedBackups{text: strings.Repeat("backup ", 50_000)}
	s := newServer(t, newFleet(t), func(o *Options) { o.Backups = b })
	refused(t, s, request{method: "GET", path: "/v1/backup"}, 422, wire.CodeInvalid)
	refused(t, s, request{method: "GET", path: "/v1/backup?recipient=age1x", token: operatorToken}, 403, wire.CodeForbidden)
	res := s.do(t, request{method: "GET", path: "/v1/backup?recipient=age1x&recipient=age1y"})
	if body, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusOK || string(body) != b.text || res.Header.Get("Content-Type") != ageType {
		t.Errorf("%d, %d bytes, %s", res.StatusCode, len(body), res.Header.Get("Content-Type"))
	}
	if len(b.asked) != 2 || b.asked[1] != "age1y" {
		t.Errorf("recipients %q", b.asked)
	}
	b.refused = &fsm.Error{Code: fsm.CodeConflict, Detail: "ask a voter"}
	p := refused(t, s, request{method: "GET", path: "/v1/backup?recipient=age1x"}, 409, wire.CodeConflict)
	if !strings.Contains(p.Detail, "ask a voter") {
		t.Errorf("%+v", p)
	}
	b.refused = nil

	// One that fails on the way is not taken for whole.
	web := httptest.NewServer(s.Handler())
	defer web.Close()
	api, err := client.New(client.Options{URL: web.URL, Token: adminToken})
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	if err := api.Backup(t.Context(), []string{"age1x"}, &got); err != nil || got.String() != b.text {
		t.Errorf("%d bytes, %v", got.Len(), err)
	}
	b.fails = errors.New("the disk is gone")
	if err := api.Backup(t.Context(), []string{"age1x"}, io.Discard); err == nil {
		t.Error("a backup that failed was taken for whole")
	}
	refused(t, newServer(t, newFleet(t)), request{method: "GET", path: "/v1/backup?recipient=age1x"}, 409, wire.CodeConflict)
}
