package fsm

import (
	"fmt"
	"math"
	"testing"
)

func TestInitGivesIdentityOnce(t *testing.T) {
	w := newWorld(t)
	w.refuse(&PutSettings{Identity: ptr("{username}")}, CodeConflict, "", -1)
	res := w.must(initCommand())
	s := w.Topology().Settings
	if s.ClusterID != "c0ffee" || s.Version != w.index || res.Version != w.index {
		t.Fatalf("settings %q version %d, result %d", s.ClusterID, s.Version, res.Version)
	}
	second := initCommand()
	second.Settings.ClusterID = "other"
	if res := w.unchanged(second); res.Version != s.Version {
		t.Fatalf("version %d of the settings that stay, want %d", res.Version, s.Version)
	}
	sound(t, w.Tables)
}

func TestPutCluster(t *testing.T) {
	w := populated(t)
	west := w.Topology().Cluster("west")
	spec := staticSpec("w1")
	spec.Weight = 7

	w.refuse(&PutCluster{Name: "west", Spec: spec, IfVersion: ptr(uint64(0))}, CodeConflict, "absent", -1)
	w.refuse(&PutCluster{Name: "west", Spec: spec, IfVersion: ptr(west.Version + 1)}, CodeConflict, "version", -1)
	w.refuse(&PutCluster{Name: "north", Spec: spec, IfVersion: ptr(uint64(3))}, CodeConflict, "version", -1)

	res := w.must(&PutCluster{Name: "west", Spec: spec, IfVersion: &west.Version})
	renewed := w.Topology().Cluster("west")
	if renewed.ID != west.ID || len(renewed.Nodes) != 3 || renewed.NodesVersion != west.NodesVersion || renewed.Spec.Weight != 7 {
		t.Fatalf("a renewed spec must keep id, nodes and their version: %+v", renewed)
	}
	if renewed.Version != w.index || res.Version != w.index || west.Spec.Weight != 1 {
		t.Fatal("the version is the index, and the topology a reader holds does not change")
	}
	if w.DevicesIn(west.ID) != 1 {
		t.Fatal("a renewed spec must keep devices")
	}
	w.must(&PutCluster{Name: "north", Spec: spec, IfVersion: ptr(uint64(0))})
	if n := w.Topology().Cluster("north"); n.NodesVersion != w.index || n.ID == west.ID {
		t.Fatalf("a new cluster: %+v", n)
	}
	sound(t, w.Tables)
}

func TestClustersAreBounded(t *testing.T) {
	w := newWorld(t)
	for i := range MaxClusters {
		w.must(&PutCluster{Name: ClusterName(fmt.Sprintf("c%d", i)), Spec: staticSpec("n")})
	}
	w.refuse(&PutCluster{Name: "one-more", Spec: staticSpec("n")}, CodeInvalid, "name", -1)
	w.must(&PutCluster{Name: "c7", Spec: staticSpec("n")})
	same(t, w.Tables, w.reborn().Tables)
}

func TestRemoveCluster(t *testing.T) {
	w := populated(t)
	version := w.Topology().Cluster("west").Version
	w.refuse(&RemoveCluster{Name: "north"}, CodeNotFound, "name", -1)
	w.refuse(&RemoveCluster{Name: "west", IfVersion: ptr(version + 1)}, CodeConflict, "version", -1)
	w.refuse(&RemoveCluster{Name: "west", IfVersion: &version}, CodeInUse, "name", -1)
	w.must(assign("a", "")) // the record stays, the assignment goes
	w.must(&PutSettings{Unknown: &Policy{Kind: PolicyCluster, Cluster: "west"}})
	w.refuse(&RemoveCluster{Name: "west"}, CodeInUse, "name", -1)
	w.must(&PutSettings{Unknown: &Policy{Kind: PolicyRefuse}})

	id := w.cluster("west")
	node := w.node("west", "w1").ID
	w.must(&RemoveCluster{Name: "west", IfVersion: &version})
	topo := w.Topology()
	if topo.Cluster("west") != nil || topo.ClusterByID(id) != nil || topo.ClusterOfNode(node) != nil {
		t.Fatal("a removed cluster is still found")
	}
	sound(t, w.Tables)
}

