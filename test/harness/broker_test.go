package harness

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"
)

// connect311 is a 3.1.1 CONNECT of client m-0417 with a Will, user name and password (MQTT 3.1.1 §3.1).
var connect311 = []byte{
	0x10, 0x30, // CONNECT, Remaining Length 48
	0x00, 0x04, 'M', 'Q', 'T', 'T', 0x04, // protocol name and level
	0xEE,       // user name, password, Will retained, Will QoS 1, Will, Clean Session
	0x01, 0x2C, // keep alive 300 s
	0x00, 0x06, 'm', '-', '0', '4', '1', '7', // client identifier
	0x00, 0x09, 's', 't', '/', 'm', '-', '0', '4', '1', '7', // Will topic
	0x00, 0x03, 'o', 'f', 'f', // Will payload
	0x00, 0x06, 'p', 'l', 'a', 'n', 't', '7', // user name
	0x00, 0x04, 'k', '9', '!', 'x', // password
}

func dialRaw(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn
}

func readExactly(t *testing.T, conn net.Conn, n int) []byte {
	t.Helper()
	buf := make([]byte, n)
	_, err := io.ReadFull(conn, buf)
	must(t, err)
	return buf
}

func hexSHA256(parts ...[]byte) string {
	sum := sha256.Sum256(slices.Concat(parts...))
	return hex.EncodeToString(sum[:])
}

func lastRecord(b *Broker, event Event) (Record, bool) {
	for _, r := range slices.Backward(b.Records()) {
		if r.Event == event {
			return r, true
		}
	}
	return Record{}, false
}

func TestBrokerRecordsConnectBeforeItAnswers(t *testing.T) {
	b := startBroker(t)
	conn := dialRaw(t, b.Address())
	// Split on purpose: the hash is of the packet, not of the reads, and a pipelined PINGREQ is not part of it.
	_, err := conn.Write(connect311[:7])
	must(t, err)
	_, err = conn.Write(append(slices.Clone(connect311[7:]), 0xC0, 0x00))
	must(t, err)
	ack := readExactly(t, conn, 4)
	if !slices.Equal(ack, []byte{0x20, 0x02, 0x00, 0x00}) {
		t.Fatalf("CONNACK % x", ack)
	}
	r, ok := lastRecord(b, EventConnect)
	if !ok {
		t.Fatal("no connect record although CONNACK arrived")
	}
	want := Record{
		Event: EventConnect, Time: r.Time, Node: "solo-1@127.0.0.1", ClientID: "m-0417", Username: "plant7",
		Password: true, Remote: conn.LocalAddr().String(), ProtocolVersion: 4, CleanStart: true, KeepAlive: 300,
		WillTopic: "st/m-0417", WillPayload: r.WillPayload, WillQoS: 1, WillRetain: true,
		ConnectSHA256: hexSHA256(connect311),
	}
	if string(r.WillPayload) != "off" {
		t.Errorf("Will payload %q", r.WillPayload)
	}
	r.WillPayload, want.WillPayload = nil, nil
	if got := r; got.ConnectSHA256 != want.ConnectSHA256 || !equalRecord(got, want) {
		t.Errorf("record\n got %+v\nwant %+v", got, want)
	}
	if b.Seen("m-0417") != 1 || !slices.Equal(b.Connected(), []string{"m-0417"}) {
		t.Errorf("seen %d, connected %v", b.Seen("m-0417"), b.Connected())
	}

	readExactly(t, conn, 2) // PINGRESP
	_, err = conn.Write([]byte{0xE0, 0x00})
	must(t, err)
	eventually(t, "disconnect record", func() bool { _, ok := lastRecord(b, EventDisconnect); return ok })
	end, _ := lastRecord(b, EventDisconnect)
	if !end.Graceful || end.BytesIn != int64(len(connect311)+4) || end.BytesOut != 6 {
		t.Errorf("end record %+v", end)
	}
	if end.SHA256In != hexSHA256(connect311, []byte{0xC0, 0x00, 0xE0, 0x00}) {
		t.Error("hash of the received stream differs")
	}
	if end.SHA256Out != hexSHA256([]byte{0x20, 0x02, 0x00, 0x00, 0xD0, 0x00}) {
		t.Error("hash of the sent stream differs")
	}
	if len(b.Wills()) != 0 {
		t.Error("a Will was published after DISCONNECT")
	}
}

