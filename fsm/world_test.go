package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
)

// world is a set of tables with the log that made them.
type world struct {
	*Tables
	tb    testing.TB
	index uint64
}

func newWorld(tb testing.TB) *world { return &world{Tables: New(), tb: tb} }

// entry applies raw bytes as the next entry of the log.
func (w *world) entry(data []byte) Result {
	w.index++
	return w.Apply(&raft.Log{Index: w.index, Type: raft.LogCommand, Data: data}).(Result)
}

// do encodes and applies a command that may be refused.
func (w *world) do(c Command) Result {
	w.tb.Helper()
	data, err := Encode(c)
	if err != nil {
		w.tb.Fatalf("encode kind %d: %v", c.Kind(), err)
	}
	return w.entry(data)
}

// must applies commands that must succeed and returns the result of the last.
func (w *world) must(cs ...Command) (res Result) {
	w.tb.Helper()
	for _, c := range cs {
		if res = w.do(c); res.Err() != nil {
			w.tb.Fatalf("apply kind %d: %v", c.Kind(), res.Err())
		}
		if res.Item != -1 || res.Index != w.index {
			w.tb.Fatalf("apply kind %d: item %d at index %d, want -1 at %d", c.Kind(), res.Item, res.Index, w.index)
		}
	}
	return res
}

// refuse applies a command that must be refused, and sees to it that nothing but the index moved.
func (w *world) refuse(c Command, code Code, field string, item int) {
	w.tb.Helper()
	before, topo := w.Status(), w.Topology()
	res := w.do(c)
	if res.Code != code || res.Field != field || res.Item != item || res.Message == "" {
		w.tb.Fatalf("kind %d answered %q %q item %d (%s), want %q %q item %d", c.Kind(), res.Code, res.Field, res.Item, res.Message, code, field, item)
	}
	if res.Version != 0 || res.Index != w.index {
		w.tb.Fatalf("kind %d refused with version %d at index %d, want 0 at %d", c.Kind(), res.Version, res.Index, w.index)
	}
	after := w.Status()
	if after.Checksum.Sum != before.Checksum.Sum || after.Devices != before.Devices || w.Topology() != topo {
		w.tb.Fatalf("kind %d left a trace though it was refused", c.Kind())
	}
	if after.Checksum.Index != w.index {
		w.tb.Fatalf("index is %d after a refusal, want %d", after.Checksum.Index, w.index)
	}
	sound(w.tb, w.Tables)
}

// unchanged applies a command that must succeed and change nothing.
func (w *world) unchanged(c Command) Result {
	w.tb.Helper()
	before, topo := w.Status(), w.Topology()
	res := w.must(c)
	if after := w.Status(); after.Checksum.Sum != before.Checksum.Sum || w.Topology() != topo {
		w.tb.Fatalf("kind %d changed the tables", c.Kind())
	}
	return res
}

func (w *world) device(key DeviceKey) Device {
	w.tb.Helper()
	d, ok := w.Device(key)
	if !ok {
		w.tb.Fatalf("no device %q", key)
	}
	return d
}

func (w *world) node(c ClusterName, n NodeName) Node {
	w.tb.Helper()
	cluster := w.Topology().Cluster(c)
	if cluster == nil {
		w.tb.Fatalf("no cluster %q", c)
	}
	node, ok := cluster.NodeByName(n)
	if !ok {
		w.tb.Fatalf("no node %q in cluster %q", n, c)
	}
	return node
}

func (w *world) cluster(c ClusterName) ClusterID { return w.Topology().Cluster(c).ID }

// bind proposes one binding.
func (w *world) bind(key DeviceKey, c ClusterID, n NodeID) Outcome {
	w.tb.Helper()
	return w.must(&Bind{Bindings: []Binding{{Key: key, Cluster: c, Node: n}}}).Bind
}

func ptr[T any](v T) *T { return &v }

func initCommand() *Init {
	return &Init{Settings: Settings{
		ClusterID: "c0ffee", Secret: []byte("0123456789abcdef"), Identity: "{client_id}", Unknown: Policy{Kind: PolicyRefuse},
	}}
}

