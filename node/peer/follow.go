package peer

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/raft"

	"turnout/fsm"
)

// follow runs for the life of the Peer and sees to this gateway's own place in the cluster: that its tables became complete, that the
// configuration has its present address, and that its row in the roster is right.
func (p *Peer) follow() {
	var announced time.Time
	lost := time.Now() // since when no leader is known
	for p.ctx.Err() == nil {
		pause(p.ctx, p.timing.Tick)
		c := p.raft.Load()
		if c == nil || p.ctx.Err() != nil {
			continue
		}
		_, led := c.leader()
		if led {
			lost = time.Now()
		}
		if p.mustAnnounce(c, led, time.Since(lost)) && time.Since(announced) > 5*p.timing.Tick {
			announced = time.Now()
			p.announceSelf(c)
		}
		if !p.complete.Load() && p.catchUp(c) {
			p.complete.Store(true)
			p.logger.Info("tables complete", "index", p.tables.Index())
		}
		if p.complete.Load() && !p.removed.Load() && p.keepRow() && !p.ready.Swap(true) {
			p.logger.Info("gateway ready")
		}
	}
}

// mustAnnounce reports whether the leader should hear from this gateway: the configuration has another address or does not have it at
// all, or nobody has called for so long that the others may not know where it is. led tells whether a leader is known.
func (p *Peer) mustAnnounce(c *consensus, led bool, silence time.Duration) bool {
	servers := c.servers()
	if len(servers) == 0 {
		return silence > 20*p.timing.Election
	}
	for _, s := range servers {
		if s.ID == raft.ServerID(p.id) {
			if led { // without one the configuration may be from before the removal, of which a gateway is not told
				p.setRemoved(false)
			}
			return s.Address != p.self().server() || silence > 20*p.timing.Election && len(servers) > 1
		}
	}
	p.setRemoved(true)
	return silence > 20*p.timing.Election
}

func (p *Peer) setRemoved(removed bool) {
	if p.removed.Swap(removed) == removed {
		return
	}
	if removed {
		p.logger.Error("this gateway is not in the configuration of its cluster: it was removed; it goes on routing by the tables it has")
	} else {
		p.logger.Info("this gateway is in the configuration of its cluster again")
	}
}

// announceSelf tells the leader the address of this gateway, through whichever member can be reached.
func (p *Peer) announceSelf(c *consensus) {
	ctx, cancel := context.WithTimeout(p.ctx, joinWait)
	defer cancel()
	req := joinRequest{ID: p.id, Address: p.address, Cluster: p.ClusterID(), HasData: true}
	if c.State() == raft.Leader {
		if err := p.admit(ctx, c, req); err != nil {
			p.logger.Warn("own address not changed", "error", err)
		}
		return
	}
	for _, to := range p.others(c) {
		var reply joinReply
		err := p.client.call(ctx, to, pathJoin, req, &reply)
		if err == nil {
			return
		}
		var refused *rpcError
		if errors.As(err, &refused) && refused.Code == fsm.CodeNotFound {
			p.setRemoved(true)
			return
		}
		p.logger.Info("announce", "member", to.id, "error", err)
		if ctx.Err() != nil {
			return
		}
	}
}

// others returns the other members to call, the leader first.
func (p *Peer) others(c *consensus) []target {
	var out []target
	leader, ok := c.leader()
	if ok && leader.id != p.id {
		out = append(out, leader)
	}
	for _, s := range c.servers() {
		if t, err := parseTarget(string(s.Address)); err == nil && t.id != p.id && t.id != leader.id {
			out = append(out, t)
		}
	}
	return out
}

// catchUp reports whether the tables hold everything that was acknowledged before it was called.
func (p *Peer) catchUp(c *consensus) bool {
	ctx, cancel := context.WithTimeout(p.ctx, applyWait)
	defer cancel()
	if c.State() == raft.Leader {
		return p.await(ctx, func() raft.Future { return c.Barrier(enqueueWait) }) == nil
	}
	leader, ok := c.leader()
	if !ok || leader.id == p.id {
		return false
	}
	st, err := p.statusOf(ctx, leader)
	if err != nil || !st.Complete {
		return false
	}
	return p.tables.WaitIndex(ctx, st.TableIndex) == nil
}

// keepRow writes the row of this gateway if the roster has none or another one, and reports whether it is right.
func (p *Peer) keepRow() bool {
	row := fsm.Gateway{
		ID: p.id, Name: p.opts.Name, Zone: p.opts.Zone, PeerAddress: p.address, APIAddress: p.opts.APIAddress, Release: p.opts.Release,
	}
	have, ok := p.tables.Topology().Gateway(p.id)
	have.Version = 0
	if ok && have == row {
		p.rowWait = 0
		return true
	}
	if time.Now().Before(p.rowNext) {
		return false
	}
	_, err := p.Propose(p.ctx, &fsm.PutGateway{Gateway: row})
	if err != nil && p.ctx.Err() == nil {
		p.rowWait = min(max(2*p.rowWait, p.timing.Tick), 30*p.timing.Tick)
		p.rowNext = time.Now().Add(p.rowWait)
		p.logger.Warn("row in the roster not written", "error", err)
	}
	return err == nil
}

// rejoin runs for the life of the Peer and brings gossip together again: memberlist forgets dead gateways and never asks for them.
func (p *Peer) rejoin() {
	for p.ctx.Err() == nil {
		for _, address := range p.missing() {
			if p.ctx.Err() != nil {
				return
			}
			if _, err := p.gossip.list.Join([]string{address}); err != nil {
				p.logger.Debug("gossip join", "address", address, "error", err)
			}
		}
		p.seedsTried.Store(true)
		wait := p.timing.Rejoin
		if p.raft.Load() == nil {
			wait = p.timing.Tick
		}
		pause(p.ctx, wait)
	}
}

// missing returns the gossip addresses to try: the seeds while this gateway is alone, not a member or not complete, and those of gateways
// of the roster that gossip does not show.
func (p *Peer) missing() []string {
	alive := map[fsm.GatewayID]bool{}
	for _, m := range p.gossip.alive() {
		alive[m.ID] = true
	}
	var out []string
	for _, g := range p.tables.Topology().Gateways {
		if alive[g.ID] || g.ID == p.id {
			continue
		}
		st, err := p.statusOf(p.ctx, target{g.ID, g.PeerAddress})
		if err == nil && st.GossipAddress != "" {
			out = append(out, st.GossipAddress)
		} else if m, ok := p.gossip.find(g.ID); ok {
			out = append(out, m.gossip)
		}
	}
	if len(out) > 0 || len(alive) <= 1 || p.raft.Load() == nil || !p.complete.Load() {
		out = append(out, p.config.Join...)
	}
	return out
}
