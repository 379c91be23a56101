package fsm

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"
)

// DefaultSpec returns the spec that an operator's words are laid over.
func DefaultSpec() ClusterSpec {
	return ClusterSpec{
		Driver: DriverEMQX, PollSeconds: 5, RemoveAfter: 12, Port: 1883, Weight: 1,
		Ring:    RingSpec{Algorithm: RingAlgorithm1, Partitions: 4093, Replication: 40, LoadPercent: 125},
		Channel: ChannelSpec{Topic: "devices/{key}/commands", QoS: 1, MaxBytes: 64 << 10},
	}
}

func invalid(field, format string, args ...any) error {
	return NewError(CodeInvalid, field, format, args...)
}

// Validate checks the spec by itself. Errors are of type *Error and name the field and its bound.
func (s *ClusterSpec) Validate() error {
	switch s.Driver {
	case DriverStatic:
		if len(s.Addresses) == 0 {
			return invalid("addresses", "driver %q needs at least one node with its address", DriverStatic)
		}
	case DriverEMQX:
		if len(s.ManagementURLs) == 0 {
			return invalid("management_urls", "driver %q needs at least one management URL", DriverEMQX)
		}
	default:
		return invalid("driver", "must be %q or %q", DriverStatic, DriverEMQX)
	}
	if len(s.ManagementURLs) > 16 {
		return invalid("management_urls", "at most 16")
	}
	for i, u := range s.ManagementURLs {
		if err := checkURL(u, "http", "https"); err != nil {
			return invalid(fmt.Sprintf("management_urls[%d]", i), "%v", err)
		}
	}
	if err := checkCredential(s.Credential); err != nil {
		return invalid("credential", "%v", err)
	}
	if s.PollSeconds < 1 || s.PollSeconds > 3600 {
		return invalid("poll_seconds", "must be 1 to 3600")
	}
	if s.RemoveAfter < 2 || s.RemoveAfter > 1000 {
		return invalid("remove_after", "must be 2 to 1000 polls")
	}
	if s.Port == 0 {
		return invalid("port", "must be 1 to 65535")
	}
	if len(s.Addresses) > MaxClusterNodes {
		return invalid("addresses", "at most %d nodes", MaxClusterNodes)
	}
	for name, addr := range s.Addresses {
		if !validText(string(name), MaxNameBytes) {
			return invalid("addresses", "node names are 1 to %d bytes of printable UTF-8", MaxNameBytes)
		}
		if err := checkHostPort(addr); err != nil {
			return invalid("addresses", "%v", err)
		}
	}
	if s.Weight > 1_000_000 {
		return invalid("weight", "must be 0 to 1000000")
	}
	if err := s.Ring.validate(); err != nil {
		return err
	}
	return s.Channel.validate(s)
}

func (r *RingSpec) validate() error {
	switch {
	case r.Algorithm != RingAlgorithm1:
		return invalid("ring.algorithm", "must be %d", RingAlgorithm1)
	case r.Partitions < 20*MaxClusterNodes || r.Partitions > 65536:
		return invalid("ring.partitions", "must be %d to 65536", 20*MaxClusterNodes)
	case r.Replication < 1 || r.Replication > 1000:
		return invalid("ring.replication", "must be 1 to 1000")
	case r.LoadPercent < 110 || r.LoadPercent > 200:
		return invalid("ring.load_percent", "must be 110 to 200")
	}
	return nil
}

func (c *ChannelSpec) validate(s *ClusterSpec) error {
	// A channel that is not in use is stored all the same, so what may not be stored is refused for it too.
	if err := checkCredential(c.Credential); err != nil {
		return invalid("channel.credential", "%v", err)
	}
	if c.QoS > 1 {
		return invalid("channel.qos", "must be 0 or 1")
	}
	if c.Topic != "" && (!validText(c.Topic, 1024) || strings.ContainsAny(c.Topic, "+#") || !strings.Contains(c.Topic, "{key}")) {
		return invalid("channel.topic", "must be a topic name without wildcards that contains {key}, at most 1024 bytes")
	}
	if c.MaxBytes > 1<<20 {
		return invalid("channel.max_bytes", "must be 1 to %d", 1<<20)
	}
	switch c.Kind {
	case ChannelNone:
		if c.URL != "" {
			if err := checkURL(c.URL, "http", "https", "mqtt", "mqtts"); err != nil {
				return invalid("channel.url", "%v", err)
			}
		}
		return nil
	case ChannelEMQX:
		if c.URL == "" && s.Driver != DriverEMQX {
			return invalid("channel.url", "needed, because the cluster's driver is not %q", DriverEMQX)
		}
		if c.URL != "" {
			if err := checkURL(c.URL, "http", "https"); err != nil {
				return invalid("channel.url", "%v", err)
			}
		}
	case ChannelMQTT:
		if c.URL != "" {
			if err := checkURL(c.URL, "mqtt", "mqtts"); err != nil {
				return invalid("channel.url", "%v", err)
			}
		}
	default:
		return invalid("channel.kind", "must be %q or %q, or left out", ChannelEMQX, ChannelMQTT)
	}
	if c.Topic == "" {
		return invalid("channel.topic", "must be a topic name without wildcards that contains {key}, at most 1024 bytes")
	}
	if c.MaxBytes == 0 {
		return invalid("channel.max_bytes", "must be 1 to %d", 1<<20)
	}
	return nil
}

