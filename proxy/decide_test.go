package proxy

import (
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"turnout/fsm"
)

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// deciding is a world without a gateway: tables, view, health on a clock that stands.
type deciding struct {
	*tables
	views  *views
	now    time.Time
	health *health
}

func newDeciding(t testing.TB, p fsm.Policy) *deciding {
	d := &deciding{tables: newTables(t, p), now: time.Unix(1000, 0)}
	d.views = &views{tables: d.Tables, log: discardLog(), changed: func(*view) {}}
	d.health = newHealth(func() time.Time { return d.now })
	return d
}

func (d *deciding) decide(key string) Decision {
	in := lookup{hash: keyHash([]byte(key)), keyed: key != ""}
	in.device, in.found = d.Lookup([]byte(key))
	return decide(d.views.get(), in, d.health, MaxCandidates)
}

// route is a decision in words.
func (d *deciding) route(key string) string {
	dec := d.decide(key)
	if dec.Refused != RefusedNot {
		return "refused " + dec.Refused.String()
	}
	var nodes []string
	for _, n := range dec.Candidates() {
		nodes = append(nodes, string(n.Name))
	}
	record := ""
	if dec.Record {
		record = " record"
	}
	return fmt.Sprintf("%s/%s %s %s%s", dec.ClusterBy, dec.NodeBy, dec.Cluster.Name, strings.Join(nodes, ","), record)
}

func (d *deciding) want(key, route string) {
	d.t.Helper()
	if got := d.route(key); got != route {
		d.t.Errorf("%q goes %q, want %q", key, got, route)
	}
}

// west adds a cluster of three and returns the ring order of a key.
func (d *deciding) west(key string) []string {
	d.cluster("west", 1, up("w1", "h:1"), up("w2", "h:2"), up("w3", "h:3"))
	return d.order("west", key)
}

func (d *deciding) order(cluster fsm.ClusterName, key string) (names []string) {
	v := d.views.get()
	cv := v.clusters[v.topology.Cluster(cluster).ID]
	cv.ring.walk(keyHash([]byte(key)), func(i int) bool { names = append(names, string(cv.nodes[i].Name)); return true })
	return names
}

func (d *deciding) state(node string, s fsm.NodeState) {
	n := d.node("west", fsm.NodeName(node))
	d.apply(&fsm.UpdateNodes{Cluster: "west", Upsert: []fsm.NodeChange{{Name: n.Name, Address: n.Address, State: s}}})
}

func (d *deciding) cool(node string) { d.health.failed(d.node("west", fsm.NodeName(node)).ID) }

func TestDecideUnknownDevices(t *testing.T) {
	t.Run("refuse", func(t *testing.T) {
		d := newDeciding(t, fsm.Policy{Kind: fsm.PolicyRefuse})
		d.west("a")
		d.want("a", "refused unknown_device")
		d.want("", "refused unknown_device")
		d.device(fsm.DeviceChange{Key: "b", Blocked: ptr(true)})
		d.want("b", "refused blocked")
		d.device(fsm.DeviceChange{Key: "b", Blocked: ptr(false)})
		d.want("b", "refused unknown_device")
	})
	t.Run("cluster", func(t *testing.T) {
		d := newDeciding(t, fsm.Policy{Kind: fsm.PolicyRefuse})
		order := d.west("a")
		d.apply(&fsm.PutSettings{Unknown: &fsm.Policy{Kind: fsm.PolicyCluster, Cluster: "west"}})
		d.want("a", "policy/ring west "+strings.Join(order, ",")+" record")
		if got := d.decide(""); got.Refused != RefusedNot || got.Record || got.count != 3 {
			t.Errorf("empty key: %s", d.route(""))
		}
	})
	t.Run("weighted", func(t *testing.T) {
		d := newDeciding(t, fsm.Policy{Kind: fsm.PolicyWeighted})
		d.want("a", "refused no_cluster")
		d.cluster("none", 9)
		d.cluster("zero", 0, up("z1", "h:9"))
		d.want("a", "refused no_cluster")
		d.cluster("big", 3, up("b1", "h:1"))
		d.cluster("small", 1, up("s1", "h:2"))
		const n = 20_000
		count := map[fsm.ClusterName]int{}
		before := map[string]fsm.ClusterName{}
		for i := range n {
			key := fmt.Sprintf("dev-%d", i)
			before[key] = d.decide(key).Cluster.Name
			count[before[key]]++
		}
		if share := float64(count["big"]) / n; math.Abs(share-.75) > .02 || len(count) != 2 {
			t.Errorf("shares %v, want 3:1", count)
		}
		d.cluster("new", 4, up("n1", "h:3"))
		moved := 0
		for key, was := range before {
			switch is := d.decide(key).Cluster.Name; is {
			case was:
			case "new":
				moved++
			default:
				t.Fatalf("%s moved from %s to %s, not to the new cluster", key, was, is)
			}
		}
		if share := float64(moved) / n; math.Abs(share-.5) > .02 {
			t.Errorf("%.2f moved to a cluster of half the weight", share)
		}
		d.apply(&fsm.SetNode{Cluster: "new", Node: "n1", Draining: true})
		if got := d.decide("dev-1").Cluster.Name; got != before["dev-1"] {
			t.Errorf("a draining cluster was chosen: %s", got)
		}
	})
}

