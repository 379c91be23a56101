package fsm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLookup(t *testing.T) {
	w := populated(t)
	w.must(&PutDevices{Changes: []DeviceChange{{Key: "a", Pin: ptr(NodeName("w2")), PinStrict: ptr(true), Blocked: ptr(true)}}})
	want := w.device("a")
	got, ok := w.Lookup([]byte("a"))
	if want.Key = ""; !ok || got != want {
		t.Fatalf("looked up %+v, want %+v", got, want)
	}
	for _, key := range [][]byte{nil, {}, []byte("aa"), {0}} {
		if _, ok := w.Lookup(key); ok {
			t.Fatalf("found %q", key)
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		var buf [8]byte
		w.Lookup(append(buf[:0], 'b'))
	}); n != 0 {
		t.Fatalf("a lookup allocates %v times", n)
	}
}

func TestLookupDoesNotKeepTheKey(t *testing.T) {
	w := populated(t)
	key := []byte("a")
	w.Lookup(key)
	key[0] = 'b'
	if d, ok := w.Device("a"); !ok || d.Cluster != w.cluster("west") {
		t.Fatal("the caller's buffer is part of the tables")
	}
}

func TestApplyDoesNotKeepTheEntry(t *testing.T) {
	w := populated(t)
	data, err := Encode(&Bind{Bindings: []Binding{{Key: "dev", Cluster: 1, Node: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	w.entry(data)
	clear(data)
	w.device("dev")
	sound(t, w.Tables)
}

func TestApplyIgnoresOtherLogTypes(t *testing.T) {
	w := populated(t)
	if res := w.Apply(&raft.Log{Index: 99, Type: raft.LogNoop}); res != nil || w.Index() != w.index {
		t.Fatalf("answer %v, index %d", res, w.Index())
	}
}

func TestDevices(t *testing.T) {
	w := populated(t) // a in west, b in east, c blocked
	w.must(assign("pump/1", "west"), assign("pump/2", "east"), assign("pump/3", "west"), assign("q", "west"),
		&PutDevices{Changes: []DeviceChange{{Key: "pump/3", Pin: ptr(NodeName("w1")), Blocked: ptr(true)}}})
	w.bind("pump/1", 1, 1)
	w.bind("pump/3", 1, 2)
	w.bind("q", 1, 2)
	for _, tc := range []struct {
		name string
		f    DeviceFilter
		want string
	}{
		{"all", DeviceFilter{}, "a b c pump/1 pump/2 pump/3 q"},
		{"prefix", DeviceFilter{Prefix: "pump/"}, "pump/1 pump/2 pump/3"},
		{"prefix that is a key", DeviceFilter{Prefix: "pump/1"}, "pump/1"},
		{"prefix of none", DeviceFilter{Prefix: "pumps"}, ""},
		{"cluster", DeviceFilter{Cluster: 1}, "a pump/1 pump/3 q"},
		{"cluster of none", DeviceFilter{Cluster: 9}, ""},
		{"node: bound, or pinned there", DeviceFilter{Node: 1}, "pump/1 pump/3"},
		{"node: bound and not pinned elsewhere", DeviceFilter{Node: 2}, "q"},
		{"blocked", DeviceFilter{Blocked: ptr(true)}, "c pump/3"},
		{"not blocked", DeviceFilter{Blocked: ptr(false)}, "a b pump/1 pump/2 q"},
		{"everything at once", DeviceFilter{Prefix: "p", Cluster: 1, Node: 1, Blocked: ptr(true)}, "pump/3"},
	} {
		for _, limit := range []int{-1, 0, 1, 2, 3, 100} {
			var keys []string
			for _, d := range all(w.Tables, tc.f, limit) {
				keys = append(keys, string(d.Key))
				if d != w.device(d.Key) {
					t.Fatalf("%s: listed %+v, have %+v", tc.name, d, w.device(d.Key))
				}
			}
			if got := strings.Join(keys, " "); got != tc.want {
				t.Fatalf("%s by %d: %q, want %q", tc.name, limit, got, tc.want)
			}
		}
	}
	if page, next := w.Devices("a", 2, DeviceFilter{}); len(page) != 2 || page[0].Key != "b" || next != "c" {
		t.Fatalf("page after a: %v, next %q", page, next)
	}
	if page, next := w.Devices("bb", 1, DeviceFilter{Prefix: "c"}); len(page) != 1 || next != "" {
		t.Fatalf("a cursor need not be a key: %v, next %q", page, next)
	}
	if page, next := w.Devices("z", 5, DeviceFilter{}); len(page) != 0 || next != "" {
		t.Fatalf("behind the end: %v, next %q", page, next)
	}
}

func TestDevicesLooksAtABoundedNumberOfRows(t *testing.T) {
	w := populated(t)
	const many = 2*scanRows + 5
	for i := range many {
		w.devices.put(DeviceKey(fmt.Sprintf("d%06d", i)), row{cluster: 1})
	}
	blocked := DeviceFilter{Blocked: ptr(true), Prefix: "d"}
	pages := 0
	for after := DeviceKey(""); ; pages++ {
		page, next := w.Devices(after, 10, blocked)
		if len(page) != 0 || next != "" && next <= after {
			t.Fatalf("page %d: %d devices, cursor %q after %q", pages, len(page), next, after)
		}
		if after = next; after == "" {
			break
		}
	}
	if pages != 2 {
		t.Fatalf("%d rows took %d pages", many, pages+1)
	}
	if got := len(all(w.Tables, DeviceFilter{Prefix: "d"}, 1<<30)); got != many {
		t.Fatalf("listed %d of %d", got, many)
	}
}

// TestListingWhileWriting lists again and again while rows come and go in between: those that stay are in each listing once.
func TestListingWhileWriting(t *testing.T) {
	w := populated(t)
	var stay []DeviceKey
	for i := range 500 {
		stay = append(stay, DeviceKey(fmt.Sprintf("stay-%04d", i)))
	}
	put := func(keys ...DeviceKey) *PutDevices {
		c := &PutDevices{}
		for _, k := range keys {
			c.Changes = append(c.Changes, DeviceChange{Key: k, Cluster: ptr(ClusterName("west"))})
		}
		return c
	}
	w.must(put(stay...))
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			var come []DeviceKey
			for j := range 50 {
				come = append(come, DeviceKey(fmt.Sprintf("stay-%04d-%d", (i*37+j*11)%500, i%7)))
			}
			w.must(put(come...))
			w.must(&RemoveDevices{Keys: come})
		}
	})
	for range 50 {
		var got []DeviceKey
		for _, d := range all(w.Tables, DeviceFilter{Prefix: "stay-"}, 7) {
			if len(d.Key) == len("stay-0000") {
				got = append(got, d.Key)
			}
		}
		if !slices.Equal(got, stay) {
			t.Errorf("listed %d of the %d that stay, or twice, or in another order", len(got), len(stay))
			break
		}
	}
	close(done)
	wg.Wait()
	sound(t, w.Tables)
}

// TestReadersWhileWriting is for the race detector: every query beside Apply, Snapshot and Restore.
func TestReadersWhileWriting(t *testing.T) {
	w := populated(t)
	old := snapshot(t, w.Tables)
	done := make(chan struct{})
	var wg sync.WaitGroup
	reader := func(read func()) {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					read()
				}
			}
		})
	}
	reader(func() { w.Lookup([]byte("a")); w.Device("b"); w.DevicesIn(1); w.Index() })
	reader(func() { w.Devices("", 10, DeviceFilter{Cluster: 1}) })
	reader(func() {
		topo := w.Topology()
		for _, c := range topo.Clusters {
			for _, n := range c.Nodes {
				if topo.ClusterOfNode(n.ID) != c {
					t.Error("a topology changed under its reader")
				}
			}
			_ = len(c.Spec.Addresses)
		}
		w.Status()
	})
	reader(func() {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		if _, err := w.WaitTopology(ctx, nil); err != nil {
			t.Error(err)
		}
		if err := w.WaitIndex(ctx, 1); err != nil {
			t.Error(err)
		}
	})
	reader(func() {
		snap, err := w.Snapshot()
		if err != nil {
			t.Error(err)
			return
		}
		s := &sink{room: -1}
		if err := snap.Persist(s); err != nil {
			t.Error(err)
		}
		if _, err := InspectSnapshot(&s.Buffer); err != nil {
			t.Error(err)
		}
	})
	for i := range 200 {
		w.bind(DeviceKey(fmt.Sprintf("d%d", i)), 1, 1)
		w.must(&SetNode{Cluster: "west", Node: "w3", Draining: i%2 == 0})
		w.must(&PutCluster{Name: "west", Spec: staticSpec("w1", NodeName(fmt.Sprintf("n%d", i)))})
		if i%50 == 49 {
			if err := w.Restore(nopCloser(old)); err != nil {
				t.Error(err)
			}
		}
	}
	close(done)
	wg.Wait()
	sound(t, w.Tables)
}

func TestWaitIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := populated(t)
		if err := w.WaitIndex(context.Background(), w.index); err != nil {
			t.Fatal(err)
		}
		returned := make([]error, 4)
		waiting := errors.New("still waiting")
		ctx, cancel := context.WithCancel(context.Background())
		for i := range returned {
			returned[i] = waiting
			wait := ctx
			if i < 3 {
				wait = context.Background()
			}
			go func() { returned[i] = w.WaitIndex(wait, 10+uint64(i)) }()
		}
		expect := func(want ...error) {
			t.Helper()
			synctest.Wait()
			if !slices.Equal(returned, want) {
				t.Fatalf("waiters returned %v, want %v", returned, want)
			}
		}
		expect(waiting, waiting, waiting, waiting)
		w.must(assign("x", "west"))
		expect(nil, waiting, waiting, waiting)
		w.refuse(assign("x", "north"), CodeInvalid, "cluster", 0) // refused entries count
		expect(nil, nil, waiting, waiting)
		cancel()
		expect(nil, nil, waiting, context.Canceled)
		if err := w.WaitIndex(ctx, 1); err != nil {
			t.Fatalf("an index that is reached needs no context: %v", err)
		}
		if err := w.WaitIndex(ctx, 99); !errors.Is(err, context.Canceled) {
			t.Fatalf("waited with an ended context: %v", err)
		}

		far := newWorld(t)
		for range 12 {
			far.must(initCommand())
		}
		if err := w.Restore(nopCloser(snapshot(t, far.Tables))); err != nil {
			t.Fatal(err)
		}
		expect(nil, nil, nil, context.Canceled)
	})
}

