package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// childEnv makes the test binary play a program of its own for the process tests.
const childEnv = "TURNOUT_HARNESS_CHILD"

func TestMain(m *testing.M) {
	if role := os.Getenv(childEnv); role != "" {
		os.Exit(playChild(role))
	}
	goleak.VerifyTestMain(m)
}

// testContext bounds a test; every wait in it hangs on this context.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must(t, Eventually(ctx, what, func() (bool, string) { return cond(), "not yet" }))
}

func startCluster(t *testing.T, name string, nodes int) *Cluster {
	t.Helper()
	c, err := NewCluster(ClusterOptions{Name: name, Nodes: nodes})
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	must(t, c.Start())
	return c
}

func startBroker(t *testing.T) *Broker {
	t.Helper()
	b, err := NewBroker(BrokerOptions{Name: "solo-1@127.0.0.1"})
	must(t, err)
	t.Cleanup(func() { must(t, b.Close()) })
	must(t, b.Start())
	return b
}

func connect(t *testing.T, o DeviceOptions) *Device {
	t.Helper()
	d, err := ConnectDevice(testContext(t), o)
	must(t, err)
	t.Cleanup(d.Disconnect)
	return d
}

func TestEventuallyReturnsWhenTheConditionHolds(t *testing.T) {
	calls := 0
	must(t, Eventually(t.Context(), "third call", func() (bool, string) {
		calls++
		return calls == 3, ""
	}))
	if calls != 3 {
		t.Fatalf("calls = %d, want 3", calls)
	}
}

func TestEventuallyReportsTheLastExplanation(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	calls := 0
	err := Eventually(ctx, "a leader", func() (bool, string) {
		calls++
		return false, fmt.Sprintf("call %d saw none", calls)
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v does not wrap the deadline", err)
	}
	want := fmt.Sprintf("wait for a leader: context deadline exceeded (last seen: call %d saw none)", calls)
	if err.Error() != want {
		t.Fatalf("error %q, want %q", err, want)
	}
}

func TestFreePortsAreDistinct(t *testing.T) {
	ports, err := FreePorts(20)
	must(t, err)
	seen := make(map[int]bool)
	for _, p := range ports {
		if seen[p] || p < freePortLow || p >= freePortHigh {
			t.Errorf("port %d is repeated or out of range", p)
		}
		seen[p] = true
	}
}
