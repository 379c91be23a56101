package fsm

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func nopCloser(b []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(b)) }

// rich is populated with pins, bindings, a drain, and what is left of things removed.
func rich(tb testing.TB) *world {
	w := populated(tb)
	w.must(
		&PutDevices{Changes: []DeviceChange{{Key: "a", Pin: ptr(NodeName("w2")), PinStrict: ptr(true)}, {Key: "ü\x00", Blocked: ptr(true)}}},
		&Bind{Bindings: []Binding{{Key: "b", Cluster: 2, Node: 4}, {Key: "new", Cluster: 1, Node: 3}}},
		&SetNode{Cluster: "east", Node: "e2", Draining: true},
		&UpdateNodes{Cluster: "west", Remove: []NodeName{"w3"}},
		&PutCluster{Name: "gone", Spec: staticSpec("g")}, &RemoveCluster{Name: "gone"},
		&PutSettings{Unknown: &Policy{Kind: PolicyCluster, Cluster: "east"}},
	)
	w.refuse(&RemoveCluster{Name: "east"}, CodeInUse, "name", -1) // so that the index is beyond every version
	return w
}

func TestSnapshotRestores(t *testing.T) {
	for _, w := range []*world{newWorld(t), populated(t), rich(t)} {
		data := snapshot(t, w.Tables)
		info, err := InspectSnapshot(bytes.NewReader(data))
		s := w.Status()
		want := SnapshotInfo{ClusterID: w.Topology().Settings.ClusterID, Checksum: s.Checksum, Devices: s.Devices, Clusters: len(w.Topology().Clusters)}
		if err != nil || info != want {
			t.Fatalf("inspected %+v, %v; want %+v", info, err, want)
		}
		got := restored(t, data)
		same(t, w.Tables, got)
		sound(t, got)
		if again := snapshot(t, got); !bytes.Equal(again, data) {
			t.Fatal("a snapshot of restored tables is another one")
		}
	}
}

func TestRestoreReplacesEverything(t *testing.T) {
	w, other := rich(t), populated(t)
	other.must(assign("other", "east"), &PutCluster{Name: "other", Spec: staticSpec("o")})
	if err := other.Restore(nopCloser(snapshot(t, w.Tables))); err != nil {
		t.Fatal(err)
	}
	same(t, w.Tables, other.Tables)
}

func TestRestoreAndWriterOfTheOldTables(t *testing.T) {
	w := rich(t)
	snap, err := w.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	before := w.Status()
	if err := w.Restore(nopCloser(snapshot(t, New()))); err != nil {
		t.Fatal(err)
	}
	if got := restored(t, persist(t, snap)).Status(); got != before {
		t.Fatalf("a snapshot taken before a restore came to %+v, want %+v", got, before)
	}
}

func TestSnapshotStaysAtItsIndex(t *testing.T) {
	w := rich(t)
	for i := range 5000 {
		w.devices.put(DeviceKey(fmt.Sprintf("dev-%05d", i)), row{cluster: 1, flags: uint8(OriginPlaced), binding: 1, version: 3})
	}
	before := w.Status()
	snap, err := w.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			key := DeviceKey(fmt.Sprintf("dev-%05d", i*37%5000))
			if _, ok := w.Device(key); ok {
				w.must(assign(key, "east"), &RemoveDevices{Keys: []DeviceKey{key}})
			}
			w.bind(DeviceKey(fmt.Sprintf("new-%d", i)), 1, 1)
			w.must(&SetNode{Cluster: "west", Node: "w1", Draining: i%2 == 0})
		}
	})
	for range 5 {
		if got := restored(t, persist(t, snap)).Status(); got != before {
			t.Errorf("the snapshot moved: %+v, was %+v", got, before)
		}
	}
	close(done)
	wg.Wait()
	sound(t, w.Tables)
}

func TestPersistCancelsOnError(t *testing.T) {
	w := rich(t)
	for i := range 20_000 { // more than the buffers between rows and sink hold
		w.devices.put(DeviceKey(fmt.Sprintf("%x", i*2654435761)), row{cluster: 1, version: uint64(i % 9)})
	}
	full := len(snapshot(t, w.Tables))
	for _, room := range []int{0, 7, 8, 100, full / 2, full - 1} {
		snap, err := w.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		s := &sink{room: room}
		if err := snap.Persist(s); !errors.Is(err, errFull) || !s.cancelled || s.closed {
			t.Fatalf("with room for %d of %d: %v, cancelled %t, closed %t", room, full, err, s.cancelled, s.closed)
		}
		snap.Release()
	}
}

