package agent

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/palisade/palisade/audit"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/hook"
	"github.com/palisade/palisade/pki"
)

// Config is the agent's config file. Unknown keys are errors.
type Config struct {
	// DataDir holds the raft log and snapshots. It must be on a real disk, and on one that no other
	// agent uses.
	DataDir   string          `toml:"data_dir"`
	Node      NodeConfig      `toml:"node"`
	Cluster   ClusterConfig   `toml:"cluster"`
	API       APIConfig       `toml:"api"`
	Inventory InventoryConfig `toml:"inventory"`
	Audit     AuditConfig     `toml:"audit"`
	Redirect  RedirectConfig  `toml:"redirect"`
	Lists     ListsConfig     `toml:"lists"`
	Canary    CanaryConfig    `toml:"canary"`
	Log       LogConfig       `toml:"log"`
}

// NodeConfig names this node.
type NodeConfig struct {
	ID   string `toml:"id"`
	Name string `toml:"name"` // defaults to ID
	// Guards are prefixes that can never be blocked on any node, beside the automatic ones.
	Guards []netip.Prefix `toml:"guards"`
}

// ClusterConfig says how this node meets the others.
type ClusterConfig struct {
	Listen string `toml:"listen"` // address:port for raft and peer calls
	Gossip string `toml:"gossip"` // address:port for membership and sightings (TCP and UDP)
	// Advertise is the address, without a port, by which the other nodes reach this one; that of Listen if it
	// is empty. The ports are those of Listen and Gossip.
	Advertise string `toml:"advertise"`
	// CertificateLifetime is for how long nodes' certificates are issued while this node leads; they are renewed at two
	// thirds of it. A node that is away for longer has to be joined anew. Default 90 days.
	CertificateLifetime duration `toml:"certificate_lifetime"`
}

