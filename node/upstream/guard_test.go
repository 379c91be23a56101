package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestConfig(t *testing.T) {
	var c Config
	if err := yaml.Unmarshal([]byte(`allow: ["10.0.0.0/8", "fd00::/8"]`), &c); err != nil || len(c.Allow) != 2 {
		t.Fatalf("got %v, %v", c, err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "10.0.0.1", "10.0.0.0/33", "example.com", "::ffff:10.0.0.0/104"} {
		err := Config{Allow: []string{"10.0.0.0/8", bad}}.Validate()
		if err == nil || !strings.Contains(err.Error(), "upstream.allow[1]") {
			t.Errorf("%q: got %v", bad, err)
		}
	}
	if err := (Config{Allow: make([]string, 300)}).Validate(); err == nil {
		t.Error("300 networks are taken")
	}
}

func TestGuardAllowed(t *testing.T) {
	lists := map[string][]string{
		"none":     nil,
		"ten":      {"10.0.0.0/8", "fd00:20::/32"},
		"loopback": {"127.0.0.1/32", "::1/128"},
		"all":      {"0.0.0.0/0", "::/0"},
	}
	tests := []struct {
		address string
		allowed string // names of the lists that allow it
	}{
		{"10.1.2.3", "none ten all"},
		{"::ffff:10.1.2.3", "none ten all"},
		{"192.168.1.1", "none all"},
		{"8.8.8.8", "none all"},
		{"fd00:20::7", "none ten all"},
		{"2001:db8::1", "none all"},
		{"127.0.0.1", "loopback all"},
		{"127.0.0.2", "all"},
		{"::1", "loopback all"},
		{"::ffff:127.0.0.1", "loopback all"},
		{"169.254.169.254", ""},
		{"169.254.1.1", ""},
		{"::ffff:169.254.169.254", ""},
		{"64:ff9b::a9fe:a9fe", ""}, // NAT64 of 169.254.169.254
		{"64:ff9b::7f00:1", ""},    // NAT64 of 127.0.0.1
		{"64:ff9b::a01:203", "none all"},
		{"2002:a9fe:a9fe::1", ""}, // 6to4 of 169.254.169.254
		{"2002:7f00:1::1", ""},
		{"fe80::1", ""},
		{"fe80::1%eth0", ""},
		{"fd00:ec2::254", ""},
		{"100.100.100.200", ""},
		{"100.100.100.201", "none all"},
		{"0.0.0.0", ""},
		{"0.1.2.3", ""},
		{"::", ""},
		{"224.0.0.1", ""},
		{"239.1.2.3", ""},
		{"ff02::1", ""},
		{"255.255.255.255", ""},
	}
	for name, allow := range lists {
		g, err := NewGuard(Config{Allow: allow})
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range tests {
			want := false
			for f := range strings.FieldsSeq(tt.allowed) {
				want = want || f == name
			}
			if got := g.Allowed(netip.MustParseAddr(tt.address)); got != want {
				t.Errorf("list %q, address %s: allowed is %v, want %v", name, tt.address, got, want)
			}
		}
		if g.Allowed(netip.Addr{}) {
			t.Errorf("list %q allows no address at all", name)
		}
	}
}

// The guard judges what a name resolves to, not the name.
func TestGuardDial(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	open, err := NewGuard(Config{})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		guard   *Guard
		network string
		address string
		want    Class
	}{
		{"listed loopback", loopback(t), "tcp", l.Addr().String(), ""},
		{"listed loopback by name", loopback(t), "tcp4", "localhost:" + port, ""},
		{"loopback not listed", open, "tcp", l.Addr().String(), ClassRefusedAddress},
		{"name that resolves to loopback", open, "tcp", "localhost:" + port, ClassRefusedAddress},
		{"mapped loopback", open, "tcp", "[::ffff:127.0.0.1]:" + port, ClassRefusedAddress},
		{"metadata service", loopback(t), "tcp", "169.254.169.254:80", ClassRefusedAddress},
		{"unspecified means loopback to the kernel", open, "tcp", "0.0.0.0:" + port, ClassRefusedAddress},
		{"nobody listens", loopback(t), "tcp", closed.Addr().String(), ClassUnreachable},
		{"name that does not exist", open, "tcp", "no-such-host.invalid:1883", ClassUnreachable},
		{"no port", open, "tcp", "10.0.0.1", ClassUnreachable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := tt.guard.DialContext(t.Context(), tt.network, tt.address)
			if conn != nil {
				conn.Close()
			}
			if ClassOf(err) != tt.want {
				t.Fatalf("got %v, want class %q", err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), "127.0.0.1") || strings.Contains(err.Error(), port)) {
				t.Errorf("error tells the address: %v", err)
			}
		})
	}
	if _, err := open.DialContext(context.Background(), "udp", "10.0.0.1:53"); !errors.Is(err, errRefused) {
		t.Errorf("udp: got %v", err)
	}
}
