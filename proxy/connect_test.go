package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"turnout/fsm"
	"turnout/proxy/mqtt"
)

// oneCluster is a gateway that sends everybody to one broker.
func oneCluster(t testing.TB, cfg Config) (*world, *broker) {
	b := newBroker(t, "w1")
	tb := newTables(t, fsm.Policy{Kind: fsm.PolicyRefuse})
	tb.cluster("west", 1, b.change())
	tb.apply(&fsm.PutSettings{Unknown: &fsm.Policy{Kind: fsm.PolicyCluster, Cluster: "west"}})
	return newWorld(t, tb, cfg), b
}

// TestBadInput sends what is no CONNECT, or none that can be routed: each has one answer and one counted reason, and no
// broker hears of it.
func TestBadInput(t *testing.T) {
	long := strings.Repeat("x", 300)
	prop := func(b ...byte) []byte { return append([]byte{byte(len(b))}, b...) }
	for _, tc := range []struct {
		name   string
		send   []byte
		finish bool   // the device ends its stream behind it
		want   []byte // nil: closed without a word
		result string
		strict bool
	}{
		{name: "nothing", finish: true, result: "probe"},
		{name: "HTTP", send: []byte("GET / HTTP/1.1\r\n\r\n"), result: "not_mqtt"},
		{name: "TLS on a plain port", send: []byte{0x16, 3, 1, 0, 200}, result: "not_mqtt"},
		{name: "PROXY header where none is expected", send: []byte("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"), result: "not_mqtt"},
		{name: "CONNACK", send: []byte{0x20, 2, 0, 0}, result: "not_mqtt"},
		{name: "five-byte length", send: []byte{0x10, 0xFF, 0xFF, 0xFF, 0xFF, 0x01}, result: "bad_length"},
		{name: "268 MB announced", send: []byte{0x10, 0xFF, 0xFF, 0xFF, 0x7F}, result: "too_large"},
		{name: "268 MB announced in 5.0", send: append([]byte{0x10, 0xFF, 0xFF, 0xFF, 0x7F}, append(field("MQTT"), 5, 2, 0, 60)...), want: []byte{0x20, 3, 0, 0x95, 0}, result: "too_large"},
		{name: "one byte over the limit", send: []byte{0x10, 0xFE, 0xFF, 0x03}, result: "too_large"},
		{name: "half a CONNECT, then the end", send: packet3("half")[:9], finish: true, result: "hangup"},
		{name: "wrong protocol name", send: connectPacket("MQTX", 4, 2, nil, field("a")), result: "bad_protocol_name"},
		{name: "level 9", send: connectPacket("MQTT", 9, 2, nil, field("a")), want: []byte{0x20, 2, 0, 1}, result: "bad_level"},
		{name: "lying client id length", send: connectPacket("MQTT", 4, 2, nil, []byte{0xFF, 0xFF, 'a'}), result: "malformed"},
		{name: "lying client id length in 5.0", send: connectPacket("MQTT", 5, 2, []byte{0}, []byte{0xFF, 0xFF, 'a'}), want: []byte{0x20, 3, 0, 0x81, 0}, result: "malformed"},
		{name: "lying property length", send: connectPacket("MQTT", 5, 2, []byte{0x7F}, field("a")), want: []byte{0x20, 3, 0, 0x81, 0}, result: "malformed"},
		{name: "invalid UTF-8", send: packet3("a\xff"), result: "bad_utf8"},
		{name: "invalid UTF-8 in 5.0", send: packet5("a\xff"), want: []byte{0x20, 3, 0, 0x81, 0}, result: "bad_utf8"},
		{name: "over-long key", send: packet3(long), want: []byte{0x20, 2, 0, 2}, result: "key_too_long"},
		{name: "over-long key in 5.0", send: packet5(long), want: []byte{0x20, 3, 0, 0x85, 0}, result: "key_too_long"},
		{name: "over-long key in 5.0, tiny packets", send: connectPacket("MQTT", 5, 2, prop(0x27, 0, 0, 0, 4), field(long)), result: "key_too_long"},
		{name: "3.1 id over 23 characters", send: packet31(strings.Repeat("m", 24)), want: []byte{0x20, 2, 0, 2}, result: "client_id_rejected", strict: true},
		{name: "3.1.1 password without user name", send: connectPacket("MQTT", 4, 0x42, nil, field("a"), field("p")), result: "malformed", strict: true},
		{name: "5.0 Receive Maximum 0", send: connectPacket("MQTT", 5, 2, prop(0x21, 0, 0), field("a")), want: []byte{0x20, 3, 0, 0x82, 0}, result: "protocol_error", strict: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := testConfig()
			cfg.Strict = tc.strict
			w, b := oneCluster(t, cfg)
			c := w.dial()
			if _, err := c.Write(tc.send); err != nil {
				t.Fatal(err)
			}
			if tc.finish {
				_ = c.(interface{ CloseWrite() error }).CloseWrite()
			}
			if tc.want == nil {
				expectClosed(t, c)
			} else {
				expectEnd(t, c, tc.want)
			}
			eventually(t, "reason "+tc.result, func() bool { return w.results(tc.result) == 1 })
			if n := int(w.metric("turnout_connects_total")); n != 1 {
				t.Errorf("%d results counted for one connection", n)
			}
			if len(b.seen()) > 0 {
				t.Error("a broker heard of it")
			}
		})
	}
}