// duration is written as in Go: "2160h".
type duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(text []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(text))
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (d duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// advertised is where the others reach the peer port and the gossip of this node.
func (c *ClusterConfig) advertised() (peer, gossip string) {
	at := func(listen string) string {
		ap, err := netip.ParseAddrPort(listen)
		if err != nil {
			return ""
		}
		if a, err := netip.ParseAddr(c.Advertise); err == nil {
			ap = netip.AddrPortFrom(a, ap.Port())
		}
		return ap.String()
	}
	return at(c.Listen), at(c.Gossip)
}

// CAFile is where the agent keeps the certificates of the fleet's authorities (PEM), for clients of its API.
func (c *Config) CAFile() string { return filepath.Join(c.DataDir, identityDir, "ca.pem") }

// advertisedAPI is where others reach the API and the page of this node (host:port), empty if they don't.
func (c *Config) advertisedAPI() string {
	if c.API.Advertise != "" {
		return c.API.Advertise
	}
	ap, err := netip.ParseAddrPort(c.API.Listen)
	if err != nil || ap.Addr().IsLoopback() {
		return ""
	}
	if ap.Addr().IsUnspecified() {
		peer, _ := c.Cluster.advertised()
		at, err := netip.ParseAddrPort(peer)
		if err != nil {
			return ""
		}
		ap = netip.AddrPortFrom(at.Addr(), ap.Port())
	}
	return ap.String()
}

// APIConfig says where the HTTP API answers and who may call it.
type APIConfig struct {
	// Listen is an address:port, or empty for none. Sockets that a service manager passes under the name "api" are
	// served besides. All of them speak TLS, with TLSCert and TLSKey (read again when they change), or else with a
	// certificate of the fleet's own authority.
	Listen string `toml:"listen"`
	// Advertise is the host:port, of a name or an address, by which browsers and programs reach this node's API; the
	// pages of the other nodes link to it. Empty: Listen, with the address of the cluster if Listen is on every address;
	// none if Listen is on the loopback or empty.
	Advertise string     `toml:"advertise"`
	TLSCert   string     `toml:"tls_cert"`
	TLSKey    string     `toml:"tls_key"`
	Socket    string     `toml:"socket"` // path of the root-only Unix socket
	OIDC      OIDCConfig `toml:"oidc"`
}

// LibvirtConfig says how this node asks libvirt, and how libvirt's hook asks this node.
type LibvirtConfig struct {
	Socket string `toml:"socket"`
	// HookTimeout is how long a migration to here may be held up until the hook decides without an answer. Default 2 s.
	HookTimeout duration `toml:"hook_timeout"`
	// HookStrict refuses migrations to here while the agent does not run, or can't tell whether it knows all that is
	// blocked. Without it they are let in: the kernel holds what was known last.
	HookStrict bool `toml:"hook_strict"`
}

// RedirectConfig says where this node serves the page of redirected targets.
type RedirectConfig struct {
	// Port is a TCP port that nothing else on this node uses, on all of its addresses; 8079. It answers only
	// visitors of redirected targets.
	Port uint16 `toml:"port"`
}

// CanaryConfig is about the packets that prove that what is blocked is dropped. They need a bridge with two ports of their
// own, and 127.112.97.107 and .108 on the loopback.
type CanaryConfig struct {
	// Mode is "on" (default), or "off": it makes no interface, sends nothing, proves nothing.
	Mode string `toml:"mode"`
}

const canaryOn, canaryOff = "on", "off"

// ListsConfig says what lists may be loaded from.
type ListsConfig struct {
	// Dir holds the files that sources with a file URL may name; nothing outside of it is read. Default
	// /var/lib/palisade/lists.
	Dir string `toml:"dir"`
}

// AuditConfig says how long this node keeps the audit, in data_dir/audit. It keeps whole files: a record may stay
// longer, until the rest of its file may go. What is beyond MaxBytes goes earlier.
type AuditConfig struct {
	KeepDays int   `toml:"keep_days"` // 400
	MaxBytes int64 `toml:"max_bytes"` // 4 GiB
}

// audit gives the options of the audit on disk.
func (c *Config) audit(log *slog.Logger) audit.Options {
	return audit.Options{
		Dir: filepath.Join(c.DataDir, "audit"), Keep: time.Duration(c.Audit.KeepDays) * 24 * time.Hour, MaxBytes: c.Audit.MaxBytes, Logger: log,
	}
}

// LogConfig says how much is logged and in which form.
type LogConfig struct {
	Level  string `toml:"level"`  // "debug", "info" (default), "warn", "error"
	Format string `toml:"format"` // "text" (default) or "json"
}

// LoadConfig reads and checks a config file. The error names the file, the key and what would be
// right.
func LoadConfig(path string) (Config, error) {
	b, err := hook.ReadConfig(path)
	if errors.Is(err, hook.ErrTooLarge) {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	if err != nil {
		return Config{}, err
	}
	cfg, err := parseConfig(b)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return cfg, nil
}

func parseConfig(b []byte) (Config, error) {
	var cfg Config
	dec := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := dec.Decode(&cfg); err != nil {
		var unknown *toml.StrictMissingError
		if errors.As(err, &unknown) {
			keys := make([]string, 0, len(unknown.Errors))
			for _, e := range unknown.Errors {
				line, _ := e.Position()
				keys = append(keys, fmt.Sprintf("%q (line %d)", strings.Join(e.Key(), "."), line))
			}
			return Config{}, fmt.Errorf("unknown keys: %s", strings.Join(keys, ", "))
		}
		var bad *toml.DecodeError
		if errors.As(err, &bad) {
			line, col := bad.Position()
			return Config{}, fmt.Errorf("line %d column %d: %w", line, col, bad)
		}
		return Config{}, err
	}
	cfg.setDefaults()
	return cfg, cfg.validate()
}

func (c *Config) setDefaults() {
	if c.DataDir == "" {
		c.DataDir = "/var/lib/palisade"
	}
	if c.Node.Name == "" {
		c.Node.Name = c.Node.ID
	}
	if c.Cluster.CertificateLifetime.Duration == 0 {
		c.Cluster.CertificateLifetime.Duration = pki.LeafLifetime
	}
	if c.API.Socket == "" {
		c.API.Socket = hook.DefaultSocket
	}
	if c.Lists.Dir == "" {
		c.Lists.Dir = "/var/lib/palisade/lists"
	}
	c.Inventory.setDefaults()
	if c.Redirect.Port == 0 {
		c.Redirect.Port = 8079
	}
	if c.Audit.KeepDays == 0 {
		c.Audit.KeepDays = 400
	}
	if c.Audit.MaxBytes == 0 {
		c.Audit.MaxBytes = audit.DefaultMaxBytes
	}
	if c.Canary.Mode == "" {
		c.Canary.Mode = canaryOn
	}
	if c.Log.Level == "" {
		c.Log.Level = "info"
	}
	if c.Log.Format == "" {
		c.Log.Format = "text"
	}
}

func (c *Config) validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", key, fmt.Errorf(format, args...)))
	}
	if c.Node.ID == "" {
		bad("node.id", "is missing; give this node a name that no other node has ever had")
	}
	for i, g := range c.Node.Guards {
		if g != g.Masked() {
			bad(fmt.Sprintf("node.guards[%d]", i), "%s has host bits set; the prefix would be %s", g, g.Masked())
		}
	}
	if !filepath.IsAbs(c.Lists.Dir) {
		bad("lists.dir", "%q is no absolute path", c.Lists.Dir)
	}
	c.Cluster.validate(bad)
	const mostDays = 36_500
	if c.Audit.KeepDays < 1 || c.Audit.KeepDays > mostDays {
		bad("audit.keep_days", "is %d; give 1 to %d days", c.Audit.KeepDays, mostDays)
	}
	if c.Audit.MaxBytes < 1<<20 {
		bad("audit.max_bytes", "is %d; give at least %d (1 MiB)", c.Audit.MaxBytes, 1<<20)
	}
	c.API.validate(bad)
	c.Inventory.validate(bad)
	if c.Canary.Mode != canaryOn && c.Canary.Mode != canaryOff {
		bad("canary.mode", "%q is neither %s nor %s", c.Canary.Mode, canaryOn, canaryOff)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) {
		bad("log.level", "%q is none of debug, info, warn, error", c.Log.Level)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		bad("log.format", "%q is neither text nor json", c.Log.Format)
	}
	return errors.Join(errs...)
}

