package api

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Config is the part of the configuration file below "api".
type Config struct {
	// Address is host:port to listen on; port 0 takes a free one.
	Address string    `yaml:"address"`
	TLS     TLSConfig `yaml:"tls"`
	// TokensFile holds the bearer tokens, hashed: a list of {name, role, sha256}.
	TokensFile string `yaml:"tokens_file"`
	// Insecure allows an address that is not loopback without TLS or without tokens.
	Insecure bool `yaml:"insecure"`
	// MetricsPublic serves /metrics without a token.
	MetricsPublic bool `yaml:"metrics_public"`
}

// TLSConfig names the files of the server's certificate, PEM. Both are empty or both are set.
type TLSConfig struct {
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

func (t TLSConfig) enabled() bool { return t.CertFile != "" }

// DefaultConfig listens on loopback, without TLS and without tokens.
func DefaultConfig() Config { return Config{Address: "127.0.0.1:8080"} }

// Validate checks the configuration by itself; it reads no file. Every message names the key to change as it is written in the file.
func (c Config) Validate() error {
	var errs []error
	host, _, err := net.SplitHostPort(c.Address)
	if err != nil {
		errs = append(errs, errors.New("api.address: must be host:port"))
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		errs = append(errs, errors.New("api.tls: cert_file and key_file go together"))
	}
	if err == nil && !isLoopback(host) && !c.Insecure {
		const or = "; or listen on loopback (api.address: \"127.0.0.1:8080\"), or write api.insecure: true to go without"
		if !c.TLS.enabled() {
			errs = append(errs, fmt.Errorf("api.tls: an address that is not loopback needs TLS, write api.tls: {cert_file: ..., key_file: ...}%s", or))
		}
		if c.TokensFile == "" {
			errs = append(errs, fmt.Errorf("api.tokens_file: an address that is not loopback needs tokens, write api.tokens_file: /path/tokens.yaml%s", or))
		}
	}
	return errors.Join(errs...)
}

// isLoopback reports whether a host, as it stands in an address to listen on or in a Host header, can only mean this machine.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
