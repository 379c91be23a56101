package api

import (
	"context"
	"time"

	"turnout/fsm"
)

// Proposer carries writes into the replicated tables.
type Proposer interface {
	// Propose returns once the local tables have applied the command. A refusal is an *fsm.Error, as the error or in the result.
	Propose(ctx context.Context, cmd fsm.Command) (fsm.Result, error)
	// WaitAll waits until every gateway of the roster has applied index, or until ctx ends; lagging are those that are not known to have.
	WaitAll(ctx context.Context, index uint64) (lagging []fsm.GatewayID, err error)
}

// Peers tells how this gateway sees the others.
type Peers interface {
	Status() PeerStatus
}

// PeerStatus is the consensus and the gossip as this gateway sees them.
type PeerStatus struct {
	ID           fsm.GatewayID
	Name         string
	State        string // of Raft: leader, follower, candidate, shutdown
	Leader       fsm.GatewayID
	Term         uint64
	CommitIndex  uint64
	AppliedIndex uint64
	LastContact  time.Duration // since the leader was heard; 0 on the leader, negative for never
	Members      []PeerMember  // Raft members and whoever gossip knows
}

// Roles of a gateway in the consensus.
const (
	PeerVoter    = "voter"
	PeerNonvoter = "nonvoter"
)

// PeerMember is one other gateway, or this one.
type PeerMember struct {
	ID       fsm.GatewayID
	Role     string // PeerVoter, PeerNonvoter, or "" when it is not a Raft member
	Liveness string // alive, suspect, failed, left; "" when gossip does not know it
}

// Router explains where a device would go. It decides by the present tables and changes nothing.
type Router interface {
	Explain(ExplainRequest) Explanation
}

// ExplainRequest asks for one device. With ClientID or Username it also describes a synthetic CONNECT, whose key the identity
// template makes; nil means that the field is absent from it.
type ExplainRequest struct {
	Key      fsm.DeviceKey
	ClientID *string
	Username *string
}

// Explanation is the answer to an ExplainRequest.
type Explanation struct {
	DerivedKey *fsm.DeviceKey // of the synthetic CONNECT, nil without one
	Refused    bool
	Reason     string // one word: what decided
	Detail     string // a sentence for people
	Cluster    fsm.ClusterName
	Nodes      []ExplainNode // in the order they would be tried
	Recorded   bool
	WouldBind  bool
	Index      uint64 // of the tables that were used
}

// ExplainNode is one node that would be tried.
type ExplainNode struct {
	Node   fsm.Node
	Reason string // pin, binding or ring
}

// Commander hands a command to the channel of a device's home cluster.
type Commander interface {
	// Send returns within ctx. Whatever happens is an outcome: a channel that cannot be reached is one, too.
	Send(ctx context.Context, to Target, cmd Command) Outcome
}

// Target is the device that a command is for.
type Target struct {
	Key     fsm.DeviceKey
	Cluster *fsm.Cluster // as the tables have it; not to be changed
	Node    fsm.Node     // the device's pin or binding, zero when it has none or the node is gone
}

// Command is what a device is to get. QoS and Expiry are settled: the channel's own where the caller left them out.
type Command struct {
	ID      string
	Payload []byte
	QoS     uint8
	Expiry  time.Duration // 0 for none
}

// Outcome is what is known to have happened to a command.
type Outcome struct {
	Outcome string // dispatched, no_subscriber, accepted, offline, rejected, unknown
	Detail  string // for people; holds neither payload nor credentials
	Node    fsm.NodeName
}
