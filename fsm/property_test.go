package fsm

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// generator makes commands over a few names, so that they meet each other often.
type generator struct{ *rand.Rand }

func pick[T any](g generator, from ...T) T { return from[g.IntN(len(from))] }

func maybe[T any](g generator, v T) *T {
	if g.IntN(2) == 0 {
		return nil
	}
	return &v
}

func (g generator) key() DeviceKey { return DeviceKey(fmt.Sprintf("dev-%d", g.IntN(60))) }
func (g generator) clusterName() ClusterName {
	return pick[ClusterName](g, "north", "east", "south", "west")
}
func (g generator) nodeName() NodeName { return NodeName(fmt.Sprintf("n%d", g.IntN(6))) }
func (g generator) gateway() GatewayID { return GatewayID(fmt.Sprintf("id-%d", g.IntN(4))) }

// guard is mostly nil, sometimes a version that may be right, sometimes 0.
func (g generator) guard(index uint64) *uint64 {
	switch g.IntN(8) {
	case 0:
		return ptr(uint64(0))
	case 1:
		return ptr(index - g.Uint64N(min(index, 8)+1))
	}
	return nil
}

func (g generator) command(t *Tables) Command {
	index := t.Index()
	switch g.IntN(20) {
	case 0:
		return initCommand()
	case 1:
		s := staticSpec(g.nodeName(), g.nodeName())
		s.Weight = g.Uint32N(5)
		return &PutCluster{Name: g.clusterName(), Spec: s, IfVersion: g.guard(index)}
	case 2:
		return &RemoveCluster{Name: g.clusterName(), IfVersion: g.guard(index)}
	case 3, 4, 5:
		c := &UpdateNodes{Cluster: g.clusterName(), IfNodesVersion: g.guard(index)}
		for range g.IntN(4) {
			c.Upsert = append(c.Upsert, NodeChange{Name: g.nodeName(), Address: pick(g, "", "h:1", "h:2"), State: NodeState(1 + g.IntN(3))})
		}
		if g.IntN(3) == 0 {
			c.Remove = append(c.Remove, g.nodeName())
		}
		return c
	case 6:
		return &SetNode{Cluster: g.clusterName(), Node: g.nodeName(), Draining: g.IntN(2) == 0, IfVersion: g.guard(index)}
	case 7, 8, 9, 10:
		c := &PutDevices{}
		for range 1 + g.IntN(4) {
			c.Changes = append(c.Changes, DeviceChange{
				Key: g.key(), Cluster: maybe(g, pick(g, g.clusterName(), g.clusterName(), "")), Pin: maybe(g, pick(g, g.nodeName(), "")),
				PinStrict: maybe(g, g.IntN(2) == 0), Blocked: maybe(g, g.IntN(6) == 0), IfVersion: g.guard(index),
			})
		}
		return c
	case 11, 12:
		c := &RemoveDevices{IfVersion: g.guard(index)}
		for range 1 + g.IntN(3) {
			c.Keys = append(c.Keys, g.key())
		}
		return c
	case 13:
		return &PutSettings{Identity: maybe(g, pick(g, "{client_id}", "{username}")), Force: g.IntN(2) == 0, IfVersion: g.guard(index),
			Unknown: maybe(g, pick(g, Policy{Kind: PolicyRefuse}, Policy{Kind: PolicyCluster, Cluster: g.clusterName()}))}
	case 14:
		return &PutGateway{Gateway: Gateway{ID: g.gateway(), Name: "gw", Zone: pick(g, "a", "b"), PeerAddress: "h:7400"}}
	case 15:
		if g.IntN(2) == 0 {
			return &NoteDiscovery{Cluster: g.clusterName(), Trouble: pick(g, "", "polls fail: unauthorized")}
		}
		return &RemoveGateway{ID: g.gateway()}
	default:
		c := &Bind{}
		topo := t.Topology()
		for range 1 + g.IntN(8) {
			b := Binding{Key: g.key(), Cluster: ClusterID(g.Uint32N(uint32(topo.lastCluster) + 2)), Node: NodeID(g.Uint32N(uint32(topo.lastNode) + 2))}
			if len(topo.Clusters) > 0 && g.IntN(4) > 0 {
				cluster := pick(g, topo.Clusters...)
				b.Cluster = cluster.ID
				if len(cluster.Nodes) > 0 {
					b.Node = pick(g, cluster.Nodes...).ID
				}
			}
			c.Bindings = append(c.Bindings, b)
		}
		return c
	}
}

// historian remembers which ids were given to what.
type historian struct {
	nodes    map[NodeID]string
	clusters map[ClusterID]ClusterName
	live     map[NodeID]bool
}

func (h *historian) see(t *testing.T, topo *Topology) {
	t.Helper()
	live := map[NodeID]bool{}
	for _, c := range topo.Clusters {
		if was, ok := h.clusters[c.ID]; ok && was != c.Name {
			t.Fatalf("cluster id %d was %s, is %s", c.ID, was, c.Name)
		}
		h.clusters[c.ID] = c.Name
		for _, n := range c.Nodes {
			is := fmt.Sprintf("%d/%s", c.ID, n.Name)
			was, known := h.nodes[n.ID]
			if known && (was != is || !h.live[n.ID]) {
				t.Fatalf("node id %d was %s, is %s, a member before: %t", n.ID, was, is, h.live[n.ID])
			}
			h.nodes[n.ID], live[n.ID] = is, true
		}
	}
	h.live = live
}

