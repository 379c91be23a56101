package peer

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"turnout/fsm"
)

// gossipLabel keeps gossip of other programs away.
const gossipLabel = "turnout"

// meta is what a gateway says about itself in gossip; memberlist carries at most 512 bytes.
type meta struct {
	ID      fsm.GatewayID `cbor:"1,keyasint"`
	Cluster string        `cbor:"2,keyasint,omitempty"` // empty while it belongs to none
	Expect  int           `cbor:"3,keyasint"`
	Address string        `cbor:"4,keyasint"` // of the peer port
	Name    string        `cbor:"5,keyasint,omitempty"`
	Zone    string        `cbor:"6,keyasint,omitempty"`
	Release string        `cbor:"7,keyasint,omitempty"`
}

// Texts for people are cut in gossip so that meta always fits; the roster has them whole.
const (
	maxMetaName    = 60
	maxMetaRelease = 32
)

func encodeMeta(m meta) ([]byte, error) {
	m.Name, m.Zone, m.Release = cut(m.Name, maxMetaName), cut(m.Zone, maxMetaName), cut(m.Release, maxMetaRelease)
	b, err := wireEncoding.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode meta: %w", err)
	}
	if len(b) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("encode meta: %d bytes exceed %d; use a shorter advertise", len(b), memberlist.MetaMaxSize)
	}
	return b, nil
}

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}

// decodeMeta reads what a stranger wrote.
func decodeMeta(b []byte) (meta, error) {
	var m meta
	if len(b) > memberlist.MetaMaxSize {
		return m, errors.New("decode meta: too long")
	}
	if err := wireDecoding.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("decode meta: %w", err)
	}
	if !uuidPattern.MatchString(string(m.ID)) || m.Cluster != "" && !uuidPattern.MatchString(m.Cluster) {
		return m, errors.New("decode meta: ids are not UUIDs")
	}
	if len(m.Address) > maxAdvertise || checkAddress(m.Address) != nil {
		return m, errors.New("decode meta: no address")
	}
	return m, nil
}

// member is a gateway that gossip knows or knew.
type member struct {
	meta
	gossip string // address of its gossip
	alive  bool   // false: failed or left
}

// gossip is the membership of this gateway in memberlist. It only ever informs: nothing follows from it but where to dial.
type gossip struct {
	list    *memberlist.Memberlist
	address string // where the others reach this gateway's gossip
	logger  *slog.Logger
	cluster func() string
	own     atomic.Pointer[[]byte] // encoded meta
	changed chan struct{}          // capacity 1: something happened

	mu   sync.Mutex // guards seen; taken under memberlist's lock, so never held while calling memberlist
	seen map[fsm.GatewayID]member
}

// maxSeen bounds the memory that strangers can take with invented ids.
const maxSeen = 4096

// gossipOptions are what openGossip needs.
type gossipOptions struct {
	config  *Config
	probe   time.Duration
	own     meta
	cluster func() string
	logger  *slog.Logger
	ctx     context.Context // ends dials
}

