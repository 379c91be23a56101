package proxy

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"turnout/fsm"
	"turnout/proxy/mqtt"
)

// threeNodes is a gateway in front of one cluster of three brokers, to which unknown devices go.
func threeNodes(t testing.TB, cfg Config) (*world, map[string]*broker) {
	brokers := map[string]*broker{}
	tb := newTables(t, fsm.Policy{Kind: fsm.PolicyRefuse})
	var nodes []fsm.NodeChange
	for _, name := range []string{"w1", "w2", "w3"} {
		brokers[name] = newBroker(t, name)
		nodes = append(nodes, brokers[name].change())
	}
	tb.cluster("west", 1, nodes...)
	tb.apply(&fsm.PutSettings{Unknown: &fsm.Policy{Kind: fsm.PolicyCluster, Cluster: "west"}})
	return newWorld(t, tb, cfg), brokers
}

func (w *world) attempts(result string) int {
	return int(w.metric("turnout_upstream_attempts_total", "result", result))
}

// bound waits for the binding of a device and returns the node's name.
func (w *world) bound(key string) string {
	w.t.Helper()
	var d fsm.Device
	eventually(w.t, "binding of "+key, func() bool {
		d, _ = w.Device(fsm.DeviceKey(key))
		return d.Binding != 0
	})
	for _, n := range w.Topology().Cluster("west").Nodes {
		if n.ID == d.Binding {
			return string(n.Name)
		}
	}
	return "?"
}

// settle waits until no binding is on its way.
func (w *world) settle() {
	w.t.Helper()
	w.connect(packet3("a-device-behind-all-others"), accept3)
	w.bound("a-device-behind-all-others")
}

// TestNextNodeWhenOneCannotServe lets the first node of a device fail in every way there is.
func TestNextNodeWhenOneCannotServe(t *testing.T) {
	for _, tc := range []struct {
		name       string
		script     func(*visit)
		outcome    string
		disconnect bool // the node is told that the attempt is given up
		cooling    bool
	}{
		{"0x88", func(v *visit) { v.answer([]byte{0x20, 3, 0, 0x88, 0}) }, attemptCannotServe, false, true},
		{"0x89", func(v *visit) { v.answer([]byte{0x20, 3, 0, 0x89, 0}) }, attemptCannotServe, false, true},
		{"0x9C with a reference", func(v *visit) { v.answer([]byte{0x20, 7, 0, 0x9C, 4, 0x1C, 0, 1, 'x'}) }, attemptCannotServe, false, true},
		{"0x9D", func(v *visit) { v.answer([]byte{0x20, 3, 0, 0x9D, 0}) }, attemptCannotServe, false, true},
		{"0x03 in 3.x form", func(v *visit) { v.answer([]byte{0x20, 2, 0, 3}) }, attemptCannotServe, false, true},
		{"close", func(*visit) {}, attemptClosed, false, false},
		{"half a CONNACK, then close", func(v *visit) { v.answer([]byte{0x20, 3, 0}) }, attemptClosed, false, false},
		{"reset", func(v *visit) { _ = v.conn.(*net.TCPConn).SetLinger(0) }, attemptClosed, false, false},
		{"hang", func(v *visit) { v.drain() }, attemptTimeout, true, true},
		{"no MQTT", func(v *visit) { v.answer([]byte("\x00HTTP/1.1 400 Bad Request\r\n\r\n")); v.drain() }, attemptBadAnswer, true, false},
		{"PUBLISH first", func(v *visit) { v.answer([]byte{0x30, 3, 0, 1, 'x'}); v.drain() }, attemptBadAnswer, true, false},
		{"endless CONNACK", func(v *visit) { v.answer([]byte{0x20, 0xFF, 0xFF, 0xFF, 0x7F}); v.drain() }, attemptBadAnswer, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := testConfig()
			cfg.ConnackTimeout = 100 * time.Millisecond
			w, brokers := threeNodes(t, cfg)
			order := w.ringOrder("west", "a")
			first, second := brokers[order[0]], brokers[order[1]]
			first.setScript(tc.script)
			connect := connectPacket("MQTT", 5, 0x06, []byte{0}, field("a"), []byte{0}, field("will"), field("gone"))
			c := w.dial()
			_, _ = c.Write(append(bytes.Clone(connect), 0xC0, 0)) // a PINGREQ right behind
			expect(t, c, accept5)
			if v := first.seen(); len(v) != 1 || !bytes.Equal(v[0].packet, connect) {
				t.Errorf("the first node saw %v", first.ids())
			}
			v := second.seen()
			if len(v) != 1 || !bytes.Equal(v[0].packet, connect) {
				t.Fatalf("the second node saw %v", second.ids())
			}
			eventually(t, "the PINGREQ at the second node", func() bool { return bytes.Equal(v[0].got(), []byte{0xC0, 0}) })
			if tc.disconnect {
				eventually(t, "DISCONNECT at the first node", func() bool {
					return bytes.Equal(first.seen()[0].got(), mqtt.ClientDisconnect(mqtt.V5)) && first.seen()[0].isClosed()
				})
			}
			if n := w.attempts(tc.outcome); n != 1 || w.attempts(attemptAccepted) != 1 {
				t.Errorf("%d attempts counted as %s", n, tc.outcome)
			}
			if got := w.gw.health.cooling(w.node("west", fsm.NodeName(order[0])).ID); got && !tc.cooling {
				t.Errorf("cooling: %v", got)
			}
			w.settle()
			if d, ok := w.Device("a"); ok {
				t.Errorf("falling back from a member was recorded: %+v", d)
			}
			first.setScript(nil)
			eventually(t, "the device at its home", func() bool {
				w.connect(connect, accept5)
				return len(first.seen()) > 1
			})
			if got := w.bound("a"); got != order[0] {
				t.Errorf("bound to %s, its home is %s", got, order[0])
			}
		})
	}
}

