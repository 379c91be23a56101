package node

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"turnout/proxy"
)

// A gateway is ready from when it serves, with a row in the roster that a write with wait=all looks at, until it begins to stop.
func TestReady(t *testing.T) {
	c := DefaultConfig()
	c.Name, c.DataDir = "gw-1", t.TempDir()
	c.Listeners = []proxy.ListenerConfig{{Name: "mqtt", Address: "127.0.0.1:0"}}
	c.API.Address, c.Peer.Address, c.Peer.GossipAddress = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	registry := prometheus.NewRegistry()
	n, err := New(c, Options{Registerer: registry, Gatherer: registry, Release: "test"})
	if err != nil {
		t.Fatal(err)
	}
	says := func(want string) bool { return strings.Contains(strings.Join(n.ready(), "; "), want) }
	if !says("listeners") {
		t.Errorf("before Open: %q", n.ready())
	}
	if err := n.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); len(n.ready()) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("not ready: %q", n.ready())
		}
	}
	if _, ok := n.tables.Topology().Gateway(n.peer.ID()); !ok {
		t.Error("ready without a row in the roster")
	}
	if err := n.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !says("stopping") {
		t.Errorf("after Close: %q", n.ready())
	}
}
