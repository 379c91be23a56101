package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"turnout/fsm"
	"turnout/proxy/relay"
)

const (
	// connBuffer is the size of pooled buffers: nearly every CONNECT and CONNACK fits.
	connBuffer = 4 << 10
	// maxEarlyBytes bounds what is held of a device between its CONNECT and the CONNACK.
	maxEarlyBytes = 64 << 10
)

// Options are what a Gateway works with. Tables and Proposer are needed.
type Options struct {
	Tables   *fsm.Tables
	Proposer Proposer
	// CaughtUp tells whether the tables have caught up with the cluster since the start. Until then a device without a record is not known
	// to be new: it is told to come again. nil: they have.
	CaughtUp   func() bool
	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: metrics are kept and shown nowhere
	Now        func() time.Time      // clock of the cool-downs; nil: time.Now
}

// Gateway is the data plane of one process.
type Gateway struct {
	cfg      Config
	log      *slog.Logger
	tables   *fsm.Tables
	caughtUp func() bool
	metrics  *Metrics
	views    *views
	health   *health
	sessions *registry
	tracker  *tracker
	bindings *bindingWriter
	engine   relay.Engine
	dialer   net.Dialer
	buffers  sync.Pool     // of *[]byte, connBuffer long
	grace    time.Duration // closeGrace

	ctx     context.Context // ends when Close begins
	cancel  context.CancelFunc
	serving sync.WaitGroup // accept loops, connections that are not in the relay
	behind  sync.WaitGroup // observer and binding writer

	mu        sync.Mutex // guards the two below
	listeners []*listener
	state     int
}

// States of a Gateway.
const (
	stateNew = iota
	stateOpen
	stateClosed
)

// New checks the configuration and allocates. The error names a field of Config, or a metric that is registered already.
func New(cfg Config, o Options) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if o.Tables == nil || o.Proposer == nil {
		return nil, errors.New("proxy: needs tables and a proposer")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.CaughtUp == nil {
		o.CaughtUp = func() bool { return true }
	}
	m, err := NewMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	g := &Gateway{
		cfg: cfg, log: o.Logger, tables: o.Tables, caughtUp: o.CaughtUp, metrics: m, health: newHealth(o.Now), sessions: newRegistry(), tracker: newTracker(),
		bindings: newBindingWriter(o.Proposer, o.Logger, m.bindings), engine: relay.NewCopying(relay.Options{}),
		dialer: net.Dialer{KeepAlive: -1}, // the relay sets it
		grace:  closeGrace,
	}
	g.views = &views{tables: o.Tables, log: o.Logger, changed: g.viewChanged()}
	g.buffers.New = func() any {
		b := make([]byte, connBuffer)
		return &b
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g, g.registerGauges(o.Registerer)
}

func (g *Gateway) registerGauges(r prometheus.Registerer) error {
	bytes := func(direction string, get func() uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "turnout_relayed_bytes_total", Help: "Bytes carried after CONNACK, by direction.",
			ConstLabels: prometheus.Labels{"direction": direction},
		}, func() float64 { return float64(get()) })
	}
	return register(r,
		newSessionCollector(g.sessions, g.views),
		bytes("from_device", func() uint64 { n, _ := g.engine.Totals(); return n }),
		bytes("to_device", func() uint64 { _, n := g.engine.Totals(); return n }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "turnout_binding_queue", Help: "Bindings waiting to be written.",
		}, func() float64 { return float64(g.bindings.depth()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "turnout_nodes_cooling", Help: "Broker nodes whose last attempt from here failed.",
		}, func() float64 { return float64(g.health.ailing.Load()) }),
	)
}

// viewChanged returns what follows a change of the topology: nodes and clusters that are gone are forgotten.
func (g *Gateway) viewChanged() func(*view) {
	known := map[fsm.ClusterName]bool{}
	return func(v *view) {
		g.health.forget(func(id fsm.NodeID) bool { return v.topology.ClusterOfNode(id) != nil })
		for name := range known {
			if v.topology.Cluster(name) == nil {
				g.metrics.attempts.DeletePartialMatch(prometheus.Labels{"cluster": string(name)})
				delete(known, name)
			}
		}
		for _, c := range v.topology.Clusters {
			known[c.Name] = true
		}
	}
}

// Open binds the listeners and begins to serve. ctx bounds the binding only. When it fails nothing stays open.
func (g *Gateway) Open(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != stateNew {
		return errors.New("proxy: opened or closed already")
	}
	for _, cfg := range g.cfg.Listeners {
		l, err := listen(ctx, cfg, g.metrics)
		if err != nil {
			for _, l := range g.listeners {
				_ = l.ln.Close()
			}
			g.listeners = nil
			return fmt.Errorf("open listener %q: %w", cfg.Name, err)
		}
		g.listeners = append(g.listeners, l)
	}
	g.state = stateOpen
	g.views.get()
	g.behind.Go(func() { g.views.observe(g.ctx) })
	g.behind.Go(func() { g.bindings.run(g.ctx) })
	for _, l := range g.listeners {
		g.serving.Add(1)
		go g.accept(l)
		g.log.Info("listening", "listener", l.cfg.Name, "address", l.ln.Addr().String())
	}
	return nil
}

// Close stops accepting, closes every connection, writes the bindings that wait and returns when every goroutine has ended, or with
// the context's error (they then still end by themselves). It is idempotent.
func (g *Gateway) Close(ctx context.Context) error {
	g.mu.Lock()
	g.state = stateClosed
	for _, l := range g.listeners {
		_ = l.ln.Close()
	}
	g.mu.Unlock()
	g.cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.tracker.closeAll()
		g.serving.Wait() // from here on nobody starts a session
		g.sessions.closeAll(relay.CauseShutdown)
		g.engine.Close()
		g.behind.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Sessions is the number of devices being relayed.
func (g *Gateway) Sessions() int { return int(g.sessions.total.Load()) }

// SessionCounts is the number of devices being relayed by cluster and node.
func (g *Gateway) SessionCounts() map[Place]int { return g.sessions.counts() }

// Addrs are the addresses of the open listeners, by name.
func (g *Gateway) Addrs() map[string]net.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	addrs := make(map[string]net.Addr, len(g.listeners))
	for _, l := range g.listeners {
		addrs[l.cfg.Name] = l.ln.Addr()
	}
	return addrs
}