func TestDecidePrecedence(t *testing.T) {
	d := newDeciding(t, fsm.Policy{Kind: fsm.PolicyRefuse})
	order := d.west("a")
	d.cluster("east", 1, up("e1", "h:7"))
	d.apply(&fsm.PutSettings{Unknown: &fsm.Policy{Kind: fsm.PolicyCluster, Cluster: "east"}})
	ring := strings.Join(order, ",")
	d.want("a", "policy/ring east e1 record")
	d.assign("a", "west")
	d.want("a", "assignment/ring west "+ring+" record")
	d.bind("a", "west", fsm.NodeName(order[2]))
	d.want("a", fmt.Sprintf("assignment/binding west %s,%s,%s", order[2], order[0], order[1]))
	d.device(fsm.DeviceChange{Key: "a", Pin: ptr(fsm.NodeName(order[1]))})
	d.want("a", fmt.Sprintf("assignment/pin west %s,%s,%s", order[1], order[2], order[0]))
	d.device(fsm.DeviceChange{Key: "a", PinStrict: ptr(true)})
	d.want("a", "assignment/pin west "+order[1])
	d.device(fsm.DeviceChange{Key: "a", Blocked: ptr(true)})
	d.want("a", "refused blocked")

	d.bind("p", "west", "w1") // no record before: placed
	d.want("p", "placement/binding west "+strings.Join(slices.Insert(slices.DeleteFunc(d.order("west", "p"), func(s string) bool { return s == "w1" }), 0, "w1"), ","))
}

func TestDecideHome(t *testing.T) {
	d := newDeciding(t, fsm.Policy{Kind: fsm.PolicyRefuse})
	order := d.west("a")
	home, x, y := order[2], order[0], order[1]
	d.assign("a", "west")
	d.bind("a", "west", fsm.NodeName(home))
	bound := fmt.Sprintf("assignment/binding west %s,%s,%s", home, x, y)
	d.want("a", bound)

	// What discovery says of the home keeps nobody from trying it; what it says of others puts them behind.
	d.state(home, fsm.NodeDown)
	d.want("a", bound)
	d.state(home, fsm.NodeSuspect)
	d.want("a", bound)
	d.state(x, fsm.NodeDown)
	d.want("a", fmt.Sprintf("assignment/binding west %s,%s,%s", home, y, x))
	d.state(x, fsm.NodeUp)
	d.state(home, fsm.NodeUp)

	// A home in its cool-down comes behind the healthy, is still tried, and nothing is to be recorded.
	d.cool(home)
	d.want("a", fmt.Sprintf("assignment/binding west %s,%s,%s", x, y, home))
	d.cool(x)
	d.want("a", fmt.Sprintf("assignment/binding west %s,%s,%s", y, home, x))
	d.now = d.now.Add(firstCoolDown)
	d.want("a", bound)

	d.apply(&fsm.SetNode{Cluster: "west", Node: fsm.NodeName(home), Draining: true})
	rest := d.order("west", "a")
	d.want("a", fmt.Sprintf("assignment/ring west %s,%s,%s record", rest[0], rest[1], home))
	if dec := d.decide("a"); dec.records(dec.Candidates()[2]) || !dec.records(dec.Candidates()[0]) {
		t.Error("a draining node gets no new bindings, others do")
	}
	d.apply(&fsm.SetNode{Cluster: "west", Node: fsm.NodeName(home)})
	d.want("a", bound)

	d.apply(&fsm.UpdateNodes{Cluster: "west", Remove: []fsm.NodeName{fsm.NodeName(home)}})
	d.want("a", fmt.Sprintf("assignment/ring west %s record", strings.Join(d.order("west", "a"), ",")))
	// A node of the same name is another node.
	d.apply(&fsm.UpdateNodes{Cluster: "west", Upsert: []fsm.NodeChange{up(home, "h:3")}})
	if dec := d.decide("a"); dec.NodeBy != ByRing || !dec.Record {
		t.Errorf("%s", d.route("a"))
	}
}

