package fsm

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPutDevicesOneChange(t *testing.T) {
	name := func(c ClusterName) *ClusterName { return &c }
	node := func(n NodeName) *NodeName { return &n }
	for _, tc := range []struct {
		name   string
		before []DeviceChange
		bound  NodeName // the node of west that the device is bound to beforehand
		change DeviceChange
		want   Device // Version 0 stands for the index of the change
		code   Code
		field  string
	}{
		{name: "a record where there is none", change: DeviceChange{}, want: Device{}},
		{name: "assign", change: DeviceChange{Cluster: name("west")}, want: Device{Cluster: 1, Origin: OriginAssigned}},
		{name: "assign and pin", change: DeviceChange{Cluster: name("west"), Pin: node("w2"), PinStrict: ptr(true)},
			want: Device{Cluster: 1, Origin: OriginAssigned, Pin: 2, PinStrict: true}},
		{name: "block keeps the rest", before: []DeviceChange{{Cluster: name("west"), Pin: node("w2")}}, change: DeviceChange{Blocked: ptr(true)},
			want: Device{Cluster: 1, Origin: OriginAssigned, Pin: 2, Blocked: true}},
		{name: "unblock", before: []DeviceChange{{Blocked: ptr(true)}}, change: DeviceChange{Blocked: ptr(false)}, want: Device{}},
		{name: "moving drops pin and binding", before: []DeviceChange{{Cluster: name("west"), Pin: node("w2"), PinStrict: ptr(true), Blocked: ptr(false)}}, bound: "w3",
			change: DeviceChange{Cluster: name("east")}, want: Device{Cluster: 2, Origin: OriginAssigned}},
		{name: "moving and pinning", before: []DeviceChange{{Cluster: name("west"), Pin: node("w2")}},
			change: DeviceChange{Cluster: name("east"), Pin: node("e1")}, want: Device{Cluster: 2, Origin: OriginAssigned, Pin: 4}},
		{name: "the binding survives an assignment to the same cluster", bound: "w3", change: DeviceChange{Cluster: name("west")},
			want: Device{Cluster: 1, Origin: OriginAssigned, Binding: 3}},
		{name: "taking the assignment away", before: []DeviceChange{{Cluster: name("west"), Pin: node("w1"), PinStrict: ptr(true)}}, bound: "w3",
			change: DeviceChange{Cluster: name("")}, want: Device{}},
		{name: "taking the pin away takes strict with it", before: []DeviceChange{{Cluster: name("west"), Pin: node("w1"), PinStrict: ptr(true)}},
			change: DeviceChange{Pin: node("")}, want: Device{Cluster: 1, Origin: OriginAssigned}},
		{name: "another pin keeps strict", before: []DeviceChange{{Cluster: name("west"), Pin: node("w1"), PinStrict: ptr(true)}},
			change: DeviceChange{Pin: node("w3")}, want: Device{Cluster: 1, Origin: OriginAssigned, Pin: 3, PinStrict: true}},
		{name: "no longer strict", before: []DeviceChange{{Cluster: name("west"), Pin: node("w1"), PinStrict: ptr(true)}},
			change: DeviceChange{PinStrict: ptr(false)}, want: Device{Cluster: 1, Origin: OriginAssigned, Pin: 1}},
		{name: "a placed device is pinned in its cluster", bound: "w3", change: DeviceChange{Pin: node("w1")},
			want: Device{Cluster: 1, Origin: OriginPlaced, Pin: 1, Binding: 3}},

		{name: "no such cluster", change: DeviceChange{Cluster: name("north")}, code: CodeInvalid, field: "cluster"},
		{name: "pin without cluster", change: DeviceChange{Pin: node("w1")}, code: CodeInvalid, field: "pin"},
		{name: "pin to a node of another cluster", change: DeviceChange{Cluster: name("west"), Pin: node("e1")}, code: CodeInvalid, field: "pin"},
		{name: "strict without pin", change: DeviceChange{Cluster: name("west"), PinStrict: ptr(true)}, code: CodeInvalid, field: "pin_strict"},
		{name: "strict while the pin goes", before: []DeviceChange{{Cluster: name("west"), Pin: node("w1")}},
			change: DeviceChange{Pin: node(""), PinStrict: ptr(true)}, code: CodeInvalid, field: "pin_strict"},
		{name: "expected version of no record", change: DeviceChange{IfVersion: ptr(uint64(4))}, code: CodeConflict, field: "version"},
		{name: "must not exist", before: []DeviceChange{{}}, change: DeviceChange{IfVersion: ptr(uint64(0))}, code: CodeConflict, field: "absent"},
		{name: "not the stored version", before: []DeviceChange{{}}, change: DeviceChange{IfVersion: ptr(uint64(99))}, code: CodeConflict, field: "version"},
		{name: "must not exist, and does not", change: DeviceChange{IfVersion: ptr(uint64(0))}, want: Device{}},
		{name: "the stored version", before: []DeviceChange{{}}, change: DeviceChange{IfVersion: ptr(uint64(10))}, want: Device{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := populated(t) // nine entries
			for _, ch := range tc.before {
				ch.Key = "dev"
				w.must(&PutDevices{Changes: []DeviceChange{ch}})
			}
			if tc.bound != "" {
				w.bind("dev", w.cluster("west"), w.node("west", tc.bound).ID)
			}
			tc.change.Key = "dev"
			c := &PutDevices{Changes: []DeviceChange{tc.change}}
			if tc.code != CodeOK {
				w.refuse(c, tc.code, tc.field, 0)
				return
			}
			res := w.must(c)
			tc.want.Key, tc.want.Version = "dev", w.index
			if d := cmp.Diff(tc.want, w.device("dev")); d != "" || res.Version != w.index {
				t.Fatalf("version %d at index %d\n%s", res.Version, w.index, d)
			}
			sound(t, w.Tables)
		})
	}
}

