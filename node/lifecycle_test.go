package node

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
)

func testConfig(t *testing.T) Config {
	t.Helper()
	c := DefaultConfig()
	c.Name = "gw-test"
	c.DataDir = filepath.Join(t.TempDir(), "data")
	c.Listeners[0].Address = "127.0.0.1:0"
	c.API.Address = "127.0.0.1:0"
	c.Peer.Address = "127.0.0.1:0"
	c.Peer.GossipAddress = "127.0.0.1:0"
	return c
}

func newNode(t *testing.T, c Config) *Node {
	t.Helper()
	r := prometheus.NewRegistry()
	n, err := New(c, Options{Logger: slog.New(slog.DiscardHandler), Registerer: r, Gatherer: r, Release: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func closeNode(t *testing.T, n *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for range 2 { // a second Close does nothing and says the same
		if err := n.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	}
}

// TestPortTaken takes each port in turn: Open names the part, and Close leaves nothing running.
func TestPortTaken(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken := ln.Addr().String()
	for part, set := range map[string]func(*Config){
		"listener": func(c *Config) { c.Listeners[0].Address = taken },
		"api":      func(c *Config) { c.API.Address = taken },
		"peer":     func(c *Config) { c.Peer.Address = taken },
		"gossip":   func(c *Config) { c.Peer.GossipAddress = taken },
	} {
		t.Run(part, func(t *testing.T) {
			c := testConfig(t)
			set(&c)
			n := newNode(t, c)
			err := n.Open(t.Context())
			if err == nil || !strings.Contains(err.Error(), part) || !strings.Contains(err.Error(), "in use") {
				t.Errorf("open: %v, want an error that names %s", err, part)
			}
			closeNode(t, n)
		})
	}
}

func TestOpenThenClose(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	c := testConfig(t)
	for range 2 { // the second time with the data of the first
		n := newNode(t, c)
		if err := n.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		waitReady(t, n)
		a := n.Addresses()
		if a.API == "" || a.Peer == "" || a.Gossip == "" || a.Listeners["mqtt"] == "" {
			t.Errorf("addresses: %+v", a)
		}
		closeNode(t, n)
	}
}

func waitReady(t *testing.T, n *Node) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for len(n.ready()) > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("not ready: %v", n.ready())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_ = n.tables.WaitIndex(ctx, n.tables.Index()+1) // ends the pause early when something happens
		cancel()
	}
}

// TestIdentityAlarm: a file that differs from the replicated template raises the alarm, and is not followed.
func TestIdentityAlarm(t *testing.T) {
	c := testConfig(t)
	for i, configured := range []string{"{client_id}", "{username}/{client_id}"} {
		c.Bootstrap.Identity = configured
		n := newNode(t, c)
		if err := n.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		waitReady(t, n)
		if got := n.tables.Topology().Settings.Identity; got != "{client_id}" {
			t.Errorf("the replicated template is %q", got)
		}
		deadline := time.Now().Add(30 * time.Second)
		for testutil.ToFloat64(n.identity.gauge) != float64(i) {
			if time.Now().After(deadline) {
				t.Fatalf("start %d: the alarm is %v", i, testutil.ToFloat64(n.identity.gauge))
			}
			runtime.Gosched()
		}
		closeNode(t, n)
	}
}

// TestCloseWithoutOpen is what a process does whose start was interrupted.
func TestCloseWithoutOpen(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	closeNode(t, newNode(t, testConfig(t)))
}