func TestNextNodeWhenDialFails(t *testing.T) {
	w, brokers := threeNodes(t, testConfig())
	order := w.ringOrder("west", "a")
	brokers[order[0]].stop()
	brokers[order[1]].stop()
	w.connect(packet3("a"), accept3)
	if w.attempts(attemptDial) != 2 || len(brokers[order[2]].seen()) != 1 {
		t.Errorf("%d dials failed", w.attempts(attemptDial))
	}
}

func TestAllNodesFail(t *testing.T) {
	cfg := testConfig()
	cfg.ConnackTimeout = 100 * time.Millisecond
	w, brokers := threeNodes(t, cfg)
	for _, b := range brokers {
		b.setScript(func(v *visit) {})
	}
	expectEnd(t, w.connect(packet3("a"), []byte{0x20, 2, 0, 3}), nil)
	expectEnd(t, w.connect(packet5("a"), []byte{0x20, 3, 0, 0x88, 0}), nil)

	// The last word of a broker counts for more than the gateway's.
	order := w.ringOrder("west", "a")
	busy := []byte{0x20, 9, 0, 0x89, 6, 0x1F, 0, 3, 'o', 'f', 'f'}
	brokers[order[1]].setScript(func(v *visit) { v.answer(busy) })
	expectEnd(t, w.connect(packet5("a"), busy), nil)
	eventually(t, "counted", func() bool { return w.results("unavailable") == 3 })
	if w.Status().Devices != 0 {
		t.Error("a refused device was recorded")
	}
}

func TestAttemptsAreBounded(t *testing.T) {
	cfg := testConfig()
	cfg.MaxAttempts = 2
	w, brokers := threeNodes(t, cfg)
	for _, b := range brokers {
		b.setScript(func(v *visit) {})
	}
	expectEnd(t, w.connect(packet3("a"), []byte{0x20, 2, 0, 3}), nil)
	if n := len(brokers["w1"].seen()) + len(brokers["w2"].seen()) + len(brokers["w3"].seen()); n != 2 {
		t.Errorf("%d attempts", n)
	}
}