func staticSpec(nodes ...NodeName) ClusterSpec {
	s := DefaultSpec()
	s.Driver, s.Addresses = DriverStatic, map[NodeName]string{}
	for _, n := range nodes {
		s.Addresses[n] = "10.0.0.1:1883"
	}
	return s
}

func up(names ...NodeName) (changes []NodeChange) {
	for _, n := range names {
		changes = append(changes, NodeChange{Name: n, Address: "10.0.0.1:1883", State: NodeUp})
	}
	return changes
}

func assign(key DeviceKey, c ClusterName) *PutDevices {
	return &PutDevices{Changes: []DeviceChange{{Key: key, Cluster: &c}}}
}

// populated has clusters west (w1, w2, w3) and east (e1, e2), one gateway, and the devices a in west, b in east, c blocked.
func populated(tb testing.TB) *world {
	w := newWorld(tb)
	w.must(
		initCommand(),
		&PutCluster{Name: "west", Spec: staticSpec("w1", "w2", "w3")},
		&PutCluster{Name: "east", Spec: staticSpec("e1", "e2")},
		&UpdateNodes{Cluster: "west", Upsert: up("w1", "w2", "w3")},
		&UpdateNodes{Cluster: "east", Upsert: up("e1", "e2")},
		&PutGateway{Gateway: Gateway{ID: "id-1", Name: "gw-1", PeerAddress: "10.0.0.9:7400"}},
		assign("a", "west"), assign("b", "east"),
		&PutDevices{Changes: []DeviceChange{{Key: "c", Blocked: ptr(true)}}},
	)
	return w
}

// slowSum computes the checksum from what the queries say, with code of its own.
func slowSum(tb testing.TB, t *Tables) (sum uint64, rows map[ClusterID]int) {
	rows = map[ClusterID]int{}
	for _, d := range all(t, DeviceFilter{}, 1000) {
		var b bytes.Buffer
		flags := uint8(d.Origin)
		if d.Blocked {
			flags += 4
		}
		if d.PinStrict {
			flags += 8
		}
		for _, v := range []any{uint32(d.Cluster), uint32(d.Pin), uint32(d.Binding), flags, d.Version, []byte(d.Key)} {
			if err := binary.Write(&b, binary.BigEndian, v); err != nil {
				tb.Fatal(err)
			}
		}
		sum += xxhash.Sum64(b.Bytes())
		rows[d.Cluster]++
	}
	topo := t.Topology()
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		tb.Fatal(err)
	}
	items := []any{map[int]any{1: topo.Index, 2: topo.Settings, 3: topo.lastCluster, 4: topo.lastNode, 5: len(topo.Clusters), 6: len(topo.Gateways)}}
	for _, c := range topo.Clusters {
		items = append(items, *c)
	}
	for _, g := range topo.Gateways {
		items = append(items, g)
	}
	var b bytes.Buffer
	for _, v := range items {
		if err := mode.NewEncoder(&b).Encode(v); err != nil {
			tb.Fatal(err)
		}
	}
	return sum + xxhash.Sum64(b.Bytes()), rows
}

