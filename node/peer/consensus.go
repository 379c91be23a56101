package peer

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"turnout/fsm"
)

// consensus is the running Raft node of this gateway with its transport.
type consensus struct {
	*raft.Raft
	transport *raft.NetworkTransport
	stream    *stream
	notify    chan bool
	stop      chan struct{}
	drained   sync.WaitGroup
}

// rpcTimeout bounds one Raft call between gateways. It also bounds how long an unanswered call can hold up the shutdown.
const rpcTimeout = 5 * time.Second

// raftConfig builds Raft's configuration. The log is kept well beyond a snapshot so that a gateway that was away for a while needs no snapshot.
func (p *Peer) raftConfig(notify chan<- bool) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(p.id)
	c.HeartbeatTimeout = p.timing.Heartbeat
	c.ElectionTimeout = p.timing.Election
	c.LeaderLeaseTimeout = p.timing.Lease
	c.CommitTimeout = p.timing.Commit
	c.SnapshotThreshold = 8192
	c.SnapshotInterval = 60 * time.Second
	c.TrailingLogs = 10240
	c.ShutdownOnRemove = false // Close alone stops Raft, in its order
	c.NoLegacyTelemetry = true
	c.NotifyCh = notify
	c.Logger = p.raftLogger
	if p.tune != nil {
		p.tune(c)
	}
	return c
}

// startRaft starts Raft on the stores. The caller holds p.enrolment and has made sure that this gateway may.
func (p *Peer) startRaft() error {
	p.life.Lock()
	closed := p.closed
	p.life.Unlock()
	if closed {
		return errors.New("start raft: closing")
	}
	listener := newHandover(raftAddress(p.self().String()))
	out := newStream(p.ctx, listener, p.dialer)
	c := &consensus{
		stream: out,
		transport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Logger:  p.raftLogger,
			Stream:  out,
			MaxPool: 3,
			// One call at a time: pipelined replication can deadlock after a follower's append error (raft issues 611 and 612).
			MaxRPCsInFlight: 1,
			Timeout:         rpcTimeout,
		}),
		notify: make(chan bool, 16),
		stop:   make(chan struct{}),
	}
	// Raft blocks on this channel, so it is drained from before Raft starts until after it stopped.
	c.drained.Add(1)
	go p.followLeadership(c)
	r, err := raft.NewRaft(p.raftConfig(c.notify), p.tables, p.stores.log, p.stores.log, p.stores.snapshots, c.transport)
	if err != nil {
		c.transport.Close()
		close(c.stop)
		c.drained.Wait()
		return fmt.Errorf("start raft: %w", err)
	}
	c.Raft = r
	p.raft.Store(c)
	p.port.raft.Store(listener)
	return nil
}

// followLeadership publishes what Raft says about leading.
func (p *Peer) followLeadership(c *consensus) {
	defer c.drained.Done()
	for {
		select {
		case leading := <-c.notify:
			p.terms.set(leading)
		case <-c.stop:
			p.terms.set(false)
			return
		}
	}
}

// stopRaft hands leadership over if there is somebody to hand it to, and stops Raft. Its connections are cut
// while it stops (the transport closes the accepted ones, the stream those that were dialed), so that no call that will never be
// answered and no stalled snapshot holds it up.
func (p *Peer) stopRaft(c *consensus) error {
	if c.State() == raft.Leader && len(votersOf(c.servers())) > 1 {
		transferred := make(chan error, 1)
		go func() { transferred <- c.LeadershipTransfer().Error() }() // ends with Raft at the latest
		select {
		case err := <-transferred:
			if err != nil {
				p.logger.Info("leadership not handed over", "error", err)
			}
		case <-time.After(2 * p.timing.Election):
		}
	}
	p.proposals.drain(2 * p.timing.Election)
	stopped := c.Shutdown()
	err := c.transport.Close()
	c.stream.cut()
	err = errors.Join(err, stopped.Error())
	c.transport.CloseStreams()
	close(c.stop)
	c.drained.Wait()
	return err
}

// servers returns the latest configuration, empty when it cannot be had.
func (c *consensus) servers() []raft.Server {
	f := c.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	return f.Configuration().Servers
}

// leader returns the gateway that leads as far as this one knows.
func (c *consensus) leader() (target, bool) {
	address, id := c.LeaderWithID()
	if id == "" || address == "" {
		return target{}, false
	}
	t, err := parseTarget(string(address))
	if err != nil || t.id != fsm.GatewayID(id) {
		return target{}, false
	}
	return t, true
}

func votersOf(servers []raft.Server) []raft.Server {
	var voters []raft.Server
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			voters = append(voters, s)
		}
	}
	return voters
}
