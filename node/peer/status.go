package peer

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"turnout/fsm"
)

// State is what a gateway is among the others.
type State string

// The states.
const (
	StateEmpty     State = "empty" // not a member of any cluster yet
	StateFollower  State = "follower"
	StateCandidate State = "candidate"
	StateLeader    State = "leader"
	StateRemoved   State = "removed" // no longer in the configuration
	StateStopped   State = "stopped"
)

// Server is a gateway in the Raft configuration.
type Server struct {
	ID      fsm.GatewayID
	Address string // host:port of the peer port
	Voter   bool
}

// Member is a gateway in gossip.
type Member struct {
	ID      fsm.GatewayID
	Name    string
	Zone    string
	Release string
	Address string // host:port of the peer port
	Gossip  string // host:port of gossip
	Alive   bool   // false: failed, or left
}

// Status is what a gateway knows of its cluster. It is a snapshot; the parts may be of slightly different moments.
type Status struct {
	ID            fsm.GatewayID
	Name          string
	ClusterID     string // empty while not a member
	State         State
	Term          uint64
	Leader        fsm.GatewayID // empty when none is known
	LeaderAddress string        // its peer port
	// LastContact is the time since the leader was heard from: 0 on the leader, negative when it never was.
	LastContact   time.Duration
	CommitIndex   uint64
	AppliedIndex  uint64 // handed to the tables
	TableIndex    uint64 // the last command that the tables finished
	LastLogIndex  uint64
	Servers       []Server // the Raft configuration, sorted by id
	Members       []Member // gossip, this gateway included, sorted by id
	Complete      bool     // the tables have caught up with a leader since the start
	Ready         bool
	Problem       string // what keeps this gateway from being a member, for people; empty if nothing does
	PeerAddress   string
	GossipAddress string
}

// Status returns the present status. It does not block on Raft or the network.
func (p *Peer) Status() Status {
	s := Status{
		ID: p.id, Name: p.opts.Name, ClusterID: p.ClusterID(), State: StateEmpty, LastContact: -1,
		TableIndex: p.tables.Index(), Complete: p.complete.Load(), Ready: p.Ready(), PeerAddress: p.Addr(), GossipAddress: p.GossipAddr(),
	}
	if text := p.problem.Load(); text != nil {
		s.Problem = *text
	}
	if p.gossip != nil {
		for _, m := range p.gossip.members() {
			if s.ClusterID != "" && m.Cluster != "" && m.Cluster != s.ClusterID {
				continue // seen before this gateway was a member
			}
			s.Members = append(s.Members, Member{
				ID: m.ID, Name: m.Name, Zone: m.Zone, Release: m.Release, Address: m.Address, Gossip: m.gossip, Alive: m.alive,
			})
		}
	}
	c := p.raft.Load()
	if c == nil {
		return s
	}
	s.State = stateOf(c.State())
	if p.removed.Load() && (s.State == StateFollower || s.State == StateCandidate) {
		s.State = StateRemoved
	}
	s.Term, s.CommitIndex, s.AppliedIndex, s.LastLogIndex = c.CurrentTerm(), c.CommitIndex(), c.AppliedIndex(), c.LastIndex()
	if leader, ok := c.leader(); ok {
		s.Leader, s.LeaderAddress = leader.id, leader.address
	}
	s.LastContact = lastContact(c)
	for _, server := range c.servers() {
		if at, err := parseTarget(string(server.Address)); err == nil {
			s.Servers = append(s.Servers, Server{ID: at.id, Address: at.address, Voter: server.Suffrage == raft.Voter})
		}
	}
	slices.SortFunc(s.Servers, func(a, b Server) int { return cmp.Compare(a.ID, b.ID) })
	return s
}

func stateOf(s raft.RaftState) State {
	switch s {
	case raft.Leader:
		return StateLeader
	case raft.Candidate:
		return StateCandidate
	case raft.Shutdown:
		return StateStopped
	}
	return StateFollower
}

func lastContact(c *consensus) time.Duration {
	if c.State() == raft.Leader {
		return 0
	}
	at := c.LastContact()
	if at.IsZero() {
		return -1
	}
	return time.Since(at)
}

// statusReply is what other gateways get to know.
func (p *Peer) statusReply() statusReply {
	r := statusReply{
		ID: p.id, Name: p.opts.Name, ClusterID: p.ClusterID(), Expect: p.config.Expect,
		GossipAddress: p.GossipAddr(),
	}
	if c := p.raft.Load(); c != nil {
		// A leader whose term has not begun in its tables yet may lack what its predecessor acknowledged, and a follower always may.
		r.Complete = c.State() == raft.Leader && c.CurrentTerm() == p.established.Load() && p.tables.Halted() == nil
		r.Voters, r.Applied, r.LastLog = len(votersOf(c.servers())), c.AppliedIndex(), c.LastIndex()
		if leader, ok := c.leader(); ok {
			r.Leader = leader.id
		}
	}
	r.TableIndex = p.tables.Index() // after Complete, which is about it
	return r
}

// WaitAll waits until every gateway of the roster has applied the command at index, for at most as long as ctx lasts, or 10 s. It
// returns those that have not, sorted: gateways that cannot be reached are among them at once. The error is
// that of ctx when this gateway itself has not; its id is in lagging then.
func (p *Peer) WaitAll(ctx context.Context, index uint64) (lagging []fsm.GatewayID, err error) {
	ctx, cancel := p.bound(ctx, applyWait)
	defer cancel()
	rows := p.tables.Topology().Gateways
	reached := make([]bool, len(rows))
	var asked sync.WaitGroup
	for i, g := range rows {
		if g.ID == p.id {
			continue
		}
		asked.Go(func() {
			reached[i] = p.waitFor(ctx, target{g.ID, g.PeerAddress}, index)
		})
	}
	err = p.tables.WaitIndex(ctx, index)
	asked.Wait()
	for i, g := range rows {
		if !reached[i] && (g.ID != p.id || err != nil) {
			lagging = append(lagging, g.ID)
		}
	}
	return lagging, err
}

// waitFor asks another gateway until its tables have reached the index; one call lasts no longer than the other side lets it.
func (p *Peer) waitFor(ctx context.Context, other target, index uint64) bool {
	for {
		req := waitRequest{Index: index, Wait: remaining(ctx, maxServerWait)}
		var reply waitReply
		err := p.client.call(ctx, other, pathWait, req, &reply)
		if err == nil {
			return reply.Index >= index
		}
		var answered *rpcError
		if !errors.As(err, &answered) || answered.Code != fsm.CodeTimeout || ctx.Err() != nil {
			return false
		}
		pause(ctx, p.timing.Tick/10) // one that is stopping answers at once
	}
}