// equalRecord compares all fields but the slices.
func equalRecord(a, b Record) bool {
	a.WillPayload, b.WillPayload = nil, nil
	return a.Event == b.Event && a.Node == b.Node && a.ClientID == b.ClientID && a.Assigned == b.Assigned &&
		a.Username == b.Username && a.Password == b.Password && a.Remote == b.Remote &&
		a.ProtocolVersion == b.ProtocolVersion && a.CleanStart == b.CleanStart && a.KeepAlive == b.KeepAlive &&
		a.WillTopic == b.WillTopic && a.WillQoS == b.WillQoS && a.WillRetain == b.WillRetain
}

func TestBrokerPublishesWillOfAnAbruptEnd(t *testing.T) {
	b := startBroker(t)
	for _, version := range []byte{3, 4, 5} {
		watcher := connect(t, DeviceOptions{Address: b.Address(), ClientID: "watcher", Version: version, CleanStart: true, Subscribe: []string{"st/#"}})
		d := connect(t, DeviceOptions{
			Address: b.Address(), ClientID: "dying", Version: version, CleanStart: true,
			Will: &Message{Topic: "st/dying", Payload: []byte("off"), QoS: 1},
		})
		before := len(b.Wills())
		d.Kill()
		m, err := watcher.Await(testContext(t), func(m Message) bool { return m.Topic == "st/dying" })
		must(t, err)
		if string(m.Payload) != "off" {
			t.Errorf("version %d: Will payload %q", version, m.Payload)
		}
		eventually(t, "the Will is recorded", func() bool { return len(b.Wills()) == before+1 })
		eventually(t, "an abrupt end is recorded", func() bool {
			return slices.ContainsFunc(b.Records(), func(r Record) bool {
				return r.Event == EventDisconnect && r.ClientID == "dying" && r.ProtocolVersion == version && !r.Graceful
			})
		})
		watcher.Disconnect()
	}
}

func TestBrokerRefusesInTheClientsVersion(t *testing.T) {
	b := startBroker(t)
	tests := []struct {
		code, version, want byte
	}{
		{0x88, 5, 0x88}, {0x88, 4, 3}, {0x88, 3, 3},
		{3, 5, 0x88}, {3, 4, 3},
		{0x9C, 5, 0x9C}, {0x9C, 4, 3},
		{0x87, 4, 5}, {0x86, 4, 4}, {0x85, 4, 2}, {0x84, 4, 1}, {5, 5, 0x87},
	}
	for _, tt := range tests {
		b.Refuse(tt.code)
		_, err := ConnectDevice(testContext(t), DeviceOptions{Address: b.Address(), ClientID: "r", Version: tt.version, CleanStart: true})
		var refused *RefusedError
		if !errors.As(err, &refused) {
			t.Fatalf("code 0x%02x version %d: error %v is no refusal", tt.code, tt.version, err)
		}
		if refused.Code != tt.want || refused.Version != tt.version {
			t.Errorf("code 0x%02x version %d: got 0x%02x, want 0x%02x", tt.code, tt.version, refused.Code, tt.want)
		}
		if r, ok := lastRecord(b, EventRefuse); !ok || r.Code != tt.want || r.ClientID != "r" {
			t.Errorf("code 0x%02x version %d: record %+v", tt.code, tt.version, r)
		}
	}
	if b.Seen("r") != 0 {
		t.Error("refused connections were counted as seen")
	}
	b.Refuse(0)
	connect(t, DeviceOptions{Address: b.Address(), ClientID: "r", CleanStart: true})
}

