package upstream

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"turnout/fsm"
)

// clock is a time that tests move.
type clock struct{ ns atomic.Int64 }

func gatewayID() fsm.GatewayID { return "0123456789abcdef" }

func (c *clock) now() time.Time          { return time.Unix(0, c.ns.Load()) }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

func newCommander(t *testing.T, l *fakeLog, m *Metrics) (*Commander, *clock) {
	t.Helper()
	k := &clock{}
	k.advance(1_000_000 * time.Second)
	c := NewCommander(CommanderOptions{Tables: l.tables, Guard: loopback(t), Gateway: gatewayID, Logger: quiet(), Metrics: m, Now: k.now})
	c.Open()
	t.Cleanup(c.Close)
	return c, k
}

func target(kind, url string) Target {
	c := &fsm.Cluster{ID: 1, Name: "west", Spec: fsm.DefaultSpec()}
	c.Spec.Channel.Kind, c.Spec.Channel.URL, c.Spec.Channel.MaxBytes = kind, url, 100
	return Target{Key: "meter-1", Cluster: c}
}

func ptr[T any](v T) *T { return &v }

func TestFillTopic(t *testing.T) {
	long := strings.Repeat("x", 65536)
	tests := []struct {
		template string
		target   Target
		want     string // empty: refused
	}{
		{"devices/{key}/commands", Target{Key: "meter-1"}, "devices/meter-1/commands"},
		{"d/{key}/{key}", Target{Key: "a/b"}, "d/a/b/a/b"},
		{"d/{key}/{client_id}/{username}", Target{Key: "k", Parts: Parts{"c", "u"}}, "d/k/c/u"},
		{"d/{key}", Target{Key: "{client_id}", Parts: Parts{ClientID: "c"}}, "d/{client_id}"}, // filled once
		{"d/{key}/{client_id}", Target{Key: "k"}, ""},
		{"d/{key}/{username}", Target{Key: "k", Parts: Parts{ClientID: "c"}}, ""},
		{"d/{key}", Target{}, ""},
		{"d/{key}", Target{Key: "+"}, ""},
		{"d/{key}", Target{Key: "a/#"}, ""},
		{"d/{key}", Target{Key: "a\x00b"}, ""},
		{"d/{key}", Target{Key: "\xff"}, ""},
		{"d/{key}/{client_id}", Target{Key: "k", Parts: Parts{ClientID: "a+b"}}, ""},
		{"d/{key}/{username}", Target{Key: "k", Parts: Parts{Username: "a#b"}}, ""},
		{"d/{key}", Target{Key: "k", Parts: Parts{ClientID: "#"}}, "d/k"}, // not part of it
		{"d/{key}/{username}", Target{Key: "k", Parts: Parts{Username: long}}, ""},
		{"{key}/commands", Target{Key: "$SYS"}, ""},
		{"{key}/commands", Target{Key: "$share/g"}, ""},
		{"$app/{key}", Target{Key: "k"}, "$app/k"},
		{"d/{key}", Target{Key: "$SYS"}, "d/$SYS"},
	}
	for _, tt := range tests {
		got, why := fillTopic(tt.template, tt.target)
		if got != tt.want || (why == "") != (tt.want != "") {
			t.Errorf("%s with %q: got %.40q (%s), want %q", tt.template, tt.target.Key, got, why, tt.want)
		}
	}
}