// bindKeeps checks the promise of Bind for every device: what it may not touch is as it was.
func bindKeeps(t *testing.T, before map[DeviceKey]Device, after *Tables) {
	t.Helper()
	topo := after.Topology()
	for _, d := range all(after, DeviceFilter{}, 100) {
		old := before[d.Key]
		delete(before, d.Key)
		node, member := Node{}, false
		if c := topo.ClusterByID(old.Cluster); c != nil {
			node, member = c.Node(old.Binding)
		}
		switch {
		case old.Cluster != 0 && (d.Cluster != old.Cluster || d.Origin != old.Origin),
			old.Pin != d.Pin || old.PinStrict != d.PinStrict || old.Blocked != d.Blocked,
			old.Blocked && d != old,
			member && !node.Draining && d != old:
			t.Fatalf("a binding changed %+v to %+v", old, d)
		}
		if d != old {
			if bound, ok := topo.ClusterByID(d.Cluster).Node(d.Binding); !ok || bound.Draining {
				t.Fatalf("bound to a node that is gone or draining: %+v", d)
			}
		}
	}
	if len(before) != 0 {
		t.Fatalf("bindings removed %d devices", len(before))
	}
}

// TestRandomHistories applies the same random commands to two tables, one of which goes through snapshots on its way.
func TestRandomHistories(t *testing.T) {
	outcomes := map[string]int{}
	for seed := range uint64(25) {
		g := generator{rand.New(rand.NewPCG(seed, 1))}
		straight, broken := newWorld(t), newWorld(t)
		var log [][]byte
		h := &historian{nodes: map[NodeID]string{}, clusters: map[ClusterID]ClusterName{}}
		for step := range 300 {
			c := g.command(straight.Tables)
			data, err := Encode(c)
			if err != nil {
				t.Fatalf("seed %d step %d: the generator made a bad command: %v", seed, step, err)
			}
			log = append(log, data)
			before := straight.Status()
			rows := map[DeviceKey]Device{}
			for _, d := range all(straight.Tables, DeviceFilter{}, 100) {
				rows[d.Key] = d
			}
			res := straight.entry(data)
			if got := broken.entry(data); got != res {
				t.Fatalf("seed %d step %d: answers %+v and %+v", seed, step, res, got)
			}
			after := straight.Status()
			if res.Code != CodeOK && after.Checksum.Sum != before.Checksum.Sum {
				t.Fatalf("seed %d step %d: refused with %s, and left a trace", seed, step, res.Code)
			}
			if after.Checksum != broken.Status().Checksum {
				t.Fatalf("seed %d step %d: checksums differ after kind %d", seed, step, c.Kind())
			}
			if c, ok := c.(*Bind); ok {
				bindKeeps(t, rows, straight.Tables)
				sum := straight.Status().Checksum.Sum
				straight.do(c)
				broken.do(c)
				log = append(log, data)
				if straight.Status().Checksum.Sum != sum {
					t.Fatalf("seed %d step %d: bindings applied twice are not the same", seed, step)
				}
			}
			h.see(t, straight.Topology())
			sound(t, straight.Tables)
			if g.IntN(25) == 0 {
				broken = broken.reborn()
			}
			outcomes[fmt.Sprintf("%d %s", c.Kind(), res.Code)]++
		}
		same(t, straight.Tables, broken.Tables)
		replayed := newWorld(t)
		for _, data := range log {
			replayed.entry(data)
		}
		same(t, straight.Tables, replayed.Tables)
	}
	for k := KindInit; k <= KindNoteDiscovery; k++ {
		if outcomes[fmt.Sprintf("%d ", k)] == 0 {
			t.Errorf("kind %d never succeeded: the generator is too narrow", k)
		}
	}
	for _, want := range []string{"2 conflict", "3 in_use", "4 not_found", "6 invalid", "6 conflict", "7 not_found", "9 in_use", "11 not_found"} {
		if outcomes[want] == 0 {
			t.Errorf("%q never happened: the generator is too narrow", want)
		}
	}
}

// TestChecksumIgnoresOrder builds the same rows in different orders.
func TestChecksumIgnoresOrder(t *testing.T) {
	g := generator{rand.New(rand.NewPCG(1, 2))}
	var want uint64
	for round := range 5 {
		d := newDeviceTable()
		for _, i := range g.Perm(1000) {
			d.put(DeviceKey(fmt.Sprint("gone-", i)), row{cluster: 1})
			d.put(DeviceKey(fmt.Sprint("dev-", i)), row{cluster: 2, version: 9})
			d.put(DeviceKey(fmt.Sprint("dev-", i)), row{cluster: 1, version: uint64(i)})
		}
		for _, i := range g.Perm(1000) {
			d.remove(DeviceKey(fmt.Sprint("gone-", i)))
		}
		if round == 0 {
			want = d.sum
		}
		if d.sum != want || d.count[1] != 1000 || len(d.count) != 1 {
			t.Fatalf("round %d: sum %x, want %x; counts %v", round, d.sum, want, d.count)
		}
	}
}
