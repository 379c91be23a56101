package proxy

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"turnout/fsm"
)

var update = flag.Bool("update", false, "write the golden files anew")

func mustRing(t testing.TB, spec fsm.RingSpec, members ...fsm.NodeID) *ring {
	t.Helper()
	r, err := buildRing(spec, members)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRingOwnersStandStill holds the owner table of a ring: were it to change, gateways of two versions would send new devices to
// different nodes, and every recorded placement made by rule of the ring would be in doubt.
func TestRingOwnersStandStill(t *testing.T) {
	r := mustRing(t, fsm.DefaultSpec().Ring, 1, 2, 3, 5, 8, 13)
	var out bytes.Buffer
	for p, o := range r.owners {
		fmt.Fprintf(&out, "%d", r.members[o])
		if p%32 == 31 || p == len(r.owners)-1 {
			out.WriteByte('\n')
		} else {
			out.WriteByte(' ')
		}
	}
	for _, key := range []string{"m-0417", "", "plant7/m-0417"} {
		fmt.Fprintf(&out, "%q:", key)
		r.walk(keyHash([]byte(key)), func(i int) bool { fmt.Fprintf(&out, " %d", r.members[i]); return true })
		out.WriteByte('\n')
	}
	name := filepath.Join("testdata", "ring.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Error("the owner table has changed; gateways of two versions would disagree")
	}
}

func TestRingMovesOnlyAShare(t *testing.T) {
	spec := fsm.DefaultSpec().Ring
	for _, n := range []int{2, 5, 20} {
		members := make([]fsm.NodeID, n+1)
		for i := range members {
			members[i] = fsm.NodeID(i + 1)
		}
		fewer, more := mustRing(t, spec, members[:n]...), mustRing(t, spec, members...)
		moved := 0
		for p := range fewer.owners {
			if fewer.members[fewer.owners[p]] != more.members[more.owners[p]] {
				moved++
			}
		}
		share := float64(moved) / float64(len(fewer.owners)) * float64(n+1)
		t.Logf("%d and %d members: %d of %d partitions differ, %.2f of the ideal", n, n+1, moved, len(fewer.owners), share)
		if moved == 0 || share > 2 {
			t.Errorf("%d and %d members: %.2f of the ideal share moves", n, n+1, share)
		}
	}
}

func TestRingLoadIsBounded(t *testing.T) {
	spec := fsm.DefaultSpec().Ring
	members := make([]fsm.NodeID, fsm.MaxClusterNodes)
	for i := range members {
		members[i] = fsm.NodeID(1000 + i)
	}
	load := make([]int, len(members))
	for _, o := range mustRing(t, spec, members...).owners {
		load[o]++
	}
	if most := slices.Max(load); most > int(spec.Partitions)*int(spec.LoadPercent)/100/len(members)+1 {
		t.Errorf("one member owns %d of %d partitions", most, spec.Partitions)
	}
}

func TestRingWalkVisitsEveryMemberOnce(t *testing.T) {
	r := mustRing(t, fsm.DefaultSpec().Ring, 3, 4, 9)
	r.members = append(r.members, 11) // owns nothing
	for h := range uint64(10_000) {
		var seen []fsm.NodeID
		r.walk(h, func(i int) bool { seen = append(seen, r.members[i]); return true })
		if seen[0] != r.members[r.owners[h%uint64(len(r.owners))]] {
			t.Fatalf("hash %d: begins with %d", h, seen[0])
		}
		slices.Sort(seen)
		if !slices.Equal(seen, []fsm.NodeID{3, 4, 9, 11}) {
			t.Fatalf("hash %d: visited %v", h, seen)
		}
	}
	n := 0
	r.walk(7, func(int) bool { n++; return n < 2 })
	if n != 2 {
		t.Errorf("%d visits after a stop", n)
	}
}

func TestRingErrors(t *testing.T) {
	if r, err := buildRing(fsm.DefaultSpec().Ring, nil); r != nil || err != nil {
		t.Errorf("no members: %v, %v", r, err)
	}
	spec := fsm.DefaultSpec().Ring
	spec.Algorithm = 9
	if _, err := buildRing(spec, []fsm.NodeID{1}); err == nil {
		t.Error("unknown algorithm accepted")
	}
	spec = fsm.DefaultSpec().Ring
	spec.LoadPercent = 50 // half of the room that is needed: the library panics
	if _, err := buildRing(spec, []fsm.NodeID{1, 2}); err == nil {
		t.Error("a panic of the library went unnoticed")
	}
}

func TestViewKeepsTheRingThatCannotBeRebuilt(t *testing.T) {
	spec := fsm.DefaultSpec()
	c := &fsm.Cluster{ID: 1, Name: "west", Spec: spec, Nodes: []fsm.Node{{ID: 1, State: fsm.NodeUp, Address: "a:1"}, {ID: 2, State: fsm.NodeUp, Address: "b:1"}}}
	old, err := newClusterView(nil, c)
	if err != nil {
		t.Fatal(err)
	}
	next := *c
	next.Nodes = []fsm.Node{c.Nodes[1], {ID: 3, State: fsm.NodeUp, Address: "c:1"}}
	next.Spec.Ring.LoadPercent = 50
	cv, err := newClusterView(old, &next)
	if err == nil || cv.ring != old.ring {
		t.Fatalf("ring %p (was %p), error %v", cv.ring, old.ring, err)
	}
	var d Decision
	d.order(cv, nil, nil, 1, nil, MaxCandidates)
	if got := names(&d); len(got) != 2 || got[0] != 2 || got[1] != 3 {
		t.Errorf("candidates %v, want the member that is left and then the new one", got)
	}
}

func names(d *Decision) (ids []fsm.NodeID) {
	for _, n := range d.Candidates() {
		ids = append(ids, n.ID)
	}
	return ids
}

func TestViewRebuildsOnlyWhatChanged(t *testing.T) {
	w := newTables(t, fsm.Policy{Kind: fsm.PolicyRefuse})
	w.cluster("east", 1, up("e1", "127.0.0.1:1"))
	w.cluster("west", 1, up("w1", "127.0.0.1:2"), up("w2", "127.0.0.1:3"))
	changes := 0
	vs := &views{tables: w.Tables, log: discardLog(), changed: func(*view) { changes++ }}
	one := vs.get()
	if vs.get() != one {
		t.Error("a new view without a change")
	}
	east, west := w.Topology().Cluster("east").ID, w.Topology().Cluster("west").ID
	w.apply(&fsm.UpdateNodes{Cluster: "west", Upsert: []fsm.NodeChange{{Name: "w1", Address: "127.0.0.1:2", State: fsm.NodeDown}}})
	two := vs.get()
	if two.clusters[east] != one.clusters[east] {
		t.Error("an unchanged cluster got a new view")
	}
	if two.clusters[west] == one.clusters[west] || two.clusters[west].ring != one.clusters[west].ring {
		t.Error("a change of state must make a new view with the old ring")
	}
	if two.identity != one.identity {
		t.Error("the identity was parsed again")
	}
	w.apply(&fsm.SetNode{Cluster: "west", Node: "w1", Draining: true})
	three := vs.get()
	if r := three.clusters[west].ring; r == two.clusters[west].ring || len(r.members) != 1 {
		t.Errorf("ring of a cluster with a draining node: %v", r.members)
	}
	w.apply(&fsm.SetNode{Cluster: "west", Node: "w2", Draining: true})
	if cv := vs.get().clusters[west]; len(cv.ring.members) != 2 || cv.placing {
		t.Errorf("all draining: members %v, placing %v", cv.ring.members, cv.placing)
	}
	if changes != 4 {
		t.Errorf("%d changes told", changes)
	}
}

func TestViewKeepsTheIdentityItCanRead(t *testing.T) {
	w := newTables(t, fsm.Policy{Kind: fsm.PolicyRefuse})
	vs := &views{tables: w.Tables, log: discardLog(), changed: func(*view) {}}
	vs.get()
	w.apply(&fsm.PutSettings{Identity: ptr("{from_a_later_version}")})
	if got := vs.get().identity.String(); got != "{client_id}" {
		t.Errorf("identity %q", got)
	}
	w.apply(&fsm.PutSettings{Identity: ptr("{username}")})
	if got := vs.get().identity.String(); got != "{username}" {
		t.Errorf("identity %q", got)
	}
}
