package fsm

import (
	"math"
	"slices"
)

// apply carries out a command. The caller holds t.mu. Every check comes before the first change, so a refusal leaves no trace.
func (t *Tables) apply(index uint64, c Command) Result {
	switch c := c.(type) {
	case *Init:
		return t.applyInit(index, c)
	case *PutCluster:
		return t.applyPutCluster(index, c)
	case *RemoveCluster:
		return t.applyRemoveCluster(index, c)
	case *UpdateNodes:
		return t.applyUpdateNodes(index, c)
	case *SetNode:
		return t.applySetNode(index, c)
	case *PutDevices:
		return t.applyPutDevices(index, c)
	case *RemoveDevices:
		return t.applyRemoveDevices(c)
	case *Bind:
		return t.applyBind(index, c)
	case *PutSettings:
		return t.applyPutSettings(index, c)
	case *PutGateway:
		return t.applyPutGateway(index, c)
	case *RemoveGateway:
		return t.applyRemoveGateway(index, c)
	case *NoteDiscovery:
		return t.applyNoteDiscovery(index, c)
	}
	return refusal(NewError(CodeUnsupported, "", "command kind %d has no apply", c.Kind()))
}

// stale reports whether a write guarded by want must be refused for a row of version have, 0 when there is no row.
func stale(want *uint64, have uint64) bool { return want != nil && *want != have }

// conflict is the refusal of a write that stale has judged.
func conflict(want *uint64, item int) Result {
	if *want == 0 {
		return refuseItem(item, CodeConflict, "absent", "exists already")
	}
	return refuseItem(item, CodeConflict, "version", "is not the stored version")
}

func (t *Tables) applyInit(index uint64, c *Init) Result {
	topo := t.topo.Load()
	if topo.Settings.ClusterID != "" {
		return Result{Version: topo.Settings.Version}
	}
	next := topo.edit(index)
	next.Settings = c.Settings
	next.Settings.Version = index
	t.topo.Store(next)
	return Result{Version: index}
}

func (t *Tables) applyPutCluster(index uint64, c *PutCluster) Result {
	topo := t.topo.Load()
	old := topo.Cluster(c.Name)
	var cluster Cluster
	if old != nil {
		cluster = *old
	}
	if stale(c.IfVersion, cluster.Version) {
		return conflict(c.IfVersion, -1)
	}
	next := topo.edit(index)
	if old == nil {
		if len(topo.Clusters) >= MaxClusters {
			return refusal(NewError(CodeInvalid, "name", "no more than %d clusters", MaxClusters))
		}
		if next.lastCluster == math.MaxUint32 {
			return refusal(NewError(CodeInvalid, "name", "no cluster ids are left"))
		}
		next.lastCluster++
		cluster.ID = next.lastCluster
		cluster.NodesVersion = index
	}
	cluster.Name, cluster.Spec, cluster.Version = c.Name, c.Spec, index
	next.setCluster(&cluster)
	t.topo.Store(next)
	return Result{Version: index}
}

func (t *Tables) applyRemoveCluster(index uint64, c *RemoveCluster) Result {
	topo := t.topo.Load()
	cluster := topo.Cluster(c.Name)
	switch {
	case cluster == nil:
		return refusal(NewError(CodeNotFound, "name", "no such cluster"))
	case stale(c.IfVersion, cluster.Version):
		return conflict(c.IfVersion, -1)
	case t.devices.count[cluster.ID] > 0:
		return refusal(NewError(CodeInUse, "name", "%d devices are assigned to or placed in this cluster", t.devices.count[cluster.ID]))
	case topo.Settings.Unknown.Cluster == c.Name:
		return refusal(NewError(CodeInUse, "name", "the policy for unknown devices names this cluster"))
	}
	next := topo.edit(index)
	next.removeCluster(cluster)
	t.topo.Store(next)
	return Result{}
}