// sound checks everything that must hold of any tables.
func sound(tb testing.TB, t *Tables) {
	tb.Helper()
	topo, status := t.Topology(), t.Status()
	sum, rows := slowSum(tb, t)
	if status.Checksum.Sum != sum {
		tb.Fatalf("checksum is %016x, computed from scratch %016x", status.Checksum.Sum, sum)
	}
	if topo.Index > status.Checksum.Index || t.Index() != status.Checksum.Index {
		tb.Fatalf("topology of index %d in tables of index %d", topo.Index, status.Checksum.Index)
	}
	devices, nodes := rows[0], 0
	for i, c := range topo.Clusters {
		if i > 0 && topo.Clusters[i-1].Name >= c.Name || topo.Cluster(c.Name) != c || topo.ClusterByID(c.ID) != c || c.ID == 0 || c.ID > topo.lastCluster {
			tb.Fatalf("cluster %d is not where it should be", i)
		}
		if t.DevicesIn(c.ID) != rows[c.ID] {
			tb.Fatalf("cluster %d counts %d devices, has %d", i, t.DevicesIn(c.ID), rows[c.ID])
		}
		devices += rows[c.ID]
		for j, n := range c.Nodes {
			got, ok := c.Node(n.ID)
			if j > 0 && c.Nodes[j-1].ID >= n.ID || !ok || got != n || topo.ClusterOfNode(n.ID) != c || n.ID == 0 || n.ID > topo.lastNode {
				tb.Fatalf("node %d of cluster %d is not where it should be", j, i)
			}
		}
		nodes += len(c.Nodes)
	}
	if devices != status.Devices {
		tb.Fatalf("%d devices refer to clusters that exist or to none, there are %d", devices, status.Devices)
	}
	if len(topo.byID) != len(topo.Clusters) || len(topo.nodes) != nodes {
		tb.Fatalf("%d clusters and %d nodes are indexed, there are %d and %d", len(topo.byID), len(topo.nodes), len(topo.Clusters), nodes)
	}
	for i, g := range topo.Gateways {
		if got, ok := topo.Gateway(g.ID); !ok || got != g {
			tb.Fatalf("gateway %d is not where it should be", i)
		}
	}
}

// all lists every device, page by page.
func all(t *Tables, f DeviceFilter, limit int) (devices []Device) {
	for after := DeviceKey(""); ; {
		page, next := t.Devices(after, limit, f)
		devices = append(devices, page...)
		if next == "" {
			return devices
		}
		after = next
	}
}

// same requires that two tables give the same answers.
func same(tb testing.TB, a, b *Tables) {
	tb.Helper()
	if sa, sb := a.Status(), b.Status(); sa != sb {
		tb.Fatalf("tables differ: %+v and %+v", sa, sb)
	}
	view := func(t *Tables) any {
		topo := t.Topology()
		clusters := map[ClusterName]*Cluster{}
		for _, c := range topo.Clusters {
			clusters[c.Name] = c
		}
		gateways := map[GatewayID]Gateway{}
		for _, g := range topo.Gateways {
			gateways[g.ID] = g
		}
		return []any{topo.Index, topo.Settings, topo.lastCluster, topo.lastNode, clusters, gateways, all(t, DeviceFilter{}, 100)}
	}
	if d := cmp.Diff(view(a), view(b)); d != "" {
		tb.Fatalf("tables differ:\n%s", d)
	}
}

// sink is a snapshot sink in memory that fails after room bytes, when room is not negative.
type sink struct {
	bytes.Buffer
	room      int
	closed    bool
	cancelled bool
}

var errFull = errors.New("no space left")

func (s *sink) Write(b []byte) (int, error) {
	if s.room >= 0 && s.Len()+len(b) > s.room {
		return 0, errFull
	}
	return s.Buffer.Write(b)
}
func (s *sink) ID() string    { return "memory" }
func (s *sink) Close() error  { s.closed = true; return nil }
func (s *sink) Cancel() error { s.cancelled = true; return nil }

// snapshot takes and writes a snapshot.
func snapshot(tb testing.TB, t *Tables) []byte {
	tb.Helper()
	snap, err := t.Snapshot()
	if err != nil {
		tb.Fatal(err)
	}
	return persist(tb, snap)
}

func persist(tb testing.TB, snap raft.FSMSnapshot) []byte {
	tb.Helper()
	s := &sink{room: -1}
	if err := snap.Persist(s); err != nil {
		tb.Fatal(err)
	}
	snap.Release()
	if !s.closed || s.cancelled {
		tb.Fatal("the sink of a good snapshot is closed, not cancelled")
	}
	return s.Bytes()
}

func restored(tb testing.TB, snap []byte) *Tables {
	tb.Helper()
	t := New()
	if err := t.Restore(io.NopCloser(bytes.NewReader(snap))); err != nil {
		tb.Fatal(err)
	}
	return t
}

// reborn is the world continued on tables that came from a snapshot of the old ones.
func (w *world) reborn() *world {
	w.tb.Helper()
	return &world{Tables: restored(w.tb, snapshot(w.tb, w.Tables)), tb: w.tb, index: w.index}
}
