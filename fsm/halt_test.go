package fsm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestHalt: tables that met an entry from a later version keep what they have and follow the log no further.
func TestHalt(t *testing.T) {
	for _, tc := range []struct {
		name  string
		entry []byte
	}{
		{"unknown kind", []byte{1, 0x7f, 0xff, 0xa0}},
		{"unknown envelope", []byte{2, 0, byte(KindBind), 0xa0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := populated(t)
			last := w.index
			good := snapshot(t, w.Tables)
			before := w.Status()
			if res := w.entry(tc.entry); res.Code != CodeUnsupported || res.Index != last+1 {
				t.Fatalf("answered %+v", res)
			}
			for range 3 {
				if res := w.do(assign("x", "west")); res.Code != CodeUnsupported {
					t.Fatalf("a later entry was answered %+v", res)
				}
			}
			after := w.Status()
			if after.Checksum != before.Checksum || after.Devices != before.Devices || w.Index() != last {
				t.Fatalf("the tables moved on: %+v, were %+v", after, before)
			}
			if !errors.Is(after.Halted, ErrUnsupported) || !strings.Contains(after.Halted.Error(), fmt.Sprint(last+1)) {
				t.Fatalf("halted is %v", after.Halted)
			}
			if _, ok := w.Lookup([]byte("a")); !ok {
				t.Fatal("halted tables must go on routing")
			}
			if _, err := w.Snapshot(); !errors.Is(err, ErrUnsupported) {
				t.Fatalf("a snapshot would hide the hole in the log: %v", err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if err := w.WaitIndex(ctx, last+1); err == nil {
				t.Fatal("an entry that was not applied was reached")
			}
			// A snapshot from a gateway that understands the log heals.
			if err := w.Restore(nopCloser(good)); err != nil {
				t.Fatal(err)
			}
			w.index = last
			w.must(assign("x", "west"))
			if w.Status().Halted != nil {
				t.Fatal("still halted")
			}
			sound(t, w.Tables)
		})
	}
}

// TestDamagedEntriesDoNotHalt: a damaged entry is damaged on every gateway, so all go on without it.
func TestDamagedEntriesDoNotHalt(t *testing.T) {
	w := populated(t)
	before := w.Status()
	for _, data := range [][]byte{nil, {1}, {1, 0, byte(KindBind)}, {1, 0, byte(KindBind), 0xff}} {
		if res := w.entry(data); res.Code != CodeInvalid || res.Item != -1 {
			t.Fatalf("%x answered %+v", data, res)
		}
	}
	if s := w.Status(); s.Checksum.Sum != before.Checksum.Sum || s.Halted != nil || w.Index() != w.index {
		t.Fatalf("%+v at index %d", s, w.index)
	}
	w.must(assign("x", "west"))
}

func TestChecksumSeesEverything(t *testing.T) {
	w := populated(t)
	seen := map[uint64]int{w.Status().Checksum.Sum: 0}
	for i, c := range []Command{
		assign("x", "west"),
		&PutDevices{Changes: []DeviceChange{{Key: "x", Pin: ptr(NodeName("w1"))}}},
		&PutDevices{Changes: []DeviceChange{{Key: "x", PinStrict: ptr(true)}}},
		&PutDevices{Changes: []DeviceChange{{Key: "x", Blocked: ptr(true)}}},
		&Bind{Bindings: []Binding{{Key: "a", Cluster: 1, Node: 2}}},
		&RemoveDevices{Keys: []DeviceKey{"x"}},
		&SetNode{Cluster: "west", Node: "w1", Draining: true},
		&UpdateNodes{Cluster: "west", Upsert: []NodeChange{{Name: "w1", State: NodeDown}}},
		&UpdateNodes{Cluster: "west", Remove: []NodeName{"w1"}},
		&PutCluster{Name: "north", Spec: staticSpec("n1")},
		&RemoveCluster{Name: "north"},
		&PutSettings{Unknown: &Policy{Kind: PolicyWeighted}},
		&PutGateway{Gateway: Gateway{ID: "id-2", Name: "gw-2", PeerAddress: "h:1"}},
		&RemoveGateway{ID: "id-2"},
	} {
		w.must(c)
		sum := w.Status().Checksum.Sum
		if at, ok := seen[sum]; ok {
			t.Fatalf("step %d has the checksum of step %d", i+1, at)
		}
		seen[sum] = i + 1
		sound(t, w.Tables)
	}
	if got := (Checksum{Sum: 255}).String(); got != "00000000000000ff" {
		t.Fatalf("printed %s", got)
	}
}
