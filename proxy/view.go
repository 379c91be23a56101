package proxy

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"turnout/fsm"
)

// view is everything a decision needs but the device record: one immutable value, made anew when the topology changes.
type view struct {
	topology *fsm.Topology
	identity *Identity // nil until the tables hold a template that can be read
	clusters map[fsm.ClusterID]*clusterView
	// weighted are the clusters that the weighted policy may choose, by id.
	weighted []*clusterView
	policy   *clusterView // for fsm.PolicyCluster, nil when there is no such cluster
}

// clusterView is a cluster with its ring. It is shared by successive views while the cluster does not change.
type clusterView struct {
	cluster *fsm.Cluster
	ring    *ring       // nil when the cluster has no members or its ring could not be built
	nodes   []*fsm.Node // of ring.members; nil for one that is gone (only with the ring of an earlier topology)
	placing bool        // has a member that takes new bindings
}

// ringMembers are the nodes that belong on a cluster's ring: those that are not draining, or all when all of them are.
func ringMembers(c *fsm.Cluster) (members []fsm.NodeID, placing bool) {
	for i := range c.Nodes {
		if !c.Nodes[i].Draining {
			members = append(members, c.Nodes[i].ID)
		}
	}
	if len(members) > 0 {
		return members, true
	}
	for i := range c.Nodes {
		members = append(members, c.Nodes[i].ID)
	}
	return members, false
}

// member finds a node of a cluster, nil if it is none.
func member(c *fsm.Cluster, id fsm.NodeID) *fsm.Node {
	if id == 0 {
		return nil
	}
	lo, hi := 0, len(c.Nodes)
	for lo < hi {
		mid := (lo + hi) / 2
		if c.Nodes[mid].ID < id {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(c.Nodes) && c.Nodes[lo].ID == id {
		return &c.Nodes[lo]
	}
	return nil
}

// newClusterView makes the view of a cluster, keeping old's ring when its inputs are the same. When a ring can't be built, the ring of old
// goes on to be used for the members that are left, and err says why.
func newClusterView(old *clusterView, c *fsm.Cluster) (*clusterView, error) {
	v := &clusterView{cluster: c}
	var members []fsm.NodeID
	members, v.placing = ringMembers(c)
	var err error
	if old != nil && old.ring.same(c.Spec.Ring, members) {
		v.ring = old.ring
	} else if v.ring, err = buildRing(c.Spec.Ring, members); err != nil && old != nil {
		v.ring = old.ring
	}
	if v.ring != nil {
		v.nodes = make([]*fsm.Node, len(v.ring.members))
		for i, id := range v.ring.members {
			v.nodes[i] = member(c, id)
		}
	}
	return v, err
}

// nextView makes the view of a topology out of the one before, nil for the first.
func nextView(old *view, topo *fsm.Topology, log *slog.Logger) *view {
	v := &view{topology: topo, clusters: make(map[fsm.ClusterID]*clusterView, len(topo.Clusters))}
	switch {
	case old != nil && old.identity != nil && old.identity.String() == topo.Settings.Identity:
		v.identity = old.identity
	case topo.Settings.Identity != "":
		id, err := ParseIdentity(topo.Settings.Identity)
		if err != nil {
			log.Error("identity template of the tables is not usable; the one before stays", "error", err)
			if old != nil {
				id = old.identity
			}
		}
		v.identity = id
	}
	for _, c := range topo.Clusters {
		var before *clusterView
		if old != nil {
			before = old.clusters[c.ID]
		}
		cv := before
		if before == nil || before.cluster != c {
			var err error
			if cv, err = newClusterView(before, c); err != nil {
				log.Error("ring of a cluster could not be built; the one before stays", "cluster", string(c.Name), "error", err)
			}
		}
		v.clusters[c.ID] = cv
		if c.Spec.Weight > 0 && cv.placing {
			v.weighted = append(v.weighted, cv)
		}
		if topo.Settings.Unknown.Kind == fsm.PolicyCluster && topo.Settings.Unknown.Cluster == c.Name {
			v.policy = cv
		}
	}
	slices.SortFunc(v.weighted, func(a, b *clusterView) int { return int(int64(a.cluster.ID) - int64(b.cluster.ID)) })
	return v
}

// views publishes the current view. Whoever needs one and finds the tables ahead of it makes the next one itself, so that a
// decision never rests on a topology older than the tables it reads devices from; the observer only does it beforehand.
type views struct {
	tables  *fsm.Tables
	log     *slog.Logger
	changed func(*view) // called under mu after each change
	current atomic.Pointer[view]
	mu      sync.Mutex // one builder at a time; locked before that of health
}

// get returns the view of the tables' topology.
func (w *views) get() *view {
	v := w.current.Load()
	if v != nil && v.topology == w.tables.Topology() {
		return v
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	v = w.current.Load()
	topo := w.tables.Topology()
	if v != nil && v.topology == topo {
		return v
	}
	v = nextView(v, topo, w.log)
	w.current.Store(v)
	w.changed(v)
	return v
}

// observe follows the topology until the context ends.
func (w *views) observe(ctx context.Context) {
	for {
		v := w.get()
		if _, err := w.tables.WaitTopology(ctx, v.topology); err != nil {
			return
		}
	}
}