// spent returns how much was allocated while f ran.
func spent(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestDamagedSnapshots cuts a snapshot at every offset and changes every byte of it.
func TestDamagedSnapshots(t *testing.T) {
	source, live := rich(t), populated(t)
	data := snapshot(t, source.Tables)
	want := live.Status()
	topo := live.Topology()
	restore := func(b []byte) (err error) {
		n := spent(func() { err = live.Restore(nopCloser(b)) })
		if n > 40<<20 { // the largest window, twice, and some
			t.Fatalf("refusing %d bytes took %d", len(b), n)
		}
		if _, inspect := InspectSnapshot(bytes.NewReader(b)); (inspect == nil) != (err == nil) {
			t.Fatalf("restore says %v, inspection %v", err, inspect)
		}
		return err
	}
	untouched := func(what string, at int) {
		t.Helper()
		if live.Topology() != topo || live.Status() != want {
			t.Fatalf("%s at %d reached the live tables", what, at)
		}
	}
	for n := range data {
		if restore(data[:n]) == nil {
			t.Fatalf("cut at %d of %d: accepted", n, len(data))
		}
		untouched("cut", n)
	}
	for i := range data {
		b := bytes.Clone(data)
		b[i] ^= 0xff
		if restore(b) == nil {
			t.Fatalf("byte %d of %d turned over: accepted", i, len(data))
		}
		untouched("byte turned over", i)
		for bit := range 8 {
			b[i] = data[i] ^ 1<<bit
			// RFC 8878 has bits that a decoder must not look at, and windows larger than needed: then it is the very same snapshot.
			if info, err := InspectSnapshot(bytes.NewReader(b)); err == nil && info.Checksum != source.Status().Checksum {
				t.Fatalf("bit %d of byte %d turned over: accepted as %+v", bit, i, info)
			}
		}
	}
	for _, tail := range []string{"x", "\x00", string(data), string(data[8:])} {
		if restore(append(bytes.Clone(data), tail...)) == nil {
			t.Fatalf("%d bytes behind the end: accepted", len(tail))
		}
	}
	untouched("tail", len(data))
	later := bytes.Clone(data)
	later[7] = 2
	if err := restore(later); !errors.Is(err, ErrUnsupported) {
		t.Fatalf("later format: %v", err)
	}
	if err := live.Restore(nopCloser(data)); err != nil {
		t.Fatal(err)
	}
	same(t, source.Tables, live.Tables)
}

// pack makes a snapshot file of what would be in the stream.
func pack(tb testing.TB, stream []byte) []byte {
	tb.Helper()
	b := bytes.NewBuffer(bytes.Clone(snapshotMagic[:]))
	z, err := zstd.NewWriter(b, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		tb.Fatal(err)
	}
	_, err = z.Write(stream)
	if err = errors.Join(err, z.Close()); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// TestLyingSnapshots are well compressed, so that the reader itself meets every lie.
func TestLyingSnapshots(t *testing.T) {
	part := func(v any) []byte {
		var b bytes.Buffer
		w := bufio.NewWriter(&b)
		if err := errors.Join(writePart(w, v), w.Flush()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	header := part(snapshotHeader{})
	head := part(topologyHead{})
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, tc := range []struct {
		name   string
		stream []byte
	}{
		{"nothing", nil},
		{"header of 4 GiB", []byte{0xff, 0xff, 0xff, 0xff}},
		{"header of 1 MiB that is not there", []byte{0, 0x10, 0, 0}},
		{"header that is no CBOR", []byte{0, 0, 0, 1, 0xff}},
		{"negative device count", join(part(snapshotHeader{Devices: -1}), head, []byte{0})},
		{"a million clusters", join(header, part(topologyHead{Clusters: 1_000_000}))},
		{"minus one gateways", join(header, part(topologyHead{Gateways: -1}))},
		{"clusters that do not follow", join(header, part(topologyHead{Clusters: MaxClusters, LastCluster: 9}), []byte{0})},
		{"a cluster that is null", join(header, part(topologyHead{Clusters: 1, LastCluster: 9}), part(nil), []byte{0})},
		{"key of 257", join(header, head, []byte{0x81, 0x02})},
		{"key of 2^64-1", join(header, head, bytes.Repeat([]byte{0xff}, 9), []byte{0x01})},
		{"key length without end", join(header, head, bytes.Repeat([]byte{0x80}, 1000))},
		{"row cut", join(header, head, []byte{3, 0, 0, 0})},
		{"no end of rows", join(header, head)},
		{"64 MiB behind the end", join(header, head, make([]byte, 64<<20))},
		{"wrong checksum", join(header, head, []byte{0})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			data := pack(t, tc.stream)
			w := populated(t)
			want := w.Status()
			var err error
			n := spent(func() { err = w.Restore(nopCloser(data)) })
			if err == nil || w.Status() != want {
				t.Fatalf("restored %+v, %v", w.Status(), err)
			}
			if n > 24<<20 {
				t.Fatalf("refusing %d bytes took %d", len(data), n)
			}
		})
	}
}

// TestContradictorySnapshots come to the checksum in their header and still cannot be what Apply made.
func TestContradictorySnapshots(t *testing.T) {
	cluster := func(p *pinned, i int, edit func(*Cluster)) {
		c := *p.topo.Clusters[i]
		c.Nodes = append([]Node(nil), c.Nodes...)
		edit(&c)
		p.topo.Clusters[i] = &c
	}
	for _, tc := range []struct {
		name string
		edit func(*pinned)
		good bool
	}{
		{"as it is", func(*pinned) {}, true},
		{"clusters out of order", func(p *pinned) { c := p.topo.Clusters; c[0], c[1] = c[1], c[0] }, false},
		{"one name twice", func(p *pinned) { cluster(p, 1, func(c *Cluster) { c.Name = p.topo.Clusters[0].Name }) }, false},
		{"one id twice", func(p *pinned) {
			p.topo.Clusters = append(p.topo.Clusters, &Cluster{ID: p.topo.Clusters[0].ID, Name: "zone"})
		}, false},
		{"cluster without id", func(p *pinned) { cluster(p, 1, func(c *Cluster) { c.ID = 0 }) }, false},
		{"cluster id never given", func(p *pinned) { p.topo.lastCluster = 1 }, false},
		{"node id never given", func(p *pinned) { p.topo.lastNode = 4 }, false},
		{"node without id", func(p *pinned) { cluster(p, 0, func(c *Cluster) { c.Nodes[0].ID = 0 }) }, false},
		{"nodes out of order", func(p *pinned) {
			cluster(p, 0, func(c *Cluster) { c.Nodes[0], c.Nodes[1] = c.Nodes[1], c.Nodes[0] })
		}, false},
		{"node of two clusters", func(p *pinned) {
			cluster(p, 1, func(c *Cluster) { c.Nodes[1].ID = p.topo.Clusters[0].Nodes[0].ID })
		}, false},
		{"201 nodes", func(p *pinned) {
			p.topo.lastNode = 1000
			cluster(p, 0, func(c *Cluster) {
				for i := range NodeID(MaxClusterNodes) {
					c.Nodes = append(c.Nodes, Node{ID: 100 + i, Name: NodeName(fmt.Sprint(i))})
				}
			})
		}, false},
		{"gateway twice", func(p *pinned) { p.topo.Gateways = append(p.topo.Gateways, p.topo.Gateways[0]) }, false},
		{"topology of the future", func(p *pinned) { p.topo.Index = p.index + 1 }, false},
		{"device in a cluster that is gone", func(p *pinned) { p.devices.put("z", row{cluster: 3}) }, false},
		{"device on a node that is gone", func(p *pinned) { p.devices.put("z", row{cluster: 1, pin: 3, binding: 3}) }, true},
		{"pin never given", func(p *pinned) { p.devices.put("z", row{pin: 6}) }, false},
		{"binding never given", func(p *pinned) { p.devices.put("z", row{binding: math.MaxUint32}) }, false},
		{"version of the future", func(p *pinned) { p.devices.put("z", row{version: p.index + 1}) }, false},
		{"unknown flag", func(p *pinned) { p.devices.put("z", row{flags: 0x10}) }, false},
		{"unknown origin", func(p *pinned) { p.devices.put("z", row{flags: 3}) }, false},
		{"key not UTF-8", func(p *pinned) { p.devices.put("\xff", row{}) }, false},
		{"key too long", func(p *pinned) { p.devices.put(DeviceKey(strings.Repeat("k", MaxKeyBytes+1)), row{}) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := rich(t)
			snap, err := w.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			p := snap.(*pinned)
			p.topo = p.topo.edit(p.topo.Index)
			p.devices.count = map[ClusterID]int{}
			tc.edit(p)
			fresh := New()
			err = fresh.Restore(nopCloser(persist(t, p)))
			if (err == nil) != tc.good {
				t.Fatalf("restore says %v", err)
			}
			sound(t, fresh)
		})
	}
}

// TestSnapshotLargerThanTheWindow: the bound on the window must not bound the stream.
func TestSnapshotLargerThanTheWindow(t *testing.T) {
	w := populated(t)
	for i := range 80_000 {
		w.devices.put(DeviceKey(fmt.Sprintf("%08d", i)+strings.Repeat("k", MaxKeyBytes-8)), row{cluster: 1})
	}
	if size := 80_000 * (MaxKeyBytes + rowBytes); size < maxSnapshotWindow {
		t.Fatalf("%d bytes fit into the window", size)
	}
	if got, want := restored(t, snapshot(t, w.Tables)).Status(), w.Status(); got != want {
		t.Fatalf("restored %+v, want %+v", got, want)
	}
}

// TestLargestTopologyIsReadable fills clusters to their bounds: what Apply takes, a snapshot must give back.
func TestLargestTopologyIsReadable(t *testing.T) {
	w := newWorld(t)
	text := func(prefix string, i, n int) string {
		s := fmt.Sprintf("%s%d-", prefix, i)
		return s + strings.Repeat("x", n-len(s))
	}
	spec := DefaultSpec()
	for i := range 16 {
		spec.ManagementURLs = append(spec.ManagementURLs, text("http://h", i, MaxURLBytes))
	}
	spec.Addresses = map[NodeName]string{}
	var nodes []NodeChange
	for i := range MaxClusterNodes {
		name, addr := NodeName(text("n", i, MaxNameBytes)), text("h", i, MaxNameBytes)+":65535"
		spec.Addresses[name] = addr
		nodes = append(nodes, NodeChange{Name: name, Address: addr, State: NodeUp})
	}
	w.must(&PutCluster{Name: "west", Spec: spec}, &UpdateNodes{Cluster: "west", Upsert: nodes})
	same(t, w.Tables, w.reborn().Tables)
}
