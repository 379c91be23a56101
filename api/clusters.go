package api

import (
	"context"
	"net/http"

	"turnout/api/client"
	"turnout/fsm"
)

// ClusterPath is the part of a path that names a broker cluster. Like the other Params and Path types it is exported for huma, which reads embedded fields of
// exported types only.
type ClusterPath struct {
	Cluster string `path:"cluster" doc:"Name of a broker cluster"`
}

func (a *API) registerClusters() {
	register(a, RoleRead, get("list-clusters", "/v1/clusters", "List the broker clusters"), a.listClusters)
	register(a, RoleRead, get("get-cluster", "/v1/clusters/{cluster}", "Get a broker cluster"), a.getCluster)
	register(a, RoleAdmin, op("put-cluster", http.MethodPut, "/v1/clusters/{cluster}", "Add a broker cluster or replace its spec; what the body leaves out takes its default"), a.putCluster)
	register(a, RoleAdmin, op("delete-cluster", http.MethodDelete, "/v1/clusters/{cluster}", "Remove a broker cluster that no device and no policy refers to"), a.deleteCluster)
}

func (a *API) listClusters(context.Context, *struct{}) (*answer[client.ClusterList], error) {
	index, topo := a.tables.Index(), a.tables.Topology()
	out := client.ClusterList{Items: make([]client.Cluster, len(topo.Clusters))}
	for i, c := range topo.Clusters {
		out.Items[i] = a.clusterJSON(c)
	}
	return list(index, out), nil
}

func (a *API) getCluster(_ context.Context, in *ClusterPath) (*answer[client.Cluster], error) {
	index := a.tables.Index()
	c, p := a.cluster(in.Cluster)
	if p != nil {
		return nil, p
	}
	return record(index, c.Version, a.clusterJSON(c)), nil
}

type putClusterInput struct {
	ClusterPath
	CreateParams
	WriteParams
	Body client.ClusterSpec
}

func (a *API) putCluster(ctx context.Context, in *putClusterInput) (*answer[client.WriteResult], error) {
	want, p := in.CreateParams.version()
	if p != nil {
		return nil, p
	}
	name := fsm.ClusterName(in.Cluster)
	var before uint64
	if c := a.tables.Topology().Cluster(name); c != nil {
		before = c.Version
	}
	return a.write(ctx, &fsm.PutCluster{Name: name, Spec: specFrom(&in.Body), IfVersion: want}, in.WriteParams, before, want != nil)
}

type deleteClusterInput struct {
	ClusterPath
	MatchParams
	WriteParams
}

func (a *API) deleteCluster(ctx context.Context, in *deleteClusterInput) (*answer[client.WriteResult], error) {
	want, p := in.MatchParams.version()
	if p != nil {
		return nil, p
	}
	name := fsm.ClusterName(in.Cluster)
	var before uint64
	if c := a.tables.Topology().Cluster(name); c != nil {
		before = c.Version
	}
	return a.write(ctx, &fsm.RemoveCluster{Name: name, IfVersion: want}, in.WriteParams, before, want != nil)
}

// cluster finds a cluster that a path names.
func (a *API) cluster(name string) (*fsm.Cluster, *problem) {
	if c := a.tables.Topology().Cluster(fsm.ClusterName(name)); c != nil {
		return c, nil
	}
	return nil, refusal(fsm.NewError(fsm.CodeNotFound, "name", "no such cluster"), false)
}

func (a *API) clusterJSON(c *fsm.Cluster) client.Cluster {
	return client.Cluster{
		Name: string(c.Name), Spec: specJSON(&c.Spec), Nodes: len(c.Nodes), Devices: a.tables.DevicesIn(c.ID),
		Version: c.Version, NodesVersion: c.NodesVersion, Trouble: c.Trouble,
	}
}

// specFrom lays the operator's words over the defaults.
func specFrom(in *client.ClusterSpec) fsm.ClusterSpec {
	s := fsm.DefaultSpec()
	set(&s.Driver, in.Driver)
	s.ManagementURLs = in.ManagementURLs
	s.Credential = in.Credential
	setTo(&s.PollSeconds, in.PollSeconds)
	setTo(&s.RemoveAfter, in.RemoveAfter)
	setTo(&s.Port, in.Port)
	setTo(&s.Weight, in.Weight)
	if len(in.Addresses) > 0 {
		s.Addresses = make(map[fsm.NodeName]string, len(in.Addresses))
		for name, addr := range in.Addresses {
			s.Addresses[fsm.NodeName(name)] = addr
		}
	}
	if r := in.Ring; r != nil {
		setTo(&s.Ring.Algorithm, r.Algorithm)
		setTo(&s.Ring.Partitions, r.Partitions)
		setTo(&s.Ring.Replication, r.Replication)
		setTo(&s.Ring.LoadPercent, r.LoadPercent)
	}
	if c := in.Channel; c != nil {
		s.Channel.Kind, s.Channel.URL, s.Channel.Credential = c.Kind, c.URL, c.Credential
		set(&s.Channel.Topic, c.Topic)
		setTo(&s.Channel.QoS, c.QoS)
		setTo(&s.Channel.ExpirySeconds, c.ExpirySeconds)
		setTo(&s.Channel.MaxBytes, c.MaxBytes)
	}
	return s
}

// specJSON is the inverse of specFrom: sent back by PUT it changes nothing.
func specJSON(s *fsm.ClusterSpec) client.ClusterSpec {
	out := client.ClusterSpec{
		Driver: s.Driver, ManagementURLs: s.ManagementURLs, Credential: s.Credential,
		PollSeconds: &s.PollSeconds, RemoveAfter: &s.RemoveAfter, Port: &s.Port, Weight: &s.Weight,
		Ring: &client.RingSpec{
			Algorithm: &s.Ring.Algorithm, Partitions: &s.Ring.Partitions, Replication: &s.Ring.Replication, LoadPercent: &s.Ring.LoadPercent,
		},
		Channel: &client.ChannelSpec{
			Kind: s.Channel.Kind, URL: s.Channel.URL, Credential: s.Channel.Credential, Topic: s.Channel.Topic,
			QoS: &s.Channel.QoS, ExpirySeconds: &s.Channel.ExpirySeconds, MaxBytes: &s.Channel.MaxBytes,
		},
	}
	if len(s.Addresses) > 0 {
		out.Addresses = make(map[string]string, len(s.Addresses))
		for name, addr := range s.Addresses {
			out.Addresses[string(name)] = addr
		}
	}
	return out
}

func set(dst *string, v string) {
	if v != "" {
		*dst = v
	}
}

func setTo[T any](dst, v *T) {
	if v != nil {
		*dst = *v
	}
}
