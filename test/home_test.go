package test

import (
	"fmt"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"

	"turnout/test/harness"
)

// TestDevicesStayAtHome is the main promise: a device reaches only its cluster, comes back to one node whichever gateway it meets, falls
// back and returns when that node stops and starts, and moves once when it leaves the cluster.
func TestDevicesStayAtHome(t *testing.T) {
	w := newWorld(t, 3, nil)
	west, east := w.addSite("west", 2, nil), w.addSite("east", 2, nil)
	var devices []string
	for i := range 10 {
		id := fmt.Sprintf("meter-%02d", i)
		devices = append(devices, id)
		w.assign(id, "west")
	}

	// Whichever gateway, straight after ?wait=all.
	for _, id := range devices {
		for _, g := range w.fleet.Gateways() {
			d, err := w.connect(harness.DeviceOptions{Address: g.MQTT(), ClientID: id, CleanStart: true})
			if err != nil {
				t.Fatalf("%s through %s: %v", id, g.Name, err)
			}
			d.Disconnect()
		}
	}
	for range 200 {
		for _, id := range devices {
			w.visit(id)
		}
	}
	homes := map[string]string{}
	for _, id := range devices {
		homes[id] = west.home(t, id)
		if n := west.counts(id)[homes[id]]; n != 203 {
			t.Errorf("%s: %d CONNECTs at its node, want 203", id, n)
		}
		if seen := east.counts(id); len(seen) > 0 {
			t.Errorf("%s was seen in east: %v", id, seen)
		}
	}
	w.waitBound(homes)

	// A third node: whoever is bound stays.
	if _, err := west.cluster.AddNode(); err != nil {
		t.Fatal(err)
	}
	w.describe(west, nil)
	w.waitNodes(west, 3)
	for range 5 {
		for _, id := range devices {
			w.visit(id)
		}
	}
	for _, id := range devices {
		if got := west.home(t, id); got != homes[id] {
			t.Errorf("%s moved from %s to %s when a node was added", id, homes[id], got)
		}
	}

	// A node that stops but stays a member: its devices work elsewhere and are home when it is back.
	victim := west.cluster.Node(homes[devices[0]])
	if err := victim.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, id := range devices {
		w.visit(id)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	for _, id := range devices {
		w.eventually(id+" to be home", func() (bool, string) {
			before := west.counts(id)[homes[id]]
			w.visit(id)
			return west.counts(id)[homes[id]] == before+1, "it was elsewhere"
		})
	}

	// A node that leaves: only its devices move, once, and then stay.
	if err := west.cluster.RemoveNode(victim.Name()); err != nil {
		t.Fatal(err)
	}
	w.waitNodes(west, 2)
	for _, id := range devices {
		w.eventually(id+" to be accepted", func() (bool, string) {
			d, err := w.connect(harness.DeviceOptions{ClientID: id, CleanStart: true})
			if err != nil {
				return false, err.Error()
			}
			d.Disconnect()
			return true, ""
		})
	}
	moved := map[string]string{}
	for _, id := range devices {
		before := west.counts(id)
		w.visit(id)
		for node, n := range west.counts(id) {
			if n > before[node] {
				moved[id] = node
			}
		}
	}
	for _, id := range devices {
		if homes[id] != victim.Name() && moved[id] != homes[id] {
			t.Errorf("%s moved from %s to %s although its node stayed", id, homes[id], moved[id])
		}
		if moved[id] == victim.Name() {
			t.Errorf("%s is on the removed node", id)
		}
	}
	for range 20 {
		for _, id := range devices {
			before := west.counts(id)
			before[moved[id]]++
			w.visit(id)
			if diff := cmp.Diff(before, west.counts(id)); diff != "" {
				t.Fatalf("%s did not stay on %s:\n%s", id, moved[id], diff)
			}
		}
	}
}

// waitBound waits until the tables of every gateway have each device bound to its home.
func (w *world) waitBound(homes map[string]string) {
	w.t.Helper()
	for _, g := range w.fleet.Gateways() {
		if !g.Running() {
			continue
		}
		w.eventually("bindings on "+g.Name, func() (bool, string) {
			got := map[string]string{}
			for id := range homes {
				d, err := g.API().Device(w.ctx, id)
				if err != nil {
					return false, err.Error()
				}
				got[id] = d.Binding.String()
			}
			return maps.Equal(got, homes), cmp.Diff(homes, got)
		})
	}
}
