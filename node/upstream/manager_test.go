package upstream

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"turnout/fsm"
)

func TestDiscovery(t *testing.T) {
	l, a := newFakeLog(), newAPI(t, "e@10.0.0.1/running e@10.0.0.2/Running e@10.0.0.3/stopped")
	m, _ := lead(t, l, newTestMetrics())
	l.put(t, "west", pollSpec(a.url))
	waitFor(t, "first members", func() bool { return l.nodes("west") == "e@10.0.0.1/up e@10.0.0.2/up e@10.0.0.3/down" })
	n, _ := l.tables.Topology().Cluster("west").NodeByName("e@10.0.0.2")
	if n.Address != "10.0.0.2:1883" {
		t.Errorf("got address %s", n.Address)
	}
	a.more(t, 3)
	if got := l.proposals(); got != 1 {
		t.Errorf("%d proposals, want 1: only changes are written", got)
	}
	a.list("e@10.0.0.1/running e@10.0.0.2/stopped e@10.0.0.3/running e@10.0.0.4/running")
	waitFor(t, "changes", func() bool {
		return l.nodes("west") == "e@10.0.0.1/up e@10.0.0.2/down e@10.0.0.3/up e@10.0.0.4/up"
	})
	if s := m.Status()["west"]; s.LastOK.IsZero() || s.LastError != "" || s.Members < 3 || len(s.Alarms) != 0 {
		t.Errorf("got status %+v", s)
	}
}

// sink takes a snapshot into memory.
type sink struct{ bytes.Buffer }

func (*sink) ID() string    { return "test" }
func (*sink) Cancel() error { return nil }
func (*sink) Close() error  { return nil }

// Tables restored from elsewhere may give another cluster the same id and version: it is polled by its own spec all the same.
func TestRestoredClusterIsPolledAnew(t *testing.T) {
	here, a := newFakeLog(), newAPI(t, "e@10.0.0.1/running")
	there, b := newFakeLog(), newAPI(t, "e@10.0.0.2/running")
	there.put(t, "west", pollSpec(b.url))
	lead(t, here, newTestMetrics())
	here.put(t, "west", pollSpec(a.url))
	waitFor(t, "members", func() bool { return here.nodes("west") == "e@10.0.0.1/up" })
	snap, err := there.tables.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var s sink
	if err := snap.Persist(&s); err != nil {
		t.Fatal(err)
	}
	if err := here.tables.Restore(io.NopCloser(&s)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "members of the other cluster", func() bool { return here.nodes("west") == "e@10.0.0.2/up" })
}

// Whatever goes wrong with the answer, the stored members stay, for longer than it takes to remove one.
func TestFailedPollsChangeNothing(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		want   Class
		alarm  AlarmKind
	}{
		{"empty list", 200, "[]", ClassBadAnswer, ""},
		{"HTML", 200, "<html>", ClassBadAnswer, ""},
		{"no such path", 404, "<html>", ClassBadAnswer, ""},
		{"starting", 503, "", ClassServerError, ""},
		{"wrong key", 401, `{"code":"BAD_API_KEY_OR_SECRET"}`, ClassUnauthorized, AlarmUnauthorized},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, a := newFakeLog(), newAPI(t, "e@10.0.0.1/running e@10.0.0.2/running")
			m, _ := lead(t, l, newTestMetrics())
			l.put(t, "west", pollSpec(a.url))
			waitFor(t, "members", func() bool { return l.nodes("west") != "" })
			before, ok := l.nodes("west"), m.Status()["west"].LastOK
			a.answer(tt.status, tt.body)
			a.more(t, 4)
			waitFor(t, "class", func() bool { return m.Status()["west"].LastError == tt.want })
			s := m.Status()["west"]
			if l.nodes("west") != before || s.LastOK.Before(ok) || s.LastOK.IsZero() {
				t.Errorf("got %s, %+v", l.nodes("west"), s)
			}
			if (tt.alarm != "") != (len(s.Alarms) == 1) || tt.alarm != "" && s.Alarms[0].Kind != tt.alarm {
				t.Errorf("got alarms %+v", s.Alarms)
			}
			trouble := func() string { return l.tables.Topology().Cluster("west").Trouble }
			waitFor(t, "the trouble in the tables", func() bool { return trouble() == "polls fail: "+string(tt.want) })
			// A broker that is mended is believed again, and its alarm falls.
			a.list("e@10.0.0.1/running e@10.0.0.2/stopped")
			waitFor(t, "recovery", func() bool {
				return l.nodes("west") == "e@10.0.0.1/up e@10.0.0.2/down" && m.Status()["west"].LastError == "" && len(m.Status()["west"].Alarms) == 0
			})
			waitFor(t, "the end of the trouble", func() bool { return trouble() == "" })
		})
	}
}

