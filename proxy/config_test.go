package proxy

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"

	"turnout/fsm"
)

func TestConfigFromYAML(t *testing.T) {
	c := DefaultConfig()
	d := yaml.NewDecoder(strings.NewReader(`
listeners:
  - {name: mqtt, address: "0.0.0.0:1883", proxy_protocol: require, trusted: ["10.0.0.0/8"]}
  - {name: mqtts, address: "0.0.0.0:8883", tls: {cert_file: c, key_file: k, client_ca_file: a}}
connect_timeout: 7s
max_connect_bytes: 4096
strict: true
max_attempts: 2
dial_timeout: 1500ms
connack_timeout: 2s
`))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.ConnectTimeout != 7*time.Second || c.DialTimeout != 1500*time.Millisecond || !c.Strict || len(c.Listeners) != 2 || c.Listeners[1].TLS.ClientCAFile != "a" {
		t.Errorf("got %+v", c)
	}
}

func TestConfigBounds(t *testing.T) {
	if c := DefaultConfig(); c.Validate() != nil {
		t.Fatal(c.Validate())
	}
	for field, breach := range map[string]func(*Config){
		"listeners":                   func(c *Config) { c.Listeners = nil },
		"listeners[0].name":           func(c *Config) { c.Listeners[0].Name = "Not Good" },
		"listeners[1].name":           func(c *Config) { c.Listeners = append(c.Listeners, c.Listeners[0]) },
		"listeners[0].address":        func(c *Config) { c.Listeners[0].Address = "1883" },
		"listeners[0].tls":            func(c *Config) { c.Listeners[0].TLS = &TLSConfig{CertFile: "c"} },
		"listeners[0].proxy_protocol": func(c *Config) { c.Listeners[0].ProxyProtocol = "maybe" },
		"listeners[0].trusted:":       func(c *Config) { c.Listeners[0].ProxyProtocol = ProxyAccept },
		"listeners[0].trusted: only":  func(c *Config) { c.Listeners[0].Trusted = []string{"10.0.0.0/8"} },
		"listeners[0].trusted[0]": func(c *Config) {
			c.Listeners[0].ProxyProtocol, c.Listeners[0].Trusted = ProxyRequire, []string{"10.0.0.1"}
		},
		"connect_timeout":   func(c *Config) { c.ConnectTimeout = 0 },
		"dial_timeout":      func(c *Config) { c.DialTimeout = time.Hour },
		"connack_timeout":   func(c *Config) { c.ConnackTimeout = time.Millisecond },
		"max_connect_bytes": func(c *Config) { c.MaxConnectBytes = 10 },
		"max_attempts":      func(c *Config) { c.MaxAttempts = MaxCandidates + 1 },
	} {
		c := testConfig()
		breach(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
		if _, err := New(c, Options{Tables: fsm.New(), Proposer: &tables{}}); err == nil {
			t.Errorf("%s: New took it", field)
		}
	}
}

func TestNewNeedsItsParts(t *testing.T) {
	if _, err := New(testConfig(), Options{Tables: fsm.New()}); err == nil {
		t.Error("no proposer")
	}
	reg := prometheus.NewRegistry()
	for i, want := range []bool{true, false} {
		if _, err := New(testConfig(), Options{Tables: fsm.New(), Proposer: &tables{}, Registerer: reg}); (err == nil) != want {
			t.Errorf("gateway %d in one registry: %v", i, err)
		}
	}
}