func TestIDsAreNeverReused(t *testing.T) {
	for _, tc := range []struct {
		name  string
		again func(*world) *world
	}{
		{"from the log", func(w *world) *world { return w }},
		{"across a snapshot", (*world).reborn},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := populated(t)
			w.bind("b", w.cluster("east"), w.node("east", "e2").ID)
			node, cluster := w.node("west", "w3").ID, w.cluster("west")

			w.must(&UpdateNodes{Cluster: "west", Remove: []NodeName{"w3"}})
			w = tc.again(w)
			if w.Topology().ClusterOfNode(node) != nil {
				t.Fatal("a removed node is still a member")
			}
			w.must(&UpdateNodes{Cluster: "west", Upsert: up("w3")})
			if got := w.node("west", "w3").ID; got <= node {
				t.Fatalf("node came back as %d, was %d", got, node)
			}
			// Removed and back within one change is a new membership too.
			before := w.node("west", "w2").ID
			w.must(&UpdateNodes{Cluster: "west", Remove: []NodeName{"w2"}, Upsert: up("w2")})
			if got := w.node("west", "w2").ID; got <= before {
				t.Fatalf("node came back as %d, was %d", got, before)
			}

			w.must(&RemoveDevices{Keys: []DeviceKey{"a"}}, &RemoveCluster{Name: "west"})
			w = tc.again(w)
			w.must(&PutCluster{Name: "west", Spec: staticSpec("w1")}, &UpdateNodes{Cluster: "west", Upsert: up("w1")})
			if got := w.cluster("west"); got <= cluster {
				t.Fatalf("cluster came back as %d, was %d", got, cluster)
			}
			if got := w.node("west", "w1").ID; got <= before {
				t.Fatalf("first node of the new cluster has id %d, an old one", got)
			}
			sound(t, w.Tables)
		})
	}
}

func TestEmptiedTablesSurviveASnapshot(t *testing.T) {
	w := newWorld(t)
	same(t, w.Tables, w.reborn().Tables)
	w.must(&PutCluster{Name: "west", Spec: staticSpec("w1")}, &RemoveCluster{Name: "west"})
	w.must(&PutGateway{Gateway: Gateway{ID: "id-1", Name: "gw-1", PeerAddress: "10.0.0.9:7400"}}, &RemoveGateway{ID: "id-1"})
	same(t, w.Tables, w.reborn().Tables)
}

func TestIDsRunOutRatherThanWrap(t *testing.T) {
	w := newWorld(t)
	w.must(&PutCluster{Name: "west", Spec: staticSpec("w1")})
	topo := w.Topology().edit(w.index)
	topo.lastCluster, topo.lastNode = math.MaxUint32, math.MaxUint32-1
	w.topo.Store(topo)
	w.refuse(&PutCluster{Name: "east", Spec: staticSpec("e1")}, CodeInvalid, "name", -1)
	w.refuse(&UpdateNodes{Cluster: "west", Upsert: up("w1", "w2")}, CodeInvalid, "nodes", -1)
	w.must(&UpdateNodes{Cluster: "west", Upsert: up("w1")})
	if id := w.node("west", "w1").ID; id != math.MaxUint32 {
		t.Fatalf("the last id is %d", id)
	}
	w.refuse(&UpdateNodes{Cluster: "west", Upsert: up("w2")}, CodeInvalid, "nodes", -1)
	same(t, w.Tables, w.reborn().Tables)
}