func TestBrokerDeliversRefusalToAPipeliningClient(t *testing.T) {
	b := startBroker(t)
	b.Refuse(0x88)
	for range 20 {
		conn := dialRaw(t, b.Address())
		_, err := conn.Write(append(slices.Clone(connect311), make([]byte, 30000)...))
		must(t, err)
		if ack := readExactly(t, conn, 4); ack[3] != 3 {
			t.Fatalf("CONNACK % x", ack)
		}
		_ = conn.Close()
	}
}

func TestBrokerHangs(t *testing.T) {
	b := startBroker(t)
	b.Hang(true)
	conn := dialRaw(t, b.Address())
	_, err := conn.Write(connect311)
	must(t, err)
	must(t, conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("read gave %v, want a timeout", err)
	}
	b.Hang(false)
	connect(t, DeviceOptions{Address: b.Address(), ClientID: "later", CleanStart: true})
	if b.Seen("m-0417") != 0 {
		t.Error("a CONNECT held while hanging was processed")
	}
	b.Hang(true) // Close must not wait for the end of the hanging
	dialRaw(t, b.Address())
}

func TestBrokerStopsLikeAKilledProcessAndComesBack(t *testing.T) {
	b := startBroker(t)
	address := b.Address()
	d := connect(t, DeviceOptions{
		Address: address, ClientID: "d", Version: 5, CleanStart: true, Will: &Message{Topic: "w", Payload: []byte("x")},
	})
	for round := range 5 {
		must(t, b.Stop())
		must(t, b.Stop())
		<-d.Done()
		if code, ok := d.ServerDisconnect(); ok {
			t.Fatalf("a killed broker said DISCONNECT 0x%02x", code)
		}
		if _, err := net.Dial("tcp", address); err == nil {
			t.Fatal("a stopped broker accepted a connection")
		}
		if b.Running() || len(b.Connected()) != 0 {
			t.Fatal("a stopped broker has clients")
		}
		must(t, b.Start())
		must(t, b.Start())
		if b.Address() != address {
			t.Fatalf("address changed to %s", b.Address())
		}
		d = connect(t, DeviceOptions{Address: address, ClientID: "d", Version: 5, CleanStart: true, Will: &Message{Topic: "w", Payload: []byte("x")}})
		if b.Seen("d") != round+2 {
			t.Fatalf("seen %d in round %d", b.Seen("d"), round)
		}
	}
	if len(b.Wills()) != 0 {
		t.Error("a killed broker published Wills")
	}
}

func TestBrokerKeepsWhatClientsPublish(t *testing.T) {
	b := startBroker(t)
	one := byte(1)
	sub := connect(t, DeviceOptions{Address: b.Address(), ClientID: "sub", Version: 5, CleanStart: true, Subscribe: []string{"up/#"}})
	for qos := byte(0); qos <= 2; qos++ {
		d := connect(t, DeviceOptions{Address: b.Address(), ClientID: "pub", Version: 5, CleanStart: true})
		m := Message{
			Topic: "up/1", Payload: []byte{0, 1, qos}, QoS: qos,
			Properties: MessageProperties{
				PayloadFormat: &one, ExpirySeconds: 60, ContentType: "text/plain", ResponseTopic: "re",
				CorrelationData: []byte("c"), User: []UserProperty{{"k", "v"}},
			},
		}
		must(t, d.Publish(testContext(t), m))
		got, err := sub.Await(testContext(t), func(got Message) bool { return got.Payload[2] == qos })
		must(t, err)
		p := got.Properties
		if p.ExpirySeconds == 0 || p.ExpirySeconds > 60 || p.ContentType != "text/plain" || p.ResponseTopic != "re" ||
			string(p.CorrelationData) != "c" || len(p.User) != 1 || p.User[0] != (UserProperty{"k", "v"}) ||
			p.PayloadFormat == nil || *p.PayloadFormat != 1 {
			t.Errorf("QoS %d: properties %+v did not survive", qos, p)
		}
		d.Disconnect()
	}
	eventually(t, "three messages", func() bool { return len(b.Messages()) == 3 })
	for i, m := range b.Messages() {
		if m.ClientID != "pub" || m.Topic != "up/1" || m.QoS != byte(i) {
			t.Errorf("message %d: %+v", i, m)
		}
	}
	matched, err := b.Publish(Message{Topic: "up/2", Payload: []byte{9, 9, 9}, QoS: 1})
	if err != nil || matched != 1 {
		t.Fatalf("matched %d, error %v", matched, err)
	}
	got, err := sub.Await(testContext(t), func(m Message) bool { return m.Topic == "up/2" })
	must(t, err)
	if got.Properties.ExpirySeconds != 0 || got.QoS != 1 {
		t.Errorf("inline message came with expiry %d and QoS %d", got.Properties.ExpirySeconds, got.QoS)
	}
	if matched, err := b.Publish(Message{Topic: "nobody"}); err != nil || matched != 0 {
		t.Fatalf("matched %d, error %v", matched, err)
	}
}

