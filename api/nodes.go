package api

import (
	"context"
	"net/http"

	"turnout/api/client"
	"turnout/fsm"
)

// NodePath is the part of a path that names a member of a broker cluster.
type NodePath struct {
	ClusterPath
	Node string `path:"node" doc:"Name of a node of the cluster, percent-encoded"`
}

func (a *API) registerNodes() {
	const path = "/v1/clusters/{cluster}/nodes/{node}"
	register(a, RoleRead, get("list-nodes", "/v1/clusters/{cluster}/nodes", "List the members of a broker cluster"), a.listNodes)
	register(a, RoleRead, get("get-node", path, "Get a member of a broker cluster"), a.getNode)
	register(a, RoleOperate, op("patch-node", http.MethodPatch, path, "Start or end the draining of a node"), a.patchNode)
	register(a, RoleAdmin, op("delete-node", http.MethodDelete, path, "Say that a node is gone: its devices are bound elsewhere when they connect again"), a.deleteNode)
}

func (a *API) listNodes(_ context.Context, in *ClusterPath) (*answer[client.NodeList], error) {
	index := a.tables.Index()
	c, p := a.cluster(in.Cluster)
	if p != nil {
		return nil, p
	}
	out := client.NodeList{Items: make([]client.Node, len(c.Nodes))}
	for i, n := range c.Nodes {
		out.Items[i] = nodeJSON(n)
	}
	return list(index, out), nil
}

func (a *API) getNode(_ context.Context, in *NodePath) (*answer[client.Node], error) {
	index := a.tables.Index()
	_, n, p := a.node(in)
	if p != nil {
		return nil, p
	}
	return record(index, n.Version, nodeJSON(n)), nil
}

type patchNodeInput struct {
	NodePath
	MatchParams
	WriteParams
	Body client.NodePatch
}

func (a *API) patchNode(ctx context.Context, in *patchNodeInput) (*answer[client.WriteResult], error) {
	want, p := in.version()
	if p != nil {
		return nil, p
	}
	if in.Body.Draining == nil {
		return nil, unprocessable("body", "names no field to change")
	}
	_, n, p := a.node(&in.NodePath)
	if p != nil {
		return nil, p
	}
	cmd := &fsm.SetNode{Cluster: fsm.ClusterName(in.Cluster), Node: fsm.NodeName(in.Node), Draining: *in.Body.Draining, IfVersion: want}
	return a.write(ctx, cmd, in.WriteParams, n.Version, want != nil)
}

type deleteNodeInput struct {
	NodePath
	MatchParams
	WriteParams
}

func (a *API) deleteNode(ctx context.Context, in *deleteNodeInput) (*answer[client.WriteResult], error) {
	want, p := in.version()
	if p != nil {
		return nil, p
	}
	c, n, p := a.node(&in.NodePath)
	if p != nil {
		return nil, p
	}
	cmd := &fsm.UpdateNodes{Cluster: c.Name, Remove: []fsm.NodeName{n.Name}}
	if want != nil {
		if *want != n.Version {
			return nil, refusal(fsm.NewError(fsm.CodeConflict, "version", "is not the stored version"), true)
		}
		// The command is guarded by the member list as a whole: no change of the node gets past that.
		cmd.IfNodesVersion = &c.NodesVersion
	}
	if _, listed := c.Spec.Addresses[n.Name]; listed && c.Spec.Driver == fsm.DriverStatic {
		return nil, refusal(fsm.NewError(fsm.CodeInUse, "node", "the cluster's address table names it: take it out there"), false)
	}
	out, err := a.write(ctx, cmd, in.WriteParams, n.Version, want != nil)
	if err == nil {
		out.Body.Version, out.ETag = 0, "" // the version is the list's; the node has none any more
	}
	return out, err
}

// node finds the member that a path names.
func (a *API) node(in *NodePath) (*fsm.Cluster, fsm.Node, *problem) {
	c, p := a.cluster(in.Cluster)
	if p != nil {
		return nil, fsm.Node{}, p
	}
	n, ok := c.NodeByName(fsm.NodeName(in.Node))
	if !ok {
		return nil, fsm.Node{}, refusal(fsm.NewError(fsm.CodeNotFound, "node", "no such node in this cluster"), false)
	}
	return c, n, nil
}

func nodeJSON(n fsm.Node) client.Node {
	return client.Node{
		Name: string(n.Name), ID: uint32(n.ID), Address: n.Address, State: n.State.String(), Draining: n.Draining, Version: n.Version,
	}
}