func TestPutDevicesIsAtomic(t *testing.T) {
	w := populated(t)
	good := func(k DeviceKey) DeviceChange { return DeviceChange{Key: k, Cluster: ptr(ClusterName("east"))} }
	bad := DeviceChange{Key: "z", Cluster: ptr(ClusterName("north"))}
	w.refuse(&PutDevices{Changes: []DeviceChange{good("x"), good("a"), bad, good("y")}}, CodeInvalid, "cluster", 2)
	w.refuse(&PutDevices{Changes: []DeviceChange{good("a"), {Key: "b", IfVersion: ptr(uint64(1))}}}, CodeConflict, "version", 1)
	if _, ok := w.Device("x"); ok || w.device("a").Cluster != w.cluster("west") {
		t.Fatal("a refused batch was carried out in part")
	}

	// A later element of a batch sees what an earlier one did.
	w.must(&PutDevices{Changes: []DeviceChange{good("x"), {Key: "x", Pin: ptr(NodeName("e1"))}, {Key: "x", Blocked: ptr(true)}}})
	if d := w.device("x"); d.Cluster != w.cluster("east") || d.Pin == 0 || !d.Blocked {
		t.Fatalf("batch about one device: %+v", d)
	}
	twice := DeviceChange{Key: "y", IfVersion: ptr(uint64(0))}
	w.refuse(&PutDevices{Changes: []DeviceChange{twice, twice}}, CodeConflict, "absent", 1)
	sound(t, w.Tables)
}

func TestRemoveDevices(t *testing.T) {
	w := populated(t)
	w.refuse(&RemoveDevices{Keys: []DeviceKey{"a", "b", "nobody"}}, CodeNotFound, "key", 2)
	w.refuse(&RemoveDevices{Keys: []DeviceKey{"a", "b"}, IfVersion: ptr(w.device("a").Version)}, CodeConflict, "version", 1)
	w.must(&RemoveDevices{Keys: []DeviceKey{"a"}, IfVersion: ptr(w.device("a").Version)})
	w.must(&RemoveDevices{Keys: []DeviceKey{"b", "b"}})
	if s := w.Status(); s.Devices != 1 || w.DevicesIn(1) != 0 || w.DevicesIn(2) != 0 {
		t.Fatalf("%d devices left", s.Devices)
	}
	w.refuse(&RemoveDevices{Keys: []DeviceKey{"a"}}, CodeNotFound, "key", 0)
	sound(t, w.Tables)
}

