package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// Config is the part of the configuration file under "upstream".
type Config struct {
	// Allow lists the networks (CIDR) that management URLs, channel URLs and probed nodes may resolve to. Empty allows every unicast
	// address but loopback, which is allowed only when a listed network contains it. Some addresses are refused whatever is
	// listed; see [Guard].
	Allow []string `yaml:"allow"`
}

// DefaultConfig returns the configuration of a file that says nothing.
func DefaultConfig() Config { return Config{} }

// Validate checks the configuration; messages name the field.
func (c Config) Validate() error {
	_, err := c.prefixes()
	return err
}

const maxAllow = 256

func (c Config) prefixes() ([]netip.Prefix, error) {
	if len(c.Allow) > maxAllow {
		return nil, fmt.Errorf("upstream.allow: at most %d networks", maxAllow)
	}
	out := make([]netip.Prefix, 0, len(c.Allow))
	for i, s := range c.Allow {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("upstream.allow[%d]: must be a network such as 10.0.0.0/8 or fd00::/8", i)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// dialTimeout bounds name resolution and connecting together.
const dialTimeout = 5 * time.Second

// errRefused says that an address is not allowed. It carries no address, so that it can go anywhere.
var errRefused = errors.New("address refused")

// Guard dials TCP connections on behalf of URLs and addresses that come from outside, so that they cannot be used to reach
// what only the gateway may reach (server-side request forgery). It judges the resolved address inside the dialer, after
// name resolution and for each connection anew: a name that changes its address later gains nothing.
//
// Always refused: unspecified (0.0.0.0/8, ::), multicast, broadcast, link-local (with the metadata service 169.254.169.254)
// and the metadata services outside of it, fd00:ec2::254 and 100.100.100.200; also when such an IPv4 address, or a loopback one, is
// wrapped in IPv6 (mapped, NAT64 64:ff9b::/96 of RFC 6052, 6to4 2002::/16 of RFC 3056).
type Guard struct {
	allow    []netip.Prefix
	resolver *net.Resolver // nil: the system's
}

// NewGuard returns a guard for the configuration, or the error of Validate.
func NewGuard(c Config) (*Guard, error) {
	allow, err := c.prefixes()
	if err != nil {
		return nil, err
	}
	return &Guard{allow: allow}, nil
}

// Allowed reports whether a connection to the address may be made.
func (g *Guard) Allowed(a netip.Addr) bool {
	if !a.IsValid() {
		return false
	}
	a = a.WithZone("").Unmap()
	if inner, ok := embedded(a); ok && (never(inner) || inner.IsLoopback()) {
		return false
	}
	if never(a) {
		return false
	}
	for _, p := range g.allow {
		if p.Contains(a) {
			return true
		}
	}
	return len(g.allow) == 0 && !a.IsLoopback()
}

// never reports the addresses that no list can allow.
func never(a netip.Addr) bool {
	if a.Is4() {
		b := a.As4()
		return b[0] == 0 || b == [4]byte{255, 255, 255, 255} || b == [4]byte{100, 100, 100, 200} ||
			a.IsMulticast() || a.IsLinkLocalUnicast()
	}
	return a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() ||
		a == netip.AddrFrom16([16]byte{0: 0xfd, 2: 0x0e, 3: 0xc2, 14: 0x02, 15: 0x54})
}

// embedded returns the IPv4 address that a translating router would reach for this IPv6 address.
func embedded(a netip.Addr) (netip.Addr, bool) {
	if !a.Is6() {
		return netip.Addr{}, false
	}
	b := a.As16()
	switch {
	case [12]byte(b[:12]) == [12]byte{0x00, 0x64, 0xff, 0x9b}:
		return netip.AddrFrom4([4]byte(b[12:])), true
	case b[0] == 0x20 && b[1] == 0x02:
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return netip.Addr{}, false
}

// DialContext connects to host:port over TCP. The caller owns the connection. A refused address is recognised by its class,
// [ClassRefusedAddress]; every other failure is [ClassUnreachable].
func (g *Guard) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if !strings.HasPrefix(network, "tcp") {
		return nil, errRefused
	}
	d := net.Dialer{Timeout: dialTimeout, Resolver: g.resolver, Control: g.control}
	conn, err := d.DialContext(ctx, network, address)
	switch {
	case errors.Is(err, errRefused):
		return nil, &Error{Class: ClassRefusedAddress, Detail: "the address is not allowed by upstream.allow", cause: errRefused}
	case err != nil:
		return nil, &Error{Class: ClassUnreachable, Detail: dialDetail(err)}
	}
	return conn, nil
}

// control is called by the dialer with each resolved address before it connects.
func (g *Guard) control(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || !g.Allowed(ap.Addr()) {
		return errRefused
	}
	return nil
}

// dialDetail says in words of ours why a connection was not made.
func dialDetail(err error) string {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		return "the host name does not resolve"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no connection in time"
	}
	return "no connection"
}
