package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/palisade/palisade/deploy/fleet"
)

// canaries are secrets that a test planted, by what they are.
type canaries map[string]string

// found names the canaries that are in a text: as they are, in base64 and in hex.
func (c canaries) found(text []byte) []string {
	var out []string
	for what, secret := range c {
		forms := map[string][]byte{
			"": []byte(secret), ", in base64": []byte(base64.RawStdEncoding.EncodeToString([]byte(secret))), ", in hex": []byte(hex.EncodeToString([]byte(secret))),
		}
		for how, form := range forms {
			if bytes.Contains(text, form) {
				out = append(out, what+how)
			}
		}
	}
	return out
}

// TestSecretsAreNowhere: secrets of every kind go in over the API, rightly and wrongly. They are in no answer, log,
// error, audit, state file and bundle afterwards.
func TestSecretsAreNowhere(t *testing.T) {
	l := newLab(t, fleet.Options{Prefix: "palsecret", GuestsPerNode: -1, LogLevel: "debug"})
	node, other := l.Nodes()[0], l.Nodes()[1]
	secrets := canaries{
		"the password of a feed": "canary-FeedPassw0rd-1", "the key in the query of a feed": "canary-FeedKey-22", "a wrong token": "canary-WrongToken-333",
		"a password": "canary-Passw0rd-4444-long", "a wrong password": "canary-WrongPass-55555", "a cookie": "canary-Cookie-666666",
		"the first token": node.Token,
	}
	var answers bytes.Buffer
	call := func(want int, method, path, body string, header ...string) response {
		res := l.raw(t, node.Name, method, path, body, header...)
		answers.Write(res.body)
		fmt.Fprintln(&answers, res.header)
		if res.status != want {
			t.Errorf("%s %s: status %d, want %d: %s", method, path, res.status, want, res.body)
		}
		return res
	}
	var made struct{ Secret string }
	res := l.raw(t, node.Name, "POST", "/v1/tokens", `{"name":"ci","scope":"viewer"}`)
	if err := json.Unmarshal(res.body, &made); err != nil || res.status != 201 || made.Secret == "" {
		t.Fatalf("%d %v: %s", res.status, err, res.body)
	}
	secrets["a token of the fleet"] = made.Secret
	join, err := l.cli(t, node, "join-token", "create")
	if err != nil {
		t.Fatal(err, string(join))
	}
	if secrets["a join token"] = regexp.MustCompile(`pjt1\.[A-Za-z0-9_-]+`).FindString(string(join)); secrets["a join token"] == "" {
		t.Fatalf("no join token: %s", join)
	}
	call(200, "GET", "/v1/whoami", "", "Authorization", "Bearer "+made.Secret)
	call(401, "GET", "/v1/vms", "", "Authorization", "Bearer "+secrets["a wrong token"])
	call(200, "GET", "/v1/status", "", "Cookie", "__Host-palisade="+secrets["a cookie"])
	call(200, "PUT", "/v1/users/ann", `{"scope":"viewer","password":"`+secrets["a password"]+`"}`)
	call(422, "PUT", "/v1/users/bob", `{"scope":"viewer","password":"`+secrets["a password"]+`","x":1}`)
	call(401, "POST", "/v1/login", `{"user":"ann","password":"`+secrets["a wrong password"]+`"}`, "Palisade-CSRF", "1")
	// A session that is alive, and its cookie.
	login := l.raw(t, node.Name, "POST", "/v1/login", `{"user":"ann","password":"`+secrets["a password"]+`"}`, "Palisade-CSRF", "1")
	cookie := regexp.MustCompile(`__Host-palisade=([^;]+)`).FindStringSubmatch(strings.Join(login.header.Values("Set-Cookie"), "\n"))
	if login.status != 200 || cookie == nil {
		t.Fatalf("login: %d %s", login.status, login.body)
	}
	secrets["the cookie of a session"] = cookie[1]
	call(200, "GET", "/v1/whoami", "", "Cookie", cookie[0])
	feed := "https://ann:" + secrets["the password of a feed"] + "@127.0.0.1:1/list.txt?key=" + secrets["the key in the query of a feed"]
	call(200, "PUT", "/v1/lists/feed", `{"prefixes":["192.0.2.0/24"]}`)
	call(200, "PUT", "/v1/lists/feed/source", `{"url":"`+feed+`","interval":"1m"}`)
	call(422, "PUT", "/v1/lists/feed/source", `{"url":"`+feed+`%zz","interval":"1m","nope":1}`)
	l.Eventually(t, "the feed was tried", func() error {
		res := l.raw(t, node.Name, "GET", "/v1/lists/feed", "")
		if !strings.Contains(string(res.body), "refused") {
			return fmt.Errorf("%s", res.body)
		}
		return nil
	})
	for _, path := range []string{"/v1/lists/feed", "/v1/lists", "/v1/users", "/v1/tokens", "/v1/audit", "/v1/status", "/v1/nodes", "/v1/settings"} {
		call(200, "GET", path, "")
	}
	call(200, "GET", "/metrics", "")

	secrets["the passphrase of backups"] = "canary-Passphrase-7777777"
	pass, kept := filepath.Join(t.TempDir(), "pass"), filepath.Join(t.TempDir(), "fleet.age")
	if err := os.WriteFile(pass, []byte(secrets["the passphrase of backups"]), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := l.cli(t, node, "backup", "--out", kept, "--passphrase-file", pass); err == nil {
		text, err := os.ReadFile(kept)
		if err != nil || len(text) < 1000 {
			t.Errorf("the backup has %d bytes, %v", len(text), err)
		}
		for _, what := range secrets.found(text) {
			t.Errorf("the backup has %s in clear", what)
		}
	} else {
		t.Errorf("%v: %s", err, b)
	}
	secrets.searchProcesses(t)
	bundle := filepath.Join(t.TempDir(), "bundle.tar.gz")
	b, err := l.cli(t, node, "debug", "bundle", "--out", bundle)
	if err != nil {
		t.Fatal(err, string(b))
	}
	files := unpack(t, bundle)
	for _, name := range []string{"about.json", "status.json", "peers.json", "raft.json", "config.toml", "metrics.txt", "log.txt", "kernel.json", "ruleset-blocks.txt", "ruleset-lists.txt", "goroutines.txt", "heap.pb.gz"} {
		if len(files[name]) < 20 {
			t.Errorf("the bundle's %s has %d bytes: %s", name, len(files[name]), files[name+".error"])
		}
	}
	for name, says := range map[string]string{
		"status.json": `"CaughtUp": true`, "peers.json": other.Name, "raft.json": "latest_configuration", "metrics.txt": "palisade_enforced_index", "log.txt": "adopted the kernel's rules",
		"ruleset-blocks.txt": "table bridge palisade, flags", "goroutines.txt": "agent.(*Agent).Run", "config.toml": "data_dir", "about.json": `"kernel": "`,
	} {
		if !bytes.Contains(files[name], []byte(says)) {
			t.Errorf("the bundle's %s does not have %q", name, says)
		}
	}
	if st, err := os.Stat(bundle); err != nil || st.Mode().Perm() != 0o600 || st.Size() > 8<<20 {
		t.Errorf("the bundle's file: %v, %v", st, err)
	}
	if b, err := l.cli(t, node, "debug", "bundle", "--out", bundle); err == nil {
		t.Errorf("a bundle was written over: %s", b)
	}
	for name, text := range files {
		for _, what := range secrets.found(text) {
			t.Errorf("the bundle's %s has %s", name, what)
		}
	}
	for _, what := range secrets.found(answers.Bytes()) {
		t.Errorf("an answer has %s", what)
	}
	// Leaks on purpose are found, in each of their forms.
	for what, secret := range secrets {
		for _, leak := range []string{"x" + secret + "x", base64.StdEncoding.EncodeToString([]byte(secret)), hex.EncodeToString([]byte(secret))} {
			if len(secrets.found([]byte(leak))) == 0 {
				t.Errorf("%s is not found where it is", what)
			}
		}
	}
	for _, n := range l.Nodes() {
		searched := secrets.search(t, n)
		for _, least := range []string{"agent.log", "audit", "raft.db"} {
			if !strings.Contains(searched, least) {
				t.Errorf("%s: nothing named %s was searched: %s", n.Name, least, searched)
			}
		}
	}
}

// searchProcesses looks for the canaries in the arguments and environments of all agents.
func (c canaries) searchProcesses(t *testing.T) {
	t.Helper()
	agents := 0
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range list {
		line, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(line, []byte("palisade\x00agent")) {
			continue // it has ended, or is not ours
		}
		agents++
		environ, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "environ"))
		for _, what := range c.found(append(line, environ...)) {
			t.Errorf("the arguments or the environment of %q have %s", line, what)
		}
	}
	if agents == 0 {
		t.Error("no agent was looked at")
	}
}

// search looks for the canaries in the log and the data directory of a node, and returns the names of the files.
func (c canaries) search(t *testing.T, n fleet.Node) (searched string) {
	t.Helper()
	var names []string
	look := func(path string) {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return // it went while we looked
		}
		if err != nil {
			t.Error(err)
		}
		names = append(names, path)
		for _, what := range c.found(text) {
			t.Errorf("%s has %s", path, what)
		}
	}
	look(filepath.Join(n.Dir, "agent.log"))
	err := filepath.WalkDir(filepath.Join(n.Dir, "data"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			look(path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return strings.Join(names, " ")
}

// unpack reads a gzipped tar.
func unpack(t *testing.T, path string) map[string][]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(h.Name)] = b
	}
}

// cli runs the command line against a node's agent.
func (l *lab) cli(t *testing.T, n fleet.Node, args ...string) ([]byte, error) {
	t.Helper()
	b, err := shared.Binaries()
	if err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(t.Context(), b.Palisade, append([]string{"--socket", n.Socket}, args...)...).CombinedOutput()
}
