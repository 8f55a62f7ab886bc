package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/httpapi/wire"
)

// stubAgent answers the hook on a Unix socket.
func stubAgent(t *testing.T, answer func(wire.LibvirtHook) wire.LibvirtAnswer) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var call wire.LibvirtHook
		if err := json.NewDecoder(r.Body).Decode(&call); err != nil || r.URL.Path != "/v1/local/libvirt" || r.Method != http.MethodPost {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
		_ = json.NewEncoder(w).Encode(answer(call))
	})}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	return socket
}

func TestLibvirtHook(t *testing.T) {
	const xml = "<domain><name>web</name></domain>"
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	allow := func(wire.LibvirtHook) wire.LibvirtAnswer {
		return wire.LibvirtAnswer{Allow: true, State: wire.HookArmed}
	}
	refuse := func(wire.LibvirtHook) wire.LibvirtAnswer {
		return wire.LibvirtAnswer{State: wire.HookRefused, Reason: "the kernel does not hold 192.0.2.7"}
	}
	hang := func(wire.LibvirtHook) wire.LibvirtAnswer { <-release; return wire.LibvirtAnswer{} }
	for name, tt := range map[string]struct {
		args   string
		agent  func(wire.LibvirtHook) wire.LibvirtAnswer // nil: none runs
		config string                                    // of [inventory.libvirt]; "-": no file
		code   int
		stderr string
		asked  string // operation, "" if the agent must not be asked
	}{
		"let in":                        {"web migrate begin -", allow, "", 0, "", "migrate"},
		"refused":                       {"web migrate begin -", refuse, "", 1, "refused to let web in: the kernel does not hold 192.0.2.7", "migrate"},
		"refused, whatever the setting": {"web migrate begin -", refuse, "hook_strict = false", 1, "refused to let web in", "migrate"},
		"no agent":                      {"web migrate begin -", nil, "", 0, "", ""},
		"no agent, strict":              {"web migrate begin -", nil, "hook_strict = true", 1, "hook_strict is set", ""},
		"an agent that hangs":           {"web migrate begin -", hang, "hook_timeout = \"100ms\"", 0, "", "migrate"},
		"an agent that hangs, strict":   {"web migrate begin -", hang, "hook_timeout = \"100ms\"\nhook_strict = true", 1, "gave no answer", "migrate"},
		"a config with a slip":          {"web migrate begin -", nil, "hook_strict = ", 1, "palisade.toml", ""},
		"never set up":                  {"web migrate begin -", nil, "-", 0, "", ""},
		"the end of a migration":        {"web migrate end -", refuse, "", 0, "", ""},
		"a start":                       {"web start begin -", refuse, "hook_strict = true", 0, "", ""},
		"a stop":                        {"web stopped end -", refuse, "hook_strict = true", 0, "", ""},
		"a reconnect":                   {"web reconnect begin -", refuse, "", 0, "", ""},
		"a release":                     {"web release end -", refuse, "hook_strict = true", 0, "", "release"},
		"a release, and it hangs":       {"web release end -", hang, "hook_strict = true", 0, "", "release"},
	} {
		t.Run(name, func(t *testing.T) {
			asked := make(chan wire.LibvirtHook, 10)
			socket := filepath.Join(t.TempDir(), "none")
			if tt.agent != nil {
				socket = stubAgent(t, func(c wire.LibvirtHook) wire.LibvirtAnswer { asked <- c; return tt.agent(c) })
			}
			config := filepath.Join(t.TempDir(), "palisade.toml")
			if tt.config != "-" {
				text := fmt.Sprintf("no_such_key = 1\n[api]\nsocket = %q\n[inventory.libvirt]\n%s\n", socket, tt.config)
				if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			args := append([]string{"hook", "libvirt", "--config", config}, strings.Fields(tt.args)...)
			var stderr bytes.Buffer
			began := time.Now()
			code, done := hookFirst(t.Context(), args, strings.NewReader(xml), &stderr)
			if !done || code != tt.code || !strings.Contains(stderr.String(), tt.stderr) || tt.stderr == "" && stderr.Len() > 0 {
				t.Errorf("exit %d (%v), %q; want %d and %q", code, done, stderr.String(), tt.code, tt.stderr)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("it took %v", took)
			}
			var got wire.LibvirtHook
			if tt.asked != "" {
				got = <-asked
			}
			if got.Operation != tt.asked || tt.asked != "" && (got.Guest != "web" || got.XML != xml) || len(asked) != 0 {
				t.Errorf("asked %+v, and %d more", got, len(asked))
			}
			// The command line does the same, and libvirt gets nothing on standard output.
			stderr.Reset()
			var stdout bytes.Buffer
			hook := HookLibvirtCmd{Config: config}
			hook.Guest, hook.Operation, hook.Sub = strings.Fields(tt.args)[0], strings.Fields(tt.args)[1], strings.Fields(tt.args)[2]
			err := hook.Run(context.Background(), &Globals{Stdin: strings.NewReader(xml), Stdout: &stdout, Stderr: &stderr})
			if exitCode(err) != tt.code || stdout.Len() > 0 {
				t.Errorf("as a command: %v, %q on standard output", err, stdout.String())
			}
		})
	}
}

func TestWhatIsNoHookIsLeftToTheCommandLine(t *testing.T) {
	for _, args := range []string{"", "hook", "hook libvirt", "hook libvirt --help", "hook libvirt web", "hook libvirt --config f web", "hook libvirt web a b c d", "hook libvirt --no web migrate", "vm show hook libvirt"} {
		if _, done := hookFirst(t.Context(), strings.Fields(args), strings.NewReader(""), &bytes.Buffer{}); done {
			t.Errorf("%q was taken for a hook", args)
		}
	}
}
