package peer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"turnout/fsm"
)

func TestBootstrapAlone(t *testing.T) {
	f := start(t, 1, 0)
	g := f.all[0]
	mustPropose(t, g, block("d"))
	topo := g.tables.Topology()
	if topo.Settings.ClusterID != g.ClusterID() || len(topo.Settings.Secret) != 32 || topo.Settings.Identity != "{client_id}" {
		t.Errorf("settings %+v, cluster %s", topo.Settings, g.ClusterID())
	}
	row, ok := topo.Gateway(g.ID())
	if want := (fsm.Gateway{ID: g.ID(), Name: "gw-1", Zone: "a", PeerAddress: g.Addr(), APIAddress: "127.0.0.1:8080", Release: "test", Version: row.Version}); !ok || row != want {
		t.Errorf("roster row %+v, want %+v", row, want)
	}
	if lagging, err := g.WaitAll(within(t, limit), g.tables.Index()); err != nil || len(lagging) > 0 {
		t.Errorf("WaitAll: %v, %v", lagging, err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestThreeAndTwoMore(t *testing.T) {
	f := start(t, 3, 0)
	if v, n := voters(f.all[0]); v != 3 || n != 0 {
		t.Fatalf("%d voters, %d non-voters", v, n)
	}
	for _, g := range f.all {
		if g.ClusterID() != f.all[0].ClusterID() {
			t.Fatal("two clusters")
		}
	}
	f.add()
	f.add()
	f.ready()
	eventually(t, "two non-voters", func() error {
		if v, n := voters(f.all[0]); v != 3 || n != 2 {
			return fmt.Errorf("%d voters, %d non-voters", v, n)
		}
		return nil
	})
	// Read your writes on every gateway, whoever leads.
	for i, g := range f.all {
		key := fmt.Sprintf("device-%d", i)
		res := mustPropose(t, g, block(key))
		if d, ok := g.tables.Device(fsm.DeviceKey(key)); !ok || d.Version != res.Index {
			t.Errorf("%s does not show its own write", g.opts.Name)
		}
		if lagging, err := g.WaitAll(within(t, limit), res.Index); err != nil || len(lagging) > 0 {
			t.Errorf("WaitAll on %s: %v, %v", g.opts.Name, lagging, err)
		}
		for _, other := range f.all {
			if _, ok := other.tables.Device(fsm.DeviceKey(key)); !ok {
				t.Errorf("after WaitAll %s does not have the write", other.opts.Name)
			}
		}
	}
	follower := f.except(leader(t, f.all...))[0]
	// A business refusal crosses the wire whole.
	stale := uint64(12345)
	_, err := follower.Propose(within(t, limit), &fsm.RemoveDevices{Keys: []fsm.DeviceKey{"device-0"}, IfVersion: &stale})
	var refused *fsm.Error
	if !errors.As(err, &refused) || refused.Code != fsm.CodeConflict {
		t.Errorf("refusal: %v", err)
	}
	if n := value(t, follower, "turnout_raft_forwarded_total", nil); n == 0 {
		t.Error("nothing counted as forwarded")
	}
	// A stopped gateway lags and does not hold the others up for long.
	gone := f.all[4]
	if gone.IsLeader() {
		gone = f.all[3]
	}
	gone.stop()
	res := mustPropose(t, f.all[0], block("later"))
	lagging, err := f.all[0].WaitAll(within(t, limit), res.Index)
	if err != nil || len(lagging) != 1 || lagging[0] != gone.ID() {
		t.Errorf("WaitAll: %v, %v; want %s", lagging, err, gone.ID())
	}
}

func TestLeaderStopsUnderWrites(t *testing.T) {
	f := start(t, 3, 0)
	first := leader(t, f.all...)
	rest := f.except(first)
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	ctx, cancel := context.WithCancel(context.Background())
	var writers sync.WaitGroup
	for w, g := range rest {
		for k := range 4 {
			writers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					key := fmt.Sprintf("w%d-%d-%d", w, k, i)
					if _, err := g.Propose(ctx, block(key)); err == nil {
						mu.Lock()
						acknowledged[key] = true
						mu.Unlock()
					}
				}
			})
		}
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acknowledged)
	}
	eventually(t, "writes", func() error {
		if count() < 100 {
			return errors.New("too few")
		}
		return nil
	})
	first.stop()
	second := leader(t, rest...)
	before := count()
	eventually(t, "writes after the failover", func() error {
		if count() < before+100 {
			return errors.New("too few")
		}
		return nil
	})
	cancel()
	writers.Wait()
	sameTables(t, rest...)
	for key := range acknowledged {
		if _, ok := second.tables.Device(fsm.DeviceKey(key)); !ok {
			t.Fatalf("acknowledged write %s is lost", key)
		}
	}
	// The one that was away catches up.
	first.open()
	eventually(t, "restarted gateway ready", func() error {
		if !first.Ready() {
			return fmt.Errorf("%+v", first.Status())
		}
		return nil
	})
	sameTables(t, f.all...)
}