func TestPrepare(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Target, *Command)
		want   string
	}{
		{"good", func(*Target, *Command) {}, ""},
		{"as large as it may be", func(_ *Target, c *Command) { c.Payload = make([]byte, 100) }, ""},
		{"too large", func(_ *Target, c *Command) { c.Payload = make([]byte, 101) }, "payload"},
		{"no channel", func(x *Target, _ *Command) { x.Cluster.Spec.Channel.Kind = "" }, "no command channel"},
		{"QoS 2", func(_ *Target, c *Command) { c.QoS = ptr[uint8](2) }, "QoS"},
		{"long id", func(_ *Target, c *Command) { c.ID = strings.Repeat("x", 129) }, "id"},
		{"id with a newline", func(_ *Target, c *Command) { c.ID = "a\nb" }, "id"},
		{"wildcard", func(x *Target, _ *Command) { x.Key = "+" }, "topic"},
	}
	for _, tt := range tests {
		x, c := target(fsm.ChannelEMQX, "http://127.0.0.1"), Command{ID: "c-1", Payload: []byte("p")}
		tt.change(&x, &c)
		_, why := prepare(x, c)
		if (why == "") != (tt.want == "") || !strings.Contains(why, tt.want) {
			t.Errorf("%s: got %q", tt.name, why)
		}
	}
	x := target(fsm.ChannelEMQX, "")
	x.Cluster.Spec.Channel.ExpirySeconds = 60
	m, _ := prepare(x, Command{})
	if m.qos != 1 || m.expiry != 60 {
		t.Errorf("the channel's defaults are not used: %+v", m)
	}
	if m, _ = prepare(x, Command{QoS: ptr[uint8](0), ExpirySeconds: ptr[uint32](0)}); m.qos != 0 || m.expiry != 0 {
		t.Errorf("the command's own values are not used: %+v", m)
	}
}

// broker counts publishes and answers them as told.
type publishAPI struct {
	url   string
	calls atomic.Int64
	mu    sync.Mutex
	h     http.HandlerFunc
}

func newPublishAPI(t *testing.T, h http.HandlerFunc) *publishAPI {
	p := &publishAPI{h: h}
	p.url = fake(t, func(w http.ResponseWriter, r *http.Request) {
		p.calls.Add(1)
		p.mu.Lock()
		h := p.h
		p.mu.Unlock()
		h(w, r)
	})
	return p
}

func (p *publishAPI) set(h http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.h = h
}

func TestIdempotency(t *testing.T) {
	p := newPublishAPI(t, reply(202, `{"reason_code":16}`))
	c, k := newCommander(t, newFakeLog(), newTestMetrics())
	x := target(fsm.ChannelEMQX, p.url)
	send := func(x Target, id, payload string, want Outcome, calls int64) {
		t.Helper()
		r := c.Send(t.Context(), x, Command{ID: id, Payload: []byte(payload)})
		if r.Outcome != want || p.calls.Load() != calls {
			t.Fatalf("got %+v after %d calls, want %s after %d", r, p.calls.Load(), want, calls)
		}
	}
	send(x, "c-1", "on", NoSubscriber, 1)
	p.set(reply(200, `{"id":"000618A2C4D1E3F5F443000012AB0001"}`))
	send(x, "c-1", "on", NoSubscriber, 1)   // the earlier result
	send(x, "c-1", "off", Rejected, 1)      // the same id for something else
	send(x, "c-2", "on", Dispatched, 2)     // another id
	send(x, "", "on", Dispatched, 3)        // no id, no memory
	send(x, "", "on", Dispatched, 4)        //
	other := x                              //
	other.Key = "meter-2"                   //
	send(other, "c-1", "on", Dispatched, 5) // another device
	k.advance(idempotencyTime - time.Second)
	send(x, "c-1", "on", NoSubscriber, 5)
	k.advance(2 * time.Second)
	send(x, "c-1", "on", Dispatched, 6) // long ago

	// What never left may be tried again, what may have left must not.
	gone := target(fsm.ChannelEMQX, "http://127.0.0.1:1")
	send(gone, "c-3", "on", Rejected, 6)
	send(x, "c-3", "on", Dispatched, 7)
	p.set(reply(503, ""))
	send(x, "c-4", "on", Unknown, 8)
	p.set(reply(200, `{"id":"1"}`))
	send(x, "c-4", "on", Unknown, 8)
}