// Validate implements Command.
func (c *Init) Validate() error {
	s := &c.Settings
	if !validText(s.ClusterID, 64) {
		return invalid("cluster_id", "must be 1 to 64 bytes")
	}
	if len(s.Secret) < 16 || len(s.Secret) > 64 {
		return invalid("secret", "must be 16 to 64 bytes")
	}
	if !validText(s.Identity, 256) {
		return invalid("identity", "must be 1 to 256 bytes")
	}
	return s.Unknown.validate()
}

func (p *Policy) validate() error {
	switch p.Kind {
	case PolicyRefuse, PolicyWeighted:
		if p.Cluster != "" {
			return invalid("unknown.cluster", "only policy %q names a cluster", PolicyCluster)
		}
	case PolicyCluster:
		if !p.Cluster.Valid() {
			return invalid("unknown.cluster", "policy %q needs the name of a cluster", PolicyCluster)
		}
	default:
		return invalid("unknown.policy", "must be %q, %q or %q", PolicyRefuse, PolicyCluster, PolicyWeighted)
	}
	return nil
}

// Validate implements Command.
func (c *PutCluster) Validate() error {
	if err := checkCluster(c.Name); err != nil {
		return err
	}
	return c.Spec.Validate()
}

// Validate implements Command.
func (c *RemoveCluster) Validate() error { return checkCluster(c.Name) }

// Validate implements Command.
func (c *UpdateNodes) Validate() error {
	if err := checkCluster(c.Cluster); err != nil {
		return err
	}
	if len(c.Upsert)+len(c.Remove) > 2*MaxClusterNodes {
		return invalid("nodes", "at most %d in one change", 2*MaxClusterNodes)
	}
	for i, n := range c.Upsert {
		if !validText(string(n.Name), MaxNameBytes) {
			return invalid(fmt.Sprintf("nodes[%d].name", i), "must be 1 to %d bytes of printable UTF-8", MaxNameBytes)
		}
		if n.Address != "" {
			if err := checkHostPort(n.Address); err != nil {
				return invalid(fmt.Sprintf("nodes[%d].address", i), "%v", err)
			}
		}
		if n.State < NodeUp || n.State > NodeSuspect {
			return invalid(fmt.Sprintf("nodes[%d].state", i), "is not a known state")
		}
	}
	for i, name := range c.Remove {
		if !validText(string(name), MaxNameBytes) {
			return invalid(fmt.Sprintf("remove[%d]", i), "must be 1 to %d bytes of printable UTF-8", MaxNameBytes)
		}
	}
	return nil
}

// Validate implements Command.
func (c *NoteDiscovery) Validate() error {
	if c.Trouble != "" && !validText(c.Trouble, MaxNameBytes) {
		return invalid("trouble", "must be at most %d bytes of printable UTF-8", MaxNameBytes)
	}
	return checkCluster(c.Cluster)
}

// Validate implements Command.
func (c *SetNode) Validate() error {
	if !validText(string(c.Node), MaxNameBytes) {
		return invalid("node", "must be 1 to %d bytes of printable UTF-8", MaxNameBytes)
	}
	return checkCluster(c.Cluster)
}

// Validate implements Command.
func (c *PutDevices) Validate() error {
	if len(c.Changes) == 0 || len(c.Changes) > MaxBatch {
		return invalid("devices", "1 to %d in one batch", MaxBatch)
	}
	for i := range c.Changes {
		d := &c.Changes[i]
		if !d.Key.Valid() {
			return invalidKey(i)
		}
		if d.Cluster != nil && *d.Cluster != "" && !d.Cluster.Valid() {
			return &Error{Code: CodeInvalid, Field: "cluster", Item: i, Message: "is not the name of a cluster"}
		}
		if d.Pin != nil && *d.Pin != "" && !validText(string(*d.Pin), MaxNameBytes) {
			return &Error{Code: CodeInvalid, Field: "pin", Item: i, Message: "is not the name of a node"}
		}
	}
	return nil
}