func TestDecidePins(t *testing.T) {
	d := newDeciding(t, fsm.Policy{Kind: fsm.PolicyRefuse})
	order := d.west("a")
	d.assign("a", "west")
	d.device(fsm.DeviceChange{Key: "a", Pin: ptr(fsm.NodeName(order[1]))})
	pinned := fmt.Sprintf("assignment/pin west %s,%s,%s", order[1], order[0], order[2])
	d.want("a", pinned)
	d.apply(&fsm.SetNode{Cluster: "west", Node: fsm.NodeName(order[1]), Draining: true})
	if dec := d.decide("a"); dec.NodeBy != ByPin || string(dec.Candidates()[0].Name) != order[1] || dec.Record {
		t.Errorf("a pin is the operator's word, also on a draining node: %s", d.route("a"))
	}
	d.apply(&fsm.SetNode{Cluster: "west", Node: fsm.NodeName(order[1])})
	d.cool(order[1])
	d.want("a", fmt.Sprintf("assignment/pin west %s,%s,%s", order[0], order[2], order[1]))
	d.device(fsm.DeviceChange{Key: "a", PinStrict: ptr(true)})
	d.want("a", "assignment/pin west "+order[1])
	d.apply(&fsm.UpdateNodes{Cluster: "west", Remove: []fsm.NodeName{fsm.NodeName(order[1])}})
	d.want("a", "refused pin_gone")
	d.device(fsm.DeviceChange{Key: "a", PinStrict: ptr(false)})
	d.want("a", fmt.Sprintf("assignment/ring west %s record", strings.Join(d.order("west", "a"), ",")))
}

func TestDecideWithoutUsableNodes(t *testing.T) {
	d := newDeciding(t, fsm.Policy{Kind: fsm.PolicyRefuse})
	d.cluster("west", 1)
	d.assign("a", "west")
	d.want("a", "refused no_node")
	d.apply(&fsm.UpdateNodes{Cluster: "west", Upsert: []fsm.NodeChange{up("w1", "")}})
	d.want("a", "refused no_node")
	d.apply(&fsm.UpdateNodes{Cluster: "west", Upsert: []fsm.NodeChange{{Name: "w2", Address: "h:2", State: fsm.NodeDown}}})
	d.want("a", "assignment/ring west w2 record")
	d.apply(&fsm.SetNode{Cluster: "west", Node: "w2", Draining: true})
	d.apply(&fsm.SetNode{Cluster: "west", Node: "w1", Draining: true})
	d.want("a", "assignment/ring west w2 record")
	if dec := d.decide("a"); dec.records(dec.Candidates()[0]) {
		t.Error("with all nodes draining nothing may be recorded")
	}
}

