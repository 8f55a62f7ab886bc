package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const goodConfig = `
data_dir = "/tmp/x"
[node]
id = "n1"
guards = ["192.0.2.0/24"]
[cluster]
listen = "10.0.0.1:7420"
gossip = "10.0.0.1:7421"
key_file = "/tmp/key"
[[cluster.peers]]
id = "n1"
address = "10.0.0.1:7420"
gossip = "10.0.0.1:7421"
[api]
listen = "127.0.0.1:8440"
[[api.tokens]]
name = "demo"
scope = "admin"
sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
[inventory]
driver = "none"
`

func TestConfigDefaults(t *testing.T) {
	cfg, err := parseConfig([]byte(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Node.Name != "n1" || cfg.API.Socket != "/run/palisade/palisade.sock" || cfg.Log.Level != "info" {
		t.Errorf("defaults: %+v", cfg)
	}
}

func TestConfigErrorsNameTheKeyAndTheCure(t *testing.T) {
	tests := map[string]struct{ old, repl, want string }{
		"unknown key":        {`id = "n1"`, "id = \"n1\"\nzone = \"z\"", `unknown keys: "node.zone" (line 5)`},
		"no id":              {"[node]\nid = \"n1\"", "[node]", "node.id: is missing"},
		"clear text API":     {"127.0.0.1:8440", "0.0.0.0:8440", "tokens would travel in clear text"},
		"bad address":        {`listen = "10.0.0.1:7420"`, `listen = "host:7420"`, "cluster.listen: \"host:7420\" is not address:port"},
		"self not a peer":    {"[[cluster.peers]]\nid = \"n1\"", "[[cluster.peers]]\nid = \"n2\"", "has no entry for this node"},
		"scope":              {`"admin"`, `"root"`, "none of admin, operator, viewer, metrics"},
		"token not hashed":   {"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "secret", "is not 64 hex digits"},
		"driver":             {`driver = "none"`, `driver = "xen"`, "none of static, libvirt, none"},
		"guard is no prefix": {`"192.0.2.0/24"`, `"192.0.2"`, "line 5"},
		"guard host bits":    {`"192.0.2.0/24"`, `"192.0.2.1/24"`, "192.0.2.0/24"},
		"static without dir": {`driver = "none"`, `driver = "static"`, "inventory.static.dir"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(goodConfig, tt.old, tt.repl, 1)
			if text == goodConfig {
				t.Fatal("the case changes nothing")
			}
			_, err := parseConfig([]byte(text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want it to say %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error repeats the token: %v", err)
			}
		})
	}
}

func TestReadKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	hex := strings.Repeat("ab", 32)
	write := func(s string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write(hex+"\n", 0o600)
	if key, err := readKey(path); err != nil || len(key) != 32 {
		t.Errorf("good key: %d bytes, %v", len(key), err)
	}
	write(hex, 0o644)
	if _, err := readKey(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable key: %v", err)
	}
	write(hex[:20]+"not hex, but secret", 0o600)
	if _, err := readKey(path); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("malformed key: %v", err)
	}
}