func openGossip(o gossipOptions) (*gossip, error) {
	keyring, err := loadKeys(o.config.GossipKeysFile)
	if err != nil {
		return nil, err
	}
	g := &gossip{
		logger: o.logger.With("part", "gossip"), cluster: o.cluster,
		changed: make(chan struct{}, 1), seen: map[fsm.GatewayID]member{},
	}
	encoded, err := encodeMeta(o.own)
	if err != nil {
		return nil, err
	}
	g.own.Store(&encoded)
	bind, err := net.ResolveTCPAddr("tcp", o.config.GossipAddress)
	if err != nil {
		return nil, fmt.Errorf("resolve gossip_address: %w", err)
	}
	host := "0.0.0.0"
	if bind.IP != nil {
		host = bind.IP.String()
	}
	lines := newLineLogger(g.logger)
	transport, err := gossipTransport(&memberlist.NetTransportConfig{BindAddrs: []string{host}, BindPort: bind.Port, Logger: lines})
	if err != nil {
		return nil, err
	}
	c := memberlist.DefaultLANConfig()
	c.Name = string(o.own.ID)
	c.Label = gossipLabel
	c.Transport = &cancelableTransport{NetTransport: transport, ctx: o.ctx}
	c.BindAddr, c.BindPort = host, transport.GetAutoBindPort()
	c.AdvertiseAddr, c.AdvertisePort = "", c.BindPort
	if o.config.GossipAdvertise != "" {
		a, err := net.ResolveTCPAddr("tcp", o.config.GossipAdvertise)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("resolve gossip_advertise: %w", err), transport.Shutdown())
		}
		c.AdvertiseAddr = a.IP.String()
		if a.Port != 0 {
			c.AdvertisePort = a.Port
		}
	}
	ip, advertisedPort, err := transport.FinalAdvertiseAddr(c.AdvertiseAddr, c.AdvertisePort)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("resolve gossip address: %w; write gossip_advertise", err), transport.Shutdown())
	}
	g.address = net.JoinHostPort(ip.String(), strconv.Itoa(advertisedPort))
	c.Keyring = keyring
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.TCPTimeout = 5 * time.Second
	c.ProbeInterval, c.ProbeTimeout = o.probe, o.probe/2
	c.GossipInterval = o.probe / 5
	c.PushPullInterval = 30 * o.probe
	c.DeadNodeReclaimTime = 30 * o.probe
	c.Logger = lines
	c.Delegate, c.Events, c.Alive, c.Merge, c.Conflict = g, g, g, g, g
	g.list, err = memberlist.Create(c)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start gossip: %w", err), transport.Shutdown())
	}
	return g, nil
}

// gossipTransport listens on UDP and TCP at one port. With port 0 the kernel chooses for one of them, and the other may be taken.
func gossipTransport(c *memberlist.NetTransportConfig) (*memberlist.NetTransport, error) {
	tries := 1
	if c.BindPort == 0 {
		tries = 20
	}
	var err error
	for range tries {
		var t *memberlist.NetTransport
		if t, err = memberlist.NewNetTransport(c); err == nil {
			return t, nil
		}
	}
	return nil, fmt.Errorf("listen gossip: %w", err)
}

// cancelableTransport ends dials with the Peer; memberlist alone would wait for its timeout.
type cancelableTransport struct {
	*memberlist.NetTransport
	ctx context.Context
}

