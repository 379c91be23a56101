package peer

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/raft"

	"turnout/fsm"
)

// A voter that crashed between its promise and the list of voters gets the list later, and only from the one it promised.
func TestBootstrapSurvivesCrashes(t *testing.T) {
	f := newFleet(t, 3)
	a := f.add()
	rec := bootstrapRecord{Cluster: newUUID(), Initiator: a.ID()}
	b := f.prepare()
	if err := os.MkdirAll(b.opts.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(filepath.Join(b.opts.DataDir, filePromise), []byte(a.ID()+"\n")); err != nil {
		t.Fatal(err)
	}
	b.open()
	// c has no promise on disk: it must not be talked into a cluster.
	c := f.prepare()
	c.opts.Config.Join = nil
	c.open()
	for _, g := range f.all {
		rec.Voters = append(rec.Voters, bootstrapMember{g.ID(), g.Addr()})
	}
	slices.SortFunc(rec.Voters, func(x, y bootstrapMember) int { return strings.Compare(string(x.ID), string(y.ID)) })
	a.stop()
	b.stop()
	// a is as after a crash right behind the record: no Raft data, no cluster id.
	body, err := wireEncoding.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(filepath.Join(a.opts.DataDir, fileBootstrap), body); err != nil {
		t.Fatal(err)
	}
	a.open()
	b.open()
	leader(t, a, b)
	if a.ClusterID() != rec.Cluster || b.ClusterID() != rec.Cluster {
		t.Fatalf("clusters %q and %q", a.ClusterID(), b.ClusterID())
	}
	if c.raft.Load() != nil {
		t.Fatal("a gateway without a promise took part")
	}
	// With the promise it takes the record, however late.
	c.stop()
	if err := writeFile(filepath.Join(c.opts.DataDir, filePromise), []byte(a.ID()+"\n")); err != nil {
		t.Fatal(err)
	}
	c.open()
	f.ready()
	for _, g := range f.all {
		eventually(t, "record gone", func() error {
			if _, err := os.Stat(filepath.Join(g.opts.DataDir, fileBootstrap)); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%v", err)
			}
			return nil
		})
	}
}

func TestPromises(t *testing.T) {
	f := newFleet(t, 3)
	g := f.add()
	low, lower, high := fsm.GatewayID("00000000-0000-4000-8000-000000000001"), fsm.GatewayID("00000000-0000-4000-8000-000000000000"), fsm.GatewayID("ffffffff-ffff-4fff-bfff-ffffffffffff")
	ask := func(from fsm.GatewayID, expect int, candidates ...fsm.GatewayID) error {
		_, err := g.server.prepare(t.Context(), call[prepareRequest]{
			from: hello{Source: from}, body: prepareRequest{Initiator: from, Expect: expect, Candidates: candidates},
		})
		return err
	}
	if ask(high, 3, g.ID(), high) == nil {
		t.Error("promised to a higher id")
	}
	if ask(low, 5, low, g.ID()) == nil {
		t.Error("promised for another number")
	}
	if ask(low, 3, low) == nil {
		t.Error("promised without being asked for")
	}
	if err := ask(low, 3, low, g.ID()); err != nil {
		t.Errorf("no promise: %v", err)
	}
	if err := ask(low, 3, low, g.ID()); err != nil {
		t.Errorf("not again to the same: %v", err)
	}
	if ask(lower, 3, lower, g.ID()) == nil {
		t.Error("promised to two at once")
	}
	if g.promiseSelf(time.Now()) {
		t.Error("leads itself although it promised")
	}
	rec := func(initiator fsm.GatewayID) bootstrapRecord {
		return bootstrapRecord{Cluster: newUUID(), Initiator: initiator, Voters: []bootstrapMember{
			{lower, "127.0.0.1:1"}, {low, "127.0.0.1:2"}, {g.ID(), g.Addr()},
		}}
	}
	if _, err := g.server.commit(t.Context(), call[bootstrapRecord]{body: rec(lower)}); err == nil {
		t.Error("took the record of one it did not promise")
	}
	eventually(t, "the promise ran out", func() error { return ask(lower, 3, lower, g.ID()) })
	if _, err := g.server.commit(t.Context(), call[bootstrapRecord]{body: rec(low)}); err == nil {
		t.Error("took the record of a promise that a later one replaced")
	}
	last := rec(lower)
	for range 2 { // the second time it is answered the same
		if _, err := g.server.commit(t.Context(), call[bootstrapRecord]{body: last}); err != nil {
			t.Errorf("record refused: %v", err)
		}
	}
	if _, err := g.server.commit(t.Context(), call[bootstrapRecord]{body: rec(lower)}); err == nil {
		t.Error("a member took another cluster's record")
	}
	if ask(lower, 3, lower, g.ID()) == nil {
		t.Error("a member promised")
	}
}