func TestRestartOfAll(t *testing.T) {
	f := start(t, 3, 1)
	for i := range 50 {
		mustPropose(t, f.all[i%4], block(fmt.Sprint("d", i)))
	}
	before := sameTables(t, f.all...)
	ids := map[fsm.GatewayID]bool{}
	for _, g := range f.all {
		ids[g.ID()] = true
		g.stop()
	}
	for _, g := range f.all {
		g.open()
	}
	f.ready()
	after := sameTables(t, f.all...)
	if after != before {
		t.Errorf("checksum %v at %d, was %v at %d", after, after.Index, before, before.Index)
	}
	for _, g := range f.all {
		if !ids[g.ID()] {
			t.Errorf("%s has a new id", g.opts.Name)
		}
	}
	mustPropose(t, f.all[1], block("more"))
}

func TestNoQuorum(t *testing.T) {
	f := newFleet(t, 3)
	f.adjust = func(o *Options) { o.Timing.Hold = 300 * time.Millisecond }
	for range 3 {
		f.add()
	}
	f.ready()
	first := leader(t, f.all...)
	rest := f.except(first)
	rest[0].stop()
	rest[1].stop()
	eventually(t, "leader steps down", func() error {
		if first.IsLeader() {
			return errors.New("still leads")
		}
		return nil
	})
	_, err := first.Propose(within(t, limit), block("d"))
	if !errors.Is(err, fsm.ErrNoLeader) {
		t.Fatalf("Propose: %v", err)
	}
	if !first.Ready() {
		t.Error("a gateway that lost the quorum goes on routing and stays ready")
	}
	if n := value(t, first, "turnout_raft_proposals_total", map[string]string{"result": "no_leader"}); n != 1 {
		t.Errorf("%v proposals counted without leader", n)
	}
	// A start without quorum does not block, and shows what is on disk.
	first.stop()
	first.open()
	if first.ClusterID() == "" {
		t.Error("cluster forgotten")
	}
}

func TestPromotionOneToThree(t *testing.T) {
	f := start(t, 1, 0)
	f.add()
	f.ready()
	if v, n := voters(f.all[0]); v != 1 || n != 1 {
		t.Fatalf("%d voters, %d non-voters", v, n)
	}
	f.add()
	f.add()
	f.ready()
	eventually(t, "three voters", func() error {
		if v, n := voters(f.all[0]); v != 3 || n != 1 {
			return fmt.Errorf("%d voters, %d non-voters", v, n)
		}
		return nil
	})
	// They carry the cluster without the first one.
	var rest []*gateway
	for _, s := range f.all[0].Status().Servers {
		for _, g := range f.all[1:] {
			if g.ID() == s.ID && s.Voter {
				rest = append(rest, g)
			}
		}
	}
	f.all[0].stop()
	leader(t, rest...)
	mustPropose(t, rest[0], block("d"))
}

