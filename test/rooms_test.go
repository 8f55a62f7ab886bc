package test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/palisade/palisade/"

// mayImport is the table of rooms in docs/architecture.md: for each room, the rooms of ours that it
// may import. A room covers its subpackages unless they have a line of their own.
func mayImport() map[string][]string {
	return map[string][]string{
		"cmd/palisade":       {"agent", "audit", "backup", "httpapi/client", "httpapi/wire", "deploy/fleet", "internal/files", "internal/hook", "internal/logs"},
		"cmd/libvirt-hook":   {"internal/hook"},
		"agent":              {"fsm", "pki", "audit", "backup", "recovery", "cluster", "enforce", "enforce/boot", "enforce/canary", "enforce/nft", "enforce/page", "inventory", "inventory/exec", "inventory/libvirt", "inventory/openvz", "inventory/output", "inventory/proxmox", "inventory/static", "httpapi", "httpapi/login", "web", "internal/files", "internal/hclogslog", "internal/hook", "internal/logs"},
		"web":                {},
		"fsm":                {},
		"pki":                {},
		"audit":              {"fsm", "internal/files"},
		"backup":             {"fsm"},
		"recovery":           {"fsm", "enforce"},
		"cluster":            {"fsm", "pki", "internal/files", "internal/hclogslog"},
		"enforce":            {"fsm"},
		"enforce/nft":        {"enforce", "fsm"},
		"enforce/boot":       {"enforce", "fsm", "internal/files"},
		"enforce/canary":     {"enforce", "fsm"},
		"enforce/page":       {},
		"inventory":          {"fsm"},
		"httpapi":            {"fsm", "pki", "httpapi/wire", "httpapi/login"},
		"httpapi/login":      {},
		"httpapi/wire":       {},
		"httpapi/client":     {"httpapi/wire"},
		"deploy/fleet":       {"httpapi/client", "inventory/static", "inventory", "fsm"},
		"internal/probe":     {},
		"internal":           {},
		"internal/hclogslog": {},
		"internal/files":     {},
		"internal/hook":      {"httpapi/wire"},
		"internal/logs":      {},
		"test":               {"*"},
	}
}

// adapts says which of our packages may import a third-party package: its types stay in that room.
func adapts() map[string][]string {
	return map[string][]string{
		"github.com/hashicorp/raft":          {"cluster", "internal/hclogslog"},
		"github.com/hashicorp/memberlist":    {"cluster"},
		"github.com/google/nftables":         {"enforce/nft"},
		"github.com/digitalocean/go-libvirt": {"inventory/libvirt"},
		"libvirt.org/go/libvirtxml":          {"inventory/libvirt"},
		"github.com/danielgtaylor/huma":      {"httpapi"},
		"github.com/go-chi/chi":              {"httpapi"},
		"github.com/coreos/go-oidc":          {"httpapi/login"},
		"golang.org/x/oauth2":                {"httpapi/login"},
		"github.com/alecthomas/kong":         {"cmd/palisade"},
		"github.com/coreos/go-systemd":       {"agent"},
		"github.com/vishvananda/netlink":     {"agent", "deploy/fleet", "enforce/canary", "enforce/nft"},
		"google.golang.org/protobuf":         {"fsm", "cluster"},
		"filippo.io/age":                     {"backup"},
	}
}

type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-tags", "hashicorpmetrics", "-json=ImportPath,Imports,TestImports,XTestImports", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []goPackage
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// room returns the longest entry of the table that holds the package.
func room(pkg string, table map[string][]string) (string, bool) {
	for p := pkg; p != "."; p = path.Dir(p) {
		if _, ok := table[p]; ok {
			return p, true
		}
	}
	return "", false
}

func TestRoomsImportOnlyWhatTheyMay(t *testing.T) {
	table := mayImport()
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		r, ok := room(name, table)
		if !ok {
			t.Errorf("%s is in no room of the table: decide where it belongs", name)
			continue
		}
		for _, imp := range p.Imports {
			dep, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			to, _ := room(dep, table)
			allowed := table[r]
			if to != r && !slices.Contains(allowed, to) && !slices.Contains(allowed, "*") {
				t.Errorf("%s imports %s; %s may import only %v", name, dep, r, allowed)
			}
		}
	}
}

func TestThirdPartyTypesStayWithTheirAdapter(t *testing.T) {
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			for lib, rooms := range adapts() {
				if imp != lib && !strings.HasPrefix(imp, lib+"/") {
					continue
				}
				if !slices.ContainsFunc(rooms, func(r string) bool { return name == r || strings.HasPrefix(name, r+"/") }) {
					t.Errorf("%s imports %s; only %v adapt it", name, imp, rooms)
				}
			}
		}
	}
}
