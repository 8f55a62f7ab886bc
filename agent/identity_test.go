package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/httpapi/wire"
)

func testConfig(t *testing.T, id string) Config {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{
		DataDir: filepath.Join(dir, "data"), Node: NodeConfig{ID: id},
		Cluster: ClusterConfig{Listen: "127.0.0.1:7420", Gossip: "127.0.0.1:7421"},
		API:     APIConfig{Socket: filepath.Join(dir, "s")},
	}
	cfg.setDefaults()
	return cfg
}

// TestAnAgentWaitsForItsIdentity: it answers with how to go on, whatever is asked, and goes on by itself once the node was
// init'ed. A node whose id was changed afterwards does not start.
func TestAnAgentWaitsForItsIdentity(t *testing.T) {
	cfg := testConfig(t, "n1")
	log := slog.New(slog.DiscardHandler)
	a := &Agent{cfg: cfg, log: log}
	var err error
	got := make(chan error, 1)
	go func() {
		id, err := a.awaitIdentity(t.Context(), newService(log))
		if err == nil && id.Node() != "n1" {
			t.Errorf("the identity is of %s", id.Node())
		}
		got <- err
	}()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", cfg.API.Socket)
	}
	hc := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	var res *http.Response
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if res, err = hc.Get("http://agent/v1/blocks"); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var p wire.Problem
	if err := json.NewDecoder(res.Body).Decode(&p); err != nil || res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(p.Detail, "palisade join") {
		t.Errorf("it answers %d %q, %v", res.StatusCode, p.Detail, err)
	}
	formed, err := Init(cfg, InitOptions{Actor: "unix:0", Zone: "z1"}, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("unix", cfg.API.Socket); err == nil {
		t.Error("the socket is still answered by what waited")
	}
	if formed.Node != "n1" || !strings.HasPrefix(formed.Token, "plt_") || len(formed.Authority) != 64 {
		t.Errorf("formed %+v", formed)
	}
	for _, path := range []string{"identity/node.key", "seal.key", "identity/gossip.json"} {
		info, err := os.Stat(filepath.Join(cfg.DataDir, path))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	a.cfg.Node.ID = "n2"
	if _, err := a.awaitIdentity(t.Context(), newService(log)); err == nil || !strings.Contains(err.Error(), "an id can't be changed") {
		t.Errorf("under another id: %v", err)
	}
}

// TestWhatRootMadeIsTheAgents: init and join run as root, the agent as a user of its own.
func TestWhatRootMadeIsTheAgents(t *testing.T) {
	if os.Geteuid() != 0 {
		return // nobody else can give files away
	}
	const user = 65534
	cfg := testConfig(t, "n1")
	if err := os.Mkdir(cfg.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(cfg.DataDir, user, user); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(cfg, InitOptions{Actor: "unix:0"}, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := filepath.WalkDir(cfg.DataDir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		n++
		if owner, ok := info.Sys().(*syscall.Stat_t); !ok || owner.Uid != user || owner.Gid != user {
			t.Errorf("%s is not the agent's", path)
		}
		return nil
	})
	if err != nil || n < 8 {
		t.Errorf("%d files, %v", n, err)
	}
}
