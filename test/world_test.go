package test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"turnout/api/client"
	"turnout/node"
	"turnout/test/harness"
	"turnout/test/harness/fleet"
)

// world is what a journey runs in: gateways, broker clusters with their management APIs, and an operator.
type world struct {
	t     *testing.T
	ctx   context.Context
	fleet *fleet.Fleet
	key   string // file with the management API's key
	sites map[string]*site
	rand  *rand.Rand
}

type site struct {
	name    string
	cluster *harness.Cluster
	api     *harness.ManagementAPI
}

const journeyLimit = 3 * time.Minute

// newWorld starts three gateways, or as many as asked for, and waits until they are ready.
func newWorld(t *testing.T, gateways int, configure func(int, *node.Config)) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), journeyLimit)
	t.Cleanup(cancel)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := &world{t: t, ctx: ctx, sites: map[string]*site{}, rand: rand.New(rand.NewPCG(seed, 0)), key: filepath.Join(t.TempDir(), "key")}
	if err := os.WriteFile(w.key, []byte("journey:key-for-tests"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := fleet.New(fleet.Options{Gateways: gateways, Dir: t.TempDir(), Configure: configure})
	if err != nil {
		t.Fatal(err)
	}
	w.fleet = f
	t.Cleanup(func() {
		closing, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := f.Close(closing); err != nil {
			t.Errorf("close fleet: %v", err)
		}
	})
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return w
}

// addSite starts a broker cluster and adds it by URL.
func (w *world) addSite(name string, nodes int, channel *client.ChannelSpec) *site {
	w.t.Helper()
	c, err := harness.NewCluster(harness.ClusterOptions{Name: name, Nodes: nodes})
	if err != nil {
		w.t.Fatal(err)
	}
	a, err := harness.NewManagementAPI(harness.ManagementAPIOptions{Cluster: c, Key: "journey", Secret: "key-for-tests"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = errors.Join(a.Close(), c.Close()) })
	if err := errors.Join(c.Start(), a.Start()); err != nil {
		w.t.Fatal(err)
	}
	s := &site{name: name, cluster: c, api: a}
	w.sites[name] = s
	w.describe(s, channel)
	w.waitNodes(s, nodes)
	return s
}

// describe writes the spec of a cluster as its brokers are now, with the shortest periods that the product allows.
func (w *world) describe(s *site, channel *client.ChannelSpec) {
	w.t.Helper()
	poll, after := uint32(1), uint32(2)
	_, err := w.operator().PutCluster(w.ctx, s.name, client.ClusterSpec{
		Driver: "emqx", ManagementURLs: []string{s.api.URL()}, Credential: "file:" + w.key, PollSeconds: &poll, RemoveAfter: &after,
		Addresses: s.cluster.Overrides(), Channel: channel,
	}, client.WriteOptions{WaitAll: true})
	if err != nil {
		w.t.Fatal(err)
	}
}

// waitNodes waits until every gateway lists n nodes of the cluster, each with the address that the cluster gives.
func (w *world) waitNodes(s *site, n int) {
	w.t.Helper()
	addresses := s.cluster.Overrides()
	for _, g := range w.fleet.Gateways() {
		w.eventually("nodes of "+s.name+" on "+g.Name, func() (bool, string) {
			nodes, err := g.API().Nodes(w.ctx, s.name)
			if err != nil {
				return false, err.Error()
			}
			for _, got := range nodes {
				if addresses[got.Name] != got.Address {
					return false, got.Name + " is at " + got.Address
				}
			}
			return len(nodes) == n, "other number of nodes"
		})
	}
}

func (w *world) eventually(what string, cond func() (bool, string)) {
	w.t.Helper()
	if err := harness.Eventually(w.ctx, what, cond); err != nil {
		w.t.Fatal(err)
	}
}

// operator is the admin API of any running gateway.
func (w *world) operator() *client.Client { return w.anyGateway().API() }

func (w *world) anyGateway() *fleet.Gateway {
	all := w.fleet.Gateways()
	for {
		if g := all[w.rand.IntN(len(all))]; g.Running() {
			return g
		}
	}
}

func (w *world) assign(key, cluster string) {
	w.t.Helper()
	r, err := w.operator().PutDevice(w.ctx, key, client.DevicePut{Cluster: cluster}, client.WriteOptions{WaitAll: true})
	if err != nil {
		w.t.Fatal(err)
	}
	if len(r.Lagging) > 0 {
		w.t.Fatalf("gateways lag behind: %v", r.Lagging)
	}
}

// connect connects once, through any gateway, and leaves the connection open until the test ends or Disconnect.
func (w *world) connect(o harness.DeviceOptions) (*harness.Device, error) {
	if o.Address == "" {
		o.Address = w.anyGateway().MQTT()
	}
	d, err := harness.ConnectDevice(w.ctx, o)
	if err == nil {
		w.t.Cleanup(d.Kill)
	}
	return d, err
}

// visit connects a device and disconnects it again.
func (w *world) visit(id string) {
	w.t.Helper()
	d, err := w.connect(harness.DeviceOptions{ClientID: id, Version: []byte{4, 5}[w.rand.IntN(2)], CleanStart: true})
	if err != nil {
		w.t.Fatalf("connect %s: %v", id, err)
	}
	d.Disconnect()
}

// home is the node on which the device has been seen, when it is one alone.
func (s *site) home(t *testing.T, id string) string {
	t.Helper()
	seen := s.cluster.SeenOn(id)
	if len(seen) != 1 {
		t.Fatalf("%s should have been on one node of %s, its brokers recorded %v", id, s.name, seen)
	}
	for name := range seen {
		return name
	}
	return ""
}

// counts is what the brokers recorded for a device, for comparison before and after.
func (s *site) counts(id string) map[string]int { return s.cluster.SeenOn(id) }