func TestConnectDeadlineBoundsAllAttempts(t *testing.T) {
	cfg := testConfig()
	cfg.ConnectTimeout, cfg.ConnackTimeout = 300*time.Millisecond, 200*time.Millisecond
	w, brokers := threeNodes(t, cfg)
	for _, b := range brokers {
		b.setScript(func(v *visit) { v.drain() })
	}
	began := time.Now()
	expectEnd(t, w.connect(packet5("a"), []byte{0x20, 3, 0, 0x88, 0}), nil)
	if time.Since(began) < 250*time.Millisecond {
		t.Error("given up before the deadline")
	}
	if n := w.attempts(attemptTimeout); n != 1 {
		t.Errorf("%d timeouts", n)
	}
}

func TestDeviceHangsUpWhileWaiting(t *testing.T) {
	w, brokers := threeNodes(t, testConfig())
	first := brokers[w.ringOrder("west", "a")[0]]
	first.setScript(func(v *visit) { v.drain() })
	c := w.dial()
	_, _ = c.Write(packet5("a"))
	eventually(t, "the CONNECT at the broker", func() bool { return len(first.seen()) == 1 })
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
	eventually(t, "DISCONNECT and the end at the broker", func() bool {
		v := first.seen()[0]
		return bytes.Equal(v.got(), mqtt.ClientDisconnect(mqtt.V5)) && v.isClosed()
	})
	eventually(t, "counted", func() bool { return w.results("hangup") == 1 && w.attempts(attemptAbandoned) == 1 })
	if n := len(brokers["w1"].seen()) + len(brokers["w2"].seen()) + len(brokers["w3"].seen()); n != 1 || w.gw.health.ailing.Load() != 0 {
		t.Errorf("%d attempts, %d ill nodes", n, w.gw.health.ailing.Load())
	}
}

func TestHalfCloseAfterConnectIsAnswered(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	release := make(chan struct{})
	b.setScript(func(v *visit) { <-release; v.accept() })
	c := w.dial()
	_, _ = c.Write(append(packet5("a"), 0xE0, 0))
	_ = c.(*net.TCPConn).CloseWrite()
	eventually(t, "the CONNECT at the broker", func() bool { return len(b.seen()) == 1 })
	close(release)
	expectEnd(t, c, accept5)
	if got := b.seen()[0].got(); !bytes.Equal(got, []byte{0xE0, 0}) {
		t.Errorf("the broker got % x behind the CONNECT", got)
	}
}

func TestPipelinedBytesWaitForSuccess(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	release := make(chan struct{})
	b.setScript(func(v *visit) {
		_ = v.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, _ := v.conn.Read(make([]byte, 1)); n > 0 {
			t.Error("bytes behind the CONNECT came before the CONNACK")
		}
		_ = v.conn.SetReadDeadline(time.Time{})
		<-release
		v.accept()
	})
	c := w.dial()
	behind := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB: far more than is held
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(append(packet5("a"), behind...))
		sent <- err
	}()
	eventually(t, "the CONNECT at the broker", func() bool { return len(b.seen()) == 1 })
	close(release)
	expect(t, c, accept5)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	eventually(t, "every byte at the broker", func() bool { return len(b.seen()[0].got()) == len(behind) })
	if !bytes.Equal(b.seen()[0].got(), behind) {
		t.Error("bytes differ")
	}
}