// TestHarmlessBreaches are accepted unless strict.
func TestHarmlessBreaches(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	for _, p := range [][]byte{
		packet31(strings.Repeat("m", 24)), connectPacket("MQTT", 4, 0x42, nil, field("a"), field("p")), connectPacket("MQTT", 0x84, 2, nil, field("br")),
	} {
		w.connect(p, accept3)
	}
	if got := fmt.Sprint(b.ids()); got != "[mmmmmmmmmmmmmmmmmmmmmmmm a br]" {
		t.Errorf("broker saw %s", got)
	}
}

func TestHalfAConnectThenSilence(t *testing.T) {
	cfg := testConfig()
	cfg.ConnectTimeout = 200 * time.Millisecond
	w, _ := oneCluster(t, cfg)
	silent, half, slow := w.dial(), w.dial(), w.dial()
	_, _ = half.Write(packet3("half")[:9])
	go func() { // a byte now and then does not buy more time
		for _, b := range bytes.Repeat(packet5("a-slow-one"), 100) {
			if _, err := slow.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(25 * time.Millisecond)
		}
	}()
	expectClosed(t, silent)
	expectClosed(t, half)
	expectClosed(t, slow)
	eventually(t, "timeouts", func() bool { return w.results("timeout") == 3 })
}

// TestProbesAreNoErrors closes without a byte, in order and by a reset.
func TestProbesAreNoErrors(t *testing.T) {
	w, _ := oneCluster(t, testConfig())
	_ = w.dial().Close()
	eventually(t, "a probe", func() bool { return w.results("probe") == 1 })
	c := w.dial()
	eventually(t, "the connection to be accepted", func() bool {
		w.gw.tracker.mu.Lock()
		defer w.gw.tracker.mu.Unlock()
		return len(w.gw.tracker.conns) == 1
	})
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
	eventually(t, "a second probe", func() bool { return w.results("probe") == 2 })
	c = w.dial()
	_, _ = c.Write(packet3("half")[:5])
	_ = c.Close()
	eventually(t, "what is no probe", func() bool { return w.results("hangup") == 1 })
}

// TestAnnouncedBytesCostNothing opens many connections that announce 64 KiB each and send a byte.
func TestAnnouncedBytesCostNothing(t *testing.T) {
	w, _ := oneCluster(t, testConfig())
	const n = 200
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for range n {
		if _, err := w.dial().Write([]byte{0x10, 0xFC, 0xFF, 0x03, 0}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all connections held", func() bool {
		w.gw.tracker.mu.Lock()
		defer w.gw.tracker.mu.Unlock()
		return len(w.gw.tracker.conns) == n
	})
	if each := (heap() - before) / n; each > 24<<10 {
		t.Errorf("%d bytes for each connection", each)
	}
}