func TestBind(t *testing.T) {
	const west, east = ClusterID(1), ClusterID(2)
	const w1, w2, w3, e1 = NodeID(1), NodeID(2), NodeID(3), NodeID(4)
	drain := func(n NodeName) Command { return &SetNode{Cluster: "west", Node: n, Draining: true} }
	remove := func(n NodeName) Command { return &UpdateNodes{Cluster: "west", Remove: []NodeName{n}} }
	bind := func(c ClusterID, n NodeID) Command {
		return &Bind{Bindings: []Binding{{Key: "dev", Cluster: c, Node: n}}}
	}
	for _, tc := range []struct {
		name    string
		before  []Command
		cluster ClusterID
		node    NodeID
		outcome Outcome
		want    NodeID // binding afterwards
		origin  Origin
	}{
		{"first time", nil, west, w1, Outcome{Created: 1}, w1, OriginPlaced},
		{"assigned before", []Command{assign("dev", "west")}, west, w1, Outcome{Bound: 1}, w1, OriginAssigned},
		{"record without cluster", []Command{&PutDevices{Changes: []DeviceChange{{Key: "dev"}}}}, west, w1, Outcome{Bound: 1}, w1, OriginPlaced},
		{"the first one wins", []Command{bind(west, w2)}, west, w1, Outcome{Kept: 1}, w2, OriginPlaced},
		{"the same again", []Command{bind(west, w1)}, west, w1, Outcome{Kept: 1}, w1, OriginPlaced},
		{"earlier node gone", []Command{bind(west, w2), remove("w2")}, west, w1, Outcome{Replaced: 1}, w1, OriginPlaced},
		{"earlier node gone and back under its name", []Command{bind(west, w2), remove("w2"), &UpdateNodes{Cluster: "west", Upsert: up("w2")}}, west, w1,
			Outcome{Replaced: 1}, w1, OriginPlaced},
		{"earlier node draining", []Command{bind(west, w2), drain("w2")}, west, w1, Outcome{Replaced: 1}, w1, OriginPlaced},
		{"still on the draining node", []Command{bind(west, w2), drain("w2")}, west, w2, Outcome{Kept: 1}, w2, OriginPlaced},
		{"from one draining node to another", []Command{bind(west, w2), drain("w2"), drain("w1")}, west, w1, Outcome{Kept: 1}, w2, OriginPlaced},
		{"node began to drain", []Command{assign("dev", "west"), drain("w1")}, west, w1, Outcome{Stale: 1}, 0, OriginAssigned},
		{"earlier node gone, new one draining", []Command{bind(west, w2), remove("w2"), drain("w1")}, west, w1, Outcome{Stale: 1}, w2, OriginPlaced},
		{"earlier node down is still its home", []Command{bind(west, w2), &UpdateNodes{Cluster: "west", Upsert: []NodeChange{{Name: "w2", State: NodeDown}}}}, west, w1,
			Outcome{Kept: 1}, w2, OriginPlaced},
		{"moved meanwhile", []Command{bind(west, w2), assign("dev", "east")}, west, w1, Outcome{Stale: 1}, 0, OriginAssigned},
		{"placed elsewhere", []Command{bind(west, w2)}, east, e1, Outcome{Stale: 1}, w2, OriginPlaced},
		{"blocked meanwhile", []Command{assign("dev", "west"), &PutDevices{Changes: []DeviceChange{{Key: "dev", Blocked: ptr(true)}}}}, west, w1,
			Outcome{Stale: 1}, 0, OriginAssigned},
		{"node gone meanwhile", []Command{assign("dev", "west"), remove("w1")}, west, w1, Outcome{Stale: 1}, 0, OriginAssigned},
		{"node of another cluster", []Command{assign("dev", "west")}, west, e1, Outcome{Stale: 1}, 0, OriginAssigned},
		{"cluster that never was", []Command{assign("dev", "west")}, 77, w1, Outcome{Stale: 1}, 0, OriginAssigned},
		{"no cluster, no node", []Command{assign("dev", "west")}, 0, 0, Outcome{Stale: 1}, 0, OriginAssigned},
		{"the pin stays", []Command{&PutDevices{Changes: []DeviceChange{{Key: "dev", Cluster: ptr(ClusterName("west")), Pin: ptr(NodeName("w3"))}}}}, west, w1,
			Outcome{Bound: 1}, w1, OriginAssigned},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := populated(t)
			w.must(tc.before...)
			old, _ := w.Device("dev")
			if got := w.bind("dev", tc.cluster, tc.node); got != tc.outcome {
				t.Fatalf("outcome %+v, want %+v", got, tc.outcome)
			}
			d := w.device("dev")
			if d.Binding != tc.want || d.Origin != tc.origin || d.Pin != old.Pin || d.Blocked != old.Blocked {
				t.Fatalf("after %+v: %+v", old, d)
			}
			if wrote := tc.outcome.Created+tc.outcome.Bound+tc.outcome.Replaced > 0; wrote != (d.Version == w.index) {
				t.Fatalf("version %d at index %d", d.Version, w.index)
			}
			sound(t, w.Tables)

			sum := w.Status().Checksum.Sum
			again := w.bind("dev", tc.cluster, tc.node)
			if again.Kept+again.Stale != 1 || w.Status().Checksum.Sum != sum {
				t.Fatalf("applied twice: %+v", again)
			}
		})
	}
}

