package node

import (
	"context"
	"strings"
	"testing"
)

// A gateway is ready from when it serves, with a row in the roster that a write with wait=all looks at, until it begins to stop.
func TestReady(t *testing.T) {
	n := newNode(t, testConfig(t))
	says := func(want string) bool { return strings.Contains(strings.Join(n.ready(), "; "), want) }
	if !says("listeners") {
		t.Errorf("before Open: %q", n.ready())
	}
	if err := n.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitReady(t, n)
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