func TestBrokerAnswersOddClientsByTheirVersion(t *testing.T) {
	b := startBroker(t)
	tests := []struct {
		name    string
		connect []byte
		want    []byte // nil: closed without an answer
	}{
		{"3.1.1 empty identifier, Clean Session 0", []byte{0x10, 0x0C, 0, 4, 'M', 'Q', 'T', 'T', 4, 0, 0, 60, 0, 0}, []byte{0x20, 2, 0, 2}},
		{"3.1.1 empty identifier, Clean Session 1", []byte{0x10, 0x0C, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 0}, []byte{0x20, 2, 0, 0}},
		{"level 9", []byte{0x10, 0x0D, 0, 4, 'M', 'Q', 'T', 'T', 9, 2, 0, 60, 0, 1, 'x'}, []byte{0x20, 2, 0, 1}},
		{"3.1.1 reserved flag", []byte{0x10, 0x0D, 0, 4, 'M', 'Q', 'T', 'T', 4, 3, 0, 60, 0, 1, 'x'}, nil},
		{"no MQTT", []byte("GET / HTTP/1.1\r\n\r\n"), nil},
	}
	for _, tt := range tests {
		conn := dialRaw(t, b.Address())
		_, err := conn.Write(tt.connect)
		must(t, err)
		if tt.want != nil {
			if got := readExactly(t, conn, 4); !slices.Equal(got, tt.want) {
				t.Errorf("%s: answer % x, want % x", tt.name, got, tt.want)
			}
			continue
		}
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: %d bytes came back", tt.name, n)
		}
	}
	if r, ok := lastRecord(b, EventConnect); !ok || !r.Assigned || r.ClientID == "" {
		t.Errorf("record of an empty identifier: %+v", r)
	}
	d := connect(t, DeviceOptions{Address: b.Address(), Version: 5, CleanStart: true})
	if r, _ := lastRecord(b, EventConnect); d.ClientID() == "" || d.ClientID() != r.ClientID {
		t.Errorf("device was assigned %q, record says %q", d.ClientID(), r.ClientID)
	}
}

func TestDeviceTellsTimeoutAndGonePeer(t *testing.T) {
	b := startBroker(t)
	b.Hang(true)
	for _, version := range []byte{4, 5} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := ConnectDevice(ctx, DeviceOptions{Address: b.Address(), ClientID: "x", Version: version})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("version %d: error %v", version, err)
		}
	}
	b.Hang(false)
	for _, version := range []byte{4, 5} {
		d := connect(t, DeviceOptions{Address: b.Address(), ClientID: "x", Version: version, CleanStart: true})
		must(t, b.Stop())
		if _, err := d.Await(testContext(t), func(Message) bool { return true }); !errors.Is(err, ErrDeviceGone) {
			t.Errorf("version %d: error %v", version, err)
		}
		must(t, b.Start())
	}
	must(t, b.Stop())
	for _, version := range []byte{4, 5} {
		_, err := ConnectDevice(testContext(t), DeviceOptions{Address: b.Address(), ClientID: "x", Version: version})
		var refused *RefusedError
		if err == nil || errors.As(err, &refused) {
			t.Errorf("version %d: a refused TCP connection gave %v", version, err)
		}
	}
}
