package fsm

import (
	"bufio"
	"bytes"
	"errors"
	"maps"
	"testing"

	"github.com/hashicorp/raft"
)

// settled checks tables after something hostile: sound, and a snapshot of them is readable and comes to the same.
func settled(t *testing.T, tables *Tables) {
	t.Helper()
	sound(t, tables)
	if tables.Status().Halted == nil {
		same(t, tables, restored(t, snapshot(t, tables)))
	}
}

// base returns a maker of equal tables, cheap enough for every input.
func base(f *testing.F) func() *Tables {
	snap, err := rich(f).Snapshot()
	if err != nil {
		f.Fatal(err)
	}
	p := snap.(*pinned)
	counts := map[ClusterID]int{}
	p.devices.rows.Scan(func(_ DeviceKey, r row) bool {
		if r.cluster != 0 {
			counts[r.cluster]++
		}
		return true
	})
	return func() *Tables {
		t := New()
		t.index, t.devices = p.index, &deviceTable{rows: *p.devices.rows.Copy(), sum: p.devices.sum, count: maps.Clone(counts)}
		t.topo.Store(p.topo)
		return t
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range golden() {
		data, err := Encode(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, c := range []Command{
		assign("a", "east"), &RemoveDevices{Keys: []DeviceKey{"a", "b"}}, &RemoveCluster{Name: "gone"},
		&UpdateNodes{Cluster: "west", Remove: []NodeName{"w1"}, Upsert: up("w1", "w9")},
		&Bind{Bindings: []Binding{{Key: "a", Cluster: 1, Node: 1}, {Key: "b", Cluster: 2, Node: 4}}},
	} {
		data, err := Encode(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	tablesOf := base(f)
	f.Fuzz(func(t *testing.T, entry []byte) {
		tables := tablesOf()
		before := tables.Status()
		c, err := Decode(entry)
		if (c == nil) == (err == nil) {
			t.Fatalf("decoded to %T, %v", c, err)
		}
		if err == nil {
			_ = c.Validate()
		}
		for i := range uint64(2) {
			res := tables.Apply(&raft.Log{Index: before.Checksum.Index + 1 + i, Type: raft.LogCommand, Data: entry}).(Result)
			if res.Code != CodeOK && i == 0 && tables.Status().Checksum.Sum != before.Checksum.Sum {
				t.Fatalf("refused with %s, and left a trace", res.Code)
			}
			if res.Code != CodeOf(err) && err != nil {
				t.Fatalf("decode says %v, apply %s", err, res.Code)
			}
			settled(t, tables)
		}
	})
}

func FuzzReadSnapshot(f *testing.F) {
	for _, w := range []*world{newWorld(f), populated(f), rich(f)} {
		f.Add(snapshot(f, w.Tables))
		var b bytes.Buffer
		out := bufio.NewWriter(&b)
		if err := w.Topology().parts(func(v any) error { return writePart(out, v) }); err != nil {
			f.Fatal(err)
		}
		for _, d := range all(w.Tables, DeviceFilter{}, 10) {
			r, _ := w.devices.rows.Get(d.Key)
			out.WriteByte(byte(len(d.Key)))
			out.Write(r.append(nil))
			out.WriteString(string(d.Key))
		}
		out.WriteByte(0)
		if err := out.Flush(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	tablesOf := base(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		// As a file: its checksums stop almost everything.
		tables := tablesOf()
		before := tables.Status()
		if err := tables.Restore(nopCloser(data)); err != nil && tables.Status() != before {
			t.Fatalf("refused, and changed the tables: %v", err)
		}
		settled(t, tables)

		// As what stands behind the header of a file whose checksums are right.
		b := bufio.NewReader(bytes.NewReader(data))
		topo, err := readTopology(func(v any) error { return readPart(b, v) })
		if err != nil {
			return
		}
		p := &pinned{index: 1 << 20, topo: topo, devices: newDeviceTable()}
		if topo.Index > p.index || p.readRows(b) != nil {
			return
		}
		s := &sink{room: -1}
		if err := p.write(s); err != nil {
			t.Fatalf("write what was read: %v", err)
		}
		tables = restored(t, s.Bytes())
		settled(t, tables)
		w := &world{Tables: tables, tb: t, index: p.index}
		for _, c := range golden() {
			if res := w.do(c); res.Err() != nil && !errors.As(res.Err(), new(*Error)) {
				t.Fatal(res.Err())
			}
		}
		settled(t, w.Tables)
	})
}