func (t *Tables) applyUpdateNodes(index uint64, c *UpdateNodes) Result {
	topo := t.topo.Load()
	old := topo.Cluster(c.Cluster)
	if old == nil {
		return refusal(NewError(CodeNotFound, "name", "no such cluster"))
	}
	if stale(c.IfNodesVersion, old.NodesVersion) {
		return conflict(c.IfNodesVersion, -1)
	}
	for _, name := range c.Remove {
		if _, ok := old.NodeByName(name); !ok {
			return refusal(NewError(CodeNotFound, "node", "no such node in this cluster"))
		}
	}
	next := topo.edit(index)
	cluster := *old
	cluster.Nodes = slices.DeleteFunc(slices.Clone(old.Nodes), func(n Node) bool { return slices.Contains(c.Remove, n.Name) })
	changed := len(cluster.Nodes) != len(old.Nodes)
	for _, u := range c.Upsert {
		i := slices.IndexFunc(cluster.Nodes, func(n Node) bool { return n.Name == u.Name })
		if i < 0 {
			if next.lastNode == math.MaxUint32 {
				return refusal(NewError(CodeInvalid, "nodes", "no node ids are left"))
			}
			next.lastNode++
			cluster.Nodes = append(cluster.Nodes, Node{ID: next.lastNode, Name: u.Name, Address: u.Address, State: u.State, Version: index})
			changed = true
			continue
		}
		n := &cluster.Nodes[i]
		if n.Address == u.Address && n.State == u.State {
			continue
		}
		n.Address, n.State, n.Version = u.Address, u.State, index
		changed = true
	}
	if len(cluster.Nodes) > MaxClusterNodes {
		return refusal(NewError(CodeInvalid, "nodes", "no more than %d nodes in one cluster", MaxClusterNodes))
	}
	if !changed {
		return Result{Version: old.NodesVersion}
	}
	cluster.NodesVersion = index
	next.setCluster(&cluster)
	t.topo.Store(next)
	return Result{Version: index}
}

func (t *Tables) applyNoteDiscovery(index uint64, c *NoteDiscovery) Result {
	topo := t.topo.Load()
	old := topo.Cluster(c.Cluster)
	if old == nil {
		return refusal(NewError(CodeNotFound, "name", "no such cluster"))
	}
	if old.Trouble != c.Trouble {
		cluster := *old
		cluster.Trouble = c.Trouble
		next := topo.edit(index)
		next.setCluster(&cluster)
		t.topo.Store(next)
	}
	return Result{Item: -1}
}

func (t *Tables) applySetNode(index uint64, c *SetNode) Result {
	topo := t.topo.Load()
	old := topo.Cluster(c.Cluster)
	if old == nil {
		return refusal(NewError(CodeNotFound, "name", "no such cluster"))
	}
	i := slices.IndexFunc(old.Nodes, func(n Node) bool { return n.Name == c.Node })
	if i < 0 {
		return refusal(NewError(CodeNotFound, "node", "no such node in this cluster"))
	}
	if stale(c.IfVersion, old.Nodes[i].Version) {
		return conflict(c.IfVersion, -1)
	}
	if old.Nodes[i].Draining == c.Draining {
		return Result{Version: old.Nodes[i].Version}
	}
	cluster := *old
	cluster.Nodes = slices.Clone(old.Nodes)
	cluster.Nodes[i].Draining, cluster.Nodes[i].Version = c.Draining, index
	cluster.NodesVersion = index
	next := topo.edit(index)
	next.setCluster(&cluster)
	t.topo.Store(next)
	return Result{Version: index}
}

func (t *Tables) applyPutSettings(index uint64, c *PutSettings) Result {
	topo := t.topo.Load()
	s := topo.Settings
	if s.ClusterID == "" {
		return refusal(NewError(CodeConflict, "", "the cluster is not bootstrapped yet"))
	}
	if stale(c.IfVersion, s.Version) {
		return conflict(c.IfVersion, -1)
	}
	if c.Identity != nil && *c.Identity != s.Identity {
		if t.devices.rows.Len() > 0 && !c.Force {
			return refusal(NewError(CodeInUse, "identity", "devices are recorded under keys of the present template"))
		}
		s.Identity = *c.Identity
	}
	if c.Unknown != nil {
		if c.Unknown.Cluster != "" && topo.Cluster(c.Unknown.Cluster) == nil {
			return refusal(NewError(CodeInvalid, "unknown.cluster", "no such cluster"))
		}
		s.Unknown = *c.Unknown
	}
	s.Version = index
	next := topo.edit(index)
	next.Settings = s
	t.topo.Store(next)
	return Result{Version: index}
}

func (t *Tables) applyPutGateway(index uint64, c *PutGateway) Result {
	topo := t.topo.Load()
	g := c.Gateway
	old, ok := topo.Gateway(g.ID)
	g.Version = old.Version
	if ok && old == g {
		return Result{Version: old.Version}
	}
	if !ok && len(topo.Gateways) >= MaxGateways {
		return refusal(NewError(CodeInvalid, "id", "no more than %d gateways", MaxGateways))
	}
	g.Version = index
	next := topo.edit(index)
	next.setGateway(g)
	t.topo.Store(next)
	return Result{Version: index}
}

func (t *Tables) applyRemoveGateway(index uint64, c *RemoveGateway) Result {
	topo := t.topo.Load()
	if _, ok := topo.Gateway(c.ID); !ok {
		return refusal(NewError(CodeNotFound, "id", "no such gateway"))
	}
	next := topo.edit(index)
	next.Gateways = slices.DeleteFunc(next.Gateways, func(g Gateway) bool { return g.ID == c.ID })
	t.topo.Store(next)
	return Result{}
}
