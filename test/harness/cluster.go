package harness

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// ErrUnknownNode is returned for a node name that is not in the cluster.
var ErrUnknownNode = errors.New("unknown node")

// ClusterOptions describe a broker cluster.
type ClusterOptions struct {
	Name   string       // prefix of the node names: "west" gives "west-1@127.0.0.1", "west-2@127.0.0.1" …; required
	Nodes  int          // nodes to begin with, at least 1
	Logger *slog.Logger // nil discards
}

// Cluster is several Brokers that behave as one MQTT cluster: a client identifier is connected once in the whole
// cluster, a persistent session follows its client from node to node, and a message reaches the subscribers of every
// node. Shared subscriptions are shared per node, not per cluster. All node names carry the host 127.0.0.1; only
// Overrides tells where a node really listens.
type Cluster struct {
	name   string
	log    *slog.Logger
	domain *domain

	mu     sync.Mutex // serialises AddNode, RemoveNode and Close
	next   int
	closed bool
}

// NewCluster allocates a cluster with its nodes; Start opens them.
func NewCluster(o ClusterOptions) (*Cluster, error) {
	if o.Name == "" || o.Nodes < 1 {
		return nil, errors.New("check options: Name and at least one node are required")
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Cluster{name: o.Name, log: log, domain: newDomain()}
	for range o.Nodes {
		if _, err := c.newNode(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Cluster) newNode() (*Broker, error) {
	c.next++
	name := fmt.Sprintf("%s-%d@127.0.0.1", c.name, c.next)
	return newBroker(BrokerOptions{Name: name, Logger: c.log}, c.domain)
}

// Start starts every node. On an error the nodes already started stay up until Close.
func (c *Cluster) Start() error {
	for _, n := range c.Nodes() {
		if err := n.Start(); err != nil {
			return fmt.Errorf("start %s: %w", n.Name(), err)
		}
	}
	return nil
}

// Close closes every node. It is idempotent.
func (c *Cluster) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	var errs []error
	for _, n := range c.Nodes() {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}

// Name returns the cluster's name.
func (c *Cluster) Name() string { return c.name }

// Nodes returns the members in the order in which they joined, stopped ones included.
func (c *Cluster) Nodes() []*Broker { return c.domain.list() }

// Node returns the member of that name, nil if there is none.
func (c *Cluster) Node(name string) *Broker {
	for _, n := range c.Nodes() {
		if n.Name() == name {
			return n
		}
	}
	return nil
}

// AddNode adds a member with a name never used before in this cluster and starts it.
func (c *Cluster) AddNode() (*Broker, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.New("add node: cluster is closed")
	}
	n, err := c.newNode()
	if err != nil {
		return nil, fmt.Errorf("add node: %w", err)
	}
	if err := n.Start(); err != nil {
		_ = n.Close()
		return nil, fmt.Errorf("add node: %w", err)
	}
	return n, nil
}

// RemoveNode closes a member and takes it out of the cluster for good. The error is ErrUnknownNode or comes from
// closing it.
func (c *Cluster) RemoveNode(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.Node(name)
	if n == nil {
		return fmt.Errorf("remove node: %w", ErrUnknownNode)
	}
	if err := n.Close(); err != nil {
		return fmt.Errorf("remove node: %w", err)
	}
	return nil
}

// Overrides returns the table node name → host:port that an operator would enter for this cluster. Nodes that were
// never started are missing.
func (c *Cluster) Overrides() map[string]string {
	table := make(map[string]string)
	for _, n := range c.Nodes() {
		if address := n.Address(); address != "" {
			table[n.Name()] = address
		}
	}
	return table
}

// Publish publishes m to the subscribers on all running nodes and returns how many sessions (and groups of a shared
// subscription) matched, offline persistent ones included. The error is ErrStopped when no node runs, or a rejected
// topic.
func (c *Cluster) Publish(m Message) (matched int, err error) {
	running := 0
	for _, n := range c.Nodes() {
		count, err := n.Publish(m)
		if errors.Is(err, ErrStopped) {
			continue
		}
		if err != nil {
			return matched, err
		}
		running++
		matched += count
	}
	if running == 0 {
		return 0, fmt.Errorf("publish message: %w", ErrStopped)
	}
	return matched, nil
}

// ClientInfo is what the cluster knows about one session.
type ClientInfo struct {
	ClientID        string
	Username        string
	Node            string // node that holds the session
	Connected       bool   // false for the session of an offline persistent client
	ProtocolVersion byte
	CleanStart      bool
	KeepAlive       uint16
	ExpirySeconds   uint32 // MQTT 5.0 Session Expiry Interval of CONNECT
	Remote          string // host:port of the peer
	Created         time.Time
	ConnectedAt     time.Time
	DisconnectedAt  time.Time // zero while connected
	Subscriptions   int
}

// Client returns the session of a client identifier, connected or not.
func (c *Cluster) Client(clientID string) (ClientInfo, bool) {
	for _, n := range c.Nodes() {
		if info, ok := n.client(clientID); ok {
			return info, true
		}
	}
	return ClientInfo{}, false
}

func (b *Broker) client(id string) (ClientInfo, bool) {
	b.mu.Lock()
	if b.run == nil || b.run.sessions[id] == nil {
		b.mu.Unlock()
		return ClientInfo{}, false
	}
	s := b.run.sessions[id]
	cl := s.cl
	info := ClientInfo{
		ClientID: s.clientID, Username: s.username, Node: b.name, Connected: s.connected, ProtocolVersion: s.version,
		CleanStart: s.cleanStart, KeepAlive: s.keepAlive, ExpirySeconds: s.expiry, Remote: s.remote,
		Created: s.created, ConnectedAt: s.connectedAt,
	}
	if !s.connected {
		info.DisconnectedAt = s.disconnectedAt
	}
	b.mu.Unlock()
	info.Subscriptions = cl.State.Subscriptions.Len()
	return info, true
}

// Kick disconnects a client and destroys its session, wherever it is, as an operator's kick in EMQX does: the Will is
// published, a 5.0 client gets DISCONNECT 0x98. It reports whether there was such a session.
func (c *Cluster) Kick(clientID string) bool { return c.domain.kick(clientID) }

// SeenOn returns for each member how many CONNECT packets of clientID it accepted; members that accepted none are
// left out.
func (c *Cluster) SeenOn(clientID string) map[string]int {
	seen := make(map[string]int)
	for _, n := range c.Nodes() {
		if count := n.Seen(clientID); count > 0 {
			seen[n.Name()] = count
		}
	}
	return seen
}

// sessionCounts returns the sessions a node holds and how many of them are connected.
func (b *Broker) sessionCounts() (sessions, live int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.run == nil {
		return 0, 0
	}
	for _, s := range b.run.sessions {
		sessions++
		if s.connected {
			live++
		}
	}
	return sessions, live
}
