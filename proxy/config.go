package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"time"
)

// PROXY protocol modes of a listener.
const (
	ProxyOff     = "off"     // a PROXY header is not MQTT
	ProxyAccept  = "accept"  // trusted sources may send a header
	ProxyRequire = "require" // only trusted sources, and each must send a header
)

// Config is the data plane's share of the configuration file.
type Config struct {
	Listeners []ListenerConfig `yaml:"listeners"`
	// ConnectTimeout runs from accept to CONNACK, the PROXY header, the TLS handshake and all attempts included.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// MaxConnectBytes bounds a CONNECT packet, fixed header included.
	MaxConnectBytes int `yaml:"max_connect_bytes"`
	// Strict refuses every CONNECT that breaks the standard, not only those that can't be routed.
	Strict bool `yaml:"strict"`
	// MaxAttempts is how many nodes are tried for one CONNECT.
	MaxAttempts int `yaml:"max_attempts"`
	// DialTimeout and ConnackTimeout bound one attempt.
	DialTimeout    time.Duration `yaml:"dial_timeout"`
	ConnackTimeout time.Duration `yaml:"connack_timeout"`
}

// ListenerConfig is one address for devices.
type ListenerConfig struct {
	Name    string     `yaml:"name"`    // label in metrics: 1–32 of a–z, 0–9, '-' and '_'
	Address string     `yaml:"address"` // host:port; port 0 takes a free one
	TLS     *TLSConfig `yaml:"tls"`     // nil: plain TCP
	// ProxyProtocol is ProxyOff (also when empty), ProxyAccept or ProxyRequire.
	ProxyProtocol string `yaml:"proxy_protocol"`
	// Trusted are the networks in CIDR form that may send a PROXY header.
	Trusted []string `yaml:"trusted"`
}

// TLSConfig names the PEM files of a TLS listener.
type TLSConfig struct {
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ClientCAFile makes a client certificate signed by one of its authorities a condition.
	ClientCAFile string `yaml:"client_ca_file"`
}

// DefaultConfig is one plain listener on the port of MQTT.
func DefaultConfig() Config {
	return Config{
		Listeners:       []ListenerConfig{{Name: "mqtt", Address: "0.0.0.0:1883"}},
		ConnectTimeout:  10 * time.Second,
		MaxConnectBytes: 64 << 10,
		MaxAttempts:     4,
		DialTimeout:     3 * time.Second,
		ConnackTimeout:  5 * time.Second,
	}
}

var listenerName = regexp.MustCompile(`^[a-z0-9_-]{1,32}$`)

// Validate checks the values by themselves; files are read by Open. Errors name the field and its bound.
func (c *Config) Validate() error {
	if len(c.Listeners) == 0 || len(c.Listeners) > 64 {
		return fmt.Errorf("listeners: must be 1 to 64")
	}
	names := map[string]bool{}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if err := l.validate(); err != nil {
			return fmt.Errorf("listeners[%d].%w", i, err)
		}
		if names[l.Name] {
			return fmt.Errorf("listeners[%d].name: is used twice", i)
		}
		names[l.Name] = true
	}
	for _, d := range []struct {
		field       string
		value       time.Duration
		least, most time.Duration
	}{
		{"connect_timeout", c.ConnectTimeout, 100 * time.Millisecond, 5 * time.Minute},
		{"dial_timeout", c.DialTimeout, 10 * time.Millisecond, time.Minute},
		{"connack_timeout", c.ConnackTimeout, 10 * time.Millisecond, time.Minute},
	} {
		if d.value < d.least || d.value > d.most {
			return fmt.Errorf("%s: must be %s to %s", d.field, d.least, d.most)
		}
	}
	if c.MaxConnectBytes < 128 || c.MaxConnectBytes > 1<<20 {
		return fmt.Errorf("max_connect_bytes: must be 128 to %d", 1<<20)
	}
	if c.MaxAttempts < 1 || c.MaxAttempts > MaxCandidates {
		return fmt.Errorf("max_attempts: must be 1 to %d", MaxCandidates)
	}
	return nil
}

func (l *ListenerConfig) validate() error {
	if !listenerName.MatchString(l.Name) {
		return fmt.Errorf("name: must be 1 to 32 of a-z, 0-9, '-' and '_'")
	}
	if _, _, err := net.SplitHostPort(l.Address); err != nil {
		return fmt.Errorf("address: must be host:port")
	}
	if t := l.TLS; t != nil && (t.CertFile == "" || t.KeyFile == "") {
		return fmt.Errorf("tls: needs cert_file and key_file")
	}
	switch l.ProxyProtocol {
	case "", ProxyOff:
		if len(l.Trusted) > 0 {
			return fmt.Errorf("trusted: only with proxy_protocol %q or %q", ProxyAccept, ProxyRequire)
		}
	case ProxyAccept, ProxyRequire:
		if len(l.Trusted) == 0 || len(l.Trusted) > 256 {
			return fmt.Errorf("trusted: 1 to 256 networks may send the PROXY header; name them")
		}
	default:
		return fmt.Errorf("proxy_protocol: must be %q, %q or %q", ProxyOff, ProxyAccept, ProxyRequire)
	}
	_, err := l.trusted()
	return err
}

func (l *ListenerConfig) trusted() ([]netip.Prefix, error) {
	var list []netip.Prefix
	for i, s := range l.Trusted {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("trusted[%d]: must be a network such as 10.0.0.0/8", i)
		}
		list = append(list, p.Masked())
	}
	return list, nil
}