// TestHomeIsKept walks a device through the life of its home.
func TestHomeIsKept(t *testing.T) {
	w, brokers := threeNodes(t, testConfig())
	home := w.ringOrder("west", "a")[0]
	visitAt := func() string {
		t.Helper()
		before := map[string]int{}
		for name, b := range brokers {
			before[name] = len(b.seen())
		}
		_ = w.connect(packet5("a"), accept5).Close()
		for name, b := range brokers {
			if len(b.seen()) > before[name] {
				return name
			}
		}
		return "nowhere"
	}
	for range 5 {
		if at := visitAt(); at != home {
			t.Fatalf("at %s, home is %s", at, home)
		}
	}
	if at := w.bound("a"); at != home {
		t.Fatalf("bound to %s", at)
	}

	// New members: the ring changes, the device stays.
	for i := range 4 {
		b := newBroker(t, fmt.Sprintf("x%d", i))
		brokers[b.name] = b
		w.apply(&fsm.UpdateNodes{Cluster: "west", Upsert: []fsm.NodeChange{b.change()}})
	}
	if at := visitAt(); at != home {
		t.Fatalf("moved to %s by a change of the ring", at)
	}

	// The home is down but a member: elsewhere meanwhile, nothing written, home when it is back.
	addr := brokers[home].addr()
	brokers[home].stop()
	if at := visitAt(); at == home || at == "nowhere" {
		t.Fatalf("at %s while its home is down", at)
	}
	w.apply(&fsm.UpdateNodes{Cluster: "west", Upsert: []fsm.NodeChange{{Name: fsm.NodeName(home), Address: addr, State: fsm.NodeDown}}})
	w.settle()
	if at := w.bound("a"); at != home {
		t.Fatalf("falling back bound it to %s", at)
	}
	brokers[home].listen(addr) // discovery has not seen it yet
	eventually(t, "the device at home again", func() bool { return visitAt() == home })
	w.apply(&fsm.UpdateNodes{Cluster: "west", Upsert: []fsm.NodeChange{{Name: fsm.NodeName(home), Address: addr, State: fsm.NodeUp}}})

	// Draining: replaced, once.
	w.apply(&fsm.SetNode{Cluster: "west", Node: fsm.NodeName(home), Draining: true})
	second := visitAt()
	if second == home {
		t.Fatal("at a draining node")
	}
	eventually(t, "the binding to be replaced", func() bool { return w.bound("a") == second })
	w.apply(&fsm.SetNode{Cluster: "west", Node: fsm.NodeName(home)})
	if at := visitAt(); at != second {
		t.Fatalf("back at %s, bound to %s", at, second)
	}

	// Gone: replaced, once.
	w.apply(&fsm.UpdateNodes{Cluster: "west", Remove: []fsm.NodeName{fsm.NodeName(second)}})
	third := visitAt()
	if third == second {
		t.Fatal("at a node that is gone")
	}
	eventually(t, "the binding to be replaced", func() bool { return w.bound("a") == third })
	if at := visitAt(); at != third {
		t.Fatalf("at %s, bound to %s", at, third)
	}
}

func TestBindingOnlyAfterSuccess(t *testing.T) {
	w, brokers := threeNodes(t, testConfig())
	release := make(chan struct{})
	for _, b := range brokers {
		b.setScript(func(v *visit) {
			if string(v.c.ClientID) == "a" {
				<-release
			}
			v.accept()
		})
	}
	c := w.dial()
	_, _ = c.Write(packet5("a"))
	w.settle()
	if _, ok := w.Device("a"); ok {
		t.Error("recorded before CONNACK")
	}
	close(release)
	expect(t, c, accept5)
	w.bound("a")
}

func TestDeviceIsServedWithoutLeader(t *testing.T) {
	w, _ := oneCluster(t, testConfig())
	w.mu.Lock()
	w.refuse = fsm.NewError(fsm.CodeNoLeader, "", "no leader")
	w.mu.Unlock()
	for i := range 5 {
		w.connect(packet5(fmt.Sprint("dev-", i)), accept5)
	}
	w.mu.Lock()
	w.refuse = nil
	w.mu.Unlock()
	eventually(t, "the bindings once there is a leader", func() bool { return w.Status().Devices == 5 })
}