func TestWaitTopology(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := populated(t)
		seen := w.Topology()
		if topo, err := w.WaitTopology(context.Background(), nil); err != nil || topo != w.Topology() {
			t.Fatalf("the present topology is there at once: %v", err)
		}
		var got *Topology
		go func() { got, _ = w.WaitTopology(context.Background(), seen) }()
		w.must(assign("x", "west"))
		synctest.Wait()
		if got != nil {
			t.Fatal("a change of devices is not one of the topology")
		}
		w.must(&SetNode{Cluster: "west", Node: "w1", Draining: true})
		synctest.Wait()
		if got == nil || got.Index != w.index {
			t.Fatalf("woken with %+v at index %d", got, w.index)
		}

		ctx, cancel := context.WithCancel(context.Background())
		var err error
		go func() { _, err = w.WaitTopology(ctx, w.Topology()) }()
		synctest.Wait()
		cancel()
		synctest.Wait()
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("the context ended: %v", err)
		}

		older := snapshot(t, populated(t).Tables)
		got = nil
		seen = w.Topology()
		go func() { got, _ = w.WaitTopology(context.Background(), seen) }()
		synctest.Wait()
		if err := w.Restore(nopCloser(older)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got == nil || got.Index >= seen.Index {
			t.Fatal("a restore of older tables wakes too")
		}

		// Other tables may be at the same index by chance.
		same := snapshot(t, w.Tables)
		got, seen = nil, w.Topology()
		go func() { got, _ = w.WaitTopology(context.Background(), seen) }()
		synctest.Wait()
		if err := w.Restore(nopCloser(same)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got == nil || got.Index != seen.Index {
			t.Fatal("a restore wakes whatever its index")
		}
	})
}
