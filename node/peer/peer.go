package peer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"turnout/fsm"
)

// Peer is this gateway among the gateways. Its methods may be called from any goroutine between Open and Close.
type Peer struct {
	opts       Options
	config     Config
	timing     Timing
	logger     *slog.Logger
	raftLogger hclog.Logger
	metrics    *Metrics
	tables     *fsm.Tables
	tune       func(*raft.Config) // tests only

	ctx    context.Context // ended by Close
	cancel context.CancelFunc

	// Set by Open, unchanged afterwards.
	id      fsm.GatewayID
	address string // of the peer port, as the others dial it
	stores  *stores
	dialer  *dialer
	port    *port
	server  *rpcServer
	client  *rpcClient
	gossip  *gossip

	cluster     atomic.Pointer[string] // nil while not a member
	raft        atomic.Pointer[consensus]
	problem     atomic.Pointer[string]
	complete    atomic.Bool // the tables caught up with a leader since the start
	ready       atomic.Bool
	removed     atomic.Bool
	established atomic.Uint64 // term of whose beginning this gateway, leading, applied everything acknowledged before; 0 for none
	seedsTried  atomic.Bool

	terms     *terms
	proposals proposals
	held      held

	// Locks, in the order in which they may nest: enrolment, then life. changing is taken alone.
	enrolment sync.Mutex // becoming a member: the promise, the files, the start of Raft
	promised  promise
	changing  sync.Mutex // changes of the Raft configuration by this leader

	// Of the goroutine follow alone.
	rowWait time.Duration
	rowNext time.Time

	life   sync.Mutex // guards opened and closed, and the start of tasks against Close
	opened bool
	closed bool
	tasks  sync.WaitGroup
}

