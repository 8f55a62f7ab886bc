package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/apitest"
)

// The demo says where the page is. The command for its first user does that as it is printed; the password alone, which it asks
// for, comes from a file here.
func TestTheDemoShowsItsPage(t *testing.T) {
	f := apitest.New(t)
	socket, url := listen(t, f)
	var out bytes.Buffer
	g := &Globals{Stdout: &out}
	g.printPage("palisade", fleet.Status{Nodes: []fleet.NodeStatus{{Name: "node-1", API: url, Socket: socket}}})
	said, command, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
	if !strings.Contains(said, url+"/") {
		t.Errorf("it does not say where the page is: %s", said)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pass"), []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", command+" --password-file pass")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	if u, ok := f.View().User("admin"); !ok || u.Scope != fsm.ScopeAdmin {
		t.Errorf("the user is %+v, %t", u, ok)
	}
}