func (c *ClusterConfig) validate(bad func(key, format string, args ...any)) {
	const shortest, longest = 10 * time.Second, 825 * 24 * time.Hour
	if l := c.CertificateLifetime.Duration; l < shortest || l > longest {
		bad("cluster.certificate_lifetime", "is %s; give %s to %s", l, shortest, longest)
	}
	if c.Advertise != "" {
		if a, err := netip.ParseAddr(c.Advertise); err != nil || a.Zone() != "" {
			bad("cluster.advertise", "%q is no address, which looks like \"10.0.0.1\"", c.Advertise)
			return
		}
	}
	for i, s := range []string{c.Listen, c.Gossip} {
		key := []string{"cluster.listen", "cluster.gossip"}[i]
		if ap, err := netip.ParseAddrPort(s); err != nil {
			bad(key, "%q is not address:port, for example \"10.0.0.1:742%d\"", s, i)
		} else if ap.Addr().IsUnspecified() && c.Advertise == "" {
			bad(key, "%s is every address of this node, and the others must be told one: give cluster.advertise", ap.Addr())
		}
	}
	if a, err := netip.ParseAddr(c.Advertise); err == nil && a.IsUnspecified() {
		bad("cluster.advertise", "%s is no address at which others can reach this node", a)
	}
}

func (a *APIConfig) validate(bad func(key, format string, args ...any)) {
	if (a.TLSCert == "") != (a.TLSKey == "") {
		bad("api.tls_cert", "tls_cert and tls_key go together")
	}
	if a.Listen != "" {
		if _, err := netip.ParseAddrPort(a.Listen); err != nil {
			bad("api.listen", "%q is not address:port, for example \"127.0.0.1:8440\"", a.Listen)
		}
	}
	if a.Advertise != "" {
		if err := fsm.CheckAddress(a.Advertise); err != nil {
			bad("api.advertise", "%s", err)
		}
	}
	a.OIDC.validate(bad)
}
