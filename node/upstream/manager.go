package upstream

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"turnout/fsm"
)

// Proposer writes a command into the replicated tables and returns once the local tables show it.
type Proposer interface {
	Propose(ctx context.Context, cmd fsm.Command) (fsm.Result, error)
}

// Options of a Manager. Every field is needed.
type Options struct {
	Tables   *fsm.Tables
	Proposer Proposer
	Guard    *Guard
	Logger   *slog.Logger
	Metrics  *Metrics
	Now      func() time.Time
}

// Manager is the discovery of broker clusters: the tables' spec of each cluster in, changes of its members out.
type Manager struct {
	o      Options
	second time.Duration // length of a second of a spec; tests shorten it

	mu     sync.Mutex // guards status
	status map[fsm.ClusterName]PollStatus
}

// PollStatus is how the polls of a cluster went since this gateway became the leader or its spec changed.
type PollStatus struct {
	LastOK    time.Time // zero: never
	LastError Class     // of the last poll, empty when it succeeded
	Members   int       // entries of the last good answer
	Alarms    []Alarm   // standing now
}

// NewManager returns a manager that does nothing until Run.
func NewManager(o Options) *Manager {
	return &Manager{o: o, second: time.Second, status: map[fsm.ClusterName]PollStatus{}}
}

// Status returns the state of every cluster that is polled; empty on a gateway that is not the leader.
func (m *Manager) Status() map[fsm.ClusterName]PollStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[fsm.ClusterName]PollStatus, len(m.status))
	for name, s := range m.status {
		s.Alarms = slices.Clone(s.Alarms)
		out[name] = s
	}
	return out
}

// Run polls every cluster of the tables until ctx ends, and then waits for all of its goroutines. It is the leader's duty: run
// it while this gateway leads, one Run at a time. What it remembers of misses and removals ends with it, which makes a new leader
// slower to remove a node, never faster.
func (m *Manager) Run(ctx context.Context) error {
	h := newHTTPClient(m.o.Guard)
	defer h.close()
	running := map[fsm.ClusterID]*pollLoop{}
	defer func() {
		for _, l := range running {
			l.stop()
			m.o.Metrics.leave(l.name)
			m.setStatus(l.name, nil)
		}
	}()
	topo := m.o.Tables.Topology()
	for {
		m.reconcile(ctx, topo, h, running)
		next, err := m.o.Tables.WaitTopology(ctx, topo)
		if err != nil {
			return nil // ctx ended: the duty is over
		}
		topo = next
	}
}

// reconcile starts, restarts and stops poll loops. A changed spec means a new loop: it polls at once and remembers nothing, because
// misses counted under another URL say nothing about this one.
func (m *Manager) reconcile(ctx context.Context, topo *fsm.Topology, h *httpClient, running map[fsm.ClusterID]*pollLoop) {
	for id, l := range running {
		c := topo.ClusterByID(id)
		if l.follows(c) {
			continue
		}
		l.stop()
		delete(running, id)
		if c == nil || c.Name != l.name {
			m.setStatus(l.name, nil)
			m.o.Metrics.forget(l.name)
		}
	}
	for _, c := range topo.Clusters {
		if running[c.ID] == nil {
			running[c.ID] = m.start(ctx, c, h)
		}
	}
}

// setStatus publishes the state of a cluster's polls; nil takes it away.
func (m *Manager) setStatus(name fsm.ClusterName, s *PollStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s == nil {
		delete(m.status, name)
		return
	}
	m.status[name] = *s
}

// start begins the poll loop of a cluster. The loop belongs to whoever called; it ends with ctx or stop.
func (m *Manager) start(ctx context.Context, c *fsm.Cluster, h *httpClient) *pollLoop {
	ctx, cancel := context.WithCancel(ctx)
	l := &pollLoop{
		m: m, id: c.ID, name: c.Name, version: c.Version, spec: c.Spec, driver: newDriver(c.Spec, h),
		log:    m.o.Logger.With("cluster", string(c.Name)),
		misses: map[fsm.NodeName]uint32{}, cancel: cancel, done: make(chan struct{}),
	}
	l.spec.Addresses = maps.Clone(c.Spec.Addresses)
	go l.run(ctx)
	return l
}
