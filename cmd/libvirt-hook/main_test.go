package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain is the program itself when a test runs it.
func TestMain(m *testing.M) {
	if os.Getenv("LIBVIRT_HOOK_TEST") != "" {
		os.Exit(mainCode())
	}
	os.Exit(m.Run())
}

// call runs the program as libvirt does.
func call(t *testing.T, stdin io.Reader, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = []string{"LIBVIRT_HOOK_TEST=1"}
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() < 0 {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// agents are Unix sockets on which something is wrong, by what.
func agents(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	sockets := map[string]string{"no agent": filepath.Join(dir, "none")}
	for name, answer := range map[string]string{
		"an agent that hangs":   "",
		"an agent that refuses": "HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n{\"allow\":false,\"state\":\"refused\"}",
		"an agent that starts":  "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
		"nonsense":              "\x00\xffHTTP? {{{",
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { _ = c.Close() })
				_, _ = io.WriteString(c, answer)
			}
		}()
		sockets[name] = path
	}
	return sockets
}

// TestOnlyTheBeginOfAMigrationIsEverRefused: libvirt ends a guest whose hook fails when it starts, or when libvirtd finds it again
// after a restart. So whatever is wrong, nothing but "migrate begin" may end with another code than 0.
func TestOnlyTheBeginOfAMigrationIsEverRefused(t *testing.T) {
	const valid = "<domain type='qemu'><name>web</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid></domain>"
	inputs := map[string]string{"a domain": valid, "nothing": "", "bad XML": "<domain><name>", "more than a pipe takes": strings.Repeat("<x>", 400<<10)}
	for name, socket := range agents(t) {
		config := filepath.Join(t.TempDir(), "palisade.toml")
		text := fmt.Sprintf("[api]\nsocket = %q\n[inventory.libvirt]\nhook_strict = true\nhook_timeout = \"50ms\"\n", socket)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, op := range []string{"reconnect begin", "prepare begin", "start begin", "started begin", "stopped end", "release end", "migrate end", "restore begin", "attach begin", "migrate begin"} {
			want := 0
			if op == "migrate begin" {
				want = 1
			}
			for what, input := range inputs {
				args := append(append([]string{"--config", config, "web"}, strings.Fields(op)...), "-")
				if code, stdout, stderr := call(t, strings.NewReader(input), args...); code != want || stdout != "" || want == 0 && stderr != "" {
					t.Errorf("%s, %s, %s: exit %d, %q, %q; want %d", name, op, what, code, stdout, stderr, want)
				}
			}
		}
	}
	for _, config := range []string{"/", "/etc/none", os.Args[0]} { // not a file; none; larger than a config may be
		if code, _, stderr := call(t, strings.NewReader(valid), "--config", config, "web", "reconnect", "begin", "-"); code != 0 {
			t.Errorf("with the config %s: exit %d, %s", config, code, stderr)
		}
	}
}

// A guest may have any name.
func TestNamesThatLookLikeFlags(t *testing.T) {
	for _, name := range []string{"--config", "-h", "--help", "-", "a b", "reconnect"} {
		for _, op := range []string{"reconnect begin", "start begin"} {
			if code, stdout, stderr := call(t, nil, append(append([]string{name}, strings.Fields(op)...), "-")...); code != 0 || stdout+stderr != "" {
				t.Errorf("%q %s: exit %d, %q, %q", name, op, code, stdout, stderr)
			}
		}
	}
	if code, _, stderr := call(t, nil, "web", "start"); code != 2 || !strings.Contains(stderr, "usage") {
		t.Errorf("too few arguments: exit %d, %q", code, stderr)
	}
}
