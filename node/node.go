package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"turnout/api"
	"turnout/fsm"
	"turnout/node/peer"
	"turnout/node/upstream"
	"turnout/proxy"
)

// Options are what a Node gets from the process around it.
type Options struct {
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // needed: every part registers its metrics there
	Gatherer   prometheus.Gatherer   // needed: what /metrics serves
	Release    string                // version of the binary
}

// Node is one gateway.
type Node struct {
	config    Config
	log       *slog.Logger
	tables    *fsm.Tables
	peer      *peer.Peer
	manager   *upstream.Manager
	commander *upstream.Commander
	gateway   *proxy.Gateway
	api       *api.API
	identity  *identityAlarm

	duties context.CancelFunc // ends the leader duties; nil before Open
	wg     sync.WaitGroup     // of the duties
	once   sync.Once
	closed error

	serving  atomic.Bool // the listeners for devices are open
	stopping atomic.Bool // Close has begun
}

// Addresses are where an open gateway listens, as "host:port".
type Addresses struct {
	Listeners         map[string]string // of devices, by name
	API, Peer, Gossip string
}

// New allocates a gateway. It makes the data directory and reads the files that the configuration names, and opens nothing.
func New(c Config, o Options) (*Node, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	n := &Node{config: c, log: o.Logger, tables: fsm.New()}
	var err error
	if n.identity, err = newIdentityAlarm(o.Registerer); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	part := func(name string) *slog.Logger { return o.Logger.With("part", name) }
	n.peer, err = peer.New(peer.Options{
		Config: c.Peer, DataDir: c.DataDir, Name: c.Name, Zone: c.Zone, Release: o.Release, APIAddress: c.advertisedAPI(),
		Tables: n.tables, Seed: fsm.Settings{Identity: c.Bootstrap.Identity, Unknown: *c.Bootstrap.policy()},
		Logger: part("peer"), Registerer: o.Registerer,
	})
	if err != nil {
		return nil, err
	}
	guard, err := upstream.NewGuard(c.Upstream)
	if err != nil {
		return nil, err
	}
	metrics := upstream.NewMetrics(o.Registerer)
	n.manager = upstream.NewManager(upstream.Options{
		Tables: n.tables, Proposer: n.peer, Guard: guard, Logger: part("discovery"), Metrics: metrics, Now: time.Now,
	})
	n.commander = upstream.NewCommander(upstream.CommanderOptions{
		Tables: n.tables, Guard: guard, Gateway: n.peer.ID, Logger: part("commands"), Metrics: metrics, Now: time.Now,
	})
	n.gateway, err = proxy.New(c.Config, proxy.Options{
		Tables: n.tables, Proposer: n.peer, CaughtUp: n.peer.CaughtUp, Logger: part("proxy"), Registerer: o.Registerer,
	})
	if err != nil {
		return nil, err
	}
	n.api, err = api.New(api.Options{
		Config: c.API, Tables: n.tables, Proposer: n.peer, Peers: peers{n.peer}, Router: router{n.gateway, n.tables},
		Commander: commander{n.commander, n.tables, n.gateway}, CheckIdentity: checkIdentity, Ready: n.ready, Release: o.Release,
		Logger: part("api"), Audit: o.Logger.With("part", "audit"), Registerer: o.Registerer, Gatherer: o.Gatherer,
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Open starts the gateway. It returns when every port is bound, which may be long before there is a leader. When it fails, Close
// must still be called.
func (n *Node) Open(ctx context.Context) error {
	if err := n.peer.Open(ctx); err != nil {
		return fmt.Errorf("open peer: %w", err)
	}
	if err := n.api.Open(ctx); err != nil {
		return err
	}
	n.commander.Open()
	if err := n.gateway.Open(ctx); err != nil {
		return err
	}
	n.serving.Store(true)
	duties, cancel := context.WithCancel(context.Background())
	n.duties = cancel
	n.wg.Go(func() { n.watchIdentity(duties) })
	n.wg.Go(func() {
		n.peer.RunWhileLeader(duties, func(ctx context.Context) {
			if err := n.manager.Run(ctx); err != nil {
				n.log.Error("discovery ended", "error", err)
			}
		})
	})
	return nil
}

// requestsShare bounds how long requests of the admin API get to end, so that a long import leaves the peers time for a goodbye.
const requestsShare = 10 * time.Second

// Close stops the gateway: devices first, peers last. It is idempotent; ctx bounds the wait for connections and requests.
func (n *Node) Close(ctx context.Context) error {
	n.once.Do(func() {
		n.stopping.Store(true) // while the API still answers the load balancer's probe
		requests, cancel := context.WithTimeout(ctx, requestsShare)
		defer cancel()
		errs := []error{n.gateway.Close(ctx), n.api.Close(requests)}
		if n.duties != nil {
			n.duties()
			n.wg.Wait()
		}
		n.commander.Close()
		n.closed = errors.Join(append(errs, n.peer.Close())...)
	})
	return n.closed
}

// Reload reads again what can change while the gateway runs: the API's tokens and certificates.
func (n *Node) Reload() error { return n.api.Reload() }

// Addresses returns where the gateway listens; what is not open is empty.
func (n *Node) Addresses() Addresses {
	a := Addresses{Listeners: map[string]string{}, Peer: n.peer.Addr(), Gossip: n.peer.GossipAddr(), API: text(n.api.Addr())}
	for name, addr := range n.gateway.Addrs() {
		a.Listeners[name] = text(addr)
	}
	return a
}

func text(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}

// ready returns why the gateway should get no devices, nothing when it should.
func (n *Node) ready() []string {
	var why []string
	switch {
	case n.stopping.Load():
		why = append(why, "the gateway is stopping")
	case !n.serving.Load():
		why = append(why, "the listeners for devices are not open yet")
	}
	status := n.peer.Status()
	switch {
	case n.tables.Topology().Settings.ClusterID == "":
		reason := "not a member of a cluster of gateways yet"
		if status.Problem != "" {
			reason += ": " + status.Problem
		}
		why = append(why, reason)
	case n.tables.Halted() != nil:
		why = append(why, "the log holds an entry that this release does not know")
	case !status.Complete:
		why = append(why, "the tables have not caught up with the leader since the start")
	case status.State == peer.StateRemoved:
		why = append(why, "this gateway was removed from its cluster of gateways: its tables follow no more")
	case !status.Ready:
		// Whoever writes with wait=all asks the gateways of the roster: one that is not in it must not get devices.
		why = append(why, "the roster does not have this gateway as it is yet")
	}
	return why
}

// advertisedAPI is how other people reach the admin API: the configured address, with the peer port's host in place of a wildcard.
func (c *Config) advertisedAPI() string {
	host, port, err := net.SplitHostPort(c.API.Address)
	if err != nil || port == "0" {
		return ""
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return c.API.Address
	}
	for _, address := range []string{c.Peer.Advertise, c.Peer.Address} {
		h, _, err := net.SplitHostPort(address)
		if ip := net.ParseIP(h); err == nil && h != "" && (ip == nil || !ip.IsUnspecified()) {
			return net.JoinHostPort(h, port)
		}
	}
	return c.API.Address
}

func checkIdentity(template string) error {
	_, err := proxy.ParseIdentity(template)
	return err
}
