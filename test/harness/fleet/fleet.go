// Package fleet runs whole gateways inside one process, each with its own data directory, ports, Raft, gossip and admin API, for the
// demonstration program and the journeys. A gateway can be stopped and started again: it comes back with its ports and its data.
//
// The package refuses to reach into a gateway: what it learns, it learns through the admin API that every user has.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"turnout/api/client"
	"turnout/node"
	"turnout/test/harness"
)

// Options describe a fleet.
type Options struct {
	Gateways int
	Dir      string       // data directories are made below it
	Logger   *slog.Logger // nil discards
	// Configure may change a gateway's configuration before its first start; nil leaves the defaults.
	Configure func(i int, c *node.Config)
}

// Fleet is a cluster of gateways in this process.
type Fleet struct {
	gateways []*Gateway
}

// Gateway is one of them. Its methods may be called from any goroutine.
type Gateway struct {
	Name   string
	config node.Config
	log    *slog.Logger
	client *client.Client

	mu   sync.Mutex
	node *node.Node // nil while stopped
}

// Ports of one gateway, in the order of their use.
const portsEach = 4

// New allocates a fleet whose gateways found one cluster together; Start opens it.
func New(o Options) (*Fleet, error) {
	if o.Gateways < 1 {
		return nil, errors.New("check options: a fleet has at least one gateway")
	}
	ports, err := harness.FreePorts(o.Gateways * portsEach)
	if err != nil {
		return nil, err
	}
	var seeds []string
	for i := range o.Gateways {
		seeds = append(seeds, loopback(ports[i*portsEach+3]))
	}
	f := &Fleet{}
	for i := range o.Gateways {
		p := ports[i*portsEach:]
		c := node.DefaultConfig()
		c.Name = "gw-" + strconv.Itoa(i+1)
		c.DataDir = filepath.Join(o.Dir, c.Name)
		c.Listeners[0].Address = loopback(p[0])
		c.API.Address = loopback(p[1])
		c.Peer.Address = loopback(p[2])
		c.Peer.GossipAddress = loopback(p[3])
		c.Peer.Join = seeds
		c.Peer.Expect = min(o.Gateways, 3)
		if o.Gateways == 2 {
			c.Peer.Expect = 1
		}
		c.Upstream.Allow = []string{"127.0.0.0/8"}
		if o.Configure != nil {
			o.Configure(i, &c)
		}
		g, err := newGateway(c, o.Logger)
		if err != nil {
			return nil, err
		}
		f.gateways = append(f.gateways, g)
	}
	return f, nil
}

func newGateway(c node.Config, log *slog.Logger) (*Gateway, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	cl, err := client.New(client.Options{URL: "http://" + c.API.Address, Timeout: 15 * time.Second})
	if err != nil {
		return nil, err
	}
	return &Gateway{Name: c.Name, config: c, log: log.With("gateway", c.Name), client: cl}, nil
}

func loopback(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// Start opens every gateway and waits until all are ready.
func (f *Fleet) Start(ctx context.Context) error {
	for _, g := range f.gateways {
		if err := g.Start(ctx); err != nil {
			return err
		}
	}
	return f.WaitReady(ctx)
}

// WaitReady waits until every running gateway says that it is ready and a leader is known to it.
func (f *Fleet) WaitReady(ctx context.Context) error {
	for _, g := range f.gateways {
		if !g.Running() {
			continue
		}
		err := harness.Eventually(ctx, g.Name+" to be ready", func() (bool, string) {
			r, err := g.client.Ready(ctx)
			if err != nil {
				return false, err.Error()
			}
			return r.Ready, strings.Join(r.Reasons, ", ")
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Gateways returns all gateways, stopped ones included.
func (f *Fleet) Gateways() []*Gateway { return f.gateways }

// Leader waits until the running gateways agree on a leader and returns it.
func (f *Fleet) Leader(ctx context.Context) (*Gateway, error) {
	var leader *Gateway
	err := harness.Eventually(ctx, "one leader", func() (bool, string) {
		var found *Gateway
		for _, g := range f.gateways {
			if !g.Running() {
				continue
			}
			s, err := g.client.Status(ctx)
			if err != nil {
				return false, err.Error()
			}
			if s.State == "leader" {
				if found != nil {
					return false, "two leaders"
				}
				found = g
			}
		}
		leader = found
		return found != nil, "no gateway leads"
	})
	return leader, err
}

// Close stops every gateway. It is idempotent.
func (f *Fleet) Close(ctx context.Context) error {
	var errs []error
	for _, g := range f.gateways {
		errs = append(errs, g.Stop(ctx))
	}
	return errors.Join(errs...)
}

// Start opens the gateway, the first time or again with the same ports and data.
func (g *Gateway) Start(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.node != nil {
		return nil
	}
	registry := prometheus.NewRegistry()
	n, err := node.New(g.config, node.Options{Logger: g.log, Registerer: registry, Gatherer: registry, Release: "in-process"})
	if err != nil {
		return fmt.Errorf("new %s: %w", g.Name, err)
	}
	if err := n.Open(ctx); err != nil {
		return errors.Join(fmt.Errorf("open %s: %w", g.Name, err), n.Close(ctx))
	}
	g.node = n
	return nil
}

// Stop closes the gateway the way SIGTERM does. It is idempotent.
func (g *Gateway) Stop(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.node == nil {
		return nil
	}
	err := g.node.Close(ctx)
	g.node = nil
	return err
}

// Running reports whether the gateway is open.
func (g *Gateway) Running() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.node != nil
}

// MQTT returns host:port of the device listener.
func (g *Gateway) MQTT() string { return g.config.Listeners[0].Address }

// API returns a client of the gateway's admin API.
func (g *Gateway) API() *client.Client { return g.client }

// URL returns the address of the admin API.
func (g *Gateway) URL() string { return "http://" + g.config.API.Address }