func TestRefusals(t *testing.T) {
	b := newBroker(t, "w1")
	tb := newTables(t, fsm.Policy{Kind: fsm.PolicyRefuse})
	tb.cluster("west", 1, b.change())
	tb.cluster("empty", 1)
	tb.cluster("dead", 1, up("d1", "127.0.0.1:1"))
	tb.assign("in-empty", "empty")
	tb.assign("in-dead", "dead")
	tb.assign("blocked", "west")
	tb.device(fsm.DeviceChange{Key: "blocked", Blocked: ptr(true)})
	tb.assign("pinned", "dead")
	tb.device(fsm.DeviceChange{Key: "pinned", Pin: ptr(fsm.NodeName("d1")), PinStrict: ptr(true)})
	w := newWorld(t, tb, testConfig())
	for _, tc := range []struct {
		id           string
		code3, code5 byte
		result       string
	}{
		{"nobody", 5, 0x87, "unknown_device"},
		{"", 5, 0x87, "unknown_device"},
		{"blocked", 5, 0x8A, "blocked"},
		{"in-empty", 3, 0x88, "no_node"},
		{"in-dead", 3, 0x88, "unavailable"},
		{"pinned", 3, 0x88, "unavailable"},
	} {
		t.Run(tc.id, func(t *testing.T) {
			before := w.results(tc.result)
			pipelined := bytes.Repeat([]byte{0xC0, 0}, 4000) // more than the gateway reads with the CONNECT
			for _, p := range []struct{ connect, want []byte }{
				{packet31(tc.id), []byte{0x20, 2, 0, tc.code3}}, {packet3(tc.id), []byte{0x20, 2, 0, tc.code3}}, {packet5(tc.id), []byte{0x20, 3, 0, tc.code5, 0}},
			} {
				c := w.dial()
				if _, err := c.Write(append(bytes.Clone(p.connect), pipelined...)); err != nil {
					t.Fatal(err)
				}
				// In order: no reset eats the CONNACK, not even while the device goes on sending.
				expect(t, c, p.want)
				if n, err := c.Read(make([]byte, 1)); err != io.EOF {
					t.Fatalf("%d bytes behind the CONNACK, %v", n, err)
				}
				for range 10 {
					if _, err := c.Write([]byte{0xC0, 0}); err != nil {
						t.Fatalf("the connection was reset: %v", err)
					}
					time.Sleep(time.Millisecond)
				}
				_ = c.Close()
			}
			eventually(t, "counted", func() bool { return w.results(tc.result) == before+3 })
		})
	}
	if len(b.seen()) > 0 {
		t.Error("a broker heard of it")
	}
}

func TestNotReadyWithoutSettings(t *testing.T) {
	tb := &tables{Tables: fsm.New(), t: t}
	w := newWorld(t, tb, testConfig())
	expectEnd(t, w.connect(packet5("a"), []byte{0x20, 3, 0, 0x88, 0}), nil)
	tb.apply(&fsm.Init{Settings: fsm.Settings{ClusterID: "test", Secret: make([]byte, 32), Identity: "{client_id}", Unknown: fsm.Policy{Kind: fsm.PolicyRefuse}}})
	expectEnd(t, w.connect(packet5("a"), []byte{0x20, 3, 0, 0x87, 0}), nil)
}

// TestUnknownIsNotNewWhileBehind: until the tables have caught up, a device without a record may be one whose record is still to come.
func TestUnknownIsNotNewWhileBehind(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	w.assign("known", "west")
	w.behind.Store(true)
	expectEnd(t, w.connect(packet5("a"), []byte{0x20, 3, 0, 0x88, 0}), nil)
	expectEnd(t, w.connect(packet3("a"), []byte{0x20, 2, 0, 3}), nil)
	w.connect(packet5("known"), accept5)
	w.connect(packet5(""), accept5) // has no record anywhere
	if e := w.gw.Explain(ExplainRequest{Key: "a"}); e.Refused != string(resultNotReady) {
		t.Errorf("explained as %+v", e)
	}
	if n := w.results(string(resultNotReady)); n != 2 || len(b.seen()) != 2 {
		t.Errorf("%d refused as not ready, broker saw %q", n, b.ids())
	}
	w.behind.Store(false)
	w.connect(packet5("a"), accept5)
}

func TestEveryVersionIsConnected(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	packets := [][]byte{packet31("v31"), packet3("v311"), packet5("v5"), connectPacket("MQTT", 5, 0xC2, []byte{0}, field("full"), field("user"), field("k9!x"))}
	var devices []net.Conn
	for _, p := range packets {
		want := accept3
		if p[8] == 5 {
			want = accept5
		}
		devices = append(devices, w.connect(p, want))
	}
	for i, v := range b.seen() {
		if !bytes.Equal(v.packet, packets[i]) {
			t.Errorf("the broker got % x of % x", v.packet, packets[i])
		}
	}
	eventually(t, "four sessions", func() bool { return w.gw.Sessions() == 4 && w.metric("turnout_sessions", "cluster", "west") == 4 })
	if n := w.gw.SessionCounts()[Place{w.Topology().Cluster("west").ID, w.node("west", "w1").ID}]; n != 4 {
		t.Errorf("%d sessions at the node", n)
	}
	for _, c := range devices {
		_ = c.Close()
	}
	eventually(t, "no session", func() bool { return w.gw.Sessions() == 0 && w.metric("turnout_session_ends_total") == 4 })
}

func TestConnectByteByByte(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	c := w.dial()
	for _, x := range packet5("slow") {
		_, _ = c.Write([]byte{x})
	}
	expect(t, c, accept5)
	if v := b.seen(); len(v) != 1 || !bytes.Equal(v[0].packet, packet5("slow")) {
		t.Errorf("broker saw %v", b.ids())
	}
}