// DialTimeout implements memberlist.Transport.
func (t *cancelableTransport) DialTimeout(address string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	return d.DialContext(t.ctx, "tcp", address)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *cancelableTransport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// loadKeys reads the gossip keys, nil without a file.
func loadKeys(path string) (*memberlist.Keyring, error) {
	if path == "" {
		return nil, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read gossip_keys_file: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("read gossip_keys_file: %s is open to others; chmod 600 it", path)
	}
	b, err := readBounded(path, 16<<10)
	if err != nil {
		return nil, fmt.Errorf("read gossip_keys_file: %w", err)
	}
	var keys [][]byte
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(text)
		if err != nil || memberlist.ValidateKey(key) != nil {
			return nil, fmt.Errorf("read gossip_keys_file: line %d: want 16, 24 or 32 bytes in base64", n)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("read gossip_keys_file: no key")
	}
	ring, err := memberlist.NewKeyring(keys, keys[0])
	if err != nil {
		return nil, fmt.Errorf("read gossip_keys_file: %w", err)
	}
	return ring, nil
}

// members returns every gateway that was ever seen in gossip, this one included, sorted by id. It is a copy of what the events
// brought: memberlist's own list is changed by memberlist while one reads it.
func (g *gossip) members() []member {
	g.mu.Lock()
	out := slices.Collect(maps.Values(g.seen))
	g.mu.Unlock()
	slices.SortFunc(out, func(a, b member) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// alive returns the gateways that gossip thinks are up.
func (g *gossip) alive() []member {
	return slices.DeleteFunc(g.members(), func(m member) bool { return !m.alive })
}

// announce puts new meta in place and tells the others; it waits at most d for that.
func (g *gossip) announce(m meta, d time.Duration) error {
	b, err := encodeMeta(m)
	if err != nil {
		return err
	}
	g.own.Store(&b)
	if err := g.list.UpdateNode(d); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	return nil
}

// find returns what gossip last said of a gateway.
func (g *gossip) find(id fsm.GatewayID) (member, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m, ok := g.seen[id]
	return m, ok
}

// close leaves, so that the others know that this gateway did not fail, and stops.
func (g *gossip) close(wait time.Duration) error {
	if err := g.list.Leave(wait); err != nil {
		g.logger.Info("gossip not told of leaving", "error", err)
	}
	if err := g.list.Shutdown(); err != nil {
		return fmt.Errorf("stop gossip: %w", err)
	}
	return nil
}

// note is called by memberlist with its lock held: it must not call back and must not block.
func (g *gossip) note(n *memberlist.Node, alive bool) {
	if m, err := decodeMeta(n.Meta); err == nil {
		g.mu.Lock()
		if _, known := g.seen[m.ID]; known || g.room() {
			g.seen[m.ID] = member{meta: m, gossip: n.Address(), alive: alive}
		}
		g.mu.Unlock()
	}
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

// room makes place for one more gateway, that of one that is gone if need be. The caller holds g.mu.
func (g *gossip) room() bool {
	if len(g.seen) < maxSeen {
		return true
	}
	for id, m := range g.seen {
		if !m.alive {
			delete(g.seen, id)
			return true
		}
	}
	return false
}

// NotifyJoin implements memberlist.EventDelegate.
func (g *gossip) NotifyJoin(n *memberlist.Node) { g.note(n, true) }

// NotifyLeave implements memberlist.EventDelegate. memberlist says it of gateways that left and of those that failed.
func (g *gossip) NotifyLeave(n *memberlist.Node) { g.note(n, false) }

// NotifyUpdate implements memberlist.EventDelegate.
func (g *gossip) NotifyUpdate(n *memberlist.Node) { g.note(n, true) }

// NotifyAlive implements memberlist.AliveDelegate: gateways of another cluster do not get in.
func (g *gossip) NotifyAlive(n *memberlist.Node) error {
	m, err := decodeMeta(n.Meta)
	if err != nil {
		return err
	}
	if string(m.ID) != n.Name {
		return errors.New("name is not its gateway's id")
	}
	if mine := g.cluster(); mine != "" && m.Cluster != "" && m.Cluster != mine {
		return errors.New("belongs to another cluster of gateways")
	}
	return nil
}

// NotifyMerge implements memberlist.MergeDelegate: a join between two clusters fails as a whole, so that it is noticed.
func (g *gossip) NotifyMerge(nodes []*memberlist.Node) error {
	mine := g.cluster()
	for _, n := range nodes {
		m, err := decodeMeta(n.Meta)
		if err == nil && n.State == memberlist.StateAlive && mine != "" && m.Cluster != "" && m.Cluster != mine {
			return errors.New("belongs to another cluster of gateways")
		}
	}
	return nil
}

// NotifyConflict implements memberlist.ConflictDelegate.
func (g *gossip) NotifyConflict(have, other *memberlist.Node) {
	g.logger.Error("two gateways with one id: a data directory was copied", "id", have.Name, "address", have.Address(), "other", other.Address())
}

// NodeMeta implements memberlist.Delegate.
func (g *gossip) NodeMeta(int) []byte { return *g.own.Load() }

// NotifyMsg implements memberlist.Delegate.
func (g *gossip) NotifyMsg([]byte) {}

// GetBroadcasts implements memberlist.Delegate.
func (g *gossip) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate.
func (g *gossip) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (g *gossip) MergeRemoteState([]byte, bool) {}
