package api

import (
	"context"
	"net/http"

	"turnout/api/client"
	"turnout/fsm"
)

func (a *API) registerGateways() {
	register(a, RoleRead, get("list-gateways", "/v1/gateways", "List the gateways of the roster and what this one sees of them"), a.listGateways)
	register(a, RoleAdmin, op("delete-gateway", http.MethodDelete, "/v1/gateways/{gateway}", "Take a gateway that is no Raft member off the roster"), a.deleteGateway)
	register(a, RoleRead, get("get-status", "/v1/status", "Tell what this gateway is and what its tables hold"), a.getStatus)
}

func (a *API) listGateways(context.Context, *struct{}) (*answer[client.GatewayList], error) {
	index, topo, st := a.tables.Index(), a.tables.Topology(), a.peers.Status()
	out := client.GatewayList{Items: make([]client.Gateway, len(topo.Gateways))}
	for i, g := range topo.Gateways {
		m := st.member(g.ID)
		out.Items[i] = client.Gateway{
			ID: string(g.ID), Name: g.Name, Zone: g.Zone, PeerAddress: g.PeerAddress, APIAddress: g.APIAddress, Release: g.Release,
			Role: or(m.Role, "none"), Leader: g.ID == st.Leader, Liveness: or(m.Liveness, "unknown"), Self: g.ID == st.ID, Version: g.Version,
		}
	}
	return list(index, out), nil
}

// member returns what is known of a gateway, the zero value for nothing.
func (s *PeerStatus) member(id fsm.GatewayID) PeerMember {
	for _, m := range s.Members {
		if m.ID == id {
			return m
		}
	}
	return PeerMember{}
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

type deleteGatewayInput struct {
	Gateway string `path:"gateway" doc:"Id of a gateway"`
	WriteParams
}

func (a *API) deleteGateway(ctx context.Context, in *deleteGatewayInput) (*answer[client.WriteResult], error) {
	id := fsm.GatewayID(in.Gateway)
	g, ok := a.tables.Topology().Gateway(id)
	if !ok {
		return nil, refusal(fsm.NewError(fsm.CodeNotFound, "id", "no such gateway"), false)
	}
	st := a.peers.Status()
	if st.member(id).Role != "" {
		return nil, refusal(fsm.NewError(fsm.CodeInUse, "id", "the gateway is still a Raft member"), false)
	}
	return a.write(ctx, &fsm.RemoveGateway{ID: id}, in.WriteParams, g.Version, false)
}

func (a *API) getStatus(context.Context, *struct{}) (*answer[client.Status], error) {
	st, peers := a.tables.Status(), a.peers.Status()
	out := client.Status{
		ID: string(peers.ID), Name: peers.Name, Leader: string(peers.Leader), State: peers.State,
		Index: st.Checksum.Index, Checksum: st.Checksum.String(), Devices: st.Devices, Clusters: len(a.tables.Topology().Clusters),
		Release: a.release,
		Raft: client.RaftStatus{
			State: peers.State, Term: peers.Term, CommitIndex: peers.CommitIndex, AppliedIndex: peers.AppliedIndex,
			LastContactSeconds: peers.LastContact.Seconds(),
		},
	}
	if st.Halted != nil {
		out.Halted = "an entry of the log comes from a later release; upgrade this gateway"
	}
	for _, m := range peers.Members {
		switch m.Role {
		case PeerVoter:
			out.Raft.Voters++
		case PeerNonvoter:
			out.Raft.Nonvoters++
		}
	}
	return list(st.Checksum.Index, out), nil
}
