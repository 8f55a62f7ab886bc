package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/palisade/palisade/backup"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi"
	"github.com/palisade/palisade/httpapi/apitest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"palisade": main})
}

type fleetKey struct{}

// TestScripts runs the command line against an API over a real state machine. Besides the usual
// commands, scripts have: "exits CODE palisade ARGS...", which runs and compares the exit code, and
// "fleet ACTION", which breaks and heals what is behind the API.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: func(e *testscript.Env) error { return setup(t, e) },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
			"fleet": breakFleet,
		},
	})
}

func setup(t *testing.T, e *testscript.Env) error {
	f := apitest.New(t, "n2", "n3")
	f.RunVM("vm-1", "web", "n1", "192.0.2.7", "2001:db8::7")
	f.RunVM("vm-02", "twin", "n2", "192.0.2.8")
	f.RunVM("vm-003", "twin", "n3", "192.0.2.9")
	socket, url := listen(t, f)
	e.Values[fleetKey{}] = f
	e.Setenv("PALISADE_SOCKET", socket)
	e.Setenv("URL", url)
	e.Setenv("TOKEN", apitest.Tokens()["root"])
	for name, text := range map[string]string{"admin": apitest.Tokens()["root"], "operator": apitest.Tokens()["staff"], "viewer": apitest.Tokens()["look"], "wrong": "wrong"} {
		if err := os.WriteFile(filepath.Join(e.WorkDir, name+".token"), []byte(text+"\n"), 0o600); err != nil {
			return err
		}
	}
	e.Setenv("TZ", "UTC")
	return nil
}

// stateBackups makes backups of a scripted fleet.
type stateBackups struct{ f *apitest.Fleet }

func (b stateBackups) Backup(recipients []string) (func(io.Writer) error, error) {
	to, err := backup.ParseRecipients(recipients)
	if err != nil {
		return nil, &fsm.Error{Code: fsm.CodeInvalid, Field: "recipient", Detail: err.Error()}
	}
	h := backup.Header{Fleet: "0123456789abcdef", Epoch: 1, At: time.Unix(1_700_000_000, 0), Node: "n1", Build: "test"}
	return func(w io.Writer) error { return backup.Write(w, to, h, []byte("seal"), b.f.View()) }, nil
}

// listen serves the API of a fleet on a Unix socket and a TCP address until the test ends.
func listen(t *testing.T, f *apitest.Fleet) (socket, url string) {
	t.Helper()
	s, err := httpapi.New(httpapi.Options{
		Backups: stateBackups{f}, Backend: f, Version: "v1.2.3", AskTimeout: 100 * time.Millisecond, ShutdownTimeout: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(t.TempDir(), "s")
	sock, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, []net.Listener{tcp}, sock) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return socket, "http://" + tcp.Addr().String()
}

func prefix(t *testing.T, s string) netip.Prefix {
	t.Helper()
	p, err := netip.ParsePrefix(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func breakFleet(ts *testscript.TestScript, neg bool, args []string) {
	f := ts.Value(fleetKey{}).(*apitest.Fleet)
	if neg || len(args) == 0 {
		ts.Fatalf("usage: fleet ACTION")
	}
	if args[0] == "form" { // as palisade init does
		f.Form()
		return
	}
	if args[0] == "fire" { // what is due for a block happens
		b, ok := f.View().Block(args[1])
		if !ok {
			ts.Fatalf("no block %s", args[1])
		}
		f.Apply(fsm.FireBlock{ID: b.ID, Revision: b.Revision, At: b.Due()})
		return
	}
	if args[0] == "admits" { // as a node that only follows
		if _, formed := f.View().Fleet(); !formed {
			f.Form()
		}
		f.Admit(args[1])
		f.Set(func() { f.Peers[args[1]].Voter = false })
		return
	}
	f.Set(func() {
		switch args[0] {
		case "ok":
			f.FailWith, f.FailAfter = nil, nil
			f.Peers["n2"].Hangs, f.Peers["n3"].Alive, f.Peers["n3"].Down = false, true, false
		case "noquorum":
			f.FailWith = func(fsm.Command) error { return fsm.ErrUnavailable }
			f.Standing.Quorum, f.Standing.Leader = false, ""
		case "lost":
			f.FailAfter = fsm.ErrUnknown
		case "hangs":
			f.Peers["n2"].Hangs = true
		case "dead":
			f.Peers["n3"].Alive, f.Peers["n3"].Down = false, true
		case "drops":
			f.Peers["n1"].Held = map[string]uint64{args[1]: 42}
		default:
			ts.Fatalf("unknown action %s", args[0])
		}
	})
}