func TestDecideListsNoMoreThanAsked(t *testing.T) {
	d := newDeciding(t, fsm.Policy{Kind: fsm.PolicyRefuse})
	var nodes []fsm.NodeChange
	for i := range 40 {
		nodes = append(nodes, up(fmt.Sprintf("n%02d", i), fmt.Sprintf("h:%d", i+1)))
	}
	d.cluster("west", 1, nodes...)
	d.assign("a", "west")
	for i := range 30 {
		d.cool(fmt.Sprintf("n%02d", i))
	}
	in := lookup{hash: 5, keyed: true}
	in.device, in.found = d.Lookup([]byte("a"))
	for limit := 1; limit <= MaxCandidates; limit++ {
		dec := decide(d.views.get(), in, d.health, limit)
		if len(dec.Candidates()) != limit {
			t.Errorf("%d candidates, asked for %d", dec.count, limit)
		}
		for _, n := range dec.Candidates() {
			if d.health.cooling(n.ID) {
				t.Errorf("limit %d: %s is cooling while ten others are well", limit, n.Name)
			}
		}
	}
}

func TestHealth(t *testing.T) {
	now := time.Unix(1000, 0)
	h := newHealth(func() time.Time { return now })
	if h.cooling(1) || !h.begin(1) {
		t.Error("a node is ill from the start")
	}
	for i, pause := range []time.Duration{250, 500, 1000, 2000, 2000} {
		h.failed(1)
		h.failed(1) // of the same burst
		pause *= time.Millisecond
		now = now.Add(pause - 1)
		if !h.cooling(1) || h.begin(1) {
			t.Errorf("failure %d: over before %s", i, pause)
		}
		now = now.Add(1)
		if h.cooling(1) {
			t.Errorf("failure %d: not over after %s", i, pause)
		}
		if !h.begin(1) {
			t.Errorf("failure %d: no probe", i)
		}
		if h.begin(1) || !h.cooling(1) {
			t.Errorf("failure %d: two probes", i)
		}
	}
	h.released(1)
	if h.cooling(1) || !h.begin(1) {
		t.Error("a probe that was given up must make room for the next")
	}
	h.succeeded(1)
	if h.cooling(1) || h.ailing.Load() != 0 {
		t.Error("ill after a success")
	}
	h.failed(1)
	h.failed(2)
	h.forget(func(id fsm.NodeID) bool { return id == 2 })
	if h.cooling(1) || !h.cooling(2) || h.ailing.Load() != 1 {
		t.Error("forget did not forget the node that is gone")
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	d := newDeciding(t, fsm.Policy{Kind: fsm.PolicyWeighted})
	d.west("a")
	d.assign("a", "west")
	d.bind("a", "west", "w1")
	d.cool("w2")
	v := d.views.get()
	for _, key := range []string{"a", "nobody"} {
		in := lookup{hash: keyHash([]byte(key)), keyed: true}
		in.device, in.found = d.Lookup([]byte(key))
		if n := testing.AllocsPerRun(100, func() { _ = decide(v, in, d.health, 4) }); n > 0 {
			t.Errorf("%s: %v allocations", key, n)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	d := newDeciding(b, fsm.Policy{Kind: fsm.PolicyWeighted})
	d.cluster("west", 1, up("w1", "h:1"), up("w2", "h:2"), up("w3", "h:3"))
	d.cluster("east", 2, up("e1", "h:4"), up("e2", "h:5"), up("e3", "h:6"))
	const devices = 1_000_000
	keys := make([][]byte, devices*10/9) // 90 % hits
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "plant-%07d-device-m0417", i)
	}
	for from := 0; from < devices; from += 1000 {
		cmd := &fsm.Bind{}
		for _, key := range keys[from : from+1000] {
			dec := d.decide(string(key))
			cmd.Bindings = append(cmd.Bindings, fsm.Binding{Key: fsm.DeviceKey(key), Cluster: dec.Cluster.ID, Node: dec.Candidates()[0].ID})
		}
		d.apply(cmd)
	}
	id := mustIdentity(b, "{client_id}")
	buf := make([]byte, 0, fsm.MaxKeyBytes)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		c := triple{}.connect()
		c.ClientID = keys[i]
		if i += 7919; i >= len(keys) {
			i -= len(keys)
		}
		key, err := id.Key(buf, c, nil)
		if err != nil {
			b.Fatal(err)
		}
		in := lookup{hash: keyHash(key), keyed: true}
		in.device, in.found = d.Lookup(key)
		if dec := decide(d.views.get(), in, d.health, 4); dec.count == 0 {
			b.Fatal("no candidate")
		}
	}
}
