package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"turnout/fsm"
)

const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(limit) {
			t.Fatalf("not seen in %s: %s", patience, what)
		}
		time.Sleep(time.Millisecond)
	}
}

// tables are replicated tables of one, and the Proposer that writes them.
type tables struct {
	*fsm.Tables
	t      testing.TB
	behind atomic.Bool // they have not caught up since the start

	mu       sync.Mutex
	index    uint64
	refuse   error // answered instead of proposing
	proposed []*fsm.Bind
}

func newTables(t testing.TB, policy fsm.Policy) *tables {
	w := &tables{Tables: fsm.New(), t: t}
	w.apply(&fsm.Init{Settings: fsm.Settings{ClusterID: "test", Secret: make([]byte, 32), Identity: "{client_id}", Unknown: policy}})
	return w
}

// Propose implements Proposer.
func (w *tables) Propose(_ context.Context, cmd fsm.Command) (fsm.Result, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse != nil {
		return fsm.Result{}, w.refuse
	}
	if b, ok := cmd.(*fsm.Bind); ok {
		w.proposed = append(w.proposed, b)
	}
	return w.applyLocked(cmd)
}

func (w *tables) applyLocked(cmd fsm.Command) (fsm.Result, error) {
	entry, err := fsm.Encode(cmd)
	if err != nil {
		return fsm.Result{}, err
	}
	w.index++
	res := w.Tables.Apply(&raft.Log{Index: w.index, Type: raft.LogCommand, Data: entry}).(fsm.Result)
	return res, res.Err()
}

func (w *tables) apply(cmd fsm.Command) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.applyLocked(cmd); err != nil {
		w.t.Fatalf("apply %T: %v", cmd, err)
	}
}

// cluster adds a static cluster with nodes of these names and addresses, all up.
func (w *tables) cluster(name fsm.ClusterName, weight uint32, nodes ...fsm.NodeChange) {
	w.t.Helper()
	spec := fsm.DefaultSpec()
	spec.Driver, spec.Weight, spec.Addresses = fsm.DriverStatic, weight, map[fsm.NodeName]string{"any": "127.0.0.1:1"}
	w.apply(&fsm.PutCluster{Name: name, Spec: spec})
	if len(nodes) > 0 {
		w.apply(&fsm.UpdateNodes{Cluster: name, Upsert: nodes})
	}
}

func (w *tables) node(cluster fsm.ClusterName, name fsm.NodeName) fsm.Node {
	w.t.Helper()
	n, ok := w.Topology().Cluster(cluster).NodeByName(name)
	if !ok {
		w.t.Fatalf("no node %s in %s", name, cluster)
	}
	return n
}

func (w *tables) device(d fsm.DeviceChange) {
	w.t.Helper()
	w.apply(&fsm.PutDevices{Changes: []fsm.DeviceChange{d}})
}

func (w *tables) assign(key fsm.DeviceKey, cluster fsm.ClusterName) {
	w.t.Helper()
	w.device(fsm.DeviceChange{Key: key, Cluster: &cluster})
}

func (w *tables) bind(key fsm.DeviceKey, cluster fsm.ClusterName, node fsm.NodeName) {
	w.t.Helper()
	c := w.Topology().Cluster(cluster)
	w.apply(&fsm.Bind{Bindings: []fsm.Binding{{Key: key, Cluster: c.ID, Node: w.node(cluster, node).ID}}})
}

func up(name, address string) fsm.NodeChange {
	return fsm.NodeChange{Name: fsm.NodeName(name), Address: address, State: fsm.NodeUp}
}

func ptr[T any](v T) *T { return &v }

// world is a gateway with tables of its own.
type world struct {
	*tables
	gw  *Gateway
	reg *prometheus.Registry
}

func testConfig() Config {
	c := DefaultConfig()
	c.Listeners = []ListenerConfig{{Name: "mqtt", Address: "127.0.0.1:0"}}
	return c
}

