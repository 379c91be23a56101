package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"turnout/fsm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limit is how long a condition may take before a test gives up.
const limit = 30 * time.Second

func testTiming() Timing {
	return Timing{
		Heartbeat: 200 * time.Millisecond, Election: 200 * time.Millisecond, Lease: 100 * time.Millisecond, Commit: 5 * time.Millisecond,
		Hold: 10 * time.Second, Handshake: time.Second, View: 300 * time.Millisecond, Promise: 2 * time.Second, CaughtUp: 200 * time.Millisecond,
		Tick: 50 * time.Millisecond, Probe: 200 * time.Millisecond, Rejoin: 500 * time.Millisecond, Leave: 500 * time.Millisecond,
	}
}

// gateway is one gateway under test that can be stopped and started again on its directory.
type gateway struct {
	*Peer
	t        *testing.T
	opts     Options
	tables   *fsm.Tables
	registry *prometheus.Registry
	tune     func(*raft.Config)
}

// fleet makes gateways that know each other's seeds.
type fleet struct {
	t      *testing.T
	expect int
	adjust func(*Options)
	tune   func(*raft.Config)
	all    []*gateway
}

func newFleet(t *testing.T, expect int) *fleet {
	f := &fleet{t: t, expect: expect}
	return f
}

// add opens one more gateway; the gossip of every one before is its seed.
func (f *fleet) add() *gateway {
	f.t.Helper()
	g := f.prepare()
	g.open()
	return g
}

func (f *fleet) prepare() *gateway {
	o := Options{
		Config:  Config{Address: "127.0.0.1:0", GossipAddress: "127.0.0.1:0", Expect: f.expect},
		DataDir: f.t.TempDir(),
		Name:    fmt.Sprintf("gw-%d", len(f.all)+1), Zone: "a", Release: "test", APIAddress: "127.0.0.1:8080",
		Seed:   fsm.Settings{Identity: "{client_id}", Unknown: fsm.Policy{Kind: fsm.PolicyRefuse}},
		Timing: testTiming(),
	}
	for _, g := range f.all {
		if g.Peer != nil {
			o.Config.Join = append(o.Config.Join, g.GossipAddr())
		}
	}
	if f.adjust != nil {
		f.adjust(&o)
	}
	g := &gateway{t: f.t, opts: o, tune: f.tune}
	f.all = append(f.all, g)
	f.t.Cleanup(func() { g.stop() })
	return g
}

// open starts the gateway, on the addresses that it had before if it had any.
func (g *gateway) open() {
	g.t.Helper()
	g.tables = fsm.New()
	g.registry = prometheus.NewRegistry()
	o := g.opts
	o.Tables, o.Registerer = g.tables, g.registry
	if os.Getenv("PEER_LOG") != "" {
		o.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})).With("name", o.Name)
	}
	p, err := New(o)
	if err != nil {
		g.t.Fatalf("New: %v", err)
	}
	p.tune = g.tune
	if err := p.Open(context.Background()); err != nil {
		g.t.Fatalf("Open: %v", err)
	}
	g.Peer = p
	g.opts.Config.Address, g.opts.Config.GossipAddress = p.Addr(), p.GossipAddr()
}

func (g *gateway) stop() {
	g.t.Helper()
	if g.Peer == nil {
		return
	}
	if err := g.Peer.Close(); err != nil {
		g.t.Errorf("Close: %v", err)
	}
}

// start opens as many gateways as are expected, plus more, at once, and waits until all are ready.
func start(t *testing.T, expect, more int) *fleet {
	t.Helper()
	f := newFleet(t, expect)
	for range expect + more {
		f.add()
	}
	f.ready()
	return f
}

func (f *fleet) ready() {
	f.t.Helper()
	for _, g := range f.all {
		eventually(f.t, "gateway ready", func() error {
			if !g.Ready() {
				return fmt.Errorf("%s: %+v", g.opts.Name, g.Status())
			}
			return nil
		})
	}
}

// leader waits until one of the gateways leads.
func leader(t *testing.T, gs ...*gateway) *gateway {
	t.Helper()
	var found *gateway
	eventually(t, "a leader", func() error {
		for _, g := range gs {
			if g.IsLeader() {
				found = g
				return nil
			}
		}
		return errors.New("none")
	})
	return found
}

func (f *fleet) except(out *gateway) []*gateway {
	return slices.DeleteFunc(slices.Clone(f.all), func(g *gateway) bool { return g == out })
}

// eventually waits until check returns nil.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// block is a write that leaves one device record.
func block(key string) fsm.Command {
	blocked := true
	return &fsm.PutDevices{Changes: []fsm.DeviceChange{{Key: fsm.DeviceKey(key), Blocked: &blocked}}}
}

func mustPropose(t *testing.T, g *gateway, cmd fsm.Command) fsm.Result {
	t.Helper()
	res, err := g.Propose(within(t, limit), cmd)
	if err != nil {
		t.Fatalf("Propose on %s: %v", g.opts.Name, err)
	}
	return res
}

func voters(g *gateway) (voters, others int) {
	for _, s := range g.Status().Servers {
		if s.Voter {
			voters++
		} else {
			others++
		}
	}
	return voters, others
}

// sameTables waits until the tables of all gateways are at one index with one checksum.
func sameTables(t *testing.T, gs ...*gateway) fsm.Checksum {
	t.Helper()
	var sum fsm.Checksum
	eventually(t, "same tables", func() error {
		sum = gs[0].tables.Status().Checksum
		for _, g := range gs[1:] {
			if s := g.tables.Status().Checksum; s != sum {
				return fmt.Errorf("%v and %v", s, sum)
			}
		}
		return nil
	})
	return sum
}
