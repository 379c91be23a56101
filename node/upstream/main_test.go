package upstream

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"turnout/fsm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// waitFor fails the test unless ok becomes true in time.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("no %s in time", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// loopback returns a guard that lets tests reach their own servers.
func loopback(t *testing.T) *Guard {
	t.Helper()
	g, err := NewGuard(Config{Allow: []string{"127.0.0.0/8", "::1/128"}})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newTestMetrics() *Metrics { return NewMetrics(prometheus.NewRegistry()) }

func emqxSpec(urls ...string) fsm.ClusterSpec {
	s := fsm.DefaultSpec()
	s.ManagementURLs = urls
	return s
}
