package peer

import (
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestValidate(t *testing.T) {
	tls := TLSConfig{CertFile: "c", KeyFile: "k", CAFile: "a"}
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string // part of the error, empty for none
	}{
		{"defaults", func(*Config) {}, ""},
		{"IPv6 loopback", func(c *Config) { c.Address, c.GossipAddress = "[::1]:7400", "[::1]:7401" }, ""},
		{"open without TLS", func(c *Config) { c.Address, c.Advertise = "0.0.0.0:7400", "gw-1:7400" }, "write tls:"},
		{"a name is not loopback", func(c *Config) { c.Address = "gw-1:7400" }, "write tls:"},
		{"open with TLS", func(c *Config) { c.Address, c.Advertise, c.TLS = "0.0.0.0:7400", "gw-1:7400", tls }, ""},
		{"gossip open without keys", func(c *Config) { c.GossipAddress = "10.0.0.1:7401" }, "write gossip_keys_file:"},
		{"gossip open with keys", func(c *Config) { c.GossipAddress, c.GossipKeysFile = "10.0.0.1:7401", "f" }, ""},
		{"insecure", func(c *Config) {
			c.Address, c.Advertise, c.GossipAddress, c.Insecure = "0.0.0.0:7400", "10.0.0.1:7400", "0.0.0.0:7401", true
		}, ""},
		{"nothing to advertise", func(c *Config) { c.Address, c.TLS = "0.0.0.0:7400", tls }, "write advertise:"},
		{"nothing to advertise, no host", func(c *Config) { c.Address, c.TLS = ":7400", tls }, "write advertise:"},
		{"advertise nobody", func(c *Config) { c.Advertise = "0.0.0.0:7400" }, "peer.advertise"},
		{"gossip advertises nobody", func(c *Config) { c.GossipAdvertise = "[::]:7401" }, "peer.gossip_advertise"},
		{"advertise too long", func(c *Config) { c.Advertise = strings.Repeat("a", 300) + ":1" }, "peer.advertise"},
		{"half a TLS", func(c *Config) { c.TLS = TLSConfig{CertFile: "c"} }, "peer.tls"},
		{"expect", func(c *Config) { c.Expect = 2 }, "peer.expect"},
		{"no port", func(c *Config) { c.Address = "127.0.0.1" }, "peer.address"},
		{"bad port", func(c *Config) { c.Address = "127.0.0.1:70000" }, "peer.address"},
		{"bad host", func(c *Config) { c.Advertise = "a@b:1" }, "peer.advertise"},
		{"bad seed", func(c *Config) { c.Join = []string{"a:1", "b"} }, "peer.join[1]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := DefaultConfig()
			c.change(&config)
			err := config.Validate()
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestConfigKeys(t *testing.T) {
	text := `
address: "0.0.0.0:7400"
advertise: "gw-1.turnout:7400"
tls: {cert_file: c, key_file: k, ca_file: a}
gossip_address: "0.0.0.0:7401"
gossip_advertise: "10.0.0.11:7401"
gossip_keys_file: g
join: ["gw-1.turnout:7401"]
expect: 3
insecure: false
`
	d := yaml.NewDecoder(strings.NewReader(text))
	d.KnownFields(true)
	var c Config
	if err := d.Decode(&c); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if c.Expect != 3 || c.TLS.CAFile != "a" || len(c.Join) != 1 {
		t.Errorf("%+v", c)
	}
}
