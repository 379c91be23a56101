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

// topologyHead is what a snapshot says of a Topology before its rows.
type topologyHead struct {
	Index       uint64    `cbor:"1,keyasint"`
	Settings    Settings  `cbor:"2,keyasint"`
	LastCluster ClusterID `cbor:"3,keyasint"`
	LastNode    NodeID    `cbor:"4,keyasint"`
	Clusters    int       `cbor:"5,keyasint"` // rows that follow
	Gateways    int       `cbor:"6,keyasint"` // rows that follow those
}

func newTopology(h topologyHead) *Topology {
	return &Topology{
		Index: h.Index, Settings: h.Settings, lastCluster: h.LastCluster, lastNode: h.LastNode,
		byID: map[ClusterID]*Cluster{}, nodes: map[NodeID]*Cluster{},
	}
}

// parts hands out the topology piece by piece: head, clusters, gateways. Snapshots and the checksum are made of it.
func (t *Topology) parts(visit func(v any) error) error {
	err := visit(topologyHead{
		Index: t.Index, Settings: t.Settings, LastCluster: t.lastCluster, LastNode: t.lastNode,
		Clusters: len(t.Clusters), Gateways: len(t.Gateways),
	})
	if err != nil {
		return err
	}
	for _, c := range t.Clusters {
		if err := visit(c); err != nil {
			return err
		}
	}
	for i := range t.Gateways {
		if err := visit(&t.Gateways[i]); err != nil {
			return err
		}
	}
	return nil
}

// readTopology is the inverse of parts. It refuses what Apply could not have made: ids that were never given, or twice, and rows
// out of order.
func readTopology(next func(v any) error) (*Topology, error) {
	var h topologyHead
	if err := next(&h); err != nil {
		return nil, err
	}
	if h.Clusters < 0 || h.Clusters > MaxClusters || h.Gateways < 0 || h.Gateways > MaxGateways {
		return nil, NewError(CodeInvalid, "", "snapshot counts more clusters or gateways than there can be")
	}
	t := newTopology(h)
	for i := range h.Clusters {
		c := new(Cluster)
		if err := next(c); err != nil {
			return nil, err
		}
		if i > 0 && t.Clusters[i-1].Name >= c.Name || !t.fits(c) {
			return nil, NewError(CodeInvalid, "", "snapshot holds clusters or nodes that contradict each other")
		}
		t.setCluster(c)
	}
	for i := range h.Gateways {
		var g Gateway
		if err := next(&g); err != nil {
			return nil, err
		}
		if i > 0 && t.Gateways[i-1].ID >= g.ID {
			return nil, NewError(CodeInvalid, "", "snapshot holds gateways out of order")
		}
		t.Gateways = append(t.Gateways, g)
	}
	return t, nil
}

// fits reports whether the ids of a cluster and its nodes were given and are not taken.
func (t *Topology) fits(c *Cluster) bool {
	if c.ID == 0 || c.ID > t.lastCluster || t.byID[c.ID] != nil || len(c.Nodes) > MaxClusterNodes {
		return false
	}
	var last NodeID
	for _, n := range c.Nodes {
		if n.ID <= last || n.ID > t.lastNode || t.nodes[n.ID] != nil {
			return false
		}
		last = n.ID
	}
	return true
}