func TestRemovedGateway(t *testing.T) {
	f := start(t, 3, 1)
	first := leader(t, f.all...)
	gone := f.except(first)[0]
	if err := first.raft.Load().RemoveServer(raft.ServerID(gone.ID()), 0, time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "removed", func() error {
		if s := gone.Status(); s.State != StateRemoved {
			return fmt.Errorf("%s", s.State)
		}
		return nil
	})
	eventually(t, "replaced as a voter", func() error {
		if v, n := voters(first); v != 3 || n != 0 {
			return fmt.Errorf("%d voters, %d non-voters", v, n)
		}
		return nil
	})
	mustPropose(t, first, block("d"))
	// It does not hear of its removal in the log, and its own configuration still has it: that must not make it a member again.
	tick := time.NewTicker(gone.timing.Tick)
	defer tick.Stop()
	for range 20 {
		if s := gone.Status(); s.State != StateRemoved || s.Ready || gone.Ready() {
			t.Fatalf("removed, and then %s, ready %v", s.State, s.Ready)
		}
		<-tick.C
	}
}

func TestTwoClustersStayTwo(t *testing.T) {
	x, y := start(t, 1, 0).all[0], start(t, 1, 0).all[0]
	if _, err := x.gossip.list.Join([]string{y.GossipAddr()}); err == nil {
		t.Error("gossip of two clusters merged")
	}
	// An empty gateway that sees both joins neither.
	f := newFleet(t, 1)
	f.adjust = func(o *Options) { o.Config.Join = []string{x.GossipAddr(), y.GossipAddr()} }
	e := f.add()
	eventually(t, "alarm", func() error {
		if s := e.Status(); !strings.Contains(s.Problem, "two clusters") {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if e.ClusterID() != "" {
		t.Error("joined one of two clusters")
	}
	for _, g := range []*gateway{x, y} {
		for _, m := range g.Status().Members {
			if m.ID == x.ID() && g == y || m.ID == y.ID() && g == x {
				t.Errorf("%s lists a gateway of the other cluster", g.opts.Name)
			}
		}
	}
}

func TestLockedData(t *testing.T) {
	f := start(t, 1, 0)
	o := f.all[0].opts
	o.Tables, o.Config.Address, o.Config.GossipAddress = fsm.New(), "127.0.0.1:0", "127.0.0.1:0"
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Open(t.Context()); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("Open of a directory in use: %v", err)
	}
	if err := p.Open(t.Context()); err == nil {
		t.Error("opened twice")
	}
}

func TestDamagedDirectory(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"gateway-id": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, fileGatewayID), []byte("gw-1\n"), 0o600)
		},
		"cluster-id":      func(dir string) error { return os.WriteFile(filepath.Join(dir, fileClusterID), []byte("x\n"), 0o600) },
		"cluster-id gone": func(dir string) error { return os.Remove(filepath.Join(dir, fileClusterID)) },
		"bootstrap":       func(dir string) error { return os.WriteFile(filepath.Join(dir, fileBootstrap), []byte("x"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			g := start(t, 1, 0).all[0]
			g.stop()
			if err := damage(g.opts.DataDir); err != nil {
				t.Fatal(err)
			}
			o := g.opts
			o.Tables = fsm.New()
			p, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Open(t.Context()); err == nil {
				p.Close()
				t.Error("opened")
			}
		})
	}
}