func TestDifferentExpectations(t *testing.T) {
	f := newFleet(t, 3)
	for range 3 {
		f.add()
		f.expect = 5
	}
	for _, g := range f.all {
		eventually(t, "alarm", func() error {
			if s := g.Status(); s.State != StateEmpty || s.Problem == "" || len(s.Members) != 3 {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
	}
	f.expect = 3
	f.add()
	f.add() // by now three agree on 3, but not all in view do
	eventually(t, "all in view", func() error {
		for _, g := range f.all {
			if n := len(g.Status().Members); n != 5 {
				return fmt.Errorf("%d in view", n)
			}
		}
		return nil
	})
	// Longer than the view must be calm, for a bootstrap that must not come.
	never(t, 5*testTiming().View, func() bool {
		for _, g := range f.all {
			if g.ClusterID() != "" {
				return true
			}
		}
		return false
	})
}

// never fails if the condition comes true within d.
func never(t *testing.T, d time.Duration, bad func() bool) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if bad() {
			t.Fatal("happened")
		}
	}
}

func TestSnapshotToLateJoiner(t *testing.T) {
	f := newFleet(t, 1)
	f.tune = func(c *raft.Config) { c.TrailingLogs = 1 }
	g := f.add()
	f.ready()
	for i := range 200 {
		mustPropose(t, g, block(fmt.Sprint("d", i)))
	}
	if err := g.raft.Load().Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	late := f.add()
	f.ready()
	sameTables(t, f.all...)
	if first, err := late.stores.log.FirstIndex(); err != nil || first < 100 {
		t.Errorf("the log begins at %d: no snapshot was sent (%v)", first, err)
	}
	// It restores from it as well.
	late.stop()
	mustPropose(t, g, block("meanwhile"))
	late.open()
	f.ready()
	sameTables(t, f.all...)
}

func TestMovedGateway(t *testing.T) {
	f := start(t, 3, 0)
	first := leader(t, f.all...)
	eventually(t, "settled leader", func() error {
		if first.terms.age() <= settled*first.timing.Election {
			return errors.New("too young")
		}
		return nil
	})
	moved := f.except(first)[0]
	moved.stop()
	moved.opts.Config.Address, moved.opts.Config.GossipAddress = "127.0.0.1:0", "127.0.0.1:0"
	for _, g := range f.except(moved) {
		moved.opts.Config.Join = append(moved.opts.Config.Join, g.GossipAddr())
	}
	moved.open()
	f.ready()
	for _, g := range f.all {
		eventually(t, "new address everywhere", func() error {
			row, _ := g.tables.Topology().Gateway(moved.ID())
			if row.PeerAddress != moved.Addr() {
				return fmt.Errorf("roster has %s", row.PeerAddress)
			}
			for _, s := range g.Status().Servers {
				if s.ID == moved.ID() && (s.Address != moved.Addr() || !s.Voter) {
					return fmt.Errorf("configuration has %+v", s)
				}
			}
			return nil
		})
	}
}

func TestWipedVoterAtItsAddress(t *testing.T) {
	f := start(t, 3, 0)
	wiped := f.except(leader(t, f.all...))[0]
	old := wiped.ID()
	wiped.stop()
	wiped.opts.DataDir = t.TempDir()
	for _, g := range f.except(wiped) {
		wiped.opts.Config.Join = append(wiped.opts.Config.Join, g.GossipAddr())
	}
	wiped.open()
	if wiped.ID() == old {
		t.Fatal("the id survived")
	}
	f.ready()
	eventually(t, "back as a voter, under its new id", func() error {
		for _, s := range f.all[0].Status().Servers {
			if s.ID == old {
				return errors.New("the old id is still there")
			}
		}
		if v, n := voters(f.all[0]); v != 3 || n != 0 {
			return fmt.Errorf("%d voters, %d non-voters", v, n)
		}
		if _, ok := f.all[0].tables.Topology().Gateway(old); ok {
			return errors.New("the old id is still in the roster")
		}
		return nil
	})
}

func TestDataLostButIDKept(t *testing.T) {
	f := start(t, 3, 0)
	wiped := f.except(leader(t, f.all...))[0]
	wiped.stop()
	keep := wiped.opts.DataDir
	wiped.opts.DataDir = t.TempDir()
	id, err := readBounded(keep+"/"+fileGatewayID, 100)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(wiped.opts.DataDir+"/"+fileGatewayID, id); err != nil {
		t.Fatal(err)
	}
	for _, g := range f.except(wiped) {
		wiped.opts.Config.Join = append(wiped.opts.Config.Join, g.GossipAddr())
	}
	wiped.open()
	eventually(t, "refusal", func() error {
		if s := wiped.Status(); s.State != StateEmpty || s.Problem == "" {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	never(t, 500*time.Millisecond, func() bool { return wiped.raft.Load() != nil })
}

func TestRunWhileLeader(t *testing.T) {
	f := start(t, 3, 0)
	type event struct {
		g     *gateway
		start bool
	}
	events := make(chan event, 100)
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	for _, g := range f.all {
		done.Go(func() {
			g.RunWhileLeader(ctx, func(ctx context.Context) {
				if g.tables.Topology().Settings.ClusterID == "" {
					t.Error("duty began before the settings were there")
				}
				events <- event{g, true}
				<-ctx.Done()
				events <- event{g, false}
			})
		})
	}
	first := <-events
	first.g.stop()
	if e := <-events; e != (event{first.g, false}) {
		t.Errorf("duty of %s went on", first.g.opts.Name)
	}
	if e := <-events; !e.start || e.g == first.g {
		t.Error("no duty at the successor")
	}
	cancel()
	done.Wait()
}