func TestStrictPin(t *testing.T) {
	w, brokers := threeNodes(t, testConfig())
	w.assign("a", "west")
	w.device(fsm.DeviceChange{Key: "a", Pin: ptr(fsm.NodeName("w2")), PinStrict: ptr(true)})
	w.connect(packet5("a"), accept5)
	brokers["w2"].stop()
	expectEnd(t, w.connect(packet5("a"), []byte{0x20, 3, 0, 0x88, 0}), nil)
	w.device(fsm.DeviceChange{Key: "a", PinStrict: ptr(false)})
	w.connect(packet5("a"), accept5)
	if len(brokers["w2"].seen()) != 1 || len(brokers["w1"].seen())+len(brokers["w3"].seen()) != 1 {
		t.Error("not where the pin says")
	}
	w.settle()
	if d, _ := w.Device("a"); d.Binding != 0 {
		t.Error("falling back from a pin wrote a binding")
	}
}

// TestAssignmentHoldsAtOnce is read-your-writes on the device port: what the tables hold when a CONNECT comes is what counts.
func TestAssignmentHoldsAtOnce(t *testing.T) {
	w, _ := threeNodes(t, testConfig())
	for i := range 50 {
		b := newBroker(t, "n")
		name := fsm.ClusterName(fmt.Sprintf("c%d", i))
		w.cluster(name, 0, b.change())
		w.assign("a", name)
		w.connect(packet3("a"), accept3)
		if len(b.seen()) != 1 {
			t.Fatalf("not at cluster %s", name)
		}
	}
}

// TestDeadlineSuppressesTheWill lets the deadline of CONNACK end many attempts: whichever timer is first, the node is told.
func TestDeadlineSuppressesTheWill(t *testing.T) {
	cfg := testConfig()
	cfg.ConnectTimeout = 150 * time.Millisecond
	w, b := oneCluster(t, cfg)
	b.setScript(func(v *visit) { v.drain() })
	const n = 100
	for i := range n {
		c := w.dial()
		_, _ = c.Write(connectPacket("MQTT", 5, 0x06, []byte{0}, field(fmt.Sprint("dev-", i)), []byte{0}, field("will"), field("gone")))
	}
	eventually(t, "all attempts given up", func() bool { return w.attempts(attemptAbandoned) == n })
	for _, v := range b.seen() {
		eventually(t, "the end at the broker", v.isClosed)
		if got := v.got(); !bytes.Equal(got, mqtt.ClientDisconnect(mqtt.V5)) {
			t.Errorf("%s: the node got % x, want DISCONNECT", v.c.ClientID, got)
		}
	}
	if w.gw.health.ailing.Load() != 0 {
		t.Error("the device's deadline was held against the node")
	}
}