// A node that is no longer listed stays as long as it answers MQTT, and goes when it is silent too.
func TestRemoval(t *testing.T) {
	l := newFakeLog()
	a := newAPI(t, "e@10.0.0.1/running e@left/running")
	answering, silent := node(t, "\x20\x02\x00\x05", nil), closing(t, "")
	spec := pollSpec(a.url)
	spec.Addresses = map[fsm.NodeName]string{"e@left": answering}
	m, _ := lead(t, l, newTestMetrics())
	l.put(t, "west", spec)
	waitFor(t, "members", func() bool { return l.nodes("west") == "e@10.0.0.1/up e@left/up" })
	a.list("e@10.0.0.1/running")
	waitFor(t, "suspicion", func() bool { return l.nodes("west") == "e@10.0.0.1/up e@left/suspect" })
	waitFor(t, "alarm", func() bool { s := m.Status()["west"]; return len(s.Alarms) == 1 && s.Alarms[0].Kind == AlarmUnlisted })
	a.more(t, 5)
	if got := l.nodes("west"); got != "e@10.0.0.1/up e@left/suspect" {
		t.Fatalf("got %s", got)
	}
	spec.Addresses = map[fsm.NodeName]string{"e@left": silent}
	l.put(t, "west", spec)
	waitFor(t, "removal", func() bool { return l.nodes("west") == "e@10.0.0.1/up" })
	waitFor(t, "end of the alarm", func() bool { return len(m.Status()["west"].Alarms) == 0 })
}

