package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"turnout/fsm"
)

// onNode is a target whose channel is the device's own node.
func onNode(address string) Target {
	x := target(fsm.ChannelMQTT, "")
	x.Node = fsm.Node{ID: 7, Name: "n", Address: address}
	return x
}

func TestMQTTChannel(t *testing.T) {
	h := &hook{}
	address, b, _ := startBroker(t, "127.0.0.1:0", h, nil)
	got := make(chan packets.Packet, 10)
	if err := b.Subscribe("devices/meter-1/commands", 1, func(_ *mochi.Client, _ packets.Subscription, p packets.Packet) { got <- p }); err != nil {
		t.Fatal(err)
	}
	c, _ := newCommander(t, newFakeLog(), newTestMetrics())
	x := onNode(address)
	r := c.Send(t.Context(), x, Command{ID: "c-1", Payload: []byte("on"), ExpirySeconds: ptr[uint32](60)})
	if r.Outcome != Accepted {
		t.Fatalf("got %+v", r)
	}
	p := <-got
	if string(p.Payload) != "on" || string(p.Properties.CorrelationData) != "c-1" || len(p.Properties.User) != 1 || p.Properties.User[0].Val != "c-1" {
		t.Errorf("got %+v", p)
	}
	if sent := h.last.Load(); sent.FixedHeader.Qos != 1 || sent.Properties.MessageExpiryInterval != 60 || sent.FixedHeader.Retain {
		t.Errorf("got %+v", sent)
	}
	if id := *h.id.Load(); id != "turnout-01234567-1" {
		t.Errorf("client identifier %s", id)
	}
	if r := c.Send(t.Context(), x, Command{Payload: []byte("off"), QoS: ptr[uint8](0)}); r.Outcome != Accepted || !strings.Contains(r.Detail, "QoS 0") {
		t.Errorf("QoS 0: got %+v", r)
	}
	<-got
	for key, want := range map[fsm.DeviceKey]Outcome{"forbidden": Rejected, "quota": Rejected, "absent": Accepted} {
		y := x
		y.Key = key
		if r := c.Send(t.Context(), y, Command{Payload: []byte("on")}); r.Outcome != want {
			t.Errorf("%s: got %+v, want %s", key, r, want)
		}
	}
	// The same broker by a URL is another connection, and all of the above was one.
	y := target(fsm.ChannelMQTT, "mqtt://"+address)
	if r := c.Send(t.Context(), y, Command{Payload: []byte("on")}); r.Outcome != Accepted {
		t.Errorf("by URL: got %+v", r)
	}
	if n := h.connects.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

func TestMQTTConcurrent(t *testing.T) {
	h := &hook{}
	address, _, _ := startBroker(t, "127.0.0.1:0", h, nil)
	c, _ := newCommander(t, newFakeLog(), newTestMetrics())
	results := make(chan Result)
	for range 100 {
		go func() { results <- c.Send(t.Context(), onNode(address), Command{Payload: []byte("on")}) }()
	}
	for range 100 {
		if r := <-results; r.Outcome != Accepted {
			t.Errorf("got %+v", r)
		}
	}
	if n := h.connects.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// Each protocol version comes back after the broker was restarted.
func TestMQTTReconnect(t *testing.T) {
	for _, version := range []byte{5, 4} {
		h := &hook{version: version}
		address, _, stop := startBroker(t, "127.0.0.1:0", h, nil)
		c, _ := newCommander(t, newFakeLog(), newTestMetrics())
		send := func() Result { return c.Send(t.Context(), onNode(address), Command{Payload: []byte("on")}) }
		if r := send(); r.Outcome != Accepted {
			t.Fatalf("version %d: got %+v", version, r)
		}
		stop()
		waitFor(t, "rejection while the broker is down", func() bool { return send().Outcome == Rejected })
		if r := send(); r.Detail != "channel unreachable" {
			t.Errorf("version %d: got %+v", version, r)
		}
		_, b, stop := startBroker(t, address, h, nil)
		waitFor(t, "acceptance after the restart", func() bool { return send().Outcome == Accepted })
		c.Close()
		emptied(t, b)
		stop()
	}
}

func TestMQTTVersion3(t *testing.T) {
	h := &hook{version: 4, password: "s3cret"}
	address, _, _ := startBroker(t, "127.0.0.1:0", h, nil)
	c, _ := newCommander(t, newFakeLog(), newTestMetrics())
	x := onNode(address)
	if r := c.Send(t.Context(), x, Command{}); r.Outcome != Rejected || r.Detail != "channel credentials refused" {
		t.Errorf("without a credential: got %+v", r)
	}
	t.Setenv("TURNOUT_TEST_CHANNEL", "gw:s3cret")
	x.Cluster.Spec.Channel.Credential = "env:TURNOUT_TEST_CHANNEL"
	if r := c.Send(t.Context(), x, Command{ExpirySeconds: ptr[uint32](5)}); r.Outcome != Accepted || !strings.Contains(r.Detail, "no expiry") {
		t.Errorf("got %+v", r)
	}
	if r := c.Send(t.Context(), x, Command{QoS: ptr[uint8](0)}); r.Outcome != Accepted {
		t.Errorf("QoS 0: got %+v", r)
	}
	x.Cluster.Spec.Channel.Credential = "env:TURNOUT_TEST_NONE"
	if r := c.Send(t.Context(), x, Command{}); r.Outcome != Rejected || !strings.Contains(r.Detail, "env:TURNOUT_TEST_NONE") {
		t.Errorf("no credential: got %+v", r)
	}
}

func TestMQTTBrokerOddities(t *testing.T) {
	const ok5, ok3, version3 = "\x20\x03\x00\x00\x00", "\x20\x02\x00\x00", "\x20\x02\x00\x01"
	refuse5 := func(code byte) string { return "\x20\x03\x00" + string([]byte{code}) + "\x00" }
	const puback = "\x40\x02\x00\x01"
	tests := []struct {
		name     string
		connacks []string
		puback   string
		want     Outcome
		detail   string
	}{
		{"3.1.1 broker refuses the version in its own way", []string{version3, ok3}, puback, Accepted, "3.1.1"},
		{"3.1.1 broker closes", []string{"", ok3}, puback, Accepted, "3.1.1"},
		{"5.0 broker refuses the version", []string{refuse5(0x84), ok3}, puback, Accepted, "3.1.1"},
		{"neither version", []string{version3, version3}, "", Rejected, "refuses the connection"},
		{"bad password, 5.0", []string{refuse5(0x86)}, "", Rejected, "channel credentials refused"},
		{"not authorised, 5.0", []string{refuse5(0x87)}, "", Rejected, "channel credentials refused"},
		{"bad password, 3.1.1", []string{version3, "\x20\x02\x00\x04"}, "", Rejected, "channel credentials refused"},
		{"busy", []string{refuse5(0x89)}, "", Rejected, "refuses the connection"},
		{"unavailable, 3.1.1", []string{version3, "\x20\x02\x00\x03"}, "", Rejected, "refuses the connection"},
		{"no subscriber", []string{ok5}, "\x40\x03\x00\x01\x10", NoSubscriber, ""},
		{"success without a reason code", []string{ok5}, puback, Accepted, ""},
		{"topic refused", []string{ok5}, "\x40\x03\x00\x01\x90", Rejected, "topic"},
		{"payload format refused", []string{ok5}, "\x40\x03\x00\x01\x99", Rejected, ""},
		{"huge CONNACK announced", []string{"\x20\xff\xff\xff\x7f", "\x20\xff\xff\xff\x7f"}, "", Rejected, "channel unreachable"},
		{"huge packet instead of PUBACK", []string{ok5}, "\x40\xff\xff\xff\x7f", Unknown, "ended"},
		{"DISCONNECT instead of PUBACK", []string{ok5}, "\xe0\x02\x8b\x00", Unknown, "ended"},
		{"broker takes small packets only", []string{"\x20\x08\x00\x00\x05\x27\x00\x00\x00\x10"}, "", Rejected, "larger"},
		{"broker takes QoS 0 only", []string{"\x20\x05\x00\x00\x02\x24\x00"}, "", Rejected, "QoS"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := newCommander(t, newFakeLog(), newTestMetrics())
			// Nothing here is worth waiting for until a command's time is over.
			ctx, cancel := context.WithTimeout(t.Context(), commandTimeout/2)
			defer cancel()
			r := c.Send(ctx, onNode(scripted(t, tt.connacks, tt.puback)), Command{ID: "c", Payload: []byte("on")})
			if r.Outcome != tt.want || !strings.Contains(r.Detail, tt.detail) {
				t.Errorf("got %+v, want %s", r, tt.want)
			}
		})
	}
	t.Run("no PUBACK", func(t *testing.T) {
		for _, connacks := range [][]string{{ok5}, {version3, ok3}} {
			p := newMQTTPool(CommanderOptions{Tables: fsm.New(), Guard: loopback(t), Gateway: gatewayID, Logger: quiet(), Now: time.Now})
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			r := p.publish(ctx, onNode(scripted(t, connacks, "")), message{topic: "t", qos: 1})
			cancel()
			p.close()
			if r.Outcome != Unknown {
				t.Errorf("got %+v", r)
			}
		}
	})
	t.Run("no CONNACK", func(t *testing.T) {
		p := newMQTTPool(CommanderOptions{Tables: fsm.New(), Guard: loopback(t), Gateway: gatewayID, Logger: quiet(), Now: time.Now})
		defer p.close()
		for _, connacks := range [][]string{{"\x20"}, {version3, "\x20"}} {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			r := p.publish(ctx, onNode(scripted(t, connacks, "")), message{topic: "t", qos: 1})
			cancel()
			if r.Outcome != Rejected {
				t.Errorf("got %+v", r)
			}
		}
	})
}

func TestMQTTChannelAddress(t *testing.T) {
	tests := []struct{ url, address, server string }{
		{"mqtt://h", "h:1883", ""},
		{"mqtt://h:2000", "h:2000", ""},
		{"mqtts://h", "h:8883", "h"},
		{"mqtts://[fd00::1]:9", "[fd00::1]:9", "fd00::1"},
		{"", "10.0.0.1:1883", ""},
	}
	for _, tt := range tests {
		x := onNode("10.0.0.1:1883")
		x.Cluster.Spec.Channel.URL = tt.url
		key, why := mqttChannel(x)
		if key.address != tt.address || key.serverName != tt.server || why != "" || (key.node != 0) != (tt.url == "") {
			t.Errorf("%q: got %+v %s", tt.url, key, why)
		}
	}
	if _, why := mqttChannel(target(fsm.ChannelMQTT, "")); why == "" {
		t.Error("no node, and no objection")
	}
	c, _ := newCommander(t, newFakeLog(), newTestMetrics())
	if r := c.Send(t.Context(), target(fsm.ChannelMQTT, "mqtt://169.254.169.254"), Command{}); r.Outcome != Rejected || !strings.Contains(r.Detail, "upstream.allow") {
		t.Errorf("got %+v", r)
	}
}

func TestMQTTOverTLS(t *testing.T) {
	server := httptest.NewTLSServer(nil) // for its certificate, which is for 127.0.0.1
	defer server.Close()
	h := &hook{}
	address, _, _ := startBroker(t, "127.0.0.1:0", h, &tls.Config{Certificates: server.TLS.Certificates})
	c, _ := newCommander(t, newFakeLog(), newTestMetrics())
	x := target(fsm.ChannelMQTT, "mqtts://"+address)
	if r := c.Send(t.Context(), x, Command{}); r.Outcome != Rejected || !strings.Contains(r.Detail, "TLS") {
		t.Errorf("certificate of an unknown issuer: got %+v", r)
	}
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	c.mqtt.tls = func(ctx context.Context, conn net.Conn, name string) (net.Conn, error) {
		return startTLS(ctx, conn, &tls.Config{ServerName: name, RootCAs: roots})
	}
	if r := c.Send(t.Context(), x, Command{}); r.Outcome != Accepted {
		t.Errorf("got %+v", r)
	}
}

// Connections go when they are idle, and at once when their node or cluster is gone.
func TestMQTTSweep(t *testing.T) {
	h := &hook{}
	address, b, _ := startBroker(t, "127.0.0.1:0", h, nil)
	l := newFakeLog()
	spec := fsm.DefaultSpec()
	spec.Driver, spec.Addresses = fsm.DriverStatic, map[fsm.NodeName]string{"n": address}
	spec.Channel.Kind = fsm.ChannelMQTT
	l.put(t, "west", spec)
	if _, err := l.Propose(t.Context(), &fsm.UpdateNodes{Cluster: "west", Upsert: []fsm.NodeChange{{Name: "n", Address: address, State: fsm.NodeUp}}}); err != nil {
		t.Fatal(err)
	}
	c, k := newCommander(t, l, newTestMetrics())
	held := func() int { c.mqtt.mu.Lock(); defer c.mqtt.mu.Unlock(); return len(c.mqtt.conns) }
	send := func() {
		t.Helper()
		cluster := l.tables.Topology().Cluster("west")
		if r := c.Send(t.Context(), Target{Key: "k", Cluster: cluster, Node: cluster.Nodes[0]}, Command{}); r.Outcome != Accepted {
			t.Fatalf("got %+v", r)
		}
	}
	send()
	c.mqtt.sweep(l.tables.Topology())
	if held() != 1 {
		t.Fatal("a fresh connection was closed")
	}
	k.advance(mqttIdle + time.Second)
	waitFor(t, "end of use", func() bool { c.mqtt.sweep(l.tables.Topology()); return held() == 0 })
	waitFor(t, "disconnect", func() bool { return atomic.LoadInt64(&b.Info.ClientsConnected) == 0 })
	send()
	if n := h.connects.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	if _, err := l.Propose(t.Context(), &fsm.UpdateNodes{Cluster: "west", Remove: []fsm.NodeName{"n"}}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "end with the node", func() bool { return held() == 0 })
}

// However the bytes arrive, a packet within the bound passes whole and a larger one does not pass its header.
func TestBoundedConn(t *testing.T) {
	small := append([]byte{0x20, 0x80, 0x01}, make([]byte, 128)...)
	largest := append([]byte{0x30, 0x80, 0x80, 0x04}, make([]byte, maxInboundPacket)...)
	good := append(append([]byte{0xd0, 0}, small...), largest...)
	for _, chunk := range []int{1, 2, 3, 100, 1 << 20} {
		for _, tt := range []struct {
			tail []byte
			bad  bool
		}{{nil, false}, {[]byte{0x30, 0x81, 0x80, 0x04, 1}, true}, {[]byte{0x30, 0xff, 0xff, 0xff, 0xff, 1}, true}} {
			a, b := net.Pipe()
			go func() {
				defer b.Close()
				for all := append(bytes.Clone(good), tt.tail...); len(all) > 0; {
					n := min(chunk, len(all))
					if _, err := b.Write(all[:n]); err != nil {
						return
					}
					all = all[n:]
				}
			}()
			n, err := io.Copy(io.Discard, &boundedConn{Conn: a})
			a.Close()
			if tt.bad != (err == errPacketTooLarge) || !tt.bad && n != int64(len(good)) {
				t.Errorf("chunks of %d: got %d bytes, %v", chunk, n, err)
			}
		}
	}
}
