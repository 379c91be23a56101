package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"time"

	"github.com/hashicorp/raft"

	"turnout/fsm"
)

// joinRequest asks the leader to be added, or to have one's address changed.
type joinRequest struct {
	ID      fsm.GatewayID `cbor:"1,keyasint"`
	Address string        `cbor:"2,keyasint"`
	// Cluster is the one the sender knows itself to be of, empty for any.
	Cluster string `cbor:"3,keyasint,omitempty"`
	// HasData tells a member that only has a new address from a gateway with an empty disk.
	HasData bool `cbor:"4,keyasint,omitempty"`
}

type joinReply struct {
	Cluster string `cbor:"1,keyasint"`
}

// joinWait bounds one attempt to join, the leader's own changes included.
const joinWait = 15 * time.Second

// joinCluster asks members, one after the other, to be let in, and starts Raft when the leader has said yes.
func (p *Peer) joinCluster(members []member) {
	rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	for _, m := range members {
		if p.raft.Load() != nil || p.ctx.Err() != nil {
			return
		}
		req := joinRequest{ID: p.id, Address: p.address, Cluster: p.ClusterID()}
		ctx, cancel := context.WithTimeout(p.ctx, joinWait)
		var reply joinReply
		err := p.client.call(ctx, target{m.ID, m.Address}, pathJoin, req, &reply)
		cancel()
		if err != nil {
			p.logger.Debug("join", "member", m.ID, "error", err)
			var refused *rpcError
			if errors.As(err, &refused) && refused.Code != fsm.CodeNoLeader {
				p.setProblem(slog.LevelError, "cannot join: "+refused.Message)
				return
			}
			var request *url.Error // its text is mostly that of a URL that nobody wrote
			if errors.As(err, &request) {
				err = request.Err
			}
			p.setProblem(slog.LevelWarn, "cannot join yet: "+err.Error())
			continue
		}
		if err := p.admitted(reply.Cluster); err != nil {
			p.logger.Error("join", "error", err)
			p.setProblem(slog.LevelError, "cannot join: "+err.Error())
			return
		}
		p.setProblem(slog.LevelInfo, "")
		return
	}
}

// admitted starts Raft after the leader added this gateway.
func (p *Peer) admitted(cluster string) error {
	if !uuidPattern.MatchString(cluster) {
		return errors.New("the leader named no cluster")
	}
	p.enrolment.Lock()
	defer p.enrolment.Unlock()
	if p.raft.Load() != nil {
		return nil
	}
	if mine := p.ClusterID(); mine != "" && mine != cluster {
		return fmt.Errorf("the leader is of cluster %s, this gateway of %s", cluster, mine)
	}
	if err := p.becomeMember(cluster); err != nil {
		return err
	}
	p.logger.Info("joined", "cluster", cluster)
	return nil
}

// join answers a joinRequest: here when this gateway leads, otherwise at the leader, once.
func (s *rpcServer) join(ctx context.Context, c call[joinRequest]) (joinReply, error) {
	p := s.peer
	ctx, cancel := context.WithTimeout(ctx, joinWait)
	defer cancel()
	node := p.raft.Load()
	if node == nil {
		return joinReply{}, &rpcError{fsm.CodeNoLeader, "not a member of a cluster"}
	}
	if c.body.Cluster != "" && c.body.Cluster != p.ClusterID() {
		return joinReply{}, &rpcError{fsm.CodeConflict, "of another cluster"}
	}
	if !c.forwarded && c.body.ID != c.from.Source {
		return joinReply{}, &rpcError{fsm.CodeInvalid, "joins for another gateway"}
	}
	if node.State() == raft.Leader {
		if err := p.admit(ctx, node, c.body); err != nil {
			p.logger.Warn("join refused", "gateway", c.body.ID, "error", err)
			return joinReply{}, err
		}
		return joinReply{Cluster: p.ClusterID()}, nil
	}
	leader, ok := node.leader()
	if !ok || leader.id == p.id || c.forwarded {
		return joinReply{}, &rpcError{fsm.CodeNoLeader, "no leader"}
	}
	var reply joinReply
	if err := p.client.forward(ctx, leader, pathJoin, c.body, &reply); err != nil {
		var refused *rpcError
		if errors.As(err, &refused) {
			return joinReply{}, refused
		}
		return joinReply{}, &rpcError{fsm.CodeNoLeader, "the leader did not answer"}
	}
	return reply, nil
}