func TestUpdateNodes(t *testing.T) {
	w := populated(t)
	version := w.Topology().Cluster("west").NodesVersion
	w.refuse(&UpdateNodes{Cluster: "north", Upsert: up("n1")}, CodeNotFound, "name", -1)
	w.refuse(&UpdateNodes{Cluster: "west", Upsert: up("w4"), IfNodesVersion: ptr(version + 1)}, CodeConflict, "version", -1)
	w.refuse(&UpdateNodes{Cluster: "west", Upsert: up("w4"), Remove: []NodeName{"w1", "nobody"}}, CodeNotFound, "node", -1)
	var many []NodeChange
	for i := range MaxClusterNodes - 2 {
		many = append(many, up(NodeName(fmt.Sprintf("x%d", i)))...)
	}
	w.refuse(&UpdateNodes{Cluster: "west", Upsert: many}, CodeInvalid, "nodes", -1)
	if got := w.Topology().lastNode; got != 5 {
		t.Fatalf("a refused change used up node ids: last is %d", got)
	}

	if res := w.unchanged(&UpdateNodes{Cluster: "west", Upsert: up("w1", "w2")}); res.Version != version {
		t.Fatalf("version %d of the list that stays, want %d", res.Version, version)
	}
	other := w.node("west", "w2").Version
	w.must(&UpdateNodes{Cluster: "west", IfNodesVersion: &version, Upsert: []NodeChange{{Name: "w1", State: NodeSuspect}}})
	n := w.node("west", "w1")
	if n.State != NodeSuspect || n.Address != "" || n.Version != w.index || n.ID != 1 {
		t.Fatalf("changed node: %+v", n)
	}
	if w.node("west", "w2").Version != other {
		t.Fatal("the version of a node that did not change moved")
	}
	c := w.Topology().Cluster("west")
	if c.NodesVersion != w.index || c.Version == w.index {
		t.Fatalf("cluster version %d, nodes version %d at index %d", c.Version, c.NodesVersion, w.index)
	}
	// The same name twice: the later word counts, and there is one member.
	w.must(&UpdateNodes{Cluster: "east", Upsert: []NodeChange{{Name: "e9", State: NodeUp}, {Name: "e9", State: NodeDown}}})
	if c := w.Topology().Cluster("east"); len(c.Nodes) != 3 || w.node("east", "e9").State != NodeDown {
		t.Fatalf("nodes: %+v", c.Nodes)
	}
	sound(t, w.Tables)
}

func TestUpdateNodesKeepsDraining(t *testing.T) {
	w := populated(t)
	w.must(&SetNode{Cluster: "west", Node: "w1", Draining: true})
	w.must(&UpdateNodes{Cluster: "west", Upsert: []NodeChange{{Name: "w1", Address: "10.0.0.2:1883", State: NodeUp}}})
	if !w.node("west", "w1").Draining {
		t.Fatal("discovery took the operator's drain away")
	}
}

func TestNoteDiscovery(t *testing.T) {
	w := populated(t)
	before := w.Topology().Cluster("west")
	w.refuse(&NoteDiscovery{Cluster: "north", Trouble: "x"}, CodeNotFound, "name", -1)
	w.unchanged(&NoteDiscovery{Cluster: "west"})
	w.must(&NoteDiscovery{Cluster: "west", Trouble: "polls fail: unauthorized"})
	after := w.Topology().Cluster("west")
	if after.Trouble != "polls fail: unauthorized" || after.Version != before.Version || after.NodesVersion != before.NodesVersion || before.Trouble != "" {
		t.Fatalf("noted: %+v", after)
	}
	w.unchanged(&NoteDiscovery{Cluster: "west", Trouble: "polls fail: unauthorized"})
	w.must(&NoteDiscovery{Cluster: "west"})
	if c := w.Topology().Cluster("west"); c.Trouble != "" {
		t.Fatalf("still noted: %+v", c)
	}
	sound(t, w.Tables)
}