func newWorld(t testing.TB, w *tables, cfg Config) *world {
	t.Helper()
	reg := prometheus.NewRegistry()
	g, err := New(cfg, Options{Tables: w.Tables, Proposer: w, CaughtUp: func() bool { return !w.behind.Load() }, Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	g.grace = patience // a device that was refused closes in time, or the test waits for it
	if err := g.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := g.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return &world{tables: w, gw: g, reg: reg}
}

// metric sums the series of a counter whose labels include these pairs.
func (w *world) metric(name string, pairs ...string) (sum float64) {
	w.t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	series:
		for _, m := range f.Metric {
			for i := 0; i < len(pairs); i += 2 {
				found := false
				for _, l := range m.Label {
					found = found || l.GetName() == pairs[i] && l.GetValue() == pairs[i+1]
				}
				if !found {
					continue series
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

func (w *world) results(r string) int { return int(w.metric("turnout_connects_total", "result", r)) }

// dial connects to a listener.
func (w *world) dial() net.Conn { return w.dialTo("mqtt") }

func (w *world) dialTo(listener string) net.Conn {
	w.t.Helper()
	c, err := net.Dial("tcp", w.gw.Addrs()[listener].String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// connect sends a CONNECT and expects this answer.
func (w *world) connect(packet, want []byte) net.Conn {
	w.t.Helper()
	c := w.dial()
	if _, err := c.Write(packet); err != nil {
		w.t.Fatal(err)
	}
	expect(w.t, c, want)
	return c
}

// expect reads exactly these bytes.
func expect(t testing.TB, c net.Conn, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("device got % x (%v), want % x", got[:n], err, want)
	}
}

// expectEnd reads exactly these bytes and then the end of the stream, in order: no reset. Then it closes.
func expectEnd(t testing.TB, c net.Conn, want []byte) {
	t.Helper()
	defer c.Close()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("device got % x (%v), want % x and the end", got, err, want)
	}
}

// expectClosed reads nothing but the end, be it in order or by a reset.
func expectClosed(t testing.TB, c net.Conn) {
	t.Helper()
	got, err := io.ReadAll(c)
	if len(got) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("device got % x (%v), want a closed connection", got, err)
	}
}

// packet3 and packet5 make a CONNECT of 3.1.1 and 5.0 with clean session.
func packet3(id string) []byte { return connectPacket("MQTT", 4, 0x02, nil, field(id)) }

func packet5(id string) []byte { return connectPacket("MQTT", 5, 0x02, []byte{0}, field(id)) }

func packet31(id string) []byte { return connectPacket("MQIsdp", 3, 0x02, nil, field(id)) }

func field(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

func connectPacket(name string, level, flags byte, props []byte, fields ...[]byte) []byte {
	body := append(field(name), level, flags, 0, 60)
	body = append(body, props...)
	for _, f := range fields {
		body = append(body, f...)
	}
	p := []byte{0x10}
	n := len(body)
	for n >= 0x80 {
		p, n = append(p, byte(n)|0x80), n>>7
	}
	return append(append(p, byte(n)), body...)
}

// ringOrder is the order of a cluster's nodes for a key, by name.
func (w *world) ringOrder(cluster fsm.ClusterName, key string) (names []string) {
	v := w.gw.views.get()
	cv := v.clusters[v.topology.Cluster(cluster).ID]
	cv.ring.walk(keyHash([]byte(key)), func(i int) bool {
		names = append(names, string(cv.nodes[i].Name))
		return true
	})
	return names
}

// keyAt finds a device key whose ring begins with this node.
func (w *world) keyAt(cluster fsm.ClusterName, node string) string {
	for i := range 10_000 {
		if key := fmt.Sprintf("dev-%d", i); w.ringOrder(cluster, key)[0] == node {
			return key
		}
	}
	w.t.Fatalf("no key leads to %s", node)
	return ""
}