func TestDialOutcomes(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for _, tc := range []struct {
		name string
		ctx  context.Context
		err  error
		cut  bool
		want string
	}{
		{"refused", t.Context(), dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), true, attemptDial},
		{"no answer", t.Context(), dial(os.ErrDeadlineExceeded), false, attemptDial},
		{"no answer in less than its time", t.Context(), dial(os.ErrDeadlineExceeded), true, attemptAbandoned},
		{"the device left", over, dial(context.Canceled), false, attemptAbandoned},
		{"no descriptor", t.Context(), dial(os.NewSyscallError("socket", syscall.EMFILE)), false, attemptLocal},
		{"no port", t.Context(), dial(os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)), false, attemptLocal},
	} {
		if got := dialOutcome(tc.ctx, tc.err, tc.cut); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// TestWantOfDescriptorsIsNoFaultOfTheNodes keeps the nodes out of their cool-down when it is the gateway that can't dial.
func TestWantOfDescriptorsIsNoFaultOfTheNodes(t *testing.T) {
	b := newBroker(t, "w1")
	tb := newTables(t, fsm.Policy{Kind: fsm.PolicyRefuse})
	tb.cluster("west", 1, b.change())
	tb.apply(&fsm.PutSettings{Unknown: &fsm.Policy{Kind: fsm.PolicyCluster, Cluster: "west"}})
	g, err := New(testConfig(), Options{Tables: tb.Tables, Proposer: tb, Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	g.dialer.Control = func(string, string, syscall.RawConn) error { return syscall.EMFILE }
	if err := g.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer g.Close(context.Background())
	w := &world{tables: tb, gw: g}
	expectEnd(t, w.connect(packet5("a"), []byte{0x20, 3, 0, 0x88, 0}), nil)
	if g.health.ailing.Load() != 0 {
		t.Error("held against the node")
	}
}

// TestShutdownLeavesTheDisconnectAlone answers an attempt that shutdown gave up: no reset may overtake the DISCONNECT.
func TestShutdownLeavesTheDisconnectAlone(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	release := make(chan struct{})
	b.setScript(func(v *visit) {
		<-release
		for range 10 {
			if _, err := v.conn.Write(accept5); err != nil {
				t.Errorf("the broker met a closed socket: %v", err)
			}
			time.Sleep(time.Millisecond)
		}
		v.drain()
	})
	c := w.dial()
	_, _ = c.Write(packet5("a"))
	eventually(t, "the CONNECT at the broker", func() bool { return len(b.seen()) == 1 })
	closed := make(chan error, 1)
	go func() { closed <- w.gw.Close(context.Background()) }()
	eventually(t, "the device to be told", func() bool { return w.results("shutting_down") == 1 })
	close(release)
	v := b.seen()[0]
	eventually(t, "the end at the broker", v.isClosed)
	if !bytes.Equal(v.got(), mqtt.ClientDisconnect(mqtt.V5)) || v.reset {
		t.Errorf("the broker got % x, reset %v", v.got(), v.reset)
	}
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
}

// slowDeadline holds up SetDeadline until it is let go.
type slowDeadline struct {
	net.Conn
	entered, goOn chan struct{}
	set           atomic.Bool
}

func (c *slowDeadline) SetDeadline(time.Time) error {
	close(c.entered)
	<-c.goOn
	c.set.Store(true)
	return nil
}

// TestInterruptIsOverWhenReleased holds up the interrupt: a deadline that the caller sets next must not be overtaken by it.
func TestInterruptIsOverWhenReleased(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := &slowDeadline{entered: make(chan struct{}), goOn: make(chan struct{})}
	release := interrupt(ctx, c)
	cancel()
	<-c.entered
	time.AfterFunc(20*time.Millisecond, func() { close(c.goOn) })
	if release() || !c.set.Load() {
		t.Error("released while the interrupt was under way")
	}
	ctx, cancel = context.WithCancel(t.Context())
	release = interrupt(ctx, &slowDeadline{})
	if !release() {
		t.Error("interrupted without a cause")
	}
	cancel()
}

// TestOneDeviceKeepsNobodyFromHome has a node turn one device away, again and again, that others are at home with.
func TestOneDeviceKeepsNobodyFromHome(t *testing.T) {
	w, brokers := threeNodes(t, testConfig())
	home := w.ringOrder("west", "a")[0]
	locked := "locked-"
	for w.ringOrder("west", locked)[0] != home {
		locked += "x"
	}
	brokers[home].setScript(func(v *visit) {
		if string(v.c.ClientID) == locked {
			v.answer([]byte{0x20, 3, 0, 0x89, 0})
			return
		}
		v.accept()
	})
	for range 10 {
		w.connect(packet5(locked), accept5) // elsewhere
		w.connect(packet5("a"), accept5)
	}
	if n := len(brokers[home].seen()); n != 20 {
		t.Errorf("the home of both saw %d of 20 CONNECTs", n)
	}
}

// TestNodeThatServesNobodyCools is what the doubts are for.
func TestNodeThatServesNobodyCools(t *testing.T) {
	w, brokers := threeNodes(t, testConfig())
	home := w.ringOrder("west", "a")[0]
	node := w.node("west", fsm.NodeName(home)).ID
	brokers[home].setScript(func(v *visit) { v.answer([]byte{0x20, 3, 0, 0x9C, 0}) })
	for range mostDoubts {
		w.connect(packet5("a"), accept5)
	}
	eventually(t, "a cool-down", func() bool { w.connect(packet5("a"), accept5); return w.gw.health.cooling(node) })
	brokers[home].setScript(nil)
	eventually(t, "the device at home", func() bool {
		w.connect(packet5("a"), accept5)
		return w.gw.health.ailing.Load() == 0
	})
}