func TestSetNode(t *testing.T) {
	w := populated(t)
	version := w.node("west", "w1").Version
	w.refuse(&SetNode{Cluster: "north", Node: "w1", Draining: true}, CodeNotFound, "name", -1)
	w.refuse(&SetNode{Cluster: "west", Node: "e1", Draining: true}, CodeNotFound, "node", -1)
	w.refuse(&SetNode{Cluster: "west", Node: "w1", Draining: true, IfVersion: ptr(version + 1)}, CodeConflict, "version", -1)
	if res := w.unchanged(&SetNode{Cluster: "west", Node: "w1"}); res.Version != version {
		t.Fatalf("version %d of the node that stays, want %d", res.Version, version)
	}
	held := w.Topology().Cluster("west")
	w.must(&SetNode{Cluster: "west", Node: "w1", Draining: true, IfVersion: &version})
	if n := w.node("west", "w1"); !n.Draining || n.Version != w.index {
		t.Fatalf("drained node: %+v", n)
	}
	if held.Nodes[0].Draining {
		t.Fatal("the topology that a reader holds has changed")
	}
	if w.Topology().Cluster("west").NodesVersion != w.index {
		t.Fatal("discovery must notice that the members changed")
	}
	sound(t, w.Tables)
}

func TestPutSettings(t *testing.T) {
	w := populated(t)
	version := w.Topology().Settings.Version
	w.refuse(&PutSettings{Unknown: &Policy{Kind: PolicyWeighted}, IfVersion: ptr(version + 1)}, CodeConflict, "version", -1)
	w.refuse(&PutSettings{Identity: ptr("{username}")}, CodeInUse, "identity", -1)
	w.refuse(&PutSettings{Unknown: &Policy{Kind: PolicyCluster, Cluster: "north"}}, CodeInvalid, "unknown.cluster", -1)
	// Half of it would do, but a change is all or none.
	w.refuse(&PutSettings{Identity: ptr("{username}"), Force: true, Unknown: &Policy{Kind: PolicyCluster, Cluster: "north"}}, CodeInvalid, "unknown.cluster", -1)
	w.must(&PutSettings{Identity: ptr("{client_id}"), Unknown: &Policy{Kind: PolicyCluster, Cluster: "west"}, IfVersion: &version})
	w.must(&PutSettings{Identity: ptr("{username}"), Force: true})
	s := w.Topology().Settings
	if s.Identity != "{username}" || s.Unknown.Cluster != "west" || s.Version != w.index || s.ClusterID != "c0ffee" || len(s.Secret) != 16 {
		t.Fatalf("settings at version %d, identity %q, policy %+v", s.Version, s.Identity, s.Unknown)
	}
	w.must(&RemoveDevices{Keys: []DeviceKey{"a", "b", "c"}})
	w.must(&PutSettings{Identity: ptr("{client_id}")})
	sound(t, w.Tables)
}

func TestGateways(t *testing.T) {
	w := populated(t)
	g := Gateway{ID: "id-0", Name: "gw-0", Zone: "a", PeerAddress: "10.0.0.8:7400"}
	res := w.must(&PutGateway{Gateway: g})
	got, ok := w.Topology().Gateway("id-0")
	if !ok || got.Version != w.index || res.Version != w.index || w.Topology().Gateways[0].ID != "id-0" {
		t.Fatalf("roster: %+v", w.Topology().Gateways)
	}
	if res := w.unchanged(&PutGateway{Gateway: g}); res.Version != got.Version {
		t.Fatalf("version %d of the row that stays, want %d", res.Version, got.Version)
	}
	g.Zone = "b"
	w.must(&PutGateway{Gateway: g})
	w.refuse(&RemoveGateway{ID: "id-9"}, CodeNotFound, "id", -1)
	w.must(&RemoveGateway{ID: "id-0"})
	if _, ok := w.Topology().Gateway("id-0"); ok {
		t.Fatal("a removed gateway is still on the roster")
	}
	for i := len(w.Topology().Gateways); i < MaxGateways; i++ {
		w.must(&PutGateway{Gateway: Gateway{ID: GatewayID(fmt.Sprintf("n%d", i)), Name: "x", PeerAddress: "10.0.0.8:7400"}})
	}
	w.refuse(&PutGateway{Gateway: g}, CodeInvalid, "id", -1)
	g.ID = "n7"
	w.must(&PutGateway{Gateway: g})
	same(t, w.Tables, w.reborn().Tables)
}