func TestEmptyClientIDIsNotRecorded(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	w.connect(packet3(""), accept3)
	w.connect(packet5(""), accept5)
	w.connect(packet5("known"), accept5)
	eventually(t, "the binding of the other", func() bool { return w.Status().Devices == 1 })
	if _, ok := w.Device("known"); !ok || len(b.seen()) != 3 {
		t.Errorf("recorded the wrong device; broker saw %q", b.ids())
	}
}

func TestUnreadableConnackIsPassedOn(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	strange := []byte{0x20, 4, 0, 0, 0x01, 0x7E} // a property nobody knows
	b.setScript(func(v *visit) { v.answer(strange); v.drain() })
	c := w.connect(packet5("a"), strange)
	expectEnd(t, c, nil)
	if _, ok := w.Device("a"); ok {
		t.Error("recorded")
	}
	eventually(t, "DISCONNECT at the broker, which takes the device for connected", func() bool {
		return bytes.Equal(b.seen()[0].got(), mqtt.ClientDisconnect(mqtt.V5))
	})
}

func TestConnackInPieces(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	ack := []byte{0x20, 0x12, 0, 0, 0x0F, 0x12, 0, 9, 'a', 'u', 't', 'o', '-', '5', 'k', 'q', '2', 0x13, 0, 0x78}
	b.setScript(func(v *visit) {
		for _, x := range append(bytes.Clone(ack), 0x30, 3, 0, 1, 'x') { // a retained message close behind
			v.answer([]byte{x})
			time.Sleep(time.Millisecond)
		}
		v.drain()
	})
	w.connect(packet5("a"), append(bytes.Clone(ack), 0x30, 3, 0, 1, 'x'))
}

func TestBrokersRefusalIsPassedOn(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	for i, refusal := range [][]byte{{0x20, 2, 0, 5}, {0x20, 2, 0, 4}, {0x20, 3, 0, 0x86, 0}, {0x20, 8, 0, 0x87, 5, 0x1F, 0, 2, 'n', 'o'}} {
		b.setScript(func(v *visit) { v.answer(refusal) })
		p := packet3("a")
		if i > 1 {
			p = packet5("a")
		}
		c := w.dial()
		_, _ = c.Write(append(p, bytes.Repeat([]byte{0xC0, 0}, 3000)...))
		expectEnd(t, c, refusal)
	}
	eventually(t, "counted", func() bool { return w.results("broker_refused") == 4 })
	if n := len(b.seen()); n != 4 || w.Status().Devices != 0 || w.gw.health.ailing.Load() != 0 {
		t.Errorf("%d visits, %d records, %d ill nodes", n, w.Status().Devices, w.gw.health.ailing.Load())
	}
}

func TestPasswordIsInNoLogAndNoTable(t *testing.T) {
	w, _ := oneCluster(t, testConfig())
	w.apply(&fsm.PutSettings{Identity: ptr("{client_id}/{password_hmac}")})
	w.connect(connectPacket("MQTT", 5, 0x42, []byte{0}, field("a"), field("s3cret")), accept5)
	eventually(t, "a record", func() bool { return w.Status().Devices == 1 })
	page, _ := w.Devices("", 10, fsm.DeviceFilter{})
	if k := string(page[0].Key); strings.Contains(k, "s3cret") || !strings.HasPrefix(k, "a/") || len(k) != 2+passwordDigits {
		t.Errorf("key %q", k)
	}
	e := w.gw.Explain(ExplainRequest{Connect: &SyntheticConnect{ClientID: "a", Password: ptr("s3cret")}})
	if e.Key != page[0].Key || e.ClusterBy != "placement" || strings.Contains(fmt.Sprintf("%+v", e), "s3cret") {
		t.Errorf("explanation %+v", e)
	}
}

func TestShutdownWhileConnecting(t *testing.T) {
	w, b := oneCluster(t, testConfig())
	b.setScript(func(v *visit) { v.drain() })
	c := w.dial()
	_, _ = c.Write(packet5("waiting"))
	idle := w.dial()
	eventually(t, "the CONNECT at the broker", func() bool { return len(b.seen()) == 1 })
	if err := w.gw.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	expectClosed(t, c)
	expectClosed(t, idle)
	eventually(t, "DISCONNECT at the broker", func() bool { return bytes.Equal(b.seen()[0].got(), mqtt.ClientDisconnect(mqtt.V5)) })
	if n := w.results("shutting_down"); n != 2 {
		t.Errorf("%d connections shut down", n)
	}
}
