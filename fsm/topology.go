package fsm

import (
	"cmp"
	"maps"
	"slices"
)

// Topology is everything in the tables but the devices: clusters with their nodes, settings and the roster. It is immutable; each
// change makes a new one. Slices and maps reached through it must not be changed.
type Topology struct {
	// Index is the Raft index of the change that made this topology; rings and other derived state are keyed by it.
	Index    uint64
	Settings Settings
	// Clusters are sorted by name, Gateways by id.
	Clusters []*Cluster
	Gateways []Gateway

	lastCluster ClusterID
	lastNode    NodeID
	byID        map[ClusterID]*Cluster
	nodes       map[NodeID]*Cluster
}

// Cluster finds a cluster by name, nil if there is none.
func (t *Topology) Cluster(name ClusterName) *Cluster {
	i, ok := slices.BinarySearchFunc(t.Clusters, name, func(c *Cluster, n ClusterName) int { return cmp.Compare(c.Name, n) })
	if !ok {
		return nil
	}
	return t.Clusters[i]
}

// ClusterByID finds a cluster by id, nil if there is none.
func (t *Topology) ClusterByID(id ClusterID) *Cluster { return t.byID[id] }

// ClusterOfNode returns the cluster that a node is a member of, nil when the node is gone.
func (t *Topology) ClusterOfNode(id NodeID) *Cluster { return t.nodes[id] }

// Gateway finds a row of the roster.
func (t *Topology) Gateway(id GatewayID) (Gateway, bool) {
	i, ok := slices.BinarySearchFunc(t.Gateways, id, func(g Gateway, id GatewayID) int { return cmp.Compare(g.ID, id) })
	if !ok {
		return Gateway{}, false
	}
	return t.Gateways[i], true
}

// edit returns a copy that shares its rows with t. Rows are replaced, never changed in place.
func (t *Topology) edit(index uint64) *Topology {
	n := *t
	n.Index = index
	n.Clusters = slices.Clone(t.Clusters)
	n.Gateways = slices.Clone(t.Gateways)
	n.byID = maps.Clone(t.byID)
	n.nodes = maps.Clone(t.nodes)
	return &n
}

// setCluster puts or replaces a cluster, by id.
func (t *Topology) setCluster(c *Cluster) {
	t.dropNodes(t.byID[c.ID])
	i, found := slices.BinarySearchFunc(t.Clusters, c.Name, func(x *Cluster, n ClusterName) int { return cmp.Compare(x.Name, n) })
	if found {
		t.Clusters[i] = c
	} else {
		t.Clusters = slices.Insert(t.Clusters, i, c)
	}
	t.byID[c.ID] = c
	for _, n := range c.Nodes {
		t.nodes[n.ID] = c
	}
}

func (t *Topology) removeCluster(c *Cluster) {
	t.dropNodes(c)
	delete(t.byID, c.ID)
	t.Clusters = slices.DeleteFunc(t.Clusters, func(x *Cluster) bool { return x.ID == c.ID })
}

func (t *Topology) dropNodes(c *Cluster) {
	if c == nil {
		return
	}
	for _, n := range c.Nodes {
		delete(t.nodes, n.ID)
	}
}

func (t *Topology) setGateway(g Gateway) {
	i, found := slices.BinarySearchFunc(t.Gateways, g.ID, func(x Gateway, id GatewayID) int { return cmp.Compare(x.ID, id) })
	if found {
		t.Gateways[i] = g
	} else {
		t.Gateways = slices.Insert(t.Gateways, i, g)
	}
}

// topologyImage is the form of a Topology in a snapshot.
type topologyImage struct {
	Index       uint64     `cbor:"1,keyasint"`
	Settings    Settings   `cbor:"2,keyasint"`
	Clusters    []*Cluster `cbor:"3,keyasint"`
	Gateways    []Gateway  `cbor:"4,keyasint"`
	LastCluster ClusterID  `cbor:"5,keyasint"`
	LastNode    NodeID     `cbor:"6,keyasint"`
}

func (t *Topology) image() topologyImage {
	return topologyImage{Index: t.Index, Settings: t.Settings, Clusters: t.Clusters, Gateways: t.Gateways, LastCluster: t.lastCluster, LastNode: t.lastNode}
}

func (im topologyImage) topology() *Topology {
	t := &Topology{
		Index: im.Index, Settings: im.Settings, Gateways: im.Gateways, lastCluster: im.LastCluster, lastNode: im.LastNode,
		byID: map[ClusterID]*Cluster{}, nodes: map[NodeID]*Cluster{},
	}
	for _, c := range im.Clusters {
		t.setCluster(c)
	}
	return t
}
