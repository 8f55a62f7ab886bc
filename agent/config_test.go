package agent

import (
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
[api]
listen = "127.0.0.1:8440"
[inventory]
driver = "none"
`

func TestConfigDefaults(t *testing.T) {
	cfg, err := parseConfig([]byte(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	peer, gossip := cfg.Cluster.advertised()
	if peer != "10.0.0.1:7420" || gossip != "10.0.0.1:7421" || cfg.advertisedAPI() != "" || cfg.Cluster.CertificateLifetime.Hours() != 2160 {
		t.Errorf("advertised as %s, %s, %q, certificates for %s", peer, gossip, cfg.advertisedAPI(), cfg.Cluster.CertificateLifetime)
	}
	if cfg.Node.Name != "n1" || cfg.API.Socket != "/run/palisade/palisade.sock" || cfg.Log.Level != "info" {
		t.Errorf("defaults: %+v", cfg)
	}
}

func TestConfigErrorsNameTheKeyAndTheCure(t *testing.T) {
	tests := map[string]struct{ old, repl, want string }{
		"unknown key":        {`id = "n1"`, "id = \"n1\"\nzone = \"z\"", `unknown keys: "node.zone" (line 5)`},
		"no id":              {"[node]\nid = \"n1\"", "[node]", "node.id: is missing"},
		"bad API address":    {"127.0.0.1:8440", "kvm1:8440", "api.listen: \"kvm1:8440\" is not address:port"},
		"bad address":        {`listen = "10.0.0.1:7420"`, `listen = "host:7420"`, "cluster.listen: \"host:7420\" is not address:port"},
		"every address":      {`listen = "10.0.0.1:7420"`, `listen = "0.0.0.0:7420"`, "cluster.listen: 0.0.0.0 is every address of this node, and the others must be told one: give cluster.advertise"},
		"gossip everywhere":  {`gossip = "10.0.0.1:7421"`, `gossip = "[::]:7421"`, "cluster.gossip: :: is every address"},
		"advertise nothing":  {`gossip =`, "advertise = \"0.0.0.0\"\ngossip =", "cluster.advertise: 0.0.0.0 is no address at which others"},
		"advertise a port":   {`gossip =`, "advertise = \"10.0.0.1:7420\"\ngossip =", "cluster.advertise: \"10.0.0.1:7420\" is no address"},
		"API of nobody":      {`listen = "127.0.0.1:8440"`, "advertise = \"0.0.0.0:8440\"", "api.advertise: 0.0.0.0:8440 is not an address that others can reach"},
		"API without a port": {`listen = "127.0.0.1:8440"`, "advertise = \"kvm1.example.com\"", "api.advertise: \"kvm1.example.com\" is no address and port"},
		"short lifetime":     {`gossip =`, "certificate_lifetime = \"1s\"\ngossip =", "cluster.certificate_lifetime: is 1s"},
		"no lifetime":        {`gossip =`, "certificate_lifetime = \"90d\"\ngossip =", "unknown unit"},
		"old peers":          {`gossip =`, "key_file = \"/tmp/key\"\ngossip =", "unknown keys: \"cluster.key_file\""},
		"driver":             {`driver = "none"`, `driver = "xen"`, "inventory.driver: \"xen\" is none of libvirt"},
		"guard is no prefix": {`"192.0.2.0/24"`, `"192.0.2"`, "line 5"},
		"guard host bits":    {`"192.0.2.0/24"`, `"192.0.2.1/24"`, "192.0.2.0/24"},
		"a list of drivers":  {`driver = "none"`, `driver = ["libvirt", "xen"]`, "inventory.driver: \"xen\" is none of libvirt"},
		"driver's section":   {`driver = "none"`, "driver = [\"openvz\"]\n[inventory.openvz]\ncommand = [\"vzlist\"]", "inventory.openvz: openvz inventory: command: \"vzlist\" is not an absolute path"},
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

func TestAdvertisedAddresses(t *testing.T) {
	for _, c := range []struct{ listen, advertise, api, peer, apiAt string }{
		{"10.0.0.1:1", "", "10.0.0.1:3", "10.0.0.1:1", "10.0.0.1:3"},
		{"0.0.0.0:1", "192.0.2.7", "0.0.0.0:3", "192.0.2.7:1", "192.0.2.7:3"},
		{"[::]:1", "2001:db8::7", "[::1]:3", "[2001:db8::7]:1", ""},
		{"10.0.0.1:1", "192.0.2.7", "", "192.0.2.7:1", ""},
	} {
		cfg := Config{Cluster: ClusterConfig{Listen: c.listen, Gossip: c.listen, Advertise: c.advertise}, API: APIConfig{Listen: c.api}}
		if peer, gossip := cfg.Cluster.advertised(); peer != c.peer || gossip != c.peer || cfg.advertisedAPI() != c.apiAt {
			t.Errorf("%+v: peers %s, API %q", c, peer, cfg.advertisedAPI())
		}
		cfg.API.Advertise = "kvm1.example.com:443"
		if cfg.advertisedAPI() != "kvm1.example.com:443" {
			t.Errorf("%+v: API %q", c, cfg.advertisedAPI())
		}
	}
}
