package upstream

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"turnout/fsm"
)

// fakeLog is the least that a leader does: it numbers commands and applies them.
type fakeLog struct {
	tables *fsm.Tables

	mu      sync.Mutex // guards everything below, and the order of Apply
	index   uint64
	updates []*fsm.UpdateNodes
	fail    func(*fsm.UpdateNodes) error // answers instead of applying, when it returns an error
}

func newFakeLog() *fakeLog { return &fakeLog{tables: fsm.New()} }

func (l *fakeLog) Propose(_ context.Context, cmd fsm.Command) (fsm.Result, error) {
	entry, err := fsm.Encode(cmd)
	if err != nil {
		return fsm.Result{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if u, ok := cmd.(*fsm.UpdateNodes); ok {
		l.updates = append(l.updates, u)
		if l.fail != nil {
			if err := l.fail(u); err != nil {
				return fsm.Result{}, err
			}
		}
	}
	l.index++
	res := l.tables.Apply(&raft.Log{Index: l.index, Type: raft.LogCommand, Data: entry}).(fsm.Result)
	return res, res.Err()
}

func (l *fakeLog) failWith(f func(*fsm.UpdateNodes) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = f
}

func (l *fakeLog) proposals() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.updates)
}

func (l *fakeLog) put(t *testing.T, name fsm.ClusterName, spec fsm.ClusterSpec) {
	t.Helper()
	if _, err := l.Propose(t.Context(), &fsm.PutCluster{Name: name, Spec: spec}); err != nil {
		t.Fatal(err)
	}
}

// nodes writes the stored members as words.
func (l *fakeLog) nodes(name fsm.ClusterName) string {
	c := l.tables.Topology().Cluster(name)
	if c == nil {
		return "no cluster"
	}
	var out []string
	for _, n := range c.Nodes {
		out = append(out, string(n.Name)+"/"+n.State.String())
	}
	return strings.Join(out, " ")
}

// api is a management API whose answer can be changed.
type api struct {
	url   string
	polls atomic.Int64
	h     atomic.Value // http.HandlerFunc
}

func newAPI(t *testing.T, words string) *api {
	a := &api{}
	a.list(words)
	a.url = fake(t, func(w http.ResponseWriter, r *http.Request) {
		a.polls.Add(1)
		a.h.Load().(http.HandlerFunc)(w, r)
	})
	return a
}

// list makes the API answer with nodes, from words "name/status".
func (a *api) list(words string) {
	var out []string
	for w := range strings.FieldsSeq(words) {
		name, status, _ := strings.Cut(w, "/")
		out = append(out, fmt.Sprintf(`{"node":%q,"node_status":%q}`, name, status))
	}
	a.h.Store(reply(200, "["+strings.Join(out, ",")+"]"))
}

func (a *api) answer(status int, body string) { a.h.Store(reply(status, body)) }

// more waits for n further polls that began after the call.
func (a *api) more(t *testing.T, n int64) {
	t.Helper()
	want := a.polls.Load() + n + 1
	waitFor(t, "polls", func() bool { return a.polls.Load() >= want })
}

// lead runs a manager whose seconds are 10 ms until the test ends or stop is called.
func lead(t *testing.T, l *fakeLog, m *Metrics) (manager *Manager, stop func()) {
	return leadLogging(t, l, m, quiet())
}

func leadLogging(t *testing.T, l *fakeLog, metrics *Metrics, log *slog.Logger) (*Manager, func()) {
	t.Helper()
	m := NewManager(Options{Tables: l.tables, Proposer: l, Guard: loopback(t), Logger: log, Metrics: metrics, Now: time.Now})
	m.second = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return m, stop
}

func pollSpec(urls ...string) fsm.ClusterSpec {
	s := emqxSpec(urls...)
	s.PollSeconds, s.RemoveAfter = 1, 3
	return s
}

// syncBuffer is a log that two goroutines may use.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// gauge returns the first value of a metric with a label, -1 when there is none.
func gauge(t *testing.T, reg *prometheus.Registry, name, label, value string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, p := range m.GetLabel() {
				if f.GetName() == name && p.GetName() == label && p.GetValue() == value {
					return m.GetGauge().GetValue() + m.GetCounter().GetValue()
				}
			}
		}
	}
	return -1
}

// has reports whether any metric carries the label.
func has(t *testing.T, reg *prometheus.Registry, label, value string) bool {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if gauge(t, reg, f.GetName(), label, value) != -1 {
			return true
		}
	}
	return false
}
