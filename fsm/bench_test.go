package fsm

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// fleet is how many devices the benchmarks work with.
const fleet = 1_000_000

// fleetKey is 24 bytes that come in no order, like the serial numbers of a real fleet.
func fleetKey(dst []byte, i int) []byte {
	return fmt.Appendf(dst, "dev-%020d", uint64(i)*0x9e3779b97f4a7c15)
}

// fleetEntries are the log entries that bind devices from to from+n, 1 024 at a time.
func fleetEntries(b *testing.B, from, n int) (entries [][]byte) {
	for i := from; i < from+n; {
		c := &Bind{}
		for ; i < from+n && len(c.Bindings) < 1024; i++ {
			c.Bindings = append(c.Bindings, Binding{Key: DeviceKey(fleetKey(nil, i)), Cluster: 1, Node: NodeID(1 + i%3)})
		}
		data, err := Encode(c)
		if err != nil {
			b.Fatal(err)
		}
		entries = append(entries, data)
	}
	return entries
}

// filled has a fleet of bound devices.
func filled(b *testing.B) *world {
	w := populated(b)
	for _, e := range fleetEntries(b, 0, fleet) {
		w.entry(e)
	}
	if got := w.Status().Devices; got != fleet+3 {
		b.Fatalf("%d devices", got)
	}
	return w
}

func BenchmarkLookup(b *testing.B) {
	w := filled(b)
	keys := make([][]byte, 1<<16)
	for i := range keys {
		keys[i] = fleetKey(nil, (i*7919)%fleet)
	}
	for _, writing := range []bool{false, true} {
		name := "alone"
		if writing {
			name = "beside-writer"
		}
		b.Run(name, func(b *testing.B) {
			done, ended := make(chan struct{}), make(chan struct{})
			if writing {
				entries := fleetEntries(b, 0, 64<<10)
				go func() {
					defer close(ended)
					for i := 0; ; i++ {
						select {
						case <-done:
							return
						default:
							w.entry(entries[i%len(entries)])
						}
					}
				}()
			} else {
				close(ended)
			}
			b.ReportAllocs()
			i, missing := 0, 0
			for b.Loop() {
				if _, ok := w.Lookup(keys[i&(len(keys)-1)]); !ok {
					missing++
				}
				i++
			}
			close(done)
			<-ended
			if missing > 0 {
				b.Fatalf("%d lookups missed", missing)
			}
		})
	}
}

// BenchmarkBind applies batches of 1 024: new devices in a growing table, and bindings that are there already in a full one.
func BenchmarkBind(b *testing.B) {
	report := func(b *testing.B) {
		b.ReportMetric(float64(b.N)*1024/b.Elapsed().Seconds(), "bindings/s")
	}
	b.Run("new", func(b *testing.B) {
		entries := fleetEntries(b, 0, fleet/1024*1024)
		b.ReportAllocs()
		w := populated(b)
		i := 0
		for b.Loop() {
			if i == len(entries) {
				b.StopTimer()
				w, i = populated(b), 0
				b.StartTimer()
			}
			w.entry(entries[i])
			i++
		}
		report(b)
	})
	b.Run("kept", func(b *testing.B) {
		w := filled(b)
		entries := fleetEntries(b, 0, fleet/1024*1024)
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			w.entry(entries[i%len(entries)])
			i++
		}
		report(b)
	})
}

// BenchmarkSnapshot reports how long Apply stands still for a snapshot, and how long the first batches behind it take, which copy
// the nodes of the tree that the snapshot holds.
func BenchmarkSnapshot(b *testing.B) {
	b.Run("pause", func(b *testing.B) {
		w := filled(b)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := w.Snapshot(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("batch-behind", func(b *testing.B) {
		w := filled(b)
		entries := fleetEntries(b, fleet, 512*1024)
		var took []time.Duration
		i := 0
		for b.Loop() {
			b.StopTimer()
			snap, err := w.Snapshot()
			if err != nil {
				b.Fatal(err)
			}
			start := time.Now()
			b.StartTimer()
			w.entry(entries[i%len(entries)])
			b.StopTimer()
			took = append(took, time.Since(start))
			b.StartTimer()
			i++
			snap.Release()
		}
		b.ReportMetric(float64(slices.Max(took).Microseconds()), "max-µs")
	})
	b.Run("write", func(b *testing.B) {
		w := filled(b)
		size := 0
		for b.Loop() {
			snap, err := w.Snapshot()
			if err != nil {
				b.Fatal(err)
			}
			s := &countingSink{}
			if err := snap.Persist(s); err != nil {
				b.Fatal(err)
			}
			size = s.n
		}
		b.ReportMetric(float64(size)/fleet, "file-B/device")
		b.ReportMetric(float64(b.N)*fleet/b.Elapsed().Seconds(), "devices/s")
	})
	b.Run("restore", func(b *testing.B) {
		s := &sink{room: -1}
		snap, err := filled(b).Snapshot()
		if err != nil {
			b.Fatal(err)
		}
		if err := snap.Persist(s); err != nil {
			b.Fatal(err)
		}
		snap = nil
		t := New()
		for b.Loop() {
			if err := t.Restore(io.NopCloser(bytes.NewReader(s.Bytes()))); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)*fleet/b.Elapsed().Seconds(), "devices/s")
	})
}

type countingSink struct{ n int }

func (s *countingSink) Write(b []byte) (int, error) { s.n += len(b); return len(b), nil }
func (s *countingSink) ID() string                  { return "nowhere" }
func (s *countingSink) Close() error                { return nil }
func (s *countingSink) Cancel() error               { return nil }

var _ raft.SnapshotSink = (*countingSink)(nil)

// BenchmarkMemory reports what a device costs: live heap, after binding the fleet in no order and after restoring it in order.
func BenchmarkMemory(b *testing.B) {
	measure := func(b *testing.B, build func() *Tables) {
		for b.Loop() {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			t := build()
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/fleet, "heap-B/device")
			b.ReportMetric(float64(after.HeapObjects-before.HeapObjects)/fleet, "objects/device")
			runtime.KeepAlive(t)
		}
	}
	b.Run("bound", func(b *testing.B) {
		measure(b, func() *Tables { return filled(b).Tables })
	})
	b.Run("restored", func(b *testing.B) {
		s := &sink{room: -1}
		snap, err := filled(b).Snapshot()
		if err != nil {
			b.Fatal(err)
		}
		if err := snap.Persist(s); err != nil {
			b.Fatal(err)
		}
		data := bytes.Clone(s.Bytes())
		s, snap = nil, nil
		measure(b, func() *Tables {
			t := New()
			if err := t.Restore(nopCloser(data)); err != nil {
				b.Fatal(err)
			}
			return t
		})
	})
}

// BenchmarkDevices lists a page that no row belongs to: the longest that one listing holds the read lock.
func BenchmarkDevices(b *testing.B) {
	w := filled(b)
	for b.Loop() {
		w.Devices("", 1, DeviceFilter{Blocked: ptr(true), Prefix: "dev-"})
	}
}