func TestBindCluster(t *testing.T) {
	w := populated(t)
	w.bind("dev", w.cluster("west"), 1)
	w.must(&RemoveDevices{Keys: []DeviceKey{"a", "dev"}})
	w.must(&RemoveCluster{Name: "west"})
	if got := w.bind("dev", 1, 1); got != (Outcome{Stale: 1}) {
		t.Fatalf("bound to a cluster that is gone: %+v", got)
	}
	if _, ok := w.Device("dev"); ok {
		t.Fatal("a record was made for a cluster that is gone")
	}
}

func TestBindBatch(t *testing.T) {
	w := populated(t)
	res := w.must(&Bind{Bindings: []Binding{
		{Key: "a", Cluster: 1, Node: 2}, {Key: "new", Cluster: 1, Node: 1}, {Key: "new", Cluster: 1, Node: 2},
		{Key: "c", Cluster: 1, Node: 1}, {Key: "b", Cluster: 1, Node: 1}, {Key: "b", Cluster: 2, Node: 4},
	}})
	if want := (Outcome{Created: 1, Bound: 2, Kept: 1, Stale: 2}); res.Bind != want {
		t.Fatalf("outcome %+v, want %+v", res.Bind, want)
	}
	if w.device("new").Binding != 1 || w.device("a").Binding != 2 || w.device("b").Binding != 4 {
		t.Fatal("within a batch the first binding wins too")
	}
	sound(t, w.Tables)
}

func TestBindSkipsWhatNoGatewayWouldEncode(t *testing.T) {
	w := populated(t)
	body, err := encMode.Marshal(&Bind{Bindings: []Binding{{Key: "", Cluster: 1, Node: 1}, {Key: DeviceKey(make([]byte, MaxKeyBytes+1)), Cluster: 1, Node: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	if res := w.entry(append([]byte{envelopeVersion, 0, byte(KindBind)}, body...)); res.Bind.Stale != 2 || w.Status().Devices != 3 {
		t.Fatalf("result %+v with %d devices", res, w.Status().Devices)
	}
	body, err = encMode.Marshal(assign("", "west"))
	if err != nil {
		t.Fatal(err)
	}
	if res := w.entry(append([]byte{envelopeVersion, 0, byte(KindPutDevices)}, body...)); res.Code != CodeInvalid || res.Field != "key" || res.Item != 0 {
		t.Fatalf("result %+v", res)
	}
	sound(t, w.Tables)
}