// Validate implements Command.
func (c *RemoveDevices) Validate() error {
	if len(c.Keys) == 0 || len(c.Keys) > MaxBatch {
		return invalid("keys", "1 to %d in one batch", MaxBatch)
	}
	for i, key := range c.Keys {
		if !key.Valid() {
			return invalidKey(i)
		}
	}
	return nil
}

// Validate implements Command.
func (c *Bind) Validate() error {
	if len(c.Bindings) == 0 || len(c.Bindings) > MaxBatch {
		return invalid("bindings", "1 to %d in one batch", MaxBatch)
	}
	for i := range c.Bindings {
		if !c.Bindings[i].Key.Valid() {
			return invalidKey(i)
		}
	}
	return nil
}

// Validate implements Command.
func (c *PutSettings) Validate() error {
	if c.Identity != nil && !validText(*c.Identity, 256) {
		return invalid("identity", "must be 1 to 256 bytes")
	}
	if c.Unknown != nil {
		return c.Unknown.validate()
	}
	return nil
}

// Validate implements Command.
func (c *PutGateway) Validate() error {
	g := &c.Gateway
	switch {
	case !validText(string(g.ID), 64):
		return invalid("id", "must be 1 to 64 bytes")
	case !validText(g.Name, MaxNameBytes):
		return invalid("name", "must be 1 to %d bytes of printable UTF-8", MaxNameBytes)
	}
	optional := []struct{ field, text string }{{"zone", g.Zone}, {"api_address", g.APIAddress}, {"release", g.Release}}
	for _, o := range optional {
		if o.text != "" && !validText(o.text, MaxNameBytes) {
			return invalid(o.field, "must be at most %d bytes of printable UTF-8", MaxNameBytes)
		}
	}
	if err := checkHostPort(g.PeerAddress); err != nil {
		return invalid("peer_address", "%v", err)
	}
	return nil
}

// Validate implements Command.
func (c *RemoveGateway) Validate() error {
	if !validText(string(c.ID), 64) {
		return invalid("id", "must be 1 to 64 bytes")
	}
	return nil
}

func invalidKey(item int) error {
	return &Error{Code: CodeInvalid, Field: "key", Item: item, Message: fmt.Sprintf("must be 1 to %d bytes of UTF-8", MaxKeyBytes)}
}

func checkCluster(n ClusterName) error {
	if !n.Valid() {
		return invalid("name", "must be 1 to 63 of a-z, 0-9 and '-', not '-' at an end")
	}
	return nil
}

// validText reports whether s is 1 to most bytes of UTF-8 without control characters.
func validText(s string, most int) bool {
	return len(s) > 0 && len(s) <= most && utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }) < 0
}

func checkURL(s string, schemes ...string) error {
	if len(s) > MaxURLBytes {
		return fmt.Errorf("must be at most %d bytes", MaxURLBytes)
	}
	u, err := url.Parse(s)
	if err != nil || !utf8.ValidString(s) {
		return fmt.Errorf("is not a URL")
	}
	known := false
	for _, scheme := range schemes {
		known = known || u.Scheme == scheme
	}
	switch {
	case !known:
		return fmt.Errorf("must begin with %s://", strings.Join(schemes, ":// or "))
	case u.User != nil:
		return fmt.Errorf("must not carry a user name or password; name a credential instead")
	case u.Hostname() == "":
		return fmt.Errorf("must name a host")
	case u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("must not carry a query or a fragment")
	case u.Port() != "":
		return checkPort(u.Port())
	}
	return nil
}

func checkCredential(s string) error {
	if s == "" {
		return nil
	}
	if !validText(s, 1024) || !(strings.HasPrefix(s, "env:") && len(s) > 4 || strings.HasPrefix(s, "file:/")) {
		return fmt.Errorf("must be a reference, env:NAME or file:/path, never the secret itself")
	}
	return nil
}

func checkHostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || !validText(host, MaxNameBytes) || strings.Contains(host, " ") {
		return fmt.Errorf("must be host:port")
	}
	return checkPort(port)
}

func checkPort(port string) error {
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || len(port) > 5 { // zeros in front would count for nothing
		return fmt.Errorf("port must be 1 to 65535")
	}
	return nil
}