// admit is the leader's part. Its refusals are of type *rpcError.
func (p *Peer) admit(ctx context.Context, node *consensus, req joinRequest) error {
	refuse := func(code fsm.Code, format string, args ...any) error {
		return &rpcError{code, fmt.Sprintf(format, args...)}
	}
	if !uuidPattern.MatchString(string(req.ID)) || len(req.Address) > maxAdvertise || checkAddress(req.Address) != nil {
		return refuse(fsm.CodeInvalid, "id or address is malformed")
	}
	p.changing.Lock() // one change of the configuration at a time, so that each is decided on the latest
	defer p.changing.Unlock()
	f := node.GetConfiguration()
	if f.Error() != nil {
		return refuse(fsm.CodeNoLeader, "no configuration")
	}
	servers := f.Configuration().Servers
	at := target{req.ID, req.Address}
	var known *raft.Server
	for i := range servers {
		if servers[i].ID == raft.ServerID(req.ID) {
			known = &servers[i]
		}
	}
	switch {
	case known == nil && req.HasData:
		return refuse(fsm.CodeNotFound, "not in the configuration of the cluster: it was removed")
	case known != nil && !req.HasData && known.Suffrage == raft.Voter:
		// It has voted and acknowledged; with an empty disk it would do both again, differently.
		return refuse(fsm.CodeConflict, "this id is a voter's, but its data is gone: empty the whole data directory, gateway-id too, and it joins as a new gateway; "+
			"a gateway that is being bootstrapped waits for its list of voters")
	case known != nil && known.Address == at.server():
		return nil
	}
	if err := p.checkReachable(ctx, at); err != nil {
		return refuse(fsm.CodeInvalid, "the leader cannot reach the gateway at its advertised address: %v", err)
	}
	if known == nil {
		if err := p.removeStale(ctx, node, servers, at); err != nil {
			return err
		}
	}
	change := func() raft.Future {
		if known != nil && known.Suffrage == raft.Voter {
			return node.AddVoter(known.ID, at.server(), 0, enqueueWait) // of a voter, this changes the address alone
		}
		return node.AddNonvoter(raft.ServerID(req.ID), at.server(), 0, enqueueWait)
	}
	if err := p.await(ctx, change); err != nil {
		return refuse(fsm.CodeNoLeader, "configuration not changed: %v", err)
	}
	p.logger.Info("gateway admitted", "gateway", req.ID, "address", req.Address, "known", known != nil)
	return nil
}

// checkReachable makes sure that this gateway, and no other, answers at the address.
func (p *Peer) checkReachable(ctx context.Context, at target) error {
	if at.id == p.id {
		if at.address != p.address {
			return errors.New("it is this gateway, and elsewhere")
		}
		return nil
	}
	_, err := p.statusOf(ctx, at)
	return err
}

// removeStale takes other servers at the newcomer's address out of the configuration: the handshake has shown that the
// newcomer is what answers there. One that answers elsewhere has moved, and stays. A voter that does not is dead weight in
// every quorum; it goes only while the voters that answer are a majority without it, so that the change can be committed.
func (p *Peer) removeStale(ctx context.Context, node *consensus, servers []raft.Server, at target) error {
	for _, s := range servers {
		old, err := parseTarget(string(s.Address))
		if err != nil || old.id == at.id || !sameAddress(old.address, at.address) {
			continue
		}
		if old.id == p.id {
			return &rpcError{fsm.CodeInvalid, "the address is the leader's own"}
		}
		if p.answers(ctx, s) {
			continue
		}
		if s.Suffrage == raft.Voter {
			left := votersOf(servers)
			answering := 0
			for _, v := range left {
				if v.ID != s.ID && p.answers(ctx, v) {
					answering++
				}
			}
			if answering < (len(left)-1)/2+1 {
				return &rpcError{fsm.CodeNoLeader, fmt.Sprintf(
					"a voter of another id, %s, is registered at this address, and only %d of the %d other voters answer: it is not removed now", old.id, answering, len(left)-1)}
			}
		}
		if err := p.await(ctx, func() raft.Future { return node.RemoveServer(s.ID, 0, enqueueWait) }); err != nil {
			return &rpcError{fsm.CodeNoLeader, "stale server not removed"}
		}
		p.logger.Warn("stale gateway removed: another one answers at its address", "gateway", old.id, "address", old.address, "successor", at.id)
		p.dropRow(ctx, node, old.id)
		return p.removeStale(ctx, node, node.servers(), at)
	}
	return nil
}

// dropRow takes a gateway that is no longer in the configuration off the roster.
func (p *Peer) dropRow(ctx context.Context, node *consensus, id fsm.GatewayID) {
	entry, err := fsm.Encode(&fsm.RemoveGateway{ID: id})
	if err == nil {
		_, err = p.applyHere(ctx, node, entry)
	}
	if err != nil {
		p.logger.Warn("stale row stays in the roster", "gateway", id, "error", err)
	}
}

// answers reports whether a server of the configuration is up and a member.
func (p *Peer) answers(ctx context.Context, s raft.Server) bool {
	if s.ID == raft.ServerID(p.id) {
		return true
	}
	at, err := parseTarget(string(s.Address))
	if err != nil {
		return false
	}
	st, err := p.statusOf(ctx, at)
	return err == nil && st.ClusterID == p.ClusterID()
}

// statusOf asks a gateway for its status, for at most the handshake's timeout.
func (p *Peer) statusOf(ctx context.Context, at target) (statusReply, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timing.Handshake)
	defer cancel()
	var reply statusReply
	if err := p.client.call(ctx, at, pathStatus, struct{}{}, &reply); err != nil {
		return statusReply{}, err
	}
	if reply.ID != at.id {
		return statusReply{}, errors.New("another gateway answers")
	}
	return reply, nil
}

// sameAddress compares host and port as written: names are not resolved, since what they mean may change.
func sameAddress(a, b string) bool {
	ah, ap, err := net.SplitHostPort(a)
	if err != nil {
		return false
	}
	bh, bp, err := net.SplitHostPort(b)
	return err == nil && ah == bh && ap == bp
}