// A view that lost half of the cluster removes nobody; the operator's removal is taken.
func TestRemovalHeld(t *testing.T) {
	l, reg := newFakeLog(), prometheus.NewRegistry()
	silent := closing(t, "")
	a := newAPI(t, "e@1/running e@2/running e@3/running e@4/running")
	spec := pollSpec(a.url)
	spec.Addresses = map[fsm.NodeName]string{"e@3": silent, "e@4": silent}
	var text syncBuffer
	m, _ := leadLogging(t, l, NewMetrics(reg), slog.New(slog.NewTextHandler(&text, nil)))
	l.put(t, "west", spec)
	waitFor(t, "members", func() bool { return l.nodes("west") == "e@1/up e@2/up e@3/up e@4/up" })
	a.list("e@1/running e@2/running")
	waitFor(t, "alarm", func() bool {
		s := m.Status()["west"]
		return len(s.Alarms) == 1 && s.Alarms[0].Kind == AlarmRemovalHeld
	})
	a.more(t, 8)
	if got := l.nodes("west"); got != "e@1/up e@2/up e@3/suspect e@4/suspect" {
		t.Fatalf("got %s", got)
	}
	if got := gauge(t, reg, "turnout_upstream_removals_held", "cluster", "west"); got != 2 {
		t.Errorf("got %v held", got)
	}
	if got := gauge(t, reg, "turnout_upstream_alarms", "kind", "removal_held"); got != 1 {
		t.Errorf("got %v alarms", got)
	}
	if n := strings.Count(text.String(), "alarm=removal_held"); n != 1 {
		t.Errorf("%d log lines for one alarm", n)
	}
	if _, err := l.Propose(t.Context(), &fsm.UpdateNodes{Cluster: "west", Remove: []fsm.NodeName{"e@3"}}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the other one, which is within the quota by now", func() bool { return l.nodes("west") == "e@1/up e@2/up" })
	waitFor(t, "end of the alarm", func() bool { return len(m.Status()["west"].Alarms) == 0 })
}

// Nodes that vanish one after the other do not go faster than one in RemoveAfter polls.
func TestRemovalWindow(t *testing.T) {
	l, a := newFakeLog(), newAPI(t, "e@1/running e@2/running e@3/running e@4/running")
	silent := closing(t, "")
	spec := pollSpec(a.url)
	spec.RemoveAfter = 4
	spec.Addresses = map[fsm.NodeName]string{"e@2": silent, "e@3": silent, "e@4": silent}
	var mu sync.Mutex
	var at []int64
	l.failWith(func(u *fsm.UpdateNodes) error {
		mu.Lock()
		defer mu.Unlock()
		for range u.Remove {
			at = append(at, a.polls.Load())
		}
		return nil
	})
	lead(t, l, newTestMetrics())
	l.put(t, "west", spec)
	waitFor(t, "members", func() bool { return l.nodes("west") == "e@1/up e@2/up e@3/up e@4/up" })
	a.list("e@1/running e@2/running e@3/running")
	waitFor(t, "suspicion", func() bool { return strings.Contains(l.nodes("west"), "e@4/suspect") })
	a.list("e@1/running e@2/running")
	waitFor(t, "two removals", func() bool { return l.nodes("west") == "e@1/up e@2/up" })
	mu.Lock()
	defer mu.Unlock()
	if len(at) != 2 || at[1]-at[0] < 4 {
		t.Fatalf("removals at polls %v, want 4 polls between them", at)
	}
}

// An outcome that is not known counts against the quota.
func TestUnknownRemovalCounts(t *testing.T) {
	l, a := newFakeLog(), newAPI(t, "e@1/running e@2/running")
	spec := pollSpec(a.url)
	spec.Addresses = map[fsm.NodeName]string{"e@2": closing(t, "")}
	var tries []int64
	m, _ := lead(t, l, newTestMetrics())
	l.put(t, "west", spec)
	waitFor(t, "members", func() bool { return l.nodes("west") == "e@1/up e@2/up" })
	l.failWith(func(u *fsm.UpdateNodes) error {
		if len(u.Remove) > 0 && len(tries) < 2 {
			tries = append(tries, a.polls.Load())
			return fsm.NewError(fsm.CodeUnknown, "", "no answer")
		}
		return nil
	})
	a.list("e@1/running")
	waitFor(t, "alarm while it is not known", func() bool { return len(m.Status()["west"].Alarms) == 1 })
	waitFor(t, "removal", func() bool { return l.nodes("west") == "e@1/up" })
	l.mu.Lock()
	defer l.mu.Unlock()
	if tries[1]-tries[0] < 3 {
		t.Errorf("tried again after %d polls, want 3", tries[1]-tries[0])
	}
}

// A write that lost a race, or found no leader, is planned again at the next poll.
func TestConflictReplans(t *testing.T) {
	for _, code := range []fsm.Code{fsm.CodeConflict, fsm.CodeNoLeader} {
		l, a := newFakeLog(), newAPI(t, "e@10.0.0.1/running")
		l.failWith(func(*fsm.UpdateNodes) error {
			if len(l.updates) < 3 {
				return fsm.NewError(code, "", "no")
			}
			return nil
		})
		lead(t, l, newTestMetrics())
		l.put(t, "west", pollSpec(a.url))
		waitFor(t, "members", func() bool { return l.nodes("west") == "e@10.0.0.1/up" })
		if got := l.proposals(); got != 3 {
			t.Errorf("%s: %d proposals, want 3", code, got)
		}
	}
}

// A new spec is polled at once, also when the old one's next poll is an hour away or backed off.
func TestSpecChange(t *testing.T) {
	l, first, second := newFakeLog(), newAPI(t, "e@1/running"), newAPI(t, "e@2/running")
	m, _ := lead(t, l, newTestMetrics())
	m.second = time.Second
	spec := pollSpec(first.url)
	spec.PollSeconds = 3600
	l.put(t, "west", spec)
	waitFor(t, "first members", func() bool { return l.nodes("west") == "e@1/up" })
	spec.ManagementURLs = []string{second.url}
	l.put(t, "west", spec)
	waitFor(t, "second members", func() bool { return l.nodes("west") == "e@1/suspect e@2/up" })
	second.answer(403, "")
	spec.Weight++
	l.put(t, "west", spec)
	waitFor(t, "refusal", func() bool { return m.Status()["west"].LastError == ClassUnauthorized })
	second.list("e@1/running e@2/running")
	spec.Weight++
	l.put(t, "west", spec)
	waitFor(t, "members again", func() bool { return l.nodes("west") == "e@1/up e@2/up" })
	if n := second.polls.Load(); n != 3 {
		t.Errorf("%d polls, want one for each spec", n)
	}
}

func TestDelay(t *testing.T) {
	l := &pollLoop{m: &Manager{second: time.Second}, spec: pollSpec()}
	l.spec.PollSeconds = 5
	for refusals, want := range map[int]time.Duration{0: 5 * time.Second, 1: 10 * time.Second, 4: 80 * time.Second, 7: 10 * time.Minute, 1_000_000: 10 * time.Minute} {
		l.refusals = refusals
		different := map[time.Duration]bool{}
		for range 50 {
			d := l.delay()
			different[d] = true
			if d < want*9/10 || d > want*11/10 {
				t.Errorf("%d refusals: got %v, want about %v", refusals, d, want)
			}
		}
		if len(different) < 10 {
			t.Error("no jitter")
		}
	}
	l.spec.PollSeconds, l.refusals = 3600, 3
	if d := l.delay(); d < 54*time.Minute {
		t.Errorf("the backoff makes polls more frequent: %v", d)
	}
}

func TestStaticCluster(t *testing.T) {
	l := newFakeLog()
	lead(t, l, newTestMetrics())
	spec := pollSpec()
	spec.Driver = fsm.DriverStatic
	spec.Addresses = map[fsm.NodeName]string{"a": "10.0.0.1:1883", "b": "10.0.0.2:1883", "c": "10.0.0.3:1883"}
	l.put(t, "west", spec)
	waitFor(t, "members", func() bool { return l.nodes("west") == "a/up b/up c/up" })
	spec.Addresses = map[fsm.NodeName]string{"a": "10.0.0.9:1883"}
	l.put(t, "west", spec)
	waitFor(t, "the operator's word", func() bool { return l.nodes("west") == "a/up" })
	if n, _ := l.tables.Topology().Cluster("west").NodeByName("a"); n.Address != "10.0.0.9:1883" {
		t.Errorf("got %s", n.Address)
	}
}

// Clusters come and go, and so does leadership.
func TestLeadership(t *testing.T) {
	l, reg := newFakeLog(), prometheus.NewRegistry()
	metrics := NewMetrics(reg)
	west, east := newAPI(t, "e@1/running"), newAPI(t, "e@2/running")
	l.put(t, "west", pollSpec(west.url))
	m, stop := lead(t, l, metrics)
	l.put(t, "east", pollSpec(east.url))
	waitFor(t, "both", func() bool { return l.nodes("west") == "e@1/up" && l.nodes("east") == "e@2/up" && len(m.Status()) == 2 })
	if _, err := l.Propose(t.Context(), &fsm.RemoveCluster{Name: "east"}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "end of the loop", func() bool { return len(m.Status()) == 1 && !has(t, reg, "cluster", "east") })
	n := east.polls.Load()
	west.more(t, 3)
	if east.polls.Load() != n {
		t.Error("a removed cluster is still polled")
	}
	stop()
	if s := m.Status(); len(s) != 0 {
		t.Errorf("status without leadership: %v", s)
	}
	if gauge(t, reg, "turnout_upstream_nodes", "cluster", "west") != -1 {
		t.Error("gauges stay without leadership")
	}
	n = west.polls.Load()
	west.list("e@1/stopped")
	m2, _ := lead(t, l, newTestMetrics())
	waitFor(t, "the next leader", func() bool { return l.nodes("west") == "e@1/down" && len(m2.Status()) == 1 })
	if west.polls.Load() == n {
		t.Error("no polls")
	}
}

// A management API that never answers holds up neither other clusters nor the end of the duty.
func TestHangingAPI(t *testing.T) {
	hang := make(chan struct{})
	l, good := newFakeLog(), newAPI(t, "e@1/running")
	hanging := fake(t, func(http.ResponseWriter, *http.Request) { <-hang })
	t.Cleanup(func() { close(hang) })
	l.put(t, "hanging", pollSpec(hanging))
	l.put(t, "west", pollSpec(good.url))
	_, stop := lead(t, l, newTestMetrics())
	waitFor(t, "members", func() bool { return l.nodes("west") == "e@1/up" })
	start := time.Now()
	stop()
	if d := time.Since(start); d > httpTimeout/2 {
		t.Errorf("stopping took %v", d)
	}
}

func TestWorse(t *testing.T) {
	a, b := error(&Error{Class: ClassUnauthorized}), error(&Error{Class: ClassUnreachable})
	if worse(a, b) != a || worse(b, a) != a || worse(nil, b) != b || ClassOf(errors.New("x")) != ClassUnreachable || ClassOf(nil) != "" {
		t.Error("wrong order of classes")
	}
}

// TestTrouble: an alarm names its node, a broker's odd characters do no harm, and the text keeps its bound.
func TestTrouble(t *testing.T) {
	long := fsm.NodeName(strings.Repeat("ü", fsm.MaxNameBytes))
	for want, s := range map[string]PollStatus{
		"":                                   {},
		"polls fail: unauthorized":           {LastError: ClassUnauthorized, Alarms: []Alarm{{Kind: AlarmUnauthorized}}},
		"removal_held e@a":                   {Alarms: []Alarm{{Kind: AlarmRemovalHeld, Node: "e@a"}}},
		"too_many_nodes; invalid_entry a?b?": {Alarms: []Alarm{{Kind: AlarmTooManyNodes}, {Kind: AlarmInvalidEntry, Node: "a\nb\xff"}}},
	} {
		if got := s.trouble(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	got := (&PollStatus{Alarms: []Alarm{{Kind: AlarmUnlisted, Node: long}}}).trouble()
	if err := (&fsm.NoteDiscovery{Cluster: "west", Trouble: got}).Validate(); err != nil || !strings.HasSuffix(got, "...") {
		t.Errorf("a long text: %v, %q", err, got)
	}
}