func TestTemporarySnapshotsAreRemoved(t *testing.T) {
	g := start(t, 1, 0).all[0]
	g.stop()
	tmp := filepath.Join(g.opts.DataDir, "raft", "snapshots", "2-18-1600000000000.tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	g.open()
	if _, err := os.Stat(tmp); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	for path, want := range map[string]os.FileMode{"": 0o700, fileGatewayID: 0o600, fileClusterID: 0o600, "raft": 0o700} {
		info, err := os.Stat(filepath.Join(g.opts.DataDir, path))
		if err != nil {
			t.Fatal(err)
		}
		// The directory itself is the test framework's.
		if path != "" && info.Mode().Perm() != want {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
	}
}

func TestMeta(t *testing.T) {
	m := meta{
		ID: fsm.GatewayID(newUUID()), Cluster: newUUID(), Expect: 5, Address: strings.Repeat("a", 253) + ":65535",
		Name: strings.Repeat("ü", 200), Zone: strings.Repeat("z", 255), Release: strings.Repeat("r", 255),
	}
	b, err := encodeMeta(m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeMeta(b)
	if err != nil || got.ID != m.ID || got.Cluster != m.Cluster || got.Address != m.Address || !strings.HasPrefix(m.Name, got.Name) || got.Name == "" {
		t.Errorf("%+v, %v", got, err)
	}
	for name, change := range map[string]func(*meta){
		"id":      func(m *meta) { m.ID = "x" },
		"cluster": func(m *meta) { m.Cluster = "x" },
		"address": func(m *meta) { m.Address = "x" },
	} {
		bad := m
		change(&bad)
		b, err := encodeMeta(bad)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeMeta(b); err == nil {
			t.Errorf("accepted a bad %s", name)
		}
	}
	if _, err := decodeMeta(make([]byte, 513)); err == nil {
		t.Error("accepted 513 bytes")
	}
}

func TestHeldIsBounded(t *testing.T) {
	var h held
	n := 0
	for h.enter(1 << 20) {
		n++
	}
	if n != maxHeldBytes>>20 {
		t.Errorf("%d MiB held", n)
	}
	h = held{}
	for n = 0; h.enter(1); n++ {
	}
	if n != maxHeld {
		t.Errorf("%d held", n)
	}
	h.leave(1)
	if !h.enter(1) {
		t.Error("no room after one left")
	}
}

// Raft's bootstrap writes the term before the list of voters; a crash in between must not leave a gateway without either.
func TestBootstrapTornInRaft(t *testing.T) {
	f := newFleet(t, 1)
	g := f.prepare()
	if err := os.MkdirAll(g.opts.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	id, err := loadGatewayID(g.opts.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	rec := bootstrapRecord{Cluster: newUUID(), Initiator: id, Voters: []bootstrapMember{{id, "127.0.0.1:1"}}}
	body, err := wireEncoding.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(filepath.Join(g.opts.DataDir, fileBootstrap), body); err != nil {
		t.Fatal(err)
	}
	s, err := openStores(g.opts.DataDir, newRaftLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.log.SetUint64([]byte("CurrentTerm"), 1), s.close()); err != nil {
		t.Fatal(err)
	}
	g.open()
	f.ready()
	mustPropose(t, g, block("d"))
}

// An unfinished list of voters makes no second first start: a member whose log is gone has acknowledged and voted before.
func TestBootstrapNotRepeatedWithoutData(t *testing.T) {
	f := start(t, 1, 0)
	g := f.all[0]
	rec := bootstrapRecord{Cluster: g.ClusterID(), Initiator: g.ID(), Voters: []bootstrapMember{{g.ID(), g.Addr()}}}
	body, err := wireEncoding.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	g.stop()
	if err := os.RemoveAll(filepath.Join(g.opts.DataDir, "raft")); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(filepath.Join(g.opts.DataDir, fileBootstrap), body); err != nil {
		t.Fatal(err)
	}
	o := g.opts
	o.Tables = fsm.New()
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Open(t.Context()); err == nil {
		p.Close()
		t.Error("a voter that lost its log was bootstrapped again")
	}
}

// Gateways that went for good make room for new ones.
func TestSeenForgetsTheDead(t *testing.T) {
	g := &gossip{changed: make(chan struct{}, 1), seen: map[fsm.GatewayID]member{}}
	see := func(alive bool) fsm.GatewayID {
		m := meta{ID: fsm.GatewayID(newUUID()), Address: "127.0.0.1:1"}
		b, err := encodeMeta(m)
		if err != nil {
			t.Fatal(err)
		}
		g.note(&memberlist.Node{Meta: b}, alive)
		return m.ID
	}
	first := see(true)
	for range maxSeen {
		see(false)
	}
	if _, ok := g.find(see(true)); !ok || len(g.seen) > maxSeen {
		t.Errorf("a new gateway is not seen beside %d others", len(g.seen))
	}
	if _, ok := g.find(first); !ok {
		t.Error("one that is alive was forgotten")
	}
}
