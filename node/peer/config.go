package peer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Config is the `peer` section of the configuration file.
type Config struct {
	// Address is where the peer port listens, "host:port". Port 0 takes a free one.
	Address string `yaml:"address"`
	// Advertise is how the other gateways reach the peer port, "host:port"; the host may be a name, which is resolved
	// at each dial. Empty means Address.
	Advertise string    `yaml:"advertise"`
	TLS       TLSConfig `yaml:"tls"`
	// GossipAddress is where gossip listens, "host:port" over UDP and TCP.
	GossipAddress string `yaml:"gossip_address"`
	// GossipAdvertise is how the others reach it; gossip carries IP addresses, so a name is resolved once at start.
	GossipAdvertise string `yaml:"gossip_advertise"`
	// GossipKeysFile holds the gossip keys, one in base64 per line (16, 24 or 32 bytes), the first of which encrypts.
	GossipKeysFile string `yaml:"gossip_keys_file"`
	// Join are gossip addresses of other gateways, "host:port". A gateway's own address among them does no harm.
	Join []string `yaml:"join"`
	// Expect is how many empty gateways make a new cluster: 1, 3 or 5. It means nothing once there is data.
	Expect int `yaml:"expect"`
	// Insecure lets the port be reachable from other hosts without TLS and gossip keys.
	Insecure bool `yaml:"insecure"`
}

// TLSConfig names the files for the peer port. All three or none. The certificate must carry the DNS name
// [RoleName] and be good for client and server authentication.
type TLSConfig struct {
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	CAFile   string `yaml:"ca_file"`
}

// Enabled reports whether TLS is configured.
func (t TLSConfig) Enabled() bool { return t != TLSConfig{} }

// Default ports.
const (
	DefaultPort       = 7400
	DefaultGossipPort = 7401
)

// DefaultConfig is a single gateway that nobody else can reach.
func DefaultConfig() Config {
	return Config{
		Address:       net.JoinHostPort("127.0.0.1", strconv.Itoa(DefaultPort)),
		GossipAddress: net.JoinHostPort("127.0.0.1", strconv.Itoa(DefaultGossipPort)),
		Expect:        1,
	}
}

// maxAdvertise bounds an advertised address: a DNS name of 253 bytes and a port.
const maxAdvertise = 259

// Validate checks the section. Its errors name the key, and where something is unsafe the line to write.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("peer.%s: %s", key, fmt.Sprintf(format, args...)))
	}
	for _, a := range []struct {
		key, value string
		optional   bool
	}{
		{"address", c.Address, false}, {"advertise", c.Advertise, true},
		{"gossip_address", c.GossipAddress, false}, {"gossip_advertise", c.GossipAdvertise, true},
	} {
		if a.value == "" && a.optional {
			continue
		}
		if err := checkAddress(a.value); err != nil {
			bad(a.key, "%v", err)
		}
	}
	for i, seed := range c.Join {
		if err := checkAddress(seed); err != nil {
			bad(fmt.Sprintf("join[%d]", i), "%v", err)
		}
	}
	if !slices.Contains([]int{1, 3, 5}, c.Expect) {
		bad("expect", "must be 1, 3 or 5")
	}
	if c.TLS.Enabled() && (c.TLS.CertFile == "" || c.TLS.KeyFile == "" || c.TLS.CAFile == "") {
		bad("tls", "needs cert_file, key_file and ca_file")
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if c.Advertise == "" && unspecified(c.Address) {
		bad("advertise", "other gateways cannot dial %q: write advertise: \"<name or IP of this host>:%d\"", c.Address, DefaultPort)
	} else if c.Advertise != "" && unspecified(c.Advertise) {
		bad("advertise", "must name one host")
	}
	if c.GossipAdvertise != "" && unspecified(c.GossipAdvertise) {
		bad("gossip_advertise", "must name one host")
	}
	if len(c.Advertise) > maxAdvertise {
		bad("advertise", "must be at most %d bytes", maxAdvertise)
	}
	if !c.Insecure {
		if !loopback(c.Address) && !c.TLS.Enabled() {
			bad("tls", "the peer port at %q is reachable from other hosts without TLS: write tls: {cert_file: ..., key_file: ..., "+
				"ca_file: ...}, or insecure: true to do without", c.Address)
		}
		if !loopback(c.GossipAddress) && c.GossipKeysFile == "" {
			bad("gossip_keys_file", "gossip at %q is reachable from other hosts without a key: write gossip_keys_file: <path>, "+
				"or insecure: true to do without", c.GossipAddress)
		}
	}
	return errors.Join(errs...)
}

// checkAddress reports what is wrong with "host:port". The host may be empty (all interfaces).
func checkAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return errors.New("must be host:port")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n > 65535 {
		return errors.New("port must be 0 to 65535")
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == '@' || r == '/' || r == 0x7f }) {
		return errors.New("host has a character that no host name has")
	}
	return nil
}

func unspecified(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsUnspecified()
}

// loopback reports whether nobody outside this host can reach the address. Names other than localhost are not trusted.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// advertised returns the address to give to others for a listener that is bound to bound.
func advertised(configured, advertise string, bound net.Addr) (string, error) {
	if advertise == "" {
		advertise = configured
	}
	host, port, err := net.SplitHostPort(advertise)
	if err != nil {
		return "", fmt.Errorf("split address: %w", err)
	}
	if port == "0" {
		_, port, err = net.SplitHostPort(bound.String())
		if err != nil {
			return "", fmt.Errorf("split address: %w", err)
		}
	}
	return net.JoinHostPort(host, port), nil
}
