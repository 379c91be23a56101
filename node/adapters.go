package node

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"turnout/api"
	"turnout/fsm"
	"turnout/node/peer"
	"turnout/node/upstream"
	"turnout/proxy"
)

// peers shows the API how this gateway sees the others.
type peers struct{ peer *peer.Peer }

// Status implements api.Peers.
func (p peers) Status() api.PeerStatus {
	s := p.peer.Status()
	out := api.PeerStatus{
		ID: s.ID, Name: s.Name, State: string(s.State), Leader: s.Leader, Term: s.Term, CommitIndex: s.CommitIndex,
		AppliedIndex: s.AppliedIndex, LastContact: s.LastContact,
	}
	members := map[fsm.GatewayID]api.PeerMember{}
	for _, m := range s.Members {
		liveness := "failed"
		if m.Alive {
			liveness = "alive"
		}
		members[m.ID] = api.PeerMember{ID: m.ID, Liveness: liveness}
	}
	for _, server := range s.Servers {
		m := members[server.ID]
		m.ID, m.Role = server.ID, api.PeerNonvoter
		if server.Voter {
			m.Role = api.PeerVoter
		}
		members[server.ID] = m
	}
	for _, id := range slices.Sorted(maps.Keys(members)) {
		out.Members = append(out.Members, members[id])
	}
	return out
}

// router lets the API ask the entrance where a device would go.
type router struct {
	gateway *proxy.Gateway
	tables  *fsm.Tables
}

// Explain implements api.Router.
func (r router) Explain(req api.ExplainRequest) api.Explanation {
	in := proxy.ExplainRequest{Key: req.Key}
	if req.ClientID != nil || req.Username != nil {
		in.Connect = &proxy.SyntheticConnect{Username: req.Username}
		if req.ClientID != nil {
			in.Connect.ClientID = *req.ClientID
		}
	}
	index := r.tables.Index() // before the decision: it may rest on later tables, never on earlier ones
	e := r.gateway.Explain(in)
	device, recorded := r.tables.Device(e.Key)
	out := api.Explanation{
		Refused: e.Refused != "", Reason: e.ClusterBy, Detail: strings.Join(e.Steps, " "), Cluster: e.Cluster, Recorded: recorded,
		WouldBind: e.Records, Index: index,
	}
	if out.Refused {
		out.Reason = e.Refused
	}
	if in.Connect != nil {
		out.DerivedKey = &e.Key
	}
	for _, c := range e.Candidates {
		by := "ring"
		switch c.ID {
		case device.Pin:
			by = "pin"
		case device.Binding:
			by = "binding"
		}
		out.Nodes = append(out.Nodes, api.ExplainNode{
			Node:   fsm.Node{ID: c.ID, Name: c.Name, Address: c.Address, State: c.State, Draining: c.Draining},
			Reason: by,
		})
	}
	return out
}

// commander lets the API hand over commands. A device that has no node yet is looked for where it would connect first.
type commander struct {
	commander *upstream.Commander
	tables    *fsm.Tables
	gateway   *proxy.Gateway
}

// Send implements api.Commander.
func (c commander) Send(ctx context.Context, to api.Target, cmd api.Command) api.Outcome {
	node := to.Node
	if node.ID == 0 {
		if e := c.gateway.Explain(proxy.ExplainRequest{Key: to.Key}); len(e.Candidates) > 0 {
			node, _ = to.Cluster.Node(e.Candidates[0].ID)
		}
	}
	expiry := uint32(cmd.Expiry / time.Second)
	res := c.commander.Send(ctx, upstream.Target{Key: to.Key, Parts: c.parts(to.Key), Cluster: to.Cluster, Node: node},
		upstream.Command{ID: cmd.ID, Payload: cmd.Payload, QoS: &cmd.QoS, ExpirySeconds: &expiry})
	return api.Outcome{Outcome: string(res.Outcome), Detail: res.Detail, Node: node.Name}
}

// parts takes a device key apart into the fields of CONNECT that the identity template made it of, as far as that can be undone.
func (c commander) parts(key fsm.DeviceKey) upstream.Parts {
	id, err := proxy.ParseIdentity(c.tables.Topology().Settings.Identity)
	if err != nil {
		return upstream.Parts{}
	}
	p, ok := id.Parts(key)
	if !ok {
		return upstream.Parts{}
	}
	return upstream.Parts{ClientID: p.ClientID, Username: p.Username}
}