// New checks the options and allocates. Nothing runs and nothing is on disk before Open.
func New(o Options) (*Peer, error) {
	if err := o.Config.Validate(); err != nil {
		return nil, err
	}
	switch {
	case o.DataDir == "":
		return nil, errors.New("data_dir: must not be empty")
	case o.Tables == nil:
		return nil, errors.New("tables: must not be nil")
	}
	// What the cluster would refuse later is refused here, where somebody reads it.
	row := fsm.PutGateway{Gateway: fsm.Gateway{
		ID: "x", Name: o.Name, Zone: o.Zone, Release: o.Release, APIAddress: o.APIAddress, PeerAddress: "localhost:1",
	}}
	if err := row.Validate(); err != nil {
		return nil, fmt.Errorf("describe gateway: %w", err)
	}
	seed := o.Seed
	seed.ClusterID, seed.Secret = "x", make([]byte, secretBytes)
	if err := (&fsm.Init{Settings: seed}).Validate(); err != nil {
		return nil, fmt.Errorf("check bootstrap settings: %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	metrics, err := NewMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	p := &Peer{
		opts: o, config: o.Config, timing: o.Timing.withDefaults(), tables: o.Tables, metrics: metrics,
		logger: o.Logger, raftLogger: newRaftLogger(o.Logger), terms: newTerms(),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

// Open begins: it reads the data directory, listens, starts gossip, and starts Raft if this gateway is a member already. It does not wait
// for other gateways, for a leader or for a quorum. After an error everything is closed again and the Peer is of no more use.
func (p *Peer) Open(ctx context.Context) error {
	p.life.Lock()
	if p.opened || p.closed {
		p.life.Unlock()
		return errors.New("open peer: opened before")
	}
	p.opened = true
	p.life.Unlock()
	if err := p.open(ctx); err != nil {
		return errors.Join(err, p.Close())
	}
	return nil
}

func (p *Peer) open(ctx context.Context) error {
	if err := openDirectory(p.opts.DataDir); err != nil {
		return err
	}
	id, err := loadGatewayID(p.opts.DataDir)
	if err != nil {
		return err
	}
	p.id = id
	p.logger = p.logger.With("gateway", string(id))
	cluster, err := readID(p.path(fileClusterID))
	if err != nil {
		return err
	}
	if cluster != "" {
		p.cluster.Store(&cluster)
	}
	serverTLS, clientTLS, err := loadTLS(p.config.TLS)
	if err != nil {
		return err
	}
	if p.stores, err = openStores(p.opts.DataDir, p.raftLogger); err != nil {
		return err
	}
	listener, err := listenPort(ctx, p.config.Address)
	if err != nil {
		return err
	}
	if p.address, err = advertised(p.config.Address, p.config.Advertise, listener.Addr()); err != nil {
		return errors.Join(err, listener.Close())
	}
	p.gossip, err = openGossip(gossipOptions{
		config: &p.config, probe: p.timing.Probe, own: p.meta(), cluster: p.ClusterID, logger: p.logger, ctx: p.ctx,
	})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	p.dialer = &dialer{
		life: p.ctx, self: p.id, tls: clientTLS, timeout: p.timing.Handshake, cluster: p.ClusterID, elsewhere: p.gossipedAddress,
	}
	p.client = newRPCClient(p.dialer)
	p.port = &port{
		listener: listener, tls: serverTLS, timeout: p.timing.Handshake, admit: p.admitConnection, logger: p.logger,
		refused: func(r refusal) { p.metrics.refused.WithLabelValues(r.String()).Inc() },
	}
	p.server = newRPCServer(p)
	p.port.start()
	p.server.start(p.port.rpc)
	if err := p.resumeMember(); err != nil {
		return err
	}
	p.metrics.peer.Store(p)
	p.spawn(p.enrol)
	p.spawn(p.rejoin)
	p.spawn(p.follow)
	p.spawn(func() { p.RunWhileLeader(p.ctx, p.promote) })
	p.logger.Info("peer opened", "address", p.address, "gossip", p.gossip.address, "cluster", p.ClusterID(), "tls", p.config.TLS.Enabled())
	if p.config.Insecure {
		p.logger.Warn("peer.insecure is set: whoever reaches the peer port or gossip can read and write the tables")
	}
	return nil
}

// resumeMember starts Raft if there is data, and finishes a bootstrap that a crash cut short.
func (p *Peer) resumeMember() error {
	p.enrolment.Lock()
	defer p.enrolment.Unlock()
	rec, unfinished, err := p.loadRecord()
	if err != nil {
		return err
	}
	if unfinished {
		return p.resume(rec)
	}
	has, err := p.stores.hasData()
	if err != nil || !has {
		return err
	}
	if p.ClusterID() == "" {
		return fmt.Errorf("open data: %s holds Raft data but no %s; restore the file or empty the whole directory", p.opts.DataDir, fileClusterID)
	}
	return p.becomeMember(p.ClusterID())
}

// Close stops everything and waits for it: leadership is handed over, gossip told, Raft stopped, connections cut, files closed.
// It may be called again, and then returns nil at once.
func (p *Peer) Close() error {
	p.life.Lock()
	if p.closed {
		p.life.Unlock()
		return nil
	}
	p.closed = true
	p.life.Unlock()

	p.enrolment.Lock() // whoever starts Raft now has done so or will see closed
	c := p.raft.Load()
	p.enrolment.Unlock()
	var errs []error
	if c != nil {
		// Before p.ctx ends: handing over needs the connections of this gateway.
		errs = append(errs, p.stopRaft(c))
	}
	p.cancel()
	p.tasks.Wait()
	if p.gossip != nil {
		errs = append(errs, p.gossip.close(p.timing.Leave))
	}
	if p.port != nil {
		p.port.stop()
	}
	if p.server != nil {
		p.server.stop()
	}
	if p.client != nil {
		p.client.close()
	}
	if p.stores != nil {
		errs = append(errs, p.stores.close())
	}
	p.metrics.peer.CompareAndSwap(p, nil)
	return errors.Join(errs...)
}

// spawn runs f as a task that Close waits for. Nothing is started once Close has begun.
func (p *Peer) spawn(f func()) {
	p.life.Lock()
	defer p.life.Unlock()
	if !p.closed {
		p.tasks.Go(f)
	}
}

// admitConnection decides on a hello. Raft is for members of the same cluster; calls are for gateways of the same cluster or of none yet,
// and each call checks for itself what it needs.
func (p *Peer) admitConnection(h hello) refusal {
	mine := p.ClusterID()
	switch {
	case h.Target != p.id:
		return refusedTarget
	case h.purpose == purposeRaft && (mine == "" || p.raft.Load() == nil):
		return refusedNotAdmitted
	case h.purpose == purposeRaft && h.Cluster != mine:
		return refusedCluster
	case mine != "" && h.Cluster != "" && h.Cluster != mine:
		return refusedCluster
	}
	return accepted
}

// gossipedAddress is where gossip last saw a gateway. It lets gateways that all came back with new addresses elect a leader, who
// then writes the addresses into the configuration. A leader that has settled does not use it for Raft: it is told the new address
// by the gateway itself, and Raft should not be replicating to a server while that server's address is being changed.
func (p *Peer) gossipedAddress(id fsm.GatewayID, why purpose) string {
	if why == purposeRaft && p.IsLeader() && p.terms.age() > settled*p.timing.Election {
		return ""
	}
	m, _ := p.gossip.find(id)
	return m.Address
}

// settled is after how many election timeouts a leader relies on the addresses in the configuration.
const settled = 5

// secretBytes is the length of the cluster's secret, a key for HMAC-SHA256.
const secretBytes = 32

func randomSecret() []byte {
	b := make([]byte, secretBytes)
	rand.Read(b)
	return b
}

func (p *Peer) self() target { return target{p.id, p.address} }

func (p *Peer) meta() meta {
	return meta{
		ID: p.id, Cluster: p.ClusterID(), Expect: p.config.Expect, Address: p.address,
		Name: p.opts.Name, Zone: p.opts.Zone, Release: p.opts.Release,
	}
}

// setProblem keeps for the status why this gateway is not a member, and logs it when it is new.
func (p *Peer) setProblem(level slog.Level, text string) {
	old := p.problem.Swap(&text)
	if text != "" && (old == nil || *old != text) {
		p.logger.Log(p.ctx, level, "not a member yet", "reason", text)
	}
}

// ID returns the id of this gateway, valid after Open.
func (p *Peer) ID() fsm.GatewayID { return p.id }

// ClusterID returns the id of the cluster of gateways, empty while this one is not a member.
func (p *Peer) ClusterID() string {
	if c := p.cluster.Load(); c != nil {
		return *c
	}
	return ""
}

// Addr returns the advertised address of the peer port, valid after Open.
func (p *Peer) Addr() string { return p.address }

// GossipAddr returns the advertised address of gossip, valid after Open.
func (p *Peer) GossipAddr() string {
	if p.gossip == nil {
		return ""
	}
	return p.gossip.address
}

// Leader returns the gateway that leads as far as this one knows.
func (p *Peer) Leader() (id fsm.GatewayID, ok bool) {
	c := p.raft.Load()
	if c == nil {
		return "", false
	}
	t, ok := c.leader()
	return t.id, ok
}

// IsLeader reports whether this gateway leads, as far as it knows: another one may have been elected meanwhile.
func (p *Peer) IsLeader() bool {
	c := p.raft.Load()
	return c != nil && c.State() == raft.Leader
}

// CaughtUp reports whether the tables have reached, since the start, everything that a leader knew to be committed. It stays true.
func (p *Peer) CaughtUp() bool { return p.complete.Load() }

// Ready reports whether this gateway is a member whose tables have caught up since the start, and which the roster knows. It stays ready
// when the leader or the quorum is lost, since it goes on routing; it is not while its tables cannot follow the log, nor once it
// was removed and they get none of it.
func (p *Peer) Ready() bool {
	return p.ready.Load() && !p.removed.Load() && p.tables.Halted() == nil
}