// Concurrent duplicates make one publish, and all learn its result; a caller who leaves does not end it.
func TestIdempotencyConcurrent(t *testing.T) {
	entered, release := make(chan struct{}, 1), make(chan struct{})
	p := newPublishAPI(t, func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-release
		reply(200, `{"id":"1"}`)(w, r)
	})
	c, _ := newCommander(t, newFakeLog(), newTestMetrics())
	x := target(fsm.ChannelEMQX, p.url)
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan Result, 1)
	go func() { first <- c.Send(ctx, x, Command{ID: "c", Payload: []byte("p")}) }()
	<-entered
	cancel()
	if r := <-first; r.Outcome != Unknown {
		t.Errorf("the caller who left got %+v", r)
	}
	results := make(chan Result)
	for range 10 {
		go func() { results <- c.Send(t.Context(), x, Command{ID: "c", Payload: []byte("p")}) }()
	}
	if r := c.Send(t.Context(), x, Command{ID: "c", Payload: []byte("q")}); r.Outcome != Rejected {
		t.Errorf("another payload meanwhile: got %+v", r)
	}
	close(release)
	for range 10 {
		if r := <-results; r.Outcome != Dispatched {
			t.Errorf("got %+v", r)
		}
	}
	if n := p.calls.Load(); n != 1 {
		t.Errorf("%d publishes", n)
	}
}

func TestRecentBounds(t *testing.T) {
	k := &clock{}
	r := newRecentCommands(k.now)
	for i := range idempotencySize + 10 {
		f, first, _ := r.begin("d", fmt.Sprint(i), nil)
		if !first {
			t.Fatal("a new id is not new")
		}
		r.finish(f, Result{Outcome: Accepted})
	}
	if len(r.flights) != idempotencySize || r.order.Len() != idempotencySize {
		t.Errorf("%d and %d remembered, want %d", len(r.flights), r.order.Len(), idempotencySize)
	}
	if _, first, _ := r.begin("d", "0", nil); !first {
		t.Error("the oldest is still remembered")
	}
	if _, first, _ := r.begin("d", "10000", nil); first {
		t.Error("a recent one is forgotten")
	}
}

func TestBusyAndClosed(t *testing.T) {
	p := newPublishAPI(t, reply(200, `{"id":"1"}`))
	c, _ := newCommander(t, newFakeLog(), newTestMetrics())
	x := target(fsm.ChannelEMQX, p.url)
	for range maxInFlight {
		c.slots <- struct{}{}
	}
	if r := c.Send(t.Context(), x, Command{ID: "c"}); r.Outcome != Rejected {
		t.Errorf("no room: got %+v", r)
	}
	for range maxInFlight {
		<-c.slots
	}
	if r := c.Send(t.Context(), x, Command{ID: "c"}); r.Outcome != Dispatched {
		t.Errorf("room again: got %+v", r)
	}
	if r := c.Send(t.Context(), Target{Key: "k"}, Command{}); r.Outcome != Rejected {
		t.Errorf("no cluster: got %+v", r)
	}
	c.Close()
	c.Close()
	if r := c.Send(t.Context(), x, Command{ID: "d"}); r.Outcome != Rejected {
		t.Errorf("closed: got %+v", r)
	}
}

func TestCommandMetrics(t *testing.T) {
	reg, l := prometheus.NewRegistry(), newFakeLog()
	c, _ := newCommander(t, l, NewMetrics(reg))
	spec := fsm.DefaultSpec()
	spec.ManagementURLs = []string{"http://127.0.0.1:1"}
	l.put(t, "west", spec)
	x := Target{Key: "k", Cluster: l.tables.Topology().Cluster("west")}
	c.Send(t.Context(), x, Command{})
	if gauge(t, reg, "turnout_commands_total", "kind", "none") != 1 || gauge(t, reg, "turnout_commands_total", "outcome", "rejected") != 1 {
		t.Error("not counted")
	}
	// follow must have seen the cluster before it can miss it.
	waitFor(t, "label to go", func() bool {
		l.put(t, "west", spec)
		_, _ = l.Propose(t.Context(), &fsm.RemoveCluster{Name: "west"})
		return !has(t, reg, "cluster", "west")
	})
}
